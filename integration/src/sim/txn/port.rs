//! What simulated tasks ask of the world: timestamps, time, messages, and for stores the raftstore.
//!
//! A task leaves an [`Effect`] at its port and waits for the answer, which the world delivers at a later event. Clocks
//! that tasks read are set by the world before each poll.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use kvclient::region_cache::Region;
use kvproto::kvrpcpb::ApiVersion;
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use kvserver::clock::Now;
use kvserver::error::RegionResult;
use kvserver::raftstore::message::{Callback, Propose, ReadRequest, WriteSet};
use kvserver::raftstore::meta::region_view::RegionMeta;
use kvserver::storage::raft_storage::region_reader::RegionReader;
use kvserver::storage::{RegionContext, RegionSnapshot, Storage};
use kvserver::txn::edge::{Oracle, Timer};
use kvserver::txn::raw::Offload;
use parking_lot::Mutex;

use super::executor::Home;
use crate::sim::plan::MS;

/// What a client hears of a request.
#[derive(Debug)]
pub enum Heard {
    Answer(Option<Box<Answer>>),
    /// Nobody took the request.
    NotSent,
    /// The connection broke before the answer.
    Broken,
}

/// See the file's head.
pub enum Effect {
    /// A confirmation of a store's leadership.
    Confirm(ReadRequest),
    Propose(Propose),
    /// What a store found out for a call.
    Answer {
        call: u64,
        answer: Option<Box<Answer>>,
    },
    /// Work for the read pool.
    Job(Box<dyn FnOnce() + Send>),
    /// A fresh timestamp of the scheduler; `None` when there is no answer.
    Timestamp(oneshot::Sender<Option<u64>>),
    /// A pause, nanoseconds.
    Sleep(u64, oneshot::Sender<()>),
    /// The region of a key, as the scheduler knows it.
    Locate(bytes::Bytes, oneshot::Sender<Option<Region>>),
    /// A request to the store at this position.
    Send {
        store: usize,
        cmd: Box<Cmd>,
        heard: oneshot::Sender<Heard>,
    },
}

/// Effects that the world has not looked at yet, with who asks.
pub type Effects = Arc<Mutex<VecDeque<(Home, Effect)>>>;

/// One task's way to the world. Clones share everything.
#[derive(Clone)]
pub struct Port {
    pub home: Home,
    pub effects: Effects,
    /// What the clock of its machine shows, nanoseconds.
    pub clock: Arc<AtomicU64>,
}

impl Port {
    /// Leaves an effect.
    pub fn leave(&self, effect: Effect) {
        self.effects.lock().push_back((self.home, effect));
    }

    /// A fresh timestamp; `None` when the scheduler does not answer.
    pub fn timestamp(&self) -> impl Future<Output = Option<u64>> + Send + use<> {
        let (tx, rx) = oneshot::channel();
        self.leave(Effect::Timestamp(tx));
        async move { rx.await.ok().flatten() }
    }

    /// Ready after so many nanoseconds.
    pub fn sleep(&self, ns: u64) -> impl Future<Output = ()> + Send + use<> {
        let (tx, rx) = oneshot::channel();
        self.leave(Effect::Sleep(ns, tx));
        async move { rx.await.unwrap_or(()) }
    }

    /// What the clock shows.
    pub fn now(&self) -> Now {
        Now(self.clock.load(Ordering::Relaxed))
    }
}

impl Oracle for Port {
    fn timestamp(&self) -> BoxFuture<'static, Result<u64, String>> {
        let answer = Port::timestamp(self);
        async move { answer.await.ok_or_else(|| "the scheduler does not answer".to_string()) }.boxed()
    }
}

impl Timer for Port {
    fn now(&self) -> Now {
        Port::now(self)
    }

    fn sleep(&self, ms: u64) -> BoxFuture<'static, ()> {
        Port::sleep(self, ms * MS).boxed()
    }
}

impl Offload for Port {
    fn offload(&self, job: Box<dyn FnOnce() + Send>) -> bool {
        self.leave(Effect::Job(job));
        true
    }
}

/// The regions of one life of a store.
pub struct SimStorage {
    pub port: Port,
    pub reader: Arc<RegionReader>,
    pub api: ApiVersion,
}

impl Storage for SimStorage {
    fn api(&self) -> ApiVersion {
        self.api
    }

    fn region(&self, ctx: &RegionContext) -> RegionResult<Arc<RegionMeta>> {
        self.reader.region(ctx)
    }

    fn lease_snapshot(&self, ctx: &RegionContext) -> RegionResult<Option<RegionSnapshot>> {
        let Some(begun) = self.reader.begin(ctx)? else { return Ok(None) };
        Ok(self.reader.take_snapshot(begun).end(self.port.now()))
    }

    fn confirm(&self, ctx: &RegionContext, done: Callback<()>) {
        self.port.leave(Effect::Confirm(ReadRequest { ctx: *ctx, done }));
    }

    fn confirmed_snapshot(&self, ctx: &RegionContext) -> RegionResult<RegionSnapshot> {
        self.reader.confirmed_snapshot(ctx)
    }

    fn write(&self, ctx: &RegionContext, write: WriteSet, done: Callback<()>) {
        self.port.leave(Effect::Propose(Propose { ctx: *ctx, write, done }));
    }
}
