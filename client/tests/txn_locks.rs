//! Locks that are met: of clients that crashed at any step, and of those that are still at work.

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use common::{Cluster, eventually};
use kvclient::txn::LockResolver;
use kvclient::txn::resolution::Caller;
use kvclient::{Config, Error, Timestamp, TransactionClient, TxnOptions};
use kvproto::errorpb;
use kvproto::kvrpcpb::ApiVersion::V2;
use kvproto::kvrpcpb::*;

/// Locks of crashed clients live so long, in ms.
const TTL_MS: u64 = 3000;

/// A cluster of two stores with two regions, up to m and the rest.
async fn cluster() -> (Cluster, TransactionClient) {
    let cluster = Cluster::start(V2, 2).await;
    cluster.world.split_at(cluster.world.txn_wire("m"), 2);
    let client = cluster.txn_client().await;
    (cluster, client)
}

/// A client that stops somewhere in the middle of a commit.
struct Crash<'a> {
    cluster: &'a Cluster,
    start_ts: u64,
    keys: Vec<Bytes>,
    is_async: bool,
}

impl Crash<'_> {
    async fn new<'a>(cluster: &'a Cluster, client: &TransactionClient, keys: &[&str]) -> Crash<'a> {
        let start_ts = client.current_timestamp().await.unwrap().get();
        let keys = keys.iter().map(|key| cluster.world.txn_wire(key)).collect();
        Crash { cluster, start_ts, keys, is_async: false }
    }

    /// Prewrites those of its keys at these positions; the first one is the primary.
    fn prewrite(&self, at: impl IntoIterator<Item = usize>) -> u64 {
        let mut min_commit_ts = 0;
        for index in at {
            let key = self.keys[index].clone();
            let value = Bytes::from("new");
            let reply = self.cluster.world.txn.lock().prewrite(&PrewriteRequest {
                mutations: vec![Mutation { key, value, ..Default::default() }],
                primary_lock: self.keys[0].clone(),
                start_version: self.start_ts,
                lock_ttl: TTL_MS,
                txn_size: self.keys.len() as u64,
                min_commit_ts: self.start_ts + 1,
                use_async_commit: self.is_async,
                secondaries: if index == 0 && self.is_async { self.keys[1..].to_vec() } else { Vec::new() },
                ..Default::default()
            });
            assert_eq!(reply.errors, []);
            min_commit_ts = reply.min_commit_ts.max(min_commit_ts);
        }
        min_commit_ts
    }

    fn commit_primary(&self, commit_ts: u64) {
        let reply = self.cluster.world.txn.lock().commit(&CommitRequest {
            start_version: self.start_ts,
            keys: vec![self.keys[0].clone()],
            commit_version: commit_ts,
            ..Default::default()
        });
        assert_eq!(reply.error, None);
    }
}

/// Lets the locks of crashed clients expire.
fn pass_time(cluster: &Cluster) {
    cluster.world.pd.ts.fetch_add((TTL_MS + 1) << 18, SeqCst);
}

async fn put(client: &TransactionClient, key: &'static str, value: &'static str) {
    let mut txn = client.begin_optimistic().await.unwrap();
    txn.put(key, value).await.unwrap();
    txn.commit().await.unwrap();
}

async fn no_locks(cluster: &Cluster) {
    eventually("locks are left over", || cluster.world.txn.lock().locks() == 0).await;
}

#[tokio::test]
async fn readers_finish_what_was_committed() {
    let (cluster, client) = cluster().await;
    put(&client, "z", "old").await;
    let before = client.current_timestamp().await.unwrap();
    let crash = Crash::new(&cluster, &client, &["a", "y", "z"]).await;
    crash.prewrite(0..3);
    let commit_ts = client.current_timestamp().await.unwrap();
    crash.commit_primary(commit_ts.get());
    let now = client.current_timestamp().await.unwrap();
    // Its locks are no obstacle at any timestamp, and are cleared away.
    assert_eq!(client.snapshot(now).get("z").await.unwrap().unwrap(), "new");
    assert_eq!(client.snapshot(before).get("z").await.unwrap().unwrap(), "old");
    assert_eq!(client.snapshot(now).scan(..).collect().await.unwrap().len(), 3);
    no_locks(&cluster).await;
    assert_eq!(cluster.world.txn.lock().commits(&crash.keys[1]), [commit_ts.get()]);
}

#[tokio::test]
async fn readers_do_not_wait_for_live_transactions() {
    let (cluster, client) = cluster().await;
    put(&client, "z", "old").await;
    let crash = Crash::new(&cluster, &client, &["a", "z"]).await;
    crash.prewrite(0..2);
    let now = client.current_timestamp().await.unwrap();
    let snapshot = client.snapshot(now);
    assert_eq!(snapshot.get("z").await.unwrap().unwrap(), "old");
    assert_eq!(snapshot.batch_get(["a", "z"]).await.unwrap().len(), 1);
    assert_eq!(snapshot.scan(..).reverse().collect().await.unwrap().len(), 1);
    let pushed = cluster.world.txn.lock().min_commit_ts(&crash.keys[0]).unwrap();
    assert!(pushed > now.get(), "it can only commit after the read");
    assert_eq!(cluster.world.txn.lock().locks(), 2, "it was left in peace");
}

#[tokio::test]
async fn a_pushed_transaction_commits_later() {
    let (cluster, client) = cluster().await;
    put(&client, "z", "old").await;
    let mut txn = client.begin(TxnOptions::optimistic().async_commit(false).one_phase(false)).await.unwrap();
    txn.put("a", "new").await.unwrap();
    txn.put("z", "new").await.unwrap();
    cluster.world.hold.lock().push("Commit");
    let commit = tokio::spawn(async move { txn.commit().await });
    eventually("no locks", || cluster.world.txn.lock().locks() == 2).await;
    // Another connection: its requests do not stand behind the commit.
    let reader = cluster.txn_client().await;
    let now = reader.current_timestamp().await.unwrap();
    assert_eq!(reader.snapshot(now).get("z").await.unwrap().unwrap(), "old");
    cluster.world.hold.lock().clear();
    let committed = commit.await.unwrap().unwrap().unwrap();
    assert!(committed > now);
    assert_eq!(reader.snapshot(now).get("z").await.unwrap().unwrap(), "old");
    no_locks(&cluster).await;
}

#[tokio::test]
async fn a_client_knows_what_it_has_committed() {
    let (cluster, client) = cluster().await;
    // The second phase, which goes on in the background, comes to nothing.
    cluster.world.no_commits.store(true, SeqCst);
    let mut txn = client.begin_optimistic().await.unwrap();
    txn.put("a", "new").await.unwrap();
    txn.put("z", "new").await.unwrap();
    txn.commit().await.unwrap().unwrap();
    let now = client.current_timestamp().await.unwrap();
    assert_eq!(client.snapshot(now).batch_get(["a", "z"]).await.unwrap().len(), 2);
    assert!(!cluster.world.seen.lock().contains(&"CheckTxnStatus"));
    no_locks(&cluster).await;
}

#[tokio::test]
async fn a_commit_that_holds_locks_gives_way() {
    let (cluster, client) = cluster().await;
    let crash = Crash::new(&cluster, &client, &["z"]).await;
    crash.prewrite(0..1);
    for options in [TxnOptions::optimistic(), TxnOptions::optimistic().async_commit(false).one_phase(false)] {
        let mut txn = client.begin(options).await.unwrap();
        txn.put("a", "mine").await.unwrap();
        txn.put("z", "mine").await.unwrap();
        // It would wait much longer if it held nothing.
        let error = txn.commit().await.unwrap_err();
        assert!(matches!(error, Error::TxnAborted { .. }) && error.is_conflict(), "{error}");
    }
    eventually("its own locks stay", || cluster.world.txn.lock().locks() == 1).await;
    pass_time(&cluster);
    put(&client, "z", "mine").await;
    no_locks(&cluster).await;
}

#[tokio::test]
async fn an_abandoned_commit_cleans_up() {
    let (cluster, client) = cluster().await;
    let mut txn = client.begin(TxnOptions::optimistic().async_commit(false).one_phase(false)).await.unwrap();
    txn.put("a", "new").await.unwrap();
    txn.put("z", "new").await.unwrap();
    let a_key = cluster.world.txn_wire("a");
    // Somebody else's lock keeps the commit waiting with one of its own.
    let crash = Crash::new(&cluster, &client, &["z"]).await;
    crash.prewrite(0..1);
    let commit = tokio::spawn(async move { txn.commit().await });
    eventually("no lock of its own", || cluster.world.txn.lock().min_commit_ts(&a_key).is_some()).await;
    commit.abort();
    eventually("its lock stays", || cluster.world.txn.lock().min_commit_ts(&a_key).is_none()).await;
}

#[tokio::test]
async fn a_crash_before_the_commit_is_rolled_back_after_its_time() {
    let (cluster, client) = cluster().await;
    put(&client, "z", "old").await;
    for prewritten in [0..2, 1..2] {
        let crash = Crash::new(&cluster, &client, &["a", "z"]).await;
        crash.prewrite(prewritten);
        pass_time(&cluster);
        let now = client.current_timestamp().await.unwrap();
        assert_eq!(client.snapshot(now).get("z").await.unwrap().unwrap(), "old");
        assert_eq!(client.snapshot(now).get("a").await.unwrap(), None);
        no_locks(&cluster).await;
        let late = cluster.world.txn.lock().prewrite(&PrewriteRequest {
            mutations: vec![Mutation { key: crash.keys[0].clone(), ..Default::default() }],
            start_version: crash.start_ts,
            ..Default::default()
        });
        assert!(late.errors[0].conflict.is_some(), "it cannot come back");
    }
}

#[tokio::test]
async fn an_asynchronous_commit_is_finished_as_its_keys_say() {
    let (cluster, client) = cluster().await;
    for (prewritten, committed) in [(0..3, true), (0..2, false)] {
        let crash = Crash { is_async: true, ..Crash::new(&cluster, &client, &["a", "y", "z"]).await };
        let at = crash.prewrite(prewritten);
        pass_time(&cluster);
        let now = client.current_timestamp().await.unwrap();
        let found = client.snapshot(now).batch_get(["a", "y"]).await.unwrap();
        no_locks(&cluster).await;
        let commits = cluster.world.txn.lock().commits(&crash.keys[1]);
        assert_eq!(commits.contains(&at), committed);
        assert_eq!(found.len(), 2, "the first round has committed");
    }
}

#[tokio::test]
async fn writers_wait_for_the_living_and_bury_the_dead() {
    let (cluster, client) = cluster().await;
    let hasty = Config { timeout: Duration::from_millis(200), ..Config::default() };
    let hasty = cluster.txn_client_with(hasty).await;
    let crash = Crash::new(&cluster, &client, &["a", "z"]).await;
    crash.prewrite(0..2);
    let mut txn = hasty.begin_optimistic().await.unwrap();
    txn.put("z", "mine").await.unwrap();
    let error = txn.commit().await.unwrap_err();
    assert!(
        matches!(&error, Error::KeyLocked { key, holder } if key == "z" && holder.get() == crash.start_ts)
    );
    pass_time(&cluster);
    put(&client, "z", "mine").await;
    no_locks(&cluster).await;

    let crash = Crash::new(&cluster, &client, &["a", "z"]).await;
    crash.prewrite(0..2);
    pass_time(&cluster);
    let mut txn = client.begin_pessimistic().await.unwrap();
    assert_eq!(txn.get_for_update("z").await.unwrap().unwrap(), "mine");
    txn.commit().await.unwrap();
    no_locks(&cluster).await;
}

#[tokio::test]
async fn a_dead_pessimistic_lock_gives_way() {
    let (cluster, client) = cluster().await;
    let start_version = client.current_timestamp().await.unwrap().get();
    let key = cluster.world.txn_wire("z");
    cluster.world.txn.lock().pessimistic_lock(&PessimisticLockRequest {
        mutations: vec![Mutation { key: key.clone(), op: Op::PessimisticLock.into(), ..Default::default() }],
        primary_lock: key,
        start_version,
        for_update_ts: start_version,
        lock_ttl: TTL_MS,
        ..Default::default()
    });
    let now = client.current_timestamp().await.unwrap();
    assert_eq!(client.snapshot(now).get("z").await.unwrap(), None, "no reader minds");
    pass_time(&cluster);
    put(&client, "z", "mine").await;
    no_locks(&cluster).await;
}

#[tokio::test]
async fn cleaners_see_all_locks_and_end_them() {
    let (cluster, client) = cluster().await;
    let keys: Vec<String> = (0..40).map(|n| format!("{}{n:02}", if n < 20 { "a" } else { "z" })).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let crash = Crash::new(&cluster, &client, &keys).await;
    crash.prewrite(0..40);
    let now = client.current_timestamp().await.unwrap();
    let locks = client.scan_locks(.., now, usize::MAX).await.unwrap();
    assert_eq!(
        locks.iter().map(|lock| &lock.key[..]).collect::<Vec<_>>(),
        keys.iter().map(|key| key.as_bytes()).collect::<Vec<_>>()
    );
    assert_eq!(locks[0].primary_lock, "a00");
    assert_eq!(client.scan_locks("a05".."z25", now, 7).await.unwrap().len(), 7);
    assert_eq!(client.scan_locks(.., Timestamp::new(crash.start_ts - 1), 100).await.unwrap(), []);
    let resolved = resolve(&client, &cluster, Caller::Wait).await;
    assert_eq!((resolved.alive.len(), resolved.rolled_back.len()), (1, 0));
    assert!(resolved.wait.is_some());
    assert_eq!(client.cleanup_locks(.., now).await.unwrap(), 40);
    assert_eq!(cluster.world.txn.lock().locks(), 0);
    put(&client, "a", "1").await;
    put(&client, "z", "1").await;
    client.delete_range("m"..).await.unwrap();
    let left = client.snapshot(Timestamp::MAX).scan(..).collect().await.unwrap();
    assert_eq!(left.len(), 1);
}

/// Resolves every lock with wire keys, as a store does.
fn all_locks(cluster: &Cluster) -> Vec<LockInfo> {
    let request = ScanLockRequest { max_version: u64::MAX, limit: u32::MAX, ..Default::default() };
    cluster.world.txn.lock().scan_lock(&request, |_| true).locks
}

async fn resolve(client: &TransactionClient, cluster: &Cluster, caller: Caller) -> kvclient::txn::Resolved {
    let resolver = LockResolver::over(client.scheduler().clone(), Config::default());
    resolver.resolve(all_locks(cluster), caller).await.unwrap()
}

#[tokio::test]
async fn a_store_resolves_locks_of_all_keyspaces() {
    let (cluster, client) = cluster().await;
    let dead = Crash::new(&cluster, &client, &["a", "z"]).await;
    dead.prewrite(0..2);
    let done = Crash { is_async: true, ..Crash::new(&cluster, &client, &["b", "y"]).await };
    done.prewrite(0..2);
    pass_time(&cluster);
    let live = Crash::new(&cluster, &client, &["c", "x"]).await;
    live.prewrite(0..2);
    let resolved = resolve(&client, &cluster, Caller::Wait).await;
    assert_eq!(resolved.rolled_back, [Timestamp::new(dead.start_ts)]);
    assert_eq!(resolved.committed[0].0, Timestamp::new(done.start_ts));
    assert_eq!(resolved.alive, [Timestamp::new(live.start_ts)]);
    assert_eq!(cluster.world.txn.lock().locks(), 2);
    let resolved = resolve(&client, &cluster, Caller::Force).await;
    assert_eq!(resolved.rolled_back, [Timestamp::new(live.start_ts)]);
    assert_eq!(cluster.world.txn.lock().locks(), 0);
}

#[tokio::test]
async fn locks_that_are_taken_after_a_wait_live_as_long_as_others() {
    let (cluster, client) = cluster().await;
    let crash = Crash::new(&cluster, &client, &["a"]).await;
    crash.prewrite(0..1);
    let mut txn = client.begin_pessimistic().await.unwrap();
    let locking = tokio::spawn(async move { txn.lock_keys(["a"]).await.map(|()| txn) });
    let grows = || matches!(&cluster.world.txn.lock().asked_ttls[..], [first, .., last] if last > first);
    eventually("later requests ask for no longer life", grows).await;
    pass_time(&cluster);
    locking.await.unwrap().unwrap().rollback().await.unwrap();
    no_locks(&cluster).await;
}

#[tokio::test]
async fn heart_beats_wait_for_the_first_lock_of_a_commit() {
    let (cluster, _) = cluster().await;
    let timeout = Duration::from_secs(20);
    let client = cluster.txn_client_with(Config { timeout, ..Config::default() }).await;
    let crash = Crash::new(&cluster, &client, &["a"]).await;
    crash.prewrite(0..1);
    let mut txn = client.begin_optimistic().await.unwrap();
    txn.put("a", "new").await.unwrap();
    let commit = tokio::spawn(async move { txn.commit().await });
    let beats = || cluster.world.seen.lock().iter().filter(|seen| **seen == "TxnHeartBeat").count();
    eventually("heart beats end before there is a lock", || beats() >= 2).await;
    pass_time(&cluster);
    commit.await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn locks_of_a_call_that_was_dropped_go_with_the_transaction() {
    let (cluster, client) = cluster().await;
    let mut txn = client.begin_pessimistic().await.unwrap();
    // Newer than the transaction, so that the lock on it is taken at a later timestamp.
    put(&client, "a", "newer").await;
    let crash = Crash::new(&cluster, &client, &["z"]).await;
    crash.prewrite(0..1);
    let both = eventually("the free key was not locked", || cluster.world.txn.lock().locks() == 2);
    tokio::select! {
        _ = txn.lock_keys(["a", "z"]) => panic!("one of the keys is locked by another transaction"),
        () = both => {}
    }
    txn.rollback().await.unwrap();
    assert_eq!(cluster.world.txn.lock().locks(), 1, "only the other transaction's lock stays");
}

#[tokio::test]
async fn a_transaction_that_cannot_be_resolved_does_not_hide_others() {
    let (cluster, client) = cluster().await;
    let strange = Crash::new(&cluster, &client, &["a"]).await;
    strange.prewrite(0..1);
    let dead = Crash::new(&cluster, &client, &["b"]).await;
    dead.prewrite(0..1);
    pass_time(&cluster);
    let config = Config { concurrency: 1, ..Config::default() };
    let resolver = LockResolver::over(client.scheduler().clone(), config);
    let raft_entry_too_large = Some(errorpb::RaftEntryTooLarge::default());
    let refusal = errorpb::Error { raft_entry_too_large, ..Default::default() };
    cluster.world.refusals.lock().push_back(Some(refusal));
    let error = resolver.resolve(all_locks(&cluster), Caller::Wait).await.unwrap_err();
    assert!(matches!(error, Error::WriteTooLarge { .. }), "{error}");
    assert_eq!(cluster.world.txn.lock().locks(), 1, "the dead one's lock is gone");
}
