//! Transactional requests that no client sends: malformed, too large, for keys that are not here, with timestamps that
//! nobody handed out. None of them leaves a lock behind.

use bytes::Bytes;
use integration::cluster::by_hand::ByHand;
use kvproto::kvrpcpb::{self as pb, ApiVersion, Op};
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;

use super::Victim;

const MIB: usize = 1 << 20;
/// An hour of the oracle's time.
const HOUR: u64 = 3_600_000 << kvproto::ts::LOGICAL_BITS;

fn key(user: &str) -> Bytes {
    [b"x\0\0\0", user.as_bytes()].concat().into()
}

fn put(key: Bytes, value: impl Into<Bytes>) -> pb::Mutation {
    pb::Mutation { key, value: value.into(), ..Default::default() }
}

/// A store that serves transactions, and timestamps for them.
struct Bank {
    victim: Victim,
    by_hand: ByHand,
}

impl Bank {
    async fn start() -> Bank {
        let victim = Victim::start().await;
        let by_hand =
            ByHand::connect(&victim.cluster.endpoint(), ApiVersion::V2).await.expect("a connection");
        let mut bank = Bank { victim, by_hand };
        let ts = bank.ts().await;
        let stays =
            bank.prewrite(ts, |r| (r.mutations, r.try_one_pc) = (vec![put(key("stays"), "v")], true)).await;
        assert_eq!((stays.region_error, stays.errors), (None, vec![]));
        bank
    }

    async fn ts(&self) -> u64 {
        self.by_hand.timestamp().await.expect("a timestamp")
    }

    async fn context(&self) -> pb::Context {
        self.victim.regions.of(&key("k")).await.expect("a region").context()
    }

    /// A prewrite of one key that would be right if it were not changed.
    async fn request(&self, start_version: u64) -> pb::PrewriteRequest {
        pb::PrewriteRequest {
            context: Some(self.context().await),
            mutations: vec![put(key("k"), "v")],
            primary_lock: key("k"),
            start_version,
            lock_ttl: 3_000,
            ..Default::default()
        }
    }

    async fn prewrite(
        &mut self,
        start_version: u64,
        change: impl FnOnce(&mut pb::PrewriteRequest),
    ) -> pb::PrewriteResponse {
        let mut request = self.request(start_version).await;
        change(&mut request);
        self.victim.store.kv_prewrite(request).await.expect("an answer").into_inner()
    }

    /// What the application is told of a prewrite that is refused.
    async fn refusal(&mut self, change: impl FnOnce(&mut pb::PrewriteRequest)) -> String {
        let ts = self.ts().await;
        let reply = self.prewrite(ts, change).await;
        assert_eq!((reply.region_error, reply.min_commit_ts, reply.one_pc_commit_ts), (None, 0, 0));
        reply.errors.into_iter().next().expect("an error").abort
    }

    async fn get(&mut self, version: u64, change: impl FnOnce(&mut pb::GetRequest)) -> pb::GetResponse {
        let context = Some(self.context().await);
        let mut request = pb::GetRequest { context, key: key("stays"), version, ..Default::default() };
        change(&mut request);
        let alone = self.victim.store.kv_get(request.clone()).await.expect("an answer").into_inner();
        let batched = self.victim.stream(vec![Cmd::Get(request)]).await;
        let [(1, Some(Answer::Get(batched)))] = &batched[..] else { panic!("{batched:?}") };
        let said = |reply: &pb::GetResponse| {
            let error = reply.error.as_ref().map(|error| error.abort.is_empty());
            (reply.region_error.clone(), error, reply.value.clone(), reply.not_found)
        };
        assert_eq!(said(batched), said(&alone), "both ways give the same answer");
        alone
    }

    /// No lock is left, the data is there, and transactions go on at the time that it is.
    async fn assert_well(&mut self) {
        let now = self.ts().await;
        let context = Some(self.context().await);
        let scan = pb::ScanLockRequest { context, max_version: now, ..Default::default() };
        let locks = self.victim.store.kv_scan_lock(scan).await.expect("an answer").into_inner();
        assert_eq!((locks.region_error, locks.error, locks.locks), (None, None, vec![]));
        assert_eq!(self.get(now, |_| {}).await.value, "v");
        let start = self.ts().await;
        let written = self.prewrite(start, |r| r.try_one_pc = true).await;
        assert_eq!((written.region_error, written.errors), (None, vec![]));
        assert!(written.one_pc_commit_ts > start && written.one_pc_commit_ts < start + HOUR / 2);
        self.victim.assert_well().await;
    }
}

#[tokio::test]
async fn malformed_prewrites_are_refused_with_a_reason() {
    let mut bank = Bank::start().await;
    type Change = fn(&mut pb::PrewriteRequest);
    let cases: [(Change, &str); 14] = [
        (|r| r.mutations.clear(), "no keys"),
        (|r| r.mutations = vec![put(key("a"), "1"), put(key("a"), "2")], "twice"),
        (|r| r.mutations[0].key = Bytes::new(), "empty key"),
        (|r| r.primary_lock = Bytes::new(), "primary"),
        (|r| r.mutations[0].op = 99, "99 is not known"),
        (|r| r.mutations[0].op = Op::Rollback as i32, "no place"),
        (|r| r.mutations[0].op = Op::SharedLock as i32, "no place"),
        (|r| r.start_version = 0, "start timestamp"),
        (|r| r.start_version = u64::MAX, "start timestamp"),
        (|r| r.for_update_ts = r.start_version - 1, "before the start"),
        (|r| r.pessimistic_actions = vec![1, 0], "2 pessimistic actions for 1"),
        (|r| r.pessimistic_actions = vec![-1], "-1 is not known"),
        (|r| r.txn_file_chunks = vec![1], "files"),
        (
            |r| {
                r.for_update_ts_constraints =
                    vec![pb::prewrite_request::ForUpdateTsConstraint { index: 7, ..Default::default() }]
            },
            "mutation 7",
        ),
    ];
    for (change, expected) in cases {
        let text = bank.refusal(change).await;
        assert!(text.contains(expected), "{text:?} does not say {expected:?}");
    }
    bank.assert_well().await;
}

#[tokio::test]
async fn keys_that_are_too_long_or_not_here_are_refused_together_with_all_others() {
    let mut bank = Bank::start().await;
    let with = |bad: Bytes| move |r: &mut pb::PrewriteRequest| r.mutations.push(put(bad, "v"));
    for (bad, expected) in [
        (key(&"k".repeat((8 << 10) + 1)), "limit"),
        (key(&"k".repeat(MIB)), "limit"),
        (Bytes::from_static(b"r\0\0\0raw"), "keyspace"),
        (Bytes::from_static(b"plain"), "keyspace"),
    ] {
        let text = bank.refusal(with(bad)).await;
        assert!(text.contains(expected), "{text:?} does not say {expected:?}");
    }
    let v1 = |r: &mut pb::PrewriteRequest, api: i32| r.context.as_mut().expect("a context").api_version = api;
    assert!(bank.refusal(|r| v1(r, ApiVersion::V1 as i32)).await.contains("keyspace DEFAULT"));
    for api in [ApiVersion::V1ttl as i32, ApiVersion::V3 as i32, 77] {
        assert!(bank.refusal(|r| v1(r, api)).await.contains("no transactions"));
    }
    let ts = bank.ts().await;
    let elsewhere = bank.prewrite(ts, with(Bytes::from_static(b"x\0\0\x05key"))).await;
    let told = elsewhere.region_error.expect("refused").key_not_in_region.expect("where the region is");
    assert_eq!((&told.key[..], elsewhere.errors.len()), (&b"x\0\0\x05key"[..], 0));
    let longest = key(&"k".repeat(8 << 10));
    let start = bank.ts().await;
    let fits = bank.prewrite(start, |r| (r.mutations, r.try_one_pc) = (vec![put(longest, "v")], true)).await;
    assert_eq!((fits.region_error, fits.errors), (None, vec![]));
    bank.assert_well().await;
}

#[tokio::test]
async fn transactions_that_are_too_large_are_refused_as_a_whole() {
    let mut bank = Bank::start().await;
    let ts = bank.ts().await;
    let one = bank.prewrite(ts, |r| r.mutations[0].value = vec![b'v'; 9 * MIB].into()).await;
    let told = one.region_error.expect("refused").raft_entry_too_large.expect("how large it may be");
    assert!(told.entry_size as usize > 9 * MIB);
    let value = Bytes::from(vec![b'v'; MIB]);
    let many = (0..100).map(|n| put(key(&format!("large/{n}")), value.clone())).collect();
    let many = bank.prewrite(ts, |r| r.mutations = many).await;
    assert!(many.region_error.expect("refused").raft_entry_too_large.is_some());
    let keys = (0..200_000).map(|n| put(key(&format!("many/{n:06}")), vec![b'v'; 64])).collect();
    let keys = bank.prewrite(ts, |r| r.mutations = keys).await;
    assert!(keys.region_error.expect("refused").raft_entry_too_large.is_some());
    bank.assert_well().await;
}

#[tokio::test]
async fn timestamps_from_the_future_are_refused_and_push_nobody() {
    let mut bank = Bank::start().await;
    let now = bank.ts().await;
    let future = now + 2 * HOUR;
    let says = |error: Option<pb::KeyError>| {
        let text = error.expect("refused").abort;
        assert!(text.contains("future"), "{text}");
    };
    says(bank.get(future, |_| {}).await.error);
    says(bank.prewrite(future, |_| {}).await.errors.into_iter().next());
    says(bank.prewrite(now, |r| r.for_update_ts = future).await.errors.into_iter().next());
    says(bank.prewrite(now, |r| r.min_commit_ts = future).await.errors.into_iter().next());
    let context = Some(bank.context().await);
    let scan = pb::ScanRequest {
        context: context.clone(),
        start_key: key(""),
        version: future,
        limit: 1,
        ..Default::default()
    };
    says(bank.victim.store.kv_scan(scan).await.expect("an answer").into_inner().error);
    let lock_scan =
        pb::ScanLockRequest { context: context.clone(), max_version: future, ..Default::default() };
    says(bank.victim.store.kv_scan_lock(lock_scan).await.expect("an answer").into_inner().error);
    let keys = vec![key("k")];
    let commit = pb::CommitRequest {
        context: context.clone(),
        start_version: now,
        keys,
        commit_version: future,
        ..Default::default()
    };
    says(bank.victim.store.kv_commit(commit).await.expect("an answer").into_inner().error);
    let check = pb::CheckTxnStatusRequest {
        context: context.clone(),
        primary_key: key("k"),
        lock_ts: now,
        caller_start_ts: future,
        current_ts: now,
        rollback_if_not_exist: true,
        ..Default::default()
    };
    says(bank.victim.store.kv_check_txn_status(check).await.expect("an answer").into_inner().error);
    let resolve = pb::ResolveLockRequest {
        context,
        start_version: now,
        commit_version: future,
        keys: vec![key("k")],
        ..Default::default()
    };
    says(bank.victim.store.kv_resolve_lock(resolve).await.expect("an answer").into_inner().error);
    bank.assert_well().await;
}

#[tokio::test]
async fn timestamps_that_are_none_are_refused() {
    let mut bank = Bank::start().await;
    let now = bank.ts().await;
    let abort = |error: Option<pb::KeyError>| error.expect("refused").abort;
    assert!(abort(bank.get(0, |_| {}).await.error).contains("0 is no timestamp"));
    assert_eq!(bank.get(u64::MAX, |_| {}).await.value, "v", "the end of time is the latest data");
    let context = Some(bank.context().await);
    for (start_version, commit_version) in [(now, now), (now, now - 1), (now, 0), (0, now), (now, u64::MAX)] {
        let (context, keys) = (context.clone(), vec![key("k")]);
        let commit = pb::CommitRequest { context, start_version, keys, commit_version, ..Default::default() };
        let refused = bank.victim.store.kv_commit(commit).await.expect("an answer").into_inner();
        assert!(!abort(refused.error).is_empty());
    }
    for (start_version, commit_version) in [(0, 0), (u64::MAX, 0), (now, now - 1)] {
        let context = context.clone();
        let resolve = pb::ResolveLockRequest { context, start_version, commit_version, ..Default::default() };
        let refused = bank.victim.store.kv_resolve_lock(resolve).await.expect("an answer").into_inner();
        assert!(!abort(refused.error).is_empty());
    }
    let (context, keys) = (context.clone(), vec![key("k")]);
    let rollback = pb::BatchRollbackRequest { context, start_version: 0, keys, ..Default::default() };
    let refused = bank.victim.store.kv_batch_rollback(rollback).await.expect("an answer").into_inner();
    assert!(!abort(refused.error).is_empty());
    bank.assert_well().await;
}

#[tokio::test]
async fn times_to_live_and_waits_of_the_maximum_are_taken_at_their_word() {
    let mut bank = Bank::start().await;
    let start = bank.ts().await;
    let locked = bank.prewrite(start, |r| r.lock_ttl = u64::MAX).await;
    assert_eq!((locked.region_error, locked.errors), (None, vec![]));
    let now = bank.ts().await;
    let context = Some(bank.context().await);
    let mut check = pb::CheckTxnStatusRequest {
        context: context.clone(),
        primary_key: key("k"),
        lock_ts: start,
        caller_start_ts: now,
        current_ts: now,
        ..Default::default()
    };
    let alive = bank.victim.store.kv_check_txn_status(check.clone()).await.expect("an answer").into_inner();
    assert_eq!((alive.lock_ttl, alive.error), (u64::MAX, None));
    let claim = pb::PessimisticLockRequest {
        context,
        mutations: vec![pb::Mutation { op: Op::PessimisticLock as i32, key: key("k"), ..Default::default() }],
        primary_lock: key("k"),
        start_version: now,
        for_update_ts: now,
        lock_ttl: u64::MAX,
        wait_timeout: i64::MAX,
        ..Default::default()
    };
    let mut store = bank.victim.store.clone();
    let waiting = tokio::spawn(async move { store.kv_pessimistic_lock(claim).await });
    check.current_ts = u64::MAX;
    let dead = bank.victim.store.kv_check_txn_status(check).await.expect("an answer").into_inner();
    assert_eq!((dead.action, dead.error), (pb::Action::TtlExpireRollback as i32, None));
    let claimed = waiting.await.expect("it ends").expect("an answer").into_inner();
    assert_eq!((claimed.region_error, claimed.errors), (None, vec![]), "the lock was released");
    let give_back = pb::PessimisticRollbackRequest {
        context: Some(bank.context().await),
        start_version: now,
        for_update_ts: u64::MAX,
        keys: Vec::new(),
    };
    let given = bank.victim.store.kv_pessimistic_rollback(give_back).await.expect("an answer").into_inner();
    assert_eq!((given.region_error, given.errors), (None, vec![]));
    bank.assert_well().await;
}

#[tokio::test]
async fn reads_of_a_kind_that_is_not_served_say_so() {
    let mut bank = Bank::start().await;
    let now = bank.ts().await;
    let context = |r: &mut pb::GetRequest, change: fn(&mut pb::Context)| {
        change(r.context.as_mut().expect("a context"));
    };
    let stale = bank.get(now, |r| context(r, |c| c.stale_read = true)).await;
    assert!(stale.region_error.expect("refused").data_is_not_ready.is_some());
    for level in [pb::IsolationLevel::RcCheckTs as i32, 55] {
        let context = pb::Context { isolation_level: level, ..bank.context().await };
        let refused = bank.get(now, |r| r.context = Some(context)).await;
        assert!(refused.error.expect("refused").abort.contains("isolation level"));
    }
    let mut scan = pb::ScanRequest {
        context: Some(bank.context().await),
        start_key: key(""),
        end_key: key("z"),
        limit: u32::MAX,
        version: now,
        ..Default::default()
    };
    let count = async |bank: &mut Bank, scan: &pb::ScanRequest| {
        let reply = bank.victim.store.kv_scan(scan.clone()).await.expect("an answer").into_inner();
        assert_eq!(reply.region_error, None);
        (reply.pairs.len(), reply.error.map(|error| error.abort))
    };
    assert_eq!(count(&mut bank, &scan).await, (1, None));
    scan.limit = 0;
    assert_eq!(count(&mut bank, &scan).await, (0, None));
    scan.limit = 5;
    let ends = (scan.start_key.clone(), scan.end_key.clone());
    (scan.end_key, scan.start_key) = ends;
    assert_eq!(count(&mut bank, &scan).await, (0, None), "a range with its ends swapped is empty");
    scan.sample_step = 3;
    let (_, refused) = count(&mut bank, &scan).await;
    assert!(refused.expect("refused").contains("sample"));
    bank.assert_well().await;
}
