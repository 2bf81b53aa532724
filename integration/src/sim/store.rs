//! One simulated store: what survives a crash, and the process that runs between two crashes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kvserver::engine::mem::MemEngine;
use kvserver::raftstore::Shard;
use kvserver::raftstore::apply::{Applier, ApplyTask};
use kvserver::raftstore::message::{Input, LogBatch, Output};
use kvserver::raftstore::meta::region_view::ViewRegistry;
use kvserver::raftstore::snap::SnapKey;

use super::background::{Background, SnapContent};
use super::disk::SimLog;
use super::event::Life;
use super::plan::StoreMode;
use super::serve::Attempt;

/// What is there whether or not the process runs.
pub struct Store {
    /// Its id in the cluster; its position in the world plus 1.
    pub id: u64,
    pub mode: StoreMode,
    pub engine: MemEngine,
    pub log: Arc<SimLog>,
    /// Received snapshots, complete and on the disk.
    pub received: BTreeMap<SnapKey, Arc<SnapContent>>,
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
    /// Snapshots that were built and may be sent.
    pub built: BTreeMap<SnapKey, Arc<SnapContent>>,
    pub attempts: BTreeMap<u64, Attempt>,
    /// Keys that a command holds, with its attempt.
    pub latches: BTreeMap<Vec<u8>, u64>,
}

impl Store {
    /// A new store with an empty disk.
    pub fn new(position: usize, mode: StoreMode, lying_disk: bool) -> Store {
        Store {
            id: position as u64 + 1,
            mode,
            engine: MemEngine::new(),
            log: SimLog::new(lying_disk),
            received: BTreeMap::new(),
            snapshot_index: BTreeMap::new(),
            lives: 0,
            paused_until_ns: 0,
            process: None,
        }
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
