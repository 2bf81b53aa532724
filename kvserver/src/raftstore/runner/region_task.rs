//! The slow work on one region: building a snapshot, putting one in place, removing what is left of a peer.
//!
//! The steps and their order are in `region_steps`. What fails is tried again by the worker that called; what keeps
//! failing ends the store, since completions of these tasks are never lost.

use std::sync::Arc;

use bytes::Bytes;
use kvproto::key::BoundaryForm;
use kvproto::metapb;

use super::patience::Patience;
use super::region_steps::{RegionSteps, RemovalJob, SnapFiles, SnapshotJob};
use crate::clock;
use crate::engine::log_store::LogStore;
use crate::engine::{Engine, EngineError, Snapshot};
use crate::raftstore::message::{Input, Task};
use crate::raftstore::meta::keys;
use crate::raftstore::meta::values::{self, PeerState, RegionState};
use crate::raftstore::raft_worker::Fatal;
use crate::raftstore::router::Router;
use crate::raftstore::snap::{CfRange, Side, SnapError, SnapKey, SnapManager};

/// Snapshots that nobody sends or puts in place for this long are removed.
const SNAPSHOT_AGE_S: u64 = 3_600;

/// What the work is done on.
#[derive(Clone)]
pub struct RegionStore {
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn LogStore>,
    pub snaps: SnapManager,
    /// The form of boundaries in this cluster.
    pub form: BoundaryForm,
}

impl SnapFiles for SnapManager {
    fn build(
        &self,
        engine: &dyn Engine,
        snapshot: &dyn Snapshot,
        key: &SnapKey,
        region: &metapb::Region,
        ranges: &[CfRange],
    ) -> Result<Bytes, SnapError> {
        SnapManager::build(self, engine, snapshot, key, region, ranges).map(|manifest| manifest.encode())
    }

    fn apply(&self, engine: &dyn Engine, key: &SnapKey, ranges: &[CfRange]) -> Result<(), SnapError> {
        SnapManager::apply(self, engine, key, ranges)
    }

    fn remove_received(&self, key: &SnapKey) {
        if let Err(error) = self.remove(Side::Received, key) {
            tracing::debug!(snapshot = %key, %error, "files stay for now");
        }
    }
}

impl RegionStore {
    /// The steps of the work, over this store.
    pub fn steps(&self) -> RegionSteps {
        let files: Arc<dyn SnapFiles> = Arc::new(self.snaps.clone());
        RegionSteps { engine: self.engine.clone(), log: self.log.clone(), files, form: self.form }
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
    steps: RegionSteps,
    router: Router,
    patience: Patience,
}

impl RegionRunner {
    /// A runner over `store`; `fatal` is told when a task keeps failing.
    pub fn new(store: RegionStore, router: Router, fatal: Fatal) -> RegionRunner {
        RegionRunner { steps: store.steps(), store, router, patience: Patience::new(fatal) }
    }

    /// Does one task; gives it back when it has to be tried again.
    pub fn run(&self, task: Task) -> Option<Task> {
        match &task {
            Task::BuildSnapshot { region_id, .. } => {
                let region_id = *region_id;
                let result = self.steps.build_snapshot(region_id).map_err(|e| e.to_string());
                self.router.complete(Input::SnapshotBuilt { region_id, result });
            }
            Task::ApplySnapshot { key, clear, intent, log, done, .. } => {
                let job = SnapshotJob { key, clear, intent, log, done };
                if let Err(error) = self.steps.apply_snapshot(&job) {
                    tracing::error!(snapshot = %key, %error, "snapshot not put in place; trying again");
                    let what = || format!("snapshot {key} cannot be put in place: {error}");
                    self.patience.failed(key.region_id, what);
                    return Some(task);
                }
                self.patience.succeeded(key.region_id);
                tracing::info!(snapshot = %key, "snapshot is in place");
                self.router.complete(Input::SnapshotApplied { region_id: key.region_id, key: key.clone() });
                self.steps.files.remove_received(key);
            }
            Task::Destroy { region_id, tombstone, clear, done } => {
                let region_id = *region_id;
                let job = RemovalJob { region_id, tombstone, clear: clear.as_deref(), done };
                if let Err(error) = self.steps.destroy(&job) {
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
