//! A named background thread with a queue of tasks, done in order, some at a time.
//!
//! Owns the tasks from the moment they are handed over. Handing over never blocks and never loses a task: who
//! hands over bounds how many there can be. A task that cannot be done now is given back by the handler and
//! tried again after a pause, behind the others. At a stop the task at work is finished and the rest dropped:
//! what a task is for is found again on disk at the next start.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::clock::{self, Now};

/// How long a task that could not be done rests.
const RETRY_MS: u64 = 1_000;

/// See the file's head.
pub struct Worker<T> {
    shared: Arc<Shared<T>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Tasks that rest, in the order in which they are due.
    resting: VecDeque<(Now, T)>,
    stopping: bool,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts the thread. `handle` does up to `batch_max` tasks, and gives back those to be tried again.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        batch_max: usize,
        handle: impl FnMut(Vec<T>) -> Vec<T> + Send + 'static,
    ) -> io::Result<Worker<T>> {
        let state = State { ready: VecDeque::new(), resting: VecDeque::new(), stopping: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let of_thread = shared.clone();
        let run = move || of_thread.run(batch_max.max(1), handle);
        let thread = std::thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Worker { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Hands a task over.
    pub fn push(&self, task: T) {
        self.shared.state.lock().ready.push_back(task);
        self.shared.changed.notify_one();
    }

    /// Hands a task over unless `same` says that one like it waits already.
    pub fn push_unless(&self, task: T, same: impl Fn(&T) -> bool) {
        let mut state = self.shared.state.lock();
        if !state.ready.iter().any(same) {
            state.ready.push_back(task);
            self.shared.changed.notify_one();
        }
    }

    /// Finishes the task at work and ends the thread.
    pub fn stop(&self) {
        self.shared.state.lock().stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("a background thread panicked");
        }
    }
}

impl<T> Shared<T> {
    fn run(&self, batch_max: usize, mut handle: impl FnMut(Vec<T>) -> Vec<T>) {
        while let Some(tasks) = self.next(batch_max) {
            let again = handle(tasks);
            if !again.is_empty() {
                let due = clock::now().plus_ms(RETRY_MS);
                self.state.lock().resting.extend(again.into_iter().map(|task| (due, task)));
            }
        }
    }

    /// The next tasks, at least one; `None` when the thread is to end.
    fn next(&self, batch_max: usize) -> Option<Vec<T>> {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return None;
            }
            let now = clock::now();
            while state.resting.front().is_some_and(|(due, _)| *due <= now) {
                let rested = state.resting.pop_front();
                state.ready.extend(rested.map(|(_, task)| task));
            }
            if !state.ready.is_empty() {
                let n = state.ready.len().min(batch_max);
                return Some(state.ready.drain(..n).collect());
            }
            match state.resting.front().map(|(due, _)| due.since(now)) {
                Some(ns) => drop(self.changed.wait_for(&mut state, Duration::from_nanos(ns))),
                None => self.changed.wait(&mut state),
            }
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.shared.state.lock().stopping = true;
        self.shared.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    /// A worker that refuses numbers from 10 on once, and reports those it did.
    fn worker() -> (Worker<u32>, Receiver<u32>) {
        let (tx, rx) = sync_channel(8);
        let mut seen = Vec::new();
        let handle = move |tasks: Vec<u32>| {
            let n = tasks[0];
            if n >= 10 && !seen.contains(&n) {
                seen.push(n);
                return tasks;
            }
            tx.send(n).unwrap();
            Vec::new()
        };
        (Worker::start("test", 1, handle).unwrap(), rx)
    }

    #[test]
    fn a_task_that_was_given_back_is_tried_again_and_holds_up_no_other() {
        let (worker, done) = worker();
        worker.push(10);
        worker.push(1);
        let within = Duration::from_secs(30);
        assert_eq!(done.recv_timeout(within), Ok(1));
        assert_eq!(done.recv_timeout(within), Ok(10));
        worker.stop();
    }
}
