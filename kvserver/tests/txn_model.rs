//! Random transactions over the commands, delivered in any order and more than once, with clients that crash between
//! any two steps: whatever is decided stays decided, and reads see what a list of versions says.

#[path = "txn_model/client.rs"]
mod client;
#[path = "txn_model/helper.rs"]
mod helper;
#[path = "txn_model/net.rs"]
mod net;
#[path = "txn_model/rng.rs"]
mod rng;
#[path = "txn_model/verdict.rs"]
mod verdict;
#[path = "txn/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use client::{Phase, Txn};
use helper::Helper;
use kvserver::engine::mem::MemEngine;
use kvserver::engine::rocks::RocksEngine;
use kvserver::engine::{Engine, EngineConfig, ReadTier};
use kvserver::txn::error::TxnError;
use kvserver::txn::mvcc::{self, ReadRules, Reader, Scanned};
use kvserver::txn::pairs::LongReply;
use kvserver::txn::range::Scan;
use net::{Answer, Letter, Request, Sender};
use rng::Rng;
use world::World;

const KEYS: u64 = 4;

/// A read that was answered.
pub struct Seen {
    key: Bytes,
    ts: u64,
    value: Option<Bytes>,
}

/// Clients, helpers, readers, and the letters between them and the store.
pub struct Sim {
    world: World,
    rng: Rng,
    clock: u64,
    letters: Vec<Letter>,
    txns: Vec<Txn>,
    helpers: Vec<Helper>,
    seen: Vec<Seen>,
    /// What helpers were told of transactions, for good: the commit timestamp, 0 for a rollback.
    decided: BTreeMap<u64, u64>,
    /// Everything has come to a stop, and what is left is cleaned up.
    settling: bool,
}

impl Sim {
    fn new(seed: u64, engine: Arc<dyn Engine>) -> Sim {
        Sim {
            world: World::new(engine),
            rng: Rng(seed),
            clock: 0,
            letters: Vec::new(),
            txns: Vec::new(),
            helpers: Vec::new(),
            seen: Vec::new(),
            decided: BTreeMap::new(),
            settling: false,
        }
    }

    /// A timestamp that nobody was given before.
    fn tso(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn now(&self) -> u64 {
        self.clock
    }

    fn send(&mut self, request: Request, sender: Sender) {
        self.letters.push(Letter { request, sender });
    }

    /// Delivers one letter, and leaves a copy behind now and then.
    fn deliver_one(&mut self) {
        if self.letters.is_empty() {
            return;
        }
        let at = self.rng.below(self.letters.len() as u64) as usize;
        let letter = self.letters.swap_remove(at);
        let answer = net::deliver(&self.world, &letter.request);
        if let (Request::Rollback(rollback), Answer::Rollback(true)) = (&letter.request, &answer) {
            self.decide(rollback.start_ts, 0);
        }
        if self.rng.chance(25) && may_repeat(&letter.request, &answer) {
            self.send(letter.request.clone(), Sender::Nobody);
        }
        match letter.sender {
            Sender::Txn(txn) => self.txn_hears(txn, letter.request, answer),
            Sender::Helper(helper) => self.helper_hears(helper, letter.request, answer),
            Sender::Nobody => {}
        }
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0 => self.begin(KEYS),
            1 | 2 => self.read_one(),
            3 => self.scan_all(),
            4 if !self.txns.is_empty() => {
                let txn = self.rng.below(self.txns.len() as u64) as usize;
                match self.rng.below(4) {
                    0 => self.txns[txn].crashed = true,
                    1 if self.txns[txn].phase != Phase::Ended && !self.txns[txn].crashed => self.beat(txn),
                    _ => {}
                }
            }
            _ => self.deliver_one(),
        }
    }

    /// A timestamp to read at: fresh, or an older one.
    fn read_ts(&mut self) -> u64 {
        let fresh = self.tso();
        if self.rng.chance(50) { fresh } else { 1 + self.rng.below(fresh) }
    }

    fn read_one(&mut self) {
        let ts = self.read_ts();
        let key = Bytes::from(format!("k{}", self.rng.below(KEYS)));
        self.read_with(key, &ReadRules::at(ts));
    }

    fn read_with(&mut self, key: Bytes, rules: &ReadRules) {
        self.world.max_ts.raise(rules.ts);
        let at = self.world.at();
        let mut reader = Reader::new(&at.snapshot, ReadTier::All);
        match mvcc::point_get(&mut reader, key.clone(), rules) {
            Ok(found) => {
                self.seen.push(Seen { key, ts: rules.ts, value: found.map(|found| found.value) });
            }
            Err(TxnError::Locked(locks)) => self.help(&locks[0], rules.ts),
            Err(error) => panic!("{error}"),
        }
    }

    fn scan_all(&mut self) {
        let ts = self.read_ts();
        self.world.max_ts.raise(ts);
        let mut found = Vec::new();
        for entry in self.scanned(ts, self.rng.0 & 1 == 0) {
            match entry {
                Ok(pair) => found.push(pair),
                Err(info) => return self.help(&info, ts),
            }
        }
        for key in (0..KEYS).map(|n| Bytes::from(format!("k{n}"))) {
            let value = found.iter().find(|(k, _)| *k == key).map(|(_, value)| value.clone());
            self.seen.push(Seen { key, ts, value });
        }
    }

    fn scanned(&self, ts: u64, reverse: bool) -> Scanned {
        let (lower, upper) = (Bytes::new(), Bytes::new());
        let scan = Scan { lower, upper, reverse, key_only: false, limit: usize::MAX };
        let mut out = Scanned::default();
        let rules = ReadRules::at(ts);
        mvcc::scan(&self.world.at(), ReadTier::All, &scan, &rules, LongReply::Grow, &mut out).unwrap();
        out
    }

    /// All clients are gone: helpers finish what they left.
    fn settle(&mut self) {
        self.settling = true;
        self.txns.iter_mut().for_each(|txn| txn.crashed = true);
        for _ in 0..100_000 {
            if !self.letters.is_empty() {
                self.deliver_one();
                continue;
            }
            let everything = (&Bytes::new(), &Bytes::new());
            let locks = mvcc::scan_lock(&self.world.at(), ReadTier::All, everything, u64::MAX, 1).unwrap();
            let Some(info) = locks.first() else { return };
            self.help(info, 0);
        }
        panic!("locks stay whatever is done about them");
    }
}

/// Whether a request may be on its way twice. A client that was refused a prewrite of async commit rolls back, and must
/// know then that no copy gets through: else all keys might be locked after all, and another finish what it undoes.
fn may_repeat(request: &Request, answer: &Answer) -> bool {
    match (request, answer) {
        (Request::Prewrite(prewrite), Answer::Prewrite(Err(_))) => prewrite.secondaries.is_none(),
        _ => true,
    }
}

fn run(seed: u64, steps: usize, engine: Arc<dyn Engine>) -> Sim {
    let mut sim = Sim::new(seed, engine);
    for _ in 0..steps {
        sim.step();
    }
    sim.settle();
    sim
}

#[test]
fn decided_outcomes_stay_and_reads_repeat() {
    let (mut committed, mut aborted, mut reads, mut notes) = (0, 0, 0, 0);
    for seed in 0..400 {
        let result = std::panic::catch_unwind(|| {
            let sim = run(seed, 400, Arc::new(MemEngine::new()));
            let notes = verdict::check(&sim);
            let told =
                |f: fn(&client::Told) -> bool| sim.txns.iter().filter_map(|t| t.told).filter(f).count();
            (
                told(|told| matches!(told, client::Told::Committed(_))),
                told(|told| matches!(told, client::Told::Aborted)),
                sim.seen.len(),
                notes,
            )
        });
        let Ok((c, a, r, n)) = result else { panic!("seed {seed} fails, see above") };
        (committed, aborted, reads, notes) = (committed + c, aborted + a, reads + r, notes + n);
    }
    // The test would prove nothing if hardly anything happened.
    let enough = committed > 1_000 && aborted > 500 && reads > 10_000 && notes > 10;
    assert!(enough, "{committed} committed, {aborted} aborted, {reads} reads, {notes} rollbacks as notes");
}

/// The same over RocksDB, which must give the same answers from its memtables and, after a restart, from its files.
#[test]
fn rocksdb_agrees_before_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..8 {
        let open = || -> Arc<dyn Engine> {
            let path = dir.path().join(seed.to_string());
            Arc::new(RocksEngine::open(&path, &EngineConfig::default()).unwrap())
        };
        let mut sim = run(seed, 300, open());
        verdict::check(&sim);
        sim.world.engine.close().unwrap();
        sim.world = World::new(Arc::new(MemEngine::new()));
        sim.world = World::new(open());
        verdict::check(&sim);
    }
}
