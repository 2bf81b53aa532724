//! The bank: transfers between accounts change no sum, so every snapshot of all accounts has the same one.

use std::collections::BTreeMap;

use super::{Key, Op, Ts, Txn, Verdict, broken};

/// Checks that every set of reads at one timestamp that covers all accounts `0..accounts` sums up to `total`. An
/// account without a value is empty. Reads of what a transaction wrote itself are left out.
pub fn check(history: &[Txn], accounts: u64, total: u64) -> Verdict {
    for txn in history {
        for (at, sum) in sums(txn, accounts) {
            if sum != total {
                let what = format!("{} saw a sum of {sum} instead of {total} at {at}", txn.name());
                return broken("bank", what);
            }
        }
    }
    Ok(())
}

/// How many reads of all accounts there are: a history without any says nothing.
pub fn snapshots(history: &[Txn], accounts: u64) -> usize {
    history.iter().map(|txn| sums(txn, accounts).len()).sum()
}

fn sums(txn: &Txn, accounts: u64) -> Vec<(Ts, u64)> {
    let mut written: Vec<Key> = Vec::new();
    let mut seen: BTreeMap<Ts, BTreeMap<Key, u64>> = BTreeMap::new();
    for op in &txn.ops {
        match op {
            Op::Write { key, .. } => written.push(*key),
            Op::Lock { .. } => {}
            Op::Read { key, .. } if written.contains(key) || *key >= accounts => {}
            Op::Read { key, seen: value, at } => {
                let balance = value.first().copied().unwrap_or(0);
                seen.entry(*at).or_default().insert(*key, balance);
            }
        }
    }
    let whole = seen.into_iter().filter(|(_, read)| read.len() as u64 == accounts);
    whole.map(|(at, read)| (at, read.values().sum())).collect()
}
