//! The scheduler's timestamps in the world: the real oracle behind links that lose messages.
//!
//! Owns the leading scheduler's oracle and the bound that is on its disk. The next leader begins above that bound,
//! with a wall clock of its own. INV-TSO is checked here: each timestamp is above every one given before.

use futures::channel::oneshot;
use kvproto::ts::Timestamp;
use scheduler::tso::oracle::{Blocked, Clocks, Oracle};

use super::TxnEvent;
use crate::sim::event::Event;
use crate::sim::plan::MS;
use crate::sim::world::World;

/// Where the wall clocks of schedulers begin, milliseconds.
const EPOCH_MS: u64 = 1_000_000;
/// How long somebody waits for a timestamp that does not come, nanoseconds.
const PATIENCE_NS: u64 = 300 * MS;

/// See the file's head.
pub struct Timestamps {
    oracle: Oracle,
    /// What the disk has.
    saved_ms: u64,
    newest: u64,
}

impl Default for Timestamps {
    fn default() -> Timestamps {
        Timestamps { oracle: Oracle::new(0), saved_ms: 0, newest: 0 }
    }
}

impl Timestamps {
    /// Another scheduler leads: it knows the disk only.
    pub fn take_over(&mut self) {
        self.oracle = Oracle::new(self.saved_ms);
    }

    /// The next timestamp at a wall clock; `None` when there is none in this millisecond.
    fn next(&mut self, wall_ms: u64, monotonic_ms: u64) -> Option<u64> {
        let clocks = Clocks { wall_ms: EPOCH_MS + wall_ms, monotonic_ms };
        loop {
            match self.oracle.allocate(clocks, 1) {
                Ok(ts) => {
                    return Timestamp::compose(ts.physical as u64, ts.logical as u64).map(Timestamp::get);
                }
                Err(Blocked::Save { bound_ms }) => {
                    self.saved_ms = bound_ms;
                    self.oracle.saved(bound_ms);
                }
                Err(Blocked::Wait) => return None,
            }
        }
    }
}

impl World {
    /// Somebody asks for a timestamp; either message may get lost.
    pub(super) fn ask_timestamp(&mut self, store: Option<usize>, asker: oneshot::Sender<Option<u64>>) {
        let loses = |world: &mut World| match store {
            Some(store) => world.network.loses_scheduler_message(store),
            None => world.network.loses_request(),
        };
        let lost = loses(self) || loses(self);
        let (there, back) = (self.network.latency(), self.network.latency());
        let event = match lost {
            true => (PATIENCE_NS, TxnEvent::Timestamp { asker, answer: None }),
            false => (there, TxnEvent::TimestampAsked { asker, back_ns: back }),
        };
        self.queue.push(self.now_ns + event.0, Event::Txn(event.1));
    }

    /// The question reaches the scheduler.
    pub(super) fn on_timestamp_asked(&mut self, asker: oneshot::Sender<Option<u64>>, back_ns: u64) {
        let answer = match self.placement.wall_ms(self.now_ns) {
            Some(wall_ms) => self.txn.timestamps.next(wall_ms, self.now_ns / MS),
            None => None,
        };
        if let Some(ts) = answer {
            if ts <= self.txn.timestamps.newest {
                let newest = self.txn.timestamps.newest;
                return self.violate("timestamps", format!("{ts} was given after {newest}"));
            }
            self.txn.timestamps.newest = ts;
        }
        let takes = if answer.is_some() { back_ns } else { PATIENCE_NS };
        self.queue.push(self.now_ns + takes, Event::Txn(TxnEvent::Timestamp { asker, answer }));
    }
}
