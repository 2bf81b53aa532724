//! Runs the scripts in `tests/scripts/txn`: transactional commands and reads, one after the other, against one region,
//! over the engine in memory and over RocksDB. File names are the spec.
//!
//! A command with the tag `[twice]` is delivered twice, as by a client that repeats itself; the second answer is
//! printed only when it differs from the first.

#[path = "txn/script.rs"]
mod script;
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
use kvserver::txn::commands::{self, CheckSecondaryLocks, Cleanup, Commit, Fates};
use kvserver::txn::commands::{PessimisticRollback, ResolveLock, Rollback, TxnHeartBeat};
use kvserver::txn::error::TxnResult;
use kvserver::txn::mvcc::{self, ReadRules, Reader, Scanned};
use kvserver::txn::pairs::LongReply;
use kvserver::txn::range::Scan;
use script::{Command, check, claim, key, keys, parted, prewrite, rules};
use ts::Ts;
use world::World;

/// Runs a command and says what came of it.
fn tell<C: commands::Command>(world: &World, command: &C, show: impl Fn(&C::Answer) -> String) -> String {
    match world.run(command) {
        Ok((answer, released)) => format!("{}\n{}", show(&answer), show::released(&released)),
        Err(error) => format!("{}\n", show::error(&error)),
    }
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
