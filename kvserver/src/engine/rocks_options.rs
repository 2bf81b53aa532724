//! How RocksDB is set up: one small configuration in, RocksDB options out.
//!
//! Owns [`EngineConfig`] and every tuning decision with its reason; owns no data. All memory that grows with
//! use is bounded here: blocks, index and filter blocks and memtables of the data engine share one cache, the
//! log store has a small one and a few fixed buffers.
//!
//! Threads: both databases of a store, and all stores of a process, use RocksDB's process-wide environment, so
//! background threads do not multiply: its pools grow to the largest `max_background_jobs` anyone asked for.

use std::sync::Arc;

use rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, LogLevel, Options, SliceTransform, WriteBufferManager,
    statistics::StatsLevel,
};
use serde::{Deserialize, Serialize};

use super::Cf;
use super::filter::{Factory, FilterSource};

/// Bytes of write-ahead log beyond which the oldest memtable is flushed. A family that is rarely written would
/// otherwise keep every log file since its last flush.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the timestamp at the end of a key of [`Cf::Write`].
const TIMESTAMP_BYTES: usize = 8;
/// Cache of the log store: logs are read when a peer lags or the store starts, never on the hot path.
const LOG_CACHE_BYTES: usize = 4 << 20;
/// RocksDB's own text log: files kept, and bytes each.
const INFO_LOG_FILES: usize = 4;
const INFO_LOG_BYTES: usize = 4 << 20;

/// What can be set about the storage engine. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct EngineConfig {
    /// Memory for cached blocks, filters and memtables together.
    pub block_cache_bytes: u64,
    /// Size at which the memtable of one column family is flushed.
    pub write_buffer_bytes: u64,
    /// Size of the memtables of all column families at which the largest is flushed early.
    pub memtable_bytes_max: u64,
    /// Threads that flush and compact; shared by all databases of the process.
    pub max_background_jobs: u32,
    /// Size at which the memtable of the log store is flushed, and so the size of one log file.
    pub log_write_buffer_bytes: u64,
    /// Log files kept for reuse. Overwriting a written file needs no journal commit of the file system, so a
    /// sync costs about half of what it costs on a growing file.
    pub log_files_recycled: u32,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            block_cache_bytes: 64 << 20,
            write_buffer_bytes: 16 << 20,
            memtable_bytes_max: 40 << 20,
            max_background_jobs: 2,
            log_write_buffer_bytes: 16 << 20,
            log_files_recycled: 4,
        }
    }
}

/// Options of the data engine, with what they share.
pub(super) struct DataOptions {
    pub(super) db: Options,
    pub(super) families: Vec<(Cf, Options)>,
    pub(super) cache: Cache,
    pub(super) memtables: WriteBufferManager,
}

/// Files of level 0 that start a compaction: fewer, larger ones leave more of the processor to requests, and reads
/// skip files by their filters.
const LEVEL0_FILES: i32 = 8;

/// Options for the database that holds the data.
pub(super) fn data_options(config: &EngineConfig, filters: Option<Arc<dyn FilterSource>>) -> DataOptions {
    // The lock-free cache; zero lets it find the usual block size itself.
    let cache = Cache::new_hyper_clock_cache(to_usize(config.block_cache_bytes), 0);
    // Memtables are charged to the cache: one limit for both. Stalling is left to the write triggers.
    let memtables = WriteBufferManager::new_write_buffer_manager_with_cache(
        to_usize(config.memtable_bytes_max),
        false,
        cache.clone(),
    );
    let mut db = common_options(config);
    db.set_write_buffer_manager(&memtables);
    db.set_max_total_wal_size(WAL_BYTES_MAX);
    // Two are enough: one being written, one just flushed.
    db.set_recycle_log_file_num(2);
    db.enable_statistics();
    // Counters only: histograms and timers read the clock on every operation.
    db.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    let mut families: Vec<(Cf, Options)> =
        Cf::ALL.into_iter().map(|cf| (cf, family_options(config, cf, &cache))).collect();
    if let Some(source) = filters {
        // A filter must see all of a key that a compaction has: one compaction must not be cut into several.
        db.set_max_subcompactions(1);
        for (cf, options) in families.iter_mut().filter(|(cf, _)| matches!(cf, Cf::Write | Cf::Default)) {
            options.set_compaction_filter_factory(Factory { cf: *cf, source: source.clone() });
        }
    }
    DataOptions { db, families, cache, memtables }
}

/// Options for sorted files: those of the data they will join.
pub(super) fn sorted_file_options() -> Options {
    let mut options = Options::default();
    options.set_block_based_table_factory(&table_options(None, true));
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

/// Options for the database that holds Raft logs.
pub(super) fn log_options(config: &EngineConfig) -> Options {
    let mut options = common_options(config);
    let cache = Cache::new_hyper_clock_cache(LOG_CACHE_BYTES, 0);
    options.set_block_based_table_factory(&table_options(Some(&cache), false));
    options.set_write_buffer_size(to_usize(config.log_write_buffer_bytes));
    options.set_max_write_buffer_number(3);
    options.set_recycle_log_file_num(config.log_files_recycled as usize);
    // Most entries are garbage before they are ever compacted: spend no CPU on packing them.
    options.set_compression_type(DBCompressionType::None);
    options.set_bottommost_compression_type(DBCompressionType::Lz4);
    options.set_level_zero_file_num_compaction_trigger(LEVEL0_FILES);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

/// What both databases have in common.
fn common_options(config: &EngineConfig) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_max_background_jobs(config.max_background_jobs.clamp(1, 64) as i32);
    options.set_max_file_opening_threads(2);
    // Smooths the writing of data files. Not for the WAL: there it doubles the cost of a sync.
    options.set_bytes_per_sync(1 << 20);
    // Files that a reader was the last to hold are deleted in the background.
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_keep_log_file_num(INFO_LOG_FILES);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options.set_log_level(LogLevel::Warn);
    options
}

fn family_options(config: &EngineConfig, cf: Cf, cache: &Cache) -> Options {
    let mut options = Options::default();
    let mut table = table_options(Some(cache), true);
    table.set_whole_key_filtering(cf != Cf::Write);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(to_usize(config.write_buffer_bytes));
    options.set_max_write_buffer_number(4);
    if cf == Cf::Write {
        // Versions of a key are found by seeking: what is filtered is the key without its timestamp.
        options.set_prefix_extractor(SliceTransform::create(
            "key-of-version",
            key_of_version,
            Some(has_timestamp),
        ));
        options.set_memtable_prefix_bloom_ratio(0.05);
    } else {
        // A get of a key that is already on disk, or that has no lock, skips the memtable's search.
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.05);
    }
    // While a store is small every compaction writes to its last level: a slower algorithm there costs the writers.
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_zero_file_num_compaction_trigger(LEVEL0_FILES);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

/// A key of [`Cf::Write`] without the timestamp at its end.
fn key_of_version(key: &[u8]) -> &[u8] {
    &key[..key.len().saturating_sub(TIMESTAMP_BYTES)]
}

fn has_timestamp(key: &[u8]) -> bool {
    key.len() >= TIMESTAMP_BYTES
}

/// The table format. With a cache, index and filter blocks live in it too, so memory does not grow with data.
fn table_options(cache: Option<&Cache>, filtered: bool) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    if let Some(cache) = cache {
        table.set_block_cache(cache);
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    }
    table.set_block_size(8 << 10);
    if filtered {
        table.set_bloom_filter(10.0, false);
        table.set_optimize_filters_for_memory(true);
    }
    table
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_configuration_keeps_the_other_defaults() {
        let config: EngineConfig = toml::from_str("write-buffer-bytes = 1048576").unwrap();
        assert_eq!(config, EngineConfig { write_buffer_bytes: 1 << 20, ..EngineConfig::default() });
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        assert!(toml::from_str::<EngineConfig>("write-buffer-byte = 1").is_err());
    }
}
