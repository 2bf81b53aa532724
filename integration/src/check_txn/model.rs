//! A store with snapshot isolation in a few lines, one step at a time: it makes valid histories for the checkers' tests.
//!
//! Optimistic transactions fail when somebody committed a key of theirs since their start, pessimistic ones when a key
//! is locked. Nothing runs at the same time, but transactions are open side by side.

use std::collections::BTreeMap;

use super::settle::Record;
use super::{Fate, Key, Op, Ts, Txn, Value};
use crate::sim::rng::Rng;

/// An open transaction.
pub struct Open {
    pub txn: Txn,
    pub pessimistic: bool,
    written: BTreeMap<Key, Value>,
    locked: BTreeMap<Key, Ts>,
}

/// See the file's head.
#[derive(Default)]
pub struct Model {
    newest_ts: Ts,
    time: u64,
    number: u64,
    versions: BTreeMap<Key, BTreeMap<Ts, Value>>,
    /// Who holds a key, by start timestamp.
    locks: BTreeMap<Key, Ts>,
    pub history: Vec<Txn>,
    pub records: Vec<Record>,
}

impl Model {
    /// A number that no other call returns.
    pub fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn ts(&mut self) -> Ts {
        self.newest_ts += 1 + self.time % 3;
        self.newest_ts
    }

    /// Begins a transaction.
    pub fn begin(&mut self, client: usize, pessimistic: bool) -> Open {
        self.time += 1;
        let (began, start_ts) = (self.time, self.ts());
        let txn = Txn { client, start_ts, fate: Fate::Unknown, ops: Vec::new(), began, ended: None };
        Open { txn, pessimistic, written: BTreeMap::new(), locked: BTreeMap::new() }
    }

    fn newest(&self, key: Key, at: Ts) -> Value {
        let versions = self.versions.get(&key);
        versions.and_then(|v| v.range(..=at).next_back()).map_or(Value::new(), |(_, value)| value.clone())
    }

    /// Reads a key: what the transaction wrote itself, else its snapshot.
    pub fn read(&mut self, open: &mut Open, key: Key) -> Value {
        self.time += 1;
        let at = open.txn.start_ts;
        let seen = open.written.get(&key).cloned().unwrap_or_else(|| self.newest(key, at));
        open.txn.ops.push(Op::Read { key, seen: seen.clone(), at });
        seen
    }

    /// Locks a key and reads its newest version; `None` when somebody else has it.
    pub fn read_locked(&mut self, open: &mut Open, key: Key) -> Option<Value> {
        self.time += 1;
        let me = open.txn.start_ts;
        if self.locks.get(&key).is_some_and(|holder| *holder != me) {
            return None;
        }
        let at = match open.locked.get(&key) {
            Some(at) => *at,
            None => self.ts(),
        };
        self.locks.insert(key, me);
        open.locked.insert(key, at);
        let seen = open.written.get(&key).cloned().unwrap_or_else(|| self.newest(key, at));
        open.txn.ops.push(Op::Lock { key, since: at });
        open.txn.ops.push(Op::Read { key, seen: seen.clone(), at });
        Some(seen)
    }

    /// Writes a key.
    pub fn write(&mut self, open: &mut Open, key: Key, value: Value) {
        self.time += 1;
        let since = open.locked.get(&key).copied().unwrap_or(open.txn.start_ts);
        open.txn.ops.push(Op::Write { key, value: value.clone(), since });
        open.written.insert(key, value);
    }

    /// Ends a transaction; true when it committed.
    pub fn commit(&mut self, mut open: Open, told: bool) -> bool {
        self.time += 1;
        let me = open.txn.start_ts;
        let holds = open.txn.holds();
        let conflicts = |key: &Key, since: &Ts| {
            let newer = self.records.iter().any(|r| r.key == *key && r.commit_ts > *since);
            newer || self.locks.get(key).is_some_and(|holder| *holder != me)
        };
        let fails = holds.iter().any(|(key, since)| conflicts(key, since));
        if !fails {
            let commit_ts = if holds.is_empty() { me } else { self.ts() };
            open.txn.fate = Fate::Committed(commit_ts);
            for key in holds.into_keys() {
                self.records.push(Record { key, start_ts: me, commit_ts });
            }
            for (key, value) in std::mem::take(&mut open.written) {
                self.versions.entry(key).or_default().insert(commit_ts, value);
            }
        }
        self.end(open, told);
        !fails
    }

    /// Gives a transaction up.
    pub fn roll_back(&mut self, open: Open) {
        self.time += 1;
        self.end(open, true);
    }

    fn end(&mut self, mut open: Open, told: bool) {
        let me = open.txn.start_ts;
        self.locks.retain(|_, holder| *holder != me);
        if !told {
            open.txn.fate = Fate::Unknown;
        } else {
            open.txn.ended = Some(self.time);
            if open.txn.fate == Fate::Unknown {
                open.txn.fate = Fate::Aborted;
            }
        }
        self.history.push(open.txn);
    }
}

/// What one step of a workload needs: one key, and what to make of its value.
fn touch(model: &mut Model, open: &mut Open, key: Key, change: impl FnOnce(Value, u64) -> Value) -> bool {
    let seen = match open.pessimistic {
        true => model.read_locked(open, key),
        false => Some(model.read(open, key)),
    };
    let Some(seen) = seen else { return false };
    let number = model.number();
    model.write(open, key, change(seen, number));
    true
}

/// A history in which every write puts its number at the end of a list, or in a register's place.
pub fn of_numbers(seed: u64, lists: bool) -> Model {
    let mut rng = Rng::new(seed, 0);
    let (keys, clients, steps) = (rng.range(1, 6), rng.range(1, 6) as usize, rng.range(10, 120));
    let mut model = Model::default();
    let mut open: Vec<Option<Open>> = (0..clients).map(|_| None).collect();
    for _ in 0..steps {
        let client = rng.index(clients);
        let Some(mut txn) = open[client].take() else {
            open[client] = Some(model.begin(client, rng.chance(0.3)));
            continue;
        };
        let key = rng.below(keys);
        let change = |seen: Value, number| if lists { [seen, vec![number]].concat() } else { vec![number] };
        let goes_on = match rng.below(10) {
            0..4 => {
                model.read(&mut txn, key);
                true
            }
            4..7 => touch(&mut model, &mut txn, key, change),
            7 if !lists && !txn.pessimistic => {
                let number = model.number();
                model.write(&mut txn, key, vec![number]);
                true
            }
            8 => {
                model.roll_back(txn);
                continue;
            }
            _ => {
                model.commit(txn, rng.chance(0.8));
                continue;
            }
        };
        if goes_on {
            open[client] = Some(txn);
        } else {
            model.roll_back(txn);
        }
    }
    model
}

/// A bank of so many accounts with 100 in each at the start.
pub fn of_bank(seed: u64, accounts: u64) -> Model {
    let mut rng = Rng::new(seed, 1);
    let mut model = Model::default();
    let mut first = model.begin(0, false);
    (0..accounts).for_each(|account| model.write(&mut first, account, vec![100]));
    model.commit(first, true);
    let mut open: Vec<Option<(Open, u64)>> = (0..4).map(|_| None).collect();
    for _ in 0..80 {
        let client = rng.index(open.len());
        let Some((mut txn, from)) = open[client].take() else {
            let mut txn = model.begin(client, rng.chance(0.3));
            (0..accounts).for_each(|account| drop(model.read(&mut txn, account)));
            open[client] = Some((txn, rng.below(accounts)));
            continue;
        };
        let to = (from + 1) % accounts;
        let paid = touch(&mut model, &mut txn, from, |seen, _| vec![seen[0].saturating_sub(1)])
            && touch(&mut model, &mut txn, to, |seen, _| vec![seen[0] + 1]);
        if paid {
            model.commit(txn, rng.chance(0.8));
        } else {
            model.roll_back(txn);
        }
    }
    model
}
