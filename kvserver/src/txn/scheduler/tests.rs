//! The runner over a storage whose writes a test can hold back: what readers and writers see of each other meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use kvproto::kvrpcpb::ApiVersion;
use kvproto::metapb;
use parking_lot::Mutex;

use super::*;
use crate::clock::Now;
use crate::engine::mem::MemEngine;
use crate::engine::{Cf, Engine, WriteBatch, WriteOptions};
use crate::error::RegionResult;
use crate::raftstore::message::WriteSet;
use crate::raftstore::message::write_set::{self, Entry};
use crate::raftstore::meta::region_view::RegionMeta;
use crate::safe_points::SafePoints;
use crate::txn::commands::{Commit, Mutation, MutationOp, PessimisticAction, Prewrite, Prewritten};
use crate::txn::deadlock::LocalDetector;
use crate::txn::mvcc::rules::ReadRules;

const REGION: u64 = 7;

/// One region in memory. Writes wait in `held` until they are released.
struct Store {
    engine: MemEngine,
    region: Arc<RegionMeta>,
    term: AtomicU64,
    hold: std::sync::atomic::AtomicBool,
    held: Mutex<Vec<(WriteSet, Callback<()>)>>,
}

impl Store {
    fn apply(&self, write: WriteSet, done: Callback<()>) {
        let Ok(Entry::Write { ops, .. }) = write_set::decode(&write.seal(1)) else { panic!("not a write") };
        let mut batch = WriteBatch::new();
        ops.for_each(|op| batch.push(op.unwrap()));
        self.engine.write(&batch, WriteOptions::default()).unwrap();
        done.call(Ok(()));
    }

    fn release(&self) {
        let held = std::mem::take(&mut *self.held.lock());
        held.into_iter().for_each(|(write, done)| self.apply(write, done));
    }
}

impl Storage for Store {
    fn api(&self) -> ApiVersion {
        ApiVersion::V2
    }

    fn region(&self, _: &RegionContext) -> RegionResult<Arc<RegionMeta>> {
        Ok(self.region.clone())
    }

    fn lease_snapshot(&self, _: &RegionContext) -> RegionResult<Option<RegionSnapshot>> {
        let (snapshot, term) = (self.engine.snapshot(), self.term.load(Ordering::SeqCst));
        Ok(Some(RegionSnapshot { snapshot, region: self.region.clone(), term }))
    }

    fn confirm(&self, _: &RegionContext, done: Callback<()>) {
        done.call(Ok(()));
    }

    fn confirmed_snapshot(&self, ctx: &RegionContext) -> RegionResult<RegionSnapshot> {
        self.lease_snapshot(ctx).map(|snapshot| snapshot.unwrap())
    }

    fn write(&self, ctx: &RegionContext, write: WriteSet, done: Callback<()>) {
        assert_eq!(ctx.term, self.term.load(Ordering::SeqCst), "a write is good in the term of its snapshot");
        match self.hold.load(Ordering::SeqCst) {
            true => self.held.lock().push((write, done)),
            false => self.apply(write, done),
        }
    }
}

/// Timestamps that a test sets, time that stands still, work that is done at once.
#[derive(Default)]
struct World {
    ts: AtomicU64,
    asked: AtomicU64,
    /// Work waits in `jobs` until a test does it.
    slow: std::sync::atomic::AtomicBool,
    jobs: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl Oracle for World {
    fn timestamp(&self) -> BoxFuture<'static, Result<u64, String>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let ts = self.ts.load(Ordering::SeqCst);
        async move { if ts == 0 { Err("nobody leads".into()) } else { Ok(ts) } }.boxed()
    }
}

impl Timer for World {
    fn now(&self) -> Now {
        Now(1)
    }

    fn sleep(&self, _ms: u64) -> BoxFuture<'static, ()> {
        std::future::pending().boxed()
    }
}

impl Offload for World {
    fn offload(&self, job: Box<dyn FnOnce() + Send>) -> bool {
        match self.slow.load(Ordering::SeqCst) {
            true => self.jobs.lock().push(job),
            false => job(),
        }
        true
    }
}

struct Bench {
    store: Arc<Store>,
    world: Arc<World>,
    txn: Arc<Txn>,
    safe_points: Arc<SafePoints>,
}

fn bench(ts: u64) -> Bench {
    let region_epoch = Some(metapb::RegionEpoch { conf_ver: 1, version: 1 });
    let region = metapb::Region { id: REGION, region_epoch, ..Default::default() };
    let region = Arc::new(RegionMeta { region, start: Bytes::new(), end: Bytes::new() });
    let engine = MemEngine::new();
    let store = Store { engine, region, term: 1.into(), hold: false.into(), held: Mutex::default() };
    let (store, world) = (Arc::new(store), Arc::new(World { ts: ts.into(), ..World::default() }));
    let safe_points: Arc<SafePoints> = Arc::default();
    let txn = Txn::new(TxnParts {
        storage: store.clone(),
        pool: world.clone(),
        oracle: world.clone(),
        timer: world.clone(),
        detector: Arc::new(LocalDetector::new(world.clone())),
        waits: LockWaitOptions::default(),
        safe_points: safe_points.clone(),
        write_bytes_max: 1 << 20,
    });
    Bench { store, world, txn: Arc::new(txn), safe_points }
}

impl Bench {
    fn call(&self) -> TxnCall {
        TxnCall { ctx: RegionContext { region_id: REGION, ..Default::default() }, api: ApiVersion::V1 }
    }

    fn run<C: Command>(&self, command: C) -> BoxFuture<'static, TxnResult<C::Answer>> {
        let (txn, call) = (self.txn.clone(), self.call());
        async move { txn.run(&call, command).await }.boxed()
    }

    /// What a read has to wait for, as a future.
    fn reader(&self, key: &'static str, ts: u64) -> BoxFuture<'static, TxnResult<()>> {
        let txn = self.txn.clone();
        async move { txn.before_read(&[key.into()], ts).await }.boxed()
    }

    fn has(&self, cf: Cf, key: &'static str, ts: Option<u64>) -> bool {
        let key = crate::txn::mvcc::Key::new(key.into());
        let stored = ts.map_or(key.encoded().to_vec(), |ts| key.with_ts(ts));
        self.store.engine.get(cf, &stored).unwrap().is_some()
    }
}

fn prewrite(key: &'static str, start_ts: u64) -> Prewrite {
    let mutation = Mutation {
        op: MutationOp::Put,
        key: key.into(),
        value: "v".into(),
        pessimistic: PessimisticAction::Skip,
        expected_for_update_ts: None,
        assertion: None,
    };
    Prewrite {
        mutations: vec![mutation],
        primary: key.into(),
        start_ts,
        ttl: 3_000,
        txn_size: 1,
        for_update_ts: 0,
        min_commit_ts: 0,
        max_commit_ts: 0,
        skip_constraint_check: false,
        secondaries: None,
        try_one_pc: false,
    }
}

fn one_phase(key: &'static str, start_ts: u64) -> Prewrite {
    Prewrite { try_one_pc: true, ..prewrite(key, start_ts) }
}

fn now<T>(future: BoxFuture<'static, T>) -> T {
    future.now_or_never().expect("nothing to wait for")
}

#[test]
fn two_phases_leave_a_version_and_no_lock() {
    let b = bench(100);
    assert_eq!(now(b.run(prewrite("k", 10))).unwrap(), Prewritten::default());
    assert!(b.has(Cf::Lock, "k", None));
    assert_eq!(now(b.run(Commit { start_ts: 10, commit_ts: 20, keys: vec!["k".into()] })).unwrap(), 20);
    assert!(!b.has(Cf::Lock, "k", None) && b.has(Cf::Write, "k", Some(20)));
}

#[test]
fn what_ends_a_transaction_is_let_in_where_room_is_short() {
    let b = bench(100);
    b.store.hold.store(true, Ordering::SeqCst);
    let adds = |b: &Bench| b.store.held.lock().iter().map(|(write, _)| write.adds_data()).collect::<Vec<_>>();
    let mut writer = b.run(prewrite("k", 10));
    assert!((&mut writer).now_or_never().is_none());
    assert_eq!(adds(&b), [true]);
    b.store.release();
    now(writer).unwrap();
    let mut commit = b.run(Commit { start_ts: 10, commit_ts: 20, keys: vec!["k".into()] });
    assert!((&mut commit).now_or_never().is_none());
    assert_eq!(adds(&b), [false]);
}

#[test]
fn one_phase_commits_above_what_was_read() {
    let b = bench(100);
    now(b.reader("k", 50)).unwrap();
    // The region is new here: what earlier leaders read may reach up to the oracle's 100.
    assert_eq!(now(b.run(one_phase("k", 10))).unwrap().one_pc_commit_ts, 101);
    now(b.reader("other", 100)).unwrap();
    b.world.ts.store(200, Ordering::SeqCst);
    now(b.reader("k", 170)).unwrap();
    assert_eq!(now(b.run(one_phase("other", 160))).unwrap().one_pc_commit_ts, 171);
}

#[test]
fn a_reader_waits_for_a_commit_that_is_on_its_way() {
    let b = bench(100);
    b.store.hold.store(true, Ordering::SeqCst);
    let mut writer = b.run(one_phase("k", 10));
    assert!((&mut writer).now_or_never().is_none(), "the write is held back");
    b.world.ts.store(300, Ordering::SeqCst);
    now(b.reader("k", 100)).unwrap();
    now(b.reader("other", 200)).unwrap();
    let mut reader = b.reader("k", 200);
    assert!((&mut reader).now_or_never().is_none(), "it commits at 101: a read at 200 must see it");
    b.store.release();
    now(reader).unwrap();
    assert!(b.has(Cf::Write, "k", Some(101)));
    assert_eq!(now(writer).unwrap().one_pc_commit_ts, 101);
}

#[test]
fn what_needs_no_waiting_is_answered_at_once() {
    let b = bench(100);
    let get = |key: &'static str, ts| b.txn.get_now(&b.call(), &key.into(), &ReadRules::at(ts));
    assert!(get("k", 50).is_none(), "nobody has asked the oracle yet");
    now(b.run(one_phase("k", 10))).unwrap();
    assert_eq!(get("k", 100).unwrap().unwrap(), None);
    let found = get("k", u64::MAX).unwrap().unwrap().unwrap();
    assert_eq!((&found.value[..], found.commit_ts), (&b"v"[..], 101));
    b.store.hold.store(true, Ordering::SeqCst);
    b.world.ts.store(300, Ordering::SeqCst);
    now(b.reader("other", 250)).unwrap();
    let mut writer = b.run(one_phase("k", 150));
    assert!((&mut writer).now_or_never().is_none());
    assert_eq!(get("k", 250).unwrap().unwrap().unwrap().commit_ts, 101);
    assert!(get("k", 300).is_none(), "the commit on its way lies below");
    assert!(get("other", 300).unwrap().unwrap().is_none());
    b.store.release();
    assert_eq!(get("k", 300).unwrap().unwrap().unwrap().commit_ts, 251);
}

#[test]
fn a_client_that_hangs_up_releases_nothing_early() {
    let b = bench(100);
    b.store.hold.store(true, Ordering::SeqCst);
    let mut writer = b.run(one_phase("k", 10));
    assert!((&mut writer).now_or_never().is_none());
    drop(writer);
    b.world.ts.store(300, Ordering::SeqCst);
    let mut reader = b.reader("k", 200);
    let mut second = b.run(prewrite("k", 210));
    assert!((&mut reader).now_or_never().is_none(), "the memory lock stays");
    assert!((&mut second).now_or_never().is_none(), "the latch stays");
    b.store.release();
    now(reader).unwrap();
    assert!((&mut second).now_or_never().is_none(), "its own write is held back now");
    b.store.release();
    assert!(now(second).is_ok());
}

#[test]
fn a_client_that_hangs_up_while_its_command_is_read_for_releases_nothing_early() {
    let b = bench(100);
    b.world.slow.store(true, Ordering::SeqCst);
    let mut large = one_phase("k", 10);
    let filler = large.mutations[0].clone();
    large
        .mutations
        .extend((0..2 * INLINE_KEYS).map(|n| Mutation { key: format!("l{n}").into(), ..filler.clone() }));
    let mut first = b.run(large);
    assert!((&mut first).now_or_never().is_none(), "it is in the read pool");
    drop(first);
    let mut second = b.run(one_phase("k", 20));
    assert!((&mut second).now_or_never().is_none(), "the latches stay with the work");
    let jobs = std::mem::take(&mut *b.world.jobs.lock());
    jobs.into_iter().for_each(|job| job());
    assert_eq!(now(second).unwrap().one_pc_commit_ts, 101);
}

#[test]
fn timestamps_and_keys_that_would_bind_for_ever_are_refused() {
    let b = bench(100);
    let base = prewrite("k", 10);
    let secondaries = Some(vec![]);
    let long = Bytes::from(vec![b'k'; 9_000]);
    let bad = [
        Prewrite { min_commit_ts: u64::MAX, secondaries: secondaries.clone(), ..base.clone() },
        Prewrite { min_commit_ts: u64::MAX, try_one_pc: true, ..base.clone() },
        Prewrite { for_update_ts: u64::MAX, ..base.clone() },
        Prewrite { primary: long.clone(), ..base.clone() },
        Prewrite { secondaries: Some(vec![long]), ..base.clone() },
        Prewrite { secondaries: Some(vec![Bytes::new()]), ..base },
    ];
    for command in bad {
        let refused = now(b.run(command.clone()));
        assert!(matches!(refused, Err(TxnError::Invalid(_) | TxnError::Key(_))), "{command:?}: {refused:?}");
    }
    assert!(!b.has(Cf::Lock, "k", None));
}

#[test]
fn a_failed_write_gives_everything_back() {
    let b = bench(100);
    b.store.hold.store(true, Ordering::SeqCst);
    let mut writer = b.run(one_phase("k", 10));
    assert!((&mut writer).now_or_never().is_none());
    let (_, done) = b.store.held.lock().pop().unwrap();
    done.call(Err(RegionError::StaleCommand));
    assert!(matches!(now(writer), Err(TxnError::Region(RegionError::StaleCommand))));
    b.world.ts.store(300, Ordering::SeqCst);
    now(b.reader("k", 200)).unwrap();
    b.store.hold.store(false, Ordering::SeqCst);
    assert!(now(b.run(prewrite("k", 210))).is_ok());
}

#[test]
fn a_new_term_asks_the_oracle_once_and_waits_for_its_answer() {
    let b = bench(100);
    now(b.run(one_phase("a", 10))).unwrap();
    now(b.run(one_phase("b", 10))).unwrap();
    let asked = b.world.asked.load(Ordering::SeqCst);
    b.store.term.store(2, Ordering::SeqCst);
    b.world.ts.store(0, Ordering::SeqCst);
    assert!(b.run(one_phase("c", 20)).now_or_never().is_none(), "no timestamp, no commit");
    assert!(now(b.run(prewrite("d", 20))).is_ok(), "locks need none");
    b.world.ts.store(500, Ordering::SeqCst);
    assert_eq!(now(b.run(one_phase("e", 20))).unwrap().one_pc_commit_ts, 501);
    assert_eq!(b.world.asked.load(Ordering::SeqCst), asked + 2);
}

#[test]
fn timestamps_that_nobody_handed_out_are_refused() {
    let b = bench(100);
    assert!(matches!(now(b.run(prewrite("k", 101))), Err(TxnError::FromTheFuture { ts: 101, now: 100 })));
    assert!(matches!(now(b.reader("k", 1 << 60)), Err(TxnError::FromTheFuture { .. })));
    assert_eq!(b.txn.max_ts().get(), 0, "nothing was raised");
}

#[test]
fn below_the_safe_point_nobody_reads_or_begins_and_everybody_may_end() {
    let b = bench(100);
    now(b.run(prewrite("k", 10))).unwrap();
    b.safe_points.raise(20, 0);
    let get = |ts| {
        let (txn, call) = (b.txn.clone(), b.call());
        now(async move { txn.get(&call, "other".into(), ReadRules::at(ts)).await }.boxed())
    };
    assert!(matches!(get(19), Err(TxnError::TooOld { ts: 19, safe_point: 20 })));
    assert!(get(20).unwrap().is_none());
    let at_once = b.txn.get_now(&b.call(), &"other".into(), &ReadRules::at(19));
    assert!(matches!(at_once, Some(Err(TxnError::TooOld { .. }))));
    assert!(matches!(now(b.run(prewrite("l", 19))), Err(TxnError::TooOld { .. })));
    now(b.run(prewrite("l", 20))).unwrap();
    assert_eq!(now(b.run(Commit { start_ts: 10, commit_ts: 30, keys: vec!["k".into()] })).unwrap(), 30);
}

/// Compactions do not spare what a reader's snapshot shows: the safe point is looked at again after the read.
#[test]
fn a_safe_point_that_moves_while_somebody_reads_counts() {
    let b = bench(100);
    let points = b.safe_points.clone();
    let moving = move |_: &RegionSnapshot, _| {
        points.raise(50, 50);
        Ok(())
    };
    let at = b.store.lease_snapshot(&b.call().ctx).unwrap().unwrap();
    let read = b.txn.read_at(at, 1, moving).now_or_never().unwrap();
    assert!(matches!(b.txn.unless_too_old(49, read), Err(TxnError::TooOld { .. })));
    assert!(b.txn.unless_too_old(50, Ok(())).is_ok());
}
