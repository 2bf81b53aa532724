//! Waits and deadlocks as messages: what stores tell the detector, and what clients are told.

use bytes::Bytes;
use kvproto::deadlock::{DeadlockResponse, WaitForEntry};
use kvproto::kvrpcpb;

use crate::txn::error::{Deadlock, WaitEntry};

/// A hash that names a key in messages where clients compare keys cheaply.
pub fn key_hash(key: &[u8]) -> u64 {
    u64::from(crc32c::crc32c(key))
}

/// An edge of the wait-for graph.
pub fn entry_to_wire(entry: WaitEntry) -> WaitForEntry {
    let WaitEntry { txn, wait_for: wait_for_txn, key } = entry;
    WaitForEntry { txn, wait_for_txn, key_hash: key_hash(&key), key, ..Default::default() }
}

pub fn entry_from_wire(entry: WaitForEntry) -> WaitEntry {
    WaitEntry { txn: entry.txn, wait_for: entry.wait_for_txn, key: entry.key }
}

/// The key that the refused transaction holds and that the last other one of the circle waits for.
fn held_key(deadlock: &Deadlock) -> Bytes {
    let before_last = deadlock.chain.len().checked_sub(2).and_then(|at| deadlock.chain.get(at));
    before_last.map(|entry| entry.key.clone()).unwrap_or_default()
}

/// The detector's answer to the edge that closed a circle.
pub fn deadlock_to_wire(edge: WaitEntry, deadlock: Deadlock) -> DeadlockResponse {
    let deadlock_key = held_key(&deadlock);
    DeadlockResponse {
        entry: Some(entry_to_wire(edge)),
        deadlock_key_hash: key_hash(&deadlock_key),
        wait_chain: deadlock.chain.into_iter().map(entry_to_wire).collect(),
        deadlock_key,
    }
}

/// The edge that closed a circle, and the circle.
pub fn deadlock_from_wire(answer: DeadlockResponse) -> (WaitEntry, Deadlock) {
    let edge = entry_from_wire(answer.entry.unwrap_or_default());
    let chain = answer.wait_chain.into_iter().map(entry_from_wire).collect();
    let deadlock = Deadlock { lock_ts: edge.wait_for, key: edge.key.clone(), chain };
    (edge, deadlock)
}

/// What the client whose transaction is to give way is told.
pub fn deadlock_to_client(deadlock: Deadlock) -> kvrpcpb::Deadlock {
    let deadlock_key = held_key(&deadlock);
    kvrpcpb::Deadlock {
        lock_ts: deadlock.lock_ts,
        lock_key: deadlock.key,
        deadlock_key_hash: key_hash(&deadlock_key),
        wait_chain: deadlock.chain.into_iter().map(entry_to_wire).collect(),
        deadlock_key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadlock_survives_the_wire_and_names_the_key_that_is_held() {
        let entry = |txn, wait_for, key: &'static str| WaitEntry {
            txn,
            wait_for,
            key: Bytes::from_static(key.as_bytes()),
        };
        let edge = entry(3, 1, "c");
        let chain = vec![entry(1, 2, "a"), entry(2, 3, "b"), edge.clone()];
        let deadlock = Deadlock { lock_ts: 1, key: "c".into(), chain };
        let told = deadlock_to_client(deadlock.clone());
        assert_eq!((told.lock_ts, &told.lock_key[..], &told.deadlock_key[..]), (1, &b"c"[..], &b"b"[..]));
        assert_eq!(told.deadlock_key_hash, told.wait_chain[1].key_hash);
        let answer = deadlock_to_wire(edge.clone(), deadlock.clone());
        assert_eq!(deadlock_from_wire(answer), (edge, deadlock));
    }
}
