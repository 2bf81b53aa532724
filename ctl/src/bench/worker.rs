//! One worker of a benchmark: it does one operation after the other and notes how long each took.
//!
//! Workers share the client, and the numbers of new keys; histograms and counters are their own until the end, keys are
//! made in place, the value is one shared buffer. One clock reading an operation: its end is the next one's start.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::chooser::{Chooser, Mix, Random};
use super::payment::Rows;
use super::report::{Measured, Operation};
use super::target::{Done, Target};
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

/// The numbers of keys that workers add.
#[derive(Debug)]
pub struct Growth(Mutex<Grown>);

#[derive(Debug)]
struct Grown {
    next: u64,
    /// Handed out and not there yet.
    open: BTreeSet<u64>,
}

impl Growth {
    /// After so many keys.
    pub fn after(keys: u64) -> Growth {
        Growth(Mutex::new(Grown { next: keys, open: BTreeSet::new() }))
    }

    /// The number of a new key.
    fn begin(&self) -> u64 {
        let mut grown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = grown.next;
        grown.next += 1;
        grown.open.insert(number);
        number
    }

    /// The key is there. One that could not be written stays open, and readers stay below it.
    fn end(&self, number: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&number);
    }

    /// All keys below this number are there.
    fn visible(&self) -> u64 {
        let grown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        grown.open.first().copied().unwrap_or(grown.next)
    }
}

/// What all workers do, and when.
pub struct Plan {
    /// The operations.
    pub workload: Workload,
    /// Keys that are there before the first operation.
    pub keys: u64,
    /// Keys of one get or put.
    pub batch: u32,
    /// Pairs of one scan, or the most of one where they differ.
    pub scan_length: u32,
    /// Share of reads where it is the user's choice, in percent.
    pub reads: Option<u8>,
    /// What is written.
    pub value: Bytes,
    /// Of payments.
    pub rows: Rows,
    /// New keys.
    pub growth: Growth,
    /// A random number that no other run has: of what keys it draws, and where keys must be new and old ones are left.
    pub run: u64,
    /// Operations that begin earlier warm up.
    pub begin: Instant,
    /// Operations that end later do not count.
    pub end: Instant,
}

/// One worker.
pub struct Worker {
    target: Target,
    plan: Arc<Plan>,
    mix: Mix,
    chooser: Chooser,
    random: Random,
    /// This worker's place among all, and how many operations it has begun.
    index: u64,
    begun: u64,
    measured: Measured,
}

impl Worker {
    /// The worker with this number; it chooses keys by it.
    pub fn new(target: Target, plan: Arc<Plan>, index: u64) -> Worker {
        let mix = Mix::of(plan.workload);
        let chooser = Chooser::new(plan.keys, mix.popularity);
        let random = random(plan.run, index);
        Worker { target, plan, mix, chooser, random, index, begun: 0, measured: Measured::default() }
    }

    /// Works until the end of the measured time, or until an error that every further operation would meet.
    pub async fn run(mut self) -> Measured {
        let plan = Arc::clone(&self.plan);
        let mut started = Instant::now();
        while started < plan.end {
            let operation = self.mix.draw(&mut self.random, plan.reads);
            self.begun += 1;
            let done = self.operate(operation).await;
            let ended = Instant::now();
            let counts = started >= plan.begin && ended <= plan.end;
            match done {
                Ok(Done { keys, conflicts }) if counts => {
                    self.measured.record(operation, ended - started, keys);
                    self.measured.conflicts += conflicts;
                }
                Ok(_) => {}
                Err(failure) => {
                    self.measured.errors += u64::from(counts);
                    let is_fatal = failure.is_fatal();
                    self.measured.first_error.get_or_insert_with(|| failure.to_string());
                    if is_fatal {
                        self.measured.errors = self.measured.errors.max(1);
                        break;
                    }
                }
            }
            started = ended;
        }
        self.measured
    }

    async fn operate(&mut self, operation: Operation) -> Result<Done, Failure> {
        let plan = Arc::clone(&self.plan);
        match operation {
            Operation::Get => {
                let keys = self.chosen(plan.batch);
                self.target.get(keys).await
            }
            Operation::Put => {
                let keys = self.chosen(plan.batch);
                self.target.put(keys, &plan.value).await
            }
            Operation::Update => {
                let keys = self.keys_to_update();
                self.target.update(keys, &plan.value).await
            }
            Operation::Insert => {
                let number = plan.growth.begin();
                let done = self.target.put(vec![key(number)], &plan.value).await?;
                plan.growth.end(number);
                Ok(done)
            }
            Operation::Scan => {
                let most = u64::from(plan.scan_length);
                let length = match plan.workload {
                    Workload::RawScan => most,
                    _ => 1 + self.random.below(most),
                };
                let first = self.chooser.draw(&mut self.random, plan.keys);
                let wanted = length.min(plan.keys - first) as usize;
                self.target.scan(key(first), key(u64::MAX), wanted).await
            }
            Operation::Payment => {
                let number =
                    u128::from(plan.run) << 64 | u128::from(self.index) << 40 | u128::from(self.begun);
                let payment = plan.rows.draw(&mut self.random, number);
                self.target.pay(plan.rows, payment).await
            }
        }
    }

    fn chosen(&mut self, count: u32) -> Vec<Bytes> {
        let visible = self.plan.growth.visible();
        (0..count).map(|_| key(self.chooser.draw(&mut self.random, visible))).collect()
    }

    /// Two different keys where the workload is about two, else one.
    fn keys_to_update(&mut self) -> Vec<Bytes> {
        let keys = self.plan.keys;
        let first = self.chooser.draw(&mut self.random, keys);
        match self.plan.workload {
            Workload::TxnUpdate if keys > 1 => {
                let second = (first + 1 + self.random.below(keys - 1)) % keys;
                vec![key(first), key(second)]
            }
            _ => vec![key(first)],
        }
    }
}

/// What a worker draws from: no two workers of a run draw the same, and no two runs.
fn random(run: u64, index: u64) -> Random {
    Random::new(run ^ (index + 1).wrapping_mul(0x5851_f42d_4c95_7f2d))
}

/// Why an operation did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Client(#[from] kvclient::Error),
    /// The answer was not what must have been there.
    #[error("{0}")]
    Wrong(String),
}

impl Failure {
    /// In these words.
    pub fn told(text: String) -> Failure {
        Failure::Wrong(text)
    }

    /// Whether another transaction was faster, or held a lock for longer than this one waited.
    pub fn is_conflict(&self) -> bool {
        let locked = |error: &_| matches!(error, kvclient::Error::KeyLocked { .. });
        matches!(self, Failure::Client(error) if error.is_conflict() || locked(error))
    }

    /// Whether every further operation would fail as well.
    fn is_fatal(&self) -> bool {
        match self {
            Failure::Client(kvclient::Error::Undetermined { .. }) | Failure::Wrong(_) => false,
            Failure::Client(error) => !error.is_retryable(),
        }
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
    fn readers_stay_below_keys_that_are_not_there_yet() {
        let growth = Growth::after(10);
        let (first, second) = (growth.begin(), growth.begin());
        assert_eq!((first, second, growth.visible()), (10, 11, 10));
        growth.end(second);
        assert_eq!(growth.visible(), 10);
        growth.end(first);
        assert_eq!(growth.visible(), 12);
    }

    #[test]
    fn no_two_workers_and_no_two_runs_draw_the_same() {
        let runs = [crate::bench::random_run(), crate::bench::random_run()];
        let workers = runs.iter().flat_map(|run| (0..100).map(|index| random(*run, index).draw()));
        assert_eq!(workers.collect::<BTreeSet<u64>>().len(), 200);
    }

    #[test]
    fn a_lock_that_stays_is_a_conflict() {
        let (key, holder) = (Bytes::new(), kvclient::Timestamp::ZERO);
        assert!(Failure::from(kvclient::Error::KeyLocked { key, holder }).is_conflict());
        assert!(!Failure::from(kvclient::Error::InvalidArgument(String::new())).is_conflict());
    }
}
