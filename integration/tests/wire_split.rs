//! Regions that are divided under clients: by themselves when they have grown, and by `SplitRegion`. The official Rust
//! client reads, writes and scans across them meanwhile, and meets no error.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use integration::cluster::regions::{Regions, raw_key};
use integration::cluster::{ClusterOptions, ProcessCluster, wait_for, wait_until};
use kvproto::kvrpcpb as pb;
use tikv_client::{Config, Error, KvPair, RawClient};
use tonic::Code;

const SOON: Duration = Duration::from_secs(60);

fn start(store_config: &str) -> ProcessCluster {
    let options = ClusterOptions { store_config: store_config.to_string(), ..ClusterOptions::default() };
    ProcessCluster::start(options.with_leaders_at_rest()).expect("a cluster of three stores")
}

async fn official(cluster: &ProcessCluster) -> RawClient {
    let config = Config::default().with_default_keyspace();
    RawClient::new_with_config(vec![cluster.endpoint()], config).await.expect("a client")
}

fn key(writer: usize, n: usize) -> String {
    format!("w{writer}/{n:05}")
}

/// What one task does again and again to keys of its own; returns what must be there in the end.
async fn work(
    client: RawClient,
    writer: usize,
    stop: Arc<AtomicBool>,
) -> Result<BTreeMap<String, String>, Error> {
    let mut there = BTreeMap::new();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let batch: Vec<KvPair> = (n..n + 40).map(|n| KvPair::new(key(writer, n), n.to_string())).collect();
        client.batch_put(batch).await?;
        there.extend((n..n + 40).map(|n| (key(writer, n), n.to_string())));
        client.put(key(writer, n), "again".to_string()).await?;
        there.insert(key(writer, n), "again".into());
        client.delete(key(writer, n + 1)).await?;
        there.remove(&key(writer, n + 1));
        assert_eq!(client.get(key(writer, n)).await?, Some(b"again".to_vec()));
        let names = (0..n + 40).step_by(7).map(|n| key(writer, n));
        let wanted = names.clone().filter(|name| there.contains_key(name)).count();
        assert_eq!(client.batch_get(names).await?.len(), wanted);
        check(&client, writer, &there).await?;
        n += 40;
    }
    Ok(there)
}

/// A scan over everything that a task wrote gives exactly that.
async fn check(client: &RawClient, writer: usize, there: &BTreeMap<String, String>) -> Result<(), Error> {
    let range: Range<String> = key(writer, 0)..key(writer, 99_999);
    let limit = u32::try_from(there.len() + 10).expect("a few thousand keys");
    let found = client.scan(range, limit).await?;
    let found: BTreeMap<String, String> = found
        .into_iter()
        .map(|KvPair(key, value)| {
            let key: Vec<u8> = key.into();
            (String::from_utf8(key).expect("text"), String::from_utf8(value).expect("text"))
        })
        .collect();
    assert_eq!(&found, there, "writer {writer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_meets_no_error_while_regions_are_divided_under_it() {
    const WRITERS: usize = 4;
    let cluster = start("");
    let client = official(&cluster).await;
    let regions = Regions::connect(&cluster.endpoint()).await.expect("a connection");
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(work(client.clone(), writer, stop.clone()))).collect();
    let before = regions.all().await.expect("regions").len();
    for n in (0..1_000).step_by(125) {
        for writer in 0..WRITERS {
            let cuts = [raw_key(&key(writer, n)), raw_key(&key(writer, n + 60))];
            // Two cuts at once where the region has both; the second may lie in the next one later on.
            let made = regions.split(&cuts[..1]).await.expect("a division");
            assert!((1..=2).contains(&made.len()), "{made:?}");
            let made = regions.split(&cuts[1..]).await.expect("a division");
            assert!(made.windows(2).all(|pair| pair[0].end_key == pair[1].start_key));
        }
    }
    stop.store(true, Ordering::Relaxed);
    for (writer, task) in tasks.into_iter().enumerate() {
        let there = task.await.expect("no wrong answer").expect("no error");
        check(&client, writer, &there).await.expect("a scan");
    }
    let all = regions.all().await.expect("regions");
    assert_eq!(all.len(), before + 16 * WRITERS);
    assert!(all.windows(2).all(|pair| pair[0].end_key == pair[1].start_key), "they tile the key space");
    cluster.wait_replicated().expect("every region has its replicas");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_filled_divides_its_regions_by_itself() {
    // A v2 cluster starts with five regions, of which one is filled; a v1 cluster with one.
    fill("", Config::default().with_default_keyspace(), 5 + 10).await;
    fill("[storage]\napi = \"v1\"\n", Config::default(), 1 + 10).await;
}

/// Fills a store whose regions may only be small until there are so many, and looks whether everything is there.
async fn fill(api: &str, config: Config, regions: usize) {
    const SMALL: &str = "[coprocessor]\nregion-split-size = \"256KiB\"\nsplit-check-interval = \"200ms\"\n\
                         [raftstore]\npd-heartbeat-tick-interval = \"500ms\"\n";
    let cluster = start(&format!("{SMALL}{api}"));
    let client = RawClient::new_with_config(vec![cluster.endpoint()], config).await.expect("a client");
    let value = |n: usize| -> Vec<u8> { (0..1024).map(|at| (n * 31 + at * 7 % 251) as u8).collect() };
    let name = |n: usize| format!("fill/{n:05}");
    for chunk in (0..4_000).collect::<Vec<_>>().chunks(100) {
        client.batch_put(chunk.iter().map(|n| KvPair::new(name(*n), value(*n)))).await.expect("a batch put");
    }
    // 4 MiB of data: no region of it may stay above 384 KiB.
    let list = || cluster.api("/pd/api/v1/regions").ok()?["regions"].as_array().cloned();
    wait_until("small regions", SOON, || list().is_some_and(|all| all.len() >= regions)).expect("divided");
    cluster.wait_replicated().expect("every region has its replicas");
    let keys =
        |all: &[serde_json::Value]| all.iter().filter_map(|r| r["approximate_keys"].as_u64()).sum::<u64>();
    let counted =
        wait_for("the number of keys", SOON, || list().map(|all| keys(&all)).filter(|n| *n >= 3_500));
    assert!(counted.expect("the regions tell their keys") <= 4_500);
    for chunk in (0..4_000).collect::<Vec<_>>().chunks(500) {
        let found = client.batch_get(chunk.iter().map(|n| name(*n))).await.expect("a batch get");
        assert_eq!(found.len(), chunk.len());
        let right = |KvPair(key, stored): &KvPair| {
            let key: Vec<u8> = key.clone().into();
            let n: usize = std::str::from_utf8(&key[5..]).expect("text").parse().expect("a number");
            *stored == value(n)
        };
        assert!(found.iter().all(right));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_about_a_region_are_answered_with_what_the_store_knows() {
    let cluster = start("");
    let regions = Regions::connect(&cluster.endpoint()).await.expect("a connection");
    let old = regions.of(&raw_key("m")).await.expect("a region");
    let mut leader = regions.store(old.leader.store_id).await.expect("a connection");
    let split = |context: Option<pb::Context>, keys: &[&str]| pb::SplitRegionRequest {
        context,
        split_keys: keys.iter().map(|key| raw_key(key)).collect(),
        is_raw_kv: true,
        ..Default::default()
    };
    let made =
        leader.split_region(split(Some(old.context()), &["m", "t"])).await.expect("an answer").into_inner();
    assert_eq!((made.region_error, made.errors.len(), made.regions.len()), (None, 0, 3));

    // An old view is answered with all of them, whatever was asked.
    let stale =
        leader.split_region(split(Some(old.context()), &["c"])).await.expect("an answer").into_inner();
    let told = stale.region_error.expect("refused").epoch_not_match.expect("an epoch").current_regions;
    assert!(made.regions.iter().all(|region| told.contains(region)), "{told:?}");
    let get = pb::RawGetRequest { context: Some(old.context()), key: raw_key("a"), ..Default::default() };
    let stale = leader.raw_get(get).await.expect("an answer").into_inner();
    let told = stale.region_error.expect("refused").epoch_not_match.expect("an epoch").current_regions;
    assert!(made.regions.iter().all(|region| told.contains(region)), "{told:?}");

    let now = regions.of(&raw_key("m")).await.expect("a region");
    let outside =
        leader.split_region(split(Some(now.context()), &["zz"])).await.expect("an answer").into_inner();
    assert!(outside.region_error.expect("refused").key_not_in_region.is_some());
    let again =
        leader.split_region(split(Some(now.context()), &["m"])).await.expect("an answer").into_inner();
    assert_eq!(again.regions, std::slice::from_ref(&now.region), "it is divided there already");
    for (keys, why) in [(vec![Bytes::new()], "empty key"), (vec![Bytes::from("plain")], "keyspace")] {
        let request = pb::SplitRegionRequest { split_keys: keys, ..split(Some(now.context()), &[]) };
        let refused = leader.split_region(request).await.expect("an answer").into_inner();
        assert!(refused.errors[0].abort.contains(why), "{}", refused.errors[0].abort);
    }

    check_leader_and_read_index(&regions).await;
    let waiting = leader.get_lock_wait_info(pb::GetLockWaitInfoRequest::default()).await.expect("an answer");
    assert_eq!(waiting.into_inner().entries, []);
    leader.broadcast_txn_status(pb::BroadcastTxnStatusRequest::default()).await.expect("an answer");
    let safe = leader.get_store_safe_ts(pb::StoreSafeTsRequest::default()).await.expect("an answer");
    assert_eq!(safe.into_inner().safe_ts, 0);
    let health =
        leader.get_health_feedback(pb::GetHealthFeedbackRequest::default()).await.expect("an answer");
    assert_eq!(health.into_inner().health_feedback.expect("feedback").slow_score, 1);
}

async fn check_leader_and_read_index(regions: &Regions) {
    let at = regions.of(&raw_key("m")).await.expect("a region");
    let mut leader = regions.store(at.leader.store_id).await.expect("a connection");
    let ask = |context| pb::ReadIndexRequest { context: Some(context), ..Default::default() };
    let index = leader.read_index(ask(at.context())).await.expect("an answer").into_inner();
    assert!(index.region_error.is_none() && index.read_index > 0);
    let put = pb::RawPutRequest {
        context: Some(at.context()),
        key: raw_key("m"),
        value: "v".into(),
        ..Default::default()
    };
    let put = leader.raw_put(put).await.expect("an answer").into_inner();
    assert_eq!((put.region_error, put.error), (None, String::new()));
    let later = leader.read_index(ask(at.context())).await.expect("an answer").into_inner();
    assert!(later.read_index > index.read_index, "a write is in the log");

    let follower = at.region.peers.iter().find(|p| p.id != at.leader.id).expect("three peers");
    let mut other = regions.store(follower.store_id).await.expect("a connection");
    let context = pb::Context { peer: Some(*follower), ..at.context() };
    let deadline = Instant::now() + SOON;
    let named = loop {
        let elsewhere = other.read_index(ask(context.clone())).await.expect("an answer").into_inner();
        let refused = elsewhere.region_error.expect("it does not lead");
        if let Some(not_leader) = refused.not_leader {
            break not_leader.leader;
        }
        // It has yet to hear of the division.
        assert!(Instant::now() < deadline, "{refused:?}");
    };
    assert_eq!(named.map(|p| p.id), Some(at.leader.id));

    let info = |term, peer_id| pb::LeaderInfo {
        region_id: at.region.id,
        peer_id,
        term,
        region_epoch: at.region.region_epoch,
        ..Default::default()
    };
    // The term is not told on this way; one of the small ones is right.
    let infos = (1..60).map(|term| info(term, at.leader.id)).collect();
    let request = pb::CheckLeaderRequest { regions: infos, ts: 7 };
    let known = other.check_leader(request).await.expect("an answer").into_inner();
    assert_eq!((known.regions, known.ts), (vec![at.region.id], 7));
    let wrong = pb::CheckLeaderRequest { regions: (1..60).map(|t| info(t, follower.id)).collect(), ts: 7 };
    assert!(other.check_leader(wrong).await.expect("an answer").into_inner().regions.is_empty());
}

#[tokio::test]
async fn calls_that_are_not_served_say_so() {
    let cluster = ProcessCluster::start(ClusterOptions { stores: 1, ..ClusterOptions::default() });
    let cluster = cluster.expect("a cluster of one store");
    let regions = Regions::connect(&cluster.endpoint()).await.expect("a connection");
    let at = regions.of(&raw_key("m")).await.expect("a region");
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", cluster.stores[0].address));
    let channel = channel.expect("an address").connect().await.expect("a connection");
    for path in ["/tikvpb.Tikv/KvGC", "/tikvpb.Tikv/Coprocessor", "/debugpb.Debug/Get"] {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.expect("a channel");
        let codec = tonic_prost::ProstCodec::<pb::GetRequest, pb::GetResponse>::default();
        let request = pb::GetRequest { context: Some(at.context()), ..Default::default() };
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let refused = grpc.unary(tonic::Request::new(request), path, codec).await;
        assert_eq!(refused.map(|_| ()).expect_err("not served").code(), Code::Unimplemented);
    }
}
