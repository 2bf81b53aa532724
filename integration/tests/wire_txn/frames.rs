//! `BatchCommands` carries every transactional request, and each is answered as the unary call would be, in whatever
//! frame it comes. The frames are made by hand; the other clients of the field send nearly everything this way.

use bytes::Bytes;
use integration::cluster::by_hand::{ByHand, Draft};
use kvproto::kvrpcpb::{self as pb, Action, Context};
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;

use super::*;

/// Both APIs, all keys in one region.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_carry_every_transactional_request() {
    let cluster = cluster();
    for api in BOTH {
        let hand = World::of(&cluster, api).await.hand;
        commits_and_reads(&hand).await;
        pessimistic_locks(&hand).await;
        ends_of_transactions(&hand).await;
        secondaries(&hand).await;
        mixed_and_unknown(&hand).await;
    }
}

/// Sends one frame to the region of these tests' keys.
async fn frame(hand: &ByHand, commands: impl Fn(Option<Context>) -> Vec<Cmd>) -> Vec<Answer> {
    let answers = hand.ask_all(&hand.key("frame/"), |context| commands(Some(context))).await;
    answers.expect("answers")
}

fn get(hand: &ByHand, context: Option<Context>, name: &str, version: u64) -> Cmd {
    Cmd::Get(pb::GetRequest { context, key: hand.key(name), version, ..Default::default() })
}

fn prewrite(hand: &ByHand, context: Option<Context>, draft: &Draft, pairs: &[(&str, &str)]) -> Cmd {
    Cmd::Prewrite(pb::PrewriteRequest { context, ..hand.locking(draft, pairs) })
}

fn scan(hand: &ByHand, context: Option<Context>, version: u64, reverse: bool) -> Cmd {
    let (start_key, end_key) = (hand.key("frame/"), hand.key("frame/~"));
    let (start_key, end_key) = if reverse { (end_key, start_key) } else { (start_key, end_key) };
    Cmd::Scan(pb::ScanRequest {
        context,
        start_key,
        end_key,
        limit: 10,
        version,
        reverse,
        ..Default::default()
    })
}

async fn begin(hand: &ByHand, primary: &str) -> Draft {
    hand.begin(primary).await.expect("a timestamp")
}

async fn timestamp(hand: &ByHand) -> u64 {
    hand.timestamp().await.expect("a timestamp")
}

async fn commits_and_reads(hand: &ByHand) {
    let draft = begin(hand, "frame/a").await;
    let pairs = [("frame/a", "1"), ("frame/b", "2")];
    let answers = frame(hand, |context| vec![prewrite(hand, context, &draft, &pairs)]).await;
    let [Answer::Prewrite(locked)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((&locked.errors[..], locked.min_commit_ts, locked.one_pc_commit_ts), (&[][..], 0, 0));

    locks_are_met(hand, &draft).await;
    commits_twice(hand, &draft).await;
    reads(hand).await;
}

/// A lock is met by everyone who reads after it.
async fn locks_are_met(hand: &ByHand, draft: &Draft) {
    let later = timestamp(hand).await;
    let keys = hand.keys(&["frame/a", "frame/b", "frame/absent"]);
    let answers = frame(hand, |context| {
        let batch = pb::BatchGetRequest {
            context: context.clone(),
            keys: keys.clone(),
            version: later,
            ..Default::default()
        };
        vec![
            get(hand, context.clone(), "frame/a", later),
            Cmd::BatchGet(batch),
            scan(hand, context.clone(), later, false),
            get(hand, context, "frame/a", draft.start_ts - 1),
        ]
    })
    .await;
    let [Answer::Get(met), Answer::BatchGet(batch), Answer::Scan(scanned), Answer::Get(before)] =
        &answers[..]
    else {
        panic!("{answers:?}")
    };
    let lock = met.error.as_ref().and_then(|error| error.locked.as_ref()).expect("a lock");
    assert_eq!((&lock.primary_lock, lock.lock_version), (&hand.key("frame/a"), draft.start_ts));
    assert!(
        batch.pairs.iter().chain(&scanned.pairs).any(|pair| pair.error.is_some()),
        "{batch:?} {scanned:?}"
    );
    assert!(before.not_found && before.error.is_none());
}

/// Twice in one frame is as good as once.
async fn commits_twice(hand: &ByHand, draft: &Draft) {
    let commit_version = timestamp(hand).await;
    let commit = pb::CommitRequest {
        start_version: draft.start_ts,
        commit_version,
        keys: hand.keys(&["frame/a", "frame/b"]),
        ..Default::default()
    };
    let answers = frame(hand, |context| {
        vec![
            Cmd::Commit(pb::CommitRequest { context: context.clone(), ..commit.clone() }),
            Cmd::Commit(pb::CommitRequest { context, ..commit.clone() }),
        ]
    })
    .await;
    for answer in &answers {
        let Answer::Commit(done) = answer else { panic!("{answer:?}") };
        assert_eq!((&done.error, done.commit_version), (&None, commit_version));
    }
}

async fn reads(hand: &ByHand) {
    let keys = hand.keys(&["frame/a", "frame/b", "frame/absent"]);
    let now = timestamp(hand).await;
    let answers = frame(hand, |context| {
        let batch = pb::BatchGetRequest {
            context: context.clone(),
            keys: keys.clone(),
            version: now,
            ..Default::default()
        };
        vec![
            get(hand, context.clone(), "frame/a", now),
            get(hand, context.clone(), "frame/b", u64::MAX),
            get(hand, context.clone(), "frame/absent", now),
            Cmd::BatchGet(batch),
            scan(hand, context.clone(), now, false),
            scan(hand, context, now, true),
        ]
    })
    .await;
    let [
        Answer::Get(a),
        Answer::Get(b),
        Answer::Get(absent),
        Answer::BatchGet(batch),
        Answer::Scan(up),
        Answer::Scan(down),
    ] = &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert_eq!((a.value.as_ref(), b.value.as_ref(), absent.not_found), (&b"1"[..], &b"2"[..], true));
    let values = |pairs: &[pb::KvPair]| pairs.iter().map(|pair| pair.value.clone()).collect::<Vec<_>>();
    let both = [Bytes::from("1"), Bytes::from("2")];
    assert_eq!(values(&batch.pairs), both, "absent keys are left out");
    assert_eq!(values(&up.pairs), both);
    assert_eq!(values(&down.pairs), [both[1].clone(), both[0].clone()]);
}

async fn pessimistic_locks(hand: &ByHand) {
    let draft = begin(hand, "frame/a").await;
    let lock = pb::PessimisticLockRequest { return_values: true, ..hand.pessimistic(&draft) };
    let other = hand.pessimistic(&begin(hand, "frame/a").await);
    let answers = frame(hand, |context| {
        vec![Cmd::PessimisticLock(pb::PessimisticLockRequest { context, ..lock.clone() })]
    })
    .await;
    let [Answer::PessimisticLock(taken)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(
        (&taken.errors[..], &taken.values[..], &taken.not_founds[..]),
        (&[][..], &[Bytes::from("1")][..], &[false][..])
    );

    let beat = pb::TxnHeartBeatRequest {
        primary_lock: hand.key("frame/a"),
        start_version: draft.start_ts,
        advise_lock_ttl: 90_000,
        ..Default::default()
    };
    let undo = pb::PessimisticRollbackRequest {
        start_version: draft.start_ts,
        for_update_ts: draft.start_ts,
        keys: hand.keys(&["frame/a"]),
        ..Default::default()
    };
    let answers = frame(hand, |context| {
        vec![
            Cmd::PessimisticLock(pb::PessimisticLockRequest { context: context.clone(), ..other.clone() }),
            Cmd::TxnHeartBeat(pb::TxnHeartBeatRequest { context, ..beat.clone() }),
        ]
    })
    .await;
    let [Answer::PessimisticLock(refused), Answer::TxnHeartBeat(alive)] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert!(refused.errors.iter().any(|error| error.locked.is_some()), "{refused:?}");
    assert_eq!((&alive.error, alive.lock_ttl), (&None, 90_000));

    let undo = |context| Cmd::PessimisticRollback(pb::PessimisticRollbackRequest { context, ..undo.clone() });
    let answers = frame(hand, |context| vec![undo(context)]).await;
    let [Answer::PessimisticRollback(undone)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(undone.errors, []);
    let answers =
        frame(hand, |context| vec![Cmd::TxnHeartBeat(pb::TxnHeartBeatRequest { context, ..beat.clone() })])
            .await;
    let [Answer::TxnHeartBeat(gone)] = &answers[..] else { panic!("{answers:?}") };
    assert!(gone.error.as_ref().is_some_and(|error| error.txn_not_found.is_some()), "{gone:?}");
}

async fn ends_of_transactions(hand: &ByHand) {
    // Found, asked about while it lives, and rolled back.
    let draft = begin(hand, "frame/c").await;
    frame(hand, |context| {
        vec![prewrite(hand, context, &draft, &[("frame/c", "never"), ("frame/d", "never")])]
    })
    .await;
    let now = timestamp(hand).await;
    let check = |context, current_ts| {
        Cmd::CheckTxnStatus(pb::CheckTxnStatusRequest {
            context,
            primary_key: hand.key("frame/c"),
            lock_ts: draft.start_ts,
            caller_start_ts: now,
            current_ts,
            ..Default::default()
        })
    };
    let answers = frame(hand, |context| {
        let (start_key, end_key) = (hand.key("frame/"), hand.key("frame/~"));
        let found =
            pb::ScanLockRequest { context: context.clone(), max_version: now, start_key, end_key, limit: 10 };
        vec![Cmd::ScanLock(found), check(context, now)]
    })
    .await;
    let [Answer::ScanLock(found), Answer::CheckTxnStatus(alive)] = &answers[..] else {
        panic!("{answers:?}")
    };
    let keys: Vec<_> = found.locks.iter().map(|lock| lock.key.clone()).collect();
    assert_eq!(keys, hand.keys(&["frame/c", "frame/d"]));
    assert_eq!((alive.lock_ttl, alive.commit_version), (draft.ttl_ms, 0));
    assert!(alive.lock_info.is_some(), "{alive:?}");

    let answers = frame(hand, |context| vec![check(context, u64::MAX)]).await;
    let [Answer::CheckTxnStatus(dead)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((dead.lock_ttl, dead.commit_version, dead.action()), (0, 0, Action::TtlExpireRollback));
    assert_eq!(dead.lock_info, None);
    let resolve = pb::ResolveLockRequest { start_version: draft.start_ts, ..Default::default() };
    let undo = pb::BatchRollbackRequest {
        start_version: draft.start_ts,
        keys: hand.keys(&["frame/c", "frame/e"]),
        ..Default::default()
    };
    let answers = frame(hand, |context| {
        let resolve = pb::ResolveLockRequest { context: context.clone(), ..resolve.clone() };
        let undo = pb::BatchRollbackRequest { context: context.clone(), ..undo.clone() };
        let key = hand.key("frame/c");
        let cleanup = pb::CleanupRequest { context, key, start_version: draft.start_ts, current_ts: 0 };
        vec![Cmd::ResolveLock(resolve), Cmd::BatchRollback(undo), Cmd::Cleanup(cleanup)]
    })
    .await;
    let [Answer::ResolveLock(resolved), Answer::BatchRollback(undone), Answer::Cleanup(cleaned)] =
        &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert_eq!((&resolved.error, &undone.error, &cleaned.error), (&None, &None, &None));
    assert_eq!(cleaned.commit_version, 0);
    stays_rolled_back(hand, &draft, now).await;
}

/// A transaction that was rolled back cannot come back, not even at the key that only the rollback has named.
async fn stays_rolled_back(hand: &ByHand, draft: &Draft, now: u64) {
    for name in ["frame/c", "frame/e"] {
        let answers = frame(hand, |context| vec![prewrite(hand, context, draft, &[(name, "late")])]).await;
        let [Answer::Prewrite(refused)] = &answers[..] else { panic!("{answers:?}") };
        let conflict = refused.errors.first().and_then(|error| error.conflict.as_ref());
        assert!(conflict.is_some(), "{name}: {refused:?}");
    }
    let answers = frame(hand, |context| {
        let keys = hand.keys(&["frame/c"]);
        let (start_version, commit_version) = (draft.start_ts, now);
        vec![Cmd::Commit(pb::CommitRequest {
            context,
            start_version,
            keys,
            commit_version,
            ..Default::default()
        })]
    })
    .await;
    let [Answer::Commit(refused)] = &answers[..] else { panic!("{answers:?}") };
    assert!(refused.error.is_some(), "{refused:?}");
}

async fn secondaries(hand: &ByHand) {
    let draft = begin(hand, "frame/f").await.with_async_commit(&["frame/g"]);
    let answers =
        frame(hand, |context| vec![prewrite(hand, context, &draft, &[("frame/f", "5"), ("frame/g", "6")])])
            .await;
    let [Answer::Prewrite(locked)] = &answers[..] else { panic!("{answers:?}") };
    assert!(locked.errors.is_empty() && locked.min_commit_ts > draft.start_ts, "{locked:?}");
    let check = |context, names: &[&str]| {
        Cmd::CheckSecondaryLocks(pb::CheckSecondaryLocksRequest {
            context,
            keys: hand.keys(names),
            start_version: draft.start_ts,
        })
    };
    let answers = frame(hand, |context| vec![check(context, &["frame/g"])]).await;
    let [Answer::CheckSecondaryLocks(all)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((&all.error, all.locks.len(), all.commit_ts), (&None, 1, 0));
    assert!(all.locks[0].min_commit_ts > draft.start_ts && all.locks[0].use_async_commit, "{all:?}");
    let answers = frame(hand, |context| {
        let txn_infos =
            vec![pb::TxnInfo { txn: draft.start_ts, status: locked.min_commit_ts, ..Default::default() }];
        vec![Cmd::ResolveLock(pb::ResolveLockRequest { context, txn_infos, ..Default::default() })]
    })
    .await;
    let [Answer::ResolveLock(resolved)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(resolved.error, None);
    let answers = frame(hand, |context| {
        vec![check(context.clone(), &["frame/f", "frame/g"]), get(hand, context, "frame/g", u64::MAX)]
    })
    .await;
    let [Answer::CheckSecondaryLocks(done), Answer::Get(value)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((done.commit_ts, &value.value[..]), (locked.min_commit_ts, &b"6"[..]));

    // In one phase, when all fits one request.
    let draft = begin(hand, "frame/h").await;
    let answers = frame(hand, |context| {
        let request = hand.locking(&draft, &[("frame/h", "7"), ("frame/i", "8")]);
        vec![Cmd::Prewrite(pb::PrewriteRequest { context, try_one_pc: true, ..request })]
    })
    .await;
    let [Answer::Prewrite(done)] = &answers[..] else { panic!("{answers:?}") };
    assert!(done.errors.is_empty() && done.one_pc_commit_ts > draft.start_ts, "{done:?}");
    // A limit that is already over: it is left in two phases.
    let draft = begin(hand, "frame/h").await;
    let answers = frame(hand, |context| {
        let request = hand.locking(&draft, &[("frame/h", "9")]);
        let max_commit_ts = draft.start_ts;
        vec![Cmd::Prewrite(pb::PrewriteRequest { context, try_one_pc: true, max_commit_ts, ..request })]
    })
    .await;
    let [Answer::Prewrite(two_phases)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(
        (&two_phases.errors[..], two_phases.one_pc_commit_ts, two_phases.min_commit_ts),
        (&[][..], 0, 0)
    );
    let commit_ts = timestamp(hand).await;
    let done = hand.commit(draft.start_ts, commit_ts, &["frame/h"]).await.expect("an answer");
    assert_eq!(done.error, None);
}

async fn mixed_and_unknown(hand: &ByHand) {
    // What the store does not do is told in words, beside what it does.
    let now = timestamp(hand).await;
    let answers = frame(hand, |context| {
        vec![
            Cmd::Gc(pb::GcRequest { context: context.clone(), safe_point: 1 }),
            Cmd::BroadcastTxnStatus(pb::BroadcastTxnStatusRequest::default()),
            Cmd::GetHealthFeedback(pb::GetHealthFeedbackRequest::default()),
            get(hand, context, "frame/a", now),
        ]
    })
    .await;
    let [
        Answer::Gc(gc),
        Answer::BroadcastTxnStatus(_),
        Answer::GetHealthFeedback(health),
        Answer::Get(value),
    ] = &answers[..]
    else {
        panic!("{answers:?}")
    };
    let refused = gc.region_error.as_ref().expect("stores collect by themselves");
    assert!(refused.message.contains("not served"), "{refused:?}");
    assert!(health.health_feedback.is_some());
    assert_eq!(value.value, "1");
    // A range is deleted with everything in it.
    let answers = frame(hand, |context| {
        let (start_key, end_key) = (hand.key("frame/"), hand.key("frame/~"));
        vec![Cmd::DeleteRange(pb::DeleteRangeRequest { context, start_key, end_key, notify_only: false })]
    })
    .await;
    let [Answer::DeleteRange(deleted)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(deleted.error, "");
    let answers = frame(hand, |context| vec![scan(hand, context, u64::MAX, false)]).await;
    let [Answer::Scan(nothing)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(nothing.pairs, []);
}
