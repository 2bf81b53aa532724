//! One JSON object a line: `{"key":"…","value":"…","ttl":SECONDS,"encoding":"base64|hex"}`. Pure.
//!
//! `value`, `ttl` and `encoding` may be missing; an unknown field is an error. Without an encoding the strings are
//! the bytes (UTF-8); with one, both strings are in it. The canonical line has key and value in this order, and
//! base64 exactly when one of them is not UTF-8. `ttl` is read but never written: an export has no expiry.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Fields;
use crate::text;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default)]
    value: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
}

#[derive(Deserialize, Serialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Base64,
    Hex,
}

/// Reads a line without its line end.
pub(super) fn decode(line: &Bytes) -> Result<Fields, String> {
    let parsed: Line<'_> = serde_json::from_slice(line)
        .map_err(|error| format!(r#"{}; want {{"key":"...","value":"..."}}"#, without_line_number(&error)))?;
    if parsed.ttl == Some(0) {
        return Err("ttl is 0; leave it out for a pair that does not expire".to_owned());
    }
    Ok(Fields {
        key: bytes_of(&parsed.key, parsed.encoding, "key")?,
        value: bytes_of(&parsed.value, parsed.encoding, "value")?,
        ttl_seconds: parsed.ttl.unwrap_or(0),
    })
}

/// A parser that sees one line at a time calls each of them line 1.
fn without_line_number(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((what, _)) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

fn bytes_of(field: &str, encoding: Option<Encoding>, name: &str) -> Result<Bytes, String> {
    match encoding {
        None => Ok(Bytes::copy_from_slice(field.as_bytes())),
        Some(Encoding::Hex) => {
            text::from_hex(field).map(Bytes::from).map_err(|error| format!("{name}: {error}"))
        }
        Some(Encoding::Base64) => BASE64_STANDARD
            .decode(field)
            .map(Bytes::from)
            .map_err(|error| format!("{name} is not base64 with padding: {error}")),
    }
}

/// Appends the canonical line without its line end.
pub(super) fn encode(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let line = match (std::str::from_utf8(key), std::str::from_utf8(value)) {
        (Ok(key), Ok(value)) => {
            Line { key: Cow::Borrowed(key), value: Cow::Borrowed(value), ttl: None, encoding: None }
        }
        _ => Line {
            key: Cow::Owned(BASE64_STANDARD.encode(key)),
            value: Cow::Owned(BASE64_STANDARD.encode(value)),
            ttl: None,
            encoding: Some(Encoding::Base64),
        },
    };
    // Strings and a unit variant always serialise, and a Vec takes every write.
    let _ = serde_json::to_writer(out, &line);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &'static str) -> Result<(Bytes, Bytes, u64), String> {
        decode(&Bytes::from_static(line.as_bytes())).map(|f| (f.key, f.value, f.ttl_seconds))
    }

    #[test]
    fn every_field_is_read() {
        let line = r#"{"key":"a\n","value":"é","ttl":30}"#;
        assert_eq!(read(line).unwrap(), (Bytes::from("a\n"), Bytes::from("é"), 30));
        let line = r#"{"encoding":"hex","value":"00ff","key":"61"}"#;
        assert_eq!(read(line).unwrap(), (Bytes::from("a"), Bytes::from_static(&[0, 255]), 0));
        let line = r#"{"encoding":"base64","value":"AP8=","key":"YQ=="}"#;
        assert_eq!(read(line).unwrap(), (Bytes::from("a"), Bytes::from_static(&[0, 255]), 0));
    }

    #[test]
    fn wrong_lines_are_refused_with_the_column() {
        assert!(read(r#"{"key":"a","valu":"b"}"#).unwrap_err().contains("valu"));
        let broken = read(r#"{"key":"a""#).unwrap_err();
        assert!(broken.contains("column 10") && !broken.contains("line 1"), "{broken}");
        assert!(read(r#"{"key":"6","encoding":"hex"}"#).unwrap_err().starts_with("key:"));
        assert!(read(r#"{"key":"a","ttl":0}"#).unwrap_err().contains("ttl"));
    }

    #[test]
    fn bytes_that_are_not_text_are_base64() {
        let mut out = Vec::new();
        encode(b"k", b"\xff", &mut out);
        assert_eq!(out, br#"{"key":"aw==","value":"/w==","encoding":"base64"}"#);
    }
}
