//! Keys of the transactional families: the user key memcomparable-encoded, and for `write` and `default` a timestamp
//! after it, big-endian and inverted, so that the newest version of a key comes first.
//!
//! Invariants: keys sort by user key, then from the newest to the oldest version; no key of one user key lies between
//! those of another.

use bytes::Bytes;
use kvproto::key::{self, KeyError};

/// Bytes of a timestamp in a key.
pub const TS_LEN: usize = 8;

/// A user key, ready to be looked up: encoded once, with room for a timestamp behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    user: Bytes,
    /// The encoded user key and `TS_LEN` bytes of room.
    buf: Vec<u8>,
}

impl Key {
    /// The key of `user`, which is the key as it is on the wire.
    pub fn new(user: Bytes) -> Key {
        let mut buf = Vec::with_capacity(key::encoded_len(user.len()) + TS_LEN);
        key::encode_into(&user, &mut buf);
        buf.extend_from_slice(&[0; TS_LEN]);
        Key { user, buf }
    }

    /// The key as it is on the wire.
    pub fn user(&self) -> &Bytes {
        &self.user
    }

    /// The key in the family `lock`.
    pub fn encoded(&self) -> &[u8] {
        &self.buf[..self.buf.len() - TS_LEN]
    }

    /// The key in `write` (with a commit timestamp) or `default` (with a start timestamp).
    pub fn at(&mut self, ts: u64) -> &[u8] {
        set_ts(&mut self.buf, ts)
    }

    /// The same for keys that cannot be changed; allocates.
    pub fn with_ts(&self, ts: u64) -> Vec<u8> {
        with_ts(self.encoded(), ts)
    }
}

/// Puts a timestamp into the room for it at the end of `buf`, and gives the whole.
pub fn set_ts(buf: &mut [u8], ts: u64) -> &[u8] {
    if let Some(room) = buf.last_chunk_mut::<TS_LEN>() {
        *room = (!ts).to_be_bytes();
    }
    buf
}

/// A key of `write` or `default` from an encoded user key and a timestamp.
pub fn with_ts(encoded: &[u8], ts: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded.len() + TS_LEN);
    out.extend_from_slice(encoded);
    out.extend_from_slice(&(!ts).to_be_bytes());
    out
}

/// Takes a key of `write` or `default` apart: the encoded user key and the timestamp; `None` for anything shorter than
/// a key can be.
pub fn split(stored: &[u8]) -> Option<(&[u8], u64)> {
    let (encoded, ts) = stored.split_last_chunk::<TS_LEN>()?;
    Some((encoded, !u64::from_be_bytes(*ts)))
}

/// The user key of an encoded one.
pub fn user_key(encoded: &[u8]) -> Result<Bytes, KeyError> {
    key::decode(encoded).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_comes_apart_again() {
        let mut key = Key::new(Bytes::from_static(b"some user key"));
        let stored = key.at(77).to_vec();
        assert_eq!(stored, key.with_ts(77));
        assert_eq!(split(&stored), Some((key.encoded(), 77)));
        assert_eq!(user_key(key.encoded()).unwrap(), key.user());
        assert_eq!(split(b"short"), None);
    }

    proptest! {
        #[test]
        fn keys_sort_by_user_key_and_then_from_new_to_old(
            a in proptest::collection::vec(any::<u8>(), 0..20), b in proptest::collection::vec(any::<u8>(), 0..20),
            s in any::<u64>(), t in any::<u64>(),
        ) {
            let (x, y) = (Key::new(a.clone().into()).with_ts(s), Key::new(b.clone().into()).with_ts(t));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b).then(t.cmp(&s)));
        }
    }
}
