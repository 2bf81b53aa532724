//! Configuration: defaults, the TOML file, and what is derived from both.
//!
//! Key names are the field's. Flags override the file. An unknown key is an error that names the nearest known
//! one. The core gets a [`ScheduleConfig`] in milliseconds and never sees this file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::store::SilenceLimits;
use crate::error::Error;
use crate::gc::GcConfig;
use crate::kv::location::Location;
use crate::schedule::ScheduleConfig;
use crate::schedule::store_limit::StoreLimit;

/// The whole configuration of one scheduler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Config {
    /// The name shown in the list of members.
    pub name: String,
    /// Where metadata is kept when it is kept in a directory.
    pub data_dir: PathBuf,
    /// Where metadata is kept: `etcd://host:port,host:port/prefix`, which several schedulers may share, or a
    /// directory of this scheduler alone. Empty: `data_dir`.
    pub metadata: String,
    /// The URL to listen on, `http://host:port`. Port 0 takes a free one.
    pub client_urls: String,
    /// The URLs clients are told, comma-separated. Empty: the same as `client_urls`.
    pub advertise_client_urls: String,
    pub log: LogConfig,
    pub replication: ReplicationConfig,
    pub schedule: ScheduleSection,
    pub gc: GcSection,
    /// Keeps all metadata in memory and ignores `data_dir`: the cluster is forgotten when the server stops. Only
    /// for temporary clusters whose stores forget as well; set by the embedding program, never by file or flag.
    #[serde(skip)]
    pub in_memory: bool,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// How data is replicated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ReplicationConfig {
    /// How many voters every region should have.
    pub max_replicas: usize,
}

/// Limits of placement decisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ScheduleSection {
    /// How long a store may be silent before its replicas are replaced.
    pub max_store_down_time: ReadableDuration,
    /// How long a store may be silent before it gets no new replicas.
    pub store_disconnect_time: ReadableDuration,
    /// How many operators that repair replicas may run at once.
    pub replica_schedule_limit: usize,
    /// How many operators that even out leaders may run at once; 0 stops that.
    pub leader_schedule_limit: usize,
    /// How many operators that even out replicas may run at once; 0 stops that.
    pub region_schedule_limit: usize,
    /// A store with more snapshots in flight gets no new replicas.
    pub max_snapshot_count: u32,
    /// The used share of a store's space above which it gets no new replicas, unless 8 GiB are free all the same.
    pub low_space_ratio: f64,
    /// Nothing is moved, replaced or split.
    pub halt_scheduling: bool,
    /// Whether stores may split regions.
    pub enable_tikv_split_region: bool,
    pub store_limit: StoreLimitSection,
}

/// How fast each store may gain and lose replicas, a minute. A small replica counts as a fifth, an empty one as
/// nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct StoreLimitSection {
    pub add_peer: u64,
    pub remove_peer: u64,
}

/// How long old versions of transactional keys are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct GcSection {
    /// Whether old versions are collected without anybody asking.
    pub enable: bool,
    /// How long an old version can be read after it was replaced.
    pub life_time: ReadableDuration,
    /// How often old versions are collected.
    pub run_interval: ReadableDuration,
}

impl Default for GcSection {
    fn default() -> GcSection {
        let GcConfig { is_enabled, life_ms, run_interval_ms } = GcConfig::default();
        GcSection {
            enable: is_enabled,
            life_time: ReadableDuration::from_millis(life_ms),
            run_interval: ReadableDuration::from_millis(run_interval_ms),
        }
    }
}

impl Default for StoreLimitSection {
    fn default() -> StoreLimitSection {
        let StoreLimit { add_peer, remove_peer } = StoreLimit::default();
        StoreLimitSection { add_peer, remove_peer }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "scheduler".into(),
            data_dir: "./scheduler-data".into(),
            metadata: String::new(),
            client_urls: "http://127.0.0.1:2379".into(),
            advertise_client_urls: String::new(),
            log: LogConfig::default(),
            replication: ReplicationConfig::default(),
            schedule: ScheduleSection::default(),
            gc: GcSection::default(),
            in_memory: false,
        }
    }
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { level: "info".into(), format: LogFormat::Text }
    }
}

impl Default for ReplicationConfig {
    fn default() -> ReplicationConfig {
        ReplicationConfig { max_replicas: ScheduleConfig::default().max_replicas }
    }
}

impl Default for ScheduleSection {
    fn default() -> ScheduleSection {
        let core = ScheduleConfig::default();
        ScheduleSection {
            max_store_down_time: ReadableDuration::from_millis(core.silence.down_ms),
            store_disconnect_time: ReadableDuration::from_millis(core.silence.disconnected_ms),
            replica_schedule_limit: core.operators_max,
            leader_schedule_limit: core.leader_operators_max,
            region_schedule_limit: core.region_operators_max,
            max_snapshot_count: core.snapshots_max,
            low_space_ratio: core.low_space_ratio,
            halt_scheduling: core.halt_scheduling,
            enable_tikv_split_region: core.splits_enabled,
            store_limit: StoreLimitSection::default(),
        }
    }
}

impl Config {
    /// Reads a TOML file over the defaults.
    pub fn from_file(path: &Path) -> Result<Config, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::Config(format!("cannot read {}: {e}", path.display())))?;
        Config::from_toml(&text).map_err(|e| match e {
            Error::Config(reason) => Error::Config(format!("{}: {reason}", path.display())),
            other => other,
        })
    }

    /// Reads TOML over the defaults.
    pub fn from_toml(text: &str) -> Result<Config, Error> {
        let value: toml::Table = toml::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        let known: toml::Table =
            toml::from_str(&Config::default().to_toml()?).map_err(|e| Error::Config(e.to_string()))?;
        check_keys(&value, &known, "")?;
        toml::from_str(text).map_err(|e| Error::Config(e.to_string()))
    }

    /// The effective configuration as TOML.
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string_pretty(self).map_err(|e| Error::Config(e.to_string()))
    }

    /// Refuses values that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |reason: &str| Err(Error::Config(reason.into()));
        if self.name.is_empty() || self.name.contains('/') {
            return refuse("name must not be empty or contain '/'");
        }
        if self.replication.max_replicas == 0 {
            return refuse("replication.max-replicas must be at least 1");
        }
        if !(0.0..=1.0).contains(&self.schedule.low_space_ratio) {
            return refuse("schedule.low-space-ratio must be between 0 and 1");
        }
        if self.schedule.replica_schedule_limit == 0 {
            return refuse("schedule.replica-schedule-limit must be at least 1");
        }
        if self.schedule.store_limit.add_peer == 0 || self.schedule.store_limit.remove_peer == 0 {
            return refuse("schedule.store-limit must be at least 1 for both, or nothing is repaired");
        }
        if self.schedule.store_disconnect_time.0 > self.schedule.max_store_down_time.0 {
            return refuse("schedule.store-disconnect-time must not exceed schedule.max-store-down-time");
        }
        if self.gc.life_time.0.is_zero() || self.gc.run_interval.0.is_zero() {
            return refuse("gc.life-time and gc.run-interval must be above 0; gc.enable = false stops it");
        }
        self.location()?;
        let (host, _) = self.listen_host_port()?;
        let is_any = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        if is_any && self.advertise_client_urls.is_empty() {
            return refuse("clients cannot dial the any-address of client-urls: set advertise-client-urls");
        }
        for url in self.advertised() {
            host_port("advertise-client-urls", url)?;
        }
        Ok(())
    }

    /// Where metadata is kept.
    pub fn location(&self) -> Result<Location, Error> {
        if self.metadata.is_empty() {
            return Ok(Location::Directory(self.data_dir.clone()));
        }
        let wrong = |why: String| Error::Config(format!("metadata = {:?}: {why}", self.metadata));
        Location::parse(&self.metadata).map_err(wrong)
    }

    /// Host and port to listen on.
    pub fn listen_host_port(&self) -> Result<(String, u16), Error> {
        if self.client_urls.contains(',') {
            return Err(Error::Config("client-urls takes one URL to listen on".into()));
        }
        host_port("client-urls", &self.client_urls)
    }

    /// The URLs to tell clients, given the port in use.
    pub fn advertised_urls(&self, port: u16) -> Result<Vec<String>, Error> {
        if self.advertise_client_urls.is_empty() {
            let (host, _) = self.listen_host_port()?;
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            return Ok(vec![format!("http://{host}:{port}")]);
        }
        Ok(self.advertised().map(|url| url.trim_end_matches('/').to_string()).collect())
    }

    fn advertised(&self) -> impl Iterator<Item = &str> {
        self.advertise_client_urls.split(',').map(str::trim).filter(|url| !url.is_empty())
    }

    /// The limits in the units of the core.
    pub fn to_core(&self) -> ScheduleConfig {
        ScheduleConfig {
            max_replicas: self.replication.max_replicas,
            silence: SilenceLimits {
                disconnected_ms: self.schedule.store_disconnect_time.as_millis(),
                down_ms: self.schedule.max_store_down_time.as_millis(),
            },
            operators_max: self.schedule.replica_schedule_limit,
            leader_operators_max: self.schedule.leader_schedule_limit,
            region_operators_max: self.schedule.region_schedule_limit,
            store_limit: StoreLimit {
                add_peer: self.schedule.store_limit.add_peer,
                remove_peer: self.schedule.store_limit.remove_peer,
            },
            snapshots_max: self.schedule.max_snapshot_count,
            low_space_ratio: self.schedule.low_space_ratio,
            halt_scheduling: self.schedule.halt_scheduling,
            splits_enabled: self.schedule.enable_tikv_split_region,
            gc: GcConfig {
                is_enabled: self.gc.enable,
                life_ms: self.gc.life_time.as_millis(),
                run_interval_ms: self.gc.run_interval.as_millis(),
            },
            ..ScheduleConfig::default()
        }
    }
}

fn host_port(key: &str, url: &str) -> Result<(String, u16), Error> {
    let wrong = |why: &str| Error::Config(format!("{key} = {url:?}: {why}; use http://HOST:PORT"));
    if url.starts_with("https://") {
        return Err(wrong("TLS is not supported"));
    }
    let rest = url.strip_prefix("http://").ok_or_else(|| wrong("the scheme is missing"))?;
    let (host, port) =
        rest.trim_end_matches('/').rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    let port = port.parse().map_err(|_| wrong("the port is not a number below 65536"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong("the host is missing"));
    }
    Ok((host.to_string(), port))
}

/// Every key of `given` must be in `known`; `path` is where both are, for the message.
fn check_keys(given: &toml::Table, known: &toml::Table, path: &str) -> Result<(), Error> {
    for (key, value) in given {
        match (known.get(key), value) {
            (Some(toml::Value::Table(known)), toml::Value::Table(given)) => {
                check_keys(given, known, &format!("{path}{key}."))?;
            }
            (Some(_), _) => {}
            (None, _) => {
                let nearest = known.keys().min_by_key(|candidate| edit_distance(key, candidate));
                let hint = nearest.map(|k| format!("; did you mean {path}{k}?")).unwrap_or_default();
                return Err(Error::Config(format!("unknown key {path}{key}{hint}")));
            }
        }
    }
    Ok(())
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A duration that is written like `500ms`, `20s`, `30m` or `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReadableDuration(pub Duration);

impl ReadableDuration {
    /// A duration of so many milliseconds.
    pub fn from_millis(ms: u64) -> ReadableDuration {
        ReadableDuration(Duration::from_millis(ms))
    }

    /// The duration in milliseconds.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

const UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];

impl TryFrom<String> for ReadableDuration {
    type Error = String;

    fn try_from(text: String) -> Result<ReadableDuration, String> {
        let wrong = || format!("{text:?} is not a duration: write 500ms, 20s, 30m or 1h");
        let (number, unit_ms) =
            UNITS.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, *ms))).ok_or_else(wrong)?;
        let number: u64 = number.trim().parse().map_err(|_| wrong())?;
        number.checked_mul(unit_ms).map(ReadableDuration::from_millis).ok_or_else(wrong)
    }
}

impl fmt::Display for ReadableDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.as_millis();
        let exact = UNITS.iter().filter(|(_, unit)| ms.is_multiple_of(*unit)).max_by_key(|(_, unit)| *unit);
        let (name, unit_ms) = exact.copied().unwrap_or(("ms", 1));
        write!(f, "{}{name}", ms / unit_ms)
    }
}

impl From<ReadableDuration> for String {
    fn from(duration: ReadableDuration) -> String {
        duration.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_configuration_reads_back() {
        let config = Config::default();
        assert_eq!(Config::from_toml(&config.to_toml().unwrap()).unwrap(), config);
    }

    #[test]
    fn unknown_keys_name_the_nearest_one() {
        let error = |text: &str| Config::from_toml(text).unwrap_err().to_string();
        assert!(error("data-dri = 'x'").ends_with("unknown key data-dri; did you mean data-dir?"));
        let nested = error("[replication]\nmax-replica = 1");
        assert!(nested.ends_with("did you mean replication.max-replicas?"), "{nested}");
        assert!(error("in-memory = true").contains("unknown key in-memory"));
    }

    #[test]
    fn durations_keep_their_unit() {
        for text in ["500ms", "20s", "30m", "1h"] {
            assert_eq!(ReadableDuration::try_from(text.to_string()).unwrap().to_string(), text);
        }
        assert!(ReadableDuration::try_from("30".to_string()).is_err());
        assert!(ReadableDuration::try_from("-1s".to_string()).is_err());
    }

    #[test]
    fn urls_that_cannot_work_are_refused() {
        let check = |urls: &str, advertise: &str| {
            let config = Config {
                client_urls: urls.into(),
                advertise_client_urls: advertise.into(),
                ..Config::default()
            };
            config.validate().err().map(|e| e.to_string())
        };
        assert_eq!(check("http://127.0.0.1:0", ""), None);
        assert_eq!(check("http://0.0.0.0:2379", "http://s-0:2379, http://s-0.x:2379"), None);
        let dial = check("http://0.0.0.0:2379", "").unwrap();
        assert!(dial.contains("set advertise-client-urls"), "{dial}");
        for wrong in ["127.0.0.1:2379", "https://a:1", "http://a", "http://a:x", "http://a:1,http://b:2"] {
            assert!(check(wrong, "").is_some(), "{wrong}");
        }
    }

    #[test]
    fn advertised_urls_follow_the_port_in_use() {
        let mut config = Config { client_urls: "http://[::1]:0".into(), ..Config::default() };
        assert_eq!(config.advertised_urls(77).unwrap(), ["http://[::1]:77"]);
        config.advertise_client_urls = "http://a:1/, http://b:2".into();
        assert_eq!(config.advertised_urls(77).unwrap(), ["http://a:1", "http://b:2"]);
    }
}
