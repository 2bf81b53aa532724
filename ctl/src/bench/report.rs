//! What a benchmark measured, as numbers and as text. Pure.
//!
//! Throughput counts operations that ended inside the measured time; latency is the time one operation took, as its
//! worker saw it.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::{Commit, Workload};
use crate::table::{self, Align};

/// Latencies in microseconds.
pub type Latencies = Histogram<u64>;

/// An empty histogram of three significant digits that grows with what it holds.
pub fn latencies() -> Latencies {
    Histogram::new(3).expect("a histogram may have three significant digits")
}

/// What a worker does in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reads a key, or several at once.
    Get,
    /// Writes an existing key, or several at once.
    Put,
    /// Writes a new key.
    Insert,
    /// Reads neighbours.
    Scan,
    /// Reads and writes the same keys.
    Update,
    /// Pays a customer's bill.
    Payment,
}

impl Operation {
    /// All of them, each at its own number.
    pub const ALL: [Operation; 6] = [
        Operation::Get,
        Operation::Put,
        Operation::Insert,
        Operation::Scan,
        Operation::Update,
        Operation::Payment,
    ];

    /// As it is reported.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::Insert => "insert",
            Operation::Scan => "scan",
            Operation::Update => "update",
            Operation::Payment => "payment",
        }
    }
}

/// What was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Setup {
    /// What the workers did.
    pub workload: Workload,
    /// Operations in flight.
    pub concurrency: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Different keys.
    pub keys: u64,
    /// Keys of one get or put.
    pub batch: u32,
    /// Pairs of one scan; null for other workloads.
    pub scan_length: Option<u32>,
    /// Share of reads in percent; null for workloads of one kind.
    pub reads_percent: Option<u8>,
    /// How transactions commit; null without transactions.
    pub commit: Option<Commit>,
    /// Transactions lock what they will write; null without transactions.
    pub pessimistic: Option<bool>,
}

/// The result of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was asked for.
    #[serde(flatten)]
    pub setup: Setup,
    /// Measured time.
    pub seconds: f64,
    /// Operations that succeeded.
    pub operations: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Attempts that met another transaction and were made again.
    pub conflicts: u64,
    /// The first error, in words.
    pub first_error: Option<String>,
    /// Operations a second.
    pub operations_per_second: f64,
    /// Keys read or written a second; differs from operations for batches and scans.
    pub keys_per_second: f64,
    /// Of all operations.
    pub latency_us: Percentiles,
    /// Each kind by itself.
    pub kinds: Vec<Kind>,
}

/// One kind of operation.
#[derive(Debug, Clone, Serialize)]
pub struct Kind {
    /// `get`, `put`, `insert`, `scan`, `update` or `payment`.
    pub kind: &'static str,
    /// Operations that succeeded.
    pub operations: u64,
    /// Operations a second.
    pub operations_per_second: f64,
    /// How long they took.
    pub latency_us: Percentiles,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// 999 of 1000 took no longer.
    pub p999: u64,
    /// The longest.
    pub max: u64,
    /// The average.
    pub mean: f64,
}

impl Percentiles {
    /// Of a histogram; all zero for an empty one.
    pub fn of(latencies: &Latencies) -> Percentiles {
        Percentiles {
            p50: latencies.value_at_quantile(0.5),
            p99: latencies.value_at_quantile(0.99),
            p999: latencies.value_at_quantile(0.999),
            max: latencies.max(),
            mean: latencies.mean(),
        }
    }
}

/// What workers measured.
pub struct Measured {
    /// Of each operation, by its number.
    latencies: [Latencies; Operation::ALL.len()],
    /// Keys read or written.
    pub keys: u64,
    /// Attempts that met another transaction and were made again.
    pub conflicts: u64,
    /// Operations that failed.
    pub errors: u64,
    /// The first of them, in words.
    pub first_error: Option<String>,
}

impl Default for Measured {
    fn default() -> Measured {
        let latencies = std::array::from_fn(|_| latencies());
        Measured { latencies, keys: 0, conflicts: 0, errors: 0, first_error: None }
    }
}

impl Measured {
    /// Notes an operation that succeeded.
    pub fn record(&mut self, operation: Operation, took: Duration, keys: u64) {
        // A growing histogram takes every number.
        let _ = self.latencies[operation as usize].record(took.as_micros() as u64);
        self.keys += keys;
    }

    /// Adds what another worker measured.
    pub fn add(&mut self, other: Measured) {
        for (all, one) in self.latencies.iter_mut().zip(&other.latencies) {
            // Histograms of the same precision always add up.
            let _ = all.add(one);
        }
        self.keys += other.keys;
        self.conflicts += other.conflicts;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

impl Report {
    /// The report of a run that was measured for `took`.
    pub fn new(setup: Setup, measured: Measured, took: Duration) -> Report {
        let seconds = took.as_secs_f64();
        let rate = |count: u64| count as f64 / seconds.max(1e-9);
        let of = |operation: &Operation| &measured.latencies[*operation as usize];
        let kinds: Vec<Kind> = Operation::ALL
            .iter()
            .map(|operation| (operation.name(), of(operation)))
            .filter(|(_, latencies)| !latencies.is_empty())
            .map(|(kind, latencies)| Kind {
                kind,
                operations: latencies.len(),
                operations_per_second: rate(latencies.len()),
                latency_us: Percentiles::of(latencies),
            })
            .collect();
        let mut all = latencies();
        for latencies in &measured.latencies {
            // The sum may grow.
            let _ = all.add(latencies);
        }
        Report {
            setup,
            seconds,
            operations: all.len(),
            errors: measured.errors,
            conflicts: measured.conflicts,
            first_error: measured.first_error,
            operations_per_second: rate(all.len()),
            keys_per_second: rate(measured.keys),
            latency_us: Percentiles::of(&all),
            kinds,
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let header = [
            ("OPERATION", Align::Left),
            ("COUNT", Align::Right),
            ("PER SECOND", Align::Right),
            ("P50", Align::Right),
            ("P99", Align::Right),
            ("P99.9", Align::Right),
            ("MAX", Align::Right),
            ("MEAN", Align::Right),
        ];
        let row = |name: &str, count: u64, rate: f64, latency: &Percentiles| {
            vec![
                name.to_owned(),
                count.to_string(),
                format!("{rate:.0}"),
                duration(latency.p50),
                duration(latency.p99),
                duration(latency.p999),
                duration(latency.max),
                duration(latency.mean.round() as u64),
            ]
        };
        let mut rows: Vec<_> = self
            .kinds
            .iter()
            .map(|kind| row(kind.kind, kind.operations, kind.operations_per_second, &kind.latency_us))
            .collect();
        if self.kinds.len() != 1 {
            rows.push(row("all", self.operations, self.operations_per_second, &self.latency_us));
        }
        let mut text = table::rows(&header, rows);
        if self.keys_per_second.round() != self.operations_per_second.round() {
            text.push_str(&format!("\n{:.0} keys a second", self.keys_per_second));
        }
        if self.conflicts > 0 {
            text.push_str(&format!(
                "\n{} attempts met another transaction and were made again",
                self.conflicts
            ));
        }
        if let Some(error) = &self.first_error {
            text.push_str(&format!("\n{} errors; the first: {error}", self.errors));
        }
        text
    }
}

/// Microseconds with the unit that fits.
fn duration(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} us"),
        10_000..10_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(workload: Workload) -> Setup {
        Setup {
            workload,
            concurrency: 4,
            value_size: 256,
            keys: 10,
            batch: 1,
            scan_length: None,
            reads_percent: None,
            commit: None,
            pessimistic: None,
        }
    }

    fn measured(gets: &[u64], puts: &[u64]) -> Measured {
        let mut measured = Measured::default();
        for (operation, values) in [(Operation::Get, gets), (Operation::Put, puts)] {
            values.iter().for_each(|us| measured.record(operation, Duration::from_micros(*us), 1));
        }
        measured
    }

    #[test]
    fn kinds_are_told_apart_and_summed() {
        let measured = measured(&[100, 200], &[300, 400, 500, 600]);
        let report = Report::new(setup(Workload::RawMixed), measured, Duration::from_secs(2));
        assert_eq!((report.operations, report.operations_per_second), (6, 3.0));
        assert_eq!(
            report.kinds.iter().map(|kind| (kind.kind, kind.operations)).collect::<Vec<_>>(),
            [("get", 2), ("put", 4)]
        );
        assert_eq!((report.latency_us.p50, report.latency_us.max), (300, 600));
        assert_eq!(report.table().lines().count(), 4);
    }

    #[test]
    fn an_empty_run_has_zeros_and_tells_its_error() {
        let measured = Measured { errors: 3, first_error: Some("no leader".into()), ..measured(&[], &[]) };
        let report = Report::new(setup(Workload::RawGet), measured, Duration::from_secs(1));
        assert_eq!((report.operations, report.latency_us.p999), (0, 0));
        assert!(report.table().ends_with("3 errors; the first: no leader"));
    }

    #[test]
    fn json_has_the_setup_beside_the_result() {
        let mut all = Measured { conflicts: 2, ..Measured::default() };
        all.record(Operation::Scan, Duration::from_micros(5), 7);
        all.add(Measured { conflicts: 1, ..Measured::default() });
        let report = Report::new(setup(Workload::RawScan), all, Duration::from_secs(1));
        assert!(report.table().contains("7 keys a second\n3 attempts"), "{}", report.table());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["workload"], "raw-scan");
        assert_eq!(json["kinds"][0]["kind"], "scan");
        assert_eq!(json["latency_us"]["p50"], 5);
    }
}
