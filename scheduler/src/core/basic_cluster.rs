//! Stores and regions together, with an index of regions by store.
//!
//! Owns the store table, the region tree and the index. Invariant: `by_store[s].peers` is exactly the set of
//! regions with a peer on store `s`, `by_store[s].leaders` those led from it, and `by_store[s].weight` the sum of
//! the weights of the former. Everything is ordered, so that the same inputs give the same decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::region::RegionInfo;
use super::region_tree::{RegionTree, Replaced, Stale};
use super::store::StoreInfo;

/// The regions of one store.
#[derive(Debug, Default)]
struct StoreRegions {
    peers: BTreeSet<u64>,
    leaders: BTreeSet<u64>,
    weight: u64,
}

/// What a region description changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RegionChange {
    /// Range, epoch or peers differ from what was known.
    pub meta_changed: bool,
    /// Regions that the newcomer covered and that are gone.
    pub gone: Vec<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct BasicCluster {
    stores: BTreeMap<u64, StoreInfo>,
    regions: RegionTree,
    by_store: BTreeMap<u64, StoreRegions>,
    /// Regions whose leader has reported since the start.
    led: usize,
}

impl BasicCluster {
    /// All stores, in id order.
    pub fn stores(&self) -> impl Iterator<Item = &StoreInfo> {
        self.stores.values()
    }

    /// The store with this id.
    pub fn store(&self, id: u64) -> Option<&StoreInfo> {
        self.stores.get(&id)
    }

    /// The store with this id, to change it.
    pub fn store_mut(&mut self, id: u64) -> Option<&mut StoreInfo> {
        self.stores.get_mut(&id)
    }

    /// Adds or replaces a store.
    pub fn put_store(&mut self, store: StoreInfo) {
        self.stores.insert(store.meta.id, store);
    }

    /// The regions.
    pub fn regions(&self) -> &RegionTree {
        &self.regions
    }

    /// How many regions have a peer on the store.
    pub fn region_count(&self, store_id: u64) -> usize {
        self.by_store.get(&store_id).map_or(0, |regions| regions.peers.len())
    }

    /// How many regions are led from the store.
    pub fn leader_count(&self, store_id: u64) -> usize {
        self.by_store.get(&store_id).map_or(0, |regions| regions.leaders.len())
    }

    /// The weights of the replicas on the store, added up.
    pub fn weight(&self, store_id: u64) -> u64 {
        self.by_store.get(&store_id).map_or(0, |regions| regions.weight)
    }

    /// How many regions have a known leader: one that has reported since the start, or follows from a report.
    pub fn led_count(&self) -> usize {
        self.led
    }

    /// Regions led from the store: those with ids above `after`, then the others.
    pub fn led_by(&self, store_id: u64, after: u64) -> impl Iterator<Item = &RegionInfo> {
        let leaders = self.by_store.get(&store_id).map(|regions| &regions.leaders);
        leaders.into_iter().flat_map(move |ids| from_cursor(ids, after)).filter_map(|id| self.regions.get(id))
    }

    /// Regions with a peer on the store: those with ids above `after`, then the others.
    pub fn held_by(&self, store_id: u64, after: u64) -> impl Iterator<Item = &RegionInfo> {
        let peers = self.by_store.get(&store_id).map(|regions| &regions.peers);
        peers.into_iter().flat_map(move |ids| from_cursor(ids, after)).filter_map(|id| self.regions.get(id))
    }

    /// Regions with a peer on the store, in id order.
    pub fn regions_on(&self, store_id: u64) -> impl Iterator<Item = u64> {
        self.by_store.get(&store_id).into_iter().flat_map(|regions| regions.peers.iter().copied())
    }

    /// Takes in a region description unless it is stale.
    pub fn put_region(&mut self, region: RegionInfo) -> Result<RegionChange, Stale> {
        let id = region.id();
        let Replaced { former, covered } = self.regions.insert(region)?;
        let mut change = RegionChange { meta_changed: true, gone: Vec::new() };
        let Some(now) = self.regions.get(id) else { return Ok(change) };
        match &former {
            Some(former) => {
                change.meta_changed = former.meta != now.meta;
                let is_indexed_as =
                    former.leader_store() == now.leader_store() && former.weight() == now.weight();
                if change.meta_changed || !is_indexed_as {
                    unindex(&mut self.by_store, former);
                    index(&mut self.by_store, now);
                }
                self.led -= usize::from(former.leader.is_some());
            }
            None => index(&mut self.by_store, now),
        }
        self.led += usize::from(now.leader.is_some());
        for region in &covered {
            unindex(&mut self.by_store, region);
            self.led -= usize::from(region.leader.is_some());
            change.gone.push(region.id());
        }
        Ok(change)
    }
}

/// The ids above `after`, then the others.
fn from_cursor(ids: &BTreeSet<u64>, after: u64) -> impl Iterator<Item = u64> {
    ids.range((Bound::Excluded(after), Bound::Unbounded)).chain(ids.range(..=after)).copied()
}

fn index(by_store: &mut BTreeMap<u64, StoreRegions>, region: &RegionInfo) {
    for peer in &region.meta.peers {
        let regions = by_store.entry(peer.store_id).or_default();
        regions.peers.insert(region.id());
        regions.weight += region.weight();
        if region.leader_store() == Some(peer.store_id) {
            regions.leaders.insert(region.id());
        }
    }
}

fn unindex(by_store: &mut BTreeMap<u64, StoreRegions>, region: &RegionInfo) {
    for peer in &region.meta.peers {
        let Some(regions) = by_store.get_mut(&peer.store_id) else { continue };
        regions.peers.remove(&region.id());
        regions.leaders.remove(&region.id());
        regions.weight -= region.weight();
        if regions.peers.is_empty() {
            by_store.remove(&peer.store_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvproto::metapb;

    fn region(id: u64, stores: &[u64], leader: u64, version: u64) -> RegionInfo {
        let peer =
            |store: &u64| metapb::Peer { id: id * 100 + store, store_id: *store, ..Default::default() };
        let peers: Vec<metapb::Peer> = stores.iter().map(peer).collect();
        RegionInfo {
            leader: peers.iter().find(|peer| peer.store_id == leader).copied(),
            meta: metapb::Region {
                id,
                region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version }),
                peers,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn weights_and_known_leaders_follow_every_report() {
        let mut cluster = BasicCluster::default();
        let mut known = region(1, &[1, 2], 0, 1);
        cluster.put_region(known.clone()).unwrap();
        assert_eq!((cluster.led_count(), cluster.weight(1), cluster.weight(3)), (0, 10, 0));
        known.approximate_size = 90;
        known.leader = known.peer_on(2).copied();
        cluster.put_region(known.clone()).unwrap();
        assert_eq!((cluster.led_count(), cluster.weight(1), cluster.weight(2)), (1, 100, 100));
        cluster.put_region(region(2, &[1], 1, 2)).unwrap();
        assert_eq!((cluster.led_count(), cluster.weight(1), cluster.weight(2)), (1, 10, 0));
    }

    #[test]
    fn a_walk_goes_round_from_the_cursor() {
        let mut cluster = BasicCluster::default();
        let bounds = ["", "a", "b", "c", ""];
        for (id, pair) in (1..).zip(bounds.windows(2)) {
            let mut part = region(id, &[1], 1, 1);
            part.meta.start_key = pair[0].into();
            part.meta.end_key = pair[1].into();
            cluster.put_region(part).unwrap();
        }
        let ids: Vec<u64> = cluster.led_by(1, 2).map(RegionInfo::id).collect();
        assert_eq!(ids, [3, 4, 1, 2]);
        assert_eq!(cluster.held_by(1, 4).map(RegionInfo::id).next(), Some(1));
    }

    fn counts(cluster: &BasicCluster) -> Vec<(usize, usize)> {
        (1..=4).map(|store| (cluster.region_count(store), cluster.leader_count(store))).collect()
    }

    #[test]
    fn the_index_follows_peers_leaders_and_covered_regions() {
        let mut cluster = BasicCluster::default();
        assert!(cluster.put_region(region(1, &[1, 2], 1, 1)).unwrap().meta_changed);
        assert_eq!(counts(&cluster), [(1, 1), (1, 0), (0, 0), (0, 0)]);
        let change = cluster.put_region(region(1, &[1, 2], 2, 1)).unwrap();
        assert_eq!(change, RegionChange::default());
        assert_eq!(counts(&cluster), [(1, 0), (1, 1), (0, 0), (0, 0)]);
        cluster.put_region(region(1, &[2, 3], 3, 2)).unwrap();
        assert_eq!(counts(&cluster), [(0, 0), (1, 0), (1, 1), (0, 0)]);
        let change = cluster.put_region(region(2, &[4], 4, 3)).unwrap();
        assert_eq!(change.gone, [1]);
        assert_eq!(counts(&cluster), [(0, 0), (0, 0), (0, 0), (1, 1)]);
    }
}
