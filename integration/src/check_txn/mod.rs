//! Checkers of transaction histories, and the words they share: what transactions read, wrote and became.
//!
//! They know nothing of how isolation is kept, and serve the simulator and clusters of processes alike. `settle`
//! compares a history with what is stored and fills in the fates that clients never learned; `snapshot` judges
//! by timestamps; `cycles` judges without them, by who saw whom; `bank` and `skew` judge two workloads by what must
//! hold between their keys.
//!
//! Invariant of a history: no two writes of the same key write the same value, except in `bank` and `skew`.

use std::collections::BTreeMap;

pub use crate::sim::check::{Broken, Verdict, broken};

pub mod bank;
pub mod cycles;
pub mod deps;
pub mod graph;
#[cfg(test)]
mod model;
pub mod settle;
pub mod skew;
pub mod snapshot;
#[cfg(test)]
mod tests;

/// A timestamp of the store.
pub type Ts = u64;
/// A key, by the number that the workload gives it.
pub type Key = u64;
/// What a key holds: a list of numbers; a register holds a list of one; a key without a value the empty list.
pub type Value = Vec<u64>;

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// At this timestamp; one that wrote and locked nothing commits at its start.
    Committed(Ts),
    Aborted,
    /// Its client never learned it.
    Unknown,
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Saw a value. `at` is the start timestamp, or for a read under a lock the timestamp the lock was got at.
    Read { key: Key, seen: Value, at: Ts },
    /// Wrote a value. Nobody else may have written the key between `since` and the commit: `since` is the start
    /// timestamp, or the timestamp its lock was got at.
    Write { key: Key, value: Value, since: Ts },
    /// Locked the key to the same end, without writing it.
    Lock { key: Key, since: Ts },
}

/// One transaction as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    pub client: usize,
    pub start_ts: Ts,
    pub fate: Fate,
    pub ops: Vec<Op>,
    /// True time at which its start timestamp was asked for, in any unit.
    pub began: u64,
    /// True time at which its client knew the fate.
    pub ended: Option<u64>,
}

impl Txn {
    /// The timestamp it committed at.
    pub fn commit_ts(&self) -> Option<Ts> {
        match self.fate {
            Fate::Committed(ts) => Some(ts),
            Fate::Aborted | Fate::Unknown => None,
        }
    }

    /// What it leaves when it commits: the last value of every key it wrote, and since when the key is its own.
    pub fn writes(&self) -> BTreeMap<Key, (&Value, Ts)> {
        let mut writes: BTreeMap<Key, (&Value, Ts)> = BTreeMap::new();
        for op in &self.ops {
            if let Op::Write { key, value, since } = op {
                let first = writes.get(key).map_or(*since, |(_, first)| *first);
                writes.insert(*key, (value, first));
            }
        }
        writes
    }

    /// Every key it wrote or locked, and since when the key is its own.
    pub fn holds(&self) -> BTreeMap<Key, Ts> {
        let mut holds: BTreeMap<Key, Ts> = BTreeMap::new();
        for op in &self.ops {
            if let Op::Write { key, since, .. } | Op::Lock { key, since } = op {
                let first = holds.entry(*key).or_insert(*since);
                *first = (*first).min(*since);
            }
        }
        holds
    }

    /// Its number in messages, which no other transaction has.
    pub fn name(&self) -> String {
        format!("T{} (client {})", self.start_ts, self.client)
    }
}
