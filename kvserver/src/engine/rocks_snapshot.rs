//! Snapshots and iterators of the RocksDB engine that own what they need to stay valid.
//!
//! Owns the two lifetime extensions that make them independent of the caller's engine handle, and the order in
//! which their parts are dropped: iterator, snapshot, database.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions, SnapshotWithThreadMode};

use super::rocks::Inner;
use super::rocks_open::read_error;
use super::{Cf, Iter, IterOptions, ReadTier, Result, Snapshot};

/// The data of `inner` as of now.
pub(super) fn snapshot(inner: &Arc<Inner>) -> Arc<dyn Snapshot> {
    let snap = inner.db.snapshot();
    // SAFETY: the lifetime stands for "the database is open"; `SnapCore` holds a share of the database and its
    // fields drop in order, the snapshot before that share.
    let snap = unsafe {
        std::mem::transmute::<SnapshotWithThreadMode<'_, DB>, SnapshotWithThreadMode<'static, DB>>(snap)
    };
    let core = SnapCore { all: OnceLock::new(), cache: OnceLock::new(), snap, inner: inner.clone() };
    Arc::new(RocksSnapshot { core: Arc::new(core) })
}

/// A snapshot, shared by itself and its iterators. Field order is drop order.
struct SnapCore {
    /// Made at the first read from the tier; most snapshots see only one.
    all: OnceLock<ReadOptions>,
    cache: OnceLock<ReadOptions>,
    snap: SnapshotWithThreadMode<'static, DB>,
    inner: Arc<Inner>,
}

impl SnapCore {
    fn read_options(&self, tier: ReadTier) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snap);
        if tier == ReadTier::Cache {
            options.set_read_tier(rocksdb::ReadTier::BlockCache);
        }
        options
    }
}

struct RocksSnapshot {
    core: Arc<SnapCore>,
}

impl Snapshot for RocksSnapshot {
    fn get(&self, cf: Cf, key: &[u8], tier: ReadTier) -> Result<Option<Bytes>> {
        let slot = match tier {
            ReadTier::All => &self.core.all,
            ReadTier::Cache => &self.core.cache,
        };
        self.core.inner.get(cf, key, slot.get_or_init(|| self.core.read_options(tier)))
    }

    fn iter(&self, cf: Cf, options: IterOptions) -> Result<Box<dyn Iter>> {
        let mut read = self.core.read_options(options.tier);
        if !options.lower.is_empty() {
            read.set_iterate_lower_bound(&options.lower[..]);
        }
        if !options.upper.is_empty() {
            read.set_iterate_upper_bound(&options.upper[..]);
        }
        read.fill_cache(!options.no_fill_cache);
        match options.one_key {
            true => read.set_prefix_same_as_start(true),
            // Else a filter on versions would hide other keys.
            false => read.set_total_order_seek(true),
        }
        let it = self.core.inner.db.raw_iterator_cf_opt(self.core.inner.cf(cf), read);
        // SAFETY: as for the snapshot; `RocksIter` drops the cursor before its share of the snapshot.
        let it = unsafe {
            std::mem::transmute::<DBRawIteratorWithThreadMode<'_, DB>, DBRawIteratorWithThreadMode<'static, DB>>(
                it,
            )
        };
        Ok(Box::new(RocksIter { it, core: self.core.clone() }))
    }
}

struct RocksIter {
    it: DBRawIteratorWithThreadMode<'static, DB>,
    core: Arc<SnapCore>,
}

impl Iter for RocksIter {
    fn seek(&mut self, key: &[u8]) {
        self.it.seek(key);
    }

    fn seek_for_prev(&mut self, key: &[u8]) {
        self.it.seek_for_prev(key);
    }

    fn seek_to_first(&mut self) {
        self.it.seek_to_first();
    }

    fn seek_to_last(&mut self) {
        self.it.seek_to_last();
    }

    fn next(&mut self) {
        self.it.next();
    }

    fn prev(&mut self) {
        self.it.prev();
    }

    fn valid(&self) -> bool {
        self.it.valid()
    }

    fn key(&self) -> &[u8] {
        self.it.key().unwrap_or_default()
    }

    fn value(&self) -> &[u8] {
        self.it.value().unwrap_or_default()
    }

    fn status(&self) -> Result<()> {
        self.it.status().map_err(|e| self.core.inner.watch.saw(read_error(e)))
    }
}
