//! Threads for reads that may wait for the disk, so that the request threads never do.
//!
//! At most `threads` jobs run at once, on tokio's blocking threads; further ones queue up to a limit. The
//! threads go away when there is nothing to read.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::txn::raw::Offload;

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Clones share it.
#[derive(Clone)]
pub struct ReadPool {
    runtime: Handle,
    threads: usize,
    queue_max: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    running: usize,
    queue: VecDeque<Job>,
}

impl ReadPool {
    /// A pool on the current runtime.
    pub fn new(runtime: Handle, threads: usize, queue_max: usize) -> ReadPool {
        ReadPool { runtime, threads: threads.max(1), queue_max, state: Arc::default() }
    }

    /// Jobs that wait for a thread.
    pub fn queued(&self) -> usize {
        self.state.lock().queue.len()
    }
}

impl Offload for ReadPool {
    fn offload(&self, job: Job) -> bool {
        let mut state = self.state.lock();
        if state.running == self.threads {
            let room = state.queue.len() < self.queue_max;
            if room {
                state.queue.push_back(job);
            }
            return room;
        }
        state.running += 1;
        drop(state);
        let state = self.state.clone();
        self.runtime.spawn_blocking(move || {
            let mut next = Some(job);
            while let Some(job) = next {
                job();
                let mut state = state.lock();
                next = state.queue.pop_front();
                if next.is_none() {
                    state.running -= 1;
                }
            }
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn jobs_beyond_the_threads_queue_and_beyond_the_queue_are_refused() {
        let pool = ReadPool::new(Handle::current(), 1, 1);
        let (block, blocked) = sync_channel::<()>(0);
        let (done, mut all_done) = tokio::sync::mpsc::channel(4);
        let first = done.clone();
        assert!(pool.offload(Box::new(move || {
            blocked.recv().unwrap();
            first.blocking_send(1).unwrap();
        })));
        assert!(pool.offload(Box::new(move || done.blocking_send(2).unwrap())));
        assert!(!pool.offload(Box::new(|| unreachable!("there is no room for this one"))));
        assert_eq!(pool.queued(), 1);
        block.send(()).unwrap();
        assert_eq!((all_done.recv().await, all_done.recv().await), (Some(1), Some(2)));
    }
}
