//! A walk over all versions of a store, for what compactions do not reach: deletes that hide nothing any more, and
//! everything in files that are never compacted.
//!
//! Owns the position. A step looks at a bounded number of records and removes with one local write what the filter
//! would not keep; other replicas walk for themselves. A step may end inside a key; the delete that hides what is left of it
//! goes last, with or after the oldest of them, so that no reader and no crash in between brings an old value to light.
//! Nothing is removed when a snapshot of another store was taken in
//! between the look and the write: what was seen may not be what is there then.

use std::sync::Arc;

use parking_lot::Mutex;

use super::filter::{Dropped, Leftovers, WriteFilter};
use crate::engine::filter::RecordFilter;
use crate::engine::{Cf, Engine, IterOptions, Result, WriteBatch};
use crate::txn::mvcc::{Write, WriteKind, key};

/// What a step came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Records that were looked at.
    pub seen: u64,
    pub dropped: Dropped,
    /// True at the end of the walk.
    pub is_done: bool,
}

/// What the filter leaves behind in one step.
#[derive(Default)]
struct Local {
    values: Mutex<Vec<Vec<u8>>>,
    dropped: Mutex<Dropped>,
}

impl Leftovers for Local {
    fn values(&self, mut keys: Vec<Vec<u8>>) {
        self.values.lock().append(&mut keys);
    }

    fn has_room(&self) -> bool {
        true
    }

    fn count(&self, dropped: Dropped) {
        let mut sum = self.dropped.lock();
        sum.versions += dropped.versions;
        sum.marks += dropped.marks;
    }
}

/// See the file's head.
pub struct Walk {
    safe_point: u64,
    /// The first key that was not looked at.
    next: Vec<u8>,
    filter: WriteFilter,
    local: Arc<Local>,
    /// The delete of the key at hand that is to go once everything below it has gone.
    held: Option<Vec<u8>>,
}

impl Walk {
    /// A walk from the first key on, for garbage up to `safe_point`.
    pub fn new(safe_point: u64) -> Walk {
        let local: Arc<Local> = Arc::default();
        Walk {
            safe_point,
            next: Vec::new(),
            filter: WriteFilter::new(safe_point, true, local.clone()),
            local,
            held: None,
        }
    }

    /// Looks at up to `max` records. After an error the key at hand is looked at again from its first record on.
    pub fn step(&mut self, engine: &dyn Engine, max: usize) -> Result<Step> {
        let done = self.try_step(engine, max);
        if done.is_err() {
            self.go_back();
        }
        done
    }

    fn try_step(&mut self, engine: &dyn Engine, max: usize) -> Result<Step> {
        let since = engine.ingested();
        let options =
            IterOptions { lower: self.next.clone().into(), no_fill_cache: true, ..IterOptions::default() };
        let mut records = engine.snapshot().iter(Cf::Write, options)?;
        let (mut batch, mut step) = (WriteBatch::new(), Step::default());
        let mut last: Vec<u8> = Vec::new();
        records.seek_to_first();
        while records.valid() && step.seen < max as u64 {
            step.seen += 1;
            self.let_go(records.key(), &mut batch);
            if !self.filter.keeps(records.key(), records.value()) {
                match Write::peek(records.value()) {
                    Some((WriteKind::Delete, _)) if self.held.is_none() => {
                        self.held = Some(records.key().to_vec());
                    }
                    _ => batch.delete(Cf::Write, records.key().to_vec()),
                }
            }
            last.clear();
            last.extend_from_slice(records.key());
            records.next();
        }
        if !records.valid() {
            records.status()?;
            step.is_done = true;
            self.let_go(&[], &mut batch);
        }
        self.filter.flush();
        for value in std::mem::take(&mut *self.local.values.lock()) {
            batch.delete(Cf::Default, value);
        }
        step.dropped = std::mem::take(&mut *self.local.dropped.lock());
        if !batch.is_empty() && !engine.write_unless_ingested(&batch, since)? {
            self.go_back();
            return Ok(Step { seen: step.seen, ..Step::default() });
        }
        last.push(0);
        self.next = last;
        Ok(step)
    }

    /// Removes the delete that was held back once `stored` belongs to another key.
    fn let_go(&mut self, stored: &[u8], batch: &mut WriteBatch) {
        let user = |stored: &[u8]| key::split(stored).map(|(user, _)| user.to_vec());
        if let Some(held) = self.held.take_if(|held| user(held) != user(stored)) {
            batch.delete(Cf::Write, held);
        }
    }

    /// The next step begins at the first record of the key that this one began with, knowing nothing.
    fn go_back(&mut self) {
        if let Some((user, _)) = key::split(&self.next[..self.next.len().saturating_sub(1)]) {
            self.next = key::with_ts(user, u64::MAX);
        }
        self.filter = WriteFilter::new(self.safe_point, true, self.local.clone());
        self.local.values.lock().clear();
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::mem::MemEngine;
    use crate::engine::{IterOptions, ReadTier, WriteOptions};
    use crate::txn::mvcc::{Key, value};

    fn put(batch: &mut WriteBatch, user: &str, kind: WriteKind, ts: u64) {
        let mut key = Key::new(user.to_string().into());
        let write = Write { kind, start_ts: ts - 1, last_change_ts: 0, short_value: None };
        batch.put(Cf::Write, key.at(ts).to_vec(), write.encode());
        if kind == WriteKind::Put {
            batch.put(Cf::Default, key.at(ts - 1).to_vec(), vec![value::VALUE, 7]);
        }
    }

    fn timestamps(engine: &MemEngine, cf: Cf) -> Vec<u64> {
        let mut all = engine.snapshot().iter(cf, IterOptions::default()).unwrap();
        let mut found = Vec::new();
        all.seek_to_first();
        while all.valid() {
            found.push(key::split(all.key()).unwrap().1);
            all.next();
        }
        found
    }

    fn walk(engine: &MemEngine, safe_point: u64, max: usize) -> Dropped {
        let (mut walk, mut sum) = (Walk::new(safe_point), Dropped::default());
        loop {
            let step = walk.step(engine, max).unwrap();
            sum.versions += step.dropped.versions;
            sum.marks += step.dropped.marks;
            if step.is_done {
                return sum;
            }
        }
    }

    #[test]
    fn a_dead_key_goes_with_all_its_versions_and_values_however_small_the_steps() {
        for max in 1..8 {
            let engine = MemEngine::new();
            let mut batch = WriteBatch::new();
            put(&mut batch, "a", WriteKind::Put, 3);
            put(&mut batch, "a", WriteKind::Put, 5);
            put(&mut batch, "a", WriteKind::Rollback, 6);
            put(&mut batch, "a", WriteKind::Delete, 8);
            put(&mut batch, "b", WriteKind::Put, 4);
            put(&mut batch, "b", WriteKind::Put, 20);
            engine.write(&batch, WriteOptions::default()).unwrap();
            assert_eq!(walk(&engine, 10, max), Dropped { versions: 3, marks: 1 });
            assert_eq!(timestamps(&engine, Cf::Write), [20, 4]);
            assert_eq!(timestamps(&engine, Cf::Default), [19, 3]);
            assert_eq!(walk(&engine, 10, max), Dropped::default());
        }
    }

    /// What stands in a snapshot of another store that still has what this one dropped long ago.
    #[test]
    fn what_was_replaced_during_a_step_is_looked_at_again() {
        struct Replaced(MemEngine);
        let engine = Replaced(MemEngine::new());
        let mut batch = WriteBatch::new();
        put(&mut batch, "a", WriteKind::Delete, 8);
        engine.0.write(&batch, WriteOptions::default()).unwrap();
        let mut walk = Walk::new(10);
        let since = engine.0.ingested();
        // A file that does not exist counts as well: something was going on.
        assert!(engine.0.ingest(Cf::Write, std::path::Path::new("none")).is_err());
        assert!(!engine.0.write_unless_ingested(&batch, since).unwrap());
        assert!(walk.step(&engine.0, 1).unwrap().is_done, "from then on as ever");
        assert_eq!(timestamps(&engine.0, Cf::Write), Vec::<u64>::new());
    }

    proptest! {
        /// Readers at or above the safe point see the same before and after, in steps of any size.
        #[test]
        fn readers_see_no_difference(
            records in proptest::collection::btree_map((0..4u8, 2..40u64), 0..4u8, 0..80), safe_point in 0..45u64, mut max in 1..9usize,
            again in 0..12usize,
        ) {
            let engine = MemEngine::new();
            let mut batch = WriteBatch::new();
            let kinds = [WriteKind::Put, WriteKind::Delete, WriteKind::Lock, WriteKind::Rollback];
            for ((user, ts), kind) in &records {
                put(&mut batch, &user.to_string(), kinds[usize::from(*kind)], *ts);
            }
            engine.write(&batch, WriteOptions::default()).unwrap();
            let seen = |ts| {
                let snapshot = engine.snapshot();
                let mut reader = crate::txn::mvcc::Reader::new(&snapshot, ReadTier::All);
                let mut found = Vec::new();
                for user in 0..4u8 {
                    let mut key = Key::new(user.to_string().into());
                    let version = reader.version(&mut key, ts).unwrap().filter(|v| v.write.kind == WriteKind::Put);
                    if let Some(version) = &version {
                        reader.value(&mut key, &version.write).unwrap();
                    }
                    found.push(version.map(|v| v.commit_ts));
                }
                found
            };
            let before: Vec<_> = (safe_point..46).map(seen).collect();
            let mut walk = Walk::new(safe_point);
            for n in 0.. {
                if n % 5 == again {
                    // As after a restart.
                    walk = Walk::new(safe_point);
                } else if n % 7 == again {
                    walk.go_back();
                }
                let is_done = walk.step(&engine, max).unwrap().is_done;
                prop_assert_eq!(&before, &(safe_point..46).map(seen).collect::<Vec<_>>(), "after step {}", n);
                if is_done {
                    break;
                }
                max += 1;
            }
            let left = timestamps(&engine, Cf::Write);
            prop_assert!(left.iter().filter(|ts| **ts < safe_point).count() <= 4, "one for each key: {:?}", left);
        }
    }
}
