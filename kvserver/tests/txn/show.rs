//! How answers, errors and records look in scripts.

use std::fmt::Write as _;

use kvserver::txn::commands::{Acquired, CheckedTxn, Prewritten, Released, SecondaryLocks, TxnStatus};
use kvserver::txn::error::{LockInfo, TxnError};
use kvserver::txn::mvcc::inspect::KeyRecords;
use kvserver::txn::mvcc::{Lock, Write};

use super::ts::Ts;

/// A key or a value; long ones are abbreviated.
pub fn text(bytes: &[u8]) -> String {
    match bytes.len() {
        0 => "''".into(),
        1..=32 => String::from_utf8_lossy(bytes).into_owned(),
        n => format!("{}*{n}", String::from_utf8_lossy(&bytes[..1])),
    }
}

/// Names, parted by slashes.
pub fn list<K: AsRef<[u8]>>(keys: &[K]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| text(key.as_ref())).collect();
    keys.join("/")
}

pub fn lock(lock: &Lock) -> String {
    let kind = format!("{:?}", lock.kind).to_lowercase();
    let mut out = format!("{kind} of {} primary {}", Ts(lock.start_ts), text(&lock.primary));
    let figures = [
        ("ttl", lock.ttl),
        ("size", lock.txn_size),
        ("for-update", lock.for_update_ts),
        ("min-commit", lock.min_commit_ts),
        ("last-change", lock.last_change_ts),
    ];
    for (name, n) in figures.into_iter().filter(|(_, n)| *n > 0) {
        let n = if matches!(name, "ttl" | "size") { n.to_string() } else { Ts(n).to_string() };
        write!(out, " {name} {n}").unwrap();
    }
    if let Some(value) = &lock.short_value {
        write!(out, " value {}", text(value)).unwrap();
    }
    if let Some(secondaries) = &lock.secondaries {
        write!(out, " async [{}]", list(secondaries)).unwrap();
    }
    out
}

pub fn info(info: &LockInfo) -> String {
    format!("{} locked: {}", text(&info.key), lock(&info.lock))
}

pub fn write(write: &Write) -> String {
    let kind = format!("{:?}", write.kind).to_lowercase();
    let mut out = format!("{kind} of {}", Ts(write.start_ts));
    if write.last_change_ts > 0 {
        std::write!(out, " last-change {}", Ts(write.last_change_ts)).unwrap();
    }
    if let Some(value) = &write.short_value {
        std::write!(out, " value {}", text(value)).unwrap();
    }
    out
}

pub fn records(key: &str, records: &KeyRecords) -> String {
    let mut out = String::new();
    if records.is_empty() {
        writeln!(out, "{key}: nothing").unwrap();
    }
    if let Some(held) = &records.lock {
        writeln!(out, "{key} lock: {}", lock(held)).unwrap();
    }
    for version in &records.versions {
        writeln!(out, "{key} @{}: {}", Ts(version.commit_ts), write(&version.write)).unwrap();
    }
    for (ts, value) in &records.values {
        writeln!(out, "{key} value of {}: {}", Ts(*ts), text(value)).unwrap();
    }
    for ts in &records.rollback_notes {
        writeln!(out, "{key} note: {} was rolled back", Ts(*ts)).unwrap();
    }
    out
}

pub fn prewritten(answer: &Prewritten) -> String {
    match *answer {
        Prewritten { one_pc_commit_ts: ts, .. } if ts > 0 => format!("committed at {}", Ts(ts)),
        Prewritten { min_commit_ts: ts, .. } if ts > 0 => {
            format!("prewritten, commits at {} or later", Ts(ts))
        }
        Prewritten { .. } => "prewritten".into(),
    }
}

pub fn acquired(answer: &Acquired) -> String {
    let keys = answer.keys.iter().map(|key| {
        let mut out = match &key.value {
            Some(value) => text(value),
            None => (if key.exists { "exists" } else { "-" }).to_string(),
        };
        if key.locked_with_conflict_ts > 0 {
            write!(out, " with a conflict at {}", Ts(key.locked_with_conflict_ts)).unwrap();
        }
        out
    });
    format!("acquired: {}", keys.collect::<Vec<_>>().join(", "))
}

pub fn checked(answer: &CheckedTxn) -> String {
    let status = match &answer.status {
        TxnStatus::Committed { commit_ts } => format!("committed at {}", Ts(*commit_ts)),
        TxnStatus::RolledBack => "rolled back".into(),
        TxnStatus::Locked(held) => format!("locked: {}", lock(held)),
    };
    format!("{:?}: {status}", answer.action)
}

pub fn secondaries(answer: &SecondaryLocks) -> String {
    let keys: Vec<_> = answer.locks.iter().map(|info| info.key.clone()).collect();
    format!("commit {} locks [{}]", Ts(answer.commit_ts), list(&keys))
}

pub fn released(released: &[Released]) -> String {
    let mut out = String::new();
    for Released { key, start_ts, commit_ts } in released {
        let end = if *commit_ts > 0 { format!(", committed at {}", Ts(*commit_ts)) } else { String::new() };
        writeln!(out, "  {} released by {}{end}", text(key), Ts(*start_ts)).unwrap();
    }
    out
}

pub fn error(error: &TxnError) -> String {
    let text = match error {
        TxnError::Locked(locks) => locks.iter().map(info).collect::<Vec<_>>().join("; "),
        TxnError::Conflict(c) => format!(
            "conflict {:?} of {} on {} (primary {}) with {} that committed at {}",
            c.reason,
            Ts(c.start_ts),
            text(&c.key),
            text(&c.primary),
            Ts(c.conflict_ts),
            Ts(c.conflict_commit_ts)
        ),
        TxnError::Committed { start_ts, commit_ts } => {
            format!("{} committed at {} already", Ts(*start_ts), Ts(*commit_ts))
        }
        TxnError::CommitTsExpired { start_ts, commit_ts, key, min_commit_ts } => format!(
            "{} cannot commit {} at {}: at {} or later",
            Ts(*start_ts),
            text(key),
            Ts(*commit_ts),
            Ts(*min_commit_ts)
        ),
        TxnError::PrimaryMismatch(found) => format!("not the primary; {}", info(found)),
        TxnError::AlreadyExists { key } => format!("{} exists", text(key)),
        TxnError::LockNotFound { start_ts, key } => format!("no lock of {} on {}", Ts(*start_ts), text(key)),
        TxnError::PessimisticLockNotFound { start_ts, key } => {
            format!("no pessimistic lock of {} on {}", Ts(*start_ts), text(key))
        }
        TxnError::TxnNotFound { start_ts, primary } => {
            format!("no trace of {} on {}", Ts(*start_ts), text(primary))
        }
        TxnError::Assertion { key, must_exist, existing_start_ts, existing_commit_ts, .. } => format!(
            "assertion failed: {} must {}; found {} committed at {}",
            text(key),
            if *must_exist { "exist" } else { "not exist" },
            Ts(*existing_start_ts),
            Ts(*existing_commit_ts)
        ),
        other => other.to_string(),
    };
    format!("error: {text}")
}
