//! Which ranges of the key space are taken on this store, and by which region.
//!
//! Owns the one map of ranges. Invariant (INV-RANGE): ranges of live, pending and cleaning regions never
//! overlap; only this file changes the map, and it refuses what would break that.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::region_view::RegionMeta;

/// Why a range is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A region with data.
    Live,
    /// A snapshot for it was accepted and is not in place yet.
    Pending,
    /// A destroyed peer's data is still being removed.
    Cleaning,
}

#[derive(Debug)]
struct Taken {
    end: Bytes,
    region_id: u64,
    holder: Holder,
}

/// The ranges of one store, in user keys.
#[derive(Debug, Default)]
pub struct RegionMap {
    by_start: BTreeMap<Bytes, Taken>,
    starts: BTreeMap<u64, Bytes>,
}

/// The range overlaps one that is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range overlaps that of region {region_id} ({holder:?})")]
pub struct Overlap {
    pub region_id: u64,
    pub holder: Holder,
}

impl RegionMap {
    /// The first range of another region that overlaps `meta`'s.
    pub fn overlap(&self, meta: &RegionMeta) -> Option<Overlap> {
        let before = self.by_start.range::<Bytes, _>(..=&meta.start).next_back();
        let after = self.by_start.range::<Bytes, _>((Bound::Excluded(&meta.start), Bound::Unbounded));
        before
            .into_iter()
            .chain(after)
            .take_while(|(start, _)| meta.end.is_empty() || **start < meta.end)
            .find(|(_, t)| t.region_id != meta.region.id && (t.end.is_empty() || t.end > meta.start))
            .map(|(_, t)| Overlap { region_id: t.region_id, holder: t.holder })
    }

    /// Takes `meta`'s range for its region, in place of whatever the region held before.
    pub fn take(&mut self, meta: &RegionMeta, holder: Holder) -> Result<(), Overlap> {
        if let Some(overlap) = self.overlap(meta) {
            return Err(overlap);
        }
        self.release(meta.region.id);
        let taken = Taken { end: meta.end.clone(), region_id: meta.region.id, holder };
        self.by_start.insert(meta.start.clone(), taken);
        self.starts.insert(meta.region.id, meta.start.clone());
        Ok(())
    }

    /// Gives up whatever the region holds.
    pub fn release(&mut self, region_id: u64) {
        if let Some(start) = self.starts.remove(&region_id) {
            self.by_start.remove(&start);
        }
    }

    /// The region that holds `key`, and why.
    pub fn holder_of(&self, key: &[u8]) -> Option<(u64, Holder)> {
        let (_, taken) =
            self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        (taken.end.is_empty() || key < &taken.end[..]).then_some((taken.region_id, taken.holder))
    }

    /// Up to `n` live regions that lie next to a region on each side, without a gap between; not the region itself.
    pub fn neighbours(&self, region_id: u64, n: usize) -> Vec<u64> {
        let Some(start) = self.starts.get(&region_id) else { return Vec::new() };
        let live = |t: &&Taken| t.holder == Holder::Live;
        let mut found = Vec::new();
        let mut from = start.clone();
        for (start, taken) in self.by_start.range::<Bytes, _>(..start).rev().take(n) {
            if taken.end != from || !live(&taken) {
                break;
            }
            found.push(taken.region_id);
            from = start.clone();
        }
        let mut to = self.by_start.get(start).map(|t| t.end.clone()).unwrap_or_default();
        for _ in 0..n {
            let Some(taken) = self.by_start.get(&to).filter(live).filter(|_| !to.is_empty()) else { break };
            found.push(taken.region_id);
            to = taken.end.clone();
        }
        found
    }

    /// The gaps between the ranges taken, as `[start, end)` with an empty end for "to the end".
    pub fn gaps(&self) -> Vec<(Bytes, Bytes)> {
        let mut gaps = Vec::new();
        let mut from = Some(Bytes::new());
        for (start, taken) in &self.by_start {
            if let Some(from) = from.take()
                && from < *start
            {
                gaps.push((from, start.clone()));
            }
            if taken.end.is_empty() {
                return gaps;
            }
            from = Some(taken.end.clone());
        }
        gaps.extend(from.map(|from| (from, Bytes::new())));
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvproto::metapb;

    fn meta(id: u64, start: &'static str, end: &'static str) -> RegionMeta {
        RegionMeta {
            region: metapb::Region { id, ..Default::default() },
            start: start.into(),
            end: end.into(),
        }
    }

    #[test]
    fn overlapping_ranges_are_refused_and_neighbours_are_not() {
        let mut map = RegionMap::default();
        map.take(&meta(1, "b", "d"), Holder::Live).unwrap();
        for (start, end) in [("a", "c"), ("c", "e"), ("b", "d"), ("a", ""), ("", ""), ("c", "cc")] {
            let refused = map.take(&meta(2, start, end), Holder::Pending);
            assert_eq!(refused, Err(Overlap { region_id: 1, holder: Holder::Live }), "[{start}, {end})");
        }
        map.take(&meta(2, "d", ""), Holder::Live).unwrap();
        map.take(&meta(3, "", "b"), Holder::Cleaning).unwrap();
        assert_eq!(map.holder_of(b"c"), Some((1, Holder::Live)));
        assert_eq!(map.holder_of(b"zz"), Some((2, Holder::Live)));
        assert_eq!(map.gaps(), vec![]);
        map.release(1);
        assert_eq!(map.holder_of(b"c"), None);
        assert_eq!(map.gaps(), vec![(Bytes::from("b"), Bytes::from("d"))]);
    }

    #[test]
    fn a_region_may_change_its_own_range() {
        let mut map = RegionMap::default();
        map.take(&meta(1, "", ""), Holder::Live).unwrap();
        map.take(&meta(1, "m", ""), Holder::Live).unwrap();
        assert_eq!(map.holder_of(b"a"), None);
        assert_eq!(map.gaps(), vec![(Bytes::new(), Bytes::from("m"))]);
    }

    #[test]
    fn neighbours_are_those_without_a_gap_between() {
        let mut map = RegionMap::default();
        for (id, start, end) in [(1, "", "b"), (2, "b", "c"), (3, "c", "e"), (4, "e", "f"), (5, "g", "")] {
            map.take(&meta(id, start, end), Holder::Live).unwrap();
        }
        assert_eq!(map.neighbours(3, 8), [2, 1, 4]);
        assert_eq!(map.neighbours(3, 1), [2, 4]);
        assert_eq!((map.neighbours(5, 8), map.neighbours(9, 8)), (vec![], vec![]));
        map.take(&meta(2, "b", "c"), Holder::Cleaning).unwrap();
        assert_eq!(map.neighbours(3, 8), [4]);
    }

    #[test]
    fn an_empty_map_is_one_gap() {
        assert_eq!(RegionMap::default().gaps(), vec![(Bytes::new(), Bytes::new())]);
    }
}
