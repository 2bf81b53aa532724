//! A walk over the family `default`, for what nothing refers to any more: values whose records compactions have dropped
//! just before the process ended, and notes of rollbacks below the safe point.
//!
//! Owns the suspects. A snapshot of another store is taken in family by family, so a value may be there before its
//! record is: one that has no record is only suspected at first, and removed when a later walk still finds none. Values
//! above the safe point are not looked at, and neither are those of a transaction that still has its lock.

use std::collections::BTreeMap;

use super::filter::{Dropped, NoteFilter};
use super::walk::Step;
use crate::clock::Now;
use crate::engine::filter::RecordFilter;
use crate::engine::{Cf, Engine, Iter, IterOptions, ReadTier, Result, Snapshot, WriteBatch};
use crate::txn::mvcc::{Lock, Write, WriteKind, key, value};

/// How long a value must have been suspected before it is removed.
const SUSPECTED_MS: u64 = 60_000;
/// The most suspects; what does not fit is found by a later walk.
const SUSPECTS_MAX: usize = 64 << 10;

/// Values without a record, and when they were first seen so.
#[derive(Default)]
pub struct Suspects(BTreeMap<Vec<u8>, Now>);

/// See the file's head.
pub struct OrphanWalk {
    safe_point: u64,
    /// The first key that was not looked at.
    next: Vec<u8>,
    before: Suspects,
    found: Suspects,
}

impl OrphanWalk {
    /// A walk from the first key on; `before` are the suspects of the last walk.
    pub fn new(safe_point: u64, before: Suspects) -> OrphanWalk {
        OrphanWalk { safe_point, next: Vec::new(), before, found: Suspects::default() }
    }

    /// Looks at up to `max` records.
    pub fn step(&mut self, engine: &dyn Engine, now: Now, max: usize) -> Result<Step> {
        let since = engine.ingested();
        let snapshot = engine.snapshot();
        let options =
            IterOptions { lower: self.next.clone().into(), no_fill_cache: true, ..IterOptions::default() };
        let mut records = snapshot.iter(Cf::Default, options)?;
        let options = IterOptions { no_fill_cache: true, ..IterOptions::default() };
        let mut writes = snapshot.iter(Cf::Write, options)?;
        let mut notes = NoteFilter { safe_point: self.safe_point };
        let (mut batch, mut step, mut last) = (WriteBatch::new(), Step::default(), self.next.clone());
        records.seek_to_first();
        while records.valid() && step.seen < max as u64 {
            let (stored_key, stored) = (records.key(), records.value());
            step.seen += 1;
            if !notes.keeps(stored_key, stored) {
                step.dropped.marks += 1;
                batch.delete(Cf::Default, stored_key.to_vec());
            } else if self.is_orphan(&*snapshot, &mut *writes, stored_key, stored)?
                && self.was_suspected(stored_key, now)
            {
                step.dropped.versions += 1;
                batch.delete(Cf::Default, stored_key.to_vec());
            }
            last.clear();
            last.extend_from_slice(stored_key);
            last.push(0);
            records.next();
        }
        if !records.valid() {
            records.status()?;
            step.is_done = true;
        }
        if !batch.is_empty() && !engine.write_unless_ingested(&batch, since)? {
            // What was replaced is not what was suspected.
            self.before = Suspects::default();
            return Ok(Step { dropped: Dropped::default(), is_done: false, ..step });
        }
        self.next = last;
        Ok(step)
    }

    /// The suspects of this walk, for the next one.
    pub fn into_suspects(self) -> Suspects {
        self.found
    }

    /// Whether nothing refers to a value below the safe point.
    fn is_orphan(
        &self,
        snapshot: &dyn Snapshot,
        writes: &mut dyn Iter,
        stored_key: &[u8],
        stored: &[u8],
    ) -> Result<bool> {
        let Some((encoded, start_ts)) = key::split(stored_key) else { return Ok(false) };
        if start_ts >= self.safe_point || stored.first() != Some(&value::VALUE) {
            return Ok(false);
        }
        if let Some(lock) = snapshot.get(Cf::Lock, encoded, ReadTier::All)? {
            // One that cannot be read may be its owner.
            if Lock::decode(lock).map_or(true, |lock| lock.start_ts == start_ts) {
                return Ok(false);
            }
        }
        writes.seek(&key::with_ts(encoded, u64::MAX));
        while writes.valid() {
            match key::split(writes.key()) {
                Some((of, commit_ts)) if of == encoded && commit_ts >= start_ts => {}
                _ => return Ok(true),
            }
            match Write::peek(writes.value()) {
                Some((kind, of)) if kind != WriteKind::Put || of != start_ts => writes.next(),
                // Its record, or one that this build cannot read.
                _ => return Ok(false),
            }
        }
        writes.status()?;
        Ok(true)
    }

    /// Whether it has been suspected long enough; else it is suspected from now on, or from when it was first.
    fn was_suspected(&mut self, stored_key: &[u8], now: Now) -> bool {
        let first = self.before.0.get(stored_key).copied().unwrap_or(now);
        if now >= first.plus_ms(SUSPECTED_MS) {
            return true;
        }
        if self.found.0.len() < SUSPECTS_MAX {
            self.found.0.insert(stored_key.to_vec(), first);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::WriteOptions;
    use crate::engine::mem::MemEngine;
    use crate::txn::mvcc::{Key, LockKind};

    fn walk(engine: &MemEngine, at: Now, before: Suspects, max: usize) -> (Dropped, Suspects) {
        let (mut walk, mut sum) = (OrphanWalk::new(10, before), Dropped::default());
        loop {
            let step = walk.step(engine, at, max).unwrap();
            sum.versions += step.dropped.versions;
            sum.marks += step.dropped.marks;
            if step.is_done {
                return (sum, walk.into_suspects());
            }
        }
    }

    fn values(engine: &MemEngine) -> Vec<u64> {
        let mut all = engine.snapshot().iter(Cf::Default, IterOptions::default()).unwrap();
        let mut found = Vec::new();
        all.seek_to_first();
        while all.valid() {
            found.push(key::split(all.key()).unwrap().1);
            all.next();
        }
        found
    }

    #[test]
    fn values_that_nothing_refers_to_go_when_a_later_walk_still_finds_no_record() {
        for max in 1..5 {
            let (engine, mut batch) = (MemEngine::new(), WriteBatch::new());
            let (mut a, mut b) = (Key::new("a".into()), Key::new("b".into()));
            let record =
                |kind, start_ts| Write { kind, start_ts, last_change_ts: 0, short_value: None }.encode();
            for ts in [2, 4, 6, 12] {
                batch.put(Cf::Default, a.at(ts).to_vec(), vec![value::VALUE, 1]);
            }
            batch.put(Cf::Write, a.at(5).to_vec(), record(WriteKind::Put, 4));
            batch.put(Cf::Write, a.at(3).to_vec(), record(WriteKind::Lock, 2));
            batch.put(Cf::Lock, a.encoded().to_vec(), Lock::new(LockKind::Put, 6, "a".into(), 1).encode());
            batch.put(Cf::Default, b.at(1).to_vec(), vec![value::ROLLED_BACK]);
            batch.put(Cf::Default, b.at(3).to_vec(), vec![value::VALUE, 1]);
            engine.write(&batch, WriteOptions::default()).unwrap();

            let start = Now(1_000_000_000);
            let (dropped, suspects) = walk(&engine, start, Suspects::default(), max);
            assert_eq!(dropped, Dropped { versions: 0, marks: 1 }, "only the note at once");
            assert_eq!(suspects.0.len(), 2);
            // The record of one came late, as with a snapshot of another store.
            let mut late = WriteBatch::new();
            late.put(Cf::Write, b.at(7).to_vec(), record(WriteKind::Put, 3));
            engine.write(&late, WriteOptions::default()).unwrap();
            let (dropped, suspects) = walk(&engine, start.plus_ms(SUSPECTED_MS - 1), suspects, max);
            assert_eq!(dropped, Dropped::default(), "too early");
            let (dropped, suspects) = walk(&engine, start.plus_ms(SUSPECTED_MS), suspects, max);
            assert_eq!((dropped.versions, suspects.0.len()), (1, 0));
            assert_eq!(values(&engine), [12, 6, 4, 3]);
        }
    }
}
