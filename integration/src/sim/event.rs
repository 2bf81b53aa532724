//! What can happen next in the world, and the queue that says when.
//!
//! Invariant: events leave in the order of their time, those of the same time in the order in which they were
//! put in. An event of a store names the incarnation it was meant for; later ones never see it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use kvproto::{metapb, pdpb};
use kvserver::raftstore::message::{Input, PeerMessage};
use kvserver::raftstore::snap::SnapKey;

use super::background::SnapContent;
use super::client::{Outcome, Request};
use super::rng::fold;
use super::txn::TxnEvent;

/// One life of one store's process: position of the store, number of the life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub store: usize,
    pub number: u32,
}

/// A snapshot on the wire.
#[derive(Debug)]
pub struct SnapshotInTransit {
    pub from: Life,
    pub to: usize,
    pub key: SnapKey,
    pub message: PeerMessage,
    pub content: Arc<SnapContent>,
}

/// See the file's head.
#[derive(Debug)]
pub enum Event {
    /// A message reaches a store.
    Deliver {
        to: usize,
        message: Box<PeerMessage>,
    },
    SnapshotArrives(Box<SnapshotInTransit>),
    /// A completion, a hint or an order reaches a store's inbox.
    Input {
        life: Life,
        input: Box<Input>,
    },
    /// The raft thread looks at its inbox.
    Turn(Life),
    /// A tick of the store is due.
    Tick(Life),
    /// The log write under way has reached the disk.
    LogWritten(Life),
    /// The apply under way is in the engine.
    AppliedWritten(Life),
    /// A background task does its next step.
    Task {
        life: Life,
        task: u64,
    },
    /// The engine flushes by itself.
    Flush(Life),
    Restart(usize),
    /// A store that was away is back.
    Return(usize),

    /// A client begins an operation, or tries again.
    ClientWakes(usize),
    /// The scheduler's answer about a key reaches a client.
    ClientLocates {
        client: usize,
        attempt: u64,
    },
    RequestArrives {
        store: usize,
        request: Box<Request>,
    },
    /// A request at a store goes on.
    RequestStep {
        life: Life,
        attempt: u64,
    },
    Response {
        client: usize,
        attempt: u64,
        outcome: Outcome,
    },

    /// A leader's report reaches the scheduler.
    RegionHeartbeat {
        from: usize,
        request: Box<pdpb::RegionHeartbeatRequest>,
    },
    /// A leader's wish for ids reaches the scheduler.
    AskSplit {
        life: Life,
        region: Box<metapb::Region>,
        count: u32,
    },
    /// What a split made reaches the scheduler.
    ReportSplit(Vec<metapb::Region>),
    StoreHeartbeat(Life),
    /// An order of the scheduler reaches a store, perhaps long after it was given.
    Order {
        store: usize,
        order: Box<pdpb::RegionHeartbeatResponse>,
    },
    SchedulerTick,
    /// Another scheduler leads from now on.
    SchedulerTakesOver,

    /// Something about transactions.
    Txn(TxnEvent),

    Nemesis,
    /// All links are whole again.
    Mend,
    /// Checks that cost too much to do after every event.
    Probe,
}

impl Event {
    /// A small number for what it is about, for the trace.
    pub fn tag(&self) -> u64 {
        match self {
            Event::Deliver { to, .. } => 0x100 + *to as u64,
            Event::SnapshotArrives(transit) => 0x200 + transit.to as u64,
            Event::Input { life, .. } => 0x300 + life.store as u64,
            Event::Turn(life) => 0x400 + life.store as u64,
            Event::Tick(life) => 0x500 + life.store as u64,
            Event::LogWritten(life) => 0x600 + life.store as u64,
            Event::AppliedWritten(life) => 0x700 + life.store as u64,
            Event::Task { life, .. } => 0x800 + life.store as u64,
            Event::Flush(life) => 0x900 + life.store as u64,
            Event::Restart(store) => 0xa00 + *store as u64,
            Event::ClientWakes(client) => 0xb00 + *client as u64,
            Event::RequestArrives { store, .. } => 0xc00 + *store as u64,
            Event::RequestStep { life, .. } => 0xd00 + life.store as u64,
            Event::Response { client, .. } => 0xe00 + *client as u64,
            Event::RegionHeartbeat { from, .. } => 0xf00 + *from as u64,
            Event::StoreHeartbeat(life) => 0x1000 + life.store as u64,
            Event::SchedulerTick => 0x1100,
            Event::SchedulerTakesOver => 0x1200,
            Event::Nemesis => 0x1300,
            Event::Probe => 0x1400,
            Event::Mend => 0x1500,
            Event::Order { store, .. } => 0x1600 + *store as u64,
            Event::Return(store) => 0x1700 + *store as u64,
            Event::AskSplit { life, .. } => 0x1900 + life.store as u64,
            Event::ReportSplit(regions) => 0x1a00 + regions.len() as u64,
            Event::Txn(event) => fold(0x1b00, event.tag()),
            Event::ClientLocates { client, .. } => 0x1800 + *client as u64,
        }
    }
}

struct Scheduled {
    at_ns: u64,
    seq: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.seq).cmp(&(other.at_ns, other.seq))
    }
}

/// The future.
#[derive(Default)]
pub struct Queue {
    heap: BinaryHeap<Reverse<Scheduled>>,
    seq: u64,
}

impl Queue {
    /// `event` will happen at `at_ns`.
    pub fn push(&mut self, at_ns: u64, event: Event) {
        self.seq += 1;
        self.heap.push(Reverse(Scheduled { at_ns, seq: self.seq, event }));
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|Reverse(s)| (s.at_ns, s.event))
    }
}
