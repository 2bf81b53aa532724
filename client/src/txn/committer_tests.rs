//! The committer through scripts in `tests/scripts/committer`: what the stores answer goes in, what is to be done
//! comes out.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use kvproto::kvrpcpb::*;
use kvproto::ts::{LOGICAL_BITS, Timestamp};

use super::committer::{Action, Committer, Plan, Write};
use crate::error::Error;

/// The language of the scripts. Keys are words; timestamps are small numbers.
#[derive(goldenscript::Command)]
enum Command {
    /// Begins a commit: begin put/a del/b insert/c check/d lock/e primary=b protocol=async
    Begin {
        writes: Vec<String>,
        #[arg(key)]
        primary: Option<String>,
        #[arg(key)]
        protocol: Option<String>,
    },
    /// Begins an optimistic commit of so many keys of 16 bytes.
    BeginMany {
        count: usize,
        #[arg(key)]
        value: Option<usize>,
    },
    /// Shows what to do now, and after it until the user is waited for.
    Next,
    /// Shows the prewrite request of these keys, so long after the transaction began.
    Prewrite {
        keys: Vec<String>,
        #[arg(key)]
        elapsed_ms: Option<u64>,
    },
    /// A store answers the prewrite of these keys.
    Prewritten {
        keys: Vec<String>,
        #[arg(key)]
        min: Option<u64>,
        #[arg(key)]
        one_pc: Option<u64>,
        #[arg(key)]
        locked: Option<String>,
        #[arg(key)]
        error: Option<String>,
    },
    /// A prewrite was sent twice, and nobody knows what becomes of the first copy.
    LateCopy,
    /// All pieces are answered; or one is not: end error=undetermined
    End {
        #[arg(key)]
        error: Option<String>,
    },
    /// The locks of others are gone.
    Resolved,
    /// They stay.
    Stuck,
    /// A timestamp, or none.
    Ts { ts: Option<u64> },
    /// Shows the commit of the primary with the keys up to this one.
    Commit { near: String },
    /// A store answers the commit of the primary, which carried these keys.
    Committed {
        keys: Vec<String>,
        #[arg(key)]
        version: Option<u64>,
        #[arg(key)]
        expired: Option<u64>,
        #[arg(key)]
        error: Option<String>,
    },
    /// Nobody waits any more.
    Abandoned,
    /// The rollback of the refused keys came too late.
    FoundCommitted { at: u64 },
    /// The rollback of the refused keys succeeded or not.
    Sealed {
        #[arg(key)]
        error: Option<String>,
    },
}

struct Runner {
    committer: Committer,
    writes: Vec<Write>,
}

fn write(text: &str, locked: bool) -> Result<Write, Box<dyn StdError>> {
    let (op, key) = text.split_once('/').ok_or("write op/key")?;
    let op = match op {
        "put" => Op::Put,
        "del" => Op::Del,
        "insert" => Op::Insert,
        "check" => Op::CheckNotExists,
        "lock" => Op::Lock,
        _ => return Err("ops are put, del, insert, check and lock".into()),
    };
    let value = if matches!(op, Op::Put | Op::Insert) { Bytes::from("v") } else { Bytes::new() };
    let key = Bytes::from(key.to_string());
    Ok(Write { mutation: Mutation { op: op.into(), key, value, ..Default::default() }, locked })
}

fn transport(name: &str) -> Error {
    let timeout = Error::Timeout { after: Duration::from_secs(5), last: None };
    match name {
        "undetermined" => Error::Undetermined { cause: Box::new(timeout) },
        _ => timeout,
    }
}

fn key_error(name: &str, key: &str) -> KeyError {
    let key = Bytes::from(key.to_string());
    match name {
        "conflict" => {
            let conflict = WriteConflict { conflict_ts: 3, conflict_commit_ts: 9, key, ..Default::default() };
            KeyError { conflict: Some(conflict), ..Default::default() }
        }
        "exists" => KeyError { already_exist: Some(AlreadyExist { key }), ..Default::default() },
        "lost" => KeyError { txn_lock_not_found: Some(TxnLockNotFound { key }), ..Default::default() },
        text => KeyError { abort: text.to_string(), ..Default::default() },
    }
}

fn names(keys: &[Bytes]) -> String {
    if keys.len() > 9 {
        return format!("{} keys", keys.len());
    }
    let keys: Vec<_> = keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
    keys.join(" ")
}

fn show(action: &Action) -> String {
    match action {
        Action::Prewrite(writes) if writes.len() > 9 => format!("prewrite {} writes", writes.len()),
        Action::Prewrite(writes) => {
            let keys: Vec<Bytes> = writes.iter().map(|write| write.mutation.key.clone()).collect();
            format!("prewrite {}", names(&keys))
        }
        Action::Resolve(locks) => {
            let keys: Vec<Bytes> = locks.iter().map(|lock| lock.key.clone()).collect();
            format!("resolve locks at {}", names(&keys))
        }
        Action::Timestamp => "fetch a timestamp".to_string(),
        Action::CommitPrimary => "commit the primary".to_string(),
        Action::Seal(keys) => format!("seal {}", names(keys)),
        Action::Decided(Ok(Some(ts))) => format!("committed at {ts}"),
        Action::Decided(Ok(None)) => "nothing to commit".to_string(),
        Action::Decided(Err(Error::Undetermined { .. })) => "failed: undetermined".to_string(),
        Action::Decided(Err(Error::Timeout { .. })) => "failed: timeout".to_string(),
        Action::Decided(Err(error)) => format!("failed: {error}"),
        Action::Commit(keys) => format!("commit {} in the background", names(keys)),
        Action::Rollback(keys) => format!("roll back {} in the background", names(keys)),
        Action::Finished => "finished".to_string(),
    }
}

impl Runner {
    fn new(plan: Plan, writes: Vec<Write>) -> Runner {
        Runner { committer: Committer::new(plan, writes.clone()), writes }
    }

    fn piece(&self, keys: &[String]) -> Vec<Write> {
        let wanted = |write: &&Write| keys.iter().any(|key| key.as_bytes() == write.mutation.key);
        self.writes.iter().filter(wanted).cloned().collect()
    }

    fn begin(
        &mut self,
        writes: &[String],
        primary: &Option<String>,
        protocol: &Option<String>,
    ) -> Result<(), Box<dyn StdError>> {
        let wants = |name: &str| protocol.as_ref().is_none_or(|protocol| protocol.contains(name));
        let plan = Plan {
            start_ts: Timestamp::new(5),
            for_update_ts: if primary.is_some() { Timestamp::new(6) } else { Timestamp::ZERO },
            primary: primary.clone().map(Bytes::from),
            async_commit: wants("async"),
            one_phase: wants("one_phase"),
        };
        let locked = primary.is_some();
        let writes = writes.iter().map(|text| write(text, locked)).collect::<Result<Vec<_>, _>>()?;
        *self = Runner::new(plan, writes);
        Ok(())
    }

    fn begin_many(&mut self, count: usize, value: usize) {
        let plan =
            Plan { start_ts: Timestamp::new(5), async_commit: true, one_phase: true, ..Plan::default() };
        let write = |n: usize| {
            let (key, value) = (Bytes::from(format!("{n:016}")), Bytes::from(vec![0; value]));
            Write { mutation: Mutation { key, value, ..Default::default() }, locked: false }
        };
        *self = Runner::new(plan, (0..count).map(write).collect());
    }

    fn on_prewrite(
        &mut self,
        keys: &[String],
        (min, one_pc): (Option<u64>, Option<u64>),
        locked: Option<&String>,
        error: Option<&String>,
    ) -> Result<(), Box<dyn StdError>> {
        let first = keys.first().ok_or("name the keys")?;
        let lock = |key: &String| {
            let (key, lock_version) = (Bytes::from(key.clone()), 4);
            let locked = Some(LockInfo { key, lock_version, ..Default::default() });
            KeyError { locked, ..Default::default() }
        };
        let mut errors: Vec<KeyError> = locked.into_iter().map(lock).collect();
        errors.extend(error.into_iter().map(|error| key_error(error, first)));
        let reply = PrewriteResponse {
            errors,
            min_commit_ts: min.unwrap_or(0),
            one_pc_commit_ts: one_pc.unwrap_or(0),
            ..Default::default()
        };
        self.committer.on_prewrite(&self.piece(keys), reply);
        Ok(())
    }

    fn show_prewrite(&self, keys: &[String], elapsed_ms: u64) -> String {
        let request = self.committer.prewrite(&self.piece(keys), elapsed_ms);
        let mut out = format!("primary {}", String::from_utf8_lossy(&request.primary_lock));
        for (flag, name) in [(request.use_async_commit, "async"), (request.try_one_pc, "one-phase")] {
            if flag {
                let _ = write!(out, ", {name}");
            }
        }
        if !request.secondaries.is_empty() {
            let _ = write!(out, ", secondaries {}", names(&request.secondaries));
        }
        if !request.pessimistic_actions.is_empty() {
            let _ = write!(out, ", pessimistic at {}", request.for_update_ts);
        }
        let most_ms = request.max_commit_ts >> LOGICAL_BITS;
        let _ = write!(
            out,
            ", ttl {} ms, commit after {}, in {most_ms} ms",
            request.lock_ttl, request.min_commit_ts
        );
        out
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Result<String, Box<dyn StdError>> {
        let mut out = String::new();
        let committer = &mut self.committer;
        match command {
            Command::Begin { writes, primary, protocol } => self.begin(writes, primary, protocol)?,
            Command::BeginMany { count, value } => self.begin_many(*count, value.unwrap_or(0)),
            Command::Next => loop {
                let action = committer.next_action();
                writeln!(out, "{}", show(&action))?;
                if !matches!(action, Action::Decided(_) | Action::Commit(_) | Action::Rollback(_)) {
                    break;
                }
            },
            Command::Prewrite { keys, elapsed_ms } => {
                writeln!(out, "{}", self.show_prewrite(keys, elapsed_ms.unwrap_or(0)))?;
            }
            Command::Prewritten { keys, min, one_pc, locked, error } => {
                self.on_prewrite(keys, (*min, *one_pc), locked.as_ref(), error.as_ref())?;
            }
            Command::LateCopy => committer.on_late_copy(),
            Command::End { error } => {
                committer.on_prewritten(error.as_ref().map_or(Ok(()), |error| Err(transport(error))));
            }
            Command::Resolved => committer.on_resolved(),
            Command::Stuck => {
                let (key, lock_version) = (Bytes::from("b"), 4);
                committer.on_stuck(Some(&LockInfo { key, lock_version, ..Default::default() }));
            }
            Command::Ts { ts } => {
                committer.on_timestamp(ts.map(Timestamp::new).ok_or_else(|| transport("timeout")));
            }
            Command::Commit { near } => {
                let request = committer.commit_primary(|key| key <= near.as_bytes());
                writeln!(out, "{} at {}", names(&request.keys), request.commit_version)?;
            }
            Command::Committed { keys, version, expired, error } => {
                let keys: Vec<Bytes> = keys.iter().cloned().map(Bytes::from).collect();
                let expired = expired.map(|min_commit_ts| KeyError {
                    commit_ts_expired: Some(CommitTsExpired { min_commit_ts, ..Default::default() }),
                    ..Default::default()
                });
                let reply = match error.as_deref() {
                    Some(name @ ("undetermined" | "timeout")) => Err(transport(name)),
                    error => Ok(CommitResponse {
                        error: error.map(|error| key_error(error, "a")).or(expired),
                        commit_version: version.unwrap_or(0),
                        ..Default::default()
                    }),
                };
                committer.on_primary_committed(&keys, reply);
            }
            Command::Abandoned => committer.on_abandoned(),
            Command::FoundCommitted { at } => committer.on_found_committed(Timestamp::new(*at)),
            Command::Sealed { error } => {
                committer.on_sealed(error.as_ref().map_or(Ok(()), |error| Err(transport(error))));
            }
        }
        Ok(out)
    }
}

fn script(name: &str) {
    let mut runner = Runner::new(Plan::default(), Vec::new());
    goldenscript::run(&mut runner, format!("tests/scripts/committer/{name}")).unwrap();
}

#[test]
fn two_phase() {
    script("two_phase");
}

#[test]
fn asynchronous() {
    script("asynchronous");
}

#[test]
fn one_phase() {
    script("one_phase");
}

#[test]
fn refusals() {
    script("refusals");
}

#[test]
fn unknown_outcomes() {
    script("unknown_outcomes");
}

#[test]
fn abandoned() {
    script("abandoned");
}
