//! One simulated store: what survives a crash, and the process that runs between two crashes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kvproto::key::BoundaryForm;
use kvserver::clock::Now;
use kvserver::engine::EngineError;
use kvserver::engine::mem::MemEngine;
use kvserver::raftstore::Shard;
use kvserver::raftstore::apply::{Applier, ApplyTask};
use kvserver::raftstore::message::{Input, LogBatch, Output};
use kvserver::raftstore::meta::keys;
use kvserver::raftstore::meta::region_view::{RegionMeta, RegionView, ViewRegistry};
use kvserver::raftstore::meta::values::{self, ApplyState, PeerState, RegionState};
use kvserver::raftstore::util::region;
use kvserver::storage::raft_storage::region_reader::RegionReader;

use super::background::{Background, MemFiles};
use super::disk::SimLog;
use super::event::Life;
use super::plan::StoreMode;
use super::serve::Attempt;
use super::txn::serve::TxnProcess;

/// What is there whether or not the process runs.
pub struct Store {
    /// Its id in the cluster; its position in the world plus 1.
    pub id: u64,
    pub mode: StoreMode,
    pub form: BoundaryForm,
    pub engine: MemEngine,
    pub log: Arc<SimLog>,
    pub files: MemFiles,
    /// Last index of the snapshot taken in last, by region.
    pub snapshot_index: BTreeMap<u64, u64>,
    /// Lives so far.
    pub lives: u32,
    /// Stopped by the operating system until then; nothing of it runs.
    pub paused_until_ns: u64,
    pub process: Option<Process>,
}

/// What a crash takes.
pub struct Process {
    pub shard: Shard,
    pub applier: Applier,
    pub views: Arc<ViewRegistry>,
    pub reader: Arc<RegionReader>,
    pub txn: TxnProcess,
    pub inbox: VecDeque<Input>,
    pub out: Output,
    pub turn_scheduled: bool,
    /// When the next tick event comes.
    pub tick_at_ns: u64,
    /// Log writes in order; the first `writing` are under way.
    pub log_queue: VecDeque<LogBatch>,
    pub writing: usize,
    /// Applies in order; the first `applying` are under way.
    pub apply_queue: VecDeque<ApplyTask>,
    pub applying: usize,
    pub tasks: BTreeMap<u64, Background>,
    pub attempts: BTreeMap<u64, Attempt>,
    /// Only for a deliberate mistake: the last view with a lease by region, and the one before its last split.
    pub kept: BTreeMap<u64, (Arc<RegionView>, Option<Arc<RegionView>>)>,
    /// Keys that a command holds, with its attempt.
    pub latches: BTreeMap<Vec<u8>, u64>,
}

impl Store {
    /// A new store with an empty disk.
    pub fn new(position: usize, mode: StoreMode, form: BoundaryForm, lying_disk: bool) -> Store {
        Store {
            id: position as u64 + 1,
            mode,
            form,
            engine: MemEngine::new(),
            log: SimLog::new(lying_disk),
            files: MemFiles::default(),
            snapshot_index: BTreeMap::new(),
            lives: 0,
            paused_until_ns: 0,
            process: None,
        }
    }

    /// The newest views of its peers, by region.
    pub fn views(&self) -> Vec<Arc<RegionView>> {
        let Some(process) = &self.process else { return Vec::new() };
        process.shard.regions().filter_map(|id| Some(process.views.get(id)?.1)).collect()
    }

    /// Only for a deliberate mistake: views with leases outlive the split of their region.
    pub fn keep_old_leases(&mut self, views: &[Arc<RegionView>], now: Now) {
        let Some(process) = &mut self.process else { return };
        for view in views.iter().filter(|view| view.serves) {
            let known = process.kept.entry(view.meta.region.id).or_insert((view.clone(), None));
            if known.0.meta.version() < view.meta.version() {
                *known = (view.clone(), Some(known.0.clone()));
            } else if view.lease_alive(now) {
                known.0 = view.clone();
            }
        }
    }

    /// A region as the engine's records describe it, and how far it is applied; `None` without data.
    pub fn region_on_disk(&self, region_id: u64) -> Result<Option<(RegionMeta, ApplyState)>, EngineError> {
        let state: Option<RegionState> =
            values::load(&self.engine, &keys::region_state(region_id), "region state")?;
        let apply: Option<ApplyState> =
            values::load(&self.engine, &keys::apply_state(region_id), "apply state")?;
        let (Some(state), Some(apply)) = (state, apply) else { return Ok(None) };
        let region = match (state.state(), state.region) {
            (PeerState::Normal, Some(region)) => region,
            _ => return Ok(None),
        };
        let meta = region::meta(region, self.form).map_err(|e| EngineError::Corrupt(e.to_string()))?;
        Ok(Some((meta, apply)))
    }

    /// The present life.
    pub fn life(&self) -> Life {
        Life { store: self.id as usize - 1, number: self.lives }
    }

    /// True while the process exists, paused or not.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// True when the store could do something at this instant.
    pub fn runs(&self, now_ns: u64) -> bool {
        self.is_up() && now_ns >= self.paused_until_ns
    }
}

impl Process {
    /// True while the raft thread waits for its disk.
    pub fn is_blocked(&self, mode: StoreMode) -> bool {
        mode.inline && (self.writing > 0 || self.applying > 0)
    }
}
