//! The storage engine behind traits: ordered column families, atomic batches, consistent snapshots.
//!
//! Owns the vocabulary (`Cf`, `Op`, `WriteBatch`, `Engine`, `Snapshot`, `Iter`) and no data. `rocks` keeps
//! the data in RocksDB, `mem` in ordered maps with a durable prefix and `crash()`, `mirror` runs two side by
//! side and demands equal answers. The engine knows no regions, no Raft and no transactions.
//!
//! Invariants: a batch is visible and durable as a whole or not at all; a snapshot never changes; a read from
//! the cache-only tier answers [`EngineError::NotCached`] rather than doing I/O.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

pub mod filter;
pub mod log_store;
pub mod mem;
mod mem_tree;
#[cfg(test)]
pub mod mirror;
pub mod rocks;
mod rocks_density;
mod rocks_log;
mod rocks_open;
mod rocks_options;
mod rocks_snapshot;
mod rocks_sst;
mod synced_mark;
pub mod watch;

pub use rocks_log::RocksLogStore;
pub use rocks_options::EngineConfig;

/// A column family. `Raw` holds raw key-value data, `Default`, `Lock` and `Write` transactional data,
/// `Meta` what a store knows of itself and of its regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Cf {
    Default = 0,
    Lock = 1,
    Write = 2,
    Raw = 3,
    Meta = 4,
}

impl Cf {
    /// Every column family, in the order of its number.
    pub const ALL: [Cf; 5] = [Cf::Default, Cf::Lock, Cf::Write, Cf::Raw, Cf::Meta];
    /// The families that hold a region's data: what a snapshot carries and a destroyed peer clears.
    pub const DATA: [Cf; 4] = [Cf::Default, Cf::Lock, Cf::Write, Cf::Raw];

    /// The name on disk and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Cf::Default => "default",
            Cf::Lock => "lock",
            Cf::Write => "write",
            Cf::Raw => "raw",
            Cf::Meta => "meta",
        }
    }

    /// The family with this number, as written in log entries and manifests.
    pub fn from_u8(n: u8) -> Option<Cf> {
        Cf::ALL.get(n as usize).copied()
    }

    /// The family with this name.
    pub fn from_name(name: &str) -> Option<Cf> {
        Cf::ALL.into_iter().find(|cf| cf.name() == name)
    }
}

/// Why the engine could not do it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The answer is not in memory and the caller asked for no I/O. Ask again with [`ReadTier::All`].
    #[error("not in the block cache")]
    NotCached,
    /// The engine would have to slow the writer down. Keep the batch and try again later.
    #[error("the engine is busy compacting; the write was not done")]
    Stalled,
    /// The directory is in use by another process.
    #[error("{path} is in use by another process: {cause}")]
    InUse { path: PathBuf, cause: String },
    /// The directory holds another kind of database, or one of a newer version.
    #[error("{path} was not written by this version of kvserver: {cause}; check the data directory")]
    WrongFamilies { path: PathBuf, cause: String },
    /// Writes that were on disk are gone, and with them promises that were made to others.
    #[error(
        "{path} has lost writes that were on disk: it ends at write {recovered} and was synced up to {synced}. This \
         store has forgotten what it promised to others and must not go on: remove it from the cluster and start it \
         with an empty data directory, its replicas are made anew from the others"
    )]
    LostWrites { path: PathBuf, recovered: u64, synced: u64 },
    /// Stored bytes do not have the shape they must have.
    #[error("corrupt data: {0}")]
    Corrupt(String),
    /// The disk or RocksDB said no.
    #[error("storage engine: {0}")]
    Io(String),
}

/// The result of an engine operation.
pub type Result<T> = std::result::Result<T, EngineError>;

/// One change of a batch. Keys and values are shared, not copied, until the engine writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put {
        cf: Cf,
        key: Bytes,
        value: Bytes,
    },
    Delete {
        cf: Cf,
        key: Bytes,
    },
    /// Deletes `[start, end)`; an empty `end` means to the end of the family.
    DeleteRange {
        cf: Cf,
        start: Bytes,
        end: Bytes,
    },
}

/// Changes that become visible together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    ops: Vec<Op>,
    bytes: usize,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> WriteBatch {
        WriteBatch::default()
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, cf: Cf, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.push(Op::Put { cf, key: key.into(), value: value.into() });
    }

    /// Removes `key`.
    pub fn delete(&mut self, cf: Cf, key: impl Into<Bytes>) {
        self.push(Op::Delete { cf, key: key.into() });
    }

    /// Removes `[start, end)`; an empty `end` means to the end of the family.
    pub fn delete_range(&mut self, cf: Cf, start: impl Into<Bytes>, end: impl Into<Bytes>) {
        self.push(Op::DeleteRange { cf, start: start.into(), end: end.into() });
    }

    /// Adds one change.
    pub fn push(&mut self, op: Op) {
        self.bytes += match &op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key, .. } => key.len(),
            Op::DeleteRange { start, end, .. } => start.len() + end.len(),
        };
        self.ops.push(op);
    }

    /// The changes, in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Forgets the changes and keeps the memory.
    pub fn clear(&mut self) {
        self.ops.clear();
        self.bytes = 0;
    }
}

/// How a batch is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Return only once the batch (and everything before it) would survive a power loss.
    pub sync: bool,
    /// Answer [`EngineError::Stalled`] instead of waiting for compactions.
    pub no_slowdown: bool,
}

/// Where a read may look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadTier {
    /// Memory and disk.
    #[default]
    All,
    /// Memtables and block cache only; a miss is [`EngineError::NotCached`].
    Cache,
}

/// The range and manner of an iteration. Empty bounds are open.
#[derive(Clone, Debug, Default)]
pub struct IterOptions {
    /// First key that may be seen.
    pub lower: Bytes,
    /// First key that may no longer be seen; empty means none.
    pub upper: Bytes,
    pub tier: ReadTier,
    /// Keep what is read out of the block cache (bulk reads).
    pub no_fill_cache: bool,
    /// After a seek only keys that are the sought one up to their last eight bytes are wanted, in [`Cf::Write`]: the
    /// versions of one key. Files without any are then not looked at. Such a cursor only seeks and goes forwards.
    pub one_key: bool,
}

/// A cursor over one column family of one snapshot.
///
/// After a move `valid` says whether there is a key; when it is false, `status` says whether that was the end
/// of the range (`Ok`) or a failure.
pub trait Iter: Send {
    /// To the first key at or after `key`.
    fn seek(&mut self, key: &[u8]);
    /// To the last key at or before `key`.
    fn seek_for_prev(&mut self, key: &[u8]);
    fn seek_to_first(&mut self);
    fn seek_to_last(&mut self);
    fn next(&mut self);
    fn prev(&mut self);
    fn valid(&self) -> bool;
    /// The current key; call only while `valid`.
    fn key(&self) -> &[u8];
    /// The current value; call only while `valid`.
    fn value(&self) -> &[u8];
    /// Must be asked once `valid` is false.
    fn status(&self) -> Result<()>;
}

/// The data at one instant.
pub trait Snapshot: Send + Sync {
    fn get(&self, cf: Cf, key: &[u8], tier: ReadTier) -> Result<Option<Bytes>>;
    fn iter(&self, cf: Cf, options: IterOptions) -> Result<Box<dyn Iter>>;
}

/// Figures for heartbeats, metrics and flow control.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Bytes of data files and logs on disk.
    pub disk_bytes: u64,
    /// Bytes of memtables.
    pub memtable_bytes: u64,
    /// Bytes in the block cache.
    pub block_cache_bytes: u64,
    /// An estimate of the number of keys per family, in the order of [`Cf::ALL`].
    pub keys: [u64; 5],
}

/// An ordered store of column families.
pub trait Engine: Send + Sync {
    /// The data as of now.
    fn snapshot(&self) -> Arc<dyn Snapshot>;
    /// Reads the newest value without a snapshot.
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>>;
    /// Applies the batch as a whole.
    fn write(&self, batch: &WriteBatch, options: WriteOptions) -> Result<()>;
    /// Returns once everything written before would survive a power loss.
    fn sync(&self) -> Result<()>;
    /// Writes what `iter` yields from its current position as one sorted file that [`Engine::ingest`] takes, and
    /// returns its size in bytes and number of keys. `None` and no file when there are no keys.
    fn write_sorted_file(&self, iter: &mut dyn Iter, path: &std::path::Path) -> Result<Option<SortedFile>>;
    /// Takes a sorted file in; the file is gone afterwards.
    fn ingest(&self, cf: Cf, path: &std::path::Path) -> Result<()>;
    /// How often files were taken in so far.
    fn ingested(&self) -> u64;
    /// Applies the batch unless files were taken in since [`Engine::ingested`] gave `since`, which replaces what was
    /// read meanwhile; says whether it did.
    fn write_unless_ingested(&self, batch: &WriteBatch, since: u64) -> Result<bool>;
    /// Removes `[start, end)` for good and cheaply (whole files first); an empty `end` is open. Not atomic with
    /// other writes; durable when it returns.
    fn clear_range(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<()>;
    /// An estimate of what `[start, end)` holds, without reading it; an empty `end` is open.
    fn estimate(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<RangeEstimate>;
    /// True while writes would be slowed down or stopped.
    fn stalled(&self) -> bool;
    fn stats(&self) -> EngineStats;
    /// Flushes memtables and closes background work, for a clean stop. The engine is not used afterwards.
    fn close(&self) -> Result<()>;
}

/// An estimate of what a range holds. What was deleted or replaced and not yet compacted away counts as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeEstimate {
    /// Bytes of keys and values, as they were written.
    pub bytes: u64,
    /// Number of keys and of their older versions.
    pub keys: u64,
    /// What the range may hold beyond that: data of the family whose place is not known.
    pub unplaced_bytes: u64,
    pub unplaced_keys: u64,
}

impl RangeEstimate {
    /// The most bytes that the range may hold.
    pub fn bytes_max(&self) -> u64 {
        self.bytes.saturating_add(self.unplaced_bytes)
    }

    /// The most keys that the range may hold.
    pub fn keys_max(&self) -> u64 {
        self.keys.saturating_add(self.unplaced_keys)
    }

    /// This range and another one together, of the same family or of another.
    pub fn plus(&self, other: &RangeEstimate) -> RangeEstimate {
        RangeEstimate {
            bytes: self.bytes.saturating_add(other.bytes),
            keys: self.keys.saturating_add(other.keys),
            unplaced_bytes: self.unplaced_bytes.saturating_add(other.unplaced_bytes),
            unplaced_keys: self.unplaced_keys.saturating_add(other.unplaced_keys),
        }
    }
}

/// What [`Engine::write_sorted_file`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SortedFile {
    pub bytes: u64,
    pub keys: u64,
}
