//! Writing the Raft log on a thread of its own, so that a stalled disk does not stop the shard's heartbeats.
//!
//! Owns the batches that wait for the disk. What queued while one write ran goes out as one write with one sync.
//! Invariant: the completion is in the inbox before the messages that waited leave, so that no answer to them can
//! overtake it.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::message::{Input, LogBatch};
use super::raft_worker::{EndOnPanic, Fatal, Transport};
use super::router::Router;
use crate::engine::log_store::LogStore;

#[derive(Default)]
struct Queue {
    state: Mutex<(LogBatch, bool)>,
    wake: Condvar,
}

/// See the file's head.
pub struct LogWriter {
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl LogWriter {
    /// Starts the thread.
    pub fn start(
        name: String,
        log: Arc<dyn LogStore>,
        router: Router,
        transport: Arc<dyn Transport>,
        fatal: Fatal,
    ) -> std::io::Result<LogWriter> {
        let queue = Arc::new(Queue::default());
        let thread = std::thread::Builder::new().name(name).spawn({
            let queue = queue.clone();
            move || {
                let _end_on_panic = EndOnPanic { thread: "log", fatal: fatal.clone() };
                run(&queue, &*log, &router, &*transport, &fatal)
            }
        })?;
        Ok(LogWriter { queue, thread })
    }

    /// Adds a batch behind those that wait.
    pub fn push(&self, batch: LogBatch) {
        self.queue.state.lock().0.append(batch);
        self.queue.wake.notify_one();
    }

    /// Writes what waits and ends the thread.
    pub fn stop(self) {
        self.queue.state.lock().1 = true;
        self.queue.wake.notify_one();
        // A panic there has been reported by the panic hook; there is nothing left to save.
        drop(self.thread.join());
    }
}

fn run(queue: &Queue, log: &dyn LogStore, router: &Router, transport: &dyn Transport, fatal: &Fatal) {
    loop {
        let batch = {
            let mut state = queue.state.lock();
            while state.0.is_empty() {
                if state.1 {
                    return;
                }
                queue.wake.wait(&mut state);
            }
            std::mem::take(&mut state.0)
        };
        let durable = match log.append(batch.write(), batch.must_sync()) {
            Ok(durable) => durable,
            Err(error) => {
                fatal(format!("cannot write the Raft log: {error}"));
                return;
            }
        };
        let (writes, mut after) = batch.persisted(durable);
        router.complete(Input::Persisted(writes));
        transport.send(&mut after);
    }
}
