//! Clients at work while a cluster suffers, and the verdict over what they were told.
//!
//! Two kinds. Register clients put, read and compare-and-swap a few keys that they all share; their history is
//! checked for linearizability. Ledger clients write keys of their own, each once; everything acknowledged must be
//! there at the end. At the end every register is read once more, so that a last write that got lost is seen too.
//! Owns its client connections and tasks; a dropped load stops them. Outcomes that the SDK calls unknown are kept
//! apart from definite failures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvclient::{Error, RawClient};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::history::{History, Told};
use super::{ClusterError, wait_until};
use crate::sim::check::linear::{Action, Value};
use crate::sim::rng::Rng;

/// Errors that are kept word by word.
const ERRORS_KEPT: usize = 20;
/// How long the final reads may be tried.
const READ_BACK_WITHIN: Duration = Duration::from_secs(30);
/// Random numbers for values come from a stream of their own.
const LEDGER_STREAM: u64 = 1 << 32;

/// How much load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Clients that share the registers.
    pub register_clients: usize,
    pub registers: usize,
    /// Clients that write keys of their own.
    pub ledger_clients: usize,
    /// Bytes of each of their values.
    pub value_bytes: usize,
    /// What the clients do is drawn from this.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { register_clients: 6, registers: 4, ledger_clients: 3, value_bytes: 200, seed: 1 }
    }
}

/// What the load came to, once it was found to be right.
#[derive(Debug)]
pub struct Report {
    /// Operations on registers whose outcome is known.
    pub operations: usize,
    /// Ledger keys that were acknowledged, all of which are there.
    pub ledger: usize,
    /// Operations that failed for certain.
    pub failed: u64,
    /// Writes whose outcome their client was not told.
    pub unknown: u64,
    /// The first errors of both kinds.
    pub errors: Vec<String>,
}

/// A load that runs until it is finished.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    endpoints: Vec<String>,
    options: LoadOptions,
}

#[derive(Debug)]
struct Shared {
    history: History,
    stop: AtomicBool,
    next_value: AtomicU64,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
    errors: Mutex<Vec<String>>,
    ledger: Mutex<BTreeMap<Bytes, Bytes>>,
}

fn register_key(register: usize) -> String {
    format!("register-{register:02}")
}

/// Number a register's value stands for; 0 when there is none.
fn number(value: Option<&Bytes>) -> Result<Value, String> {
    let Some(value) = value else { return Ok(0) };
    let text = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| format!("a register holds {value:?}, which nobody wrote"))
}

impl Load {
    /// Connects the clients and sets them to work.
    ///
    /// # Errors
    /// When the cluster cannot be reached.
    pub async fn start(endpoints: Vec<String>, options: LoadOptions) -> kvclient::Result<Load> {
        let shared = Arc::new(Shared {
            history: History::new(options.registers),
            stop: AtomicBool::new(false),
            next_value: AtomicU64::new(1),
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            errors: Mutex::default(),
            ledger: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for client in 0..options.register_clients {
            // Each has its own connections and its own idea of the regions.
            let raw = RawClient::connect(&endpoints).await?.atomic();
            let rng = Rng::new(options.seed, client as u64);
            tasks.spawn(register_client(shared.clone(), raw, rng, options.registers));
        }
        for client in 0..options.ledger_clients {
            let raw = RawClient::connect(&endpoints).await?;
            tasks.spawn(ledger_client(shared.clone(), raw, client, options.value_bytes));
        }
        Ok(Load { shared, tasks, endpoints, options })
    }

    /// Operations that succeeded so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits, blocking, until that many more operations succeeded.
    pub fn wait_progress(&self, more: u64, within: Duration) -> Result<(), ClusterError> {
        let goal = self.acknowledged() + more;
        let what = format!("{more} more operations to succeed ({:?})", self.shared.errors.lock());
        wait_until(&what, within, || self.acknowledged() >= goal)
    }

    /// Stops the clients, reads everything back and judges.
    ///
    /// # Errors
    /// What was lost, or what no order of the operations explains, or that the cluster cannot be read.
    pub async fn finish(mut self) -> Result<Report, String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|panic| format!("a client panicked: {panic}"))?;
        }
        let client = retry(|| RawClient::connect(&self.endpoints)).await?;
        for register in 0..self.options.registers {
            let start = self.shared.history.now();
            let value = retry(|| client.get(register_key(register))).await?;
            let value = number(value.as_ref())?;
            self.shared.history.note(register, start, Told::Done(Action::Read(value)));
        }
        self.shared.history.check().map_err(|broken| broken.what)?;
        let ledger = self.check_ledger(&client).await?;
        Ok(Report {
            operations: self.shared.history.known(),
            ledger,
            failed: self.shared.failed.load(Ordering::Relaxed),
            unknown: self.shared.unknown.load(Ordering::Relaxed),
            errors: std::mem::take(&mut *self.shared.errors.lock()),
        })
    }

    async fn check_ledger(&self, client: &RawClient) -> Result<usize, String> {
        let pairs = retry(|| client.scan("ledger-".."ledger.").collect()).await?;
        let found: BTreeMap<Bytes, Bytes> = pairs.into_iter().map(|pair| (pair.key, pair.value)).collect();
        let ledger = self.shared.ledger.lock();
        let lost: Vec<&Bytes> = ledger
            .iter()
            .filter(|(key, value)| found.get(*key) != Some(*value))
            .map(|(key, _)| key)
            .collect();
        match lost.is_empty() {
            true => Ok(ledger.len()),
            false => Err(format!(
                "{} of {} acknowledged keys are missing or wrong, such as {:?}",
                lost.len(),
                ledger.len(),
                &lost[..lost.len().min(5)]
            )),
        }
    }
}

/// Tries until it works or has no more time.
async fn retry<T, F: Future<Output = kvclient::Result<T>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, String> {
    let deadline = Instant::now() + READ_BACK_WITHIN;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(format!("cannot read back: {error}")),
            // Every attempt waits inside the client; this one only keeps a quick refusal from spinning.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Counts a failure; says whether the write may have happened.
    fn failure(&self, what: &str, error: &Error) -> bool {
        let unknown = matches!(error, Error::Undetermined { .. });
        let counter = if unknown { &self.unknown } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut errors = self.errors.lock();
        if errors.len() < ERRORS_KEPT {
            errors.push(format!("{what}: {error}"));
        }
        unknown
    }

    /// Notes how a register operation ended. `action` is what it did if it did anything.
    fn note(&self, register: usize, start: u64, outcome: Result<Action, Error>, action: Option<Action>) {
        let told = match outcome {
            Ok(done) => {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                Told::Done(done)
            }
            Err(error) => match (self.failure("register", &error), action) {
                (true, Some(action)) => Told::Unknown(action),
                _ => Told::Failed,
            },
        };
        self.history.note(register, start, told);
    }
}

/// A value that is no number makes the read look like one of a value that was never written.
const NOT_A_NUMBER: Value = Value::MAX;

async fn register_client(shared: Arc<Shared>, client: RawClient, mut rng: Rng, registers: usize) {
    // What this client last saw or left in each register: the first guess of a compare-and-swap.
    let mut seen: Vec<Value> = vec![0; registers];
    while !shared.stopped() {
        let register = rng.index(registers);
        let key = register_key(register);
        let choice = rng.below(10);
        let start = shared.history.now();
        if choice < 4 {
            let read = client.get(key).await;
            let outcome = read.map(|value| Action::Read(number(value.as_ref()).unwrap_or(NOT_A_NUMBER)));
            if let Ok(Action::Read(value)) = outcome {
                seen[register] = value;
            }
            shared.note(register, start, outcome, None);
            continue;
        }
        let new = shared.next_value.fetch_add(1, Ordering::Relaxed);
        if choice < 7 {
            let action = Action::Write(new);
            let outcome = client.put(key, new.to_string()).await.map(|()| action);
            shared.note(register, start, outcome, Some(action));
            continue;
        }
        let expect = seen[register];
        let previous = (expect != 0).then(|| Bytes::from(expect.to_string()));
        let swap = client.compare_and_swap(key, previous, new.to_string()).await;
        let outcome = swap.map(|cas| {
            let found = number(cas.previous.as_ref()).unwrap_or(NOT_A_NUMBER);
            seen[register] = if cas.swapped { new } else { found };
            if cas.swapped { Action::Swap { expect, new } } else { Action::SwapFailed(found) }
        });
        shared.note(register, start, outcome, Some(Action::Swap { expect, new }));
    }
}

/// Bytes that no compression makes smaller.
fn filler(rng: &mut Rng, bytes: usize) -> Bytes {
    let words = std::iter::repeat_with(|| rng.draw().to_le_bytes());
    words.flatten().take(bytes).collect()
}

async fn ledger_client(shared: Arc<Shared>, client: RawClient, number: usize, bytes: usize) {
    let mut rng = Rng::new(number as u64, LEDGER_STREAM);
    for n in 0.. {
        if shared.stopped() {
            return;
        }
        let key = Bytes::from(format!("ledger-{number:02}/{n:08}"));
        let value = filler(&mut rng, bytes);
        // A failed write may or may not have happened; its key is not used again.
        match client.put(key.clone(), value.clone()).await {
            Ok(()) => {
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                shared.ledger.lock().insert(key, value);
            }
            Err(error) => {
                shared.failure("ledger", &error);
            }
        }
    }
}
