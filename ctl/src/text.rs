//! Keys and values as text: what is typed on a command line and shown on a terminal, and the bytes behind it.
//!
//! Three codings: `text` (the bytes of the argument), `hex`, and `escaped` (C-like escapes for what cannot be
//! typed). Pure.
//!
//! Invariants: `unescape(escape(b)) == b` and `from_hex(to_hex(b)) == b` for every byte string; an escaped
//! string has no control characters, so one pair stays on one line.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serialize;

/// How an argument stands for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Coding {
    /// The argument's own bytes.
    #[default]
    Text,
    /// Two hex digits a byte.
    Hex,
    /// Text with `\t \n \r \0 \\ \xHH`.
    Escaped,
}

/// Why a text does not stand for bytes. The message says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// An odd number of hex digits.
    #[error("hex needs two digits for each byte, this has {0} digits")]
    OddHex(usize),
    /// A character that is no hex digit.
    #[error("{0:?} is not a hex digit")]
    NotHex(char),
    /// A backslash followed by something that has no meaning.
    #[error(r"unknown escape \{0}; write a backslash itself as \\")]
    UnknownEscape(char),
    /// A backslash as the last character, or `\x` without two digits.
    #[error(r"the escape at the end is cut; write a backslash itself as \\ and a byte as \xHH")]
    CutEscape,
}

impl Coding {
    /// The bytes that `text` stands for.
    pub fn parse(self, text: &str) -> Result<Vec<u8>, TextError> {
        match self {
            Coding::Text => Ok(text.as_bytes().to_vec()),
            Coding::Hex => from_hex(text),
            Coding::Escaped => unescape(text.as_bytes()),
        }
    }

    /// `bytes` on one line: hex for hex, else escaped where they are not printable. In `text` a backslash stays
    /// as it is, since nothing reads the line back.
    pub fn show(self, bytes: &[u8]) -> String {
        match self {
            Coding::Hex => to_hex(bytes),
            Coding::Escaped => escape(bytes),
            Coding::Text => escape_with(bytes, false),
        }
    }
}

/// Lower-case hex of `bytes`.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    out
}

/// The bytes that hex digits of either case stand for.
pub fn from_hex(text: &str) -> Result<Vec<u8>, TextError> {
    if let Some(other) = text.chars().find(|c| !c.is_ascii_hexdigit()) {
        return Err(TextError::NotHex(other));
    }
    if !text.len().is_multiple_of(2) {
        return Err(TextError::OddHex(text.len()));
    }
    Ok(text.as_bytes().chunks_exact(2).map(|pair| (hex_digit(pair[0]) << 4) | hex_digit(pair[1])).collect())
}

/// The value of an ASCII hex digit; callers have checked that it is one.
fn hex_digit(digit: u8) -> u8 {
    char::from(digit).to_digit(16).unwrap_or(0) as u8
}

/// `bytes` with every control character, every byte that is not UTF-8, and every backslash escaped.
pub fn escape(bytes: &[u8]) -> String {
    escape_with(bytes, true)
}

fn escape_with(bytes: &[u8], backslash: bool) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' if backslash => out.push_str(r"\\"),
                '\t' => out.push_str(r"\t"),
                '\n' => out.push_str(r"\n"),
                '\r' => out.push_str(r"\r"),
                '\0' => out.push_str(r"\0"),
                c if c.is_control() => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        push_hex_escape(&mut out, byte);
                    }
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            push_hex_escape(&mut out, *byte);
        }
    }
    out
}

fn push_hex_escape(out: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(out, r"\x{byte:02x}");
}

/// The bytes that an escaped text stands for. Bytes that are not part of an escape stand for themselves.
pub fn unescape(text: &[u8]) -> Result<Vec<u8>, TextError> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        let (byte, used) = read_escape(&rest[at + 1..])?;
        out.push(byte);
        rest = &rest[at + 1 + used..];
    }
    out.extend_from_slice(rest);
    Ok(out)
}

/// The byte that an escape stands for and how long it is; `after` starts after the backslash.
fn read_escape(after: &[u8]) -> Result<(u8, usize), TextError> {
    let byte = match after.first() {
        None => return Err(TextError::CutEscape),
        Some(b'\\') => b'\\',
        Some(b't') => b'\t',
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b'0') => 0,
        Some(b'x') => {
            let digits = after.get(1..3).ok_or(TextError::CutEscape)?;
            if let Some(other) = digits.iter().find(|digit| !digit.is_ascii_hexdigit()) {
                return Err(TextError::NotHex(char::from(*other)));
            }
            return Ok(((hex_digit(digits[0]) << 4) | hex_digit(digits[1]), 3));
        }
        Some(_) => return Err(TextError::UnknownEscape(first_char(after))),
    };
    Ok((byte, 1))
}

fn first_char(bytes: &[u8]) -> char {
    bytes.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next()).unwrap_or('\u{fffd}')
}

/// Bytes as a JSON string: themselves when they are UTF-8, else hex, with a name for which of both.
pub fn json_text(bytes: &[u8]) -> (Cow<'_, str>, JsonEncoding) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Cow::Borrowed(text), JsonEncoding::Text),
        Err(_) => (Cow::Owned(to_hex(bytes)), JsonEncoding::Hex),
    }
}

/// What a JSON string stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JsonEncoding {
    /// The bytes are UTF-8 and the string is them.
    Text,
    /// Two hex digits a byte.
    Hex,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_name_what_is_wrong() {
        assert_eq!(unescape(br"a\tb\x00\\").unwrap(), b"a\tb\0\\");
        assert_eq!(unescape(br"a\q"), Err(TextError::UnknownEscape('q')));
        assert_eq!(unescape(r"a\é".as_bytes()), Err(TextError::UnknownEscape('é')));
        assert_eq!(unescape(br"a\"), Err(TextError::CutEscape));
        assert_eq!(unescape(br"a\x4"), Err(TextError::CutEscape));
        assert_eq!(unescape(br"a\x4g"), Err(TextError::NotHex('g')));
    }

    #[test]
    fn hex_is_read_in_either_case_and_checked() {
        assert_eq!(from_hex("00fFa1").unwrap(), [0, 0xff, 0xa1]);
        assert_eq!(from_hex("abc"), Err(TextError::OddHex(3)));
        assert_eq!(from_hex("zz"), Err(TextError::NotHex('z')));
        assert_eq!(from_hex("é0"), Err(TextError::NotHex('é')));
    }

    #[test]
    fn readable_text_stays_readable() {
        assert_eq!(escape("grüß\tdich".as_bytes()), r"grüß\tdich");
        assert_eq!(escape(b"\xff\x01a"), r"\xff\x01a");
        assert_eq!(Coding::Text.show(br"C:\dir"), r"C:\dir");
        assert_eq!(Coding::Escaped.show(br"C:\dir"), r"C:\\dir");
    }

    proptest! {
        #[test]
        fn escaping_is_reversible_and_keeps_one_line(bytes: Vec<u8>) {
            let escaped = escape(&bytes);
            prop_assert!(!escaped.chars().any(char::is_control));
            prop_assert_eq!(unescape(escaped.as_bytes()).unwrap(), bytes.clone());
            prop_assert_eq!(from_hex(&to_hex(&bytes)).unwrap(), bytes);
        }
    }
}
