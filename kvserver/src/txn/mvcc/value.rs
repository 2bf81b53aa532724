//! Records of the family `default`: a value too long for its write record, or the note that a transaction was rolled
//! back on this key.
//!
//! Such a note is needed only where the record of the rollback in `write` would have the same key as a version that
//! another transaction committed at exactly that timestamp. It stands under the start timestamp of the transaction
//! that was rolled back, where no value of its own can be any more. The first byte tells the two apart.

use bytes::Bytes;

use crate::engine::EngineError;

/// Stands before a value.
pub const VALUE: u8 = 1;
/// The whole note of a rollback.
pub const ROLLED_BACK: u8 = 2;

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Value(Bytes),
    RolledBack,
}

/// Reads a record.
pub fn decode(mut stored: Bytes) -> Result<Record, EngineError> {
    match stored.first() {
        Some(&VALUE) => {
            let _ = stored.split_to(1);
            Ok(Record::Value(stored))
        }
        Some(&ROLLED_BACK) if stored.len() == 1 => Ok(Record::RolledBack),
        first => Err(EngineError::Corrupt(format!("a value record begins with {first:?}"))),
    }
}

/// The value in a record, where it lies; `None` when it holds none.
pub fn peek(stored: &[u8]) -> Option<&[u8]> {
    stored.split_first().filter(|(first, _)| **first == VALUE).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_notes_are_told_apart() {
        assert_eq!(decode(Bytes::from_static(b"\x01abc")).unwrap(), Record::Value("abc".into()));
        assert_eq!(decode(Bytes::from_static(b"\x02")).unwrap(), Record::RolledBack);
        assert_eq!((peek(b"\x01abc"), peek(b"\x02"), peek(b"")), (Some(&b"abc"[..]), None, None));
        for bad in [&b""[..], b"\x03x", b"\x02x"] {
            assert!(decode(Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }
}
