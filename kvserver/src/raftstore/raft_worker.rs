//! The thread that runs a shard.
//!
//! Owns the loop: take everything that arrived, let time pass, step, collect, and carry the effects out in the
//! order the contract asks for. The log is written and entries are applied right here or on threads of their own;
//! the core does not know which. One disk write with one sync serves all regions of a turn.
//!
//! Invariants: a turn reads the clock once; nothing here blocks but the log write and the engine write of the
//! inline modes; when the engine refuses a batch the loop keeps ticking and new work is refused beyond a bound,
//! heartbeats never.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::apply::Applier;
use super::apply_worker::{ApplyDriver, ApplyWorker};
use super::inbox::Inbox;
use super::log_writer::LogWriter;
use super::message::{Input, Output, PeerMessage, Task};
use super::raftstore::Shard;
use super::router::Router;
use crate::clock::{self, Now};
use crate::engine::log_store::LogStore;
use crate::engine::{Engine, EngineError};
use crate::error::RegionError;

/// Committed entries that may wait to be applied before new ones are refused, bytes.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
/// How soon a batch that the engine refused is tried again, milliseconds.
const RETRY_MS: u64 = 5;

/// Carries messages to other stores. Never blocks; may lose messages.
pub trait Transport: Send + Sync {
    /// Takes all of `messages`.
    fn send(&self, messages: &mut Vec<PeerMessage>);
}

/// Carries out background tasks. Never blocks; never loses a task.
pub trait TaskSink: Send + Sync {
    /// Takes all of `tasks`.
    fn run(&self, tasks: &mut Vec<Task>);
}

/// Told once when the store cannot go on (a disk that fails): the process should end.
pub type Fatal = Arc<dyn Fn(String) + Send + Sync>;

/// What a worker needs.
pub struct WorkerOptions {
    pub store_id: u64,
    pub shard: Shard,
    pub applier: Applier,
    /// The effects of loading the shard.
    pub first: Output,
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn LogStore>,
    pub router: Router,
    pub inbox: Arc<Inbox>,
    pub transport: Arc<dyn Transport>,
    pub tasks: Arc<dyn TaskSink>,
    pub fatal: Fatal,
    /// Write the log on a thread of its own.
    pub threaded_log: bool,
    /// Apply on a thread of its own.
    pub threaded_apply: bool,
}

/// Ends the store when the thread that holds this panics: what the thread held is gone, and whoever waits for it would
/// wait for ever.
pub struct EndOnPanic {
    pub thread: &'static str,
    pub fatal: Fatal,
}

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.fatal)(format!("the {} thread panicked", self.thread));
        }
    }
}

enum Log {
    Inline(Arc<dyn LogStore>),
    Threaded(LogWriter),
}

enum Apply {
    Inline(ApplyDriver),
    Threaded(ApplyWorker),
}

/// A running shard.
pub struct RaftWorker {
    inbox: Arc<Inbox>,
    thread: JoinHandle<()>,
}

impl RaftWorker {
    /// Starts the shard's thread, and those of the log and the apply when they are to have one.
    pub fn start(o: WorkerOptions) -> std::io::Result<RaftWorker> {
        let name = |what: &str| format!("{what}-{}", o.store_id);
        let log = if o.threaded_log {
            let (router, transport) = (o.router.clone(), o.transport.clone());
            Log::Threaded(LogWriter::start(name("raftlog"), o.log, router, transport, o.fatal.clone())?)
        } else {
            Log::Inline(o.log)
        };
        let driver = ApplyDriver::new(o.applier, o.engine);
        let apply = if o.threaded_apply {
            Apply::Threaded(ApplyWorker::start(name("apply"), driver, o.router, o.fatal.clone())?)
        } else {
            Apply::Inline(driver)
        };
        let thread = std::thread::Builder::new().name(name("raft"));
        let (inbox, transport, tasks) = (o.inbox.clone(), o.transport, o.tasks);
        let mut turn = Turn { shard: o.shard, out: o.first, log, apply, transport, tasks, stalled: false };
        let fatal = o.fatal;
        let thread = thread.spawn(move || {
            let _end_on_panic = EndOnPanic { thread: "raft", fatal: fatal.clone() };
            if let Err(error) = turn.run(&inbox) {
                inbox.close();
                fatal(error.to_string());
            }
            turn.stop();
        })?;
        Ok(RaftWorker { inbox: o.inbox, thread })
    }

    /// Finishes what has arrived and ends the threads.
    pub fn stop(self) {
        self.inbox.close();
        // A panic there has been reported by the panic hook; there is nothing left to save.
        drop(self.thread.join());
    }
}

struct Turn {
    shard: Shard,
    out: Output,
    log: Log,
    apply: Apply,
    transport: Arc<dyn Transport>,
    tasks: Arc<dyn TaskSink>,
    /// The engine refused a batch; it is tried again soon.
    stalled: bool,
}

impl Turn {
    fn run(&mut self, inbox: &Inbox) -> Result<(), EngineError> {
        let mut batch = Vec::new();
        loop {
            let now = clock::now();
            self.shard.advance_to(now, &mut self.out);
            let overloaded = self.backlog_bytes() > BACKLOG_BYTES_MAX;
            for input in batch.drain(..) {
                match if overloaded { self.refuse(input) } else { Some(input) } {
                    Some(input) => self.shard.step(now, input, &mut self.out),
                    None => continue,
                }
            }
            self.carry_out(now)?;
            let retry = self.stalled.then(|| clock::now().plus_ms(RETRY_MS));
            let deadline = [self.shard.next_deadline(), retry].into_iter().flatten().min();
            if !inbox.take(&mut batch, deadline) {
                return Ok(());
            }
        }
    }

    fn backlog_bytes(&self) -> usize {
        match &self.apply {
            Apply::Inline(driver) => driver.backlog_bytes(),
            Apply::Threaded(worker) => worker.backlog_bytes(),
        }
    }

    /// Too much waits to be applied: what would add to it is dropped or refused, everything else goes on.
    fn refuse(&mut self, input: Input) -> Option<Input> {
        match input {
            Input::Propose(p) => {
                p.done.call(Err(RegionError::ServerIsBusy {
                    reason: "the engine is behind with writes".into(),
                }));
                None
            }
            Input::Raft(m) if m.raft().is_some_and(|r| !r.entries.is_empty()) => None,
            other => Some(other),
        }
    }

    /// Carries effects out until there are no more.
    fn carry_out(&mut self, now: Now) -> Result<(), EngineError> {
        loop {
            self.shard.collect(&mut self.out);
            for reply in self.out.replies.drain(..) {
                reply.done.call(reply.result);
            }
            if !self.out.early.is_empty() {
                self.transport.send(&mut self.out.early);
            }
            if !self.out.tasks.is_empty() {
                self.tasks.run(&mut self.out.tasks);
            }
            let wrote = self.write_log(now)?;
            let applied = self.apply(now)?;
            if !wrote && !applied {
                return Ok(());
            }
        }
    }

    /// Writes the log; true when completions were stepped in.
    fn write_log(&mut self, now: Now) -> Result<bool, EngineError> {
        if self.out.log.is_empty() {
            return Ok(false);
        }
        let batch = std::mem::take(&mut self.out.log);
        match &self.log {
            Log::Threaded(writer) => {
                writer.push(batch);
                Ok(false)
            }
            Log::Inline(log) => {
                let durable = log.append(batch.write(), batch.must_sync())?;
                let (writes, mut after) = batch.persisted(durable);
                self.transport.send(&mut after);
                self.shard.step(now, Input::Persisted(writes), &mut self.out);
                Ok(true)
            }
        }
    }

    /// Applies committed entries; true when outcomes were stepped in.
    fn apply(&mut self, now: Now) -> Result<bool, EngineError> {
        match &mut self.apply {
            Apply::Threaded(worker) => {
                if !self.out.apply.is_empty() {
                    worker.push(&mut self.out.apply);
                }
                Ok(false)
            }
            Apply::Inline(driver) => {
                driver.push(self.out.apply.drain(..));
                if !driver.has_work() {
                    return Ok(false);
                }
                let (shard, out) = (&mut self.shard, &mut self.out);
                let done = driver.run(true, |applied| shard.step(now, Input::Applied(applied), out))?;
                self.stalled = !done;
                Ok(done)
            }
        }
    }

    fn stop(self) {
        if let Log::Threaded(writer) = self.log {
            writer.stop();
        }
        if let Apply::Threaded(worker) = self.apply {
            worker.stop();
        }
    }
}
