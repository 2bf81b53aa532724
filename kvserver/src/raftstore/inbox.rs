//! The queue in front of a shard.
//!
//! Owns the events that wait. Invariants (INV-DROP): requests and peer messages are refused when the queue is full,
//! completions never are; events of one producer stay in order. One lock per push and one per turn of the consumer,
//! who takes everything at once; a producer wakes the consumer only when it sleeps.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::message::Input;
use super::message::peer_message::PeerMessage;
use crate::clock::{self, Now};

/// Refusable events that may wait.
const WAITING_MAX: usize = 65_536;
/// Bytes of refusable events that may wait.
const BYTES_MAX: usize = 128 << 20;

#[derive(Default)]
struct State {
    queue: Vec<Input>,
    bytes: usize,
    asleep: bool,
    closed: bool,
}

/// See the file's head.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
}

fn bytes(input: &Input) -> usize {
    match input {
        Input::Raft(m) => PeerMessage::bytes(m),
        Input::Propose(p) => p.write.bytes(),
        _ => 0,
    }
}

impl Inbox {
    /// Adds a request or a peer message; gives it back when there is no room or nobody reads any more.
    // The input is big and comes back only on the rare refusal; boxing it would cost every success.
    #[expect(
        clippy::result_large_err,
        reason = "an input is given back whole, so that its callback can be answered"
    )]
    pub fn offer(&self, input: Input) -> Result<(), Input> {
        let size = bytes(&input);
        let mut state = self.state.lock();
        if state.closed || state.queue.len() >= WAITING_MAX || state.bytes + size > BYTES_MAX {
            return Err(input);
        }
        state.bytes += size;
        self.push(state, input);
        Ok(())
    }

    /// Adds a completion.
    pub fn complete(&self, input: Input) {
        let state = self.state.lock();
        self.push(state, input);
    }

    fn push(&self, mut state: parking_lot::MutexGuard<'_, State>, input: Input) {
        state.queue.push(input);
        let asleep = std::mem::replace(&mut state.asleep, false);
        drop(state);
        if asleep {
            self.wake.notify_one();
        }
    }

    /// Swaps everything that waits into the empty `batch`; sleeps until there is something or `deadline` has come.
    /// False once the inbox is closed and empty.
    pub fn take(&self, batch: &mut Vec<Input>, deadline: Option<Now>) -> bool {
        debug_assert!(batch.is_empty());
        let mut state = self.state.lock();
        while state.queue.is_empty() && !state.closed {
            state.asleep = true;
            match deadline.map(|d| d.since(clock::now())) {
                Some(0) => break,
                Some(ns) => drop(self.wake.wait_for(&mut state, Duration::from_nanos(ns))),
                None => self.wake.wait(&mut state),
            }
        }
        state.asleep = false;
        state.bytes = 0;
        std::mem::swap(&mut state.queue, batch);
        !(batch.is_empty() && state.closed)
    }

    /// No more requests are taken in, and the consumer ends once it has seen everything.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raftstore::message::{Propose, WriteSet, callback::Callback};

    fn proposal(bytes: usize) -> Input {
        let mut write = WriteSet::with_capacity(bytes);
        write.put(crate::engine::Cf::Raw, b"k", &[&vec![0; bytes]]);
        Input::Propose(Propose { ctx: Default::default(), write, done: Callback::none() })
    }

    #[test]
    fn a_full_inbox_refuses_requests_and_takes_completions() {
        let inbox = Inbox::default();
        while inbox.offer(proposal(32 << 20)).is_ok() {}
        inbox.complete(Input::Destroyed { region_id: 1 });
        let mut batch = Vec::new();
        assert!(inbox.take(&mut batch, Some(Now(0))));
        assert!(matches!(batch.last(), Some(Input::Destroyed { .. })) && batch.len() == 4);
        assert!(inbox.offer(proposal(1)).is_ok(), "room again");
    }

    #[test]
    fn a_sleeping_consumer_is_woken_and_a_closed_inbox_is_drained_first() {
        let inbox = std::sync::Arc::new(Inbox::default());
        let consumer = std::thread::spawn({
            let inbox = inbox.clone();
            move || {
                let (mut batch, mut seen) = (Vec::new(), 0);
                while inbox.take(&mut batch, None) {
                    seen += batch.drain(..).count();
                }
                seen
            }
        });
        (0..100).for_each(|region_id| inbox.complete(Input::Destroyed { region_id }));
        inbox.close();
        assert_eq!(consumer.join().unwrap(), 100);
        assert!(inbox.offer(proposal(1)).is_err());
    }
}
