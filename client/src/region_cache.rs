//! Where keys live, as far as this client knows. Pure: errors and scheduler answers come in, look-ups go out.
//!
//! Owns the known regions, ordered by start key. Keys and ranges are wire keys; boundaries are decoded when a region
//! comes in. Invariants: cached regions do not overlap; a region is never replaced by one with an older epoch; an
//! update that was caused by a view that has been replaced meanwhile changes nothing, so that a hundred callers that
//! meet the same error act as one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use kvproto::key::{BoundaryForm, KeyError};
use kvproto::metapb;

/// A region as a client sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// Its number.
    pub id: u64,
    /// Its epoch; requests carry it.
    pub epoch: metapb::RegionEpoch,
    /// First wire key; empty from the beginning.
    pub start: Bytes,
    /// First wire key after it; empty without end.
    pub end: Bytes,
    /// Its replicas.
    pub peers: Vec<metapb::Peer>,
    /// The replica that requests go to: the leader, or the one to try next.
    target: usize,
    /// Replicas tried in a row without finding the leader.
    tried: usize,
}

impl Region {
    /// Takes over a region from the wire. Without a leader, requests first go to a replica on `store_hint`.
    pub fn new(
        region: metapb::Region,
        leader: Option<&metapb::Peer>,
        store_hint: Option<u64>,
        form: BoundaryForm,
    ) -> Result<Region, KeyError> {
        let by_leader = leader.and_then(|leader| region.peers.iter().position(|p| p.id == leader.id));
        let by_hint = || region.peers.iter().position(|p| Some(p.store_id) == store_hint);
        let voter = || region.peers.iter().position(|p| p.role() == metapb::PeerRole::Voter);
        let target = by_leader.or_else(by_hint).or_else(voter).unwrap_or(0);
        Ok(Region {
            id: region.id,
            epoch: region.region_epoch.unwrap_or_default(),
            start: form.wire_key(region.start_key)?,
            end: form.wire_key(region.end_key)?,
            peers: region.peers,
            target,
            tried: 0,
        })
    }

    /// The replica that requests go to; `None` for a region without replicas.
    pub fn target(&self) -> Option<metapb::Peer> {
        self.peers.get(self.target).copied()
    }

    /// Whether `key` lies before the end.
    pub fn is_before_end(&self, key: &[u8]) -> bool {
        self.end.is_empty() || key < self.end
    }

    fn overlaps(&self, other: &Region) -> bool {
        let starts_before_end = |a: &Region, b: &Region| b.end.is_empty() || a.start < b.end;
        starts_before_end(self, other) && starts_before_end(other, self)
    }

    fn is_older_than(&self, other: &Region) -> bool {
        epoch_order(&self.epoch) < epoch_order(&other.epoch)
    }
}

fn epoch_order(epoch: &metapb::RegionEpoch) -> (u64, u64) {
    (epoch.version, epoch.conf_ver)
}

/// What a failed request teaches about the region it was sent to.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// Nothing.
    Keep,
    /// This replica leads.
    Leader(metapb::Peer),
    /// The replica that was asked does not lead or does not answer: try another one.
    NextPeer,
    /// The region is not what it was: ask the scheduler.
    Forget,
    /// These regions cover the place now.
    Replace(Vec<metapb::Region>),
}

/// The regions a client knows.
#[derive(Debug)]
pub struct RegionCache {
    form: BoundaryForm,
    by_start: BTreeMap<Bytes, Arc<Region>>,
    starts: BTreeMap<u64, Bytes>,
    capacity: usize,
    /// Start key of the region that was evicted last; eviction goes round.
    hand: Bytes,
}

impl RegionCache {
    /// An empty cache for at most `capacity` regions whose boundaries come in `form`.
    pub fn new(form: BoundaryForm, capacity: usize) -> RegionCache {
        let (by_start, starts) = (BTreeMap::new(), BTreeMap::new());
        RegionCache { form, by_start, starts, capacity: capacity.max(1), hand: Bytes::new() }
    }

    /// The region that holds `key`.
    pub fn lookup(&self, key: &[u8]) -> Option<Arc<Region>> {
        let range = (Bound::Unbounded, Bound::Included(key));
        let (_, region) = self.by_start.range::<[u8], _>(range).next_back()?;
        region.is_before_end(key).then(|| region.clone())
    }

    /// The region that holds the keys right before `end`; an empty `end` means the last region.
    pub fn lookup_before(&self, end: &[u8]) -> Option<Arc<Region>> {
        if end.is_empty() {
            let (_, region) = self.by_start.last_key_value()?;
            return region.end.is_empty().then(|| region.clone());
        }
        let range = (Bound::Unbounded, Bound::Excluded(end));
        let (_, region) = self.by_start.range::<[u8], _>(range).next_back()?;
        (region.end.is_empty() || region.end >= end).then(|| region.clone())
    }

    /// Takes over a region and returns the view to use for the request that asked. What is known already stays
    /// unless this is newer; so does a leader that was learned.
    pub fn insert(&mut self, region: Region) -> Arc<Region> {
        let known = self.starts.get(&region.id).and_then(|start| self.by_start.get(start));
        if let Some(known) = known
            && !known.is_older_than(&region)
        {
            return known.clone();
        }
        let region = Arc::new(region);
        let overlapping = self.overlapping(&region);
        let is_stale =
            |other: &Arc<Region>| other.id != region.id && other.epoch.version > region.epoch.version;
        if overlapping.iter().any(is_stale) {
            return region;
        }
        for other in overlapping {
            self.remove(&other);
        }
        if let Some(start) = self.starts.get(&region.id)
            && let Some(old) = self.by_start.get(start).cloned()
        {
            self.remove(&old);
        }
        if self.by_start.len() >= self.capacity {
            self.evict();
        }
        self.starts.insert(region.id, region.start.clone());
        self.by_start.insert(region.start.clone(), region.clone());
        region
    }

    /// Applies what a request learned that was sent with the view `seen`.
    pub fn update(&mut self, seen: &Arc<Region>, update: Update) -> Result<(), KeyError> {
        let current = self.by_start.get(&seen.start);
        if !current.is_some_and(|current| Arc::ptr_eq(current, seen)) {
            // Someone has acted on the same error, unless this brings regions.
            if let Update::Replace(regions) = update {
                self.replace(seen, regions)?;
            }
            return Ok(());
        }
        match update {
            Update::Keep => {}
            Update::Forget => self.remove(seen),
            Update::Leader(leader) => match seen.peers.iter().position(|peer| peer.id == leader.id) {
                Some(target) => self.retarget(seen, target, 0),
                None => self.remove(seen),
            },
            Update::NextPeer if seen.tried + 1 >= seen.peers.len() => self.remove(seen),
            Update::NextPeer => self.retarget(seen, (seen.target + 1) % seen.peers.len(), seen.tried + 1),
            Update::Replace(regions) => {
                self.remove(seen);
                self.replace(seen, regions)?;
            }
        }
        Ok(())
    }

    fn replace(&mut self, seen: &Region, regions: Vec<metapb::Region>) -> Result<(), KeyError> {
        // The store that reported a split leads its parts, most likely.
        let store = seen.target().map(|peer| peer.store_id);
        for region in regions {
            self.insert(Region::new(region, None, store, self.form)?);
        }
        Ok(())
    }

    fn retarget(&mut self, seen: &Region, target: usize, tried: usize) {
        let region = Region { target, tried, ..seen.clone() };
        self.by_start.insert(region.start.clone(), Arc::new(region));
    }

    fn overlapping(&self, region: &Region) -> Vec<Arc<Region>> {
        let from =
            self.lookup(&region.start).map_or_else(|| region.start.clone(), |first| first.start.clone());
        let candidates = self.by_start.range(from..).map(|(_, other)| other);
        candidates.take_while(|other| region.overlaps(other)).cloned().collect()
    }

    fn remove(&mut self, region: &Region) {
        self.by_start.remove(&region.start);
        self.starts.remove(&region.id);
    }

    fn evict(&mut self) {
        let after = (Bound::Excluded(self.hand.clone()), Bound::Unbounded);
        let victim = self.by_start.range(after).next().or_else(|| self.by_start.first_key_value());
        if let Some((start, region)) = victim {
            let (start, region) = (start.clone(), region.clone());
            self.remove(&region);
            self.hand = start;
        }
    }
}
