//! How much data a byte of RocksDB's files stands for.
//!
//! RocksDB tells the size of a range in its files, after compression. What regions are measured by are keys and
//! values as they were written, so this keeps for each column family what its files hold per byte: RocksDB sums that
//! up over all tables, which is too slow to ask for each region.
//!
//! Owns these figures; they are at most [`FRESH_NS`] old.

use parking_lot::Mutex;
use rocksdb::{ColumnFamily, DB, properties};

use super::rocks_open::engine_error;
use super::{Cf, RangeEstimate, Result};
use crate::clock::{self, Now};

/// How long a family's figures are used.
const FRESH_NS: u64 = 10_000_000_000;
/// RocksDB adds a sequence number and a type to every key.
const KEY_TRAILER: u64 = 8;

/// What the tables of one family hold, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Density {
    file_bytes: u64,
    raw_bytes: u64,
    entries: u64,
}

impl Density {
    /// Reads RocksDB's summary of the properties of tables.
    fn parse(summary: &str) -> Density {
        let mut density = Density::default();
        let mut trailers = 0;
        for property in summary.split(';') {
            let Some((name, value)) = property.split_once('=') else { continue };
            // Averages are fractions; nobody asks for them here.
            let Ok(value) = value.trim().parse::<u64>() else { continue };
            match name.trim() {
                "# entries" => (density.entries, trailers) = (value, value * KEY_TRAILER),
                "raw key size" | "raw value size" => density.raw_bytes += value,
                "data block size" | "filter block size" => density.file_bytes += value,
                name if name.starts_with("index block size") => density.file_bytes += value,
                _ => {}
            }
        }
        density.raw_bytes = density.raw_bytes.saturating_sub(trailers);
        density
    }

    /// What `file_bytes` bytes of such tables hold.
    pub(super) fn estimate(&self, file_bytes: u64) -> RangeEstimate {
        // Without tables that are counted, a byte is taken for a byte.
        let share = |all: u64| match self.file_bytes {
            0 => file_bytes,
            of => {
                u64::try_from(u128::from(file_bytes) * u128::from(all) / u128::from(of)).unwrap_or(u64::MAX)
            }
        };
        let keys = if self.file_bytes == 0 { 0 } else { share(self.entries) };
        RangeEstimate { bytes: share(self.raw_bytes), keys, ..RangeEstimate::default() }
    }
}

/// The figures of all families.
#[derive(Default)]
pub(super) struct Densities {
    kept: Mutex<[Option<(Now, Density)>; Cf::ALL.len()]>,
}

impl Densities {
    /// The figures of `family`, which is `cf`'s.
    pub(super) fn of(&self, db: &DB, family: &ColumnFamily, cf: Cf) -> Result<Density> {
        let now = clock::now();
        if let Some((taken, density)) = self.kept.lock()[cf as usize]
            && now.since(taken) < FRESH_NS
            && density.entries > 0
        {
            return Ok(density);
        }
        let summary = db
            .property_value_cf(family, properties::AGGREGATED_TABLE_PROPERTIES)
            .map_err(engine_error)?
            .unwrap_or_default();
        let density = Density::parse(&summary);
        self.kept.lock()[cf as usize] = Some((now, density));
        Ok(density)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rocks::RocksEngine;
    use super::super::{Engine, EngineConfig, WriteBatch, WriteOptions};
    use super::*;

    #[test]
    fn a_summary_of_tables_is_read_and_shares_follow_it() {
        let summary = "# data blocks=3; # entries=10; # deletions=0; raw key size=180; raw average key size=18.0; \
                       raw value size=900; data block size=400; index block size (user-key? 1, delta-value? 1)=60; \
                       filter block size=40; # entries for filter=10; ";
        let density = Density::parse(summary);
        assert_eq!(density, Density { file_bytes: 500, raw_bytes: 1000, entries: 10 });
        let half = density.estimate(250);
        assert_eq!((half.bytes, half.keys), (500, 5));
        let unknown = Density::parse("").estimate(250);
        assert_eq!((unknown.bytes, unknown.keys), (250, 0), "a byte is a byte");
    }

    #[test]
    fn what_is_compressed_counts_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let engine = RocksEngine::open(dir.path(), &EngineConfig::default()).unwrap();
        let mut batch = WriteBatch::new();
        for n in 0..1_000 {
            batch.put(Cf::Raw, format!("key{n:05}"), vec![b'v'; 1_000]);
        }
        engine.write(&batch, WriteOptions::default()).unwrap();
        let written = batch.bytes() as u64;
        let in_memory = engine.estimate(Cf::Raw, b"key00500", &[]).unwrap();
        assert_eq!((in_memory.bytes, in_memory.keys, in_memory.unplaced_keys), (0, 0, 1_000));
        assert!(in_memory.bytes_max() >= written, "{in_memory:?}");
        engine.flush_and_compact();
        let all = engine.estimate(Cf::Raw, &[], &[]).unwrap();
        let near = |is: u64, want: u64| is > want * 9 / 10 && is < want * 11 / 10;
        assert!(near(all.bytes, written) && near(all.keys, 1_000), "{all:?} of {written}");
        assert_eq!(all.unplaced_keys, 0, "nothing is in memory any more");
        let half = engine.estimate(Cf::Raw, b"key00500", &[]).unwrap();
        assert!(half.bytes > written / 4 && half.bytes < written * 3 / 4, "{half:?}");
    }
}
