//! Raft logs in a RocksDB of their own, whose log files are recycled.
//!
//! Owns the record format and the rule that an append of any number of regions is one write and, when synced,
//! one `fdatasync`. That sync dominates the cost of a proposal; on a recycled (already written) file it costs
//! about what it costs on a preallocated one, half of what a growing file costs.
//!
//! Keys are region id and index in big-endian, so a region's records are neighbours in log order:
//! `region(8) 0` is the hard state, `region(8) 1 index(8)` an entry. Values start with a format version.
//!
//! Invariants: the records of one region's entries have contiguous indexes; bytes that do not decode are
//! [`EngineError::Corrupt`], never a panic and never skipped.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use rocksdb::{DB, DBRawIteratorWithThreadMode, FlushOptions, ReadOptions, WriteBatch, WriteOptions};

use super::log_store::{
    Durable, HardState, LogEntry, LogStore, LogWrite, LoggedState, RegionLogWrite, missing_entry,
};
use super::rocks::directory_bytes;
use super::rocks_open::{engine_error, open_error, read_error, write_options};
use super::rocks_options::{self, EngineConfig};
use super::synced_mark::SyncedMark;
use super::watch::{Watch, Watcher};
use super::{EngineError, Result};

/// The version of both record formats.
const FORMAT: u8 = 1;
const KIND_HARD_STATE: u8 = 0;
const KIND_ENTRY: u8 = 1;
/// Above every kind: the end of a region's records.
const KIND_END: u8 = 0xff;
/// Version, entry type, term, length of the context.
const ENTRY_HEADER: usize = 1 + 1 + 8 + 4;
const HARD_STATE_BYTES: usize = 1 + 8 + 8 + 8;
/// Bytes of a record in a batch besides the payload: key, header, tag and length prefixes.
const RECORD_OVERHEAD: usize = 17 + ENTRY_HEADER + 8;

/// Removing at most this many entries deletes them one by one, more of them as one range. A point delete costs
/// a small record and an insertion each; a range costs one record, but every later read of the log has to
/// consult all live ranges, and a seek to the start of a log has to step over point deletes one by one.
const POINT_DELETES_MAX: u64 = 64;

/// The Raft logs of a store in RocksDB.
pub struct RocksLogStore {
    synced: WriteOptions,
    unsynced: WriteOptions,
    path: PathBuf,
    mark: SyncedMark,
    watch: Watch,
    db: DB,
}

impl RocksLogStore {
    /// Opens the logs in `path`, creating them when there are none.
    ///
    /// # Errors
    /// [`EngineError::InUse`] when another process has them open, [`EngineError::Corrupt`] when damaged,
    /// [`EngineError::LostWrites`] when writes that were synced are gone.
    pub fn open(path: &Path, config: &EngineConfig) -> Result<RocksLogStore> {
        let db = DB::open(&rocks_options::log_options(config), path).map_err(|e| open_error(path, e))?;
        Ok(RocksLogStore {
            synced: write_options(true, false),
            unsynced: write_options(false, false),
            path: path.to_path_buf(),
            mark: SyncedMark::open(path, db.latest_sequence_number())?,
            watch: Watch::default(),
            db,
        })
    }

    /// Has `watcher` told of failures of the disk.
    pub fn watch(&self, watcher: Watcher) {
        self.watch.set(watcher);
    }

    /// Writes a batch; with `sync` it is on disk when this returns, with everything before it.
    fn write(&self, batch: WriteBatch, sync: bool) -> Result<()> {
        if !sync {
            return self.db.write_opt(batch, &self.unsynced).map_err(engine_error);
        }
        // Each change takes a number above all that were given out before.
        let end = self.db.latest_sequence_number() + batch.len() as u64;
        let written = self.db.write_opt(batch, &self.synced);
        written.map_err(|e| self.watch.saw_in_write(engine_error(e)))?;
        self.mark.raise(end)
    }

    /// A cursor over the region's entries `[low, high)`.
    fn cursor(&self, region_id: u64, low: u64, high: u64) -> DBRawIteratorWithThreadMode<'_, DB> {
        let mut options = ReadOptions::default();
        options.set_iterate_range(&entry_key(region_id, low)[..]..&entry_key(region_id, high)[..]);
        self.db.raw_iterator_opt(options)
    }

    /// The first or last stored index of a region.
    fn edge(&self, region_id: u64, last: bool) -> Result<Option<u64>> {
        let mut options = ReadOptions::default();
        options.set_iterate_range(&entry_key(region_id, 0)[..]..&kind_key(region_id, KIND_ENTRY + 1)[..]);
        let mut it = self.db.raw_iterator_opt(options);
        if last {
            it.seek_to_last();
        } else {
            it.seek_to_first();
        }
        it.status().map_err(|e| self.watch.saw(read_error(e)))?;
        it.key().map(|key| decode_index(key, region_id)).transpose()
    }
}

impl LogStore for RocksLogStore {
    fn regions(&self) -> Result<Vec<u64>> {
        let mut regions = Vec::new();
        let mut it = self.db.raw_iterator();
        it.seek_to_first();
        while let Some(key) = it.key() {
            let Some(id) = key.first_chunk::<8>() else {
                return Err(EngineError::Corrupt(format!("raft log key of {} bytes", key.len())));
            };
            let id = u64::from_be_bytes(*id);
            regions.push(id);
            it.seek(kind_key(id, KIND_END));
        }
        it.status().map_err(|e| self.watch.saw(read_error(e)))?;
        Ok(regions)
    }

    fn load(&self, region_id: u64) -> Result<Option<LoggedState>> {
        let state = self
            .db
            .get_pinned(kind_key(region_id, KIND_HARD_STATE))
            .map_err(|e| self.watch.saw(read_error(e)))?;
        let state = state.map(|v| decode_hard_state(&v, region_id)).transpose()?;
        let first = self.edge(region_id, false)?;
        if state.is_none() && first.is_none() {
            return Ok(None);
        }
        Ok(Some(LoggedState {
            hard_state: state.unwrap_or_default(),
            first_index: first.unwrap_or(0),
            last_index: self.edge(region_id, true)?.unwrap_or(0),
        }))
    }

    fn append(&self, write: &LogWrite, sync: bool) -> Result<Durable> {
        let records: usize = write.regions.iter().map(|r| r.entries.len() + 2).sum();
        let mut batch = WriteBatch::with_capacity_bytes(16 + write.bytes() + records * RECORD_OVERHEAD);
        let mut value = Vec::new();
        for region in &write.regions {
            region.check()?;
            add_region(&mut batch, &mut value, region);
        }
        self.write(batch, sync)?;
        Ok(Durable::new())
    }

    fn entries(&self, region_id: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        let mut bytes = 0u64;
        let mut it = self.cursor(region_id, low, high);
        it.seek_to_first();
        for index in low..high {
            let (Some(key), Some(value)) = (it.key(), it.value()) else {
                it.status().map_err(|e| self.watch.saw(read_error(e)))?;
                return Err(missing_entry(region_id, index));
            };
            if decode_index(key, region_id)? != index {
                return Err(missing_entry(region_id, index));
            }
            let entry = decode_entry(value, region_id, index)?;
            bytes = bytes.saturating_add(entry.bytes() as u64);
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
            it.next();
        }
        Ok(entries)
    }

    fn term(&self, region_id: u64, index: u64) -> Result<Option<u64>> {
        let value =
            self.db.get_pinned(entry_key(region_id, index)).map_err(|e| self.watch.saw(read_error(e)))?;
        value.map(|v| decode_header(&v, region_id, index).map(|h| h.term)).transpose()
    }

    fn compact(&self, region_id: u64, from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        delete_entries(&mut batch, region_id, from, to);
        // Losing this in a crash only means that the log is longer than it needs to be.
        self.write(batch, false)
    }

    fn remove(&self, region_id: u64) -> Result<()> {
        let mut batch = WriteBatch::default();
        batch.delete(kind_key(region_id, KIND_HARD_STATE));
        batch.delete_range(kind_key(region_id, KIND_ENTRY), kind_key(region_id, KIND_END));
        self.write(batch, true)
    }

    fn disk_bytes(&self) -> u64 {
        directory_bytes(&self.path)
    }

    fn close(&self) -> Result<()> {
        let end = self.db.latest_sequence_number();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_opt(&options).map_err(engine_error)?;
        self.db.flush_wal(true).map_err(engine_error)?;
        self.mark.raise(end)?;
        self.mark.close()?;
        self.db.cancel_all_background_work(true);
        Ok(())
    }
}

/// Adds one region's changes; `value` is scratch space.
fn add_region(batch: &mut WriteBatch, value: &mut Vec<u8>, write: &RegionLogWrite) {
    let region_id = write.region_id;
    if write.reset {
        batch.delete_range(kind_key(region_id, KIND_ENTRY), kind_key(region_id, KIND_ENTRY + 1));
    }
    for entry in &write.entries {
        encode_entry(entry, value);
        batch.put(entry_key(region_id, entry.index), &value[..]);
    }
    if let Some(last) = write.entries.last()
        && write.old_last_index > last.index
    {
        delete_entries(batch, region_id, last.index + 1, write.old_last_index.saturating_add(1));
    }
    if let Some(state) = &write.hard_state {
        batch.put(kind_key(region_id, KIND_HARD_STATE), encode_hard_state(state));
    }
}

/// Deletes entries `[from, to)`.
fn delete_entries(batch: &mut WriteBatch, region_id: u64, from: u64, to: u64) {
    if to - from > POINT_DELETES_MAX {
        batch.delete_range(entry_key(region_id, from), entry_key(region_id, to));
        return;
    }
    for index in from..to {
        batch.delete(entry_key(region_id, index));
    }
}

fn kind_key(region_id: u64, kind: u8) -> [u8; 9] {
    let mut key = [kind; 9];
    key[..8].copy_from_slice(&region_id.to_be_bytes());
    key
}

fn entry_key(region_id: u64, index: u64) -> [u8; 17] {
    let mut key = [KIND_ENTRY; 17];
    key[..8].copy_from_slice(&region_id.to_be_bytes());
    key[9..].copy_from_slice(&index.to_be_bytes());
    key
}

fn decode_index(key: &[u8], region_id: u64) -> Result<u64> {
    match key.last_chunk::<8>() {
        Some(index) if key.len() == 17 => Ok(u64::from_be_bytes(*index)),
        _ => Err(EngineError::Corrupt(format!("raft log of region {region_id}: key of {} bytes", key.len()))),
    }
}

fn encode_entry(entry: &LogEntry, value: &mut Vec<u8>) {
    value.clear();
    value.reserve(ENTRY_HEADER + entry.context.len() + entry.data.len());
    value.extend_from_slice(&[FORMAT, entry.kind]);
    value.extend_from_slice(&entry.term.to_le_bytes());
    value.extend_from_slice(&(entry.context.len() as u32).to_le_bytes());
    value.extend_from_slice(&entry.context);
    value.extend_from_slice(&entry.data);
}

struct EntryHeader {
    kind: u8,
    term: u64,
    context_len: usize,
}

fn decode_header(value: &[u8], region_id: u64, index: u64) -> Result<EntryHeader> {
    let corrupt =
        |what: &str| EngineError::Corrupt(format!("raft log of region {region_id} at {index}: {what}"));
    let Some((header, rest)) = value.split_first_chunk::<ENTRY_HEADER>() else {
        return Err(corrupt("the record is too short"));
    };
    let [version, kind, term @ .., c0, c1, c2, c3] = *header;
    if version != FORMAT {
        return Err(corrupt(&format!("format {version} is unknown; upgrade kvserver")));
    }
    let context_len = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
    if context_len > rest.len() {
        return Err(corrupt("the context is cut off"));
    }
    Ok(EntryHeader { kind, term: u64::from_le_bytes(term), context_len })
}

fn decode_entry(value: &[u8], region_id: u64, index: u64) -> Result<LogEntry> {
    let EntryHeader { kind, term, context_len } = decode_header(value, region_id, index)?;
    let payload = Bytes::copy_from_slice(&value[ENTRY_HEADER..]);
    let context = payload.slice(..context_len);
    let data = payload.slice(context_len..);
    Ok(LogEntry { index, term, kind, data, context })
}

fn encode_hard_state(state: &HardState) -> [u8; HARD_STATE_BYTES] {
    let mut value = [FORMAT; HARD_STATE_BYTES];
    value[1..9].copy_from_slice(&state.term.to_le_bytes());
    value[9..17].copy_from_slice(&state.vote.to_le_bytes());
    value[17..].copy_from_slice(&state.commit.to_le_bytes());
    value
}

fn decode_hard_state(value: &[u8], region_id: u64) -> Result<HardState> {
    let corrupt = |what: String| EngineError::Corrupt(format!("hard state of region {region_id}: {what}"));
    match value.split_first() {
        Some((&FORMAT, fields)) if value.len() == HARD_STATE_BYTES => {
            let field = |n: usize| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&fields[8 * n..8 * n + 8]);
                u64::from_le_bytes(bytes)
            };
            Ok(HardState { term: field(0), vote: field(1), commit: field(2) })
        }
        Some((&FORMAT, _)) | None => Err(corrupt(format!("{} bytes", value.len()))),
        Some((version, _)) => Err(corrupt(format!("format {version} is unknown; upgrade kvserver"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64) -> LogEntry {
        let data = Bytes::from(format!("data {index}"));
        LogEntry { index, term: 7, kind: 1, data, context: Bytes::from_static(b"ctx") }
    }

    fn append(log: &RocksLogStore, indexes: std::ops::Range<u64>, old_last_index: u64) {
        let entries = indexes.map(entry).collect();
        let hard_state = Some(HardState { term: 7, vote: 2, commit: 1 });
        let region = RegionLogWrite { region_id: 5, entries, old_last_index, hard_state, reset: false };
        log.append(&LogWrite { regions: vec![region] }, true).unwrap();
    }

    fn corrupt<T: std::fmt::Debug>(result: Result<T>, text: &str) {
        let error = result.unwrap_err();
        assert!(matches!(&error, EngineError::Corrupt(t) if t.contains(text)), "{error}");
    }

    #[test]
    fn the_log_survives_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let config = EngineConfig::default();
        let log = RocksLogStore::open(dir.path(), &config).unwrap();
        append(&log, 1..200, 0);
        log.compact(5, 1, 100).unwrap();
        append(&log, 150..152, 199);
        drop(log);
        let log = RocksLogStore::open(dir.path(), &config).unwrap();
        let hard_state = HardState { term: 7, vote: 2, commit: 1 };
        let state = LoggedState { hard_state, first_index: 100, last_index: 151 };
        assert_eq!(log.load(5).unwrap(), Some(state));
        assert_eq!(log.entries(5, 149, 152, u64::MAX).unwrap(), vec![entry(149), entry(150), entry(151)]);
        assert_eq!(log.term(5, 152).unwrap(), None);
        log.close().unwrap();
    }

    #[test]
    fn a_second_open_says_who_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let _log = RocksLogStore::open(dir.path(), &EngineConfig::default()).unwrap();
        let second = RocksLogStore::open(dir.path(), &EngineConfig::default()).map(|_| ());
        assert!(matches!(second, Err(EngineError::InUse { path, .. }) if path == dir.path()));
    }

    #[test]
    fn damaged_records_are_reported_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let log = RocksLogStore::open(dir.path(), &EngineConfig::default()).unwrap();
        append(&log, 1..4, 0);
        log.db.put(entry_key(5, 2), [FORMAT; 5]).unwrap();
        corrupt(log.entries(5, 1, 4, u64::MAX), "region 5 at 2: the record is too short");
        corrupt(log.term(5, 2), "too short");
        log.db.put(entry_key(5, 2), [9; ENTRY_HEADER]).unwrap();
        corrupt(log.term(5, 2), "format 9 is unknown");
        log.db.put(entry_key(5, 2), [FORMAT; ENTRY_HEADER]).unwrap();
        corrupt(log.term(5, 2), "context is cut off");
        log.db.delete(entry_key(5, 2)).unwrap();
        corrupt(log.entries(5, 1, 4, u64::MAX), "entry 2 is missing");
        log.db.put(kind_key(5, KIND_HARD_STATE), [FORMAT; 3]).unwrap();
        corrupt(log.load(5), "3 bytes");
        log.db.put([1, 2, 3], []).unwrap();
        corrupt(log.regions(), "key of 3 bytes");
    }

    /// The log file that holds the newest records, which end at the returned offset.
    fn newest_log_file(dir: &Path) -> (PathBuf, usize) {
        let files = std::fs::read_dir(dir).unwrap().flatten().map(|e| e.path());
        let newest = files.filter(|p| p.extension().is_some_and(|x| x == "log")).max().unwrap();
        let bytes = std::fs::read(&newest).unwrap();
        let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        (newest, end)
    }

    fn damaged_reopen(damage: impl Fn(&mut Vec<u8>, usize)) -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let config = EngineConfig::default();
        let log = RocksLogStore::open(dir.path(), &config).unwrap();
        (1..100).for_each(|index| append(&log, index..index + 1, 0));
        drop(log);
        let (file, end) = newest_log_file(dir.path());
        let mut bytes = std::fs::read(&file).unwrap();
        damage(&mut bytes, end);
        std::fs::write(&file, bytes).unwrap();
        let open = || RocksLogStore::open(dir.path(), &config).map(|_closed| ());
        let opened = open();
        assert_eq!(opened.is_err(), open().is_err(), "it stays that way");
        opened
    }

    #[test]
    fn a_log_that_lost_synced_records_is_refused() {
        let lost = |result: Result<()>| match result {
            Err(EngineError::LostWrites { .. } | EngineError::Corrupt(_)) => {}
            other => panic!("{other:?}"),
        };
        lost(damaged_reopen(|bytes, end| bytes[end / 2] ^= 0x10));
        lost(damaged_reopen(|bytes, end| bytes[end - 5] ^= 0x10));
        lost(damaged_reopen(|bytes, end| bytes.truncate(end - 3)));
        lost(damaged_reopen(|bytes, _| bytes.clear()));
    }

    #[test]
    fn an_undamaged_log_opens_after_a_crash() {
        damaged_reopen(|_, _| {}).unwrap();
    }
}
