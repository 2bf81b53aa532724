//! Transactions of our own SDK against real processes: a standalone store, and three stores whose regions cut through
//! the keys. What they see, how they meet each other, and what they find of clients that died.

use std::time::Duration;

use integration::cluster::by_hand::{ByHand, Draft};
use integration::cluster::split::split_at;
use integration::cluster::{ClusterOptions, ProcessCluster, Standalone};
use kvclient::{
    Api, Bytes, Config, ConflictReason, Error, KvPair, Result, Timestamp, TransactionClient, TxnOptions,
};
use kvproto::kvrpcpb::{ApiVersion, PrewriteRequest};
use kvproto::tikvpb::batch_commands_request::request::Cmd;

const WITHIN: Duration = Duration::from_secs(60);

/// What a test needs of a cluster, of whatever kind.
struct Under {
    client: TransactionClient,
    by_hand: ByHand,
}

impl Under {
    async fn test(endpoint: String) -> Under {
        let config = Config { timeout: Duration::from_secs(20), ..Config::default() };
        let client = TransactionClient::with_config([endpoint.clone()], config).await.expect("a client");
        let by_hand = ByHand::connect(&endpoint, ApiVersion::V2).await.expect("a connection");
        Under { client, by_hand }
    }

    /// Cuts the keys at k and r.
    async fn cut(&self) {
        let keys = self.by_hand.keys(&["k", "r"]);
        split_at(self.client.scheduler(), &keys, WITHIN).await.expect("three regions");
    }

    async fn latest(&self, key: &str) -> Option<Bytes> {
        let now = self.client.current_timestamp().await.expect("a timestamp");
        self.client.snapshot(now).get(key.to_string()).await.expect("a value or none")
    }

    async fn put(&self, pairs: &[(&str, &str)]) -> Timestamp {
        let mut txn = self.client.begin_optimistic().await.expect("a transaction");
        for (key, value) in pairs {
            txn.put(key.to_string(), value.to_string()).await.expect("a change");
        }
        txn.commit().await.expect("a commit").expect("something was written")
    }

    /// Waits until no lock is left that is older than now.
    async fn no_locks(&self) {
        let waiting = async {
            loop {
                let locks = self.client.scan_locks(.., Timestamp::MAX, 100).await.expect("a list of locks");
                if locks.is_empty() {
                    return;
                }
                // Between two looks at every region of other processes.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WITHIN, waiting).await.expect("locks go");
    }
}

fn pair(key: &str, value: &str) -> KvPair {
    KvPair { key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn all_options() -> [TxnOptions; 6] {
    [
        TxnOptions::optimistic(),
        TxnOptions::optimistic().one_phase(false),
        TxnOptions::optimistic().one_phase(false).async_commit(false),
        TxnOptions::pessimistic(),
        TxnOptions::pessimistic().one_phase(false),
        TxnOptions::pessimistic().one_phase(false).async_commit(false),
    ]
}

/// Everything that a program does.
async fn every_operation(under: &Under) {
    for (round, options) in all_options().into_iter().enumerate() {
        let round = round.to_string();
        let mut txn = under.client.begin(options.clone()).await.unwrap();
        for key in ["a", "b", "m", "z"] {
            txn.put(key, round.clone()).await.unwrap();
        }
        txn.insert(format!("n{round}"), "new").await.unwrap();
        txn.delete("gone").await.unwrap();
        assert_eq!(txn.scan("a".."c").collect().await.unwrap(), [pair("a", &round), pair("b", &round)]);
        let at = txn.commit().await.unwrap().expect("something was written");
        assert!(at > txn.start_timestamp());
        let now = under.client.snapshot(under.client.current_timestamp().await.unwrap());
        let read = now.batch_get(["z", "a", "none"]).await.unwrap();
        assert_eq!(read, [pair("a", &round), pair("z", &round)], "{options:?}");
        let before = under.client.snapshot(Timestamp::new(at.get() - 1));
        assert_ne!(before.get("m").await.unwrap(), now.get("m").await.unwrap(), "{options:?}");
        let mut again = under.client.begin(options.clone()).await.unwrap();
        let refused = match again.insert(format!("n{round}"), "twice").await {
            Ok(()) => again.commit().await.map(drop),
            refused => refused,
        };
        assert!(matches!(refused, Err(Error::AlreadyExists { .. })), "{options:?}: {refused:?}");
    }
    under.no_locks().await;
    let txn = under.client.begin_optimistic().await.unwrap();
    let names: Vec<KvPair> = txn.scan("n0"..="n5").reverse().collect().await.unwrap();
    assert_eq!(names.len(), 6);
    assert_eq!(names[0], pair("n5", "new"));
    let versions = under.client.mvcc("a").await.unwrap();
    let commits: Vec<u64> = versions.writes.iter().map(|write| write.commit_ts).collect();
    assert_eq!(commits.len(), 6);
    assert!(commits.is_sorted_by(|a, b| a > b), "newest first");
    assert!(under.client.mvcc("none").await.unwrap().writes.is_empty());
}

/// Conflicts, waits and circles.
async fn meetings(under: &Under) {
    under.put(&[("a", "0"), ("z", "0")]).await;
    let mut loser = under.client.begin_optimistic().await.unwrap();
    let winner = under.put(&[("a", "1")]).await;
    loser.put("a", "2").await.unwrap();
    loser.put("z", "2").await.unwrap();
    match loser.commit().await {
        Err(Error::WriteConflict { key, commit_ts, reason: ConflictReason::Optimistic, .. }) => {
            assert_eq!((&key[..], commit_ts), (&b"a"[..], winner));
        }
        other => panic!("{other:?}"),
    }
    let mut holder = under.client.begin_pessimistic().await.unwrap();
    holder.put("a", "held").await.unwrap();
    let hasty = TxnOptions::pessimistic().lock_wait(Duration::ZERO);
    let mut other = under.client.begin(hasty).await.unwrap();
    let refused = other.put("a", "hasty").await;
    assert!(matches!(&refused, Err(Error::KeyLocked { holder: by, .. }) if *by == holder.start_timestamp()));
    // A waiter goes on as soon as the holder has ended, with what the holder wrote.
    let waiting = {
        let mut patient = under.client.begin_pessimistic().await.unwrap();
        tokio::spawn(async move {
            let seen = patient.get_for_update("a").await?;
            patient.put("a", "patient").await?;
            patient.commit().await?;
            Ok::<_, Error>(seen)
        })
    };
    other.put("z", "2").await.unwrap();
    holder.commit().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().unwrap(), "held");
    other.rollback().await.unwrap();
    circle(under).await;
    under.no_locks().await;
}

/// Two transactions lock two keys in opposite orders: one of them is told at once.
async fn circle(under: &Under) {
    let mut first = under.client.begin_pessimistic().await.unwrap();
    let mut second = under.client.begin_pessimistic().await.unwrap();
    first.lock_keys(["a"]).await.unwrap();
    second.lock_keys(["z"]).await.unwrap();
    let (first_ts, second_ts) = (first.start_timestamp(), second.start_timestamp());
    let crossing = tokio::spawn(async move {
        let locked = first.lock_keys(["z"]).await;
        first.rollback().await?;
        locked
    });
    let locked = second.lock_keys(["a"]).await;
    second.rollback().await.unwrap();
    let results = [crossing.await.unwrap(), locked];
    let circles: Vec<&Error> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(circles.len(), 1, "{results:?}");
    match circles[0] {
        Error::Deadlock { chain, .. } => {
            assert!(chain.iter().any(|edge| edge.txn == first_ts && edge.waits_for == second_ts));
            assert!(chain.iter().any(|edge| edge.txn == second_ts && edge.waits_for == first_ts));
        }
        other => panic!("{other}"),
    }
}

/// Concurrent transfers between accounts in all regions: the sum stays in every snapshot.
async fn transfers(under: &Under) {
    let accounts = ["a1", "b1", "l1", "m1", "s1", "z1"];
    under.put(&accounts.map(|account| (account, "100"))).await;
    let tasks = (0..12).map(|task: usize| {
        let client = under.client.clone();
        let options = all_options()[task % 6].clone().retries(1000);
        tokio::spawn(async move {
            for step in 0..10 {
                let from = accounts[(task + step) % 6];
                let to = accounts[(task * 5 + step * 3 + 1) % 6];
                transfer(client.clone(), options.clone(), from, to).await?;
                let now = client.current_timestamp().await?;
                let all = client.snapshot(now).batch_get(accounts).await?;
                assert_eq!(all.iter().map(|pair| number(&pair.value)).sum::<i64>(), 600);
            }
            Ok::<_, Error>(())
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.unwrap().unwrap();
    }
    under.no_locks().await;
}

fn number(value: &[u8]) -> i64 {
    std::str::from_utf8(value).expect("a number in text").parse().expect("a number")
}

async fn transfer(client: TransactionClient, options: TxnOptions, from: &str, to: &str) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let (from, to) = (Bytes::copy_from_slice(from.as_bytes()), Bytes::copy_from_slice(to.as_bytes()));
    let work = async move |txn: &mut kvclient::Transaction| {
        let both = txn.batch_get_for_update([from.clone(), to.clone()]).await?;
        for pair in both {
            let change = if pair.key == from { -1 } else { 1 };
            txn.put(pair.key, (number(&pair.value) + change).to_string()).await?;
        }
        Ok(())
    };
    client.run_with(options, work).await
}

/// What clients that died have left is finished by whoever meets it.
async fn remains(under: &Under) {
    under.put(&[("b2", "old"), ("y2", "old")]).await;
    let prewrite = async |draft: &Draft, key: &str| {
        let reply = under.by_hand.prewrite(draft, &[(key, "new")]).await.unwrap();
        assert!(reply.errors.is_empty(), "{reply:?}");
    };
    // Not yet committed.
    let draft = under.by_hand.begin("b2").await.unwrap().expired();
    prewrite(&draft, "b2").await;
    prewrite(&draft, "y2").await;
    assert_eq!(under.latest("y2").await.unwrap(), "old");
    // Its primary was never locked.
    let draft = under.by_hand.begin("b2").await.unwrap().expired();
    prewrite(&draft, "y2").await;
    assert_eq!(under.latest("y2").await.unwrap(), "old");
    under.put(&[("b2", "old"), ("y2", "old")]).await;
    // Committed at its primary, however long its locks live.
    let draft = under.by_hand.begin("b2").await.unwrap();
    prewrite(&draft, "b2").await;
    prewrite(&draft, "y2").await;
    let commit_ts = under.by_hand.timestamp().await.unwrap();
    let reply = under.by_hand.commit(draft.start_ts, commit_ts, &["b2"]).await.unwrap();
    assert_eq!(reply.error, None);
    assert_eq!(under.latest("y2").await.unwrap(), "new");
    // All locks of an asynchronous commit are there, or one is missing.
    for complete in [true, false] {
        under.put(&[("b2", "old"), ("y2", "old")]).await;
        let draft = under.by_hand.begin("b2").await.unwrap().expired().with_async_commit(&["y2"]);
        prewrite(&draft, "b2").await;
        if complete {
            prewrite(&draft, "y2").await;
        }
        let expected = if complete { "new" } else { "old" };
        assert_eq!(under.latest("b2").await.unwrap(), expected);
        assert_eq!(under.latest("y2").await.unwrap(), expected);
    }
    // A reader goes on beside a transaction that lives; garbage collection ends it.
    under.put(&[("b2", "old"), ("y2", "old")]).await;
    let draft = under.by_hand.begin("b2").await.unwrap();
    for key in ["b2", "y2"] {
        let min_commit_ts = draft.start_ts + 1;
        let request = PrewriteRequest { min_commit_ts, ..under.by_hand.locking(&draft, &[(key, "new")]) };
        let command = |context| Cmd::Prewrite(PrewriteRequest { context: Some(context), ..request.clone() });
        under.by_hand.ask(&under.by_hand.key(key), command).await.unwrap();
    }
    assert_eq!(under.latest("y2").await.unwrap(), "old");
    let now = under.client.current_timestamp().await.unwrap();
    assert_eq!(under.client.cleanup_locks("b2"..="y2", now).await.unwrap(), 2);
    under.no_locks().await;
}

/// More changes than one request carries, in every protocol.
async fn many_changes(under: &Under) {
    let key = |n: u32| format!("{}{n:05}", (b'a' + (n % 26) as u8) as char);
    for options in [TxnOptions::optimistic(), TxnOptions::optimistic().async_commit(false)] {
        let mut txn = under.client.begin(options).await.unwrap();
        for n in 0..3000 {
            txn.put(key(n), vec![b'v'; 500]).await.unwrap();
        }
        txn.commit().await.unwrap().expect("something was written");
    }
    under.no_locks().await;
    let now = under.client.snapshot(under.client.current_timestamp().await.unwrap());
    let found = now.batch_get((0..3000).map(key)).await.unwrap();
    assert_eq!(found.len(), 3000);
    let mut scanned = now.scan(..).keys_only().page_size(100).collect().await.unwrap();
    scanned.retain(|pair| pair.key.len() == key(0).len());
    assert_eq!(scanned.len(), 3000);
}

/// Ranges go, with all their versions.
async fn removal(under: &Under) {
    under.put(&[("d1", "1"), ("m1", "1"), ("z1", "1")]).await;
    // Nobody writes there any more, the rest of the commit included.
    under.no_locks().await;
    under.client.delete_range("d".."e").await.unwrap();
    assert_eq!(under.latest("d1").await, None);
    under.client.unsafe_destroy_range("m".."n").await.unwrap();
    assert!(under.client.mvcc("m1").await.unwrap().writes.is_empty());
    assert_eq!(under.latest("z1").await.unwrap(), "1");
}

async fn everything(endpoint: String, cut: bool) {
    let under = Under::test(endpoint.clone()).await;
    if cut {
        under.cut().await;
    }
    every_operation(&under).await;
    meetings(&under).await;
    transfers(&under).await;
    remains(&under).await;
    removal(&under).await;
    many_changes(&under).await;
    // Keys outside of all keyspaces lie beside them.
    let config = Config { api: Api::V1, ..Config::default() };
    let beside = Under { client: TransactionClient::with_config([endpoint], config).await.unwrap(), ..under };
    assert_eq!(beside.latest("a").await, None);
    beside.put(&[("a", "v1"), ("q", "v1")]).await;
    assert_eq!(beside.latest("a").await.unwrap(), "v1");
    let mut txn = beside.client.begin_optimistic().await.unwrap();
    txn.put("x\0\0\0k", "v").await.unwrap();
    let refused = txn.commit().await.unwrap_err();
    assert!(!refused.is_retryable() && refused.to_string().contains("keyspace"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_store_does_everything() {
    let standalone = Standalone::start("").expect("a standalone store");
    everything(standalone.endpoint(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_stores_do_everything_across_regions() {
    let cluster = ProcessCluster::start(ClusterOptions::default()).expect("a cluster");
    everything(cluster.endpoint(), true).await;
}

#[tokio::test]
async fn a_cluster_of_raw_keys_says_where_transactions_are() {
    let standalone = Standalone::start("[storage]\napi = \"v1\"\n").expect("a standalone store");
    let error = TransactionClient::connect([standalone.endpoint()]).await.err().expect("a refusal");
    assert!(error.to_string().contains("v2"), "{error}");
}
