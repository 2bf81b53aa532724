//! The raw client against a small cluster in this process: every operation across regions, batching into frames,
//! and what happens when leaders move, regions split, streams break and stores fall silent.

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Cluster, eventually};
use futures::StreamExt;
use kvclient::{Api, Cas, Config, Error, KvPair, RawClient, Ttl, prefix};
use kvproto::kvrpcpb::ApiVersion::{self, V1, V2};
use tokio::sync::Semaphore;

fn pair(key: &str, value: &str) -> KvPair {
    KvPair { key: Bytes::from(key.to_string()), value: Bytes::from(value.to_string()) }
}

fn pairs(names: &str) -> Vec<KvPair> {
    names.chars().map(|name| pair(&name.to_string(), &name.to_string())).collect()
}

/// A cluster of two stores with three regions and the keys a to z.
async fn alphabet(api: ApiVersion) -> (Cluster, RawClient) {
    let cluster = Cluster::start(api, 2).await;
    cluster.world.split("h", 2);
    cluster.world.split("p", 1);
    let client = cluster.client().await;
    client.batch_put(('a'..='z').map(|name| (name.to_string(), name.to_string()))).await.unwrap();
    (cluster, client)
}

#[tokio::test]
async fn single_keys() {
    let (cluster, client) = alphabet(V2).await;
    assert_eq!(client.get("q").await.unwrap(), Some(Bytes::from("q")));
    assert_eq!(client.get("nothing").await.unwrap(), None);
    client.put("q", "other").await.unwrap();
    assert_eq!(client.get("q").await.unwrap(), Some(Bytes::from("other")));
    client.delete("q").await.unwrap();
    assert_eq!(client.get("q").await.unwrap(), None);
    client.put_with_ttl("t", "soon gone", 60).await.unwrap();
    assert_eq!(client.ttl("t").await.unwrap(), Ttl::Seconds(60));
    assert_eq!(client.ttl("a").await.unwrap(), Ttl::Never);
    assert_eq!(client.ttl("q").await.unwrap(), Ttl::NotFound);
    assert!(cluster.world.data.lock().keys().all(|key| key.starts_with(b"r\0\0\0")));
}

#[tokio::test]
async fn batches_cross_regions() {
    let (cluster, client) = alphabet(V2).await;
    assert_eq!(client.batch_get(["z", "a", "none", "k", "a"]).await.unwrap(), pairs("akz"));
    client.batch_put_with_ttl([("b", "1"), ("k", "2"), ("b", "3")], 9).await.unwrap();
    assert_eq!(client.batch_get(["b", "k"]).await.unwrap(), [pair("b", "3"), pair("k", "2")]);
    assert_eq!(client.ttl("k").await.unwrap(), Ttl::Seconds(9));
    client.batch_delete(["a", "k", "z"]).await.unwrap();
    assert_eq!(cluster.world.data.lock().len(), 23);
    client.batch_get(Vec::<Bytes>::new()).await.unwrap();
}

#[tokio::test]
async fn scans_cross_regions_in_both_directions() {
    for api in [V1, V2] {
        let (_cluster, client) = alphabet(api).await;
        let all = pairs("abcdefghijklmnopqrstuvwxyz");
        let reversed: Vec<KvPair> = all.iter().rev().cloned().collect();
        for page in [1, 2, 3, 7, 8, 9, 26, 1000] {
            assert_eq!(client.scan(..).page_size(page).collect().await.unwrap(), all, "{page}");
            assert_eq!(
                client.scan(..).reverse().page_size(page).collect().await.unwrap(),
                reversed,
                "{page}"
            );
            let some = client.scan("f".."r").page_size(page).limit(9).collect().await.unwrap();
            assert_eq!(some, pairs("fghijklmn"), "{page}");
            let some = client.scan("f"..="r").reverse().page_size(page).limit(9).collect().await.unwrap();
            assert_eq!(some, pairs("rqponmlkj"), "{page}");
        }
        assert_eq!(client.scan("h".."p").collect().await.unwrap(), pairs("hijklmno"));
        assert_eq!(client.scan("h".."p").reverse().limit(1).collect().await.unwrap(), pairs("o"));
        assert_eq!(client.scan(prefix("m")).keys_only().collect().await.unwrap(), [pair("m", "")]);
        assert_eq!(client.scan("p".."a").collect().await.unwrap(), []);
        assert_eq!(client.scan(..).limit(0).collect().await.unwrap(), []);
        let both = client.batch_scan(["a".."z", "o".."q"], 3).await.unwrap();
        assert_eq!(both, [pairs("abc"), pairs("op")]);
    }
}

#[tokio::test]
async fn scan_goes_on_where_a_store_cut_a_large_reply() {
    let cluster = Cluster::start(V2, 1).await;
    let client = cluster.client().await;
    let value = Bytes::from(vec![1; 400 << 10]);
    client.batch_put((0..9).map(|n| (format!("k{n}"), value.clone()))).await.unwrap();
    let keys: Vec<_> = client.scan(..).collect().await.unwrap().into_iter().map(|pair| pair.key).collect();
    assert_eq!(keys, (0..9).map(|n| Bytes::from(format!("k{n}"))).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_reader_of_a_scan_may_ask_for_what_the_scan_is_about_to_look_up() {
    let (cluster, _) = alphabet(V2).await;
    // A client that knows no region: the next page and the reader look up the same one.
    let client = cluster.client().await;
    let mut stream = client.scan(..).stream();
    let mut read = Vec::new();
    while let Some(pair) = stream.next().await {
        read.push(pair.unwrap());
        for first in ["h", "p"] {
            assert_eq!(client.get(first).await.unwrap().unwrap(), first);
        }
    }
    assert_eq!(read, pairs("abcdefghijklmnopqrstuvwxyz"));
}

#[tokio::test]
async fn pieces_go_on_while_the_region_of_the_next_one_is_looked_up() {
    let (cluster, _) = alphabet(V2).await;
    let client = cluster.client().await;
    assert_eq!(client.get("a").await.unwrap().unwrap(), "a");
    let executed = cluster.world.executed.load(SeqCst);
    let lookups = &cluster.world.pd.lookups;
    lookups.forget_permits(Semaphore::MAX_PERMITS);
    let read = async { client.batch_get(["a", "k", "z"]).await.unwrap() };
    let allow = async {
        eventually("the first piece waits", || cluster.world.executed.load(SeqCst) > executed).await;
        lookups.add_permits(16);
    };
    assert_eq!(futures::join!(read, allow).0, pairs("akz"));
}

#[tokio::test]
async fn ranges_are_deleted_and_summed_across_regions() {
    let (cluster, client) = alphabet(V2).await;
    let sum = client.checksum("g".."r").await.unwrap();
    assert_eq!(sum.total_kvs, 11);
    assert_eq!(sum.crc64_xor, (b'g'..b'r').fold(0, |sum, byte| sum ^ u64::from(byte)));
    client.delete_range("c"..="x").await.unwrap();
    assert_eq!(client.scan(..).collect().await.unwrap(), pairs("abyz"));
    client.delete_range(..).await.unwrap();
    assert!(cluster.world.data.lock().is_empty());
}

#[tokio::test]
async fn compare_and_swap_tells_what_it_found() {
    let cluster = Cluster::start(V2, 1).await;
    let client = cluster.client().await;
    let (one, two) = (Bytes::from("1"), Bytes::from("2"));
    let cas = client.compare_and_swap("k", None, one.clone()).await.unwrap();
    assert_eq!(cas, Cas { swapped: true, previous: None });
    let cas = client.compare_and_swap("k", None, two.clone()).await.unwrap();
    assert_eq!(cas, Cas { swapped: false, previous: Some(one.clone()) });
    let cas = client.compare_and_swap("k", Some(one.clone()), two.clone()).await.unwrap();
    assert_eq!(cas, Cas { swapped: true, previous: Some(one) });
    assert!(client.compare_and_delete("k", two).await.unwrap().swapped);
    assert_eq!(client.atomic().get("k").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_made_at_the_same_time_share_frames() {
    let (cluster, client) = alphabet(V2).await;
    client.get("a").await.unwrap();
    cluster.world.frames.lock().clear();
    let caller = |client: RawClient| async move {
        for _ in 0..100 {
            assert!(client.get("a").await.unwrap().is_some());
        }
    };
    let callers: Vec<_> = (0..64).map(|_| tokio::spawn(caller(client.clone()))).collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let frames = cluster.world.frames.lock().clone();
    assert_eq!(frames.iter().sum::<usize>(), 6400);
    assert!(frames.len() < 6400 / 8, "{} frames for 6400 requests", frames.len());
    assert!(frames.iter().all(|requests| *requests <= 256));
}

#[tokio::test]
async fn a_moved_leader_is_found_with_and_without_a_hint() {
    let (cluster, client) = alphabet(V2).await;
    for hide in [false, true] {
        cluster.world.hide_leader.store(hide, SeqCst);
        for leader in [2, 1, 2] {
            cluster.world.lead(1, leader);
            assert_eq!(client.get("a").await.unwrap(), Some(Bytes::from("a")));
            client.put("a", "a").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_split_in_the_middle_of_a_scan_skips_and_repeats_nothing() {
    let (cluster, client) = alphabet(V2).await;
    for reverse in [false, true] {
        let scan = client.scan(..).page_size(3);
        let mut stream = if reverse { scan.reverse() } else { scan }.stream();
        let mut seen = Vec::new();
        while let Some(pair) = stream.next().await {
            seen.push(pair.unwrap());
            if seen.len() == 2 {
                cluster.world.split(if reverse { "v" } else { "e" }, 2);
            }
        }
        if reverse {
            seen.reverse();
        }
        assert_eq!(seen, pairs("abcdefghijklmnopqrstuvwxyz"));
    }
}

#[tokio::test]
async fn a_split_during_a_batch_sends_each_key_to_its_new_region() {
    let (cluster, client) = alphabet(V2).await;
    for at in ["c", "e", "k", "u"] {
        cluster.world.split(at, 2);
        let keys = ('a'..='z').map(|name| name.to_string());
        assert_eq!(client.batch_get(keys).await.unwrap(), pairs("abcdefghijklmnopqrstuvwxyz"));
    }
}

#[tokio::test]
async fn reads_and_writes_survive_broken_streams() {
    let (cluster, client) = alphabet(V2).await;
    for round in 0..5 {
        cluster.world.mute.store(true, SeqCst);
        let frames = cluster.world.frames.lock().len();
        let value = format!("round {round}");
        let (get, put) = (client.get("a"), client.put("z", value.clone()));
        let breaker = async {
            eventually("both are sent", || cluster.world.frames.lock().len() > frames).await;
            cluster.world.mute.store(false, SeqCst);
            cluster.world.break_streams();
        };
        let (got, put, ()) = tokio::join!(get, put, breaker);
        assert_eq!(got.unwrap(), Some(Bytes::from("a")));
        put.unwrap();
        assert_eq!(client.get("z").await.unwrap(), Some(Bytes::from(value)));
    }
}

#[tokio::test]
async fn a_swap_whose_connection_breaks_is_undetermined_and_not_repeated() {
    let cluster = Cluster::start(V2, 1).await;
    let client = cluster.client().await;
    cluster.world.break_cas.store(true, SeqCst);
    let error = client.compare_and_swap("k", None, "mine").await.unwrap_err();
    assert!(matches!(error, Error::Undetermined { .. }), "{error}");
    assert!(!error.is_retryable());
    assert_eq!(client.get("k").await.unwrap(), Some(Bytes::from("mine")));
}

/// An atomic client's put is on its way and unanswered when `end` happens to the stream.
async fn put_while(end: impl FnOnce(&common::World)) -> kvclient::Result<()> {
    let cluster = Cluster::start(V2, 1).await;
    let client = cluster.client().await.atomic();
    cluster.world.mute.store(true, SeqCst);
    let ending = async {
        eventually("it is sent", || !cluster.world.frames.lock().is_empty()).await;
        cluster.world.mute.store(false, SeqCst);
        end(&cluster.world);
    };
    tokio::join!(client.put("k", "v"), ending).0
}

#[tokio::test]
async fn an_atomic_put_is_sent_again_after_an_orderly_end_and_never_after_a_break() {
    put_while(|world| world.finish_streams())
        .await
        .expect("a store that stops has executed nothing unanswered");
    let error = put_while(|world| world.break_streams()).await.unwrap_err();
    assert!(matches!(error, Error::Undetermined { .. }), "{error}");
}

#[tokio::test]
async fn a_store_that_comes_back_elsewhere_is_found() {
    let mut cluster = Cluster::start(V2, 1).await;
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    for _ in 0..3 {
        drop(cluster.stores.remove(&1));
        // The connection is gone once a read has noticed; what follows is sent to nobody, so even a swap goes on.
        let (read, ()) = tokio::join!(client.get("k"), async { cluster.start_store(1) });
        assert_eq!(read.unwrap(), Some(Bytes::from("v")));
        let swap = client.compare_and_swap("k", Some("v".into()), "v").await;
        assert!(swap.unwrap().swapped);
        assert_eq!(client.get("k").await.unwrap(), Some(Bytes::from("v")));
    }
}

#[tokio::test]
async fn silence_ends_in_a_timeout_for_reads_and_in_an_unknown_outcome_for_writes() {
    let cluster = Cluster::start(V2, 1).await;
    let config = Config {
        timeout: Duration::from_millis(300),
        attempt_timeout: Duration::from_millis(80),
        ..Config::default()
    };
    let client = cluster.client_with(config).await;
    client.put("k", "v").await.unwrap();
    cluster.world.mute.store(true, SeqCst);
    let started = Instant::now();
    let (read, write) = tokio::join!(client.get("k"), client.put("k", "w"));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let (read, write) = (read.unwrap_err(), write.unwrap_err());
    assert!(matches!(&read, Error::Timeout { last: Some(_), .. }) && read.is_retryable(), "{read}");
    assert!(matches!(write, Error::Undetermined { .. }), "{write}");
    cluster.world.mute.store(false, SeqCst);
    assert!(client.get("k").await.unwrap().is_some());
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_their_turn() {
    let cluster = Cluster::start(V2, 1).await;
    let client = cluster.client_with(Config { max_in_flight: 2, ..Config::default() }).await;
    client.put("k", "v").await.unwrap();
    cluster.world.frames.lock().clear();
    let gets = (0..50).map(|_| client.get("k"));
    let values = futures::future::try_join_all(gets).await.unwrap();
    assert!(values.iter().all(Option::is_some));
    assert!(cluster.world.frames.lock().iter().all(|requests| *requests <= 2));
}

#[tokio::test]
async fn callers_that_give_up_leave_room_for_others() {
    let cluster = Cluster::start(V2, 1).await;
    let client = cluster.client_with(Config { max_in_flight: 4, ..Config::default() }).await;
    client.put("k", "v").await.unwrap();
    cluster.world.mute.store(true, SeqCst);
    for _ in 0..3 {
        let gets = futures::future::join_all((0..4).map(|_| client.get("k")));
        assert!(tokio::time::timeout(Duration::from_millis(5), gets).await.is_err());
    }
    cluster.world.mute.store(false, SeqCst);
    assert!(client.get("k").await.unwrap().is_some());
}

#[tokio::test]
async fn concurrent_misses_ask_the_scheduler_once() {
    let cluster = Cluster::start(V2, 1).await;
    let client = cluster.client().await;
    futures::future::try_join_all((0..100).map(|_| client.get("k"))).await.unwrap();
    assert_eq!(cluster.world.get_region_calls.load(SeqCst), 1);
}

#[tokio::test]
async fn a_v1_cluster_gets_plain_keys() {
    let (cluster, client) = alphabet(V1).await;
    assert!(cluster.world.data.lock().contains_key(&Bytes::from("a")));
    assert_eq!(client.get("q").await.unwrap(), Some(Bytes::from("q")));
    client.delete_range(.."p").await.unwrap();
    assert_eq!(client.scan(..).collect().await.unwrap(), pairs("pqrstuvwxyz"));
}

#[tokio::test]
async fn unusable_configurations_and_arguments_have_typed_errors() {
    let cluster = Cluster::start(V2, 1).await;
    let endpoint = cluster.scheduler.address.to_string();
    let connect = |config: Config| RawClient::with_config([endpoint.clone()], config);
    let error = connect(Config { api: Api::V1, ..Config::default() }).await.err().unwrap();
    assert!(matches!(error, Error::ApiMismatch { wanted: "v1", cluster: "v2" }), "{error}");
    let error = connect(Config { keyspace: "none".to_string(), ..Config::default() }).await.err().unwrap();
    assert!(matches!(error, Error::KeyspaceNotFound(_)), "{error}");
    let error = connect(Config { keyspace: "old".to_string(), ..Config::default() }).await.err().unwrap();
    assert!(matches!(error, Error::KeyspaceNotEnabled { .. }), "{error}");
    let client = cluster.client().await;
    let error = client.put(vec![b'k'; 8193], "v").await.unwrap_err();
    assert!(matches!(error, Error::KeyTooLarge { size: 8193, limit: 8192 }), "{error}");
    cluster.world.pd.bootstrapped.store(false, SeqCst);
    let config = Config { timeout: Duration::from_millis(100), ..Config::default() };
    let error = connect(config).await.err().unwrap();
    assert!(matches!(error, Error::NotBootstrapped), "{error}");
}
