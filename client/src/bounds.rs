//! Ranges of keys as applications write them: `a..b`, `a..=b`, `a..`, `..b`, `..`, a pair of bounds, or
//! everything under a prefix.

use std::ops::{Bound, Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

use bytes::{BufMut, Bytes, BytesMut};
use kvproto::key::KeyCodec;

use crate::request::shard::Span;

/// Anything that names a range of keys: every range type of the standard library whose bounds convert to [`Bytes`],
/// and pairs of [`Bound`]s.
pub trait IntoKeyRange {
    /// Lower and upper bound.
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>);
}

impl IntoKeyRange for RangeFull {
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        (Bound::Unbounded, Bound::Unbounded)
    }
}

impl<K: Into<Bytes>> IntoKeyRange for Range<K> {
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        (Bound::Included(self.start.into()), Bound::Excluded(self.end.into()))
    }
}

impl<K: Into<Bytes>> IntoKeyRange for RangeInclusive<K> {
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        let (start, end) = self.into_inner();
        (Bound::Included(start.into()), Bound::Included(end.into()))
    }
}

impl<K: Into<Bytes>> IntoKeyRange for RangeFrom<K> {
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        (Bound::Included(self.start.into()), Bound::Unbounded)
    }
}

impl<K: Into<Bytes>> IntoKeyRange for RangeTo<K> {
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        (Bound::Unbounded, Bound::Excluded(self.end.into()))
    }
}

impl<K: Into<Bytes>> IntoKeyRange for RangeToInclusive<K> {
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        (Bound::Unbounded, Bound::Included(self.end.into()))
    }
}

impl<K: Into<Bytes>> IntoKeyRange for (Bound<K>, Bound<K>) {
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        (self.0.map(Into::into), self.1.map(Into::into))
    }
}

/// The range of all keys that start with `prefix`.
///
/// ```
/// use kvclient::IntoKeyRange;
/// assert_eq!(kvclient::prefix("ab").into_bounds(), ("ab".."ac").into_bounds());
/// ```
pub fn prefix(prefix: impl Into<Bytes>) -> (Bound<Bytes>, Bound<Bytes>) {
    let start: Bytes = prefix.into();
    // The next key that does not start with it: the last byte that can grow grows, what follows goes.
    let end = match start.iter().rposition(|byte| *byte != 0xff) {
        None => Bound::Unbounded,
        Some(last) => {
            let mut end = BytesMut::from(&start[..=last]);
            end[last] += 1;
            Bound::Excluded(end.freeze())
        }
    };
    (Bound::Included(start), end)
}

/// The wire keys of a range.
pub(crate) fn span(range: impl IntoKeyRange, codec: KeyCodec) -> Span {
    let (start, end) = range.into_bounds();
    let start = match start {
        Bound::Unbounded => codec.range_start(),
        Bound::Included(key) => codec.wire_key(key),
        Bound::Excluded(key) => successor(&codec.wire_key(key)),
    };
    let end = match end {
        Bound::Unbounded => codec.range_end(),
        Bound::Included(key) => successor(&codec.wire_key(key)),
        // In V1 an empty end would mean no end, but no key lies before the empty one.
        Bound::Excluded(key) if key.is_empty() => return Span { start: successor(b""), end: successor(b"") },
        Bound::Excluded(key) => codec.wire_key(key),
    };
    Span { start, end }
}

/// The key right after `key`.
pub(crate) fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

#[cfg(test)]
mod tests {
    use kvproto::key::{KeyspaceId, Mode};

    use super::*;

    fn v1(range: impl IntoKeyRange) -> (Bytes, Bytes) {
        let span = span(range, KeyCodec::V1);
        (span.start, span.end)
    }

    #[test]
    fn all_range_types_become_half_open_spans() {
        assert_eq!(v1(..), ("".into(), "".into()));
        assert_eq!(v1("a".."c"), ("a".into(), "c".into()));
        assert_eq!(v1("a"..="c"), ("a".into(), "c\0".into()));
        assert_eq!(v1("a"..), ("a".into(), "".into()));
        assert_eq!(v1(.."c"), ("".into(), "c".into()));
        assert_eq!(v1(..="c"), ("".into(), "c\0".into()));
        assert_eq!(v1((Bound::Excluded("a"), Bound::Unbounded)), ("a\0".into(), "".into()));
    }

    #[test]
    fn nothing_lies_before_the_empty_key() {
        assert!(span(..Bytes::new(), KeyCodec::V1).is_empty());
    }

    #[test]
    fn unbounded_ranges_stay_inside_the_keyspace() {
        let codec = KeyCodec::V2 { mode: Mode::Raw, keyspace: KeyspaceId::new(1).unwrap() };
        let span = span(.., codec);
        assert_eq!((&span.start[..], &span.end[..]), (&b"r\0\0\x01"[..], &b"r\0\0\x02"[..]));
    }

    #[test]
    fn a_prefix_of_all_ones_has_no_end() {
        assert_eq!(prefix(&b"\xff\xff"[..]).1, Bound::Unbounded);
        assert_eq!(prefix(&b"a\xff"[..]).1, Bound::Excluded(Bytes::from("b")));
        assert_eq!(prefix("").1, Bound::Unbounded);
    }
}
