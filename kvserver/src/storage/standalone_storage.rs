//! Storage without Raft: one engine, one store, and the regions that a cluster starts with.
//!
//! Owns the committer thread, which writes all waiting requests as one synced batch: while the disk works, the
//! next batch fills. A write is answered once it is durable and visible.
//!
//! Invariants: callbacks are called in the order of the batches; a failed batch fails every write in it, and
//! none of them is visible; after `close` no write is accepted.

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::future::BoxFuture;
use kvproto::key::BoundaryForm;
use kvproto::kvrpcpb::ApiVersion;
use kvproto::metapb;
use parking_lot::{Condvar, Mutex};

use super::store::{RaftIngress, Store};
use super::{RegionContext, RegionSnapshot, Storage};
use crate::engine::{Engine, EngineError, EngineStats, WriteBatch, WriteOptions};
use crate::error::{RegionError, RegionResult};
use crate::raftstore::bootstrap;
use crate::raftstore::message::write_set::{self, Entry};
use crate::raftstore::message::{Callback, WriteSet};
use crate::raftstore::meta::region_view::{RegionMeta, RegionView, ViewRegistry};
use crate::raftstore::meta::values::RegionStatus;
use crate::raftstore::util::region;

/// The only store.
pub const STORE_ID: u64 = 1;
/// Where the ids of regions and their only peers begin.
const FIRST_ID: u64 = 2;

/// Bytes that may wait for the committer.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// The regions, in key order. Each has one peer, which always leads it.
pub fn regions(api: ApiVersion) -> Vec<metapb::Region> {
    bootstrap::first_regions(api, FIRST_ID, STORE_ID)
}

/// The storage. Dropping it stops the committer.
pub struct StandaloneStorage {
    engine: Arc<dyn Engine>,
    api: ApiVersion,
    /// Few, in key order.
    regions: Vec<Arc<RegionMeta>>,
    queue: Arc<Queue>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

/// A write that is not on disk yet.
struct Waiting {
    region_id: u64,
    data: Bytes,
    done: Callback<()>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    bytes: usize,
    closed: bool,
}

impl StandaloneStorage {
    /// Serves from `engine`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(engine: Arc<dyn Engine>, api: ApiVersion) -> std::io::Result<Arc<StandaloneStorage>> {
        let form = BoundaryForm::of_raw(api);
        let meta = |region| region::meta(region, form).map(Arc::new).map_err(std::io::Error::other);
        let regions = regions(api).into_iter().map(meta).collect::<std::io::Result<_>>()?;
        let queue = Arc::new(Queue::default());
        let (thread_engine, thread_queue) = (engine.clone(), queue.clone());
        let committer = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || commit_loop(&*thread_engine, &thread_queue))?;
        let committer = Mutex::new(Some(committer));
        Ok(Arc::new(StandaloneStorage { engine, api, regions, queue, committer }))
    }

    /// The region that a request is meant for. Refuses those meant for another store or state of the region.
    fn check(&self, ctx: &RegionContext) -> RegionResult<&Arc<RegionMeta>> {
        if ctx.store_id != 0 && ctx.store_id != STORE_ID {
            return Err(RegionError::StoreNotMatch { requested: ctx.store_id, actual: STORE_ID });
        }
        let found = self.regions.iter().find(|meta| meta.region.id == ctx.region_id);
        let meta = found.ok_or(RegionError::RegionNotFound { region_id: ctx.region_id })?;
        let actual = meta.region.peers.first().map_or(0, |peer| peer.id);
        if ctx.peer_id != 0 && ctx.peer_id != actual {
            return Err(RegionError::MismatchPeerId { requested: ctx.peer_id, actual });
        }
        if ctx.version != meta.version() {
            return Err(RegionError::EpochNotMatch { current: vec![meta.region.clone()] });
        }
        Ok(meta)
    }

    fn snapshot(&self, ctx: &RegionContext) -> RegionResult<RegionSnapshot> {
        let region = self.check(ctx)?.clone();
        Ok(RegionSnapshot { snapshot: self.engine.snapshot(), region, term: 0 })
    }

    /// Answers what waits, and stops. Later writes are refused.
    pub fn stop(&self) {
        let mut state = self.queue.state.lock();
        state.closed = true;
        self.queue.changed.notify_one();
        drop(state);
        if let Some(committer) = self.committer.lock().take()
            && committer.join().is_err()
        {
            tracing::error!("the committer thread panicked");
        }
    }
}

impl Storage for StandaloneStorage {
    fn api(&self) -> ApiVersion {
        self.api
    }

    fn region(&self, ctx: &RegionContext) -> RegionResult<Arc<RegionMeta>> {
        self.check(ctx).cloned()
    }

    fn lease_snapshot(&self, ctx: &RegionContext) -> RegionResult<Option<RegionSnapshot>> {
        self.snapshot(ctx).map(Some)
    }

    fn confirm(&self, ctx: &RegionContext, done: Callback<()>) {
        done.call(self.check(ctx).map(drop));
    }

    fn confirmed_snapshot(&self, ctx: &RegionContext) -> RegionResult<RegionSnapshot> {
        self.snapshot(ctx)
    }

    fn write(&self, ctx: &RegionContext, write: WriteSet, done: Callback<()>) {
        let data = match self.check(ctx) {
            Ok(meta) => write.seal(meta.version()),
            Err(error) => return done.call(Err(error)),
        };
        let mut state = self.queue.state.lock();
        let refused = if state.closed {
            Some("the store is stopping")
        } else if state.bytes + data.len() > QUEUE_BYTES_MAX && !state.waiting.is_empty() {
            Some("too many writes wait for the disk")
        } else {
            None
        };
        if let Some(reason) = refused {
            drop(state);
            return done.call(Err(RegionError::ServerIsBusy { reason: reason.into() }));
        }
        state.bytes += data.len();
        state.waiting.push(Waiting { region_id: ctx.region_id, data, done });
        if state.waiting.len() == 1 {
            self.queue.changed.notify_one();
        }
    }
}

impl Drop for StandaloneStorage {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes what waits until the queue is closed and empty.
fn commit_loop(engine: &dyn Engine, queue: &Queue) {
    let mut taken = Vec::new();
    loop {
        let mut state = queue.state.lock();
        while state.waiting.is_empty() {
            if state.closed {
                return;
            }
            queue.changed.wait(&mut state);
        }
        std::mem::swap(&mut state.waiting, &mut taken);
        state.bytes = 0;
        drop(state);
        commit(engine, &mut taken);
    }
}

fn commit(engine: &dyn Engine, taken: &mut Vec<Waiting>) {
    let mut batch = WriteBatch::new();
    let mut callbacks = Vec::with_capacity(taken.len());
    for Waiting { region_id, data, done } in taken.drain(..) {
        match changes(&data, &mut batch) {
            Ok(()) => callbacks.push((region_id, done)),
            Err(error) => done.call(Err(refused(region_id, &error))),
        }
    }
    let result = engine.write(&batch, WriteOptions { sync: true, no_slowdown: false });
    if let Err(error) = &result {
        tracing::error!(%error, "{} writes failed", callbacks.len());
    }
    for (region_id, done) in callbacks {
        done.call(result.as_ref().copied().map_err(|error| refused(region_id, error)));
    }
}

/// Adds the changes of one write to the batch: all or none.
fn changes(data: &Bytes, batch: &mut WriteBatch) -> Result<(), EngineError> {
    let corrupt = |e: write_set::EntryError| EngineError::Corrupt(e.to_string());
    let Entry::Write { ops, .. } = write_set::decode(data).map_err(corrupt)? else {
        return Err(EngineError::Corrupt("not a write".into()));
    };
    let ops = ops.collect::<Result<Vec<_>, _>>().map_err(corrupt)?;
    ops.into_iter().for_each(|op| batch.push(op));
    Ok(())
}

/// A write that the engine did not take. Nothing of it is visible, but bytes of it may have reached the log of
/// a failing disk, so nobody can promise that a restart will not find them.
fn refused(region_id: u64, error: &EngineError) -> RegionError {
    match error {
        EngineError::Stalled => RegionError::ServerIsBusy { reason: error.to_string() },
        EngineError::Corrupt(_) => RegionError::Stopped { region_id, reason: error.to_string() },
        _ => RegionError::Undetermined(error.to_string()),
    }
}

/// The store of a standalone server.
pub struct StandaloneStore {
    storage: Arc<StandaloneStorage>,
    cluster_id: u64,
    views: Arc<ViewRegistry>,
}

impl StandaloneStore {
    /// A store around a storage that was started.
    pub fn new(storage: Arc<StandaloneStorage>, cluster_id: u64) -> StandaloneStore {
        let views = Arc::new(ViewRegistry::default());
        for meta in &storage.regions {
            let Some(peer) = meta.region.peers.first().copied() else { continue };
            let view = RegionView::new(meta.clone(), peer, Some(peer), 1, true);
            views.cell(meta.region.id).publish(Some(view));
        }
        StandaloneStore { storage, cluster_id, views }
    }
}

impl Store for StandaloneStore {
    fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    fn ingress(&self) -> Option<Arc<dyn RaftIngress>> {
        None
    }

    fn views(&self) -> Arc<ViewRegistry> {
        self.views.clone()
    }

    fn inspect(&self, _region_id: u64) -> BoxFuture<'_, Option<Arc<RegionStatus>>> {
        Box::pin(std::future::ready(None))
    }

    fn split(
        &self,
        _: &RegionContext,
        _: Vec<Bytes>,
    ) -> Option<BoxFuture<'static, RegionResult<Vec<metapb::Region>>>> {
        None
    }

    fn first_leader(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(std::future::ready(None))
    }

    fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    fn store_id(&self) -> u64 {
        STORE_ID
    }

    fn engine_stats(&self) -> EngineStats {
        self.storage.engine.stats()
    }

    fn stalled(&self) -> bool {
        self.storage.engine.stalled()
    }

    fn not_ready(&self) -> Vec<String> {
        Vec::new()
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn close(&self) -> Result<(), String> {
        self.storage.stop();
        self.storage.engine.close().map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::engine::Cf;
    use crate::engine::mem::MemEngine;

    fn ctx() -> RegionContext {
        RegionContext { region_id: 4, version: 1, conf_ver: 1, ..Default::default() }
    }

    fn put(storage: &StandaloneStorage, ctx: &RegionContext, key: &[u8]) -> RegionResult<()> {
        let mut write = WriteSet::default();
        write.put(Cf::Raw, key, &[b"v"]);
        let (tx, rx) = sync_channel(1);
        storage.write(ctx, write, Callback::new(move |result| tx.send(result).unwrap()));
        rx.recv().unwrap()
    }

    #[test]
    fn an_acknowledged_write_survives_a_crash() {
        let engine = Arc::new(MemEngine::new());
        let storage = StandaloneStorage::start(engine.clone(), ApiVersion::V2).unwrap();
        put(&storage, &ctx(), b"k").unwrap();
        engine.crash(0);
        assert_eq!(engine.get(Cf::Raw, b"k").unwrap(), Some("v".into()));
    }

    #[test]
    fn requests_for_others_are_sent_away_with_the_truth() {
        let engine = Arc::new(MemEngine::new());
        let storage = StandaloneStorage::start(engine, ApiVersion::V2).unwrap();
        let refused = |ctx: RegionContext| put(&storage, &ctx, b"k").unwrap_err();
        let (requested, actual) = (9, STORE_ID);
        assert_eq!(
            refused(RegionContext { store_id: 9, ..ctx() }),
            RegionError::StoreNotMatch { requested, actual }
        );
        assert_eq!(
            refused(RegionContext { region_id: 9, ..ctx() }),
            RegionError::RegionNotFound { region_id: 9 }
        );
        let stale = refused(RegionContext { version: 0, ..ctx() });
        assert_eq!(stale, RegionError::EpochNotMatch { current: vec![regions(ApiVersion::V2).remove(1)] });
        assert!(storage.lease_snapshot(&RegionContext { peer_id: 9, ..ctx() }).is_err());
        assert!(storage.lease_snapshot(&RegionContext { peer_id: 5, ..ctx() }).is_ok());
    }

    #[test]
    fn every_region_answers_for_its_own_range() {
        let bounds = |api, region_id| {
            let storage = StandaloneStorage::start(Arc::new(MemEngine::new()), api).unwrap();
            let at = RegionContext { region_id, ..ctx() };
            let meta = storage.confirmed_snapshot(&at).unwrap().region;
            assert_eq!(storage.region(&at).unwrap().region.id, region_id);
            (meta.start.clone(), meta.end.clone())
        };
        assert_eq!(bounds(ApiVersion::V1, 2), (Bytes::new(), Bytes::new()));
        assert_eq!(bounds(ApiVersion::V2, 4), ("r\0\0\0".into(), "r\0\0\x01".into()));
        assert_eq!(bounds(ApiVersion::V2, 10), ("x\0\0\x01".into(), Bytes::new()));
    }

    #[test]
    fn a_stopped_storage_refuses_writes() {
        let storage = StandaloneStorage::start(Arc::new(MemEngine::new()), ApiVersion::V2).unwrap();
        put(&storage, &ctx(), b"k").unwrap();
        storage.stop();
        assert!(matches!(put(&storage, &ctx(), b"k"), Err(RegionError::ServerIsBusy { .. })));
    }
}
