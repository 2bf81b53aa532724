//! Metadata of a single scheduler in a RocksDB directory.
//!
//! Owns the database handle and the order of commits: conditions are read and the batch is written under one
//! mutex, so a condition cannot be overtaken. The metadata is small and read once at start, so the database is
//! configured for little memory and few threads, not for speed.

use std::path::Path;

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{DB, Direction, IteratorMode, LogLevel, Options, ReadOptions, WriteBatch, WriteOptions};

use super::{Durability, Kv, KvError, Op, Pair, Txn};

const WRITE_BUFFER_BYTES: usize = 4 << 20;
const LOG_BYTES_MAX: u64 = 16 << 20;

/// RocksDB behind [`Kv`].
pub struct EmbeddedKv {
    db: DB,
    commit_order: Mutex<()>,
}

impl EmbeddedKv {
    /// Opens or creates the database in `dir`. A directory that is open elsewhere is `KvError::InUse`.
    pub fn open(dir: &Path) -> Result<EmbeddedKv, KvError> {
        std::fs::create_dir_all(dir)
            .map_err(|e| KvError::Storage(format!("cannot create {}: {e}", dir.display())))?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_total_wal_size(LOG_BYTES_MAX);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(2);
        options.set_log_level(LogLevel::Warn);
        let db = DB::open(&options, dir).map_err(|e| open_error(dir, &e))?;
        Ok(EmbeddedKv { db, commit_order: Mutex::new(()) })
    }
}

fn open_error(dir: &Path, error: &rocksdb::Error) -> KvError {
    let text = error.to_string();
    // RocksDB has no error kind for a held lock: its LOCK file is named in the message.
    if error.kind() == rocksdb::ErrorKind::IOError && text.contains("/LOCK") {
        return KvError::InUse { dir: dir.display().to_string(), cause: text };
    }
    KvError::Storage(format!("cannot open {}: {text}", dir.display()))
}

fn storage(error: rocksdb::Error) -> KvError {
    KvError::Storage(error.to_string())
}

impl Kv for EmbeddedKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.db.get(key).map_err(storage)?.map(Bytes::from))
    }

    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end.to_vec());
        let mut pairs = Vec::new();
        for pair in self.db.iterator_opt(IteratorMode::From(start, Direction::Forward), options).take(limit) {
            let (key, value) = pair.map_err(storage)?;
            pairs.push((Bytes::from(key), Bytes::from(value)));
        }
        Ok(pairs)
    }

    fn commit(&self, txn: &Txn) -> Result<(), KvError> {
        let _order = self.commit_order.lock();
        for condition in &txn.conditions {
            let value = self.db.get_pinned(condition.key()).map_err(storage)?;
            if !condition.holds(value.as_deref()) {
                return Err(KvError::Conflict { key: String::from_utf8_lossy(condition.key()).into_owned() });
            }
        }
        let mut batch = WriteBatch::default();
        for op in &txn.ops {
            match op {
                Op::Put(key, value) => batch.put(key, value),
                Op::Delete(key) => batch.delete(key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(txn.durability == Durability::Synced);
        self.db.write_opt(batch, &options).map_err(storage)
    }
}
