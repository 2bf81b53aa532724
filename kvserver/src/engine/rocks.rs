//! The data engine: one RocksDB with a column family per [`Cf`].
//!
//! Owns the database handle, its family handles and the options every read and write uses; nothing is
//! allocated per get but the answer. Snapshots and iterators (`rocks_snapshot`) own a share of the database, so
//! they may outlive the caller's engine handle. Ordinary writes are not synced: [`Engine::sync`] is one WAL sync for all of them.
//!
//! Invariants: a snapshot is released before the database closes, an iterator before its snapshot; after an
//! iteration `status` is asked; the cache-only tier never reads the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use rocksdb::statistics::Ticker;
use rocksdb::{
    Cache, ColumnFamily, ColumnFamilyDescriptor, DB, FlushOptions, IngestExternalFileOptions, Options, Range,
    ReadOptions, WriteBufferManager, properties,
};

use super::filter::FilterSource;
use super::rocks_density::Densities;
use super::rocks_open::{check_families, engine_error, open_error, read_error, write_error, write_options};
use super::rocks_options::{self, EngineConfig};
use super::synced_mark::SyncedMark;
use super::watch::{Watch, Watcher};
use super::{
    Cf, Engine, EngineError, EngineStats, Iter, Op, RangeEstimate, Result, Snapshot, SortedFile, WriteBatch,
    WriteOptions, rocks_snapshot, rocks_sst,
};

/// Up to this many keys left in a range are deleted one by one: a range tombstone slows every later read near
/// it until it is compacted away, and most cleared ranges are empty or lose nearly all in whole files.
const CLEAR_SINGLY_MAX: usize = 256;

/// Above every key for the purpose of an estimate.
const ESTIMATE_END: [u8; 64] = [0xff; 64];

/// The engine on RocksDB. Clones share one database; it closes when the last clone, snapshot and iterator go.
#[derive(Clone)]
pub struct RocksEngine {
    inner: Arc<Inner>,
}

/// Counts since the database was opened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounters {
    pub block_cache_hits: u64,
    pub block_cache_misses: u64,
    pub flush_bytes_written: u64,
    pub compaction_bytes_read: u64,
    pub compaction_bytes_written: u64,
    /// Microseconds that writers were made to wait.
    pub stall_micros: u64,
}

/// The open database; shared by the engine, its snapshots and its iterators.
pub(super) struct Inner {
    read: ReadOptions,
    /// By `no_slowdown`, then `sync`.
    write: [[rocksdb::WriteOptions; 2]; 2],
    /// Points into `db`, whose family map never changes after opening.
    families: [&'static ColumnFamily; Cf::ALL.len()],
    /// Kept for the statistics object that hangs on it.
    options: Options,
    cache: Cache,
    memtables: WriteBufferManager,
    densities: Densities,
    path: PathBuf,
    mark: SyncedMark,
    /// How often files were taken in; held for writing while one is.
    ingested: RwLock<u64>,
    pub(super) watch: Watch,
    pub(super) db: DB,
}

impl RocksEngine {
    /// Opens the database in `path`, creating it when the directory has none.
    ///
    /// # Errors
    /// [`EngineError::InUse`] when another process has it open, [`EngineError::WrongFamilies`] when it is not a
    /// database of this program or of a newer version, [`EngineError::Corrupt`] when files are damaged,
    /// [`EngineError::LostWrites`] when writes that were synced are gone.
    pub fn open(path: &Path, config: &EngineConfig) -> Result<RocksEngine> {
        RocksEngine::open_filtered(path, config, None)
    }

    /// The same with `filters`, which are asked what compactions may leave out.
    ///
    /// # Errors
    /// Those of [`RocksEngine::open`].
    pub fn open_filtered(
        path: &Path,
        config: &EngineConfig,
        filters: Option<Arc<dyn FilterSource>>,
    ) -> Result<RocksEngine> {
        let shared = rocks_options::data_options(config, filters);
        let mut options = shared.db;
        options.create_missing_column_families(check_families(path, &options)?);
        let descriptors =
            shared.families.into_iter().map(|(cf, o)| ColumnFamilyDescriptor::new(cf.name(), o));
        let db = DB::open_cf_descriptors(&options, path, descriptors).map_err(|e| open_error(path, e))?;
        let mut families = [None; Cf::ALL.len()];
        for cf in Cf::ALL {
            let handle = db.cf_handle(cf.name());
            // SAFETY: the handle lives in a map on the heap that the database owns and changes only through
            // `&mut DB`; `Inner` keeps the database, gives no `&mut` to it, and never lets the handle out.
            families[cf as usize] =
                handle.map(|h| unsafe { std::mem::transmute::<&ColumnFamily, &'static ColumnFamily>(h) });
        }
        let [Some(a), Some(b), Some(c), Some(d), Some(e)] = families else {
            return Err(EngineError::Io(format!("{}: a column family has no handle", path.display())));
        };
        let write =
            [false, true].map(|no_slowdown| [false, true].map(|sync| write_options(sync, no_slowdown)));
        Ok(RocksEngine {
            inner: Arc::new(Inner {
                read: ReadOptions::default(),
                write,
                families: [a, b, c, d, e],
                options,
                cache: shared.cache,
                memtables: shared.memtables,
                densities: Densities::default(),
                path: path.to_path_buf(),
                mark: SyncedMark::open(path, db.latest_sequence_number())?,
                ingested: RwLock::default(),
                watch: Watch::default(),
                db,
            }),
        })
    }

    /// Has `watcher` told of failures of the disk.
    pub fn watch(&self, watcher: Watcher) {
        self.inner.watch.set(watcher);
    }

    /// What the database counted since it was opened.
    pub fn counters(&self) -> EngineCounters {
        let count = |ticker| self.inner.options.get_ticker_count(ticker);
        EngineCounters {
            block_cache_hits: count(Ticker::BlockCacheHit),
            block_cache_misses: count(Ticker::BlockCacheMiss),
            flush_bytes_written: count(Ticker::FlushWriteBytes),
            compaction_bytes_read: count(Ticker::CompactReadBytes),
            compaction_bytes_written: count(Ticker::CompactWriteBytes),
            stall_micros: count(Ticker::StallMicros),
        }
    }
}

impl Inner {
    pub(super) fn cf(&self, cf: Cf) -> &ColumnFamily {
        self.families[cf as usize]
    }

    pub(super) fn get(&self, cf: Cf, key: &[u8], options: &ReadOptions) -> Result<Option<Bytes>> {
        let value = self.db.get_pinned_cf_opt(self.cf(cf), key, options);
        let value = value.map_err(|e| self.watch.saw(read_error(e)))?;
        Ok(value.map(|v| Bytes::copy_from_slice(&v)))
    }

    /// The key just after the last key of a family and of `batch`: a stand-in for "to the end", since RocksDB
    /// has no open range.
    fn end_of(&self, cf: Cf, batch: &[Op]) -> Result<Vec<u8>> {
        let mut it = self.db.raw_iterator_cf_opt(self.cf(cf), ReadOptions::default());
        it.seek_to_last();
        it.status().map_err(|e| self.watch.saw(read_error(e)))?;
        let mut last = it.key().unwrap_or_default().to_vec();
        for op in batch {
            if let Op::Put { cf: put_cf, key, .. } = op
                && *put_cf == cf
                && key[..] > last[..]
            {
                last = key.to_vec();
            }
        }
        last.push(0);
        Ok(last)
    }

    fn to_rocks(&self, batch: &WriteBatch) -> Result<rocksdb::WriteBatch> {
        // Per operation: tag, family, two varint lengths.
        let capacity = 12 + batch.bytes() + 12 * batch.ops().len();
        let mut out = rocksdb::WriteBatch::with_capacity_bytes(capacity);
        for (i, op) in batch.ops().iter().enumerate() {
            match op {
                Op::Put { cf, key, value } => out.put_cf(self.cf(*cf), key, value),
                Op::Delete { cf, key } => out.delete_cf(self.cf(*cf), key),
                Op::DeleteRange { cf, start, end } if end.is_empty() => {
                    let end = self.end_of(*cf, &batch.ops()[..i])?;
                    if start[..] < end[..] {
                        out.delete_range_cf(self.cf(*cf), &start[..], &end[..]);
                    }
                }
                Op::DeleteRange { cf, start, end } => {
                    if start < end {
                        out.delete_range_cf(self.cf(*cf), &start[..], &end[..]);
                    }
                }
            }
        }
        Ok(out)
    }

    /// Deletes what whole-file deletion left of `[start, end)`.
    fn clear_rest(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<()> {
        let mut options = ReadOptions::default();
        options.set_iterate_range(start..end);
        options.fill_cache(false);
        let mut it = self.db.raw_iterator_cf_opt(self.cf(cf), options);
        let mut batch = rocksdb::WriteBatch::default();
        it.seek_to_first();
        while let Some(key) = it.key() {
            if batch.len() == CLEAR_SINGLY_MAX {
                batch.clear();
                batch.delete_range_cf(self.cf(cf), start, end);
                break;
            }
            batch.delete_cf(self.cf(cf), key);
            it.next();
        }
        it.status().map_err(|e| self.watch.saw(read_error(e)))?;
        if batch.is_empty() {
            return Ok(());
        }
        self.db.write_opt(batch, &self.write[0][0]).map_err(engine_error)
    }

    fn property(&self, cf: Cf, name: &rocksdb::properties::PropName) -> u64 {
        // A property that cannot be read is a property of an older RocksDB: nothing to report.
        self.db.property_int_value_cf(self.cf(cf), name).ok().flatten().unwrap_or(0)
    }
}

/// A key below the non-empty `end`, with few keys in between.
fn key_below(end: &[u8]) -> Vec<u8> {
    let mut key = end.to_vec();
    match key.pop() {
        // The very predecessor.
        Some(0) | None => {}
        Some(byte) => key.extend([byte - 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    }
    key
}

impl Engine for RocksEngine {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        rocks_snapshot::snapshot(&self.inner)
    }

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(cf, key, &self.inner.read)
    }

    fn write(&self, batch: &WriteBatch, options: WriteOptions) -> Result<()> {
        if batch.is_empty() {
            return if options.sync { self.sync() } else { Ok(()) };
        }
        let write = &self.inner.write[usize::from(options.no_slowdown)][usize::from(options.sync)];
        let batch = self.inner.to_rocks(batch)?;
        // Each change takes a number above all that were given out before.
        let end = self.inner.db.latest_sequence_number() + batch.len() as u64;
        let written = self.inner.db.write_opt(batch, write);
        written.map_err(|e| self.inner.watch.saw_in_write(write_error(e)))?;
        if options.sync { self.inner.mark.raise(end) } else { Ok(()) }
    }

    fn sync(&self) -> Result<()> {
        let end = self.inner.db.latest_sequence_number();
        self.inner.db.flush_wal(true).map_err(engine_error)?;
        self.inner.mark.raise(end)
    }

    fn write_sorted_file(&self, iter: &mut dyn Iter, path: &Path) -> Result<Option<SortedFile>> {
        rocks_sst::write(iter, path)
    }

    fn ingest(&self, cf: Cf, path: &Path) -> Result<()> {
        // The file is in the manifest, and so durable, at once; what was written before it must not be less so.
        self.sync()?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let mut ingested = self.inner.ingested.write();
        *ingested += 1;
        self.inner
            .db
            .ingest_external_file_cf_opts(self.inner.cf(cf), &options, vec![path])
            .map_err(engine_error)
    }

    fn ingested(&self) -> u64 {
        *self.inner.ingested.read()
    }

    fn write_unless_ingested(&self, batch: &WriteBatch, since: u64) -> Result<bool> {
        // Held over the write: no file comes in between.
        let ingested = self.inner.ingested.read();
        if *ingested != since {
            return Ok(false);
        }
        self.write(batch, WriteOptions::default())?;
        Ok(true)
    }

    fn clear_range(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<()> {
        let open_end;
        let end = if end.is_empty() {
            open_end = self.inner.end_of(cf, &[])?;
            &open_end[..]
        } else {
            end
        };
        if start < end {
            // Removes files below level 0 that lie in the range, without reading or rewriting them.
            // Its upper bound is inclusive: given `end` itself it would take a key that is not in the range.
            let last = key_below(end);
            if start <= &last[..] {
                self.inner
                    .db
                    .delete_file_in_range_cf(self.inner.cf(cf), start, &last[..])
                    .map_err(engine_error)?;
            }
            self.inner.clear_rest(cf, start, end)?;
        }
        self.sync()
    }

    fn estimate(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<RangeEstimate> {
        let end = if end.is_empty() { &ESTIMATE_END[..] } else { end };
        if start >= end {
            return Ok(RangeEstimate::default());
        }
        let inner = &self.inner;
        let sizes = inner.db.get_approximate_sizes_cf(inner.cf(cf), &[Range::new(start, end)]);
        let density = inner.densities.of(&inner.db, inner.cf(cf), cf)?;
        let mut estimate = density.estimate(sizes.iter().sum());
        // Sizes of ranges are of files only. What is in memory may be anywhere in the family.
        estimate.unplaced_keys = inner.property(cf, properties::NUM_ENTRIES_ACTIVE_MEM_TABLE)
            + inner.property(cf, properties::NUM_ENTRIES_IMM_MEM_TABLES);
        if estimate.unplaced_keys > 0 {
            estimate.unplaced_bytes = inner.property(cf, properties::CUR_SIZE_ALL_MEM_TABLES);
        }
        Ok(estimate)
    }

    fn stalled(&self) -> bool {
        [properties::IS_WRITE_STOPPED, properties::ACTUAL_DELAYED_WRITE_RATE]
            .into_iter()
            .any(|name| self.inner.property(Cf::Default, name) != 0)
    }

    fn stats(&self) -> EngineStats {
        let memtables = self.inner.memtables.get_usage() as u64;
        let mut keys = [0; Cf::ALL.len()];
        for cf in Cf::ALL {
            keys[cf as usize] = self.inner.property(cf, properties::ESTIMATE_NUM_KEYS);
        }
        EngineStats {
            disk_bytes: directory_bytes(&self.inner.path),
            memtable_bytes: memtables,
            // Memtables are charged to the cache.
            block_cache_bytes: (self.inner.cache.get_usage() as u64).saturating_sub(memtables),
            keys,
        }
    }

    fn close(&self) -> Result<()> {
        let families = self.inner.families.each_ref().map(|f| *f);
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.inner.db.flush_cfs_opt(&families.each_ref().map(|f| *f), &options).map_err(engine_error)?;
        self.sync()?;
        self.inner.mark.close()?;
        self.inner.db.cancel_all_background_work(true);
        Ok(())
    }
}

/// Bytes of the files in a directory; files that go away meanwhile do not count.
pub(super) fn directory_bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries.flatten().filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

#[cfg(test)]
impl RocksEngine {
    /// Moves one family out of its memtable.
    pub(crate) fn flush(&self, cf: Cf) {
        self.inner.db.flush_cf(self.inner.cf(cf)).unwrap();
    }

    /// Compacts what lies in a range of one family, and no other files.
    pub(crate) fn compact(&self, cf: Cf, start: &[u8], end: &[u8]) {
        self.inner.db.compact_range_cf(self.inner.cf(cf), Some(start), Some(end));
    }

    /// Moves everything out of the memtables and off level 0, where the other read paths are.
    pub(crate) fn flush_and_compact(&self) {
        for cf in Cf::ALL {
            self.inner.db.flush_cf(self.inner.cf(cf)).unwrap();
            self.inner.db.compact_range_cf(self.inner.cf(cf), None::<&[u8]>, None::<&[u8]>);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{IterOptions, ReadTier};
    use super::*;

    fn open(path: &Path) -> RocksEngine {
        RocksEngine::open(path, &EngineConfig::default()).unwrap()
    }

    fn put(engine: &RocksEngine, n: u32, sync: bool) {
        let mut batch = WriteBatch::new();
        // Bytes that do not compress, so that sizes mean something.
        let mut value = Vec::with_capacity(1000);
        let mut state = u64::from(n) + 1;
        while value.len() < 1000 {
            state = (state ^ (state >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            value.extend_from_slice(&(state ^ (state >> 32)).to_le_bytes());
        }
        batch.put(Cf::Raw, key(n), value);
        engine.write(&batch, WriteOptions { sync, no_slowdown: true }).unwrap();
    }

    fn key(n: u32) -> Vec<u8> {
        format!("key{n:06}").into_bytes()
    }

    fn has(engine: &RocksEngine, n: u32) -> bool {
        engine.get(Cf::Raw, &key(n)).unwrap().is_some()
    }

    #[test]
    fn data_survives_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        (0..10).for_each(|n| put(&engine, n, n == 9));
        drop(engine);
        let engine = open(dir.path());
        assert!((0..10).all(|n| has(&engine, n)));
        engine.close().unwrap();
        drop(engine);
        let stats = open(dir.path()).stats();
        assert_eq!(stats.keys[Cf::Raw as usize], 10);
        assert!(stats.disk_bytes > 0);
    }

    #[test]
    fn a_snapshot_and_its_iterator_outlive_the_engine_handle() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        put(&engine, 1, false);
        let snapshot = engine.snapshot();
        put(&engine, 2, false);
        drop(engine);
        let mut it = snapshot.iter(Cf::Raw, IterOptions::default()).unwrap();
        drop(snapshot);
        it.seek_to_first();
        assert_eq!(it.key(), key(1));
        it.next();
        assert!(!it.valid());
        it.status().unwrap();
        drop(it);
        assert!(has(&open(dir.path()), 2));
    }

    #[test]
    fn the_cache_tier_never_reads_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        (0..100).for_each(|n| put(&engine, n, false));
        engine.flush_and_compact();
        drop(engine);
        let engine = open(dir.path());
        let snapshot = engine.snapshot();
        let cached = |n| snapshot.get(Cf::Raw, &key(n), ReadTier::Cache);
        assert!(matches!(cached(50), Err(EngineError::NotCached)));
        let options = IterOptions { tier: ReadTier::Cache, ..IterOptions::default() };
        let mut it = snapshot.iter(Cf::Raw, options).unwrap();
        it.seek_to_first();
        assert!(!it.valid());
        assert!(matches!(it.status(), Err(EngineError::NotCached)));
        assert!(snapshot.get(Cf::Raw, &key(50), ReadTier::All).unwrap().is_some());
        assert!(cached(50).unwrap().is_some());
        assert!(engine.counters().block_cache_hits > 0);
    }

    #[test]
    fn versions_of_one_key_are_found_in_every_file_and_other_cursors_see_all_keys() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let version = |key: u8, ts: u64| [&[key; 9][..], &(!ts).to_be_bytes()].concat();
        for ts in [10, 20, 30] {
            let mut batch = WriteBatch::new();
            (b'a'..=b'y').step_by(2).for_each(|k| batch.put(Cf::Write, version(k, ts + u64::from(k)), "v"));
            engine.write(&batch, WriteOptions::default()).unwrap();
            engine.flush_and_compact();
        }
        let snapshot = engine.snapshot();
        let mut one =
            snapshot.iter(Cf::Write, IterOptions { one_key: true, ..IterOptions::default() }).unwrap();
        for k in b'a'..=b'y' {
            one.seek(&version(k, u64::MAX));
            let here = |one: &dyn Iter| one.valid() && one.key().starts_with(&[k; 9]);
            let mut found = 0;
            while here(&*one) {
                found += 1;
                one.next();
            }
            one.status().unwrap();
            assert_eq!(found, if (k - b'a').is_multiple_of(2) { 3 } else { 0 }, "{k}");
        }
        let mut all = snapshot.iter(Cf::Write, IterOptions::default()).unwrap();
        let mut seen = 0;
        all.seek(&version(b'b', 0));
        while all.valid() {
            seen += 1;
            all.next();
        }
        assert_eq!(seen, 3 * 12, "everything after the first key");
    }

    #[test]
    fn the_key_below_an_end_is_below_it_and_above_all_shorter_ones() {
        assert_eq!(key_below(b"b\0"), b"b");
        assert_eq!(key_below(b"\0"), b"");
        let below = key_below(b"b");
        assert!(below < b"b".to_vec() && below > b"a\xff\xff".to_vec());
    }

    #[test]
    fn a_cleared_range_is_gone_with_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        (0..2000).for_each(|n| put(&engine, n, false));
        engine.flush_and_compact();
        (0..1000).for_each(|n| put(&engine, n, false));
        assert!(engine.estimate(Cf::Raw, &key(0), &[]).unwrap().bytes > 1_000_000);
        engine.clear_range(Cf::Raw, &key(10), &key(990)).unwrap();
        assert!(has(&engine, 9) && !has(&engine, 10) && !has(&engine, 989) && has(&engine, 990));
        engine.clear_range(Cf::Raw, &[], &[]).unwrap();
        assert!((0..2000).all(|n| !has(&engine, n)));
        drop(engine);
        let engine = open(dir.path());
        assert!((0..2000).all(|n| !has(&engine, n)));
        assert!(engine.estimate(Cf::Raw, &[], &[]).unwrap().bytes < 10_000);
    }
}
