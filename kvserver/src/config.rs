//! The configuration of a store: a TOML file with the field's names, flags over it, one effective result.
//!
//! Every field has a default that suits a small machine. An unknown key is an error that names its line and the
//! nearest known key: a typo must not silently leave a default in place. Sizes and durations are written with
//! units (`"64MiB"`, `"50ms"`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kvproto::kvrpcpb::ApiVersion;
use serde::{Deserialize, Serialize};

pub mod coprocessor;
pub mod gc;
pub mod nearest;
pub mod pessimistic_txn;
pub mod units;

pub use coprocessor::CoprocessorConfig;
pub use gc::GcConfig;
pub use pessimistic_txn::PessimisticTxnConfig;
pub use units::{ReadableDuration, ReadableSize};

use crate::engine::EngineConfig;
use crate::raftstore::RaftConfig;

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {cause}")]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("{path}:{line}: {message}")]
    Parse { path: PathBuf, line: usize, message: String },
    #[error("{key}: {message}")]
    Invalid { key: &'static str, message: String },
}

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Memory that the process aims to stay below; 0 takes what the container or the machine has.
    pub memory_limit: ReadableSize,
    pub server: ServerConfig,
    pub pd: PdConfig,
    pub storage: StorageConfig,
    pub raftstore: RaftstoreConfig,
    pub coprocessor: CoprocessorConfig,
    pub readpool: ReadPoolConfig,
    pub gc: GcConfig,
    pub pessimistic_txn: PessimisticTxnConfig,
    pub log: LogConfig,
}

/// Addresses and limits of the services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServerConfig {
    /// Where gRPC listens.
    pub addr: String,
    /// How others reach it; empty for `addr`.
    pub advertise_addr: String,
    /// Where HTTP with metrics and status listens; empty for nowhere.
    pub status_addr: String,
    /// Where this store stands, for placement: `{ zone = "a", host = "h1" }`.
    pub labels: BTreeMap<String, String>,
    /// Threads that serve requests; 0 takes one per core, at least 2 and at most 4.
    pub grpc_concurrency: usize,
    /// `none` or `gzip`: how replies to clients that accept it are compressed. Requests may always be.
    pub grpc_compression_type: Compression,
    /// Requests worked on at once; more wait, and are sent away after a second.
    pub max_requests: usize,
    /// Bytes that these requests may have brought.
    pub max_request_bytes: ReadableSize,
    /// Snapshot bytes sent or received per second.
    pub snap_io_max_bytes_per_sec: ReadableSize,
    /// Snapshots sent at once.
    pub concurrent_send_snap_limit: usize,
    /// Snapshots received at once.
    pub concurrent_recv_snap_limit: usize,
}

/// How replies are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    #[default]
    None,
    Gzip,
}

/// The scheduler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct PdConfig {
    /// Addresses of its members, `host:port` or `http://host:port`.
    pub endpoints: Vec<String>,
}

/// Where and how data is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct StorageConfig {
    /// The store's directory; it belongs to one process.
    pub data_dir: PathBuf,
    /// The form of keys when this store bootstraps a cluster.
    pub api: Api,
    pub block_cache: BlockCacheConfig,
    /// Size at which the memtable of one column family is flushed.
    pub write_buffer_size: ReadableSize,
    /// Threads that flush and compact.
    pub max_background_jobs: u32,
    /// With less room than this on its disk a store takes no new data; 0 for never.
    pub reserve_space: ReadableSize,
}

/// The form of keys of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Api {
    /// Keyspaces: raw and transactional keys with a prefix.
    #[default]
    V2,
    /// Raw keys without a prefix.
    V1,
}

impl Api {
    /// As requests name it.
    pub fn version(self) -> ApiVersion {
        match self {
            Api::V1 => ApiVersion::V1,
            Api::V2 => ApiVersion::V2,
        }
    }
}

/// Memory for data that was read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct BlockCacheConfig {
    /// Blocks, indexes, filters and memtables together; 0 takes a share of the memory limit.
    pub capacity: ReadableSize,
}

/// Threads for reads that may wait for the disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReadPoolConfig {
    pub max_thread_count: usize,
    /// Reads that may wait for a thread.
    pub max_tasks: usize,
}

/// What is written to the log, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,kvserver::raftstore=debug`.
    pub level: String,
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where a part of the Raft work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// In the thread that drives the regions.
    Inline,
    /// In a thread of its own.
    Threaded,
}

/// Replication. The first three are the same on every store of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct RaftstoreConfig {
    pub raft_base_tick_interval: ReadableDuration,
    pub raft_heartbeat_ticks: usize,
    pub raft_election_timeout_ticks: usize,
    /// Where the Raft log is written.
    pub log_write: Placement,
    /// Where committed entries are applied.
    pub apply: Placement,
    /// Largest write.
    pub raft_entry_max_size: ReadableSize,
    pub raft_max_size_per_msg: ReadableSize,
    pub raft_max_inflight_msgs: usize,
    pub raft_log_gc_tick_interval: ReadableDuration,
    /// Entries that all followers have, from which on the log is shortened.
    pub raft_log_gc_threshold: u64,
    /// Entries from which on the log is shortened even if a follower then needs a snapshot.
    pub raft_log_gc_count_limit: u64,
    /// The same in bytes.
    pub raft_log_gc_size_limit: ReadableSize,
    /// Entries kept in memory for followers that lag, per region.
    pub raft_entry_cache_size: ReadableSize,
    /// A region that is divided keeps its last part instead of its first: where keys ascend, writes go on in it.
    pub right_derive_when_split: bool,
    /// How often the scheduler hears about a region in which nothing changes.
    pub pd_heartbeat_tick_interval: ReadableDuration,
    /// How often the scheduler hears about the store.
    pub pd_store_heartbeat_tick_interval: ReadableDuration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            addr: "127.0.0.1:20160".into(),
            advertise_addr: String::new(),
            status_addr: "127.0.0.1:20180".into(),
            labels: BTreeMap::new(),
            grpc_concurrency: 0,
            grpc_compression_type: Compression::None,
            max_requests: 16_384,
            max_request_bytes: ReadableSize(64 << 20),
            snap_io_max_bytes_per_sec: ReadableSize(100 << 20),
            concurrent_send_snap_limit: 4,
            concurrent_recv_snap_limit: 4,
        }
    }
}

impl Default for PdConfig {
    fn default() -> Self {
        PdConfig { endpoints: vec!["127.0.0.1:2379".into()] }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        let engine = EngineConfig::default();
        StorageConfig {
            data_dir: PathBuf::new(),
            api: Api::V2,
            block_cache: BlockCacheConfig::default(),
            write_buffer_size: ReadableSize(engine.write_buffer_bytes),
            max_background_jobs: engine.max_background_jobs,
            reserve_space: ReadableSize(64 << 20),
        }
    }
}

impl Default for ReadPoolConfig {
    fn default() -> Self {
        ReadPoolConfig { max_thread_count: 4, max_tasks: 8_192 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: "info".into(), format: LogFormat::Text }
    }
}

impl Default for RaftstoreConfig {
    fn default() -> Self {
        let raft = RaftConfig::default();
        RaftstoreConfig {
            raft_base_tick_interval: ReadableDuration::from_millis(raft.tick_ms),
            raft_heartbeat_ticks: raft.heartbeat_ticks,
            raft_election_timeout_ticks: raft.election_ticks,
            log_write: Placement::Threaded,
            apply: Placement::Inline,
            raft_entry_max_size: ReadableSize(raft.entry_max_bytes),
            raft_max_size_per_msg: ReadableSize(raft.message_max_bytes),
            raft_max_inflight_msgs: raft.inflight_messages_max,
            raft_log_gc_tick_interval: ReadableDuration::from_millis(raft.log_gc_ticks * raft.tick_ms),
            raft_log_gc_threshold: raft.log_gc_threshold,
            raft_log_gc_count_limit: raft.log_gc_count_limit,
            raft_log_gc_size_limit: ReadableSize(raft.log_gc_size_limit),
            raft_entry_cache_size: ReadableSize(raft.entry_cache_bytes_max as u64),
            right_derive_when_split: raft.right_derive_when_split,
            pd_heartbeat_tick_interval: ReadableDuration::from_millis(raft.report_ticks * raft.tick_ms),
            pd_store_heartbeat_tick_interval: ReadableDuration::from_millis(10_000),
        }
    }
}

/// Block cache when none is set: this share of the memory limit, within bounds.
const CACHE_SHARE: u64 = 4;
const CACHE_MIN: u64 = 32 << 20;
const CACHE_MAX: u64 = 8 << 30;

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::Read { path: path.to_path_buf(), cause })?;
        Config::parse(&text, path)
    }

    /// Reads TOML text; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
            ConfigError::Parse { path: path.to_path_buf(), line, message: nearest::explain(error.message()) }
        })
    }

    /// The configuration as TOML, with every key.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|e| ConfigError::Invalid { key: "config", message: e.to_string() })
    }

    /// Replaces "0 means choose" by what is chosen for `memory` bytes and `cores`.
    pub fn resolve(&mut self, memory: u64, cores: usize) {
        self.coprocessor.resolve();
        if self.memory_limit.0 == 0 {
            self.memory_limit = ReadableSize(memory);
        }
        if self.storage.block_cache.capacity.0 == 0 {
            let share = (self.memory_limit.0 / CACHE_SHARE).clamp(CACHE_MIN, CACHE_MAX);
            self.storage.block_cache.capacity = ReadableSize(share);
        }
        if self.server.grpc_concurrency == 0 {
            self.server.grpc_concurrency = cores.clamp(2, 4);
        }
        if self.server.advertise_addr.is_empty() {
            self.server.advertise_addr = self.server.addr.clone();
        }
    }

    /// Refuses what cannot work, naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key, message: &str| Err(ConfigError::Invalid { key, message: message.into() });
        if self.storage.data_dir.as_os_str().is_empty() {
            return invalid(
                "storage.data-dir",
                "set it, here or with --data-dir: data has to be kept somewhere",
            );
        }
        if self.pd.endpoints.iter().all(|e| e.is_empty()) {
            return invalid("pd.endpoints", "name at least one scheduler, here or with --pd-endpoints");
        }
        for (key, addr) in [
            ("server.addr", &self.server.addr),
            ("server.advertise-addr", &self.server.advertise_addr),
            ("server.status-addr", &self.server.status_addr),
        ] {
            let optional = key != "server.addr" && addr.is_empty();
            let port = addr.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if !optional && port.is_none() {
                let message = format!("{addr:?} is no HOST:PORT");
                return Err(ConfigError::Invalid { key, message });
            }
        }
        if self.server.advertise_addr.starts_with("0.0.0.0:") {
            return invalid(
                "server.advertise-addr",
                "0.0.0.0 is no address that others can reach: set it to this machine's name or address",
            );
        }
        if self.server.max_requests == 0 || self.server.max_request_bytes.0 == 0 {
            return invalid("server.max-requests", "it and max-request-bytes must not be 0");
        }
        if self.readpool.max_thread_count == 0 {
            return invalid("readpool.max-thread-count", "must not be 0");
        }
        self.coprocessor.validate().map_err(|(key, message)| ConfigError::Invalid { key, message })?;
        self.gc.validate().map_err(|(key, message)| ConfigError::Invalid { key, message })?;
        self.pessimistic_txn.validate().map_err(|(key, message)| ConfigError::Invalid { key, message })?;
        if let Err(message) = self.raft(0).validate() {
            return Err(ConfigError::Invalid { key: "raftstore", message });
        }
        Ok(())
    }

    /// What the data engine and the log store need to know.
    pub fn engine(&self) -> EngineConfig {
        let cache = self.storage.block_cache.capacity.0;
        EngineConfig {
            block_cache_bytes: cache,
            write_buffer_bytes: self.storage.write_buffer_size.0,
            // Memtables live in the same budget; half of it leaves room for what is read.
            memtable_bytes_max: (self.storage.write_buffer_size.0 * 4).min(cache / 2),
            max_background_jobs: self.storage.max_background_jobs,
            ..EngineConfig::default()
        }
    }

    /// What the core of the raftstore needs to know. `seed` is the cluster's id.
    pub fn raft(&self, seed: u64) -> RaftConfig {
        let r = &self.raftstore;
        let tick_ms = r.raft_base_tick_interval.as_millis();
        let ticks = |d: ReadableDuration| d.as_millis().div_ceil(tick_ms.max(1));
        RaftConfig {
            api: self.storage.api.version(),
            tick_ms,
            heartbeat_ticks: r.raft_heartbeat_ticks,
            election_ticks: r.raft_election_timeout_ticks,
            seed,
            entry_max_bytes: r.raft_entry_max_size.0,
            message_max_bytes: r.raft_max_size_per_msg.0,
            inflight_messages_max: r.raft_max_inflight_msgs,
            entry_cache_bytes_max: r.raft_entry_cache_size.0 as usize,
            log_gc_ticks: ticks(r.raft_log_gc_tick_interval),
            log_gc_threshold: r.raft_log_gc_threshold,
            log_gc_count_limit: r.raft_log_gc_count_limit,
            log_gc_size_limit: r.raft_log_gc_size_limit.0,
            report_ticks: ticks(r.pd_heartbeat_tick_interval),
            split_check_ticks: ticks(self.coprocessor.split_check_interval),
            split_check_diff: self.coprocessor.region_split_check_diff.0.max(1),
            right_derive_when_split: r.right_derive_when_split,
            ..RaftConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("kv.toml"))
    }

    fn valid() -> Config {
        let mut config = parse("[storage]\ndata-dir = \"/data\"").unwrap();
        config.resolve(1 << 30, 2);
        config
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() {
        let error = parse("[server]\naddr = \"a:1\"\nstatus-adr = \"b:2\"\n").unwrap_err().to_string();
        assert_eq!(error, "kv.toml:3: unknown key `status-adr`; did you mean `status-addr`?");
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        let config = valid();
        assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config);
    }

    #[test]
    fn sizes_and_durations_have_units() {
        let text =
            "memory-limit = \"1GiB\"\n[raftstore]\nraft-base-tick-interval = \"1s\"\nlog-write = \"inline\"";
        let config = parse(text).unwrap();
        assert_eq!(config.memory_limit.0, 1 << 30);
        assert_eq!(config.raft(0).tick_ms, 1000);
        assert_eq!(config.raftstore.log_write, Placement::Inline);
        let error = parse("memory-limit = \"1 parsec\"").unwrap_err().to_string();
        assert!(error.starts_with("kv.toml:1: ") && error.contains("64MiB"), "{error}");
    }

    #[test]
    fn zero_is_replaced_by_a_share_of_the_machine() {
        let config = valid();
        assert_eq!(config.storage.block_cache.capacity.0, 256 << 20);
        assert_eq!((config.server.grpc_concurrency, config.memory_limit.0), (2, 1 << 30));
        assert_eq!(config.server.advertise_addr, config.server.addr);
        let mut tiny = Config::default();
        tiny.resolve(16 << 20, 64);
        assert_eq!(tiny.storage.block_cache.capacity.0, CACHE_MIN);
        assert_eq!(tiny.server.grpc_concurrency, 4);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        assert!(valid().validate().is_ok());
        let refused = |change: fn(&mut Config)| {
            let mut config = valid();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(refused(|c| c.storage.data_dir = PathBuf::new()).starts_with("storage.data-dir: "));
        assert!(refused(|c| c.server.addr = "here".into()).starts_with("server.addr: "));
        assert!(refused(|c| c.server.advertise_addr = "0.0.0.0:1".into()).contains("reach"));
        assert!(refused(|c| c.pd.endpoints.clear()).starts_with("pd.endpoints: "));
        assert!(refused(|c| c.raftstore.raft_heartbeat_ticks = 9).contains("raft-election-timeout-ticks"));
    }
}
