//! The checkers find each planted anomaly, and nothing in thousands of valid histories.

use super::cycles::{self, Level};
use super::deps::{Phenomenon, Shape};
use super::model::{self, Model};
use super::settle::{Record, settle};
use super::{Fate, Key, Op, Ts, Txn, Value, Verdict, bank, skew, snapshot};
use crate::sim::rng::Rng;

const X: Key = 1;
const Y: Key = 2;
const Z: Key = 3;

/// A transaction from `start_ts` to `commit_ts`, at true times of the same numbers.
fn txn(start_ts: Ts, commit_ts: Ts, ops: Vec<Op>) -> Txn {
    let fate = Fate::Committed(commit_ts);
    Txn { client: 0, start_ts, fate, ops, began: start_ts, ended: Some(commit_ts) }
}

fn failed(start_ts: Ts, ops: Vec<Op>) -> Txn {
    Txn { fate: Fate::Aborted, ..txn(start_ts, start_ts + 1, ops) }
}

fn r(key: Key, seen: &[u64]) -> Op {
    Op::Read { key, seen: seen.to_vec(), at: 0 }
}

fn w(key: Key, value: &[u64]) -> Op {
    Op::Write { key, value: value.to_vec(), since: 0 }
}

/// Gives the steps of every transaction its start timestamp, where they have none.
fn history(mut txns: Vec<Txn>) -> Vec<Txn> {
    for txn in &mut txns {
        let start_ts = txn.start_ts;
        for op in &mut txn.ops {
            match op {
                Op::Read { at: ts, .. } | Op::Write { since: ts, .. } | Op::Lock { since: ts, .. } => {
                    *ts = if *ts == 0 { start_ts } else { *ts };
                }
            }
        }
    }
    txns
}

#[track_caller]
fn found(shape: Shape, txns: Vec<Txn>, wanted: Phenomenon) {
    let history = history(txns);
    let found = cycles::find(&history, shape);
    assert!(found.iter().any(|a| a.phenomenon == wanted), "{wanted:?} is not among {found:?}");
    let skew_only = found.iter().all(|a| a.phenomenon == Phenomenon::WriteSkew);
    assert_eq!(cycles::check(&history, shape, Level::SnapshotIsolation).is_ok(), skew_only);
    assert!(cycles::check(&history, shape, Level::Serializable).is_err());
}

#[track_caller]
fn refused(verdict: Verdict, word: &str) {
    let broken = verdict.expect_err("an anomaly was planted");
    assert!(broken.what.contains(word), "{broken:?}");
}

#[test]
fn a_transaction_that_contradicts_itself_is_found() {
    let twice = txn(1, 2, vec![r(X, &[]), r(X, &[7])]);
    found(Shape::Registers, vec![txn(0, 1, vec![w(X, &[7])]), twice], Phenomenon::Internal);
    let own = txn(1, 2, vec![w(X, &[7]), r(X, &[])]);
    found(Shape::Registers, vec![own], Phenomenon::Internal);
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    found(Shape::Lists, vec![txn(1, 2, vec![r(X, &[9])])], Phenomenon::Garbage);
}

#[test]
fn g1a_a_read_of_a_failed_write_is_found() {
    let txns = || vec![failed(1, vec![w(X, &[1])]), txn(3, 4, vec![r(X, &[1])])];
    found(Shape::Lists, txns(), Phenomenon::AbortedRead);
    found(Shape::Registers, txns(), Phenomenon::AbortedRead);
}

#[test]
fn g1b_a_read_of_an_intermediate_write_is_found() {
    let txns = vec![txn(1, 4, vec![w(X, &[1]), w(X, &[1, 2])]), txn(2, 5, vec![r(X, &[1])])];
    found(Shape::Lists, txns, Phenomenon::IntermediateRead);
}

#[test]
fn g0_a_cycle_of_overwrites_is_found() {
    // Each wrote first in one key, and second in the other.
    let txns = vec![
        txn(1, 5, vec![w(X, &[1]), w(Y, &[2, 1])]),
        txn(2, 6, vec![w(X, &[1, 2]), w(Y, &[2])]),
        txn(7, 8, vec![r(X, &[1, 2]), r(Y, &[2, 1])]),
    ];
    found(Shape::Lists, txns, Phenomenon::WriteCycle);
}

#[test]
fn g1c_two_that_saw_each_other_are_found() {
    let txns = || vec![txn(1, 5, vec![w(X, &[1]), r(Y, &[2])]), txn(2, 6, vec![w(Y, &[2]), r(X, &[1])])];
    found(Shape::Lists, txns(), Phenomenon::InformationCycle);
    found(Shape::Registers, txns(), Phenomenon::InformationCycle);
}

#[test]
fn g_single_half_of_a_transaction_is_found() {
    let txns = || {
        vec![
            txn(1, 2, vec![r(X, &[]), w(X, &[1]), r(Y, &[]), w(Y, &[1])]),
            txn(3, 4, vec![r(X, &[1]), r(Y, &[])]),
        ]
    };
    found(Shape::Lists, txns(), Phenomenon::ReadSkew);
    found(Shape::Registers, txns(), Phenomenon::ReadSkew);
}

#[test]
fn reads_under_locks_count_when_the_locks_were_kept() {
    let under_locks = |fate| {
        let locked =
            |key, seen: &[u64], at| [Op::Lock { key, since: at }, Op::Read { key, seen: seen.to_vec(), at }];
        let ops = [locked(X, &[], 2), locked(Y, &[1], 9)].concat();
        let other = txn(4, 8, vec![r(X, &[]), w(X, &[1]), r(Y, &[]), w(Y, &[1])]);
        history(vec![Txn { fate, ..txn(1, 10, ops) }, other])
    };
    let judge = |fate| cycles::check(&under_locks(fate), Shape::Registers, Level::SnapshotIsolation);
    assert_eq!(judge(Fate::Unknown), Ok(()), "its first lock may have expired in between");
    refused(judge(Fate::Committed(10)), "did not see");
}

#[test]
fn a_long_fork_is_found() {
    // Two writes that do not meet, and two readers that saw them in different orders.
    let txns = || {
        vec![
            txn(1, 2, vec![r(X, &[]), w(X, &[1])]),
            txn(1, 2, vec![r(Y, &[]), w(Y, &[2])]),
            txn(3, 4, vec![r(X, &[1]), r(Y, &[])]),
            txn(3, 4, vec![r(X, &[]), r(Y, &[2])]),
        ]
    };
    found(Shape::Lists, txns(), Phenomenon::LongFork);
    found(Shape::Registers, txns(), Phenomenon::LongFork);
}

#[test]
fn g2_write_skew_is_found_only_when_asked_for() {
    let txns = || {
        vec![
            txn(1, 3, vec![r(X, &[]), r(Y, &[]), w(X, &[1])]),
            txn(2, 4, vec![r(X, &[]), r(Y, &[]), w(Y, &[2])]),
            txn(5, 6, vec![r(X, &[1]), r(Y, &[2])]),
        ]
    };
    for shape in [Shape::Lists, Shape::Registers] {
        found(shape, txns(), Phenomenon::WriteSkew);
        let history = history(txns());
        assert_eq!(cycles::check(&history, shape, Level::SnapshotIsolation), Ok(()));
        assert_eq!(snapshot::check(&history), Ok(()));
    }
}

#[test]
fn a_lost_update_is_found() {
    let txns = || {
        vec![
            txn(1, 2, vec![r(X, &[]), w(X, &[1])]),
            txn(3, 5, vec![r(X, &[1]), w(X, &[1, 2])]),
            txn(4, 6, vec![r(X, &[1]), w(X, &[1, 3])]),
        ]
    };
    found(Shape::Lists, txns(), Phenomenon::LostUpdate);
    found(Shape::Lists, txns(), Phenomenon::TornOrder);
    found(Shape::Registers, txns(), Phenomenon::LostUpdate);
    refused(snapshot::check(&history(txns())), "while");
}

#[test]
fn a_stale_read_is_refused() {
    let txns = vec![txn(1, 2, vec![w(X, &[1])]), txn(3, 4, vec![r(X, &[])])];
    refused(snapshot::check(&history(txns)), "the version to see is [1]");
}

#[test]
fn a_read_of_the_future_is_refused() {
    let txns = vec![txn(2, 4, vec![w(X, &[1])]), txn(3, 3, vec![r(X, &[1])])];
    refused(snapshot::check(&history(txns)), "the version to see is []");
}

#[test]
fn a_read_that_forgets_the_own_write_is_refused() {
    let txns = vec![txn(1, 2, vec![w(X, &[1]), r(X, &[])])];
    refused(snapshot::check(&history(txns)), "its own");
}

#[test]
fn a_bad_read_of_a_failed_transaction_is_refused_too() {
    let txns = vec![txn(1, 2, vec![w(X, &[1])]), failed(3, vec![r(X, &[])])];
    refused(snapshot::check(&history(txns)), "the version to see is [1]");
}

#[test]
fn two_commits_of_a_key_by_overlapping_transactions_are_refused() {
    let txns = vec![txn(1, 3, vec![w(X, &[1])]), txn(2, 4, vec![w(X, &[2])])];
    refused(snapshot::check(&history(txns)), "while");
    let alike = vec![txn(1, 5, vec![w(X, &[1])]), txn(2, 5, vec![w(X, &[2])])];
    refused(snapshot::check(&history(alike)), "both wrote key");
}

#[test]
fn a_lock_keeps_a_key_from_its_own_timestamp_on() {
    let locked = |since| {
        let lock = Op::Lock { key: X, since };
        let read = Op::Read { key: X, seen: vec![1], at: since };
        let write = Op::Write { key: X, value: vec![2], since };
        history(vec![txn(2, 4, vec![w(X, &[1])]), txn(3, 8, vec![lock, read, write])])
    };
    assert_eq!(snapshot::check(&locked(5)), Ok(()));
    refused(snapshot::check(&locked(3)), "the version to see is []");
    // Who failed gave its locks back: another one may commit below the timestamp they were got at.
    let mut given_back = locked(5);
    given_back[1].fate = Fate::Aborted;
    let between = |value: &[u64]| txn(4, 5, vec![r(X, value), w(X, &[7])]);
    let before: Vec<Txn> = given_back.iter().cloned().chain(history(vec![between(&[1])])).collect();
    assert_eq!(snapshot::check(&before), Ok(()));
    given_back[1].ops[1] = Op::Read { key: X, seen: vec![9], at: 5 };
    refused(snapshot::check(&given_back), "the version to see is [1]");
    let only_lock = txn(1, 6, vec![Op::Lock { key: Z, since: 1 }]);
    refused(snapshot::check(&history(vec![only_lock, txn(2, 4, vec![w(Z, &[1])])])), "while");
}

#[test]
fn timestamps_that_do_not_rise_are_refused() {
    refused(snapshot::check(&history(vec![txn(5, 5, vec![w(X, &[1])])])), "not after its start");
    refused(snapshot::check(&history(vec![txn(5, 5, vec![]), txn(5, 5, vec![])])), "given twice");
    let late = Txn { began: 10, ended: Some(11), ..txn(4, 4, vec![]) };
    refused(snapshot::check(&history(vec![txn(1, 6, vec![w(X, &[1])]), late.clone()])), "was known");
    // Nobody knew of the commit yet.
    let unknown = Txn { ended: None, ..txn(1, 6, vec![w(X, &[1])]) };
    assert_eq!(snapshot::check(&history(vec![unknown, late])), Ok(()));
}

#[test]
fn records_settle_what_nobody_knew() {
    let unknown = |start_ts| Txn { fate: Fate::Unknown, ..txn(start_ts, 0, vec![w(X, &[1])]) };
    let mut txns = vec![unknown(1), unknown(5)];
    assert_eq!(settle(&mut txns, &[Record { key: X, start_ts: 5, commit_ts: 9 }]), Ok(()));
    assert_eq!(txns.iter().map(|t| t.fate).collect::<Vec<_>>(), [Fate::Aborted, Fate::Committed(9)]);
    refused(snapshot::check(&[unknown(1)]), "not settled");
}

#[test]
fn records_that_contradict_the_history_are_refused() {
    let both = || txn(1, 3, vec![w(X, &[1]), w(Y, &[1])]);
    let record = |key, commit_ts| Record { key, start_ts: 1, commit_ts };
    let judge = |txn: Txn, records: &[Record]| settle(&mut [txn], records);
    assert_eq!(judge(both(), &[record(X, 3), record(Y, 3)]), Ok(()));
    refused(judge(both(), &[record(X, 3)]), "but not key 2");
    refused(judge(both(), &[record(X, 3), record(Y, 4)]), "two timestamps");
    refused(judge(both(), &[record(X, 4), record(Y, 4)]), "was told 3");
    refused(judge(both(), &[]), "nothing is stored");
    refused(judge(both(), &[record(X, 3), record(Y, 3), record(Z, 3)]), "never wrote");
    refused(judge(failed(1, vec![w(X, &[1])]), &[record(X, 3)]), "was told that it failed");
    refused(judge(both(), &[Record { key: X, start_ts: 2, commit_ts: 3 }]), "nothing is stored");
    let other = [record(X, 3), record(Y, 3), Record { key: X, start_ts: 2, commit_ts: 3 }];
    refused(judge(both(), &other), "no transaction");
}

#[test]
fn a_bank_that_loses_money_is_refused() {
    let fill = txn(1, 2, vec![w(0, &[50]), w(1, &[50])]);
    let good = vec![fill.clone(), txn(3, 3, vec![r(0, &[50]), r(1, &[50])])];
    let good = history(good);
    assert_eq!((bank::check(&good, 2, 100), bank::snapshots(&good, 2)), (Ok(()), 1));
    let torn = history(vec![fill, txn(3, 3, vec![r(0, &[40]), r(1, &[50])])]);
    refused(bank::check(&torn, 2, 100), "a sum of 90");
}

#[test]
fn write_skew_is_counted_and_refused_where_keys_are_locked() {
    let txns = history(vec![
        txn(1, 2, vec![w(X, &[1]), w(Y, &[1])]),
        txn(3, 5, vec![r(X, &[1]), r(Y, &[1]), w(X, &[0])]),
        txn(4, 6, vec![r(X, &[1]), r(Y, &[1]), w(Y, &[0])]),
        txn(7, 8, vec![w(X, &[1])]),
        txn(9, 10, vec![w(X, &[0])]),
    ]);
    assert_eq!(skew::count(&txns, (X, Y)), 2);
    refused(skew::check_locked(&txns, (X, Y)), "2 times");
    assert_eq!(skew::check_locked(&txns[..2], (X, Y)), Ok(()));
}

/// How many valid histories of each kind are looked at.
const HISTORIES: u64 = 2_000;

fn settled(model: Model) -> Vec<Txn> {
    let Model { mut history, records, .. } = model;
    assert_eq!(settle(&mut history, &records), Ok(()));
    history
}

#[test]
fn valid_histories_pass() {
    let mut skews = 0;
    for seed in 0..HISTORIES {
        let (shape, model) = match seed % 2 {
            0 => (Shape::Lists, model::of_numbers(seed, true)),
            _ => (Shape::Registers, model::of_numbers(seed, false)),
        };
        let judge = |history: &[Txn]| cycles::check(history, shape, Level::SnapshotIsolation);
        assert_eq!(judge(&model.history), Ok(()), "seed {seed}");
        let history = settled(model);
        assert_eq!(judge(&history), Ok(()), "seed {seed}");
        assert_eq!(snapshot::check(&history), Ok(()), "seed {seed}");
        skews += cycles::find(&history, shape).len();
    }
    assert!(skews > 0, "the model never shows write skew: it is no snapshot isolation");
}

#[test]
fn valid_banks_pass() {
    for seed in 0..HISTORIES / 4 {
        let accounts = 2 + seed % 4;
        let history = settled(model::of_bank(seed, accounts));
        assert_eq!(bank::check(&history, accounts, 100 * accounts), Ok(()), "seed {seed}");
        assert_eq!(snapshot::check(&history), Ok(()), "seed {seed}");
        assert!(bank::snapshots(&history, accounts) > 0);
    }
}

/// One read of the history, changed to another value that the key had at some time.
fn misread(history: &mut [Txn], rng: &mut Rng) -> bool {
    let reads = |t: &Txn| (0..t.ops.len()).filter(|i| matches!(t.ops[*i], Op::Read { .. })).collect();
    let at = rng.index(history.len());
    let places: Vec<usize> = reads(&history[at]);
    if places.is_empty() {
        return false;
    }
    let place = places[rng.index(places.len())];
    let Op::Read { key, at: ts, .. } = history[at].ops[place] else { return false };
    if ts > history[at].start_ts && history[at].commit_ts().is_none() {
        // It gave the lock back: an older version would be as good.
        return false;
    }
    let committed = history.iter().filter(|t| t.commit_ts().is_some());
    let mut values: Vec<Value> = committed.filter_map(|t| Some(t.writes().get(&key)?.0.clone())).collect();
    values.push(Value::new());
    let other = values[rng.index(values.len())].clone();
    let Op::Read { seen, .. } = &mut history[at].ops[place] else { return false };
    let changed = *seen != other;
    *seen = other;
    changed
}

#[test]
fn one_wrong_read_is_always_noticed() {
    let mut rng = Rng::new(11, 0);
    let (mut planted, mut by_cycles) = (0, 0);
    for seed in 0..HISTORIES / 4 {
        let mut history = settled(model::of_numbers(seed, true));
        if history.is_empty() || !misread(&mut history, &mut rng) {
            continue;
        }
        planted += 1;
        assert!(snapshot::check(&history).is_err(), "seed {seed}: {history:?}");
        by_cycles += u64::from(cycles::check(&history, Shape::Lists, Level::SnapshotIsolation).is_err());
    }
    assert!(planted > 100 && by_cycles > planted / 10, "{by_cycles} of {planted}");
}
