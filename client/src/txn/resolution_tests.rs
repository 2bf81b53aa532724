//! The resolution of locks through scripts in `tests/scripts/resolution`: locks and replies go in, requests and
//! verdicts come out.

use std::error::Error as StdError;
use std::fmt::Write as _;

use bytes::Bytes;
use kvproto::kvrpcpb::*;
use kvproto::ts::Timestamp;

use super::resolution::{Caller, Resolution, Step, Verdict};

/// The language of the scripts. The transaction began at 1000 ms and has the primary key p.
#[derive(goldenscript::Command)]
enum Command {
    /// Locks at these keys are met: meet read a b ttl=3000 now=2000 size=2 pessimistic=b
    Meet {
        caller: String,
        keys: Vec<String>,
        #[arg(key)]
        ttl: Option<u64>,
        #[arg(key)]
        now: Option<u64>,
        #[arg(key)]
        size: Option<u64>,
        #[arg(key)]
        pessimistic: Option<String>,
        /// The commit timestamp of an earlier verdict.
        #[arg(key)]
        known: Option<u64>,
    },
    /// The primary is still locked: locked ttl=3000 secondaries=a-b min=9 action=pushed
    Locked {
        #[arg(key)]
        ttl: u64,
        /// The secondaries of an asynchronous commit, or `alone`.
        #[arg(key)]
        secondaries: Option<String>,
        #[arg(key)]
        min: Option<u64>,
        #[arg(key)]
        action: Option<String>,
    },
    /// It was committed.
    Committed { ts: u64 },
    /// It was rolled back.
    RolledBack {
        #[arg(key)]
        action: Option<String>,
    },
    /// There is no record of it; or another error.
    Refused { error: String },
    /// Of these keys so many are locked: secondaries a b locked=2 min=9
    Secondaries {
        keys: Vec<String>,
        #[arg(key)]
        locked: usize,
        #[arg(key)]
        min: Option<u64>,
        #[arg(key)]
        commit_ts: Option<u64>,
        #[arg(key)]
        plain: Option<bool>,
    },
    /// All secondaries are asked.
    Checked,
}

const START: u64 = 1000;

struct Runner(Resolution);

fn ts(ms: u64) -> Timestamp {
    Timestamp::compose(ms, 0).expect("a small number")
}

fn bytes(keys: &[String]) -> Vec<Bytes> {
    keys.iter().cloned().map(Bytes::from).collect()
}

fn names(keys: &[Bytes]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
    keys.join(" ")
}

fn show_ts(ts: u64) -> String {
    match ts {
        0 => "0".to_string(),
        u64::MAX => "max".to_string(),
        ts => format!("{} ms", Timestamp::new(ts).physical_ms()),
    }
}

fn show_status(request: &CheckTxnStatusRequest) -> String {
    let mut out = format!(
        "ask {} at {}",
        names(std::slice::from_ref(&request.primary_key)),
        show_ts(request.current_ts)
    );
    if request.caller_start_ts != 0 {
        let _ = write!(out, " for a read at {}", show_ts(request.caller_start_ts));
    }
    let flags = [
        (request.rollback_if_not_exist, "roll back if missing"),
        (request.force_sync_commit, "as for two phases"),
        (request.resolving_pessimistic_lock, "pessimistic"),
    ];
    for (_, name) in flags.iter().filter(|(set, _)| *set) {
        let _ = write!(out, ", {name}");
    }
    out
}

impl Runner {
    fn show(&mut self) -> String {
        let mut out = String::new();
        loop {
            let step = self.0.next_step();
            let text = match &step {
                Step::Status(request) => show_status(request),
                Step::Secondaries(keys) => format!("ask secondaries {}", names(keys)),
                Step::Decided(Verdict::Committed(ts)) => format!("committed at {}", show_ts(ts.get())),
                Step::Decided(Verdict::RolledBack) => "rolled back".to_string(),
                Step::Decided(Verdict::Pushed) => "read on".to_string(),
                Step::Decided(Verdict::Alive(ms)) => format!("wait for up to {ms} ms"),
                Step::Resolve(keys) => {
                    let request = self.0.resolve(keys);
                    let whole = if request.keys.is_empty() { "whole regions of " } else { "" };
                    format!("resolve {whole}{} at {}", names(keys), show_ts(request.commit_version))
                }
                Step::Unlock(keys) => {
                    let request = self.0.unlock(keys);
                    format!("unlock {} up to {}", names(&request.keys), show_ts(request.for_update_ts))
                }
                Step::Finished => break,
            };
            let _ = writeln!(out, "{text}");
            if !matches!(step, Step::Decided(_) | Step::Resolve(_) | Step::Unlock(_)) {
                break;
            }
        }
        if self.0.last_word().is_some() {
            out.push_str("for good\n");
        }
        out
    }
}

fn action(name: &Option<String>) -> Action {
    match name.as_deref() {
        Some("pushed") => Action::MinCommitTsPushed,
        Some("unlocked") => Action::TtlExpirePessimisticRollback,
        Some("nothing") => Action::LockNotExistDoNothing,
        _ => Action::NoAction,
    }
}

fn lock(key: &str, pessimistic: bool) -> LockInfo {
    let mut lock = LockInfo {
        primary_lock: "p".into(),
        lock_version: ts(START).get(),
        key: key.to_string().into(),
        ..Default::default()
    };
    if pessimistic {
        lock.set_lock_type(Op::PessimisticLock);
        lock.lock_for_update_ts = ts(START + 100).get();
    }
    lock
}

/// The resolution of the locks that a command names.
fn met(command: &Command) -> Result<Resolution, Box<dyn StdError>> {
    let Command::Meet { caller, keys, ttl, now, size, pessimistic, known } = command else {
        return Err("only for locks that are met".into());
    };
    let caller = match caller.as_str() {
        "read" => Caller::Read(ts(1500)),
        "latest" => Caller::Read(Timestamp::MAX),
        "wait" => Caller::Wait,
        "force" => Caller::Force,
        _ => return Err("callers are read, latest, wait and force".into()),
    };
    let is_pessimistic = |key: &String| pessimistic.as_ref().is_some_and(|keys| keys.contains(key.as_str()));
    let lock = |key: &String| LockInfo {
        lock_ttl: ttl.unwrap_or(3000),
        txn_size: size.unwrap_or(2),
        ..lock(key, is_pessimistic(key))
    };
    let locks: Vec<LockInfo> = keys.iter().map(lock).collect();
    let known = known.map(|ms| Verdict::Committed(ts(ms)));
    Ok(Resolution::new(&locks, caller, ts(now.unwrap_or(2000)), known))
}

fn key_error(name: &str) -> KeyError {
    match name {
        "not_found" => KeyError { txn_not_found: Some(TxnNotFound::default()), ..Default::default() },
        "mismatch" => KeyError { primary_mismatch: Some(PrimaryMismatch::default()), ..Default::default() },
        text => KeyError { abort: text.to_string(), ..Default::default() },
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Result<String, Box<dyn StdError>> {
        match command {
            Command::Meet { .. } => self.0 = met(command)?,
            Command::Locked { ttl, secondaries, min, action: name } => {
                let mut info = lock("p", false);
                info.lock_ttl = *ttl;
                info.min_commit_ts = min.map_or(0, |ms| ts(ms).get());
                info.use_async_commit = secondaries.is_some();
                let named = secondaries.iter().filter(|names| *names != "alone");
                info.secondaries =
                    named.flat_map(|names| names.split('-')).map(|key| key.to_string().into()).collect();
                let mut reply =
                    CheckTxnStatusResponse { lock_ttl: *ttl, lock_info: Some(info), ..Default::default() };
                reply.set_action(action(name));
                self.0.on_status(reply)?;
            }
            Command::Committed { ts: ms } => {
                let commit_version = ts(*ms).get();
                self.0.on_status(CheckTxnStatusResponse { commit_version, ..Default::default() })?;
            }
            Command::RolledBack { action: name } => {
                let mut reply = CheckTxnStatusResponse::default();
                reply.set_action(action(name));
                self.0.on_status(reply)?;
            }
            Command::Refused { error } => {
                let reply = CheckTxnStatusResponse { error: Some(key_error(error)), ..Default::default() };
                if let Err(error) = self.0.on_status(reply) {
                    return Ok(format!("error: {error}\n"));
                }
            }
            Command::Secondaries { keys, locked, min, commit_ts, plain } => {
                let info = |key: &String| LockInfo {
                    use_async_commit: !plain.unwrap_or(false),
                    min_commit_ts: min.map_or(0, |ms| ts(ms).get()),
                    ..lock(key, false)
                };
                let reply = CheckSecondaryLocksResponse {
                    locks: keys.iter().take(*locked).map(info).collect(),
                    commit_ts: commit_ts.map_or(0, |ms| ts(ms).get()),
                    ..Default::default()
                };
                self.0.on_secondaries(&bytes(keys), reply)?;
                return Ok(String::new());
            }
            Command::Checked => self.0.on_secondaries_checked(),
        }
        Ok(self.show())
    }
}

fn script(name: &str) {
    let mut runner = Runner(Resolution::new(&[], Caller::Wait, Timestamp::ZERO, None));
    goldenscript::run(&mut runner, format!("tests/scripts/resolution/{name}")).unwrap();
}

#[test]
fn ordinary_locks() {
    script("ordinary_locks");
}

#[test]
fn asynchronous_commits() {
    script("asynchronous_commits");
}

#[test]
fn pessimistic_locks() {
    script("pessimistic_locks");
}
