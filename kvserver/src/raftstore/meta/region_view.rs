//! What readers see of a region without asking the raft thread.
//!
//! The shard that owns a peer publishes a [`RegionView`] for it; request tasks load it, take an engine
//! snapshot, read the clock, and load it again. The read is served only when both loads gave the same view and
//! its lease is still alive (see `storage/raft_storage/region_reader.rs`).
//!
//! Invariants: only the owning shard (or, before a batch with an admin command is written, the apply it has
//! handed the region to) publishes; a view's lease can only be live when the peer leads, has applied an entry
//! of its own term, and nothing has revoked it; a revocation is published before any message of the same turn
//! leaves, an extension after the quorum answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use kvproto::metapb;
use parking_lot::RwLock;

use crate::clock::Now;

/// A region with its bounds in the form that data has.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionMeta {
    /// The region as the protocol knows it; bounds are memcomparable in a v2 cluster.
    pub region: metapb::Region,
    /// First user key of the region.
    pub start: Bytes,
    /// First user key after the region; empty when there is none.
    pub end: Bytes,
}

impl RegionMeta {
    /// True when the user key `key` belongs to the region.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }

    /// The region version: changes with every split and merge.
    pub fn version(&self) -> u64 {
        self.region.region_epoch.as_ref().map_or(0, |e| e.version)
    }

    /// The membership version: changes with every replica added or removed.
    pub fn conf_ver(&self) -> u64 {
        self.region.region_epoch.as_ref().map_or(0, |e| e.conf_ver)
    }
}

/// One published state of a peer. Never changes, but for its lease.
#[derive(Debug)]
pub struct RegionView {
    pub meta: Arc<RegionMeta>,
    pub peer: metapb::Peer,
    /// Whom this peer believes to lead.
    pub leader: Option<metapb::Peer>,
    pub term: u64,
    /// True when this peer leads and has applied an entry of its own term.
    pub serves: bool,
    /// CLOCK_BOOTTIME nanoseconds until which reads need no confirmation; 0 is never.
    lease_until: AtomicU64,
    /// Set by readers, cleared by the shard: whether the lease is worth keeping alive.
    read_lately: AtomicBool,
}

impl RegionView {
    /// A view without a lease.
    pub fn new(
        meta: Arc<RegionMeta>,
        peer: metapb::Peer,
        leader: Option<metapb::Peer>,
        term: u64,
        serves: bool,
    ) -> RegionView {
        let (lease_until, read_lately) = (AtomicU64::new(0), AtomicBool::new(false));
        RegionView { meta, peer, leader, term, serves, lease_until, read_lately }
    }

    /// True when this peer believes that it leads.
    pub fn is_leader(&self) -> bool {
        self.leader.as_ref().is_some_and(|l| l.id == self.peer.id)
    }

    /// True when a read that took its snapshot before `now` may be served.
    pub fn lease_alive(&self, now: Now) -> bool {
        now.0 < self.lease_until.load(Ordering::Acquire)
    }

    /// Notes that somebody reads here.
    pub fn touch(&self) {
        if !self.read_lately.load(Ordering::Relaxed) {
            self.read_lately.store(true, Ordering::Relaxed);
        }
    }

    /// Whether anybody read since the last call.
    pub fn take_read_lately(&self) -> bool {
        self.read_lately.swap(false, Ordering::Relaxed)
    }

    /// Extends the lease. Only the owning shard calls this.
    pub fn extend_lease(&self, until: Now) {
        assert!(self.serves, "INV-LEASE: a lease needs a leader that applied its own term");
        self.lease_until.fetch_max(until.0, Ordering::AcqRel);
    }
}

/// The place where one peer's newest view is found.
#[derive(Debug, Default)]
pub struct ViewCell {
    view: ArcSwapOption<RegionView>,
}

impl ViewCell {
    /// The newest view; `None` when the peer has gone.
    pub fn load(&self) -> Option<Arc<RegionView>> {
        self.view.load_full()
    }

    /// True while `view` is the newest one.
    pub fn is_current(&self, view: &Arc<RegionView>) -> bool {
        self.view.load().as_ref().is_some_and(|v| Arc::ptr_eq(v, view))
    }

    /// Replaces the view; the old one's lease is thereby revoked.
    pub fn publish(&self, view: Option<RegionView>) {
        self.view.store(view.map(Arc::new));
    }
}

const SLOTS: usize = 64;
/// Regions on either side that a client with an old view is told of.
pub const NEIGHBOURS_MAX: usize = 8;

type Slot = ArcSwap<BTreeMap<u64, Arc<ViewCell>>>;

/// All peers of a store, by region id. Reading takes no lock.
pub struct ViewRegistry {
    slots: Vec<Slot>,
    /// Serialises insertions and removals, which are rare.
    writing: RwLock<()>,
    /// The region that began the key space when last asked.
    first: AtomicU64,
}

impl Default for ViewRegistry {
    fn default() -> Self {
        let slots = (0..SLOTS).map(|_| ArcSwap::from_pointee(BTreeMap::new())).collect();
        ViewRegistry { slots, writing: RwLock::new(()), first: AtomicU64::new(0) }
    }
}

impl ViewRegistry {
    fn slot(&self, region_id: u64) -> &Slot {
        &self.slots[region_id as usize % SLOTS]
    }

    /// The newest view of a region's peer on this store.
    pub fn get(&self, region_id: u64) -> Option<(Arc<ViewCell>, Arc<RegionView>)> {
        let map = self.slot(region_id).load();
        let cell = map.get(&region_id)?;
        let view = cell.load()?;
        Some((cell.clone(), view))
    }

    /// The cell of a region, made when it is missing.
    pub fn cell(&self, region_id: u64) -> Arc<ViewCell> {
        let _one_at_a_time = self.writing.write();
        let slot = self.slot(region_id);
        if let Some(cell) = slot.load().get(&region_id) {
            return cell.clone();
        }
        let mut map = BTreeMap::clone(&slot.load());
        let cell = map.entry(region_id).or_default().clone();
        slot.store(Arc::new(map));
        cell
    }

    /// Forgets a region. Its cell is emptied first, so that readers who hold it see the peer gone.
    pub fn remove(&self, region_id: u64) {
        let _one_at_a_time = self.writing.write();
        let slot = self.slot(region_id);
        let mut map = BTreeMap::clone(&slot.load());
        if let Some(cell) = map.remove(&region_id) {
            cell.publish(None);
        }
        slot.store(Arc::new(map));
    }

    /// The view of the region with the first key, if it has a peer here. Looks at all regions when another one than last
    /// time begins the key space.
    pub fn first(&self) -> Option<Arc<RegionView>> {
        let is_first = |view: &RegionView| view.meta.start.is_empty() && !view.meta.region.peers.is_empty();
        let known = self.get(self.first.load(Ordering::Relaxed)).map(|(_, view)| view);
        if let Some(view) = known.filter(|view| is_first(view)) {
            return Some(view);
        }
        let view = self.all().into_iter().find(|view| is_first(view))?;
        self.first.store(view.meta.region.id, Ordering::Relaxed);
        Some(view)
    }

    /// The region and those near it here that may have been a part of it: what a client with an older view of it
    /// should know. A split gives all parts the same version, so those with a smaller one are not.
    pub fn current_regions(&self, meta: &RegionMeta) -> Vec<metapb::Region> {
        // Few requests come with an old view, so looking at all regions is cheaper than an index of their keys.
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        for slot in &self.slots {
            for view in slot.load().values().filter_map(|cell| cell.load()) {
                let is_other = view.meta.region.id != meta.region.id
                    && !view.meta.region.peers.is_empty()
                    && view.meta.version() >= meta.version();
                let side = match view.meta.start.cmp(&meta.start) {
                    _ if !is_other => continue,
                    std::cmp::Ordering::Less => &mut before,
                    std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => &mut after,
                };
                side.insert(view.meta.start.clone(), view);
                if before.len() > NEIGHBOURS_MAX {
                    before.pop_first();
                }
                if after.len() > NEIGHBOURS_MAX {
                    after.pop_last();
                }
            }
        }
        let near = before.into_values().rev().chain(after.into_values());
        std::iter::once(meta.region.clone()).chain(near.map(|view| view.meta.region.clone())).collect()
    }

    /// Every current view, by region id.
    pub fn all(&self) -> Vec<Arc<RegionView>> {
        let mut views: Vec<_> = self
            .slots
            .iter()
            .flat_map(|s| s.load().values().filter_map(|c| c.load()).collect::<Vec<_>>())
            .collect();
        views.sort_by_key(|v| v.meta.region.id);
        views
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(serves: bool) -> RegionView {
        let meta = RegionMeta { region: Default::default(), start: "b".into(), end: "d".into() };
        RegionView::new(Arc::new(meta), Default::default(), None, 1, serves)
    }

    #[test]
    fn publishing_revokes_the_old_lease_for_readers() {
        let registry = ViewRegistry::default();
        let cell = registry.cell(7);
        cell.publish(Some(view(true)));
        let (cell, old) = registry.get(7).unwrap();
        old.extend_lease(Now(100));
        assert!(old.lease_alive(Now(99)) && !old.lease_alive(Now(100)) && cell.is_current(&old));
        cell.publish(Some(view(true)));
        assert!(!cell.is_current(&old));
        assert!(!cell.load().unwrap().lease_alive(Now(0)), "a new view starts without a lease");
    }

    #[test]
    fn a_removed_region_is_gone_for_holders_of_its_cell() {
        let registry = ViewRegistry::default();
        registry.cell(7).publish(Some(view(false)));
        let (cell, _) = registry.get(7).unwrap();
        registry.remove(7);
        assert!(cell.load().is_none() && registry.get(7).is_none() && registry.all().is_empty());
    }

    #[test]
    fn a_client_with_an_old_view_is_told_of_the_nearest_regions_on_both_sides() {
        let registry = ViewRegistry::default();
        for n in 0..40u64 {
            let peers = vec![metapb::Peer { id: 1_000 + n, ..Default::default() }];
            let region = metapb::Region { id: n + 1, peers, ..Default::default() };
            let start = Bytes::from(format!("k{n:02}"));
            let meta = RegionMeta { region, start, end: format!("k{:02}", n + 1).into() };
            let view = RegionView::new(Arc::new(meta), Default::default(), None, 1, false);
            registry.cell(n + 1).publish(Some(view));
        }
        let told = |id: u64| -> Vec<u64> {
            let meta = registry.get(id).unwrap().1.meta.clone();
            registry.current_regions(&meta).iter().map(|r| r.id).collect()
        };
        assert_eq!(told(20), (20..21).chain((12..20).rev()).chain(21..29).collect::<Vec<_>>());
        assert_eq!(told(1), (1..10).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_region_is_found_again_after_a_split() {
        let registry = ViewRegistry::default();
        let publish = |id: u64, start: &'static str| {
            let peers = vec![metapb::Peer { id: 1_000 + id, ..Default::default() }];
            let region = metapb::Region { id, peers, ..Default::default() };
            let meta = RegionMeta { region, start: start.into(), end: Default::default() };
            registry.cell(id).publish(Some(RegionView::new(
                Arc::new(meta),
                Default::default(),
                None,
                1,
                true,
            )));
        };
        assert!(registry.first().is_none());
        publish(7, "");
        assert_eq!(registry.first().map(|view| view.meta.region.id), Some(7));
        publish(7, "m");
        assert!(registry.first().is_none());
        publish(9, "");
        assert_eq!(registry.first().map(|view| view.meta.region.id), Some(9));
    }

    #[test]
    fn bounds_are_half_open() {
        let meta = view(false).meta;
        assert!(meta.contains(b"b") && meta.contains(b"cz") && !meta.contains(b"d") && !meta.contains(b"a"));
    }
}
