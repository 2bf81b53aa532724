//! What a run found, as a table for people or as JSON, and the ratios that matter with the marks they should reach.

use std::fmt::Write;

use super::load::Measured;
use super::regions::{Divided, subject};
use super::transactions::Commit;
use super::usage::Usage;

/// One line of the table.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Row {
    pub subject: String,
    pub operation: &'static str,
    pub clients: usize,
    #[serde(flatten)]
    pub measured: Measured,
}

/// A number with the mark it should reach, or stay below.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Mark {
    pub name: String,
    pub value: f64,
    pub wanted: f64,
    pub reached: bool,
}

/// Everything a run found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
    pub stores: Vec<Usage>,
    pub ready_after_ms: u64,
    pub divided: Vec<Divided>,
    pub marks: Vec<Mark>,
}

pub const ECHO_UNARY: &str = "echo, unary";
pub const ECHO_BATCHED: &str = "echo, batched";
pub const SDK: &str = "kvasir, SDK";
pub const OFFICIAL: &str = "kvasir, tikv-client";
pub const ETCD: &str = "etcd";
/// Updates of two keys where there is only one way to commit.
pub const UPDATE: &str = "update";
/// Transactional gets at a fresh timestamp.
pub const TXN_GET: &str = "txn get";
/// The share of the throughput with one region that hundreds of them should keep.
const REGIONS_KEEP: f64 = 0.7;

impl Report {
    pub fn add(
        &mut self,
        subject: impl Into<String>,
        operation: &'static str,
        clients: usize,
        measured: Measured,
    ) {
        let subject = subject.into();
        self.rows.push(Row { subject, operation, clients, measured });
    }

    fn rate(&self, subject: &str, operation: &str, clients: usize) -> Option<f64> {
        let row = self
            .rows
            .iter()
            .find(|row| (&row.subject[..], row.operation, row.clients) == (subject, operation, clients));
        row.map(|row| row.measured.operations_per_second).filter(|rate| *rate > 0.0)
    }

    /// Computes the marks from the rows; what was not measured is left out.
    pub fn compute_marks(&mut self, clients: usize, many_clients: usize) {
        let ratio = |subject, operation, base, base_operation, clients| {
            Some(self.rate(subject, operation, clients)? / self.rate(base, base_operation, clients)?)
        };
        let at_least = |name: &str, wanted, value: Option<f64>| {
            value.map(|value| Mark { name: name.into(), value, wanted, reached: value >= wanted })
        };
        let below = |name: &str, wanted, value: Option<u64>| {
            let mark = |value| Mark { name: name.into(), value, wanted, reached: value < wanted };
            value.map(|value| mark(value as f64))
        };
        let resident = self.stores.iter().map(|usage| usage.resident_kib / 1024).max();
        let threads = self.stores.iter().map(|usage| usage.threads).max();
        let marks = [
            at_least(
                "gets, tikv-client / echo unary",
                0.8,
                ratio(OFFICIAL, "get", ECHO_UNARY, "get", clients),
            ),
            at_least("gets, SDK / echo batched", 0.4, ratio(SDK, "get", ECHO_BATCHED, "get", clients)),
            at_least("puts, SDK / etcd", 4.0, ratio(SDK, "put", ETCD, "put", clients)),
            at_least("puts, SDK / etcd, many clients", 4.0, ratio(SDK, "put", ETCD, "put", many_clients)),
            at_least(
                "updates, tikv-client / etcd",
                4.0,
                ratio(OFFICIAL, Commit::OnePhase.operation(), ETCD, UPDATE, clients),
            ),
            at_least(
                "updates, SDK / etcd",
                15.0,
                ratio(SDK, Commit::OnePhase.operation(), ETCD, UPDATE, clients),
            ),
            at_least(
                "updates, SDK, one phase / two",
                1.5,
                ratio(SDK, Commit::OnePhase.operation(), SDK, Commit::TwoPhase.operation(), clients),
            ),
            below("resident MiB of a store, below", 120.0, resident),
            below("threads of a store, below", 30.0, threads),
        ];
        self.marks = marks.into_iter().flatten().collect();
    }

    /// Computes what more regions leave of the throughput with the first number of them.
    pub fn compute_region_marks(&mut self, counts: &[usize], clients: usize) {
        let Some((base, more)) = counts.split_first() else { return };
        let rate = |count: usize, operation| self.rate(&subject(count), operation, clients);
        let mut marks = Vec::new();
        for (count, operation) in more.iter().flat_map(|count| [(*count, "put"), (*count, "get")]) {
            let Some((value, one)) = rate(count, operation).zip(rate(*base, operation)) else { continue };
            let (value, wanted) = (value / one, REGIONS_KEEP);
            let name = format!("{operation}s, {count} regions / {base}");
            marks.push(Mark { name, value, wanted, reached: value >= wanted });
        }
        self.marks = marks;
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let line = |text: &mut String, columns: [String; 8]| {
            let [subject, operation, clients, rate, p50, p99, p999, errors] = columns;
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{subject:<20} {operation:<16} {clients:>7} {rate:>9} {p50:>8} {p99:>8} {p999:>9} {errors:>6}"
            );
        };
        line(
            &mut text,
            ["subject", "op", "clients", "ops/s", "p50 us", "p99 us", "p99.9 us", "errors"].map(String::from),
        );
        for row in &self.rows {
            let m = &row.measured;
            let numbers =
                [row.clients as u64, m.operations_per_second as u64, m.p50_us, m.p99_us, m.p999_us, m.errors];
            let [clients, rate, p50, p99, p999, errors] = numbers.map(|number| number.to_string());
            line(
                &mut text,
                [row.subject.clone(), row.operation.into(), clients, rate, p50, p99, p999, errors],
            );
            if let Some(error) = &m.first_error {
                let _ = writeln!(text, "    first error: {error}");
            }
        }
        for (n, usage) in self.stores.iter().enumerate() {
            let _ = writeln!(
                text,
                "store {}: {} MiB resident, {} threads",
                n + 1,
                usage.resident_kib / 1024,
                usage.threads
            );
        }
        for divided in &self.divided {
            let spread = divided.spread_ms.map_or("not in time".into(), |ms| format!("after {ms} ms"));
            let (regions, split, leaders) = (divided.regions, divided.split_ms, &divided.leaders);
            let _ = writeln!(text, "{regions} regions: split in {split} ms, leaders {leaders:?} {spread}");
        }
        if self.ready_after_ms > 0 {
            let _ = writeln!(text, "cluster ready after {} ms", self.ready_after_ms);
        }
        text.push('\n');
        for mark in &self.marks {
            let verdict = if mark.reached { "reached" } else { "MISSED" };
            let _ =
                writeln!(text, "{:<34} {:>8.2}  aim {:>6.1}  {verdict}", mark.name, mark.value, mark.wanted);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rate: f64) -> Measured {
        Measured {
            operations_per_second: rate,
            p50_us: 1,
            p99_us: 2,
            p999_us: 3,
            errors: 0,
            first_error: None,
        }
    }

    #[test]
    fn marks_compare_rows_of_the_same_clients() {
        let mut report = Report::default();
        report.add(ECHO_UNARY, "get", 64, measured(1000.0));
        report.add(OFFICIAL, "get", 64, measured(700.0));
        report.add(SDK, "put", 64, measured(900.0));
        report.add(SDK, "put", 256, measured(900.0));
        report.add(ETCD, "put", 64, measured(100.0));
        report.add(OFFICIAL, Commit::OnePhase.operation(), 64, measured(90.0));
        report.add(ETCD, UPDATE, 64, measured(30.0));
        report.stores.push(Usage { resident_kib: 200 << 10, threads: 12 });
        report.compute_marks(64, 256);
        let found: Vec<_> =
            report.marks.iter().map(|mark| (&mark.name[..], mark.value, mark.reached)).collect();
        let expected = [
            ("gets, tikv-client / echo unary", 0.7, false),
            ("puts, SDK / etcd", 9.0, true),
            ("updates, tikv-client / etcd", 3.0, false),
            ("resident MiB of a store, below", 200.0, false),
            ("threads of a store, below", 12.0, true),
        ];
        assert_eq!(found, expected);
        assert!(report.table().contains("MISSED"));
    }

    #[test]
    fn more_regions_are_compared_with_the_first_number() {
        let mut report = Report::default();
        report.add(subject(1), "put", 64, measured(1000.0));
        report.add(subject(50), "put", 64, measured(900.0));
        report.add(subject(500), "put", 64, measured(500.0));
        report.compute_region_marks(&[1, 50, 500], 64);
        let found: Vec<_> = report.marks.iter().map(|m| (&m.name[..], m.value, m.reached)).collect();
        assert_eq!(found, [("puts, 50 regions / 1", 0.9, true), ("puts, 500 regions / 1", 0.5, false)]);
    }
}
