//! Epochs: on a store a region's epoch never goes back, not even over a crash; and whoever knows a region in an epoch
//! knows the same range and the same members (INV-EPOCH, INV-DURABLE).

use std::collections::BTreeMap;

use kvproto::metapb::{Region, RegionEpoch};

use super::{Verdict, broken};

const NAME: &str = "epoch";

/// See the file's head.
#[derive(Debug, Default)]
pub struct EpochChecker {
    /// The first description of a region, by id, version and membership version.
    known: BTreeMap<(u64, u64, u64), Region>,
    /// The newest epoch by store and region.
    newest: BTreeMap<(usize, u64), RegionEpoch>,
}

impl EpochChecker {
    /// What a store has of a region.
    pub fn on_region(&mut self, store: usize, region: &Region) -> Verdict {
        let epoch = region.region_epoch.unwrap_or_default();
        let newest = self.newest.entry((store, region.id)).or_insert(epoch);
        if epoch.version < newest.version || epoch.conf_ver < newest.conf_ver {
            let what = format!("store {store}: region {} goes back from {newest:?} to {epoch:?}", region.id);
            return broken(NAME, what);
        }
        *newest = epoch;
        let at = (region.id, epoch.version, epoch.conf_ver);
        let first = self.known.entry(at).or_insert_with(|| region.clone());
        if first != region {
            return broken(
                NAME,
                format!("store {store}: other regions of one epoch: {first:?} and {region:?}"),
            );
        }
        Ok(())
    }

    /// How many regions there ever were.
    pub fn regions(&self) -> usize {
        let mut ids: Vec<u64> = self.known.keys().map(|(id, _, _)| *id).collect();
        ids.dedup();
        ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(version: u64, conf_ver: u64, end: &'static str) -> Region {
        let region_epoch = Some(RegionEpoch { version, conf_ver });
        Region { id: 7, region_epoch, end_key: end.into(), ..Default::default() }
    }

    #[test]
    fn an_epoch_that_goes_back_or_means_two_things_is_noticed() {
        let mut c = EpochChecker::default();
        assert_eq!(c.on_region(0, &region(1, 1, "")), Ok(()));
        assert_eq!(c.on_region(0, &region(2, 1, "m")), Ok(()));
        assert_eq!(c.on_region(1, &region(1, 1, "")), Ok(()), "another store may be behind");
        assert!(c.on_region(0, &region(1, 1, "")).is_err());
        assert!(c.on_region(0, &region(1, 2, "")).is_err(), "one part of it went back");
        assert!(c.on_region(1, &region(2, 1, "n")).is_err());
    }
}
