//! Cutting the work of one call into pieces that each fit one region and one request.

use std::collections::VecDeque;

use bytes::Bytes;
use kvproto::kvrpcpb::KvPair;

use crate::region_cache::Region;

/// Keys and values of one request add up to at most this, unless one item alone is larger.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// Items of one request. With small values the reply to a batch get stays far below the reply limit.
pub(crate) const PIECE_ITEMS: usize = 1024;

/// Work that can be cut at region boundaries.
pub(crate) trait Work: Sized {
    /// What one request carries.
    type Piece: Send;

    /// A wire key inside the region the next piece goes to; `None` when nothing is left.
    fn first(&self) -> Option<&Bytes>;

    /// Takes the part that `region`, which holds [`first`](Self::first), can serve in one request.
    fn cut(&mut self, region: &Region) -> Self::Piece;

    /// Work that consists of one piece, to cut it again after a region has changed.
    fn again(piece: Self::Piece) -> Self;
}

/// Something with a wire key.
pub(crate) trait Keyed: Send {
    fn key(&self) -> &Bytes;
    /// Bytes it adds to a request.
    fn size(&self) -> usize;
}

impl Keyed for Bytes {
    fn key(&self) -> &Bytes {
        self
    }

    fn size(&self) -> usize {
        self.len()
    }
}

impl Keyed for KvPair {
    fn key(&self) -> &Bytes {
        &self.key
    }

    fn size(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

/// Items in key order, no key twice.
pub(crate) struct Items<T>(VecDeque<T>);

impl<T: Keyed> Items<T> {
    /// Sorts; of items with the same key the last one stays, as if they were executed one after the other.
    pub(crate) fn new(mut items: Vec<T>) -> Items<T> {
        items.reverse();
        items.sort_by(|a, b| a.key().cmp(b.key()));
        items.dedup_by(|later, kept| later.key() == kept.key());
        Items(items.into())
    }
}

impl<T: Keyed> Work for Items<T> {
    type Piece = Vec<T>;

    fn first(&self) -> Option<&Bytes> {
        self.0.front().map(Keyed::key)
    }

    fn cut(&mut self, region: &Region) -> Vec<T> {
        let mut bytes = 0;
        let fits = |item: &&T| {
            bytes += item.size();
            region.is_before_end(item.key()) && bytes <= PIECE_BYTES
        };
        let count = self.0.iter().take(PIECE_ITEMS).take_while(fits).count();
        // The first item goes out however large it is, else no piece would ever be cut.
        self.0.drain(..count.clamp(1, self.0.len().max(1))).collect()
    }

    fn again(piece: Vec<T>) -> Items<T> {
        Items(piece.into())
    }
}

/// A range of wire keys; an empty end has no bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: Bytes,
    pub(crate) end: Bytes,
}

impl Span {
    /// True when no key lies inside.
    pub(crate) fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }
}

/// What is left of a range.
pub(crate) struct Spans(Option<Span>);

impl Spans {
    pub(crate) fn new(span: Span) -> Spans {
        Spans(Some(span).filter(|span| !span.is_empty()))
    }
}

impl Work for Spans {
    type Piece = Span;

    fn first(&self) -> Option<&Bytes> {
        self.0.as_ref().map(|span| &span.start)
    }

    fn cut(&mut self, region: &Region) -> Span {
        let Some(mut span) = self.0.take() else { return Span { start: Bytes::new(), end: Bytes::new() } };
        let ends_later = span.end.is_empty() || region.end < span.end;
        if !region.end.is_empty() && ends_later {
            self.0 = Some(Span { start: region.end.clone(), end: span.end });
            span.end = region.end.clone();
        }
        span
    }

    fn again(piece: Span) -> Spans {
        Spans(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use kvproto::key::BoundaryForm;
    use kvproto::metapb;

    use super::*;

    fn region(start: &'static str, end: &'static str) -> Region {
        let (start_key, end_key) = (Bytes::from(start), Bytes::from(end));
        let region = metapb::Region { id: 1, start_key, end_key, ..Default::default() };
        Region::new(region, None, None, BoundaryForm::Plain).unwrap()
    }

    fn keys(names: &[&'static str]) -> Vec<Bytes> {
        names.iter().map(|name| Bytes::from(*name)).collect()
    }

    #[test]
    fn items_are_cut_at_the_end_of_the_region() {
        let mut items = Items::new(keys(&["d", "a", "c", "b", "a"]));
        assert_eq!(items.cut(&region("", "c")), keys(&["a", "b"]));
        assert_eq!(items.first(), Some(&Bytes::from("c")));
        assert_eq!(items.cut(&region("c", "")), keys(&["c", "d"]));
        assert_eq!(items.first(), None);
    }

    #[test]
    fn of_equal_keys_the_last_value_is_written() {
        let pair = |key: &'static str, value: &'static str| KvPair {
            key: Bytes::from(key),
            value: Bytes::from(value),
            ..Default::default()
        };
        let mut items = Items::new(vec![pair("a", "1"), pair("b", "1"), pair("a", "2"), pair("a", "3")]);
        assert_eq!(items.cut(&region("", "")), vec![pair("a", "3"), pair("b", "1")]);
    }

    #[test]
    fn pieces_are_bounded_by_bytes_and_count_but_never_empty() {
        let big = |n: u8, len: usize| KvPair {
            key: Bytes::from(vec![n]),
            value: Bytes::from(vec![0; len]),
            ..Default::default()
        };
        let mut items = Items::new(vec![
            big(0, PIECE_BYTES * 2),
            big(1, PIECE_BYTES / 2),
            big(2, PIECE_BYTES / 4),
            big(3, PIECE_BYTES / 2),
        ]);
        let sizes: Vec<usize> = (0..3).map(|_| items.cut(&region("", "")).len()).collect();
        assert_eq!(sizes, [1, 2, 1]);
        let mut many =
            Items::new((0..PIECE_ITEMS as u32 + 1).map(|n| Bytes::from(n.to_be_bytes().to_vec())).collect());
        assert_eq!(many.cut(&region("", "")).len(), PIECE_ITEMS);
        assert_eq!(many.cut(&region("", "")).len(), 1);
    }

    #[test]
    fn spans_are_cut_at_region_ends() {
        let span = |start: &'static str, end: &'static str| Span { start: start.into(), end: end.into() };
        let mut spans = Spans::new(span("b", "q"));
        assert_eq!(spans.cut(&region("a", "f")), span("b", "f"));
        assert_eq!(spans.cut(&region("f", "q")), span("f", "q"));
        assert_eq!(spans.first(), None);
        let mut endless = Spans::new(span("", ""));
        assert_eq!(endless.cut(&region("", "f")), span("", "f"));
        assert_eq!(endless.cut(&region("f", "")), span("f", ""));
        assert_eq!(endless.first(), None);
        assert_eq!(Spans::new(span("b", "b")).first(), None);
    }
}
