//! Fates by what is stored: a transaction is committed at one timestamp in all its keys, or in none.
//!
//! Clients that crashed, or got no answer, leave transactions with an unknown fate. The commit records of all keys
//! tell it. The same records must agree with what the other clients were told.

use std::collections::BTreeMap;

use super::{Fate, Key, Ts, Txn, Verdict, broken};

/// A commit record: of a value, of a deletion, or of a lock alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub key: Key,
    pub start_ts: Ts,
    pub commit_ts: Ts,
}

/// Compares the history with the records of every key it touched, and replaces unknown fates by true ones. Records of
/// locks alone may be gone: a later write of the key makes them needless.
pub fn settle(history: &mut [Txn], records: &[Record]) -> Verdict {
    let mut of: BTreeMap<Ts, Vec<Record>> = BTreeMap::new();
    for record in records {
        of.entry(record.start_ts).or_default().push(*record);
    }
    for txn in history {
        let found = of.remove(&txn.start_ts).unwrap_or_default();
        settle_one(txn, &found)?;
    }
    match of.into_values().flatten().next() {
        None => Ok(()),
        Some(record) => broken("settle", format!("{record:?} belongs to no transaction of the history")),
    }
}

fn settle_one(txn: &mut Txn, found: &[Record]) -> Verdict {
    let name = txn.name();
    let mut at: Option<Ts> = None;
    let holds = txn.holds();
    for record in found {
        if !holds.contains_key(&record.key) {
            return broken("settle", format!("{name} committed key {}, which it never wrote", record.key));
        }
        if at.is_some_and(|at| at != record.commit_ts) {
            return broken("settle", format!("{name} committed at two timestamps: {found:?}"));
        }
        at = Some(record.commit_ts);
    }
    let has = |key: &Key| found.iter().any(|record| record.key == *key);
    if let (Some(at), Some(missing)) = (at, txn.writes().keys().find(|key| !has(key))) {
        return broken("settle", format!("{name} committed at {at}, but not key {missing}: {found:?}"));
    }
    match (txn.fate, at) {
        (Fate::Unknown, Some(at)) => txn.fate = Fate::Committed(at),
        (Fate::Unknown, None) if holds.is_empty() => txn.fate = Fate::Committed(txn.start_ts),
        (Fate::Unknown, None) => txn.fate = Fate::Aborted,
        (Fate::Committed(told), Some(at)) if told != at => {
            return broken("settle", format!("{name} was told {told} as commit timestamp, stored is {at}"));
        }
        (Fate::Committed(told), None) if !txn.writes().is_empty() => {
            return broken(
                "settle",
                format!("{name} was told that it committed at {told}; nothing is stored"),
            );
        }
        (Fate::Aborted, Some(at)) => {
            return broken("settle", format!("{name} was told that it failed; stored is a commit at {at}"));
        }
        _ => {}
    }
    Ok(())
}
