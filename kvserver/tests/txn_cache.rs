//! Reads from memory alone: whichever block is the first that is missing, a read or a command says so, and never gives
//! an answer that leaves out what it could not see.

#[path = "txn/world.rs"]
mod world;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use kvserver::engine::mem::MemEngine;
use kvserver::engine::{Cf, EngineError, Iter, IterOptions, ReadTier, Snapshot};
use kvserver::storage::RegionSnapshot;
use kvserver::txn::commands::{
    AcquirePessimisticLock, CheckSecondaryLocks, CheckTxnStatus, Claim, Cleanup, Command, Commit, Cx, Fates,
    Mutation, MutationOp, PessimisticAction, PessimisticRollback, Prewrite, ResolveLock, Rollback,
    TxnHeartBeat,
};
use kvserver::txn::error::{TxnError, TxnResult};
use kvserver::txn::mvcc::{self, ReadRules, Reader, Scanned, inspect};
use kvserver::txn::pairs::LongReply;
use kvserver::txn::range::Scan;
use world::World;

/// A snapshot of which only the first steps are in memory.
struct Sparse {
    inner: Arc<dyn Snapshot>,
    steps: Arc<AtomicUsize>,
}

struct SparseIter {
    inner: Box<dyn Iter>,
    steps: Arc<AtomicUsize>,
    missed: bool,
}

fn step(steps: &AtomicUsize) -> bool {
    steps.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

impl Snapshot for Sparse {
    fn get(&self, cf: Cf, key: &[u8], tier: ReadTier) -> Result<Option<Bytes>, EngineError> {
        assert_eq!(tier, ReadTier::Cache, "nobody may go to the disk behind the caller's back");
        if step(&self.steps) { self.inner.get(cf, key, tier) } else { Err(EngineError::NotCached) }
    }

    fn iter(&self, cf: Cf, options: IterOptions) -> Result<Box<dyn Iter>, EngineError> {
        assert_eq!(options.tier, ReadTier::Cache, "nobody may go to the disk behind the caller's back");
        let inner = self.inner.iter(cf, options)?;
        Ok(Box::new(SparseIter { inner, steps: self.steps.clone(), missed: false }))
    }
}

impl SparseIter {
    fn step(&mut self, go: impl FnOnce(&mut dyn Iter)) {
        self.missed = !step(&self.steps);
        if !self.missed {
            go(&mut *self.inner);
        }
    }
}

impl Iter for SparseIter {
    fn seek(&mut self, key: &[u8]) {
        self.step(|iter| iter.seek(key));
    }

    fn seek_for_prev(&mut self, key: &[u8]) {
        self.step(|iter| iter.seek_for_prev(key));
    }

    fn seek_to_first(&mut self) {
        self.step(|iter| iter.seek_to_first());
    }

    fn seek_to_last(&mut self) {
        self.step(|iter| iter.seek_to_last());
    }

    fn next(&mut self) {
        self.step(|iter| iter.next());
    }

    fn prev(&mut self) {
        self.step(|iter| iter.prev());
    }

    fn valid(&self) -> bool {
        !self.missed && self.inner.valid()
    }

    fn key(&self) -> &[u8] {
        self.inner.key()
    }

    fn value(&self) -> &[u8] {
        self.inner.value()
    }

    fn status(&self) -> Result<(), EngineError> {
        if self.missed { Err(EngineError::NotCached) } else { self.inner.status() }
    }
}

/// The answer when only the first `steps` are in memory, and how many of them were left.
fn ask<T>(world: &World, steps: usize, ask: impl Fn(&RegionSnapshot) -> T) -> (T, usize) {
    let steps = Arc::new(AtomicUsize::new(steps));
    let sparse = Sparse { inner: world.engine.snapshot(), steps: steps.clone() };
    let at = RegionSnapshot { snapshot: Arc::new(sparse), ..world.at() };
    (ask(&at), steps.load(Ordering::Relaxed))
}

/// Asks with more and more in memory. Every answer is the whole one, or says that something was missing.
fn complete_or_nothing<T: Debug>(world: &World, what: &str, f: impl Fn(&RegionSnapshot) -> TxnResult<T>) {
    let (whole, left) = ask(world, 1_000_000, &f);
    let used = 1_000_000 - left;
    assert!(used > 0, "{what} looks at nothing");
    let whole = format!("{whole:?}");
    for steps in 0..=used {
        let (partial, _) = ask(world, steps, &f);
        assert!(steps > 0 || partial.is_err(), "{what} needs no data");
        assert!(
            matches!(partial, Err(TxnError::Engine(EngineError::NotCached)))
                || format!("{partial:?}") == whole,
            "{what} with {steps} of {used} steps in memory answers {partial:?} instead of {whole}"
        );
    }
}

fn key(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

fn prewrite(start_ts: u64, keys: &[&str], op: MutationOp, long: bool) -> Prewrite {
    let mutation = |name: &&str| Mutation {
        op,
        key: key(name),
        value: if long { vec![7; 1_100].into() } else { key("value") },
        pessimistic: PessimisticAction::Skip,
        expected_for_update_ts: None,
        assertion: None,
    };
    Prewrite {
        mutations: keys.iter().map(mutation).collect(),
        primary: key(keys[0]),
        start_ts,
        ttl: 1,
        txn_size: 1,
        for_update_ts: 0,
        min_commit_ts: 0,
        max_commit_ts: 0,
        skip_constraint_check: false,
        secondaries: None,
        try_one_pc: false,
    }
}

fn claim(start_ts: u64, for_update_ts: u64, keys: &[&str]) -> AcquirePessimisticLock {
    AcquirePessimisticLock {
        claims: keys.iter().map(|name| Claim { key: key(name), must_not_exist: false }).collect(),
        primary: key(keys[0]),
        start_ts,
        ttl: 1,
        for_update_ts,
        min_commit_ts: 0,
        is_first_lock: true,
        return_values: true,
        check_existence: true,
        lock_only_if_exists: false,
        lock_with_conflict: true,
    }
}

/// Keys with few versions, with many, with rollbacks, locks and claims on top; one that was only ever rolled back.
fn world() -> World {
    let world = World::new(Arc::new(MemEngine::new()));
    let put = |start_ts: u64, keys: &[&str], op, long| {
        world.run(&prewrite(start_ts, keys, op, long)).unwrap();
        let commit =
            Commit { start_ts, commit_ts: start_ts + 1, keys: keys.iter().map(|s| key(s)).collect() };
        world.run(&commit).unwrap();
    };
    for n in 1..=12 {
        put(10 * n, &["b", "d"], if n % 5 == 0 { MutationOp::Delete } else { MutationOp::Put }, n % 3 == 0);
        world.run(&Rollback { start_ts: 10 * n + 5, keys: vec![key("b"), key("e")] }).unwrap();
    }
    put(200, &["a", "c", "f"], MutationOp::Put, true);
    put(210, &["a", "b"], MutationOp::Lock, false);
    world.run(&prewrite(300, &["c", "g"], MutationOp::Put, true)).unwrap();
    world.run(&claim(310, 310, &["d", "h"])).unwrap();
    world
}

#[test]
fn reads_are_complete_or_say_that_they_are_not() {
    let world = world();
    let tier = ReadTier::Cache;
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    for ts in [15, 45, 105, 205, 305, u64::MAX] {
        let rules = ReadRules::at(ts).knowing(vec![], vec![300]);
        for name in names {
            complete_or_nothing(&world, &format!("get {name} at {ts}"), |at| {
                mvcc::point_get(&mut Reader::new(&at.snapshot, tier), key(name), &rules)
            });
        }
        let keys = names.map(key);
        complete_or_nothing(&world, &format!("batch get at {ts}"), |at| {
            mvcc::batch_get(&mut Reader::new(&at.snapshot, tier), &keys, &rules)
        });
        for (reverse, key_only, limit) in
            [(false, false, 99), (true, false, 99), (false, true, 3), (true, true, 3)]
        {
            let scan = Scan { lower: Bytes::new(), upper: Bytes::new(), reverse, key_only, limit };
            for rules in [ReadRules::at(ts), rules.clone()] {
                complete_or_nothing(&world, &format!("scan at {ts}, reverse {reverse}"), |at| {
                    let mut out = Scanned::default();
                    mvcc::scan(at, tier, &scan, &rules, LongReply::Grow, &mut out)?;
                    Ok(out.into_iter().collect::<Vec<_>>())
                });
            }
        }
    }
    let everything = (&Bytes::new(), &Bytes::new());
    complete_or_nothing(&world, "locks", |at| mvcc::scan_lock(at, tier, everything, u64::MAX, 99));
    complete_or_nothing(&world, "keys of locks", |at| {
        mvcc::lock_keys(at, tier, &Bytes::new(), 1, |_, start_ts| start_ts == 300)
    });
    complete_or_nothing(&world, "records of a key", |at| inspect::by_key(at, tier, &key("b")));
    for start_ts in [10, 200, 300, 999] {
        complete_or_nothing(&world, "records of a transaction", |at| {
            inspect::by_start_ts(at, tier, start_ts)
        });
    }
}

fn command<C: Command<Answer: Debug>>(world: &World, what: &str, command: C) {
    complete_or_nothing(world, what, |at| {
        let reader = Reader::new(&at.snapshot, ReadTier::Cache);
        let done = command.process(&mut Cx { reader, max_ts: &world.max_ts })?;
        Ok((done.answer, done.write.seal(1), done.released))
    });
}

#[test]
fn commands_decide_on_all_or_say_that_they_cannot() {
    let world = world();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    for start_ts in [15, 21, 110, 200, 210, 300, 310, 400] {
        for name in names {
            let (what, keys) = (format!("{start_ts} on {name}"), vec![key(name)]);
            let check = |force| CheckTxnStatus {
                primary: key(name),
                start_ts,
                caller_start_ts: 350,
                current_ts: u64::MAX,
                rollback_if_not_exist: true,
                force_sync_commit: force,
                resolving_pessimistic_lock: false,
                verify_is_primary: false,
            };
            for op in [MutationOp::Put, MutationOp::Insert, MutationOp::Lock] {
                command(&world, &format!("prewrite {what}"), prewrite(start_ts, &[name], op, false));
                let one_pc = Prewrite { try_one_pc: true, ..prewrite(start_ts, &[name], op, true) };
                command(&world, &format!("one phase {what}"), one_pc);
            }
            command(&world, &format!("claim {what}"), claim(start_ts, start_ts, &[name]));
            command(&world, &format!("claim {what}, later"), claim(start_ts, 500, &[name]));
            let commit = Commit { start_ts, commit_ts: 600, keys: keys.clone() };
            command(&world, &format!("commit {what}"), commit);
            command(&world, &format!("rollback {what}"), Rollback { start_ts, keys: keys.clone() });
            let current_ts = u64::MAX;
            command(&world, &format!("cleanup {what}"), Cleanup { key: key(name), start_ts, current_ts });
            command(&world, &format!("check {what}"), check(false));
            let secondaries = CheckSecondaryLocks { start_ts, keys: keys.clone() };
            command(&world, &format!("secondaries {what}"), secondaries);
            for commit_ts in [0, 600] {
                let fates = Fates::new([(start_ts, commit_ts)]).unwrap();
                command(&world, &format!("resolve {what}"), ResolveLock { fates, keys: keys.clone() });
            }
            let unclaim = PessimisticRollback { start_ts, for_update_ts: 999, keys };
            command(&world, &format!("unclaim {what}"), unclaim);
            let primary = key(name);
            let beat = TxnHeartBeat { primary, start_ts, advise_ttl: 9, min_commit_ts: 0 };
            command(&world, &format!("heart beat {what}"), beat);
        }
    }
}

/// How many looks at the engine something takes.
fn looks<T: Debug>(world: &World, f: impl Fn(&RegionSnapshot) -> TxnResult<T>) -> usize {
    let (answer, left) = ask(world, 1_000, f);
    answer.unwrap();
    1_000 - left
}

#[test]
fn nothing_is_looked_at_twice() {
    let world = World::new(Arc::new(MemEngine::new()));
    let names: Vec<String> = (0..50).map(|n| format!("k{n:02}")).collect();
    let keys: Vec<&str> = names.iter().map(|name| &name[..]).collect();
    world.run(&Prewrite { try_one_pc: true, ..prewrite(10, &keys, MutationOp::Put, false) }).unwrap();
    world.run(&Prewrite { try_one_pc: true, ..prewrite(20, &["long"], MutationOp::Put, true) }).unwrap();
    let get = |name: &str| {
        looks(&world, |at| {
            let mut reader = Reader::new(&at.snapshot, ReadTier::Cache);
            mvcc::point_get(&mut reader, key(name), &ReadRules::at(30))
        })
    };
    assert_eq!((get("k07"), get("missing")), (2, 2), "the lock, the version");
    assert_eq!(get("long"), 3, "and a long value");
    for reverse in [false, true] {
        let scan = Scan { lower: Bytes::new(), upper: key("k99"), reverse, key_only: false, limit: 99 };
        let scanned = looks(&world, |at| {
            let mut out = Scanned::default();
            mvcc::scan(at, ReadTier::Cache, &scan, &ReadRules::at(30), LongReply::Grow, &mut out)
        });
        assert_eq!(scanned, 2 + 50, "two cursors, a step for each key");
    }
    let command = |prewrite: &Prewrite| {
        looks(&world, |at| {
            let reader = Reader::new(&at.snapshot, ReadTier::Cache);
            Ok(prewrite.process(&mut Cx { reader, max_ts: &world.max_ts })?.write.len())
        })
    };
    assert_eq!(command(&prewrite(40, &["k01", "new"], MutationOp::Put, false)), 2 * 2);
    let one_pc = Prewrite { try_one_pc: true, ..prewrite(40, &["k01", "new"], MutationOp::Put, false) };
    assert_eq!(command(&one_pc), 2 * 2);
    let claimed = looks(&world, |at| {
        let reader = Reader::new(&at.snapshot, ReadTier::Cache);
        let claim = claim(40, 40, &["k01", "missing"]);
        Ok(claim.process(&mut Cx { reader, max_ts: &world.max_ts })?.answer)
    });
    assert_eq!(claimed, 2 * 2, "what a claimed key holds is known from the check");
}
