//! Transactional clients at work while a cluster suffers, and the verdict over what they saw.
//!
//! Each client runs one transaction after the other through the SDK, optimistic and pessimistic, with every way to commit,
//! and notes what it read and wrote. Some clients are killed in the middle: their task is dropped, their locks stay.
//! At the end the commit records of all keys tell every fate, and the history is judged like the simulator's. Owns its
//! tasks; a dropped load stops them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvclient::{Error, Transaction, TransactionClient, TxnOptions};
use kvproto::kvrpcpb as pb;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::regions::Regions;
use super::{ClusterError, wait_until};
use crate::check_txn::cycles::{self, Level};
use crate::check_txn::deps::Shape;
use crate::check_txn::settle::{Record, settle};
use crate::check_txn::{Fate, Key, Op, Txn, Value, bank, snapshot};
use crate::sim::rng::Rng;

/// Keys of lists, and accounts of the bank that come after them.
const LISTS: u64 = 8;
const ACCOUNTS: u64 = 6;
const DEPOSIT: u64 = 100;
/// How long locks of killed clients may stay: they expire, and stores clean them up.
const LOCKS_GONE_WITHIN: Duration = Duration::from_secs(60);
const READ_BACK_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long pessimistic locks outlive a killed client.
const LOCK_TTL: Duration = Duration::from_secs(2);
/// Longest life of a client before it may be killed, milliseconds.
const LIFE_MS_MAX: u64 = 3_000;

/// What the load came to, once it was found to be right.
#[derive(Debug)]
pub struct TxnReport {
    pub committed: usize,
    pub aborted: usize,
    /// Transactions whose client did not learn their fate; the records told it.
    pub unknown: usize,
    pub killed: u64,
    /// Reads of the whole bank.
    pub sums: usize,
    /// The first errors.
    pub errors: Vec<String>,
}

/// A load that runs until it is finished.
pub struct TxnLoad {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    endpoints: Vec<String>,
}

struct Shared {
    history: Mutex<Vec<Txn>>,
    start: Instant,
    stop: AtomicBool,
    number: AtomicU64,
    committed: AtomicU64,
    killed: AtomicU64,
    errors: Mutex<Vec<String>>,
}

/// The user key of a key's number.
pub fn user_key(key: Key) -> String {
    format!("txn-{key:03}")
}

/// The same as it is on the wire.
pub fn wire_key(key: Key) -> Bytes {
    [b"x\0\0\0", user_key(key).as_bytes()].concat().into()
}

/// Keys of the load, all of them.
pub fn keys() -> std::ops::Range<Key> {
    0..LISTS + ACCOUNTS
}

fn encode(value: &Value) -> Vec<u8> {
    value.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn decode(bytes: Option<Bytes>) -> Value {
    let bytes = bytes.unwrap_or_default();
    bytes.chunks_exact(8).map(|n| n.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))).collect()
}

impl TxnLoad {
    /// Connects the clients and sets them to work.
    ///
    /// # Errors
    /// When the cluster cannot be reached.
    pub async fn start(endpoints: Vec<String>, clients: u64, seed: u64) -> kvclient::Result<TxnLoad> {
        let shared = Arc::new(Shared {
            history: Mutex::default(),
            start: Instant::now(),
            stop: AtomicBool::new(false),
            number: AtomicU64::new(1),
            committed: AtomicU64::new(0),
            killed: AtomicU64::new(0),
            errors: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let connected = TransactionClient::connect(&endpoints).await?;
            tasks.spawn(client_lives(shared.clone(), connected, client as usize, Rng::new(seed, client)));
        }
        Ok(TxnLoad { shared, tasks, endpoints })
    }

    /// Transactions that committed so far.
    pub fn committed(&self) -> u64 {
        self.shared.committed.load(Ordering::Relaxed)
    }

    /// Waits, blocking, until that many more transactions committed.
    ///
    /// # Errors
    /// When that takes longer.
    pub fn wait_progress(&self, more: u64, within: Duration) -> Result<(), ClusterError> {
        let goal = self.committed() + more;
        let what = format!("{more} more transactions ({:?})", self.shared.errors.lock());
        wait_until(&what, within, || self.committed() >= goal)
    }

    /// Stops the clients, waits until no lock is left, and judges.
    ///
    /// # Errors
    /// What no snapshot explains, what was lost, or that the cluster cannot be read.
    pub async fn finish(mut self) -> Result<TxnReport, String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|panic| format!("a client panicked: {panic}"))?;
        }
        let client = TransactionClient::connect(&self.endpoints).await.map_err(|e| e.to_string())?;
        no_locks(&client).await?;
        let records = records(&self.endpoints[0]).await?;
        let mut history = std::mem::take(&mut *self.shared.history.lock());
        let count = |fate: fn(&Txn) -> bool| history.iter().filter(|txn| fate(txn)).count();
        let unknown = count(|txn| txn.fate == Fate::Unknown);
        settle(&mut history, &records).map_err(|broken| format!("{broken:?}"))?;
        history.iter_mut().for_each(date_locked);
        judge(&history)?;
        Ok(TxnReport {
            committed: history.iter().filter(|txn| txn.commit_ts().is_some()).count(),
            aborted: history.iter().filter(|txn| txn.fate == Fate::Aborted).count(),
            unknown,
            killed: self.shared.killed.load(Ordering::Relaxed),
            sums: history.iter().filter(|txn| sums_up(txn)).count(),
            errors: std::mem::take(&mut *self.shared.errors.lock()),
        })
    }
}

/// The SDK does not tell at which timestamp a lock was got. It was held until the commit: what was read under it was
/// the newest version right before that.
fn date_locked(txn: &mut Txn) {
    let Some(commit_ts) = txn.commit_ts() else { return };
    for op in &mut txn.ops {
        if let Op::Read { at: ts, .. } | Op::Write { since: ts, .. } | Op::Lock { since: ts, .. } = op
            && *ts == u64::MAX
        {
            *ts = commit_ts - 1;
        }
    }
}

fn sums_up(txn: &Txn) -> bool {
    let of_bank = |op: &&Op| matches!(op, Op::Read { key, .. } if *key >= LISTS);
    txn.ops.iter().filter(of_bank).count() as u64 >= ACCOUNTS
}

fn judge(history: &[Txn]) -> Result<(), String> {
    let told = |broken| format!("{broken:?}");
    snapshot::check(history).map_err(told)?;
    let mut lists = history.to_vec();
    let of_lists = |op: &Op| matches!(op, Op::Read { key, .. } | Op::Write { key, .. } | Op::Lock { key, .. } if *key < LISTS);
    lists.iter_mut().for_each(|txn| txn.ops.retain(of_lists));
    cycles::check(&lists, Shape::Lists, Level::SnapshotIsolation).map_err(told)?;
    // Before the bank was filled there was no money in it.
    let account = |op: &Op| match op {
        Op::Read { key, seen, at } if *key >= LISTS && !seen.is_empty() => {
            Some(Op::Read { key: *key - LISTS, seen: seen.clone(), at: *at })
        }
        Op::Write { key, value, since } if *key >= LISTS => {
            Some(Op::Write { key: *key - LISTS, value: value.clone(), since: *since })
        }
        _ => None,
    };
    let mut accounts = history.to_vec();
    accounts.iter_mut().for_each(|txn| txn.ops = txn.ops.iter().filter_map(account).collect());
    bank::check(&accounts, ACCOUNTS, ACCOUNTS * DEPOSIT).map_err(told)
}

/// Waits until nobody holds a lock any more.
async fn no_locks(client: &TransactionClient) -> Result<(), String> {
    let deadline = Instant::now() + LOCKS_GONE_WITHIN;
    loop {
        let left = match client.current_timestamp().await {
            Ok(now) => client.scan_locks(.., now, usize::MAX).await,
            Err(error) => Err(error),
        };
        match left {
            Ok(locks) if locks.is_empty() => return Ok(()),
            left if Instant::now() >= deadline => return Err(format!("locks stay: {left:?}")),
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// The commit records of all keys.
async fn records(endpoint: &str) -> Result<Vec<Record>, String> {
    let told = |status: tonic::Status| format!("records cannot be read: {status}");
    let regions = Regions::connect(endpoint).await.map_err(told)?;
    let mut records = Vec::new();
    for key in keys() {
        let wire = wire_key(key);
        let found = regions.settle(|| async {
            let at = regions.of(&wire).await?;
            let request = pb::MvccGetByKeyRequest { context: Some(at.context()), key: wire.clone() };
            let mut store = regions.store(at.leader.store_id).await?;
            let reply = store.mvcc_get_by_key(request).await?.into_inner();
            Ok(reply.region_error.is_none().then_some(reply))
        });
        let reply = found.await.map_err(told)?;
        if !reply.error.is_empty() {
            return Err(format!("records of key {key}: {}", reply.error));
        }
        let writes = reply.info.unwrap_or_default().writes.into_iter();
        let commits = writes.filter(|write| write.r#type != pb::Op::Rollback as i32);
        records.extend(commits.map(|w| Record { key, start_ts: w.start_ts, commit_ts: w.commit_ts }));
    }
    Ok(records)
}

/// A client that is killed now and then, and comes back.
async fn client_lives(shared: Arc<Shared>, client: TransactionClient, number: usize, mut rng: Rng) {
    while !shared.stopped() {
        let life = Duration::from_millis(rng.range(LIFE_MS_MAX / 10, LIFE_MS_MAX));
        let worker =
            Worker { shared: shared.clone(), client: client.clone(), number, rng: Rng::new(rng.draw(), 0) };
        if tokio::time::timeout(life, worker.work()).await.is_err() {
            shared.killed.fetch_add(1, Ordering::Relaxed);
        }
    }
    // What was begun when the load ended has an end, too.
    let last = Worker { shared, client, number, rng };
    drop(tokio::time::timeout(READ_BACK_WITHIN, last.read_all()).await);
}

/// One life of a client.
struct Worker {
    shared: Arc<Shared>,
    client: TransactionClient,
    number: usize,
    rng: Rng,
}

/// A transaction and its place in the history.
struct Open {
    txn: Transaction,
    place: usize,
    start_ts: u64,
    locks: bool,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn note(&self, open: &Open, op: Op) {
        self.history.lock()[open.place].ops.push(op);
    }

    fn end(&self, open: &Open, fate: Fate) {
        let ended = (fate != Fate::Unknown).then(|| self.now());
        let txn = &mut self.history.lock()[open.place];
        (txn.fate, txn.ended) = (fate, ended);
    }

    fn failure(&self, error: &Error) {
        let mut errors = self.errors.lock();
        if errors.len() < 20 {
            errors.push(error.to_string());
        }
    }
}

impl Worker {
    async fn work(mut self) {
        while !self.shared.stopped() {
            if let Err(error) = self.one_transaction().await {
                self.shared.failure(&error);
            }
        }
    }

    async fn begin(&mut self, locks: bool) -> kvclient::Result<Open> {
        let options = if locks { TxnOptions::pessimistic() } else { TxnOptions::optimistic() };
        let options = options
            .async_commit(self.rng.chance(0.7))
            .one_phase(self.rng.chance(0.7))
            .lock_ttl(LOCK_TTL)
            .lock_wait(Duration::from_secs(1));
        let began = self.shared.now();
        let txn = self.client.begin(options).await?;
        let start_ts = txn.start_timestamp().get();
        let mut history = self.shared.history.lock();
        let (fate, ops) = (Fate::Unknown, Vec::new());
        history.push(Txn { client: self.number, start_ts, fate, ops, began, ended: None });
        Ok(Open { txn, place: history.len() - 1, start_ts, locks })
    }

    async fn one_transaction(&mut self) -> kvclient::Result<()> {
        let locks = self.rng.chance(0.4);
        let mut open = self.begin(locks).await?;
        let of_bank = self.rng.chance(0.5);
        let done = if of_bank { self.transfer(&mut open).await } else { self.append(&mut open).await };
        let outcome = match done {
            Ok(()) => open.txn.commit().await,
            Err(error) => {
                self.shared.end(&open, Fate::Aborted);
                // Locks that stay expire.
                let _ = open.txn.rollback().await;
                return Err(error);
            }
        };
        let fate = match &outcome {
            Ok(Some(ts)) => Fate::Committed(ts.get()),
            // It only gave its locks back: there is no commit to date its reads by.
            Ok(None) if open.locks => Fate::Aborted,
            Ok(None) => Fate::Committed(open.start_ts),
            Err(Error::Undetermined { .. }) => Fate::Unknown,
            Err(_) => Fate::Aborted,
        };
        self.shared.end(&open, fate);
        self.shared.committed.fetch_add(u64::from(outcome.is_ok()), Ordering::Relaxed);
        outcome.map(|_| ())
    }

    /// Reads a key as the transaction does it.
    async fn read(&mut self, open: &mut Open, key: Key) -> kvclient::Result<Value> {
        let (bytes, at) = match open.locks {
            true => (open.txn.get_for_update(user_key(key)).await?, u64::MAX),
            false => (open.txn.get(user_key(key)).await?, open.start_ts),
        };
        let seen = decode(bytes);
        if open.locks {
            self.shared.note(open, Op::Lock { key, since: at });
        }
        self.shared.note(open, Op::Read { key, seen: seen.clone(), at });
        Ok(seen)
    }

    async fn write(&mut self, open: &mut Open, key: Key, value: Value) -> kvclient::Result<()> {
        let since = if open.locks { u64::MAX } else { open.start_ts };
        // Noted first: a client that is killed in the middle may have written it.
        self.shared.note(open, Op::Write { key, value: value.clone(), since });
        open.txn.put(user_key(key), encode(&value)).await
    }

    async fn append(&mut self, open: &mut Open) -> kvclient::Result<()> {
        let first = self.rng.below(LISTS);
        let keys: Vec<Key> = (0..self.rng.range(1, 3)).map(|i| (first + i * 3) % LISTS).collect();
        for key in keys {
            let mut list = self.read(open, key).await?;
            if self.rng.chance(0.7) {
                list.push(self.shared.number.fetch_add(1, Ordering::Relaxed));
                self.write(open, key, list).await?;
            }
        }
        Ok(())
    }

    async fn transfer(&mut self, open: &mut Open) -> kvclient::Result<()> {
        let mut balances = Vec::new();
        for account in 0..ACCOUNTS {
            balances.push(self.read(open, LISTS + account).await?);
        }
        if balances.iter().any(Value::is_empty) {
            for account in 0..ACCOUNTS {
                self.write(open, LISTS + account, vec![DEPOSIT]).await?;
            }
            return Ok(());
        }
        let from = self.rng.below(ACCOUNTS);
        let to = (from + self.rng.range(1, ACCOUNTS - 1)) % ACCOUNTS;
        let amount = self.rng.below(balances[from as usize][0] + 1);
        self.write(open, LISTS + from, vec![balances[from as usize][0] - amount]).await?;
        self.write(open, LISTS + to, vec![balances[to as usize][0] + amount]).await
    }

    /// Looks at everything once more.
    async fn read_all(mut self) -> kvclient::Result<()> {
        let mut open = self.begin(false).await?;
        for key in keys() {
            self.read(&mut open, key).await?;
        }
        open.txn.commit().await?;
        self.shared.end(&open, Fate::Committed(open.start_ts));
        Ok(())
    }
}
