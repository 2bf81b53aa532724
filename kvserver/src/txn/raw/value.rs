//! How a raw value is stored: a header that says when it expires, then the payload.
//!
//! Byte 0 is a value that stays; byte 1 is followed by the second it expires at (u64, big-endian, since 1970).
//! A value is gone from that second on, whether or not its bytes have been removed.

use bytes::Bytes;

use crate::engine::EngineError;

const STAYS: u8 = 0;
const EXPIRES: u8 = 1;
const EXPIRY_LEN: usize = 9;

/// The header of a value to be written.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; EXPIRY_LEN],
    len: usize,
}

impl Header {
    /// For a value that lives `ttl` seconds from `now`; a `ttl` of 0 is for ever.
    pub fn new(ttl: u64, now: u64) -> Header {
        let mut bytes = [STAYS; EXPIRY_LEN];
        if ttl == 0 {
            return Header { bytes, len: 1 };
        }
        bytes[0] = EXPIRES;
        bytes[1..].copy_from_slice(&now.saturating_add(ttl).to_be_bytes());
        Header { bytes, len: EXPIRY_LEN }
    }

    /// The bytes in front of the payload.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A stored value that has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Where the payload begins.
    pub payload_at: usize,
    /// Seconds left to live; `None` when it stays.
    pub ttl: Option<u64>,
}

/// What a stored value is at `now`; `None` when it has expired.
pub fn live(stored: &[u8], now: u64) -> Result<Option<Live>, EngineError> {
    match stored {
        [STAYS, ..] => Ok(Some(Live { payload_at: 1, ttl: None })),
        [EXPIRES, rest @ ..] if rest.len() >= 8 => {
            let expiry = rest[..8].iter().fold(0, |n, b| n << 8 | u64::from(*b));
            let left = expiry.saturating_sub(now);
            Ok((left > 0).then_some(Live { payload_at: EXPIRY_LEN, ttl: Some(left) }))
        }
        [] => Err(EngineError::Corrupt("a raw value is empty".into())),
        [kind, ..] => Err(EngineError::Corrupt(format!(
            "a raw value has header {kind}, which this build does not know; use a newer kvserver"
        ))),
    }
}

/// The payload of a stored value; shares its memory. `None` when it has expired.
pub fn payload(stored: Bytes, now: u64) -> Result<Option<Bytes>, EngineError> {
    Ok(live(&stored, now)?.map(|l| stored.slice(l.payload_at..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(ttl: u64, now: u64) -> Bytes {
        [Header::new(ttl, now).as_slice(), b"v"].concat().into()
    }

    #[test]
    fn a_value_is_gone_from_the_second_it_expires() {
        let value = stored(10, 100);
        assert_eq!(live(&value, 100).unwrap(), Some(Live { payload_at: 9, ttl: Some(10) }));
        assert_eq!(payload(value.clone(), 109).unwrap(), Some("v".into()));
        assert_eq!(payload(value, 110).unwrap(), None);
        assert_eq!(live(&stored(0, 100), u64::MAX).unwrap(), Some(Live { payload_at: 1, ttl: None }));
        assert_eq!(payload(stored(u64::MAX, 5), u64::MAX - 1).unwrap(), Some("v".into()));
    }

    #[test]
    fn damaged_and_unknown_headers_are_errors() {
        for bad in [&b""[..], b"\x01\0\0\0", b"\x02value"] {
            assert!(live(bad, 0).is_err(), "{bad:?}");
        }
    }
}
