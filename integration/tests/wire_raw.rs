//! The official Rust client, as published on crates.io, does every raw operation against a real cluster of three
//! stores: in API V2 with keyspace DEFAULT, and in API V1; and against a standalone store. Nothing here uses our own SDK: what passes is what a
//! program written for TiKV meets.
//!
//! The client takes a reply with fewer pairs than its limit as the end of the region, and goes on from the end of
//! the region unless the scan ends at or before it. So a server must never cut a scan short, and in V1, where the
//! last region has no end, only scans that reach their limit come to an end.

use std::future::Future;
use std::time::{Duration, Instant};

use integration::cluster::{ClusterOptions, ProcessCluster, Standalone};
use tikv_client::{Config, Error, Key, KvPair, RawClient, Value};

type Client = RawClient;

const STEP_WITHIN: Duration = Duration::from_secs(15);

/// How a client is set up for a cluster, and what its scans may be asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Api {
    V1,
    V2,
}

impl Api {
    fn store_config(self) -> String {
        match self {
            Api::V1 => "[storage]\napi = \"v1\"\n".to_string(),
            Api::V2 => String::new(),
        }
    }

    fn cluster(self) -> ProcessCluster {
        let options = ClusterOptions { store_config: self.store_config(), ..ClusterOptions::default() };
        ProcessCluster::start(options).expect("a cluster")
    }

    fn standalone(self) -> Standalone {
        Standalone::start(&self.store_config()).expect("a standalone store")
    }

    async fn client(self, endpoint: String) -> Result<Client, Error> {
        let config = match self {
            Api::V1 => Config::default(),
            Api::V2 => Config::default().with_default_keyspace(),
        };
        RawClient::new_with_config(vec![endpoint], config).await
    }

    /// Everything that a program of this version does, and what one of the other version is told.
    async fn check(self, endpoint: String) -> Result<(), Error> {
        every_operation(self, &self.client(endpoint.clone()).await?).await?;
        let (other, ways_out) = match self {
            Api::V1 => (Api::V2, ["api", "v2"]),
            Api::V2 => (Api::V1, ["keyspace DEFAULT", "api = \"v1\""]),
        };
        let refused = match other.client(endpoint).await {
            Ok(client) => client.get(key("k")).await.map(drop),
            Err(error) => Err(error),
        };
        let text = refused.expect_err("the other version is refused").to_string().replace('\\', "");
        assert!(ways_out.iter().all(|way| text.contains(way)), "not helpful: {text}");
        Ok(())
    }
}

fn key(text: &str) -> Key {
    text.as_bytes().to_vec().into()
}

fn pair(text: &str, value: &str) -> KvPair {
    KvPair::new(key(text), value.as_bytes().to_vec())
}

fn texts(pairs: Vec<KvPair>) -> Vec<(String, String)> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("these tests write text");
    pairs.into_iter().map(|KvPair(key, value)| (text(key.into()), text(value))).collect()
}

fn key_texts(keys: Vec<Key>) -> Vec<String> {
    keys.into_iter().map(|key| String::from_utf8(key.into()).expect("these tests write text")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_v2_cluster_serves_every_raw_operation() {
    let cluster = Api::V2.cluster();
    Api::V2.check(cluster.endpoint()).await.expect("every operation succeeds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_v1_cluster_serves_every_raw_operation() {
    let cluster = Api::V1.cluster();
    Api::V1.check(cluster.endpoint()).await.expect("every operation succeeds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_store_serves_every_raw_operation() {
    for api in [Api::V2, Api::V1] {
        let standalone = api.standalone();
        api.check(standalone.endpoint()).await.expect("every operation succeeds");
    }
}

async fn every_operation(api: Api, client: &Client) -> Result<(), Error> {
    step("points", points(client)).await?;
    step("batches", batches(client)).await?;
    step("scans", scans(api, client)).await?;
    step("batch scans", batch_scans(client)).await?;
    step("delete ranges", delete_ranges(api, client)).await?;
    step("times to live", times_to_live(client)).await?;
    step("compare and swap", compare_and_swap(client)).await?;
    step("counted by many", counted_by_many(client)).await?;
    step("large batches", large_batches(client)).await?;
    step("large values", large_values(client)).await?;
    step("long scans", long_scans(client)).await
}

/// Names the step that fails, or that does not end: the client's scans retry for ever.
async fn step(name: &str, run: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    match tokio::time::timeout(STEP_WITHIN, run).await {
        Ok(result) => result.inspect_err(|error| eprintln!("{name}: {error}")),
        Err(_) => panic!("{name}: no end in sight after {STEP_WITHIN:?}"),
    }
}

async fn points(client: &Client) -> Result<(), Error> {
    assert_eq!(client.get(key("point")).await?, None);
    client.put(key("point"), "one").await?;
    client.put(key("point"), "two").await?;
    assert_eq!(client.get(key("point")).await?, Some(Value::from("two")));
    client.put(key("empty value"), "").await?;
    assert_eq!(client.get(key("empty value")).await?, Some(Value::new()));
    let binary: Vec<u8> = (0..=255).collect();
    client.put(binary.clone(), binary.clone()).await?;
    assert_eq!(client.get(binary.clone()).await?, Some(binary));
    client.delete(key("point")).await?;
    client.delete(key("never there")).await?;
    assert_eq!(client.get(key("point")).await?, None);
    Ok(())
}

async fn batches(client: &Client) -> Result<(), Error> {
    client.batch_put([pair("b1", "1"), pair("b2", "2"), pair("b3", "3")]).await?;
    let mut found = texts(client.batch_get(["b3", "absent", "b1"].map(key)).await?);
    found.sort();
    assert_eq!(found, [("b1".into(), "1".into()), ("b3".into(), "3".into())]);
    client.batch_delete(["b1", "absent", "b2"].map(key)).await?;
    assert_eq!(texts(client.batch_get(["b1", "b2", "b3"].map(key)).await?), [("b3".into(), "3".into())]);
    Ok(())
}

async fn scans(api: Api, client: &Client) -> Result<(), Error> {
    client.batch_put((1..=5).map(|n| pair(&format!("s{n}"), &format!("v{n}")))).await?;
    let expected =
        |numbers: &[u32]| numbers.iter().map(|n| (format!("s{n}"), format!("v{n}"))).collect::<Vec<_>>();
    let keys = |numbers: &[u32]| numbers.iter().map(|n| format!("s{n}")).collect::<Vec<_>>();
    assert_eq!(texts(client.scan(key("s2")..key("s5"), 3).await?), expected(&[2, 3, 4]));
    assert_eq!(texts(client.scan(key("s2")..=key("s5"), 4).await?), expected(&[2, 3, 4, 5]));
    assert_eq!(texts(client.scan(key("s1")..key("s5"), 2).await?), expected(&[1, 2]));
    assert_eq!(key_texts(client.scan_keys(key("s1")..=key("s3"), 3).await?), keys(&[1, 2, 3]));
    assert_eq!(texts(client.scan_reverse(key("s2")..key("s5"), 3).await?), expected(&[4, 3, 2]));
    assert_eq!(texts(client.scan_reverse(key("s1")..=key("s5"), 2).await?), expected(&[5, 4]));
    assert_eq!(key_texts(client.scan_keys_reverse(key("s1")..=key("s3"), 3).await?), keys(&[3, 2, 1]));
    if api == Api::V2 {
        assert_eq!(texts(client.scan(key("s2")..key("s5"), 100).await?), expected(&[2, 3, 4]));
        assert_eq!(texts(client.scan(key("s3").., 100).await?)[..3], expected(&[3, 4, 5]));
        assert_eq!(texts(client.scan(key("sx")..key("sy"), 100).await?), []);
        assert_eq!(texts(client.scan_reverse(key("s2")..=key("s3"), 100).await?), expected(&[3, 2]));
    }
    Ok(())
}

async fn batch_scans(client: &Client) -> Result<(), Error> {
    client.batch_put(["m1", "m2", "m3", "n1", "n2"].map(|name| pair(name, name))).await?;
    let ranges = || [key("m1")..key("m9"), key("n1")..key("n9")];
    let names = ["m1", "m2", "n1", "n2"];
    assert_eq!(texts(client.batch_scan(ranges(), 2).await?), names.map(|name| (name.into(), name.into())));
    assert_eq!(key_texts(client.batch_scan_keys(ranges(), 2).await?), names);
    Ok(())
}

async fn delete_ranges(api: Api, client: &Client) -> Result<(), Error> {
    client.batch_put((1..=5).map(|n| pair(&format!("d{n}"), "gone soon"))).await?;
    client.delete_range(key("d2")..key("d4")).await?;
    assert_eq!(key_texts(client.scan_keys(key("d1")..=key("d5"), 3).await?), ["d1", "d4", "d5"]);
    client.delete_range(key("d6")..key("d7")).await?;
    if api == Api::V2 {
        client.delete_range(..).await?;
        assert_eq!(key_texts(client.scan_keys(.., 100).await?), Vec::<String>::new());
    }
    Ok(())
}

async fn times_to_live(client: &Client) -> Result<(), Error> {
    client.put(key("t"), "stays").await?;
    assert_eq!(client.get_key_ttl_secs(key("t")).await?, Some(0), "0 stands for ever");
    client.put_with_ttl(key("t"), "goes", 1000).await?;
    let left = client.get_key_ttl_secs(key("t")).await?.expect("it is there");
    assert!((900..=1000).contains(&left), "{left} s left");
    assert_eq!(client.get(key("t")).await?, Some(Value::from("goes")));
    client.batch_put_with_ttl([pair("t1", "1"), pair("t2", "2")], [1000, 0]).await?;
    assert!(client.get_key_ttl_secs(key("t1")).await?.is_some_and(|left| left > 900));
    assert_eq!(client.get_key_ttl_secs(key("t2")).await?, Some(0));
    assert_eq!(client.get_key_ttl_secs(key("never there")).await?, None);
    // A short life ends while others go on.
    client.put_with_ttl(key("t3"), "short", 1).await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.get(key("t3")).await?.is_some() {
        assert!(Instant::now() < deadline, "it should have expired");
    }
    assert_eq!(client.get_key_ttl_secs(key("t3")).await?, None);
    assert_eq!(client.get(key("t")).await?, Some(Value::from("goes")));
    Ok(())
}

async fn compare_and_swap(client: &Client) -> Result<(), Error> {
    let atomic = client.with_atomic_for_cas();
    let value = |text: &str| Value::from(text);
    assert_eq!(atomic.compare_and_swap(key("c"), None, "a").await?, (None, true));
    assert_eq!(atomic.compare_and_swap(key("c"), None, "b").await?, (Some(value("a")), false));
    assert_eq!(atomic.compare_and_swap(key("c"), value("x"), "b").await?, (Some(value("a")), false));
    assert_eq!(atomic.compare_and_swap(key("c"), value("a"), "b").await?, (Some(value("a")), true));
    assert_eq!(atomic.get(key("c")).await?, Some(value("b")));
    // Plain writes in atomic mode are in order with the swaps.
    atomic.put(key("c"), "d").await?;
    assert_eq!(atomic.compare_and_swap(key("c"), value("b"), "e").await?, (Some(value("d")), false));
    atomic.delete(key("c")).await?;
    assert_eq!(atomic.compare_and_swap(key("c"), None, "f").await?, (None, true));
    atomic.batch_put([pair("c", "g"), pair("c2", "h")]).await?;
    assert_eq!(atomic.compare_and_swap(key("c"), value("g"), "i").await?, (Some(value("g")), true));
    Ok(())
}

/// Eight tasks add to one counter by compare-and-swap: no addition is lost, none counts twice.
async fn counted_by_many(client: &Client) -> Result<(), Error> {
    const TASKS: u32 = 8;
    const ADDITIONS: u32 = 20;
    let atomic = client.with_atomic_for_cas();
    atomic.put(key("counter"), "0").await?;
    let add = |client: Client| async move {
        let mut seen = Value::from("0");
        for _ in 0..ADDITIONS {
            loop {
                let count: u32 = std::str::from_utf8(&seen).expect("text").parse().expect("a number");
                let next = (count + 1).to_string();
                let (found, swapped) = client.compare_and_swap(key("counter"), seen, next.as_str()).await?;
                seen = if swapped { next.into_bytes() } else { found.expect("the counter is there") };
                if swapped {
                    break;
                }
            }
        }
        Ok::<(), Error>(())
    };
    futures::future::try_join_all((0..TASKS).map(|_| add(atomic.clone()))).await?;
    assert_eq!(atomic.get(key("counter")).await?, Some((TASKS * ADDITIONS).to_string().into_bytes()));
    Ok(())
}

async fn large_batches(client: &Client) -> Result<(), Error> {
    const COUNT: usize = 20_000;
    let name = |n: usize| format!("large/{n:06}");
    client.batch_put((0..COUNT).map(|n| pair(&name(n), &n.to_string()))).await?;
    let mut found = client.batch_get((0..COUNT).map(|n| key(&name(n)))).await?;
    found.sort_by(|a, b| a.key().cmp(b.key()));
    assert_eq!(found.len(), COUNT);
    let wrong = found.iter().enumerate().find(|(n, found)| **found != pair(&name(*n), &n.to_string()));
    assert_eq!(wrong, None);
    // The largest scan that the client allows.
    let scanned = client.scan(key("large/")..key("large0"), 10_240).await?;
    assert_eq!(scanned.len(), 10_240);
    assert_eq!(scanned[10_239], pair(&name(10_239), "10239"));
    client.batch_delete((0..COUNT).map(|n| key(&name(n)))).await?;
    assert_eq!(client.batch_get((0..COUNT).map(|n| key(&name(n)))).await?, []);
    Ok(())
}

async fn large_values(client: &Client) -> Result<(), Error> {
    for bytes in [64 << 10, 1 << 20, 3 << 20] {
        let value: Value = (0..bytes).map(|n| (n * 31 % 251) as u8).collect();
        client.put(key("large value"), value.clone()).await?;
        assert_eq!(client.get(key("large value")).await?, Some(value), "{bytes} bytes");
    }
    client.delete(key("large value")).await?;
    let long_key = vec![b'k'; 4 << 10];
    client.put(long_key.clone(), "long key").await?;
    assert_eq!(client.get(long_key.clone()).await?, Some(Value::from("long key")));
    client.delete(long_key).await
}

/// Replies of up to 4 MiB come whole: the client would take a shorter one as the end of the region.
async fn long_scans(client: &Client) -> Result<(), Error> {
    const COUNT: u32 = 3000;
    let value = vec![b'v'; 1 << 10];
    let name = |n: u32| key(&format!("wide/{n:06}"));
    client.batch_put((0..COUNT).map(|n| KvPair::new(name(n), value.clone()))).await?;
    let scanned = client.scan(key("wide/")..key("wide0"), COUNT).await?;
    assert_eq!(scanned.len(), COUNT as usize);
    assert_eq!(scanned.last(), Some(&KvPair::new(name(COUNT - 1), value)));
    client.delete_range(key("wide/")..key("wide0")).await
}
