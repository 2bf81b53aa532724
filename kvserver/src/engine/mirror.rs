//! Two implementations side by side, which must always agree: the check that the memory engine and the memory
//! log store, on which the simulator relies, behave like RocksDB.
//!
//! Owns a [`MirrorEngine`] that any test can use in place of an engine: every answer is asked of both and
//! compared. The property tests below drive it, and the two log stores, with random operations.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::mem::MemEngine;
use super::rocks::RocksEngine;
use super::{
    Cf, Engine, EngineConfig, EngineError, EngineStats, Iter, IterOptions, RangeEstimate, ReadTier, Result,
    Snapshot, SortedFile, WriteBatch, WriteOptions,
};

/// RocksDB and memory in step. Panics, being a test tool, where they differ.
pub struct MirrorEngine {
    rocks: RocksEngine,
    mem: MemEngine,
}

impl MirrorEngine {
    /// Both empty; RocksDB in `path`.
    pub fn open(path: &Path) -> MirrorEngine {
        let rocks = RocksEngine::open(path, &EngineConfig::default()).unwrap();
        MirrorEngine { rocks, mem: MemEngine::new() }
    }
}

/// The common answer; RocksDB may also decline to answer from its cache.
fn same<T: PartialEq + std::fmt::Debug>(rocks: Result<T>, mem: Result<T>) -> Result<T> {
    if !matches!(rocks, Err(EngineError::NotCached)) {
        match (&rocks, &mem) {
            (Ok(a), Ok(b)) => assert_eq!(a, b),
            (Err(_), Err(_)) => {}
            _ => panic!("rocks answered {rocks:?}, memory {mem:?}"),
        }
    }
    rocks
}

impl Engine for MirrorEngine {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(MirrorSnapshot { rocks: self.rocks.snapshot(), mem: self.mem.snapshot() })
    }

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>> {
        same(self.rocks.get(cf, key), self.mem.get(cf, key))
    }

    fn write(&self, batch: &WriteBatch, options: WriteOptions) -> Result<()> {
        self.rocks.write(batch, options)?;
        self.mem.write(batch, options)
    }

    fn sync(&self) -> Result<()> {
        same(self.rocks.sync(), self.mem.sync())
    }

    fn write_sorted_file(&self, iter: &mut dyn Iter, path: &Path) -> Result<Option<SortedFile>> {
        let start = Bytes::copy_from_slice(iter.key());
        let rocks = self.rocks.write_sorted_file(iter, path)?;
        if rocks.is_some() {
            iter.seek(&start);
        }
        let mem = self.mem.write_sorted_file(iter, path)?;
        assert_eq!(rocks.map(|f| f.keys), mem.map(|f| f.keys));
        assert_eq!(path.exists(), rocks.is_some());
        Ok(rocks)
    }

    fn ingest(&self, cf: Cf, path: &Path) -> Result<()> {
        same(self.rocks.ingest(cf, path), self.mem.ingest(cf, path))
    }

    fn ingested(&self) -> u64 {
        self.rocks.ingested()
    }

    fn write_unless_ingested(&self, batch: &WriteBatch, since: u64) -> Result<bool> {
        let (rocks, mem) = (&self.rocks, &self.mem);
        same(rocks.write_unless_ingested(batch, since), mem.write_unless_ingested(batch, since))
    }

    fn clear_range(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<()> {
        same(self.rocks.clear_range(cf, start, end), self.mem.clear_range(cf, start, end))
    }

    fn estimate(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<RangeEstimate> {
        self.rocks.estimate(cf, start, end)
    }

    fn stalled(&self) -> bool {
        self.rocks.stalled()
    }

    fn stats(&self) -> EngineStats {
        self.rocks.stats()
    }

    fn close(&self) -> Result<()> {
        same(self.rocks.close(), self.mem.close())
    }
}

struct MirrorSnapshot {
    rocks: Arc<dyn Snapshot>,
    mem: Arc<dyn Snapshot>,
}

impl Snapshot for MirrorSnapshot {
    fn get(&self, cf: Cf, key: &[u8], tier: ReadTier) -> Result<Option<Bytes>> {
        same(self.rocks.get(cf, key, tier), self.mem.get(cf, key, tier))
    }

    fn iter(&self, cf: Cf, options: IterOptions) -> Result<Box<dyn Iter>> {
        let (rocks, mem) = (self.rocks.iter(cf, options.clone())?, self.mem.iter(cf, options)?);
        Ok(Box::new(MirrorIter { rocks, mem }))
    }
}

struct MirrorIter {
    rocks: Box<dyn Iter>,
    mem: Box<dyn Iter>,
}

impl MirrorIter {
    fn both(&mut self, step: impl Fn(&mut dyn Iter)) {
        step(&mut *self.rocks);
        step(&mut *self.mem);
        let at = |it: &dyn Iter| it.valid().then(|| (it.key().to_vec(), it.value().to_vec()));
        if !matches!(self.rocks.status(), Err(EngineError::NotCached)) {
            assert_eq!(at(&*self.rocks), at(&*self.mem));
        }
    }
}

impl Iter for MirrorIter {
    fn seek(&mut self, key: &[u8]) {
        self.both(|it| it.seek(key));
    }

    fn seek_for_prev(&mut self, key: &[u8]) {
        self.both(|it| it.seek_for_prev(key));
    }

    fn seek_to_first(&mut self) {
        self.both(|it| it.seek_to_first());
    }

    fn seek_to_last(&mut self) {
        self.both(|it| it.seek_to_last());
    }

    fn next(&mut self) {
        self.both(|it| it.next());
    }

    fn prev(&mut self) {
        self.both(|it| it.prev());
    }

    fn valid(&self) -> bool {
        self.rocks.valid()
    }

    fn key(&self) -> &[u8] {
        self.rocks.key()
    }

    fn value(&self) -> &[u8] {
        self.rocks.value()
    }

    fn status(&self) -> Result<()> {
        self.rocks.status()
    }
}

mod tests {
    use proptest::prelude::*;

    use super::super::log_store::{HardState, LogEntry, LogStore, LogWrite, MemLogStore, RegionLogWrite};
    use super::super::{Op, RocksLogStore};
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(Vec<Op>, bool),
        Snapshot,
        Scan { lower: Bytes, upper: Bytes, from: Bytes },
        Clear(Bytes, Bytes),
        Move { lower: Bytes, upper: Bytes },
        Flush,
    }

    /// Few keys of different lengths, the empty bound and the highest bytes among them.
    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(prop::sample::select(vec![0u8, 1, 7, 0xff]), 1..4).prop_map(Bytes::from)
    }

    fn bound() -> impl Strategy<Value = Bytes> {
        prop_oneof![1 => Just(Bytes::new()), 4 => key()]
    }

    fn op() -> impl Strategy<Value = Op> {
        let cf = prop::sample::select(vec![Cf::Raw, Cf::Write]);
        prop_oneof![
            6 => (cf.clone(), key(), prop::collection::vec(any::<u8>(), 0..5))
                .prop_map(|(cf, key, value)| Op::Put { cf, key, value: value.into() }),
            2 => (cf.clone(), key()).prop_map(|(cf, key)| Op::Delete { cf, key }),
            1 => (cf, bound(), bound()).prop_map(|(cf, start, end)| Op::DeleteRange { cf, start, end }),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (prop::collection::vec(op(), 0..8), any::<bool>()).prop_map(|(o, s)| Step::Write(o, s)),
            1 => Just(Step::Snapshot),
            4 => (bound(), bound(), key())
                .prop_map(|(lower, upper, from)| Step::Scan { lower, upper, from }),
            1 => (bound(), bound()).prop_map(|(start, end)| Step::Clear(start, end)),
            1 => (bound(), bound()).prop_map(|(lower, upper)| Step::Move { lower, upper }),
            1 => Just(Step::Flush),
        ]
    }

    /// Walks `[lower, upper)` every way there is; the mirror compares each position.
    fn scan(snapshot: &dyn Snapshot, lower: &Bytes, upper: &Bytes, from: &Bytes) {
        for cf in [Cf::Raw, Cf::Write] {
            let options = IterOptions { lower: lower.clone(), upper: upper.clone(), ..Default::default() };
            let mut it = snapshot.iter(cf, options).unwrap();
            it.seek_to_first();
            while it.valid() {
                it.next();
            }
            it.next();
            it.seek_to_last();
            while it.valid() {
                it.prev();
            }
            it.seek(from);
            it.prev();
            it.seek_for_prev(from);
            it.next();
            it.status().unwrap();
            snapshot.get(cf, from, ReadTier::All).unwrap();
            match snapshot.get(cf, from, ReadTier::Cache) {
                Ok(_) | Err(EngineError::NotCached) => {}
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Carries a range of `raw` over into `write` by a sorted file.
    fn move_range(engine: &MirrorEngine, lower: Bytes, upper: Bytes, path: &Path) {
        let options = IterOptions { lower, upper, no_fill_cache: true, ..Default::default() };
        let mut it = engine.snapshot().iter(Cf::Raw, options).unwrap();
        it.seek_to_first();
        if engine.write_sorted_file(&mut *it, path).unwrap().is_some() {
            engine.ingest(Cf::Write, path).unwrap();
            assert!(!path.exists());
        }
    }

    fn run(engine: &MirrorEngine, steps: Vec<Step>, path: &Path) {
        let all = Bytes::new();
        let mut snapshots = vec![engine.snapshot()];
        for step in steps {
            match step {
                Step::Write(ops, sync) => {
                    let mut batch = WriteBatch::new();
                    ops.into_iter().for_each(|op| batch.push(op));
                    engine.write(&batch, WriteOptions { sync, no_slowdown: false }).unwrap();
                }
                Step::Snapshot => snapshots.push(engine.snapshot()),
                Step::Scan { lower, upper, from } => {
                    engine.get(Cf::Raw, &from).unwrap();
                    snapshots.iter().for_each(|s| scan(&**s, &lower, &upper, &from));
                }
                Step::Clear(start, end) => {
                    // Clearing removes files without regard for older snapshots.
                    snapshots.clear();
                    engine.clear_range(Cf::Raw, &start, &end).unwrap();
                }
                Step::Move { lower, upper } => move_range(engine, lower, upper, path),
                Step::Flush => engine.rocks.flush_and_compact(),
            }
        }
        scan(&*engine.snapshot(), &all, &all, &Bytes::from_static(b"\x01"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn engines_agree_on_every_answer(steps in prop::collection::vec(step(), 1..40)) {
            let dir = tempfile::tempdir().unwrap();
            let engine = MirrorEngine::open(&dir.path().join("db"));
            run(&engine, steps, &dir.path().join("moved.sst"));
        }
    }

    #[derive(Clone, Debug)]
    enum LogStep {
        /// From `back` entries before the end, `count` entries.
        Append {
            region: u64,
            back: u64,
            count: u64,
            term: u64,
            state: bool,
            sync: bool,
        },
        Reset {
            region: u64,
            index: u64,
        },
        Compact {
            region: u64,
            keep: u64,
        },
        Remove {
            region: u64,
        },
        Reopen,
    }

    fn log_step() -> impl Strategy<Value = LogStep> {
        let region = || prop::sample::select(vec![1u64, 2, 0x0100, u64::MAX]);
        prop_oneof![
            8 => (region(), 0..90u64, 0..100u64, 1..9u64, any::<(bool, bool)>()).prop_map(
                |(region, back, count, term, (state, sync))| LogStep::Append { region, back, count, term, state, sync },
            ),
            1 => (region(), 1..500u64).prop_map(|(region, index)| LogStep::Reset { region, index }),
            2 => (region(), 0..80u64).prop_map(|(region, keep)| LogStep::Compact { region, keep }),
            1 => region().prop_map(|region| LogStep::Remove { region }),
            1 => Just(LogStep::Reopen),
        ]
    }

    fn region_write(log: &dyn LogStore, step: &LogStep) -> RegionLogWrite {
        let entry = |index, term| LogEntry {
            index,
            term,
            kind: (index % 3) as u8,
            data: Bytes::from(vec![term as u8; index as usize % 7]),
            context: Bytes::from(vec![1; index as usize % 2]),
        };
        match *step {
            LogStep::Append { region, back, count, term, state, .. } => {
                let known = log.load(region).unwrap().unwrap_or_default();
                let start = (known.last_index + 1).saturating_sub(back).max(known.first_index).max(1);
                RegionLogWrite {
                    region_id: region,
                    reset: false,
                    entries: (start..start + count).map(|i| entry(i, term)).collect(),
                    old_last_index: known.last_index,
                    hard_state: state.then_some(HardState { term, vote: back, commit: count }),
                }
            }
            LogStep::Reset { region, index } => RegionLogWrite {
                region_id: region,
                reset: true,
                entries: vec![entry(index, 3)],
                ..RegionLogWrite::default()
            },
            _ => RegionLogWrite::default(),
        }
    }

    fn compare(rocks: &dyn LogStore, mem: &dyn LogStore) {
        assert_eq!(rocks.regions().unwrap(), mem.regions().unwrap());
        for region in [1, 2, 0x0100, u64::MAX, 77] {
            let known = rocks.load(region).unwrap();
            assert_eq!(known, mem.load(region).unwrap(), "region {region}");
            let Some(known) = known.filter(|k| k.last_index != 0) else { continue };
            let (low, high) = (known.first_index, known.last_index + 1);
            for max_bytes in [0, 200, u64::MAX] {
                let entries = rocks.entries(region, low, high, max_bytes).unwrap();
                assert!(!entries.is_empty());
                assert_eq!(entries, mem.entries(region, low, high, max_bytes).unwrap());
            }
            assert!(rocks.entries(region, low, high + 1, u64::MAX).is_err());
            assert!(mem.entries(region, low, high + 1, u64::MAX).is_err());
            for index in [low.saturating_sub(1), low, high - 1, high] {
                assert_eq!(rocks.term(region, index).unwrap(), mem.term(region, index).unwrap());
            }
        }
    }

    fn run_log(steps: Vec<LogStep>, path: &Path) {
        let config = EngineConfig { log_write_buffer_bytes: 64 << 10, ..EngineConfig::default() };
        let mut rocks = RocksLogStore::open(path, &config).unwrap();
        let mem = MemLogStore::new();
        for step in steps {
            match step {
                LogStep::Append { sync, .. } => {
                    let write = LogWrite { regions: vec![region_write(&mem, &step)] };
                    rocks.append(&write, sync).unwrap();
                    mem.append(&write, sync).unwrap();
                }
                LogStep::Reset { .. } => {
                    let write = LogWrite { regions: vec![region_write(&mem, &step)] };
                    rocks.append(&write, true).unwrap();
                    mem.append(&write, true).unwrap();
                }
                LogStep::Compact { region, keep } => {
                    let known = mem.load(region).unwrap().unwrap_or_default();
                    let to = (known.last_index + 1).saturating_sub(keep);
                    rocks.compact(region, known.first_index, to).unwrap();
                    mem.compact(region, known.first_index, to).unwrap();
                }
                LogStep::Remove { region } => {
                    rocks.remove(region).unwrap();
                    mem.remove(region).unwrap();
                }
                LogStep::Reopen => {
                    drop(rocks);
                    rocks = RocksLogStore::open(path, &config).unwrap();
                }
            }
            compare(&rocks, &mem);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn log_stores_agree_on_every_answer(steps in prop::collection::vec(log_step(), 1..30)) {
            let dir = tempfile::tempdir().unwrap();
            run_log(steps, dir.path());
        }
    }
}
