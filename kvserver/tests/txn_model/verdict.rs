//! What must be true once everything is settled.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvserver::engine::ReadTier;
use kvserver::txn::commands::MutationOp;
use kvserver::txn::mvcc::inspect::{self, KeyRecords};
use kvserver::txn::mvcc::{self, ReadRules, Reader, WriteKind};

use crate::client::{Mode, Told, Txn};
use crate::{KEYS, Sim};

/// Commit timestamp and value of each version with data, ascending.
type Versions = BTreeMap<Bytes, BTreeMap<u64, Option<Bytes>>>;

/// Checks everything, and gives the number of rollbacks that are kept as notes.
pub fn check(sim: &Sim) -> usize {
    let records: BTreeMap<Bytes, KeyRecords> = (0..KEYS)
        .map(|n| Bytes::from(format!("k{n}")))
        .map(|key| (key.clone(), inspect::by_key(&sim.world.at(), ReadTier::All, &key).unwrap()))
        .collect();
    let mut versions = Versions::new();
    let mut commits = Vec::new();
    for txn in &sim.txns {
        let outcome = outcome(txn, &records);
        if let Some(decided) = sim.decided.get(&txn.start_ts) {
            assert_eq!(outcome.unwrap_or(0), *decided, "{txn:?} was decided otherwise");
        }
        let Some(commit_ts) = outcome else { continue };
        commits.push((txn, commit_ts));
        for (key, op, value) in &txn.changes {
            let value = match op {
                MutationOp::Put | MutationOp::Insert => Some(value.clone()),
                MutationOp::Delete => None,
                _ => continue,
            };
            let before = versions.entry(key.clone()).or_default().insert(commit_ts, value);
            assert!(before.is_none(), "two versions of {key:?} at {commit_ts}");
        }
    }
    no_lost_update(&commits);
    inserts_were_absent(&commits, &versions);
    reads_agree(sim, &versions);
    nothing_left_over(sim, &records);
    records.values().map(|records| records.rollback_notes.len()).sum()
}

fn at<'v>(versions: &'v Versions, key: &Bytes, ts: u64) -> Option<&'v Bytes> {
    versions.get(key)?.range(..=ts).next_back()?.1.as_ref()
}

/// When a transaction committed: everywhere at once or nowhere, and as its client has told.
fn outcome(txn: &Txn, records: &BTreeMap<Bytes, KeyRecords>) -> Option<u64> {
    let ends: Vec<Option<u64>> = txn
        .changes
        .iter()
        .map(|(key, ..)| {
            let own: Vec<_> = records[key]
                .versions
                .iter()
                .filter(|v| v.write.start_ts == txn.start_ts && v.write.kind != WriteKind::Rollback)
                .collect();
            assert!(own.len() <= 1, "{txn:?} committed twice on {key:?}");
            own.first().map(|version| version.commit_ts)
        })
        .collect();
    assert!(ends.iter().all(|end| *end == ends[0]), "{txn:?} ended differently on its keys: {ends:?}");
    match txn.told {
        Some(Told::Committed(ts)) => assert_eq!(ends[0], Some(ts), "{txn:?}"),
        // A copy of a request that failed may get through later; then whoever finds all locks there commits it. Only
        // two phases need the client for that.
        Some(Told::Aborted) if txn.mode == Mode::TwoPhase => assert_eq!(ends[0], None, "{txn:?}"),
        _ => {}
    }
    ends[0]
}

/// Between what a transaction has seen of a key and its own commit, nobody else commits there.
fn no_lost_update(commits: &[(&Txn, u64)]) {
    for (txn, commit_ts) in commits {
        for (key, ..) in &txn.changes {
            let seen = if txn.pessimistic { txn.claimed[key] } else { txn.start_ts };
            for (other, other_ts) in commits {
                let touches = other.changes.iter().any(|(k, ..)| k == key);
                let between = seen < *other_ts && other_ts < commit_ts;
                assert!(
                    other.start_ts == txn.start_ts || !touches || !between,
                    "{other:?} committed at {other_ts} on {key:?}, unseen by {txn:?} that committed at {commit_ts}"
                );
            }
        }
    }
}

fn inserts_were_absent(commits: &[(&Txn, u64)], versions: &Versions) {
    for (txn, commit_ts) in commits.iter().filter(|(txn, _)| !txn.pessimistic) {
        for (key, ..) in txn.changes.iter().filter(|(_, op, _)| *op == MutationOp::Insert) {
            assert_eq!(at(versions, key, commit_ts - 1), None, "{txn:?} inserted over a value");
        }
    }
}

/// Every read that was ever answered repeats, and gets and scans of the end see the same at every timestamp.
fn reads_agree(sim: &Sim, versions: &Versions) {
    for seen in &sim.seen {
        let now = at(versions, &seen.key, seen.ts);
        assert_eq!(seen.value.as_ref(), now, "{:?} read at {} does not repeat", seen.key, seen.ts);
    }
    let snapshot = sim.world.at().snapshot;
    for ts in (0..=sim.now() + 2).chain([u64::MAX]) {
        let mut reader = Reader::new(&snapshot, ReadTier::All);
        let mut expected = Vec::new();
        for key in (0..KEYS).map(|n| Bytes::from(format!("k{n}"))) {
            let value = at(versions, &key, ts);
            let found = mvcc::point_get(&mut reader, key.clone(), &ReadRules::at(ts)).unwrap();
            assert_eq!(found.as_ref().map(|found| &found.value), value, "{key:?} at {ts}");
            expected.extend(value.map(|value| (key, value.clone())));
        }
        let pairs =
            |reverse| -> Vec<_> { sim.scanned(ts, reverse).into_iter().map(Result::unwrap).collect() };
        assert_eq!(pairs(false), expected, "scan at {ts}");
        expected.reverse();
        assert_eq!(pairs(true), expected, "scan downwards at {ts}");
    }
}

/// No lock, no value without its version, no note that says what nobody has asked.
fn nothing_left_over(sim: &Sim, records: &BTreeMap<Bytes, KeyRecords>) {
    for (key, records) in records {
        assert_eq!(records.lock, None, "{key:?}");
        for (start_ts, _) in &records.values {
            let owner = records.versions.iter().find(|version| version.write.start_ts == *start_ts);
            assert!(
                owner.is_some_and(|v| v.write.kind == WriteKind::Put && v.write.short_value.is_none()),
                "{key:?} has a value of {start_ts} that nothing refers to"
            );
        }
        for note in &records.rollback_notes {
            assert!(records.versions.iter().any(|version| version.commit_ts == *note), "{key:?} {note}");
            assert!(sim.txns.iter().any(|txn| txn.start_ts == *note), "{key:?} {note}");
        }
    }
}
