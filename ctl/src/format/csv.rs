//! Comma-separated records as in RFC 4180: `key,value` with quotes where needed. Pure.
//!
//! A record ends at a newline outside quotes; a carriage return before it belongs to the line end. A quote opens a
//! quoted field only at the field's start. Bytes need not be UTF-8. The canonical record has two fields, quotes a
//! field only when it holds a comma, a quote, a newline or a carriage return, and ends in a newline alone; a record of
//! one field has an empty value, as the canonical `key,` has.

use bytes::Bytes;

use super::Fields;

/// Where a scan for the end of a record stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Scan {
    #[default]
    FieldStart,
    Plain,
    Quoted,
    /// After a quote inside quotes: the end of the field, or half of a doubled quote.
    QuoteInQuotes,
}

impl Scan {
    /// The position of the newline that ends the record; `None` (and `scanned` at the end) when it is not here yet.
    pub(super) fn find_end(&mut self, buf: &[u8], scanned: &mut usize) -> Option<usize> {
        for (at, byte) in buf.iter().enumerate().skip(*scanned) {
            *self = match (*self, byte) {
                (Scan::Quoted, b'"') => Scan::QuoteInQuotes,
                (Scan::Quoted, _) => Scan::Quoted,
                (_, b'\n') => return Some(at),
                (Scan::FieldStart | Scan::QuoteInQuotes, b'"') => Scan::Quoted,
                (_, b',') => Scan::FieldStart,
                _ => Scan::Plain,
            };
        }
        *scanned = buf.len();
        None
    }

    /// Whether the record ends inside quotes as far as it was scanned.
    pub(super) fn in_quotes(self) -> bool {
        self == Scan::Quoted
    }
}

/// Reads a record without its newline.
pub(super) fn decode(record: &Bytes) -> Result<Fields, String> {
    let end = record.len() - usize::from(record.ends_with(b"\r"));
    let record = record.slice(..end);
    let (key, rest) = field(&record)?;
    let value = match rest {
        None => Bytes::new(),
        Some(rest) => match field(&rest)? {
            (value, None) => value,
            (_, Some(_)) => return Err("more than two fields; quote a value that holds a comma".to_owned()),
        },
    };
    Ok(Fields { key, value, ttl_seconds: 0 })
}

/// The first field and what follows the comma after it.
fn field(input: &Bytes) -> Result<(Bytes, Option<Bytes>), String> {
    if input.first() == Some(&b'"') {
        return quoted_field(input);
    }
    let end = input.iter().position(|byte| *byte == b',').unwrap_or(input.len());
    let plain = input.slice(..end);
    if plain.contains(&b'"') {
        return Err(
            r#"a quote inside an unquoted field; quote the field and write the quote as """#.to_owned()
        );
    }
    Ok((plain, (end < input.len()).then(|| input.slice(end + 1..))))
}

fn quoted_field(input: &Bytes) -> Result<(Bytes, Option<Bytes>), String> {
    let mut out = Vec::new();
    let mut at = 1;
    loop {
        let Some(quote) = input[at..].iter().position(|byte| *byte == b'"').map(|offset| at + offset) else {
            return Err("a quoted field has no closing quote".to_owned());
        };
        out.extend_from_slice(&input[at..quote]);
        match input.get(quote + 1) {
            Some(b'"') => out.push(b'"'),
            Some(b',') => return Ok((Bytes::from(out), Some(input.slice(quote + 2..)))),
            None => return Ok((Bytes::from(out), None)),
            Some(_) => {
                return Err("text after a closing quote; write a quote inside quotes as \"\"".to_owned());
            }
        }
        at = quote + 2;
    }
}

/// Appends the canonical record without its line end.
pub(super) fn encode(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    encode_field(key, out);
    out.push(b',');
    encode_field(value, out);
}

fn encode_field(field: &[u8], out: &mut Vec<u8>) {
    if !field.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) {
        out.extend_from_slice(field);
        return;
    }
    out.push(b'"');
    for piece in field.split_inclusive(|byte| *byte == b'"') {
        out.extend_from_slice(piece);
        if piece.ends_with(b"\"") {
            out.push(b'"');
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(record: &'static str) -> Result<(Bytes, Bytes), String> {
        decode(&Bytes::from_static(record.as_bytes())).map(|fields| (fields.key, fields.value))
    }

    #[test]
    fn fields_are_quoted_only_when_they_must_be() {
        let mut out = Vec::new();
        encode(b"plain key", b"a \"b\", c", &mut out);
        assert_eq!(out, br#"plain key,"a ""b"", c""#);
    }

    #[test]
    fn odd_records_say_what_is_wrong() {
        assert_eq!(pair("a,b\r").unwrap(), (Bytes::from("a"), Bytes::from("b")));
        assert_eq!(pair("\"a,b\"").unwrap(), (Bytes::from("a,b"), Bytes::new()));
        assert!(pair("a,b,c").unwrap_err().contains("two fields"));
        assert!(pair("a\"b,c").unwrap_err().contains("unquoted"));
        assert!(pair("\"a\"b,c").unwrap_err().contains("closing"));
        assert!(pair("a,\"b").unwrap_err().contains("closing"));
    }
}
