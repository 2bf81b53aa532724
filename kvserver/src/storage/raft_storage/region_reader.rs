//! Reads of a region's data without asking the raft thread: the published view, an engine snapshot, the clock.
//!
//! Invariant (INV-LEASE): a read under the lease is served only when the view that was loaded first is still the
//! newest one after the snapshot was taken and the clock was read, and its lease was alive at that instant. Then
//! this store was the leader when the snapshot was taken, and nobody else can have committed anything newer.

use std::sync::Arc;

use super::transport::LostStores;
use crate::clock::{self, Now};
use crate::engine::{Engine, Snapshot};
use crate::error::{RegionError, RegionResult};
use crate::raftstore::meta::region_view::{RegionMeta, RegionView, ViewCell, ViewRegistry};
use crate::storage::{RegionContext, RegionSnapshot};

/// How often a view may change under a confirmed read before it gives up.
const ATTEMPTS: usize = 3;

/// What a view says to a request that is for its region.
#[derive(Debug)]
pub enum Standing {
    /// This peer leads, as far as it knows.
    Leader,
    /// Nobody is known to lead at the moment: worth waiting for.
    NoLeader,
}

/// A read under the lease that has its view. The steps are apart so that the simulator can put anything between them.
pub struct Begun {
    cell: Arc<ViewCell>,
    view: Arc<RegionView>,
}

/// A read under the lease that has its view and its snapshot.
pub struct Snapped {
    begun: Begun,
    snapshot: Arc<dyn Snapshot>,
}

impl Begun {
    /// The view that was loaded.
    pub fn view(&self) -> &RegionView {
        &self.view
    }
}

impl Snapped {
    /// The last step, with a clock that was read after the snapshot: `None` when the lease is in doubt.
    pub fn end(self, now: Now) -> Option<RegionSnapshot> {
        let Begun { cell, view } = self.begun;
        let valid = view.lease_alive(now) && cell.is_current(&view);
        valid.then(|| RegionSnapshot { snapshot: self.snapshot, region: view.meta.clone(), term: view.term })
    }
}

/// See the file's head.
pub struct RegionReader {
    store_id: u64,
    engine: Arc<dyn Engine>,
    views: Arc<ViewRegistry>,
    lost: LostStores,
}

impl RegionReader {
    /// A reader of `engine` for the regions in `views`.
    pub fn new(
        store_id: u64,
        engine: Arc<dyn Engine>,
        views: Arc<ViewRegistry>,
        lost: LostStores,
    ) -> RegionReader {
        RegionReader { store_id, engine, views, lost }
    }

    /// The region's view and how it stands to the request, after the checks in the order that clients rely on:
    /// store, region, peer, leader, term, version.
    pub fn check(&self, ctx: &RegionContext) -> RegionResult<(Arc<ViewCell>, Arc<RegionView>, Standing)> {
        let region_id = ctx.region_id;
        if ctx.store_id != 0 && ctx.store_id != self.store_id {
            return Err(RegionError::StoreNotMatch { requested: ctx.store_id, actual: self.store_id });
        }
        let (cell, view) = self.views.get(region_id).ok_or(RegionError::RegionNotFound { region_id })?;
        if ctx.peer_id != 0 && ctx.peer_id != view.peer.id {
            return Err(RegionError::MismatchPeerId { requested: ctx.peer_id, actual: view.peer.id });
        }
        if view.meta.region.peers.is_empty() {
            return Err(RegionError::RegionNotInitialized { region_id });
        }
        let standing = match self.leader_elsewhere(&view) {
            Some(leader) => return Err(RegionError::NotLeader { region_id, leader: Some(leader) }),
            None if view.is_leader() => Standing::Leader,
            None => Standing::NoLeader,
        };
        if ctx.term != 0 && ctx.term < view.term {
            return Err(RegionError::StaleCommand);
        }
        if ctx.version != view.meta.version() {
            return Err(RegionError::EpochNotMatch { current: self.views.current_regions(&view.meta) });
        }
        Ok((cell, view, standing))
    }

    /// The leader on another store; a store that is gone leads nothing for long.
    fn leader_elsewhere(&self, view: &RegionView) -> Option<kvproto::metapb::Peer> {
        view.leader.filter(|l| l.id != view.peer.id && !self.lost.contains(l.store_id))
    }

    /// The region, for building a write. Without a leader the write will wait for one.
    pub fn region(&self, ctx: &RegionContext) -> RegionResult<Arc<RegionMeta>> {
        self.check(ctx).map(|(_, view, _)| view.meta.clone())
    }

    /// A snapshot under the lease; `None` when the lease is in doubt or nobody leads.
    pub fn lease_snapshot(&self, ctx: &RegionContext) -> RegionResult<Option<RegionSnapshot>> {
        let Some(begun) = self.begin(ctx)? else { return Ok(None) };
        Ok(self.take_snapshot(begun).end(clock::now()))
    }

    /// The first step of a read under the lease: the view. `None` when nobody leads or the leader does not serve yet.
    pub fn begin(&self, ctx: &RegionContext) -> RegionResult<Option<Begun>> {
        let (cell, view, standing) = self.check(ctx)?;
        if matches!(standing, Standing::NoLeader) || !view.serves {
            return Ok(None);
        }
        view.touch();
        Ok(Some(Begun { cell, view }))
    }

    /// The second step: the engine's snapshot.
    pub fn take_snapshot(&self, begun: Begun) -> Snapped {
        Snapped { begun, snapshot: self.engine.snapshot() }
    }

    /// A snapshot after a confirmation: whatever was committed when that was asked for is applied here. The view must
    /// not change around the snapshot, so that no half-replaced data is seen.
    pub fn confirmed_snapshot(&self, ctx: &RegionContext) -> RegionResult<RegionSnapshot> {
        for _ in 0..ATTEMPTS {
            let (cell, view, _) = self.check(ctx)?;
            if !view.serves {
                break;
            }
            let snapshot = self.engine.snapshot();
            if cell.is_current(&view) {
                return Ok(RegionSnapshot { snapshot, region: view.meta.clone(), term: view.term });
            }
        }
        Err(RegionError::NotLeader { region_id: ctx.region_id, leader: None })
    }
}

#[cfg(test)]
mod tests {
    use kvproto::metapb;

    use super::*;
    use crate::engine::mem::MemEngine;
    use crate::engine::{Cf, ReadTier, WriteBatch, WriteOptions};

    struct Store {
        reader: RegionReader,
        engine: Arc<MemEngine>,
        views: Arc<ViewRegistry>,
    }

    fn peer(id: u64) -> metapb::Peer {
        metapb::Peer { id, store_id: id, ..Default::default() }
    }

    fn store() -> Store {
        let (engine, views) = (Arc::new(MemEngine::new()), Arc::new(ViewRegistry::default()));
        let reader = RegionReader::new(1, engine.clone(), views.clone(), LostStores::default());
        Store { reader, engine, views }
    }

    impl Store {
        fn publish(&self, leader: Option<u64>, serves: bool) -> Arc<RegionView> {
            let region_epoch = Some(metapb::RegionEpoch { conf_ver: 1, version: 3 });
            let peers = vec![peer(1), peer(2)];
            let region = metapb::Region { id: 7, region_epoch, peers, ..Default::default() };
            let meta = Arc::new(RegionMeta { region, start: Default::default(), end: Default::default() });
            let view = RegionView::new(meta, peer(1), leader.map(peer), 9, serves);
            self.views.cell(7).publish(Some(view));
            self.views.get(7).unwrap().1
        }

        fn put(&self, value: &'static str) {
            let mut batch = WriteBatch::new();
            batch.put(Cf::Raw, "k", value);
            self.engine.write(&batch, WriteOptions::default()).unwrap();
        }
    }

    fn ctx() -> RegionContext {
        RegionContext { region_id: 7, version: 3, ..Default::default() }
    }

    const FAR: Now = Now(u64::MAX);

    #[test]
    fn a_live_lease_serves_and_a_dead_or_replaced_one_does_not() {
        let store = store();
        store.put("v");
        let view = store.publish(Some(1), true);
        assert!(store.reader.lease_snapshot(&ctx()).unwrap().is_none(), "no lease yet");
        view.extend_lease(FAR);
        let at = store.reader.lease_snapshot(&ctx()).unwrap().expect("served");
        assert_eq!(at.snapshot.get(Cf::Raw, b"k", ReadTier::All).unwrap(), Some("v".into()));
        assert!(view.take_read_lately(), "the shard learns that somebody reads");
        store.publish(Some(1), true);
        assert!(store.reader.lease_snapshot(&ctx()).unwrap().is_none(), "a new view has no lease");
    }

    #[test]
    fn checks_come_in_the_order_clients_rely_on() {
        let store = store();
        let err = |ctx: RegionContext| store.reader.lease_snapshot(&ctx).map(|_| ()).unwrap_err();
        let all_wrong = RegionContext { store_id: 5, peer_id: 6, term: 1, version: 1, ..ctx() };
        assert_eq!(err(all_wrong), RegionError::StoreNotMatch { requested: 5, actual: 1 });
        assert_eq!(
            err(RegionContext { store_id: 1, ..all_wrong }),
            RegionError::RegionNotFound { region_id: 7 }
        );
        store.publish(Some(2), false);
        let here = RegionContext { store_id: 1, ..all_wrong };
        assert_eq!(err(here), RegionError::MismatchPeerId { requested: 6, actual: 1 });
        let ours = RegionContext { peer_id: 1, ..here };
        assert_eq!(err(ours), RegionError::NotLeader { region_id: 7, leader: Some(peer(2)) });
        store.publish(Some(1), true);
        assert_eq!(err(ours), RegionError::StaleCommand);
        let RegionError::EpochNotMatch { current } = err(RegionContext { term: 9, ..ours }) else { panic!() };
        assert_eq!(current[0].region_epoch.unwrap().version, 3);
    }

    #[test]
    fn a_leader_whose_store_is_gone_is_not_named() {
        let store = store();
        store.publish(Some(2), false);
        assert!(matches!(store.reader.check(&ctx()), Err(RegionError::NotLeader { .. })));
        store.reader.lost.set(2, true);
        assert!(matches!(store.reader.check(&ctx()), Ok((_, _, Standing::NoLeader))));
        assert!(store.reader.lease_snapshot(&ctx()).unwrap().is_none());
    }

    #[test]
    fn a_confirmed_read_needs_a_peer_that_still_serves() {
        let store = store();
        store.publish(Some(1), true);
        assert!(store.reader.confirmed_snapshot(&ctx()).is_ok());
        store.publish(None, false);
        let refused = store.reader.confirmed_snapshot(&ctx()).map(|_| ()).unwrap_err();
        assert_eq!(refused, RegionError::NotLeader { region_id: 7, leader: None });
    }
}
