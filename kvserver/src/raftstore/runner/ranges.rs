//! Which keys of which column family belong to a region.

use bytes::Bytes;
use kvproto::key;

use crate::engine::Cf;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::raftstore::snap::CfRange;

/// The key ranges of a region's data, one per column family that holds data. Raw keys are stored as they are, keys
/// of transactions memcomparable-encoded; both keep the order.
pub fn of_region(meta: &RegionMeta) -> Vec<CfRange> {
    of_keys(&meta.start, &meta.end)
}

/// The same for user keys in `[start, end)`; an empty `end` is open.
pub fn of_keys(start: &Bytes, end: &Bytes) -> Vec<CfRange> {
    let encoded =
        |bound: &Bytes| if bound.is_empty() { Bytes::new() } else { Bytes::from(key::encode(bound)) };
    let range = |cf| match cf {
        Cf::Raw => CfRange { cf, start: start.clone(), end: end.clone() },
        Cf::Default | Cf::Lock | Cf::Write | Cf::Meta => {
            CfRange { cf, start: encoded(start), end: encoded(end) }
        }
    };
    Cf::DATA.into_iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_user_keys_are_neighbours_in_every_family() {
        let bound = Bytes::from_static(b"middle-of-the-range");
        let (left, right) = (of_keys(&Bytes::new(), &bound), of_keys(&bound, &Bytes::new()));
        for (l, r) in left.iter().zip(&right) {
            assert_eq!((l.cf, &l.end), (r.cf, &r.start));
            assert!(l.start.is_empty() && r.end.is_empty() && !l.end.is_empty());
        }
        assert_eq!(left.iter().map(|r| r.cf).collect::<Vec<_>>(), Cf::DATA);
        assert_ne!(left[0].end, left[3].end, "transactional keys are encoded, raw ones are not");
    }
}
