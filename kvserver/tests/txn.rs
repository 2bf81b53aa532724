//! Runs the scripts in `tests/scripts/txn`: transactional commands and reads, one after the other, against one region,
//! over the engine in memory and over RocksDB. File names are the spec.
//!
//! A command with the tag `[twice]` is delivered twice, as by a client that repeats itself; the second answer is
//! printed only when it differs from the first.

#[path = "txn/show.rs"]
mod show;
#[path = "txn/ts.rs"]
mod ts;
#[path = "txn/world.rs"]
mod world;

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use goldenscript::Context;
use kvserver::engine::mem::MemEngine;
use kvserver::engine::rocks::RocksEngine;
use kvserver::engine::{Engine, EngineConfig, ReadTier};
use kvserver::raftstore::meta::region_view::RegionMeta;
use kvserver::txn::commands::{self, AcquirePessimisticLock, Claim, Fates, Mutation, MutationOp};
use kvserver::txn::commands::{CheckSecondaryLocks, CheckTxnStatus, Cleanup, Commit, PessimisticAction};
use kvserver::txn::commands::{PessimisticRollback, Prewrite, ResolveLock, Rollback, TxnHeartBeat};
use kvserver::txn::error::TxnResult;
use kvserver::txn::mvcc::{self, Isolation, ReadRules, Reader, Scanned};
use kvserver::txn::pairs::LongReply;
use kvserver::txn::range::Scan;
use ts::Ts;
use world::World;

/// Keys and lists of timestamps are parted by slashes. A value `long` is 300 bytes.
#[derive(goldenscript::Command)]
pub enum Command {
    /// The region that the commands from here on are about; all keys at first.
    Region {
        start: String,
        end: String,
    },
    /// Somebody reads at a timestamp, somewhere on this store.
    MaxTs {
        ts: Ts,
    },
    /// Puts are `KEY=VALUE` or `insert.KEY=VALUE`, the rest is `delete.KEY`, `lock.KEY` or `absent.KEY`.
    Prewrite {
        start: Ts,
        #[arg(pos, optional, many)]
        others: Vec<String>,
        #[arg(key)]
        primary: String,
        #[arg(key, optional)]
        ttl: u64,
        #[arg(key, optional)]
        size: u64,
        #[arg(key, optional)]
        for_update: Ts,
        /// Keys that need not have been claimed.
        #[arg(key, optional)]
        skip: String,
        /// Keys that need not have been claimed, if nobody has written to them.
        #[arg(key, optional)]
        constraint: String,
        #[arg(key)]
        expected: Option<Ts>,
        #[arg(key, optional)]
        min_commit: Ts,
        #[arg(key, optional)]
        max_commit: Ts,
        #[arg(key, optional)]
        skip_check: bool,
        #[arg(key)]
        secondaries: Option<String>,
        #[arg(key, optional)]
        one_pc: bool,
        #[arg(key)]
        assert_exists: Option<bool>,
        #[arg(key, optional, many)]
        puts: Vec<(String, String)>,
    },
    Commit {
        start: Ts,
        commit: Ts,
        keys: Vec<String>,
    },
    Rollback {
        start: Ts,
        keys: Vec<String>,
    },
    Cleanup {
        start: Ts,
        key: String,
        #[arg(key, optional)]
        current: Ts,
    },
    Check {
        start: Ts,
        primary: String,
        #[arg(key, optional)]
        caller: Ts,
        #[arg(key, optional)]
        current: Ts,
        #[arg(key, optional)]
        rollback_missing: bool,
        #[arg(key, optional)]
        force_sync: bool,
        #[arg(key, optional)]
        claim: bool,
        #[arg(key, optional)]
        verify: bool,
    },
    Secondaries {
        start: Ts,
        keys: Vec<String>,
    },
    /// `START=COMMIT`, 0 for a rollback. Without keys the whole region, in pages of `page` keys.
    Resolve {
        #[arg(key, optional)]
        keys: String,
        #[arg(key)]
        page: Option<usize>,
        #[arg(key, many)]
        fates: Vec<(Ts, Ts)>,
    },
    Heartbeat {
        start: Ts,
        primary: String,
        #[arg(key, optional)]
        ttl: u64,
        #[arg(key, optional)]
        min_commit: Ts,
    },
    /// `absent.KEY` must not exist.
    Claim {
        start: Ts,
        keys: Vec<String>,
        #[arg(key)]
        primary: String,
        /// The start timestamp, if not given.
        #[arg(key)]
        for_update: Option<Ts>,
        #[arg(key, optional)]
        ttl: u64,
        #[arg(key, optional)]
        min_commit: Ts,
        #[arg(key, optional)]
        values: bool,
        #[arg(key, optional)]
        existence: bool,
        #[arg(key, optional)]
        only_existing: bool,
        #[arg(key, optional)]
        force: bool,
    },
    /// Gives claims back; without keys, all of the region.
    Unclaim {
        start: Ts,
        for_update: Ts,
        #[arg(pos, optional, many)]
        keys: Vec<String>,
    },
    /// Reads keys one by one and all at once, and prints when they differ.
    Get {
        ts: Ts,
        keys: Vec<String>,
        #[arg(key, optional)]
        rc: bool,
        #[arg(key, optional)]
        resolved: String,
        #[arg(key, optional)]
        committed: String,
    },
    Scan {
        ts: Ts,
        #[arg(key, optional)]
        from: String,
        #[arg(key, optional)]
        to: String,
        #[arg(key)]
        limit: Option<usize>,
        #[arg(key, optional)]
        reverse: bool,
        #[arg(key, optional)]
        key_only: bool,
        #[arg(key, optional)]
        rc: bool,
        #[arg(key, optional)]
        resolved: String,
        #[arg(key, optional)]
        committed: String,
    },
    Locks {
        max_ts: Ts,
        #[arg(key, optional)]
        from: String,
        #[arg(key, optional)]
        to: String,
        #[arg(key)]
        limit: Option<usize>,
    },
    DeleteRange {
        #[arg(key, optional)]
        from: String,
        #[arg(key, optional)]
        to: String,
    },
    /// All records of keys.
    Mvcc {
        keys: Vec<String>,
    },
    /// The first key of the region with a record of a transaction.
    Find {
        start: Ts,
    },
}

fn key(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

fn keys(list: &[String]) -> Vec<Bytes> {
    list.iter().map(|s| key(s)).collect()
}

fn parted(list: &str) -> Vec<Bytes> {
    list.split('/').filter(|s| !s.is_empty()).map(key).collect()
}

fn value(s: &str) -> Bytes {
    if s == "long" { Bytes::from(vec![b'v'; 300]) } else { key(s) }
}

fn rules(ts: Ts, rc: bool, resolved: &str, committed: &str) -> Result<ReadRules, Box<dyn Error>> {
    let list = |s: &str| -> Result<Vec<u64>, Box<dyn Error>> {
        s.split('/').filter(|s| !s.is_empty()).map(|s| Ok(s.parse::<Ts>()?.0)).collect()
    };
    let mut rules = ReadRules::at(ts.0).knowing(list(resolved)?, list(committed)?);
    rules.isolation = if rc { Isolation::ReadCommitted } else { Isolation::Snapshot };
    Ok(rules)
}

/// Runs a command and says what came of it.
fn tell<C: commands::Command>(world: &World, command: &C, show: impl Fn(&C::Answer) -> String) -> String {
    match world.run(command) {
        Ok((answer, released)) => format!("{}\n{}", show(&answer), show::released(&released)),
        Err(error) => format!("{}\n", show::error(&error)),
    }
}

fn mutations(command: &Command) -> Result<Vec<Mutation>, Box<dyn Error>> {
    let Command::Prewrite { others, puts, for_update, skip, constraint, expected, assert_exists, .. } =
        command
    else {
        return Err("no prewrite".into());
    };
    let (skip, constraint) = (parted(skip), parted(constraint));
    let mutation = |op, name: &str, value: Bytes| {
        let key = key(name);
        let pessimistic = match () {
            _ if constraint.contains(&key) => PessimisticAction::Constraint,
            _ if skip.contains(&key) || for_update.0 == 0 => PessimisticAction::Skip,
            _ => PessimisticAction::Check,
        };
        let expected_for_update_ts = expected.map(|ts| ts.0);
        Mutation { op, key, value, pessimistic, expected_for_update_ts, assertion: *assert_exists }
    };
    let mut all = Vec::new();
    for (name, put) in puts {
        let (op, name) = match name.strip_prefix("insert.") {
            Some(name) => (MutationOp::Insert, name),
            None => (MutationOp::Put, &name[..]),
        };
        all.push(mutation(op, name, value(put)));
    }
    for other in others {
        let (op, name) = other.split_once('.').ok_or("delete.KEY, lock.KEY or absent.KEY")?;
        let op = match op {
            "delete" => MutationOp::Delete,
            "lock" => MutationOp::Lock,
            "absent" => MutationOp::CheckNotExists,
            other => return Err(format!("no mutation is called {other}").into()),
        };
        all.push(mutation(op, name, Bytes::new()));
    }
    Ok(all)
}

fn prewrite(command: &Command) -> Result<Prewrite, Box<dyn Error>> {
    let Command::Prewrite {
        start,
        primary,
        ttl,
        size,
        for_update,
        min_commit,
        max_commit,
        skip_check,
        secondaries,
        one_pc,
        ..
    } = command
    else {
        return Err("no prewrite".into());
    };
    Ok(Prewrite {
        mutations: mutations(command)?,
        primary: key(primary),
        start_ts: start.0,
        ttl: *ttl,
        txn_size: *size,
        for_update_ts: for_update.0,
        min_commit_ts: min_commit.0,
        max_commit_ts: max_commit.0,
        skip_constraint_check: *skip_check,
        secondaries: secondaries.as_ref().map(|list| parted(list)),
        try_one_pc: *one_pc,
    })
}

fn claim(command: &Command) -> Result<AcquirePessimisticLock, Box<dyn Error>> {
    let Command::Claim {
        start,
        keys,
        primary,
        for_update,
        ttl,
        min_commit,
        values,
        existence,
        only_existing,
        force,
    } = command
    else {
        return Err("no claim".into());
    };
    let claim = |s: &String| match s.strip_prefix("absent.") {
        Some(s) => Claim { key: key(s), must_not_exist: true },
        None => Claim { key: key(s), must_not_exist: false },
    };
    Ok(AcquirePessimisticLock {
        claims: keys.iter().map(claim).collect(),
        primary: key(primary),
        start_ts: start.0,
        ttl: *ttl,
        for_update_ts: for_update.unwrap_or(*start).0,
        min_commit_ts: min_commit.0,
        is_first_lock: false,
        return_values: *values,
        check_existence: *existence,
        lock_only_if_exists: *only_existing,
        lock_with_conflict: *force,
    })
}

fn check(command: &Command) -> Result<CheckTxnStatus, Box<dyn Error>> {
    let Command::Check { start, primary, caller, current, rollback_missing, force_sync, claim, verify } =
        command
    else {
        return Err("no check".into());
    };
    Ok(CheckTxnStatus {
        primary: key(primary),
        start_ts: start.0,
        caller_start_ts: caller.0,
        current_ts: current.0,
        rollback_if_not_exist: *rollback_missing,
        force_sync_commit: *force_sync,
        resolving_pessimistic_lock: *claim,
        verify_is_primary: *verify,
    })
}

fn shown<T>(result: TxnResult<T>, show: impl FnOnce(T) -> String) -> String {
    match result {
        Ok(answer) => show(answer),
        Err(error) => format!("{}\n", show::error(&error)),
    }
}

fn get(world: &World, wanted: &[String], rules: &ReadRules) -> String {
    let at = world.at();
    let mut reader = Reader::new(&at.snapshot, ReadTier::All);
    let mut out = String::new();
    for name in wanted {
        let line = match mvcc::point_get(&mut reader, key(name), rules) {
            Ok(None) => "-".into(),
            Ok(Some(found)) => format!("{} @{}", show::text(&found.value), Ts(found.commit_ts)),
            Err(error) => show::error(&error),
        };
        writeln!(out, "{name} = {line}").unwrap();
    }
    let mut batch = String::new();
    let mut entries = match mvcc::batch_get(&mut reader, &keys(wanted), rules) {
        Ok(entries) => entries.into_iter().peekable(),
        Err(error) => return format!("{out}all at once: {}\n", show::error(&error)),
    };
    for name in wanted {
        let line = match entries.next_if(|entry| entry.key == *name) {
            None => "-".into(),
            Some(entry) => match entry.found {
                Ok(found) => format!("{} @{}", show::text(&found.value), Ts(found.commit_ts)),
                Err(info) => format!("error: {}", show::info(&info)),
            },
        };
        writeln!(batch, "{name} = {line}").unwrap();
    }
    if batch != out {
        write!(out, "all at once:\n{batch}").unwrap();
    }
    out
}

fn scan(world: &World, scan: &Scan, rules: &ReadRules) -> String {
    let mut scanned = Scanned::default();
    let result = mvcc::scan(&world.at(), ReadTier::All, scan, rules, LongReply::Grow, &mut scanned);
    shown(result, |_| {
        let count = scanned.len();
        let mut out = String::new();
        let mut entries = 0;
        for entry in scanned {
            entries += 1;
            match entry {
                Ok((key, value)) => writeln!(out, "{} = {}", show::text(&key), show::text(&value)).unwrap(),
                Err(info) => writeln!(out, "error: {}", show::info(&info)).unwrap(),
            }
        }
        assert_eq!(count, entries);
        if entries == 0 { "nothing\n".into() } else { out }
    })
}

/// Pages of keys of the region, each for one command.
fn pages(
    world: &World,
    page: usize,
    wants: impl Fn(mvcc::LockKind, u64) -> bool,
    mut each: impl FnMut(Vec<Bytes>),
) {
    let mut from = Some(Bytes::new());
    while let Some(start) = from {
        let found = mvcc::lock_keys(&world.at(), ReadTier::All, &start, page, &wants).unwrap();
        assert!(found.keys.len() == page || found.next.is_none());
        each(found.keys);
        from = found.next;
    }
}

impl World {
    fn once(&mut self, command: &Command) -> Result<String, Box<dyn Error>> {
        Ok(match command {
            Command::Region { start, end } => {
                let region = Default::default();
                self.region = Arc::new(RegionMeta { region, start: key(start), end: key(end) });
                String::new()
            }
            Command::MaxTs { ts } => {
                self.max_ts.raise(ts.0);
                String::new()
            }
            Command::Prewrite { .. } => tell(self, &prewrite(command)?, show::prewritten),
            Command::Commit { start, commit, keys: list } => {
                let commit = Commit { start_ts: start.0, commit_ts: commit.0, keys: keys(list) };
                tell(self, &commit, |ts| format!("committed at {}", Ts(*ts)))
            }
            Command::Rollback { start, keys: list } => {
                let rollback = Rollback { start_ts: start.0, keys: keys(list) };
                tell(self, &rollback, |()| "rolled back".into())
            }
            Command::Cleanup { start, key: name, current } => {
                let cleanup = Cleanup { key: key(name), start_ts: start.0, current_ts: current.0 };
                tell(self, &cleanup, |()| "rolled back".into())
            }
            Command::Check { .. } => tell(self, &check(command)?, show::checked),
            Command::Secondaries { start, keys: list } => {
                let check = CheckSecondaryLocks { start_ts: start.0, keys: keys(list) };
                tell(self, &check, show::secondaries)
            }
            Command::Resolve { .. } => self.resolve(command)?,
            Command::Heartbeat { start, primary, ttl, min_commit } => {
                let (advise_ttl, min_commit_ts) = (*ttl, min_commit.0);
                let beat =
                    TxnHeartBeat { primary: key(primary), start_ts: start.0, advise_ttl, min_commit_ts };
                tell(self, &beat, |ttl| format!("ttl {ttl}"))
            }
            Command::Claim { .. } => tell(self, &claim(command)?, show::acquired),
            Command::Unclaim { start, for_update, keys: list } => {
                let mut rollback =
                    PessimisticRollback { start_ts: start.0, for_update_ts: for_update.0, keys: keys(list) };
                if !list.is_empty() {
                    return Ok(tell(self, &rollback, |()| "given back".into()));
                }
                let (mut out, wants) = (String::new(), rollback.clone());
                pages(
                    self,
                    2,
                    |kind, start_ts| wants.wants(kind, start_ts),
                    |keys| {
                        rollback.keys = keys;
                        out.push_str(&tell(self, &rollback, |()| "given back".into()));
                    },
                );
                out
            }
            _ => self.look(command)?,
        })
    }

    fn resolve(&self, command: &Command) -> Result<String, Box<dyn Error>> {
        let Command::Resolve { keys, page, fates } = command else { return Err("no resolve".into()) };
        let fates = match Fates::new(fates.iter().map(|(start, commit)| (start.0, commit.0))) {
            Ok(fates) => fates,
            Err(error) => return Ok(format!("{}\n", show::error(&error))),
        };
        let run = |keys: Vec<Bytes>| {
            tell(self, &ResolveLock { fates: fates.clone(), keys }, |n| format!("resolved {n}"))
        };
        if !keys.is_empty() {
            return Ok(run(parted(keys)));
        }
        let mut out = String::new();
        let page = page.unwrap_or(commands::RESOLVE_KEYS_MAX);
        pages(self, page, |_, start_ts| fates.wants(start_ts), |keys| out.push_str(&run(keys)));
        Ok(out)
    }

    /// Commands that only look, and those that ask nobody.
    fn look(&mut self, command: &Command) -> Result<String, Box<dyn Error>> {
        Ok(match command {
            Command::Get { ts, keys, rc, resolved, committed } => {
                get(self, keys, &rules(*ts, *rc, resolved, committed)?)
            }
            Command::Scan { ts, from, to, limit, reverse, key_only, rc, resolved, committed } => {
                let scan_range = Scan {
                    lower: key(from),
                    upper: key(to),
                    reverse: *reverse,
                    key_only: *key_only,
                    limit: limit.unwrap_or(usize::MAX),
                };
                scan(self, &scan_range, &rules(*ts, *rc, resolved, committed)?)
            }
            Command::Locks { max_ts, from, to, limit } => {
                let limit = limit.unwrap_or(usize::MAX);
                let found =
                    mvcc::scan_lock(&self.at(), ReadTier::All, (&key(from), &key(to)), max_ts.0, limit);
                shown(found, |locks| match &locks[..] {
                    [] => "nothing\n".into(),
                    locks => locks.iter().map(|info| show::info(info) + "\n").collect(),
                })
            }
            Command::DeleteRange { from, to } => {
                self.apply(commands::delete_range(&self.region, &key(from), &key(to)));
                String::new()
            }
            Command::Mvcc { keys } => {
                let mut out = String::new();
                for name in keys {
                    let found = mvcc::inspect::by_key(&self.at(), ReadTier::All, &key(name));
                    out.push_str(&shown(found, |records| show::records(name, &records)));
                }
                out
            }
            Command::Find { start } => {
                let found = mvcc::inspect::by_start_ts(&self.at(), ReadTier::All, start.0);
                shown(found, |found| match found {
                    Some((key, records)) => show::records(&show::text(&key), &records),
                    None => "nothing\n".into(),
                })
            }
            _ => return Err("a command that nobody carries out".into()),
        })
    }
}

impl goldenscript::Runner for World {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Result<String, Box<dyn Error>> {
        let mut out = self.once(command)?;
        if context.tags.contains("twice") {
            let again = self.once(command)?;
            let answer = |s: &str| s.lines().next().map(str::to_string);
            if answer(&again) != answer(&out) || again.lines().count() > 1 {
                write!(out, "again: {again}")?;
            }
        }
        Ok(out)
    }
}

fn run_all(engine: impl Fn() -> Arc<dyn Engine>) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/txn");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the scripts are there");
    for file in files {
        let mut world = World::new(engine());
        goldenscript::run(&mut world, &file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

#[test]
fn scripts_over_memory() {
    run_all(|| Arc::new(MemEngine::new()));
}

#[test]
fn scripts_over_rocksdb() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    run_all(|| {
        next.set(next.get() + 1);
        let path = dir.path().join(next.get().to_string());
        Arc::new(RocksEngine::open(&path, &EngineConfig::default()).unwrap())
    });
}
