//! Transactions against a small cluster in this process: what they see, how they commit over several regions, what
//! happens when they meet, and when answers get lost.

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use common::{Cluster, eventually};
use futures::StreamExt;
use kvclient::{Config, Error, KvPair, Result, Timestamp, TransactionClient, TxnOptions};
use kvproto::errorpb;
use kvproto::kvrpcpb::ApiVersion::{V1, V2};

fn pair(key: &str, value: &str) -> KvPair {
    KvPair { key: Bytes::from(key.to_string()), value: Bytes::from(value.to_string()) }
}

/// A cluster of two stores with three regions: up to h, up to p, and the rest.
async fn cluster() -> (Cluster, TransactionClient) {
    let cluster = Cluster::start(V2, 2).await;
    split(&cluster, "h", 2);
    split(&cluster, "p", 1);
    let client = cluster.txn_client().await;
    (cluster, client)
}

fn split(cluster: &Cluster, at: &str, leader: u64) {
    cluster.world.split_at(cluster.world.txn_wire(at), leader);
}

async fn put(client: &TransactionClient, pairs: &[(&str, &str)]) -> Timestamp {
    let mut txn = client.begin_optimistic().await.unwrap();
    for (key, value) in pairs {
        txn.put(key.to_string(), value.to_string()).await.unwrap();
    }
    txn.commit().await.unwrap().expect("something to commit")
}

async fn latest(client: &TransactionClient, key: &str) -> Option<Bytes> {
    let now = client.current_timestamp().await.unwrap();
    client.snapshot(now).get(key.to_string()).await.unwrap()
}

fn seen(cluster: &Cluster, name: &str) -> usize {
    cluster.world.seen.lock().iter().filter(|seen| **seen == name).count()
}

async fn no_locks(cluster: &Cluster) {
    eventually("locks are left over", || cluster.world.txn.lock().locks() == 0).await;
}

#[tokio::test]
async fn a_transaction_sees_its_snapshot_and_its_own_changes() {
    let (_cluster, client) = cluster().await;
    put(&client, &[("a", "1"), ("k", "1"), ("x", "1")]).await;
    let mut txn = client.begin_optimistic().await.unwrap();
    let later = put(&client, &[("a", "2"), ("m", "2")]).await;
    assert_eq!(txn.get("a").await.unwrap().unwrap(), "1");
    assert_eq!(txn.get("m").await.unwrap(), None);
    txn.put("k", "own").await.unwrap();
    txn.delete("x").await.unwrap();
    txn.put("z", "own").await.unwrap();
    assert_eq!(txn.get("k").await.unwrap().unwrap(), "own");
    let read = txn.batch_get(["z", "x", "k", "a", "m"]).await.unwrap();
    assert_eq!(read, [pair("a", "1"), pair("k", "own"), pair("z", "own")]);
    assert_eq!(txn.batch_get(["k", "a", "k", "a"]).await.unwrap(), [pair("a", "1"), pair("k", "own")]);
    assert!(txn.start_timestamp() < later);
    let then = client.snapshot(later);
    let before = [pair("a", "2"), pair("k", "1"), pair("x", "1")];
    assert_eq!(then.batch_get(["a", "k", "x"]).await.unwrap(), before);
    let committed = txn.commit().await.unwrap().unwrap();
    assert!(committed > later, "what was read at a timestamp stays so");
    assert!(matches!(txn.get("a").await, Err(Error::TxnEnded(_))));
    assert!(matches!(txn.scan(..).collect().await, Err(Error::TxnEnded(_))));
    assert!(matches!(txn.commit().await, Err(Error::TxnEnded(_))));
    assert_eq!(then.batch_get(["a", "k", "x"]).await.unwrap(), before);
    let newest = client.snapshot(Timestamp::MAX);
    assert_eq!(newest.get("k").await.unwrap().unwrap(), "own");
    assert_eq!(newest.get("x").await.unwrap(), None);
}

#[tokio::test]
async fn one_region_commits_in_one_phase() {
    let (cluster, client) = cluster().await;
    let at = put(&client, &[("a", "1"), ("b", "1")]).await;
    assert_eq!((seen(&cluster, "Prewrite"), seen(&cluster, "Commit")), (1, 0));
    assert_eq!(cluster.world.txn.lock().commits(&cluster.world.txn_wire("b")), [at.get()]);
    assert_eq!(client.begin_optimistic().await.unwrap().commit().await.unwrap(), None);
}

#[tokio::test]
async fn several_regions_commit_together() {
    let (cluster, client) = cluster().await;
    let all = [("a", "1"), ("b", "1"), ("k", "1"), ("x", "1")];
    for options in [
        TxnOptions::optimistic(),
        TxnOptions::optimistic().one_phase(false),
        TxnOptions::optimistic().async_commit(false),
        TxnOptions::pessimistic(),
        TxnOptions::pessimistic().async_commit(false),
    ] {
        let mut txn = client.begin(options.clone()).await.unwrap();
        for (key, value) in all {
            txn.put(key, value).await.unwrap();
        }
        let at = txn.commit().await.unwrap().unwrap().get();
        no_locks(&cluster).await;
        for (key, _) in all {
            let commits = cluster.world.txn.lock().commits(&cluster.world.txn_wire(key));
            assert_eq!(commits.last(), Some(&at), "{key} with {options:?}");
        }
    }
}

#[tokio::test]
async fn a_flush_waits_for_what_goes_on_after_the_answer() {
    let (cluster, client) = cluster().await;
    client.flush().await.unwrap();
    cluster.world.hold.lock().push("Commit");
    put(&client, &[("a", "1"), ("z", "1")]).await;
    assert_eq!(cluster.world.txn.lock().locks(), 2, "the commit was answered before");
    let mut flush = std::pin::pin!(client.flush());
    assert!(futures::poll!(flush.as_mut()).is_pending());
    cluster.world.hold.lock().clear();
    flush.await.unwrap();
    assert_eq!(cluster.world.txn.lock().locks(), 0);

    cluster.world.hold.lock().push("PessimisticRollback");
    let mut txn = client.begin_pessimistic().await.unwrap();
    txn.put("a", "2").await.unwrap();
    drop(txn);
    let mut flush = std::pin::pin!(client.flush());
    assert!(futures::poll!(flush.as_mut()).is_pending());
    cluster.world.hold.lock().clear();
    flush.await.unwrap();
    assert_eq!(cluster.world.txn.lock().locks(), 0);
}

#[tokio::test]
async fn stores_that_promise_no_timestamp_get_two_phases() {
    let (cluster, client) = cluster().await;
    cluster.world.txn.lock().plain_only = true;
    let one_region = put(&client, &[("a", "1"), ("b", "1")]).await;
    assert_eq!((seen(&cluster, "Prewrite"), seen(&cluster, "Commit")), (1, 1));
    let more = put(&client, &[("a", "2"), ("x", "2")]).await;
    assert!(more > one_region);
    no_locks(&cluster).await;
}

#[tokio::test]
async fn the_first_committer_wins() {
    let (_cluster, client) = cluster().await;
    let mut loser = client.begin_optimistic().await.unwrap();
    let winner = put(&client, &[("a", "winner")]).await;
    loser.put("a", "loser").await.unwrap();
    loser.put("x", "loser").await.unwrap();
    let error = loser.commit().await.unwrap_err();
    match &error {
        Error::WriteConflict { key, commit_ts, .. } => {
            assert_eq!((&key[..], *commit_ts), (&b"a"[..], winner));
        }
        other => panic!("{other}"),
    }
    assert!(error.is_conflict() && error.is_retryable());
    assert_eq!(latest(&client, "a").await.unwrap(), "winner");
    assert_eq!(latest(&client, "x").await, None);
}

#[tokio::test]
async fn inserts_need_absent_keys() {
    let (cluster, client) = cluster().await;
    put(&client, &[("a", "1"), ("x", "1")]).await;
    let mut txn = client.begin_optimistic().await.unwrap();
    txn.insert("a", "2").await.unwrap();
    assert!(matches!(txn.insert("a", "3").await, Err(Error::AlreadyExists { .. })));
    txn.insert("k", "2").await.unwrap();
    assert!(matches!(txn.commit().await, Err(Error::AlreadyExists { key }) if key == "a"));
    let mut txn = client.begin_pessimistic().await.unwrap();
    assert!(matches!(txn.insert("x", "2").await, Err(Error::AlreadyExists { key }) if key == "x"));
    txn.insert("y", "2").await.unwrap();
    txn.delete("x").await.unwrap();
    txn.insert("x", "3").await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(latest(&client, "x").await.unwrap(), "3");
    assert_eq!(latest(&client, "k").await, None);
    no_locks(&cluster).await;
}

#[tokio::test]
async fn a_refused_commit_is_sealed_only_when_a_late_copy_may_arrive() {
    let (cluster, client) = cluster().await;
    put(&client, &[("a", "1")]).await;
    for (lost, seals) in [(&[][..], 0), (&["Prewrite"], 1)] {
        *cluster.world.lose.lock() = lost.to_vec();
        let mut txn = client.begin_optimistic().await.unwrap();
        txn.insert("a", "2").await.unwrap();
        assert!(matches!(txn.commit().await, Err(Error::AlreadyExists { .. })));
        assert!(cluster.world.lose.lock().is_empty());
        assert_eq!(seen(&cluster, "BatchRollback"), seals);
    }
}

#[tokio::test]
async fn a_refusal_after_a_lost_answer_says_nothing_about_the_lost_one() {
    let (cluster, client) = cluster().await;
    put(&client, &[("a", "1")]).await;
    let raft_entry_too_large = Some(errorpb::RaftEntryTooLarge::default());
    let too_large = errorpb::Error { raft_entry_too_large, ..Default::default() };
    let mut txn = client.begin_optimistic().await.unwrap();
    txn.put("a", "2").await.unwrap();
    *cluster.world.lose.lock() = vec!["Prewrite"];
    cluster.world.refusals.lock().extend([None, Some(too_large)]);
    let error = txn.commit().await.unwrap_err();
    assert!(matches!(error, Error::Undetermined { .. }), "{error}");
    assert_eq!(latest(&client, "a").await.unwrap(), "2", "the lost one has committed");
}

/// Adds one to the number at `key`.
async fn increment(client: TransactionClient, options: TxnOptions, key: Bytes) -> Result<u64> {
    client
        .run_with(options, async move |txn| {
            let before = txn.get_for_update(key.clone()).await?;
            let next = before.map_or(0, |bytes| String::from_utf8_lossy(&bytes).parse().unwrap()) + 1;
            txn.put(key.clone(), next.to_string()).await?;
            Ok(next)
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_increments_are_not_lost() {
    let (cluster, client) = cluster().await;
    for (key, options) in [("a", TxnOptions::optimistic()), ("x", TxnOptions::pessimistic())] {
        let many = (0..8).map(|_| {
            let (client, options, key) = (client.clone(), options.clone().retries(100), Bytes::from(key));
            tokio::spawn(async move {
                for _ in 0..5 {
                    increment(client.clone(), options.clone(), key.clone()).await.unwrap();
                }
            })
        });
        for done in futures::future::join_all(many).await {
            done.unwrap();
        }
        assert_eq!(latest(&client, key).await.unwrap(), "40");
    }
    no_locks(&cluster).await;
}

#[tokio::test]
async fn run_ends_after_so_many_conflicts_and_rolls_back_errors() {
    let (cluster, client) = cluster().await;
    let mut runs = 0;
    let never = client.run_with(TxnOptions::optimistic().retries(2), async |txn| {
        runs += 1;
        txn.put("a", "loser").await?;
        put(&client, &[("a", "winner")]).await;
        Ok(())
    });
    assert!(matches!(never.await, Err(Error::WriteConflict { .. })));
    assert_eq!(runs, 3);
    let mut runs = 0;
    let failed: Result<()> = client
        .run_with(TxnOptions::pessimistic(), async |txn| {
            runs += 1;
            txn.put("k", "1").await?;
            Err(Error::InvalidArgument("the application's own".to_string()))
        })
        .await;
    assert!(matches!(failed, Err(Error::InvalidArgument(_))));
    assert_eq!(runs, 1);
    let by_itself = client.run(async |txn| {
        txn.put("k", "1").await?;
        txn.rollback().await
    });
    by_itself.await.unwrap();
    assert_eq!(latest(&client, "k").await, None);
    no_locks(&cluster).await;
}

#[tokio::test]
async fn lost_answers_change_nothing() {
    let (cluster, client) = cluster().await;
    for (names, keys) in [
        (&["Prewrite"][..], &[("a", "1"), ("b", "1")][..]),
        (&["Prewrite", "Prewrite"], &[("a", "2"), ("k", "2"), ("x", "2")]),
    ] {
        *cluster.world.lose.lock() = names.to_vec();
        let at = put(&client, keys).await.get();
        no_locks(&cluster).await;
        assert!(cluster.world.lose.lock().is_empty());
        for (key, _) in keys {
            assert_eq!(cluster.world.txn.lock().commits(&cluster.world.txn_wire(key)).last(), Some(&at));
        }
    }
    let mut txn = client.begin(TxnOptions::optimistic().async_commit(false)).await.unwrap();
    txn.put("a", "3").await.unwrap();
    txn.put("x", "3").await.unwrap();
    *cluster.world.lose.lock() = vec!["Commit"];
    let at = txn.commit().await.unwrap().unwrap().get();
    no_locks(&cluster).await;
    assert_eq!(cluster.world.txn.lock().commits(&cluster.world.txn_wire("x")).last(), Some(&at));
}

#[tokio::test]
async fn silence_is_undetermined_only_where_it_may_have_committed() {
    let (cluster, _) = cluster().await;
    let config = Config {
        timeout: Duration::from_millis(400),
        attempt_timeout: Duration::from_millis(150),
        ..Config::default()
    };
    let client = cluster.txn_client_with(config).await;
    put(&client, &[("a", "1"), ("k", "1"), ("x", "1")]).await;
    for (options, undetermined) in [
        (TxnOptions::optimistic(), true),
        (TxnOptions::optimistic().async_commit(false).one_phase(false), false),
    ] {
        let mut txn = client.begin(options).await.unwrap();
        txn.put("a", "2").await.unwrap();
        txn.put("x", "2").await.unwrap();
        cluster.world.mute.store(true, SeqCst);
        let error = txn.commit().await.unwrap_err();
        cluster.world.mute.store(false, SeqCst);
        assert_eq!(matches!(error, Error::Undetermined { .. }), undetermined, "{error}");
        assert_eq!(matches!(error, Error::Timeout { .. }), !undetermined, "{error}");
    }
}

#[tokio::test]
async fn a_region_splits_below_a_transaction() {
    let (cluster, client) = cluster().await;
    put(&client, &[("a", "1"), ("c", "1"), ("e", "1")]).await;
    split(&cluster, "c", 2);
    split(&cluster, "e", 1);
    let at = put(&client, &[("a", "2"), ("c", "2"), ("e", "2")]).await.get();
    no_locks(&cluster).await;
    for key in ["a", "c", "e"] {
        assert_eq!(cluster.world.txn.lock().commits(&cluster.world.txn_wire(key)).last(), Some(&at), "{key}");
    }
}

#[tokio::test]
async fn scans_lay_own_changes_over_the_snapshot() {
    let (_cluster, client) = cluster().await;
    let names: Vec<String> = ('a'..='z').map(|name| name.to_string()).collect();
    put(&client, &names.iter().map(|name| (name.as_str(), "0")).collect::<Vec<_>>()).await;
    let mut txn = client.begin_optimistic().await.unwrap();
    for key in ["a", "g", "h", "z"] {
        txn.delete(key).await.unwrap();
    }
    for key in ["0", "b", "hh", "p", "zz"] {
        txn.put(key, "own").await.unwrap();
    }
    txn.lock_keys(["m"]).await.unwrap();
    let mut expected: Vec<KvPair> = Vec::new();
    for key in ["0", "b", "c", "d", "e", "f", "hh", "i", "j", "k", "l", "m", "n", "o", "p"] {
        let own = ["0", "b", "hh", "p"].contains(&key);
        expected.push(pair(key, if own { "own" } else { "0" }));
    }
    for name in &names[16..25] {
        expected.push(pair(name, "0"));
    }
    expected.push(pair("zz", "own"));
    let reversed: Vec<KvPair> = expected.iter().rev().cloned().collect();
    for page in [1, 2, 3, 5, 8, 1000] {
        assert_eq!(txn.scan(..).page_size(page).collect().await.unwrap(), expected, "{page}");
        assert_eq!(txn.scan(..).reverse().page_size(page).collect().await.unwrap(), reversed, "{page}");
        for limit in [0, 1, 7, 24] {
            let some = txn.scan(..).page_size(page).limit(limit).collect().await.unwrap();
            assert_eq!(some, expected[..limit], "{page} {limit}");
            let some = txn.scan(..).reverse().page_size(page).limit(limit).collect().await.unwrap();
            assert_eq!(some, reversed[..limit], "{page} {limit}");
        }
        let some = txn.scan("g".."j").page_size(page).collect().await.unwrap();
        assert_eq!(some, [pair("hh", "own"), pair("i", "0")]);
    }
    let keys = txn.scan("b"..="c").keys_only().collect().await.unwrap();
    assert_eq!(keys, [pair("b", ""), pair("c", "")]);
    let mut stream = txn.scan("z"..).stream();
    assert_eq!(stream.next().await.unwrap().unwrap(), pair("zz", "own"));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn pessimistic_transactions_read_the_newest_and_keep_it() {
    let (cluster, client) = cluster().await;
    put(&client, &[("a", "1"), ("x", "1")]).await;
    let mut txn = client.begin_pessimistic().await.unwrap();
    put(&client, &[("a", "2")]).await;
    assert_eq!(txn.get("a").await.unwrap().unwrap(), "1", "the snapshot stays");
    assert_eq!(txn.get_for_update("a").await.unwrap().unwrap(), "2");
    let both = txn.batch_get_for_update(["x", "none", "a"]).await.unwrap();
    assert_eq!(both, [pair("a", "2"), pair("x", "1")]);
    txn.put("a", "3").await.unwrap();
    let mut other = client.begin(TxnOptions::pessimistic().lock_wait(Duration::ZERO)).await.unwrap();
    let blocked = other.lock_keys(["none"]).await.unwrap_err();
    assert!(
        matches!(&blocked, Error::KeyLocked { key, holder } if key == "none" && *holder == txn.start_timestamp())
    );
    assert!(!blocked.is_conflict() && blocked.is_retryable());
    other.rollback().await.unwrap();
    txn.commit().await.unwrap().unwrap();
    assert_eq!(latest(&client, "a").await.unwrap(), "3");
    no_locks(&cluster).await;
}

#[tokio::test]
async fn what_was_only_read_is_not_overwritten_unseen() {
    let (cluster, client) = cluster().await;
    put(&client, &[("a", "1"), ("b", "1")]).await;
    let mut txn = client.begin_pessimistic().await.unwrap();
    assert_eq!(txn.get("a").await.unwrap().unwrap(), "1");
    put(&client, &[("a", "2"), ("b", "2")]).await;
    txn.put("b", "blind").await.unwrap();
    assert!(txn.put("a", "from 1").await.unwrap_err().is_conflict());
    txn.rollback().await.unwrap();
    no_locks(&cluster).await;
}

#[tokio::test]
async fn an_insert_of_a_locked_key_sees_what_the_lock_saw() {
    let (cluster, client) = cluster().await;
    let mut txn = client.begin_pessimistic().await.unwrap();
    assert_eq!(txn.get("a").await.unwrap(), None);
    put(&client, &[("a", "theirs")]).await;
    assert_eq!(txn.get_for_update("a").await.unwrap().unwrap(), "theirs");
    assert!(matches!(txn.insert("a", "own").await, Err(Error::AlreadyExists { key }) if key == "a"));
    txn.rollback().await.unwrap();
    no_locks(&cluster).await;
}

#[tokio::test]
async fn an_insert_that_was_taken_back_still_needs_an_absent_key() {
    let (cluster, client) = cluster().await;
    put(&client, &[("a", "1")]).await;
    for (key, fails) in [("a", true), ("b", false)] {
        let mut txn = client.begin_optimistic().await.unwrap();
        txn.lock_keys([key]).await.unwrap();
        txn.insert(key, "2").await.unwrap();
        txn.delete(key).await.unwrap();
        let outcome = txn.commit().await;
        assert_eq!(matches!(outcome, Err(Error::AlreadyExists { key }) if key == "a"), fails);
    }
    no_locks(&cluster).await;
}

#[tokio::test]
async fn locking_ends_when_others_are_always_faster() {
    let (cluster, _) = cluster().await;
    let config = Config { timeout: Duration::from_millis(300), ..Config::default() };
    let client = cluster.txn_client_with(config).await;
    put(&client, &[("a", "1")]).await;
    cluster.world.txn.lock().always_changes = true;
    let mut txn = client.begin_pessimistic().await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), txn.lock_keys(["a"])).await;
    assert!(ended.expect("an end").unwrap_err().is_conflict());
    txn.rollback().await.unwrap();
}

#[tokio::test]
async fn locks_go_with_their_transaction() {
    let (cluster, client) = cluster().await;
    let keys = ["a", "k", "x"];
    let mut txn = client.begin_pessimistic().await.unwrap();
    txn.lock_keys(keys).await.unwrap();
    assert_eq!(cluster.world.txn.lock().locks(), 3);
    txn.rollback().await.unwrap();
    assert_eq!(cluster.world.txn.lock().locks(), 0);
    let mut txn = client.begin_pessimistic().await.unwrap();
    txn.lock_keys(keys).await.unwrap();
    assert_eq!(txn.commit().await.unwrap(), None, "locks alone change nothing");
    no_locks(&cluster).await;
    let mut txn = client.begin_pessimistic().await.unwrap();
    txn.put("a", "dropped").await.unwrap();
    drop(txn);
    no_locks(&cluster).await;
    assert_eq!(latest(&client, "a").await, None);
}

#[tokio::test]
async fn heart_beats_prolong_the_life_of_locks() {
    let (cluster, client) = cluster().await;
    let options = TxnOptions::pessimistic().lock_ttl(Duration::from_secs(1));
    let mut txn = client.begin(options).await.unwrap();
    txn.put("a", "1").await.unwrap();
    let locks = || client.scan_locks(.., Timestamp::MAX, 10);
    let first = locks().await.unwrap()[0].lock_ttl;
    eventually("no heart beat came", || seen(&cluster, "TxnHeartBeat") > 0).await;
    assert!(locks().await.unwrap()[0].lock_ttl > first);
    txn.commit().await.unwrap();
}

#[tokio::test]
async fn a_cluster_of_raw_keys_says_so() {
    let cluster = Cluster::start(V1, 1).await;
    let error = TransactionClient::connect([cluster.scheduler.address.to_string()]).await.err().unwrap();
    assert!(matches!(error, Error::NoTransactions), "{error}");
}

#[tokio::test]
async fn bad_keys_are_refused_before_they_travel() {
    let (cluster, client) = cluster().await;
    let mut txn = client.begin_optimistic().await.unwrap();
    let long = vec![b'k'; 8193];
    assert!(matches!(txn.put(long.clone(), "v").await, Err(Error::KeyTooLarge { size: 8193, .. })));
    assert!(matches!(txn.get(long).await, Err(Error::KeyTooLarge { .. })));
    assert!(txn.commit().await.unwrap().is_none());
    assert!(cluster.world.seen.lock().is_empty());
}
