//! Replies that grow too long: cut where the client knows what that means, refused where it does not.

#[path = "txn/world.rs"]
mod world;

use std::sync::Arc;

use bytes::Bytes;
use kvproto::limits::{MAX_REPLY_BYTES, SCAN_CUT_BYTES};
use kvserver::engine::ReadTier;
use kvserver::engine::mem::MemEngine;
use kvserver::txn::commands::{Mutation, MutationOp, PessimisticAction, Prewrite};
use kvserver::txn::error::TxnError;
use kvserver::txn::mvcc::{self, ReadRules, Reader, Scanned};
use kvserver::txn::pairs::LongReply;
use kvserver::txn::range::Scan;
use world::World;

fn key(n: u64) -> Bytes {
    format!("k{n:04}").into()
}

fn prewrite(start_ts: u64, keys: std::ops::Range<u64>, value: &Bytes) -> Prewrite {
    let primary = key(keys.start);
    let mutation = |n| Mutation {
        op: MutationOp::Put,
        key: key(n),
        value: value.clone(),
        pessimistic: PessimisticAction::Skip,
        expected_for_update_ts: None,
        assertion: None,
    };
    Prewrite {
        mutations: keys.map(mutation).collect(),
        primary,
        start_ts,
        ttl: 1,
        txn_size: 1,
        for_update_ts: 0,
        min_commit_ts: 0,
        max_commit_ts: 0,
        skip_constraint_check: false,
        secondaries: None,
        try_one_pc: true,
    }
}

fn scan(lower: Bytes, reverse: bool) -> Scan {
    Scan { lower, upper: Bytes::new(), reverse, key_only: false, limit: usize::MAX }
}

/// Scans on from where a reply was cut, and gives the keys and the number of replies.
fn scan_in_pieces(world: &World, ts: u64) -> (Vec<Bytes>, usize) {
    let (mut keys, mut replies, mut lower) = (Vec::new(), 0, Bytes::new());
    loop {
        let mut out = Scanned::default();
        let (scan, rules) = (scan(lower.clone(), false), ReadRules::at(ts));
        let cut = mvcc::scan(&world.at(), ReadTier::All, &scan, &rules, LongReply::Cut, &mut out).unwrap();
        replies += 1;
        let mut bytes = 0;
        for entry in out {
            let key = match entry {
                Ok((key, value)) => {
                    bytes += key.len() + value.len();
                    key
                }
                Err(info) => {
                    bytes += info.lock.encode().len();
                    info.key
                }
            };
            lower = [&key[..], b"\0"].concat().into();
            keys.push(key);
        }
        assert!(bytes < MAX_REPLY_BYTES, "a reply of {bytes} bytes");
        if !cut {
            return (keys, replies);
        }
        assert!(bytes >= SCAN_CUT_BYTES, "cut at {bytes} bytes: a client would take it for the end");
    }
}

#[test]
fn a_client_that_knows_gets_short_replies_and_misses_nothing() {
    let world = World::new(Arc::new(MemEngine::new()));
    world.run(&prewrite(10, 0..100, &Bytes::from(vec![b'v'; 200 << 10]))).unwrap();
    let expected: Vec<Bytes> = (0..100).map(key).collect();
    let (keys, replies) = scan_in_pieces(&world, 20);
    assert_eq!(keys, expected);
    assert!((5..=20).contains(&replies), "{replies} replies for 20 MB");
}

#[test]
fn locks_count_as_well() {
    let world = World::new(Arc::new(MemEngine::new()));
    let long = Bytes::from(vec![b's'; 200 << 10]);
    for n in 0..40 {
        // A primary names the other keys.
        let secondaries = Some(vec![long.clone()]);
        let short = prewrite(10 + n, n..n + 1, &Bytes::from_static(b"short"));
        world.run(&Prewrite { secondaries, try_one_pc: false, ..short }).unwrap();
    }
    let (keys, replies) = scan_in_pieces(&world, 100);
    assert_eq!(keys.len(), 40);
    assert!((2..=8).contains(&replies), "{replies} replies for 8 MB");
}

#[test]
fn a_reply_beyond_reason_is_refused() {
    let world = World::new(Arc::new(MemEngine::new()));
    world.run(&prewrite(10, 0..17, &Bytes::from(vec![b'v'; 4 << 20]))).unwrap();
    let rules = ReadRules::at(20);
    for reverse in [false, true] {
        let mut out = Scanned::default();
        let scan = scan(Bytes::new(), reverse);
        let refused = mvcc::scan(&world.at(), ReadTier::All, &scan, &rules, LongReply::Grow, &mut out);
        assert!(matches!(refused, Err(TxnError::ReplyTooLarge { .. })), "{refused:?}");
    }
    let keys: Vec<Bytes> = (0..17).map(key).collect();
    let at = world.at();
    let mut reader = Reader::new(&at.snapshot, ReadTier::All);
    let refused = mvcc::batch_get(&mut reader, &keys, &rules);
    assert!(matches!(refused, Err(TxnError::ReplyTooLarge { .. })));
    assert_eq!(mvcc::batch_get(&mut reader, &keys[2..], &rules).map(|found| found.len()).ok(), Some(15));
}
