//! Tab-separated lines: `key`, or `key` tab `value`. Pure.
//!
//! Bytes stand for themselves, UTF-8 or not, carriage returns too; only tab, newline and backslash are written
//! as `\t`, `\n` and `\\`. Reading also knows `\r`, `\0` and `\xHH`. The canonical line of an empty value has no tab.

use bytes::Bytes;

use super::Fields;
use crate::text;

/// Reads a line without its line end.
pub(super) fn decode(line: &Bytes) -> Result<Fields, String> {
    let (key, value) = match line.iter().position(|byte| *byte == b'\t') {
        Some(tab) => (line.slice(..tab), line.slice(tab + 1..)),
        None => (line.clone(), Bytes::new()),
    };
    if value.contains(&b'\t') {
        return Err(r"more than two columns; write a tab inside a value as \t".to_owned());
    }
    Ok(Fields { key: unescape(key)?, value: unescape(value)?, ttl_seconds: 0 })
}

/// Shares the memory of a field without escapes.
fn unescape(field: Bytes) -> Result<Bytes, String> {
    if !field.contains(&b'\\') {
        return Ok(field);
    }
    text::unescape(&field).map(Bytes::from).map_err(|error| error.to_string())
}

/// Appends the canonical line without its line end.
pub(super) fn encode(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    escape(key, out);
    if !value.is_empty() {
        out.push(b'\t');
        escape(value, out);
    }
}

fn escape(field: &[u8], out: &mut Vec<u8>) {
    for piece in field.split_inclusive(|byte| matches!(byte, b'\t' | b'\n' | b'\\')) {
        let (body, letter) = match piece.split_last() {
            Some((b'\t', body)) => (body, b't'),
            Some((b'\n', body)) => (body, b'n'),
            Some((b'\\', body)) => (body, b'\\'),
            _ => {
                out.extend_from_slice(piece);
                continue;
            }
        };
        out.extend_from_slice(body);
        out.extend_from_slice(&[b'\\', letter]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_bytes_are_escaped_and_others_are_not() {
        let mut out = Vec::new();
        encode(b"a\tb", b"1\n\\\xff\r", &mut out);
        assert_eq!(out, b"a\\tb\t1\\n\\\\\xff\r");
    }

    #[test]
    fn columns_are_counted() {
        assert_eq!(decode(&Bytes::from_static(b"k\t")).unwrap().value, Bytes::new());
        assert!(decode(&Bytes::from_static(b"k\tv\tw")).is_err());
    }
}
