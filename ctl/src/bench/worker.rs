//! One worker of a benchmark: it does one operation after the other and notes how long each took.
//!
//! Workers share the client and nothing else: histograms and counters are their own until the end, keys are made in
//! place, the value is one shared buffer. One clock reading an operation: its end is the next one's start.

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut as _, Bytes, BytesMut};
use kvclient::RawClient;

use super::report::{Latencies, Measured, latencies};
use crate::cli::Workload;

/// What every benchmark key starts with.
pub const KEY_PREFIX: &[u8] = b"kvctl-bench/";
const KEY_DIGITS: usize = 16;

/// The key with this number; keys sort as their numbers do.
pub fn key(number: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(KEY_PREFIX.len() + KEY_DIGITS);
    key.put_slice(KEY_PREFIX);
    for digit in (0..KEY_DIGITS).rev() {
        let nibble = (number >> (digit * 4)) as usize & 15;
        key.put_u8(b"0123456789abcdef"[nibble]);
    }
    key.freeze()
}

/// Pseudo-random numbers (splitmix64): good enough to choose keys, and free.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(limit)) >> 64) as u64
    }
}

/// What all workers do, and when.
pub struct Plan {
    /// The operations.
    pub workload: Workload,
    /// Different keys.
    pub keys: u64,
    /// Keys of one get or put.
    pub batch: u32,
    /// Pairs of one scan.
    pub scan_length: u32,
    /// Share of reads in a mixed workload, in percent.
    pub reads: u8,
    /// What is written.
    pub value: Bytes,
    /// Operations that begin earlier warm up.
    pub begin: Instant,
    /// Operations that end later do not count.
    pub end: Instant,
}

/// One worker.
pub struct Worker {
    client: RawClient,
    plan: Arc<Plan>,
    random: Random,
    reads: Latencies,
    writes: Latencies,
    keys: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Worker {
    /// A worker that chooses keys by `seed`.
    pub fn new(client: RawClient, plan: Arc<Plan>, seed: u64) -> Worker {
        let (reads, writes) = (latencies(), latencies());
        let random = Random::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
        Worker { client, plan, random, reads, writes, keys: 0, errors: 0, first_error: None }
    }

    /// Works until the end of the measured time, or until an error that every further operation would meet.
    pub async fn run(mut self) -> Measured {
        let plan = Arc::clone(&self.plan);
        let mut started = Instant::now();
        while started < plan.end {
            let is_read = match plan.workload {
                Workload::RawGet | Workload::RawScan => true,
                Workload::RawPut => false,
                Workload::RawMixed => self.random.below(100) < u64::from(plan.reads),
            };
            let done = if is_read { self.read().await } else { self.write().await };
            let ended = Instant::now();
            if started >= plan.begin && ended <= plan.end {
                match &done {
                    Ok(keys) => {
                        let took = (ended - started).as_micros() as u64;
                        let latencies = if is_read { &mut self.reads } else { &mut self.writes };
                        // A growing histogram takes every number.
                        let _ = latencies.record(took);
                        self.keys += keys;
                    }
                    Err(_) => self.errors += 1,
                }
            }
            if let Err(failure) = done {
                self.first_error.get_or_insert(failure.message);
                if failure.fatal {
                    self.errors = self.errors.max(1);
                    break;
                }
            }
            started = ended;
        }
        let Worker { reads, writes, keys, errors, first_error, .. } = self;
        Measured { reads, writes, keys, errors, first_error }
    }

    fn random_key(&mut self) -> Bytes {
        key(self.random.below(self.plan.keys))
    }

    async fn read(&mut self) -> Result<u64, Failure> {
        let wanted = u64::from(self.plan.batch);
        let found = match (self.plan.workload, self.plan.batch) {
            (Workload::RawScan, _) => return self.scan().await,
            (_, 1) => {
                let key = self.random_key();
                u64::from(self.client.get(key).await?.is_some())
            }
            (_, batch) => {
                let keys: Vec<Bytes> = (0..batch).map(|_| self.random_key()).collect();
                return self.batch_get(keys).await;
            }
        };
        if found == wanted { Ok(found) } else { Err(Failure::missing(wanted - found)) }
    }

    async fn batch_get(&self, mut keys: Vec<Bytes>) -> Result<u64, Failure> {
        keys.sort_unstable();
        keys.dedup();
        let wanted = keys.len() as u64;
        let found = self.client.batch_get(keys).await?.len() as u64;
        if found == wanted { Ok(found) } else { Err(Failure::missing(wanted.saturating_sub(found))) }
    }

    async fn scan(&mut self) -> Result<u64, Failure> {
        let length = u64::from(self.plan.scan_length);
        let first = self.random.below(self.plan.keys);
        let wanted = length.min(self.plan.keys - first);
        let range = key(first)..key(self.plan.keys);
        let found = self.client.scan(range).limit(length as usize).collect().await?.len() as u64;
        if found == wanted { Ok(found) } else { Err(Failure::missing(wanted.saturating_sub(found))) }
    }

    async fn write(&mut self) -> Result<u64, Failure> {
        let value = self.plan.value.clone();
        match self.plan.batch {
            1 => {
                let key = self.random_key();
                self.client.put(key, value).await?;
                Ok(1)
            }
            batch => {
                let pairs: Vec<(Bytes, Bytes)> =
                    (0..batch).map(|_| (self.random_key(), value.clone())).collect();
                self.client.batch_put(pairs).await?;
                Ok(u64::from(batch))
            }
        }
    }
}

/// Why an operation did not succeed.
struct Failure {
    message: String,
    /// Every further operation would fail as well.
    fatal: bool,
}

impl Failure {
    fn missing(count: u64) -> Failure {
        Failure { message: format!("{count} keys that were written are not there"), fatal: false }
    }
}

impl From<kvclient::Error> for Failure {
    fn from(error: kvclient::Error) -> Failure {
        let passing = error.is_retryable() || matches!(error, kvclient::Error::Undetermined { .. });
        Failure { message: error.to_string(), fatal: !passing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_numbers() {
        assert_eq!(key(0x2af), "kvctl-bench/00000000000002af");
        assert!(key(15) < key(16) && key(255) < key(4096));
    }

    #[test]
    fn chosen_keys_cover_the_range_evenly() {
        let mut random = Random::new(7);
        let mut hits = [0u32; 10];
        for _ in 0..10_000 {
            hits[random.below(10) as usize] += 1;
        }
        assert!(hits.iter().all(|count| (800..1200).contains(count)), "{hits:?}");
        assert_ne!(Random::new(1).draw(), Random::new(2).draw());
    }
}
