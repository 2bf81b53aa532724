//! Everything that can happen to the core.
//!
//! Requests and peer messages may be refused or dropped on the way here; completions (`Persisted`, `Applied`,
//! `Snapshot…`, `LogCompacted`, `Destroyed`) never are (INV-DROP).

use std::sync::Arc;

use bytes::Bytes;
use kvproto::{metapb, pdpb};

use super::callback::Callback;
use super::output::PersistedWrites;
use super::peer_message::PeerMessage;
use super::write_set::WriteSet;
use crate::engine::RangeEstimate;
use crate::raftstore::apply::Applied;
use crate::raftstore::meta::values::RegionStatus;
use crate::raftstore::snap::SnapKey;

/// Where a client believes its keys to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionContext {
    pub region_id: u64,
    /// The region version the client knows; checked for every command.
    pub version: u64,
    pub conf_ver: u64,
    /// The peer and store the request was meant for; 0 when the client did not say.
    pub peer_id: u64,
    pub store_id: u64,
    /// The term the client believes in; 0 when it did not say.
    pub term: u64,
}

/// A write to be replicated.
#[derive(Debug)]
pub struct Propose {
    pub ctx: RegionContext,
    pub write: WriteSet,
    pub done: Callback<()>,
}

/// A wish to read: answered once a quorum confirmed the leader and everything committed before is applied.
#[derive(Debug)]
pub struct ReadRequest {
    pub ctx: RegionContext,
    pub done: Callback<()>,
}

/// A wish to divide a region. Answered with the regions that stand in its place, in key order, once that is applied
/// on the leader.
#[derive(Debug)]
pub struct SplitRequest {
    pub ctx: RegionContext,
    /// Where to cut: keys as clients write them, each inside the region.
    pub keys: Vec<Bytes>,
    pub done: Callback<Vec<metapb::Region>>,
}

/// The ids for one of the regions that a split makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitIds {
    pub region_id: u64,
    /// One for each peer of the region that is divided, in the order of its peers.
    pub peer_ids: Vec<u64>,
}

/// What a look at a region's data found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitCheck {
    /// How much the region holds; an estimate.
    pub size: RangeEstimate,
    /// Where to cut, as clients write keys, ascending; empty when the region is small enough.
    pub split_keys: Vec<Bytes>,
}

/// An order of the scheduler for one region.
#[derive(Clone, Debug, PartialEq)]
pub enum RegionCommand {
    /// Add or remove one replica.
    ChangePeer { kind: ChangePeerKind, peer: metapb::Peer },
    /// Hand leadership to `peer`.
    TransferLeader { peer: metapb::Peer },
    /// Divide the region at these boundaries, or in half when there are none.
    Split { boundaries: Vec<Bytes> },
}

/// One step of membership change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangePeerKind {
    /// A replica that receives the log and does not vote.
    AddLearner,
    /// A voter; promotes a learner.
    AddVoter,
    Remove,
}

/// A snapshot that was built and waits to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct BuiltSnapshot {
    pub key: SnapKey,
    pub region: metapb::Region,
    /// The manifest: which files there are, their sizes and checksums.
    pub manifest: Bytes,
}

/// What the scheduler says about a region that a peer has doubts about.
#[derive(Clone, Debug, PartialEq)]
pub enum MembershipAnswer {
    /// The region as the scheduler knows it.
    Region(metapb::Region),
    /// The scheduler could not be asked; try again later.
    Unknown,
}

/// One event.
#[derive(Debug)]
pub enum Input {
    /// A message from a peer on another store.
    Raft(PeerMessage),
    Propose(Propose),
    Read(ReadRequest),
    Split(SplitRequest),
    /// An order from the scheduler, with the epoch it was given for.
    Command {
        region_id: u64,
        epoch: metapb::RegionEpoch,
        command: RegionCommand,
    },

    /// Log writes that are durable now.
    Persisted(PersistedWrites),
    /// Committed entries whose effects are in the engine now.
    Applied(Applied),
    /// A snapshot asked for with `Task::BuildSnapshot`.
    SnapshotBuilt {
        region_id: u64,
        result: Result<BuiltSnapshot, String>,
    },
    /// A snapshot reached `to_peer`, or did not.
    SnapshotSent {
        region_id: u64,
        to_peer: u64,
        ok: bool,
    },
    /// The data of a snapshot is in the engine.
    SnapshotApplied {
        region_id: u64,
        key: SnapKey,
    },
    /// Old log entries are gone; the log of the region now begins at `first_index`.
    LogCompacted {
        region_id: u64,
        first_index: u64,
    },
    /// A destroyed peer's log and data are gone.
    Destroyed {
        region_id: u64,
    },

    /// Messages to this store get lost: slow down to its peers.
    Unreachable {
        store_id: u64,
    },
    /// The store's process is gone: its connection broke and cannot be made again.
    StoreLost {
        store_id: u64,
    },
    /// The store answers again.
    StoreBack {
        store_id: u64,
    },
    /// The answer to `Task::CheckSplit`, with the region version it was asked for.
    SplitChecked {
        region_id: u64,
        version: u64,
        result: Result<SplitCheck, String>,
    },
    /// The scheduler's answer to `Task::AskSplit`.
    SplitIds {
        region_id: u64,
        version: u64,
        result: Result<Vec<SplitIds>, String>,
    },
    /// The scheduler's answer to `Task::AskMembership`.
    Membership {
        region_id: u64,
        peer_id: u64,
        answer: MembershipAnswer,
    },
    /// Report every region that is led here, now (the scheduler asks anew after its restart).
    HeartbeatAll,
    /// What a peer looks like inside, for the status page.
    Inspect {
        region_id: u64,
        done: Callback<Arc<RegionStatus>>,
    },
}

/// What a leader tells the scheduler of its region.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegionReport {
    pub region: metapb::Region,
    pub leader: metapb::Peer,
    pub term: u64,
    /// Peers that do not answer, with the seconds since they last did.
    pub down: Vec<pdpb::PeerStats>,
    /// Peers that lag behind or wait for a snapshot.
    pub pending: Vec<metapb::Peer>,
    pub bytes_written: u64,
    pub keys_written: u64,
    /// What the region held when it was last looked at.
    pub size: Option<RangeEstimate>,
}
