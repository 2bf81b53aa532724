//! Replicas that have applied the same index hold the same data, in the same range, with the same members.
//!
//! The first store seen at an index of a region fixes the hash of its data there.

use std::collections::BTreeMap;

use kvserver::engine::{Engine, EngineError, IterOptions};
use kvserver::raftstore::meta::region_view::RegionMeta;
use kvserver::raftstore::runner::ranges;

use super::{Verdict, broken};
use crate::sim::rng::{fold, fold_bytes};

/// See the file's head.
#[derive(Debug, Default)]
pub struct StateChecker {
    seen: BTreeMap<(u64, u64), (u64, usize)>,
}

impl StateChecker {
    /// A store's data of a region after `index`.
    pub fn on_state(&mut self, store: usize, region_id: u64, index: u64, hash: u64) -> Verdict {
        let (first, by) = *self.seen.entry((region_id, index)).or_insert((hash, store));
        if first != hash {
            let what =
                format!("region {region_id} at index {index}: stores {by} and {store} hold other data");
            return broken("state", what);
        }
        Ok(())
    }
}

/// A hash of a region and all its data.
pub fn hash_of(engine: &dyn Engine, meta: &RegionMeta) -> Result<u64, EngineError> {
    let snapshot = engine.snapshot();
    let mut hash = fold(fold_bytes(fold_bytes(meta.version(), &meta.start), &meta.end), meta.conf_ver());
    for peer in &meta.region.peers {
        hash = fold(fold(hash, peer.id), peer.role as u64);
    }
    for range in ranges::of_region(meta) {
        let options = IterOptions { lower: range.start, upper: range.end, ..Default::default() };
        let mut iter = snapshot.iter(range.cf, options)?;
        iter.seek_to_first();
        while iter.valid() {
            hash = fold_bytes(fold_bytes(hash, iter.key()), iter.value());
            iter.next();
        }
        iter.status()?;
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_data_at_the_same_index_is_noticed() {
        let mut c = StateChecker::default();
        assert_eq!(c.on_state(0, 1, 6, 77), Ok(()));
        assert_eq!(c.on_state(1, 1, 7, 78), Ok(()));
        assert_eq!(c.on_state(1, 1, 6, 77), Ok(()));
        assert!(c.on_state(2, 1, 6, 1).is_err());
    }
}
