//! Carrying out apply tasks: entries become one engine batch, the batch is written, the outcome goes back.
//!
//! [`ApplyDriver`] owns the applier and the tasks that wait; the shard's thread runs it inline, [`ApplyWorker`] on
//! a thread of its own. Invariants: an outcome is given out only after its batch is written (and synced when it
//! must be); a batch the engine refuses for now is kept whole and tried again, and nothing behind it overtakes it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::apply::{Applied, Applier, ApplyTask};
use super::message::Input;
use super::raft_worker::{EndOnPanic, Fatal};
use super::router::Router;
use crate::engine::{Engine, EngineError, WriteBatch, WriteOptions};

/// A batch is written once it holds this many bytes.
const BATCH_BYTES: usize = 4 << 20;

fn bytes(task: &ApplyTask) -> usize {
    match task {
        ApplyTask::Entries { entries, .. } => entries.iter().map(|e| e.data.len()).sum(),
        ApplyTask::Register { .. } | ApplyTask::Remove { .. } => 0,
    }
}

/// See the file's head.
pub struct ApplyDriver {
    applier: Applier,
    engine: Arc<dyn Engine>,
    waiting: VecDeque<ApplyTask>,
    waiting_bytes: usize,
    batch: WriteBatch,
    outcomes: Vec<Applied>,
}

impl ApplyDriver {
    /// A driver without work.
    pub fn new(applier: Applier, engine: Arc<dyn Engine>) -> ApplyDriver {
        let (waiting, batch, outcomes) = (VecDeque::new(), WriteBatch::new(), Vec::new());
        ApplyDriver { applier, engine, waiting, waiting_bytes: 0, batch, outcomes }
    }

    /// Adds tasks behind those that wait.
    pub fn push(&mut self, tasks: impl IntoIterator<Item = ApplyTask>) {
        for task in tasks {
            self.waiting_bytes += bytes(&task);
            self.waiting.push_back(task);
        }
    }

    /// Bytes of entries that wait, the batch being written included.
    pub fn backlog_bytes(&self) -> usize {
        self.waiting_bytes + self.batch.bytes()
    }

    /// True when there is something to do.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.outcomes.is_empty()
    }

    /// Applies one batch's worth of what waits and gives each outcome to `done`. False when the engine is too busy:
    /// try again later.
    pub fn run(&mut self, no_slowdown: bool, mut done: impl FnMut(Applied)) -> Result<bool, EngineError> {
        while self.batch.bytes() < BATCH_BYTES {
            let Some(task) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= bytes(&task);
            self.outcomes.extend(self.applier.apply(task, &mut self.batch));
        }
        let sync = self.outcomes.iter().any(Applied::must_sync);
        if !self.batch.is_empty() {
            match self.engine.write(&self.batch, WriteOptions { sync, no_slowdown }) {
                Ok(()) => self.batch.clear(),
                Err(EngineError::Stalled) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.outcomes.drain(..).for_each(&mut done);
        Ok(true)
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<(Vec<ApplyTask>, bool)>,
    wake: Condvar,
    backlog: AtomicUsize,
}

/// An [`ApplyDriver`] on its own thread.
pub struct ApplyWorker {
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl ApplyWorker {
    /// Starts the thread.
    pub fn start(
        name: String,
        driver: ApplyDriver,
        router: Router,
        fatal: Fatal,
    ) -> std::io::Result<ApplyWorker> {
        let queue = Arc::new(Queue::default());
        let thread = std::thread::Builder::new().name(name).spawn({
            let queue = queue.clone();
            move || {
                let _end_on_panic = EndOnPanic { thread: "apply", fatal: fatal.clone() };
                if let Err(error) = serve(&queue, driver, &router) {
                    fatal(format!("cannot apply: {error}"));
                }
            }
        })?;
        Ok(ApplyWorker { queue, thread })
    }

    /// Adds tasks behind those that wait.
    pub fn push(&self, tasks: &mut Vec<ApplyTask>) {
        let bytes: usize = tasks.iter().map(bytes).sum();
        self.queue.backlog.fetch_add(bytes, Ordering::Relaxed);
        self.queue.state.lock().0.append(tasks);
        self.queue.wake.notify_one();
    }

    /// Bytes of entries that wait.
    pub fn backlog_bytes(&self) -> usize {
        self.queue.backlog.load(Ordering::Relaxed)
    }

    /// Applies what waits and ends the thread.
    pub fn stop(self) {
        self.queue.state.lock().1 = true;
        self.queue.wake.notify_one();
        // A panic there has been reported by the panic hook; there is nothing left to save.
        drop(self.thread.join());
    }
}

fn serve(queue: &Queue, mut driver: ApplyDriver, router: &Router) -> Result<(), EngineError> {
    loop {
        let tasks = {
            let mut state = queue.state.lock();
            while state.0.is_empty() {
                if state.1 {
                    return Ok(());
                }
                queue.wake.wait(&mut state);
            }
            std::mem::take(&mut state.0)
        };
        driver.push(tasks);
        while driver.has_work() {
            let before = driver.backlog_bytes();
            // This thread may wait for compactions; nobody's heartbeat depends on it.
            driver.run(false, |applied| router.complete(Input::Applied(applied)))?;
            queue.backlog.fetch_sub(before - driver.backlog_bytes(), Ordering::Relaxed);
        }
    }
}
