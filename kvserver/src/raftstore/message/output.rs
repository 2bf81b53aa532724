//! Everything the core wants done.
//!
//! One [`Output`] is reused for every turn of the driver's loop. The order in which a driver carries it out is
//! part of the contract: replies and views first, `early` messages before the disk, the log batch, then (and
//! only with the proof of durability) the messages that waited for it, then apply tasks and background tasks.
//!
//! Invariant (INV-LOG): messages that must wait for the log are inside [`LogBatch`] and come out only of
//! [`LogBatch::persisted`], which needs the [`Durable`] that a log store makes.

use std::sync::Arc;

use kvproto::metapb;

use super::callback::Callback;
use super::input::RegionReport;
use super::peer_message::PeerMessage;
use crate::engine::WriteBatch;
use crate::engine::log_store::{Durable, LogWrite, RegionLogWrite};
use crate::error::RegionError;
use crate::raftstore::apply::ApplyTask;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::raftstore::snap::SnapKey;

/// Log writes of all regions of a turn, with the messages that may leave only afterwards.
#[derive(Debug, Default)]
pub struct LogBatch {
    write: LogWrite,
    sync: bool,
    numbers: Vec<PersistedReady>,
    after: Vec<PeerMessage>,
}

/// Which hand-outs of which peers a log write covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistedReady {
    pub region_id: u64,
    pub peer_id: u64,
    /// The consensus library's number of the hand-out.
    pub number: u64,
    /// Last index the write contained; 0 for none.
    pub last_index: u64,
}

/// Completion of a [`LogBatch`], made only from a proof of durability.
#[derive(Debug)]
pub struct PersistedWrites {
    pub(in crate::raftstore) numbers: Vec<PersistedReady>,
}

impl LogBatch {
    /// Adds one region's part. `sync` is false when nothing of it needs to be on disk before others act on it.
    pub(in crate::raftstore) fn add(&mut self, write: RegionLogWrite, ready: PersistedReady, sync: bool) {
        if !write.entries.is_empty() || write.hard_state.is_some() || write.reset {
            self.write.regions.push(write);
        }
        self.numbers.push(ready);
        self.sync |= sync;
    }

    /// Adds messages that wait for this batch.
    pub(in crate::raftstore) fn hold(&mut self, messages: impl IntoIterator<Item = PeerMessage>) {
        self.after.extend(messages);
    }

    /// True when there is nothing to write and nothing waits.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.after.is_empty()
    }

    /// What is to be written.
    pub fn write(&self) -> &LogWrite {
        &self.write
    }

    /// Whether the write must be on disk before it counts.
    pub fn must_sync(&self) -> bool {
        self.sync
    }

    /// Adds a later batch to this one, so that one disk write serves both.
    pub fn append(&mut self, later: LogBatch) {
        self.write.regions.extend(later.write.regions);
        self.sync |= later.sync;
        self.numbers.extend(later.numbers);
        self.after.extend(later.after);
    }

    /// The messages that waited, and the completion to step into the core. A threaded writer puts the completion
    /// into the inbox before it lets the messages go.
    pub fn persisted(self, _proof: Durable) -> (PersistedWrites, Vec<PeerMessage>) {
        (PersistedWrites { numbers: self.numbers }, self.after)
    }
}

impl PersistedWrites {
    /// True when no peer waits for it.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

/// Work off the raft thread.
#[derive(Debug)]
pub enum Task {
    /// Build a snapshot of the region from an engine snapshot taken when the task runs; `SnapshotBuilt` answers.
    BuildSnapshot { region_id: u64, region: Arc<RegionMeta> },
    /// Stream a snapshot: its message and its files; `SnapshotSent` answers.
    SendSnapshot { key: SnapKey, message: PeerMessage },
    /// Replace the region's data by a received snapshot. In this order, each durable before the next:
    /// `intent` to the engine, `log` to the log store, clear and ingest, `done` to the engine. `SnapshotApplied` answers.
    ApplySnapshot {
        key: SnapKey,
        region: Arc<RegionMeta>,
        /// What is cleared first: the region's range, and what the peer held before beyond it.
        clear: Arc<RegionMeta>,
        intent: WriteBatch,
        log: RegionLogWrite,
        done: WriteBatch,
    },
    /// Sync the engine, then drop log entries `[from, to)`; `LogCompacted` answers.
    CompactLog { region_id: u64, from: u64, to: u64 },
    /// In this order, each durable before the next: `tombstone` to the engine, the log removed, the data of
    /// `clear` removed, `done` to the engine. `Destroyed` answers.
    Destroy { region_id: u64, tombstone: WriteBatch, clear: Option<Arc<RegionMeta>>, done: WriteBatch },
    /// Look whether the region is too large, and where to cut it; with `half` find its middle whatever its size.
    /// `SplitChecked` answers.
    CheckSplit { region: Arc<RegionMeta>, half: bool },
    /// Ask the scheduler for the ids of `count` new regions that the region is to be divided into besides itself;
    /// `SplitIds` answers.
    AskSplit { region: Arc<RegionMeta>, count: u32 },
    /// Tell the scheduler of the regions that a split made, in key order.
    ReportSplit { regions: Vec<metapb::Region> },
    /// Tell the scheduler about a region led here.
    Report(Box<RegionReport>),
    /// Ask the scheduler whether this peer is still a member; `Membership` answers.
    AskMembership { region_id: u64, peer_id: u64 },
}

/// The result of a waiting request.
#[derive(Debug)]
pub struct Reply {
    pub done: Callback<()>,
    pub result: Result<(), RegionError>,
}

/// What the core wants done after a turn.
#[derive(Debug, Default)]
pub struct Output {
    pub replies: Vec<Reply>,
    /// May leave before the disk write: a leader's appends and heartbeats.
    pub early: Vec<PeerMessage>,
    pub log: LogBatch,
    pub apply: Vec<ApplyTask>,
    pub tasks: Vec<Task>,
}

impl Output {
    /// True when the driver has nothing to do.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
            && self.early.is_empty()
            && self.log.is_empty()
            && self.apply.is_empty()
            && self.tasks.is_empty()
    }

    pub(in crate::raftstore) fn reply(&mut self, done: Callback<()>, result: Result<(), RegionError>) {
        self.replies.push(Reply { done, result });
    }
}
