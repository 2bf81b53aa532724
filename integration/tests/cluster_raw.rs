//! Clusters of real processes under failures, through our SDK: stores are killed, frozen and restarted while
//! clients write. What was acknowledged stays, what comes back catches up, and what may not start says why.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use integration::cluster::{ClusterOptions, Process, ProcessCluster, wait_for, wait_until};
use kvclient::RawClient;
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(30);

fn start(store_config: &str) -> ProcessCluster {
    let options = ClusterOptions { store_config: store_config.to_string(), ..ClusterOptions::default() };
    ProcessCluster::start(options).expect("a cluster of three stores")
}

async fn connect(cluster: &ProcessCluster) -> RawClient {
    RawClient::connect([cluster.endpoint()]).await.expect("a client")
}

fn key(writer: usize, n: usize) -> String {
    format!("writer-{writer:02}/{n:08}")
}

/// Clients that write one key after another, each key once.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<usize>>>,
}

impl Writers {
    const COUNT: usize = 16;

    fn start(client: &RawClient) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = |writer| tokio::spawn(write_until(stop.clone(), client.clone(), writer));
        Self { tasks: (0..Self::COUNT).map(task).collect(), stop }
    }

    /// Stops them; returns what they were told is written, with the value of each key.
    async fn acknowledged(self) -> BTreeMap<Bytes, Bytes> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for (writer, task) in self.tasks.into_iter().enumerate() {
            let numbers = task.await.expect("a writer does not panic");
            all.extend(
                numbers.into_iter().map(|n| (Bytes::from(key(writer, n)), Bytes::from(n.to_string()))),
            );
        }
        all
    }
}

async fn write_until(stop: Arc<AtomicBool>, client: RawClient, writer: usize) -> Vec<usize> {
    let mut acknowledged = Vec::new();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        // A failed write may or may not have happened; its key is not used again.
        if client.put(key(writer, n), n.to_string()).await.is_ok() {
            acknowledged.push(n);
        }
        n += 1;
    }
    acknowledged
}

/// Everything that the writers wrote is there: nothing acknowledged is missing, nothing has another value.
async fn assert_holds(client: &RawClient, acknowledged: &BTreeMap<Bytes, Bytes>) {
    let pairs = client.scan("writer-".."writer.").collect().await.expect("a scan");
    assert!(pairs.windows(2).all(|pair| pair[0].key < pair[1].key), "a scan is in order, without doubles");
    let found: BTreeMap<Bytes, Bytes> = pairs.into_iter().map(|pair| (pair.key, pair.value)).collect();
    let missing: Vec<_> =
        acknowledged.iter().filter(|(key, value)| found.get(*key) != Some(*value)).take(5).collect();
    assert!(
        missing.is_empty(),
        "acknowledged {} keys, of which these are missing or wrong: {missing:?}",
        acknowledged.len()
    );
}

/// Waits until a client gets a write through.
async fn wait_writable(client: &RawClient) {
    let deadline = Instant::now() + SOON;
    while let Err(error) = client.put("probe", "x").await {
        assert!(Instant::now() < deadline, "no write gets through: {error}");
    }
}

/// Writes until the clients were told of `count` more keys.
async fn write_more(client: &RawClient, writer: usize, count: usize) -> BTreeMap<Bytes, Bytes> {
    let pairs: Vec<_> =
        (0..count).map(|n| (Bytes::from(key(writer, n)), Bytes::from(n.to_string()))).collect();
    for chunk in pairs.chunks(50) {
        client.batch_put(chunk.to_vec()).await.expect("a batch put");
    }
    pairs.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_each_store_is_killed_in_turn() {
    let mut cluster = start("");
    let client = connect(&cluster).await;
    let writers = Writers::start(&client);
    for index in 0..cluster.stores.len() {
        wait_writable(&client).await;
        cluster.stores[index].process.kill();
        wait_writable(&client).await;
        cluster.stores[index].restart().expect("the store comes back");
        cluster.wait_caught_up(index).expect("the store catches up");
    }
    let acknowledged = writers.acknowledged().await;
    assert!(acknowledged.len() > 100, "only {} writes", acknowledged.len());
    assert_holds(&client, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_catches_up_after_its_log_was_compacted_away() {
    let mut cluster = start(
        "[raftstore]\nraft-log-gc-tick-interval = \"100ms\"\nraft-log-gc-threshold = 10\nraft-log-gc-count-limit = 100\n",
    );
    let client = connect(&cluster).await;
    let mut written = write_more(&client, 0, 1000).await;
    let behind = (cluster.leader().expect("a leader") + 1) % 3;
    let region = cluster.data_region_id().expect("a region");
    let index = |cluster: &ProcessCluster, name: &str| {
        cluster.stores[behind].replica(region).and_then(|replica| replica[name].as_u64()).expect("a replica")
    };
    let had = index(&cluster, "last_index");
    cluster.stores[behind].process.kill();
    let writes = (1..=16).map(|writer| write_more(&client, writer, 1000));
    futures::future::join_all(writes).await.into_iter().for_each(|more| written.extend(more));
    cluster.stores[behind].restart().expect("the store comes back");
    cluster.wait_caught_up(behind).expect("the store catches up");
    let begins = index(&cluster, "first_index");
    assert!(
        begins > had + 1,
        "its log begins at {begins} and it had all up to {had}: no snapshot was needed"
    );
    // With another store gone it has to answer for what it took over.
    let other = (behind + 1) % 3;
    cluster.stores[other].process.kill();
    wait_writable(&client).await;
    assert_holds(&client, &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_is_replaced_and_loses_nothing() {
    let cluster = start("");
    let client = connect(&cluster).await;
    let writers = Writers::start(&client);
    wait_writable(&client).await;
    let leader = wait_for("a leader", SOON, || cluster.leader()).expect("a leader");
    cluster.stores[leader].process.freeze();
    let replaced = || cluster.leader().is_some_and(|now| now != leader);
    wait_until("another leader", SOON, replaced).expect("another leader");
    wait_writable(&client).await;
    cluster.stores[leader].process.thaw();
    let acknowledged = writers.acknowledged().await;
    cluster.wait_caught_up(leader).expect("the thawed store follows");
    assert_holds(&client, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_survives_a_crash_of_everything() {
    let mut cluster = start("");
    let client = connect(&cluster).await;
    let written = write_more(&client, 0, 5000).await;
    cluster.restart_all().expect("everything comes back");
    wait_writable(&client).await;
    assert_holds(&client, &written).await;
    // A client that starts now finds the cluster as well.
    assert_holds(&connect(&cluster).await, &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_on_while_the_scheduler_is_away() {
    let mut cluster = start("");
    let client = connect(&cluster).await;
    let mut written = write_more(&client, 0, 100).await;
    cluster.scheduler.kill();
    written.extend(write_more(&client, 1, 1000).await);
    assert_holds(&client, &written).await;
    cluster.restart_scheduler().expect("the scheduler comes back");
    cluster.wait_replicated().expect("the stores report again");
    assert_holds(&connect(&cluster).await, &written).await;
}

#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let cluster = start("");
    let launch = cluster.second_on(0).expect("a launch");
    let mut second = Process::start(launch).expect("it starts");
    let status = second.wait_exit(SOON).expect("it gives up");
    assert!(!status.success());
    let words = second.log_tail();
    let directory = cluster.stores[0].data_dir.display().to_string();
    assert!(words.contains(&directory) && words.contains("another process"), "not helpful: {words}");
}
