//! Pairs of a reply in one allocation, and how long a reply may get.
//!
//! Scans put keys and values here one after the other: nothing is allocated for a pair but the room it takes. Clients
//! of the field decode replies up to [`MAX_REPLY_BYTES`]; how a longer one ends is the caller's choice ([`LongReply`]).

use bytes::{BufMut, Bytes, BytesMut};
use kvproto::key::{self, KeyError};
use kvproto::limits::{MAX_REPLY_BYTES, SCAN_CUT_BYTES};

/// What a pair costs in a reply besides its key and value, at most.
const PAIR_OVERHEAD: usize = 14;
/// Room for what a reply has besides its pairs.
const REPLY_OVERHEAD: usize = 64 << 10;
/// A reply that may not be cut is refused beyond this size.
pub const REPLY_BYTES_MAX: usize = 64 << 20;

/// What happens when a scan's reply grows past what every client can decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongReply {
    /// Stop early. Only for clients that look at [`SCAN_CUT_BYTES`]: others take a short reply for the end of
    /// the region.
    Cut,
    /// Go on, within reason.
    Grow,
}

/// Whether one more pair goes into a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Fits,
    /// The reply ends before it; the client comes back for it.
    Cut,
    /// Over [`REPLY_BYTES_MAX`].
    TooLarge,
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct Pairs {
    data: BytesMut,
    lens: Vec<(u32, u32)>,
}

impl Pairs {
    /// Adds a pair.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.data.put_slice(key);
        self.data.put_slice(value);
        self.lens.push((key.len() as u32, value.len() as u32));
    }

    /// Adds a pair whose key is given in its memcomparable encoding. Nothing is added when it is none.
    pub fn push_encoded(&mut self, encoded: &[u8], value: &[u8]) -> Result<(), KeyError> {
        let start = self.data.len();
        let rest = match key::decode_into(encoded, &mut self.data) {
            Ok([]) => Ok(()),
            Ok(rest) => Err(KeyError::TrailingBytes { count: rest.len() }),
            Err(error) => Err(error),
        };
        if rest.is_err() {
            self.data.truncate(start);
            return rest;
        }
        let key_len = self.data.len() - start;
        self.data.put_slice(value);
        self.lens.push((key_len as u32, value.len() as u32));
        Ok(())
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.lens.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Whether a pair of `bytes` more goes into a reply that has `beside` bytes of other things in it. The first pair
    /// always does.
    pub fn fit(&self, bytes: usize, beside: usize, long: LongReply) -> Fit {
        let held = self.data.len() + beside;
        let reply = held + bytes + (self.lens.len() + 1) * PAIR_OVERHEAD + REPLY_OVERHEAD;
        if long == LongReply::Cut && held >= SCAN_CUT_BYTES && reply > MAX_REPLY_BYTES {
            return Fit::Cut;
        }
        if held > 0 && held + bytes > REPLY_BYTES_MAX {
            return Fit::TooLarge;
        }
        Fit::Fits
    }
}

/// Key and value of each pair, sharing one buffer.
pub struct PairsIter {
    data: Bytes,
    lens: std::vec::IntoIter<(u32, u32)>,
}

impl Iterator for PairsIter {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        let (key, value) = self.lens.next()?;
        let key = self.data.split_to(key as usize);
        Some((key, self.data.split_to(value as usize)))
    }
}

impl IntoIterator for Pairs {
    type Item = (Bytes, Bytes);
    type IntoIter = PairsIter;

    fn into_iter(self) -> PairsIter {
        PairsIter { data: self.data.freeze(), lens: self.lens.into_iter() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_encoded_keys_come_out_in_order() {
        let mut pairs = Pairs::default();
        pairs.push(b"a", b"1");
        pairs.push_encoded(&key::encode(b"a longer key"), b"").unwrap();
        assert!(pairs.push_encoded(b"not encoded", b"x").is_err());
        let mut trailing = key::encode(b"k");
        trailing.push(0);
        assert!(pairs.push_encoded(&trailing, b"x").is_err());
        pairs.push(b"", b"3");
        let all: Vec<(Bytes, Bytes)> = pairs.into_iter().collect();
        assert_eq!(
            all,
            vec![("a".into(), "1".into()), ("a longer key".into(), "".into()), ("".into(), "3".into())]
        );
    }

    #[test]
    fn a_long_reply_is_cut_or_refused_and_its_first_pair_never() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.fit(2 * REPLY_BYTES_MAX, 0, LongReply::Grow), Fit::Fits);
        assert_eq!(pairs.fit(2 * REPLY_BYTES_MAX, 0, LongReply::Cut), Fit::Fits);
        pairs.push(b"k", &vec![0; SCAN_CUT_BYTES]);
        assert_eq!(pairs.fit(MAX_REPLY_BYTES, 0, LongReply::Cut), Fit::Cut);
        assert_eq!(pairs.fit(MAX_REPLY_BYTES, 0, LongReply::Grow), Fit::Fits);
        assert_eq!(pairs.fit(1, MAX_REPLY_BYTES, LongReply::Cut), Fit::Cut);
        assert_eq!(pairs.fit(REPLY_BYTES_MAX, 0, LongReply::Grow), Fit::TooLarge);
    }
}
