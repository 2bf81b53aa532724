//! Snapshot isolation, by timestamps.
//!
//! Every read of every transaction, of failed ones too, sees what it wrote itself, else exactly the newest version
//! that is committed at or below the timestamp of the read. Only a read under a lock that its transaction gave back, since
//! it failed, may have seen an older one: who takes the lock next may commit below that timestamp. Of two committed transactions that hold the same key one
//! had committed before the other took hold of it. A transaction commits after its start, and starts at or above every
//! commit that was known to anybody when it began. Fates must be settled first.

use std::collections::{BTreeMap, BTreeSet};

use super::{Fate, Key, Op, Ts, Txn, Value, Verdict, broken};

const CHECKER: &str = "snapshot";

/// The committed versions of one key by commit timestamp: who wrote what.
type Versions<'h> = BTreeMap<Ts, (&'h Txn, &'h Value)>;

/// Checks a whole history.
pub fn check(history: &[Txn]) -> Verdict {
    timestamps(history)?;
    let mut versions: BTreeMap<Key, Versions<'_>> = BTreeMap::new();
    for txn in history {
        let Some(commit_ts) = txn.commit_ts() else { continue };
        for (key, (value, _)) in txn.writes() {
            let of_key = versions.entry(key).or_default();
            if let Some((other, _)) = of_key.insert(commit_ts, (txn, value)) {
                let what = format!("{} and {} both wrote key {key} at {commit_ts}", other.name(), txn.name());
                return broken(CHECKER, what);
            }
        }
    }
    history.iter().try_for_each(|txn| reads(txn, &versions))?;
    holds(history)?;
    real_time(history)
}

/// Start timestamps are unique, commits come after starts, and every fate is known.
fn timestamps(history: &[Txn]) -> Verdict {
    let mut starts = BTreeSet::new();
    for txn in history {
        if !starts.insert(txn.start_ts) {
            return broken(CHECKER, format!("the start timestamp of {} was given twice", txn.name()));
        }
        match txn.fate {
            Fate::Unknown => return broken(CHECKER, format!("the fate of {} is not settled", txn.name())),
            Fate::Committed(at) if !txn.holds().is_empty() && at <= txn.start_ts => {
                return broken(CHECKER, format!("{} committed at {at}, not after its start", txn.name()));
            }
            Fate::Committed(_) | Fate::Aborted => {}
        }
    }
    Ok(())
}

fn reads(txn: &Txn, versions: &BTreeMap<Key, Versions<'_>>) -> Verdict {
    let none = Value::new();
    let mut own: BTreeMap<Key, &Value> = BTreeMap::new();
    for op in &txn.ops {
        match op {
            Op::Write { key, value, .. } => drop(own.insert(*key, value)),
            Op::Lock { .. } => {}
            Op::Read { key, seen, at } => {
                let newest = || versions.get(key)?.range(..=*at).next_back();
                let (expected, whose) = match (own.get(key), newest()) {
                    (Some(value), _) => (*value, "its own".to_string()),
                    (None, Some((ts, (by, value)))) => {
                        (*value, format!("committed at {ts} by {}", by.name()))
                    }
                    (None, None) => (&none, "never written".to_string()),
                };
                let gave_back = *at > txn.start_ts && txn.commit_ts().is_none() && !own.contains_key(key);
                let older =
                    || versions.get(key).is_some_and(|v| v.range(..=*at).any(|(_, (_, v))| *v == seen));
                if seen != expected && !(gave_back && (seen.is_empty() || older())) {
                    let what = format!(
                        "{} read key {key} at {at} and saw {seen:?}; the version to see is {expected:?}, {whose}",
                        txn.name()
                    );
                    return broken(CHECKER, what);
                }
            }
        }
    }
    Ok(())
}

/// First committer wins: the spans in which committed transactions hold a key do not overlap.
fn holds(history: &[Txn]) -> Verdict {
    let mut spans: BTreeMap<Key, Vec<(Ts, Ts, &Txn)>> = BTreeMap::new();
    for txn in history {
        let Some(commit_ts) = txn.commit_ts() else { continue };
        for (key, since) in txn.holds() {
            spans.entry(key).or_default().push((commit_ts, since, txn));
        }
    }
    for (key, mut of_key) in spans {
        of_key.sort_unstable_by_key(|(commit_ts, since, _)| (*commit_ts, *since));
        for pair in of_key.windows(2) {
            let [(earlier, _, first), (later, since, second)] = pair else { continue };
            if since < earlier {
                let what = format!(
                    "{} committed key {key} at {earlier}, while {} held it from {since} to its commit at {later}",
                    first.name(),
                    second.name()
                );
                return broken(CHECKER, what);
            }
        }
    }
    Ok(())
}

/// Who begins after a commit is known starts at or above it.
fn real_time(history: &[Txn]) -> Verdict {
    // Begins sort before ends of the same instant: such transactions count as simultaneous.
    let mut events: Vec<(u64, bool, &Txn)> = Vec::with_capacity(history.len() * 2);
    for txn in history {
        events.push((txn.began, false, txn));
        if let (Some(ended), Some(_)) = (txn.ended, txn.commit_ts()) {
            events.push((ended, true, txn));
        }
    }
    events.sort_by_key(|(at, ends, _)| (*at, *ends));
    let mut known: (Ts, Option<&Txn>) = (0, None);
    for (at, ends, txn) in events {
        let commit_ts = txn.commit_ts().unwrap_or(0);
        match known {
            (newest, Some(by)) if !ends && txn.start_ts < newest => {
                let what = format!(
                    "{} began at {at}, when the commit of {} at {newest} was known",
                    txn.name(),
                    by.name()
                );
                return broken(CHECKER, what);
            }
            (newest, _) if ends && commit_ts > newest => known = (commit_ts, Some(txn)),
            _ => {}
        }
    }
    Ok(())
}
