//! The regions of a cluster, by id and by key.
//!
//! Owns all `RegionInfo`s. Invariants: ranges never overlap; `by_start` has exactly one entry for each region,
//! under its start key. A newcomer whose range overlaps others either is older than one of them and is refused,
//! or takes their place. Every call is logarithmic in the number of regions, plus what it returns.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use kvproto::metapb;

use super::region::RegionInfo;

/// A description that is older than what is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stale heartbeat of region {region_id}: {reason}")]
pub struct Stale {
    pub region_id: u64,
    pub reason: String,
}

/// What an accepted insertion replaced.
#[derive(Debug, Default)]
pub struct Replaced {
    /// The former description of the same region.
    pub former: Option<RegionInfo>,
    /// Other regions whose ranges are now covered by the newcomer.
    pub covered: Vec<RegionInfo>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct RegionTree {
    by_id: BTreeMap<u64, RegionInfo>,
    by_start: BTreeMap<Bytes, u64>,
}

impl RegionTree {
    /// How many regions there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is no region.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The region with this id.
    pub fn get(&self, id: u64) -> Option<&RegionInfo> {
        self.by_id.get(&id)
    }

    /// The region whose range contains `key`.
    pub fn by_key(&self, key: &[u8]) -> Option<&RegionInfo> {
        self.at_or_before(key).filter(|region| region.contains(key))
    }

    /// The region that ends where the region containing `key` starts.
    pub fn prev_of_key(&self, key: &[u8]) -> Option<&RegionInfo> {
        let region = self.by_key(key)?;
        let start = &region.meta.start_key;
        let bounds = (Bound::Unbounded, Bound::Excluded(start.as_ref()));
        let (_, id) = self.by_start.range::<[u8], _>(bounds).next_back()?;
        let prev = self.owned(*id);
        (prev.meta.end_key == *start).then_some(prev)
    }

    /// Regions that intersect `[start, end)` in key order; the empty `end` is the end of the key space.
    pub fn scan<'a>(&'a self, start: &[u8], end: &'a [u8]) -> impl Iterator<Item = &'a RegionInfo> + use<'a> {
        let from = match self.by_key(start) {
            Some(region) => region.meta.start_key.clone(),
            None => Bytes::copy_from_slice(start),
        };
        self.by_start
            .range::<[u8], _>((Bound::Included(from.as_ref()), Bound::Unbounded))
            .map(|(_, id)| self.owned(*id))
            .take_while(move |region| end.is_empty() || region.meta.start_key.as_ref() < end)
    }

    /// Up to `limit` region ids above `after`, in id order.
    pub fn ids_after(&self, after: u64, limit: usize) -> Vec<u64> {
        let bounds = (Bound::Excluded(after), Bound::Unbounded);
        self.by_id.range(bounds).take(limit).map(|(id, _)| *id).collect()
    }

    /// Takes in a description unless it is stale: neither version, conf_ver nor term may be older than what is
    /// known of the same region, and no overlapped region may have a higher version.
    pub fn insert(&mut self, region: RegionInfo) -> Result<Replaced, Stale> {
        let mut replaced = Replaced::default();
        if let Some(known) = self.by_id.get(&region.id()) {
            check_not_older(known, &region)?;
            if same_range(&known.meta, &region.meta) {
                replaced.former = self.by_id.insert(region.id(), region);
                return Ok(replaced);
            }
        }
        let overlapped = self.overlapped_by(&region);
        for other in overlapped.iter().map(|id| self.owned(*id)) {
            if other.version() > region.version() {
                let reason = format!(
                    "its range overlaps region {} of version {}, it has {}",
                    other.id(),
                    other.version(),
                    region.version()
                );
                return Err(Stale { region_id: region.id(), reason });
            }
        }
        replaced.former = self.remove(region.id());
        for id in overlapped {
            replaced.covered.extend(self.remove(id));
        }
        self.by_start.insert(region.meta.start_key.clone(), region.id());
        self.by_id.insert(region.id(), region);
        assert_eq!(self.by_id.len(), self.by_start.len(), "every region has one start key");
        Ok(replaced)
    }

    fn remove(&mut self, id: u64) -> Option<RegionInfo> {
        let region = self.by_id.remove(&id)?;
        self.by_start.remove(&region.meta.start_key);
        Some(region)
    }

    /// Ids of other regions whose ranges intersect the range of `region`.
    fn overlapped_by(&self, region: &RegionInfo) -> Vec<u64> {
        self.scan(&region.meta.start_key, &region.meta.end_key)
            .map(RegionInfo::id)
            .filter(|id| *id != region.id())
            .collect()
    }

    fn at_or_before(&self, key: &[u8]) -> Option<&RegionInfo> {
        let bounds = (Bound::Unbounded, Bound::Included(key));
        self.by_start.range::<[u8], _>(bounds).next_back().map(|(_, id)| self.owned(*id))
    }

    fn owned(&self, id: u64) -> &RegionInfo {
        self.by_id.get(&id).expect("every start key belongs to a region")
    }
}

fn same_range(a: &metapb::Region, b: &metapb::Region) -> bool {
    a.start_key == b.start_key && a.end_key == b.end_key
}

fn check_not_older(known: &RegionInfo, new: &RegionInfo) -> Result<(), Stale> {
    let stale = |what: &str, old: u64, new_value: u64| {
        let reason = format!("{what} {new_value} is older than {old}");
        Err(Stale { region_id: new.id(), reason })
    };
    if new.version() < known.version() {
        return stale("version", known.version(), new.version());
    }
    if new.conf_ver() < known.conf_ver() {
        return stale("conf_ver", known.conf_ver(), new.conf_ver());
    }
    // Term 0 comes from metadata, or from a store that does not report it.
    if new.term != 0 && new.term < known.term {
        return stale("term", known.term, new.term);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn region(id: u64, start: &str, end: &str, version: u64) -> RegionInfo {
        RegionInfo {
            meta: metapb::Region {
                id,
                start_key: Bytes::copy_from_slice(start.as_bytes()),
                end_key: Bytes::copy_from_slice(end.as_bytes()),
                region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version }),
                peers: vec![metapb::Peer { id: id * 10, store_id: 1, ..Default::default() }],
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn ids<'a>(regions: impl Iterator<Item = &'a RegionInfo>) -> Vec<u64> {
        regions.map(RegionInfo::id).collect()
    }

    fn three() -> RegionTree {
        let mut tree = RegionTree::default();
        for r in [region(1, "", "b", 1), region(2, "b", "d", 1), region(3, "e", "", 1)] {
            tree.insert(r).unwrap();
        }
        tree
    }

    #[test]
    fn keys_find_their_region_and_gaps_find_none() {
        let tree = three();
        let at = |key: &str| tree.by_key(key.as_bytes()).map(RegionInfo::id);
        assert_eq!((at(""), at("b"), at("c"), at("d"), at("z")), (Some(1), Some(2), Some(2), None, Some(3)));
        let prev = |key: &str| tree.prev_of_key(key.as_bytes()).map(RegionInfo::id);
        assert_eq!((prev("a"), prev("c"), prev("z")), (None, Some(1), None));
    }

    #[test]
    fn scan_starts_inside_a_region_and_stops_before_the_end() {
        let tree = three();
        assert_eq!(ids(tree.scan(b"a", b"")), [1, 2, 3]);
        assert_eq!(ids(tree.scan(b"c", b"e")), [2]);
        assert_eq!(ids(tree.scan(b"d", b"f")), [3]);
    }

    #[test]
    fn older_version_conf_ver_or_term_is_refused() {
        let mut tree = RegionTree::default();
        let mut known = region(1, "", "", 5);
        known.term = 7;
        tree.insert(known.clone()).unwrap();
        assert!(tree.insert(region(1, "", "", 4)).unwrap_err().reason.contains("version 4"));
        let mut older = known.clone();
        older.term = 6;
        assert!(tree.insert(older).unwrap_err().reason.contains("term 6"));
        let mut older = known.clone();
        older.meta.region_epoch.as_mut().unwrap().conf_ver = 0;
        assert!(tree.insert(older).unwrap_err().reason.contains("conf_ver 0"));
        assert_eq!(tree.get(1), Some(&known));
    }

    #[test]
    fn a_split_shrinks_the_parent_and_a_late_parent_cannot_come_back() {
        let mut tree = RegionTree::default();
        tree.insert(region(1, "", "", 1)).unwrap();
        let replaced = tree.insert(region(2, "", "m", 2)).unwrap();
        assert_eq!(ids(replaced.covered.iter()), [1]);
        assert!(tree.insert(region(1, "", "", 1)).is_err(), "the range now belongs to a newer region");
        tree.insert(region(1, "m", "", 2)).unwrap();
        assert_eq!(ids(tree.scan(b"", b"")), [2, 1]);
    }

    proptest! {
        /// Whatever arrives, the accepted regions never overlap, and the two indexes agree.
        #[test]
        fn ranges_never_overlap(inputs in prop::collection::vec((1u64..8, 0u8..9, 1u8..9, 1u64..6), 1..60)) {
            let mut tree = RegionTree::default();
            for (id, start, len, version) in inputs {
                let key = |n: u8| if n == 0 { String::new() } else { format!("{n}") };
                let end = start + len;
                let end = if end > 8 { String::new() } else { key(end) };
                let _refused = tree.insert(region(id, &key(start), &end, version)).is_err();
                let all: Vec<&RegionInfo> = tree.scan(b"", b"").collect();
                prop_assert_eq!(all.len(), tree.len());
                for pair in all.windows(2) {
                    prop_assert!(!pair[0].meta.end_key.is_empty());
                    prop_assert!(pair[0].meta.end_key <= pair[1].meta.start_key);
                }
            }
        }
    }
}
