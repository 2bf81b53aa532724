//! Write skew: of two keys at least one is to stay set, and each transaction that clears one looks at both first.
//!
//! Snapshot isolation lets two such transactions clear both; it does not when they lock what they look at. A
//! history says how often it happened; the caller says where it must not.

use std::collections::BTreeMap;

use super::{Key, Ts, Txn, Verdict, broken};

/// How often both keys of a pair stood cleared (absent or 0) after a commit that cleared one. A pair begins cleared,
/// until something is written to it.
pub fn count(history: &[Txn], pair: (Key, Key)) -> u64 {
    let mut writes: BTreeMap<Ts, Vec<(Key, u64)>> = BTreeMap::new();
    for txn in history {
        let Some(commit_ts) = txn.commit_ts() else { continue };
        for (key, (value, _)) in txn.writes() {
            if key == pair.0 || key == pair.1 {
                let number = value.first().copied().unwrap_or(0);
                writes.entry(commit_ts).or_default().push((key, number));
            }
        }
    }
    let (mut state, mut skews) = ((0, 0), 0);
    for (_, written) in writes {
        for (key, number) in &written {
            let place = if *key == pair.0 { &mut state.0 } else { &mut state.1 };
            *place = *number;
        }
        let cleared = written.iter().any(|(_, number)| *number == 0);
        skews += u64::from(cleared && state == (0, 0));
    }
    skews
}

/// Demands that it never happened to a pair whose transactions lock what they look at.
pub fn check_locked(history: &[Txn], pair: (Key, Key)) -> Verdict {
    match count(history, pair) {
        0 => Ok(()),
        n => broken("skew", format!("keys {pair:?} were both cleared {n} times, in spite of the locks")),
    }
}
