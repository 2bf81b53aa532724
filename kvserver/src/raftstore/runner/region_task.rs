//! The slow work on one region: building a snapshot, putting one in place, removing what is left of a peer.
//!
//! Owns the order of the steps, each durable before the next, so that a crash between any two leaves a state
//! from which `recovery` goes on. What fails is tried again by the worker that called, every step may be done twice;
//! what keeps failing ends the store, since completions of these tasks are never lost.

use std::sync::Arc;

use kvproto::key::BoundaryForm;

use super::patience::Patience;
use super::ranges;
use crate::clock;
use crate::engine::log_store::{LogStore, LogWrite, RegionLogWrite};
use crate::engine::{Cf, Engine, EngineError, ReadTier, WriteBatch, WriteOptions};
use crate::raftstore::message::input::BuiltSnapshot;
use crate::raftstore::message::{Input, Task};
use crate::raftstore::meta::keys;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::raftstore::meta::values::{self, ApplyState, PeerState, RegionState};
use crate::raftstore::raft_worker::Fatal;
use crate::raftstore::router::Router;
use crate::raftstore::snap::{Side, SnapError, SnapKey, SnapManager};
use crate::raftstore::util::region;

/// Snapshots that nobody sends or puts in place for this long are removed.
const SNAPSHOT_AGE_S: u64 = 3_600;

/// What the steps work on.
#[derive(Clone)]
pub struct RegionStore {
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn LogStore>,
    pub snaps: SnapManager,
    /// The form of boundaries in this cluster.
    pub form: BoundaryForm,
}

const SYNCED: WriteOptions = WriteOptions { sync: true, no_slowdown: false };

impl RegionStore {
    /// Writes the region's data to files, as one engine snapshot shows data, applied index and membership.
    pub fn build_snapshot(&self, region_id: u64) -> Result<BuiltSnapshot, SnapError> {
        let corrupt = |what: String| EngineError::Corrupt(format!("region {region_id}: {what}"));
        let snapshot = self.engine.snapshot();
        let read = |key: &[u8]| snapshot.get(Cf::Meta, key, ReadTier::All);
        let missing = || corrupt("there is no record of it".into());
        let state = read(&keys::region_state(region_id))?.ok_or_else(missing)?;
        let state: RegionState = values::decode(&state, "region state")?;
        let apply = read(&keys::apply_state(region_id))?.ok_or_else(missing)?;
        let apply: ApplyState = values::decode(&apply, "apply state")?;
        if state.state() != PeerState::Normal {
            return Err(corrupt(format!("it is {:?}", state.state())).into());
        }
        let described = state.region.ok_or_else(missing)?;
        let meta = region::meta(described.clone(), self.form).map_err(|e| corrupt(e.to_string()))?;
        let key = SnapKey { region_id, term: apply.applied_term, index: apply.applied_index };
        let ranges = ranges::of_region(&meta);
        let manifest = self.snaps.build(&*self.engine, &*snapshot, &key, &described, &ranges)?;
        Ok(BuiltSnapshot { key, region: described, manifest: manifest.encode() })
    }

    /// Replaces the region's log and the data in the range of `clear` by a received snapshot; its files stay.
    pub fn apply_snapshot(
        &self,
        key: &SnapKey,
        clear: &RegionMeta,
        intent: &WriteBatch,
        log: &RegionLogWrite,
        done: &WriteBatch,
    ) -> Result<(), SnapError> {
        self.engine.write(intent, SYNCED)?;
        let _durable = self.log.append(&LogWrite { regions: vec![log.clone()] }, true)?;
        self.snaps.apply(&*self.engine, key, &ranges::of_region(clear))?;
        self.engine.write(done, SYNCED)?;
        Ok(())
    }

    /// Removes what is left of a destroyed peer.
    pub fn destroy(
        &self,
        region_id: u64,
        tombstone: &WriteBatch,
        clear: Option<&RegionMeta>,
        done: &WriteBatch,
    ) -> Result<(), EngineError> {
        self.engine.write(tombstone, SYNCED)?;
        self.log.remove(region_id)?;
        if let Some(meta) = clear {
            for range in ranges::of_region(meta) {
                self.engine.clear_range(range.cf, &range.start, &range.end)?;
            }
        }
        self.engine.write(done, SYNCED)
    }

    /// Removes the files of a snapshot that is in place; what cannot be removed now is swept later.
    pub fn remove_received(&self, key: &SnapKey) {
        if let Err(error) = self.snaps.remove(Side::Received, key) {
            tracing::debug!(snapshot = %key, %error, "files stay for now");
        }
    }

    /// Removes snapshot files that are `age_seconds` old or older and that nobody needs.
    pub fn sweep(&self, age_seconds: u64) -> Result<usize, SnapError> {
        let applying = |key: &SnapKey| {
            let state: Result<Option<RegionState>, EngineError> =
                values::load(&*self.engine, &keys::region_state(key.region_id), "region state");
            // What cannot be read is kept for whoever looks into it.
            state.map_or(true, |s| s.is_some_and(|s| s.state() == PeerState::Applying))
        };
        let keep = |side: Side, key: &SnapKey| side == Side::Received && applying(key);
        self.snaps.sweep(clock::unix_seconds(), age_seconds, keep)
    }
}

/// Does region tasks and answers them.
pub struct RegionRunner {
    store: RegionStore,
    router: Router,
    patience: Patience,
}

impl RegionRunner {
    /// A runner over `store`; `fatal` is told when a task keeps failing.
    pub fn new(store: RegionStore, router: Router, fatal: Fatal) -> RegionRunner {
        RegionRunner { store, router, patience: Patience::new(fatal) }
    }

    /// Does one task; gives it back when it has to be tried again.
    pub fn run(&self, task: Task) -> Option<Task> {
        match &task {
            Task::BuildSnapshot { region_id, .. } => {
                let region_id = *region_id;
                let result = self.store.build_snapshot(region_id).map_err(|e| e.to_string());
                self.router.complete(Input::SnapshotBuilt { region_id, result });
            }
            Task::ApplySnapshot { key, clear, intent, log, done, .. } => {
                if let Err(error) = self.store.apply_snapshot(key, clear, intent, log, done) {
                    tracing::error!(snapshot = %key, %error, "snapshot not put in place; trying again");
                    let what = || format!("snapshot {key} cannot be put in place: {error}");
                    self.patience.failed(key.region_id, what);
                    return Some(task);
                }
                self.patience.succeeded(key.region_id);
                tracing::info!(snapshot = %key, "snapshot is in place");
                self.router.complete(Input::SnapshotApplied { region_id: key.region_id, key: key.clone() });
                self.store.remove_received(key);
            }
            Task::Destroy { region_id, tombstone, clear, done } => {
                let region_id = *region_id;
                if let Err(error) = self.store.destroy(region_id, tombstone, clear.as_deref(), done) {
                    tracing::error!(region = region_id, %error, "peer not removed; trying again");
                    let what = || format!("the peer of region {region_id} cannot be removed: {error}");
                    self.patience.failed(region_id, what);
                    return Some(task);
                }
                self.patience.succeeded(region_id);
                self.router.complete(Input::Destroyed { region_id });
            }
            Task::SendSnapshot { .. }
            | Task::CompactLog { .. }
            | Task::CheckSplit { .. }
            | Task::AskSplit { .. }
            | Task::ReportSplit { .. }
            | Task::Report(_)
            | Task::AskMembership { .. } => {
                tracing::error!(?task, "not a region task");
            }
        }
        None
    }

    /// Removes snapshot files that nobody used for a long time.
    pub fn sweep(&self) {
        match self.store.sweep(SNAPSHOT_AGE_S) {
            Ok(0) => {}
            Ok(n) => tracing::info!(snapshots = n, "removed unused snapshots"),
            Err(error) => tracing::warn!(%error, "unused snapshots could not be removed"),
        }
    }
}
