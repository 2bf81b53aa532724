//! The filters of a store's database: which safe point they use, and where the keys of dropped values wait.
//!
//! Owns the queue between compactions, which must not write, and the worker, which deletes long values of versions that
//! are gone. While the queue is full, old versions with long values stay where they are. What was in it when the process
//! ended is found by the worker's walk. A filter keeps the safe point it began with.

use std::sync::Arc;

use parking_lot::Mutex;

use super::filter::{Dropped, Leftovers, NoteFilter, WriteFilter};
use crate::engine::Cf;
use crate::engine::filter::{FilterSource, RecordFilter};
use crate::safe_points::SafePoints;

/// From so many waiting keys on there is no room; 8 MiB or so.
const QUEUE_MAX: usize = 64 << 10;

/// Keys of `default` whose records in `write` are gone, and what was dropped so far.
#[derive(Default)]
pub struct Garbage {
    values: Mutex<Vec<Vec<u8>>>,
    dropped: Mutex<Dropped>,
}

impl Garbage {
    /// Takes up to `max` keys of values to delete.
    pub fn take_values(&self, max: usize) -> Vec<Vec<u8>> {
        let mut values = self.values.lock();
        let from = values.len().saturating_sub(max);
        values.split_off(from)
    }

    /// What was dropped since the last call.
    pub fn take_counts(&self) -> Dropped {
        std::mem::take(&mut *self.dropped.lock())
    }
}

impl Leftovers for Garbage {
    fn values(&self, mut keys: Vec<Vec<u8>>) {
        self.values.lock().append(&mut keys);
    }

    fn has_room(&self) -> bool {
        self.values.lock().len() < QUEUE_MAX
    }

    fn count(&self, dropped: Dropped) {
        let mut sum = self.dropped.lock();
        sum.versions += dropped.versions;
        sum.marks += dropped.marks;
    }
}

/// See the file's head.
#[derive(Clone, Default)]
pub struct Filters {
    pub safe_points: Arc<SafePoints>,
    pub garbage: Arc<Garbage>,
}

impl FilterSource for Filters {
    fn filter(&self, cf: Cf, is_full: bool) -> Option<Box<dyn RecordFilter>> {
        let safe_point = self.safe_points.gc();
        match cf {
            _ if safe_point == 0 => None,
            Cf::Write => Some(Box::new(WriteFilter::new(safe_point, is_full, self.garbage.clone()))),
            Cf::Default => Some(Box::new(NoteFilter { safe_point })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::rocks::RocksEngine;
    use crate::engine::{Engine, EngineConfig, IterOptions, ReadTier, WriteBatch, WriteOptions};
    use crate::txn::mvcc::{Key, Reader, Write, WriteKind, value};

    const KINDS: [WriteKind; 4] = [WriteKind::Put, WriteKind::Delete, WriteKind::Lock, WriteKind::Rollback];
    const USERS: u8 = 3;
    const TS_END: u64 = 60;

    /// What was committed, by user and timestamp.
    type Model = BTreeMap<(u8, u64), (WriteKind, bool)>;

    /// A commit with a value that names it, long or short.
    fn commit(engine: &RocksEngine, user: u8, ts: u64, (kind, is_long): (WriteKind, bool)) {
        let (mut key, mut batch) = (Key::new(vec![user].into()), WriteBatch::new());
        let is_put = kind == WriteKind::Put;
        let short_value = (is_put && !is_long).then(|| vec![user, ts as u8].into());
        let write = Write { kind, start_ts: ts, last_change_ts: 0, short_value };
        batch.put(Cf::Write, key.at(ts).to_vec(), write.encode());
        if is_put && is_long {
            batch.put(Cf::Default, key.at(ts).to_vec(), vec![value::VALUE, user, ts as u8]);
        }
        engine.write(&batch, WriteOptions::default()).unwrap();
    }

    fn expected(model: &Model, user: u8, ts: u64) -> Option<Vec<u8>> {
        let versions = model.range((user, 0)..=(user, ts)).rev();
        let newest =
            versions.filter(|(_, (kind, _))| kind.has_data()).map(|(key, (kind, _))| (key.1, *kind)).next();
        newest.filter(|(_, kind)| *kind == WriteKind::Put).map(|(ts, _)| vec![user, ts as u8])
    }

    fn found(engine: &RocksEngine, user: u8, ts: u64) -> Option<Vec<u8>> {
        let (snapshot, mut key) = (engine.snapshot(), Key::new(vec![user].into()));
        let mut reader = Reader::new(&snapshot, ReadTier::All);
        let version = reader.version(&mut key, ts).unwrap().filter(|v| v.write.kind == WriteKind::Put)?;
        Some(reader.value(&mut key, &version.write).unwrap().to_vec())
    }

    fn count(engine: &RocksEngine, cf: Cf) -> usize {
        let mut all = engine.snapshot().iter(cf, IterOptions::default()).unwrap();
        all.seek_to_first();
        std::iter::from_fn(|| all.valid().then(|| all.next())).count()
    }

    fn delete_values(engine: &RocksEngine, garbage: &Garbage) {
        let mut batch = WriteBatch::new();
        garbage.take_values(usize::MAX).into_iter().for_each(|key| batch.delete(Cf::Default, key));
        engine.write(&batch, WriteOptions::default()).unwrap();
    }

    fn check(engine: &RocksEngine, model: &Model, safe_point: u64) -> Result<(), TestCaseError> {
        for (user, ts) in (0..USERS).flat_map(|user| (safe_point..TS_END).map(move |ts| (user, ts))) {
            prop_assert_eq!(found(engine, user, ts), expected(model, user, ts), "user {} at {}", user, ts);
        }
        Ok(())
    }

    /// Commits (user, kind, whether the value is long), whether all is compacted then, and by how much the safe point
    /// rises before that.
    type Round = (Vec<(u8, usize, bool)>, bool, u64);

    /// Rounds: commits in the order of their timestamps, as transactions leave them, then a compaction of all or a flush,
    /// at a safe point that rises.
    fn rounds() -> impl Strategy<Value = Vec<Round>> {
        let commits = prop::collection::vec((0..USERS, 0..KINDS.len(), any::<bool>()), 0..12);
        prop::collection::vec((commits, any::<bool>(), 0..15u64), 1..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn readers_at_or_above_the_safe_point_see_what_they_saw(rounds in rounds()) {
            let (dir, filters) = (tempfile::tempdir().unwrap(), Filters::default());
            let source: Arc<dyn FilterSource> = Arc::new(filters.clone());
            let engine = RocksEngine::open_filtered(dir.path(), &EngineConfig::default(), Some(source)).unwrap();
            let (mut model, mut ts, mut safe_point) = (Model::new(), 0, 0);
            for (commits, compact, rise) in rounds {
                for (user, kind, is_long) in commits {
                    ts += 1;
                    commit(&engine, user, ts, (KINDS[kind], is_long));
                    model.insert((user, ts), (KINDS[kind], is_long));
                }
                safe_point += rise;
                filters.safe_points.raise(safe_point, safe_point);
                if compact {
                    engine.flush_and_compact();
                } else {
                    engine.flush(Cf::Write);
                }
                check(&engine, &model, safe_point)?;
                delete_values(&engine, &filters.garbage);
                check(&engine, &model, safe_point)?;
            }
        }
    }

    #[test]
    fn a_compaction_leaves_what_the_safe_point_needs_and_the_values_go_after_it() {
        let (dir, filters) = (tempfile::tempdir().unwrap(), Filters::default());
        let source: Arc<dyn FilterSource> = Arc::new(filters.clone());
        let engine = RocksEngine::open_filtered(dir.path(), &EngineConfig::default(), Some(source)).unwrap();
        (1..=50).for_each(|ts| commit(&engine, 0, ts, (WriteKind::Put, true)));
        engine.flush_and_compact();
        assert_eq!((count(&engine, Cf::Write), count(&engine, Cf::Default)), (50, 50), "no safe point yet");
        filters.safe_points.raise(40, 40);
        commit(&engine, 0, 51, (WriteKind::Put, true));
        engine.flush_and_compact();
        assert_eq!((count(&engine, Cf::Write), count(&engine, Cf::Default)), (12, 51));
        assert_eq!(filters.garbage.take_counts(), Dropped { versions: 39, marks: 0 });
        delete_values(&engine, &filters.garbage);
        assert_eq!(count(&engine, Cf::Default), 12);
    }

    #[test]
    fn a_delete_stays_while_a_compaction_does_not_see_all_files() {
        let (dir, filters) = (tempfile::tempdir().unwrap(), Filters::default());
        let source: Arc<dyn FilterSource> = Arc::new(filters.clone());
        let engine = RocksEngine::open_filtered(dir.path(), &EngineConfig::default(), Some(source)).unwrap();
        let compact = |user: u8| {
            engine.flush(Cf::Write);
            let key = Key::new(vec![user].into());
            engine.compact(Cf::Write, &key.with_ts(u64::MAX), &key.with_ts(0));
        };
        for user in [0, 2] {
            commit(&engine, user, 1, (WriteKind::Put, false));
            compact(user);
        }
        commit(&engine, 0, 2, (WriteKind::Delete, false));
        filters.safe_points.raise(10, 10);
        compact(0);
        assert_eq!(found(&engine, 0, 10), None, "the put below the delete may lie in a file of its own");
        engine.flush_and_compact();
        assert_eq!(found(&engine, 0, 10), None);
    }
}
