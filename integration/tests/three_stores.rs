//! A scheduler and three stores in one process, over real connections and real databases: the first
//! regions reach three replicas through snapshots, and any one store may stop, miss writes, and come back elsewhere.

use std::time::Duration;

use kvclient::{Bytes, RawClient};
use kvserver::config::ReadableDuration;
use kvserver::{Config, Server};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WITHIN: Duration = Duration::from_secs(60);

/// Asks until there is an answer; the panic names what was waited for.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            match ask().await {
                Some(answer) => return answer,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(WITHIN, asking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

struct Cluster {
    scheduler: scheduler::Server,
    dirs: Vec<TempDir>,
    stores: Vec<Option<Server>>,
    configure: fn(&mut Config),
}

impl Cluster {
    async fn start(stores: usize, configure: fn(&mut Config)) -> Cluster {
        let config = scheduler::Config {
            client_urls: "http://127.0.0.1:0".into(),
            in_memory: true,
            ..scheduler::Config::default()
        };
        let scheduler = scheduler::Server::start(config).await.unwrap();
        let dirs = (0..stores).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut cluster = Cluster { scheduler, dirs, stores: (0..stores).map(|_| None).collect(), configure };
        for i in 0..stores {
            cluster.start_store(i).await;
        }
        cluster
    }

    /// Starts a store over its directory, on new ports.
    async fn start_store(&mut self, i: usize) {
        let mut config = Config::default();
        config.server.addr = "127.0.0.1:0".into();
        config.server.status_addr = "127.0.0.1:0".into();
        config.pd.endpoints = vec![self.scheduler.addr().to_string()];
        config.storage.data_dir = self.dirs[i].path().into();
        (self.configure)(&mut config);
        config.resolve(256 << 20, 2);
        self.stores[i] = Some(Server::start(config).await.unwrap());
    }

    async fn stop_store(&mut self, i: usize, fast: bool) {
        self.stores[i].take().unwrap().shutdown(fast).await.unwrap();
    }

    async fn client(&self) -> RawClient {
        RawClient::connect([self.scheduler.addr().to_string()]).await.unwrap()
    }

    /// Waits until every region has `voters` voters, all of which keep up; gives the regions' numbers.
    async fn wait_replicated(&self, client: &RawClient, voters: usize) -> Vec<u64> {
        until("every replica", || async {
            let regions = client.scheduler().scan_regions(Bytes::new(), Bytes::new(), 0).await.ok()?;
            let whole = |r: &kvclient::RegionInfo| {
                r.region.peers.len() == voters
                    && r.region.peers.iter().all(|p| p.role() == kvproto::metapb::PeerRole::Voter)
                    && r.pending_peers.is_empty()
                    && r.down_peers.is_empty()
            };
            let is_done = !regions.is_empty() && regions.iter().all(whole);
            is_done.then(|| regions.iter().map(|r| r.region.id).collect())
        })
        .await
    }

    /// A page of a store that runs.
    async fn page(&self, i: usize, path: &str) -> String {
        let address = self.stores[i].as_ref().unwrap().status_addr().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text.split_once("\r\n\r\n").unwrap().1.to_string()
    }

    /// Snapshots that a store received since it was started.
    async fn snapshots_received(&self, i: usize) -> f64 {
        let text = self.page(i, "/metrics").await;
        let line = text.lines().find_map(|l| l.strip_prefix("kvasir_snapshots_total{outcome=\"received\"}"));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    async fn stop(mut self) {
        for i in 0..self.stores.len() {
            if self.stores[i].is_some() {
                self.stop_store(i, true).await;
            }
        }
        self.scheduler.shutdown().await;
    }
}

fn pairs(from: usize, to: usize) -> Vec<(String, String)> {
    (from..to).map(|i| (format!("key-{i:05}"), format!("value-{i}"))).collect()
}

async fn assert_all_there(client: &RawClient, n: usize) {
    for (key, value) in pairs(0, n) {
        let read = client.get(key.clone()).await.unwrap();
        assert_eq!(read, Some(Bytes::from(value)), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_store_may_stop_and_come_back() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let client = cluster.client().await;
    client.batch_put(pairs(0, 100)).await.unwrap();
    let regions = cluster.wait_replicated(&client, 3).await;
    assert_eq!(regions.len(), 5, "cut where the keyspaces begin and end");
    let mut received = 0.0;
    for i in 0..3 {
        received += cluster.snapshots_received(i).await;
    }
    assert!(received >= 10.0, "two new replicas of each of five regions got {received} snapshots");

    // With one of three stores away a write needs both others: each must have caught up with what it missed.
    for (round, fast) in [(0, true), (1, false), (2, true)] {
        cluster.stop_store(round, fast).await;
        let first = 100 + round * 100;
        client.batch_put(pairs(first, first + 100)).await.unwrap();
        cluster.start_store(round).await;
        cluster.wait_replicated(&client, 3).await;
    }
    assert_all_there(&client, 400).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_missed_more_than_the_log_keeps_gets_a_snapshot() {
    let mut cluster = Cluster::start(3, |config| {
        config.raftstore.raft_log_gc_tick_interval = ReadableDuration::from_millis(100);
        config.raftstore.raft_log_gc_count_limit = 50;
    })
    .await;
    let client = cluster.client().await;
    cluster.wait_replicated(&client, 3).await;
    let first_key = Bytes::from(kvproto::key::encode(b"r\0\0\0"));
    let region =
        client.scheduler().get_region(first_key).await.unwrap().expect("a region of raw keys").region.id;
    cluster.stop_store(2, true).await;
    for (key, value) in pairs(0, 200) {
        client.put(key, value).await.unwrap();
    }
    let at = format!("/region/{region}");
    until("a shorter log", || async {
        let mut page: serde_json::Value = serde_json::from_str(&cluster.page(0, &at).await).unwrap();
        (page["raft"].take()["first_index"].as_u64()? > 100).then_some(())
    })
    .await;
    cluster.start_store(2).await;
    until("a snapshot", || async { (cluster.snapshots_received(2).await >= 1.0).then_some(()) }).await;
    cluster.wait_replicated(&client, 3).await;
    cluster.stop_store(1, true).await;
    assert_all_there(&client, 200).await;
    cluster.stop().await;
}
