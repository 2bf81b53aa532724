//! Garbage collection and lock cleaning by real processes: old versions go from every store once the safe point has
//! passed them, and not before; what is refused stays refused after a crash; clients that die block nobody for good.

use std::time::Duration;

use bytes::Bytes;
use integration::cluster::by_hand::{ByHand, Draft};
use integration::cluster::{ClusterError, ClusterOptions, ProcessCluster, Store, get, send, wait_until};
use kvclient::{Error, Timestamp, TransactionClient};
use kvproto::kvrpcpb::{ApiVersion, MvccGetByKeyRequest};

const SOON: Duration = Duration::from_secs(60);

/// Stores look all the time; the safe point follows closely as soon as it is let loose.
fn eager() -> ClusterOptions {
    ClusterOptions {
        scheduler_config: "[gc]\nenable = false\nlife-time = \"3s\"\nrun-interval = \"100ms\"\n".into(),
        store_config: "[gc]\npoll-interval = \"100ms\"\nwalk-interval = \"200ms\"\n".into(),
        ..ClusterOptions::default()
    }
}

/// The safe point stays where it is put by hand; locks are looked at often.
fn cleaning() -> ClusterOptions {
    ClusterOptions {
        scheduler_config: "[gc]\nenable = false\n".into(),
        store_config: "[gc]\nlock-cleaner-interval = \"200ms\"\n".into(),
        ..ClusterOptions::default()
    }
}

/// Lets the safe point move by itself.
fn let_loose(cluster: &ProcessCluster) {
    let body = r#"{"gc.enable": true}"#;
    let reply = send(cluster.scheduler_address, "POST", "/pd/api/v1/config/schedule", body, SOON);
    assert!(reply.as_ref().is_ok_and(|reply| reply.is_ok()), "{reply:?}");
}

/// The sum of a store's metric over all its labels.
fn metric(store: &Store, name: &str) -> f64 {
    let page = get(store.status_address, "/metrics", SOON).map(|reply| reply.body).unwrap_or_default();
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then(|| rest.rsplit_once(' ')?.1.parse::<f64>().ok())?
    });
    values.sum()
}

async fn put(client: &TransactionClient, key: &str, value: impl Into<Bytes>) -> Timestamp {
    let mut txn = client.begin_optimistic().await.expect("a transaction");
    txn.put(key.to_string(), value).await.expect("a put");
    txn.commit().await.expect("a commit").expect("it wrote something")
}

async fn delete(client: &TransactionClient, key: &str) -> Timestamp {
    let mut txn = client.begin_optimistic().await.expect("a transaction");
    txn.delete(key.to_string()).await.expect("a delete");
    txn.commit().await.expect("a commit").expect("it wrote something")
}

/// How many records and values transactions have left on a key, where it is led.
async fn records(by_hand: &ByHand, user: &str) -> usize {
    let (key, regions) = (by_hand.key(user), by_hand.regions());
    let answer = regions
        .settle(|| async {
            let at = regions.of(&key).await?;
            let context = kvproto::kvrpcpb::Context { api_version: ApiVersion::V2 as i32, ..at.context() };
            let request = MvccGetByKeyRequest { context: Some(context), key: key.clone() };
            let answer =
                regions.store(at.leader.store_id).await?.mvcc_get_by_key(request).await?.into_inner();
            Ok(answer.region_error.is_none().then_some(answer))
        })
        .await
        .expect("the records of a key");
    answer.info.map_or(0, |info| info.writes.len() + info.values.len())
}

async fn wait_records(by_hand: &ByHand, user: &str, want: usize) {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let left = records(by_hand, user).await;
        if left == want {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{left} records of {user}, want {want}");
        tokio::task::yield_now().await;
    }
}

fn wait_on_all(
    cluster: &ProcessCluster,
    what: &str,
    condition: impl Fn(&Store) -> bool,
) -> Result<(), ClusterError> {
    wait_until(what, SOON, || cluster.stores.iter().all(&condition))
}

async fn clients(cluster: &ProcessCluster) -> (TransactionClient, ByHand) {
    let client = TransactionClient::connect([cluster.endpoint()]).await.expect("a client");
    let by_hand = ByHand::connect(&cluster.endpoint(), ApiVersion::V2).await.expect("a client by hand");
    (client, by_hand)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_versions_go_from_every_store_once_the_safe_point_has_passed_them() {
    let mut cluster = ProcessCluster::start(eager()).expect("three stores");
    let (client, by_hand) = clients(&cluster).await;
    let long = "v".repeat(2000);
    let mut commits = Vec::new();
    for n in 0..20 {
        commits.push(put(&client, "short", n.to_string()).await);
        put(&client, "long", format!("{n} {long}")).await;
    }
    put(&client, "dead", "x").await;
    delete(&client, "dead").await;
    let_loose(&cluster);

    // The newest version and its value stay; of a deleted key nothing does.
    wait_records(&by_hand, "short", 1).await;
    wait_records(&by_hand, "long", 2).await;
    wait_records(&by_hand, "dead", 0).await;
    let removed = |store: &Store| metric(store, "kvasir_gc_removed_total") >= 19.0 + 19.0 + 2.0;
    wait_on_all(&cluster, "every replica to remove them", removed).expect("no garbage");
    let now = client.snapshot(client.current_timestamp().await.expect("a timestamp"));
    assert_eq!(now.get("short").await.expect("a get").as_deref(), Some(&b"19"[..]));
    assert_eq!(now.get("long").await.expect("a get"), Some(format!("19 {long}").into()));
    assert_eq!(now.get("dead").await.expect("a get"), None);

    // What was visible then is gone, and nobody is told that it never was.
    let refused = client.snapshot(commits[3]).get("short").await.expect_err("below the safe point");
    assert!(matches!(refused, Error::TooOld { .. }), "{refused}");
    assert!(refused.to_string().contains("safe point"), "{refused}");
    // A store that comes back refuses it before it has heard of anything new.
    for store in &mut cluster.stores {
        store.restart().expect("it comes back");
    }
    let refused = client.snapshot(commits[3]).get("short").await.expect_err("below the safe point");
    assert!(matches!(refused, Error::TooOld { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_keeps_what_was_visible_at_it() {
    let cluster = ProcessCluster::start(eager()).expect("three stores");
    let (client, by_hand) = clients(&cluster).await;
    let scheduler = client.scheduler().clone();
    let backup_ts = {
        put(&client, "k", "first").await;
        put(&client, "k", "kept").await
    };
    scheduler.set_gc_barrier("backup", backup_ts, None).await.expect("a barrier");
    let mut newest = backup_ts;
    for n in 0..10 {
        newest = put(&client, "k", n.to_string()).await;
    }
    let_loose(&cluster);
    let at_barrier = backup_ts.physical_ms() as f64;
    let is_held = |store: &Store| metric(store, "kvasir_gc_safe_point_ms") == at_barrier;
    wait_on_all(&cluster, "the safe point at the barrier", is_held).expect("it moves as far as it may");
    // The first version goes, the ten above the barrier and the one at it stay.
    wait_records(&by_hand, "k", 11).await;
    let kept = client.snapshot(backup_ts).get("k").await.expect("a read at the barrier");
    assert_eq!(kept.as_deref(), Some(&b"kept"[..]));
    let state = scheduler.gc_state().await.expect("the state");
    assert_eq!((state.txn_safe_point, state.gc_safe_point), (backup_ts, backup_ts));

    scheduler.delete_gc_barrier("backup").await.expect("an answer").expect("it was there");
    wait_records(&by_hand, "k", 1).await;
    assert!(matches!(client.snapshot(backup_ts).get("k").await, Err(Error::TooOld { .. })));
    let state = scheduler.gc_state().await.expect("the state");
    assert!(state.gc_safe_point >= newest && state.gc_safe_point <= state.txn_safe_point, "{state:?}");
}

/// The cleaner would leave them alone: their clients may be alive. The safe point does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_older_than_the_life_time_are_ended_in_all_regions() {
    let mut options = eager();
    options.store_config += "lock-cleaner-interval = \"0s\"\n";
    let cluster = ProcessCluster::start(options).expect("three stores");
    let (client, by_hand) = clients(&cluster).await;
    by_hand.regions().split(&by_hand.keys(&["g", "p"])).await.expect("three regions");
    let reader = client.begin_optimistic().await.expect("a transaction");
    let long = by_hand.begin("a").await.expect("a timestamp");
    crash(&by_hand, &long, &[("a", "late"), ("k", "late"), ("z", "late")]).await;

    let_loose(&cluster);
    wait_locks(&client, |left| left == 0).await;
    let commit_ts = by_hand.timestamp().await.expect("a timestamp");
    let refused = by_hand.commit(long.start_ts, commit_ts, &["a"]).await.expect("an answer");
    assert!(refused.error.is_some(), "it was rolled back");
    let now = client.snapshot(client.current_timestamp().await.expect("a timestamp"));
    for key in ["a", "k", "z"] {
        assert_eq!(now.get(key).await.expect("a get"), None, "{key}");
    }
    // The store that serves the key may hear of the safe point a little later than the one that moved it.
    let deadline = tokio::time::Instant::now() + SOON;
    let refused = loop {
        match reader.get("a").await {
            Err(refused) => break refused,
            Ok(found) => assert_eq!(found, None, "it was rolled back"),
        }
        assert!(tokio::time::Instant::now() < deadline, "it is as old as the other one");
    };
    assert!(matches!(refused, Error::TooOld { .. }), "{refused}");
    // One that begins now has its time.
    put(&client, "a", "fresh").await;
}

/// Waits until so many locks are left; returns their keys.
async fn wait_locks(client: &TransactionClient, want: impl Fn(usize) -> bool) -> Vec<Bytes> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let locks = client.scan_locks(.., Timestamp::MAX, 100).await.expect("a look at the locks");
        if want(locks.len()) {
            return locks.into_iter().map(|lock| lock.key).collect();
        }
        assert!(tokio::time::Instant::now() < deadline, "{} locks are left", locks.len());
        tokio::task::yield_now().await;
    }
}

/// A client sends what `pairs` say for a transaction whose locks expire at once, and is never heard of again.
async fn crash(by_hand: &ByHand, draft: &Draft, pairs: &[(&str, &str)]) {
    for pair in pairs {
        let answer = by_hand.prewrite(draft, &[*pair]).await.expect("an answer");
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_of_dead_clients_disappear_by_themselves() {
    let cluster = ProcessCluster::start(cleaning()).expect("three stores");
    let (client, by_hand) = clients(&cluster).await;
    put(&client, "a", "before").await;

    let plain = by_hand.begin("a").await.expect("a timestamp").expired();
    crash(&by_hand, &plain, &[("a", "lost"), ("b", "lost")]).await;
    let done = by_hand.begin("c").await.expect("a timestamp").expired().with_async_commit(&["d"]);
    crash(&by_hand, &done, &[("d", "kept"), ("c", "kept")]).await;
    let half = by_hand.begin("e").await.expect("a timestamp").expired().with_async_commit(&["f", "g"]);
    crash(&by_hand, &half, &[("e", "lost"), ("f", "lost")]).await;
    let orphan = by_hand.begin("never written").await.expect("a timestamp").expired();
    crash(&by_hand, &orphan, &[("h", "lost")]).await;
    let committed = by_hand.begin("i").await.expect("a timestamp").expired();
    crash(&by_hand, &committed, &[("j", "kept"), ("i", "kept")]).await;
    let commit_ts = by_hand.timestamp().await.expect("a timestamp");
    let answer = by_hand.commit(committed.start_ts, commit_ts, &["i"]).await.expect("an answer");
    // The cleaner may have been quicker: then the transaction is rolled back, as any that is too slow.
    let is_committed = answer.error.is_none();
    let alive = by_hand.begin("k").await.expect("a timestamp");
    crash(&by_hand, &alive, &[("k", "waits")]).await;

    assert_eq!(wait_locks(&client, |left| left == 1).await, ["k"], "the one that lives stays");
    let now = client.snapshot(client.current_timestamp().await.expect("a timestamp"));
    let expected = |kept: bool| kept.then_some(Bytes::from_static(b"kept"));
    assert_eq!(now.get("a").await.expect("a get").as_deref(), Some(&b"before"[..]));
    for (key, want) in [("b", false), ("c", true), ("d", true), ("e", false), ("f", false), ("h", false)] {
        assert_eq!(now.get(key).await.expect("a get"), expected(want), "{key}");
    }
    for key in ["i", "j"] {
        assert_eq!(now.get(key).await.expect("a get"), expected(is_committed), "{key}");
    }
    let ended: f64 =
        cluster.stores.iter().map(|store| metric(store, "kvasir_lock_cleaner_ended_total")).sum();
    assert!(ended >= 4.0, "{ended} transactions were ended by the cleaner");
}
