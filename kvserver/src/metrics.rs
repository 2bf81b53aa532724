//! What a store counts, and how it is shown to Prometheus. Every name starts with `kvasir_`.
//!
//! Each server has a registry of its own, so that several stores can live in one process. Requests are counted
//! with plain atomics into power-of-two buckets: a batch of gets that was served together costs two additions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::engine::{Cf, EngineStats};

/// What clients ask for, by the name used in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Command {
    RawGet,
    RawBatchGet,
    RawGetTtl,
    RawPut,
    RawBatchPut,
    RawDelete,
    RawBatchDelete,
    RawDeleteRange,
    RawScan,
    RawBatchScan,
    RawCas,
    RawChecksum,
    KvGet,
    KvBatchGet,
    KvScan,
    KvPrewrite,
    KvCommit,
    KvCleanup,
    KvBatchRollback,
    KvPessimisticLock,
    KvPessimisticRollback,
    KvCheckTxnStatus,
    KvCheckSecondaryLocks,
    KvTxnHeartBeat,
    KvResolveLock,
    KvScanLock,
    KvDeleteRange,
    UnsafeDestroyRange,
    Mvcc,
    Other,
}

const COMMANDS: [(Command, &str); 30] = [
    (Command::RawGet, "raw_get"),
    (Command::RawBatchGet, "raw_batch_get"),
    (Command::RawGetTtl, "raw_get_ttl"),
    (Command::RawPut, "raw_put"),
    (Command::RawBatchPut, "raw_batch_put"),
    (Command::RawDelete, "raw_delete"),
    (Command::RawBatchDelete, "raw_batch_delete"),
    (Command::RawDeleteRange, "raw_delete_range"),
    (Command::RawScan, "raw_scan"),
    (Command::RawBatchScan, "raw_batch_scan"),
    (Command::RawCas, "raw_cas"),
    (Command::RawChecksum, "raw_checksum"),
    (Command::KvGet, "kv_get"),
    (Command::KvBatchGet, "kv_batch_get"),
    (Command::KvScan, "kv_scan"),
    (Command::KvPrewrite, "kv_prewrite"),
    (Command::KvCommit, "kv_commit"),
    (Command::KvCleanup, "kv_cleanup"),
    (Command::KvBatchRollback, "kv_batch_rollback"),
    (Command::KvPessimisticLock, "kv_pessimistic_lock"),
    (Command::KvPessimisticRollback, "kv_pessimistic_rollback"),
    (Command::KvCheckTxnStatus, "kv_check_txn_status"),
    (Command::KvCheckSecondaryLocks, "kv_check_secondary_locks"),
    (Command::KvTxnHeartBeat, "kv_txn_heart_beat"),
    (Command::KvResolveLock, "kv_resolve_lock"),
    (Command::KvScanLock, "kv_scan_lock"),
    (Command::KvDeleteRange, "kv_delete_range"),
    (Command::UnsafeDestroyRange, "unsafe_destroy_range"),
    (Command::Mvcc, "mvcc"),
    (Command::Other, "other"),
];

/// Bucket `i` holds durations below `2^i` microseconds; the last one everything longer (over 8 s).
const BUCKETS: usize = 24;

/// Durations of one command.
#[derive(Debug, Default)]
struct Durations {
    buckets: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
}

/// The counters of one server.
pub struct Metrics {
    registry: Registry,
    requests: Arc<Requests>,
    /// Requests refused because the server had too much to do.
    pub shed: IntCounter,
    /// Open `BatchCommands` streams.
    pub batch_streams: IntGauge,
    engine_bytes: IntGaugeVec,
    engine_keys: IntGaugeVec,
    engine_stalled: IntGauge,
    in_flight: IntGauge,
}

impl Metrics {
    /// Counters that start at zero.
    pub fn new() -> Result<Arc<Metrics>, prometheus::Error> {
        let registry = Registry::new();
        let requests = Arc::new(Requests::new()?);
        registry.register(Box::new(RequestCollector(requests.clone())))?;
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let by = |name: &str, help: &str, label: &str| IntGaugeVec::new(Opts::new(name, help), &[label]);
        let metrics = Metrics {
            requests,
            shed: IntCounter::new("kvasir_requests_shed_total", "Requests refused because of overload.")?,
            batch_streams: gauge("kvasir_batch_streams", "Open BatchCommands streams.")?,
            engine_bytes: by("kvasir_engine_bytes", "Bytes of the storage engine, by place.", "place")?,
            engine_keys: by("kvasir_engine_keys", "Estimated keys, by column family.", "cf")?,
            engine_stalled: gauge("kvasir_engine_stalled", "1 while writes wait for compactions.")?,
            in_flight: gauge("kvasir_requests_in_flight", "Requests being worked on.")?,
            registry,
        };
        let r = &metrics.registry;
        r.register(Box::new(metrics.shed.clone()))?;
        r.register(Box::new(metrics.batch_streams.clone()))?;
        r.register(Box::new(metrics.engine_bytes.clone()))?;
        r.register(Box::new(metrics.engine_keys.clone()))?;
        r.register(Box::new(metrics.engine_stalled.clone()))?;
        r.register(Box::new(metrics.in_flight.clone()))?;
        Ok(Arc::new(metrics))
    }

    /// Where other parts of the store register theirs.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts `n` requests that took `micros` microseconds each.
    pub fn observe(&self, command: Command, micros: u64, n: u64) {
        let durations = &self.requests.durations[command as usize];
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        durations.buckets[bucket.min(BUCKETS - 1)].fetch_add(n, Relaxed);
        durations.sum_micros.fetch_add(micros * n, Relaxed);
    }

    /// Requests of a kind so far.
    pub fn count(&self, command: Command) -> u64 {
        self.requests.durations[command as usize].buckets.iter().map(|b| b.load(Relaxed)).sum()
    }

    /// Takes over the figures that are only looked up when somebody asks.
    pub fn set_engine(&self, stats: &EngineStats, stalled: bool, in_flight: usize) {
        let bytes = |place: &str, n: u64| self.engine_bytes.with_label_values(&[place]).set(n as i64);
        bytes("disk", stats.disk_bytes);
        bytes("memtable", stats.memtable_bytes);
        bytes("block_cache", stats.block_cache_bytes);
        for (cf, keys) in Cf::ALL.into_iter().zip(stats.keys) {
            self.engine_keys.with_label_values(&[cf.name()]).set(keys as i64);
        }
        self.engine_stalled.set(stalled.into());
        self.in_flight.set(in_flight as i64);
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

struct Requests {
    desc: Desc,
    durations: [Durations; COMMANDS.len()],
}

const REQUESTS_NAME: &str = "kvasir_request_duration_seconds";
const REQUESTS_HELP: &str = "Time from a request's arrival to its answer, by command.";

impl Requests {
    fn new() -> Result<Requests, prometheus::Error> {
        let labels = vec!["command".to_string()];
        let desc = Desc::new(REQUESTS_NAME.into(), REQUESTS_HELP.into(), labels, Default::default())?;
        Ok(Requests { desc, durations: Default::default() })
    }

    fn histogram(durations: &Durations) -> Histogram {
        let mut histogram = Histogram::default();
        let (mut total, mut buckets) = (0, Vec::with_capacity(BUCKETS));
        for (i, n) in durations.buckets.iter().enumerate() {
            total += n.load(Relaxed);
            if i + 1 < BUCKETS {
                let mut bucket = Bucket::default();
                bucket.set_cumulative_count(total);
                bucket.set_upper_bound((1u64 << i) as f64 / 1e6);
                buckets.push(bucket);
            }
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(total);
        histogram.set_sample_sum(durations.sum_micros.load(Relaxed) as f64 / 1e6);
        histogram
    }
}

struct RequestCollector(Arc<Requests>);

impl Collector for RequestCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    /// Commands that nobody has used are left out.
    fn collect(&self) -> Vec<MetricFamily> {
        let mut metrics = Vec::new();
        for (command, name) in COMMANDS {
            let histogram = Requests::histogram(&self.0.durations[command as usize]);
            if histogram.get_sample_count() == 0 {
                continue;
            }
            let mut label = LabelPair::default();
            label.set_name("command".into());
            label.set_value(name.into());
            let mut metric = Metric::default();
            metric.set_label(vec![label]);
            metric.set_histogram(histogram);
            metrics.push(metric);
        }
        let mut family = MetricFamily::default();
        family.set_name(REQUESTS_NAME.into());
        family.set_help(REQUESTS_HELP.into());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics);
        if family.get_metric().is_empty() { Vec::new() } else { vec![family] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_cumulative_buckets() {
        let metrics = Metrics::new().unwrap();
        metrics.observe(Command::RawGet, 3, 10);
        metrics.observe(Command::RawGet, u64::from(u32::MAX), 1);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let has = |line: &str| assert!(text.contains(line), "{line} is not in\n{text}");
        has("kvasir_request_duration_seconds_bucket{command=\"raw_get\",le=\"0.000002\"} 0");
        has("kvasir_request_duration_seconds_bucket{command=\"raw_get\",le=\"0.000004\"} 10");
        has("kvasir_request_duration_seconds_bucket{command=\"raw_get\",le=\"+Inf\"} 11");
        has("kvasir_request_duration_seconds_count{command=\"raw_get\"} 11");
        assert!(!text.contains("raw_put"));
        assert_eq!(metrics.count(Command::RawGet), 11);
    }

    #[test]
    fn every_command_has_its_own_name() {
        for (i, (command, name)) in COMMANDS.iter().enumerate() {
            assert_eq!(*command as usize, i, "{name}");
        }
    }
}
