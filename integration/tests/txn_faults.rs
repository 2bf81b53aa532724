//! Transactions on clusters of real processes under kill -9, SIGSTOP, leaders that move and regions that are divided:
//! what clients saw is what snapshot isolation allows, no sum changes, no update is lost, and no lock stays.

use std::time::Duration;

use integration::cluster::regions::Regions;
use integration::cluster::txn_load::{TxnLoad, TxnReport, wire_key};
use integration::cluster::{ClusterOptions, ProcessCluster, wait_for};

const SOON: Duration = Duration::from_secs(60);
const SOME: u64 = 60;
const CLIENTS: u64 = 6;

async fn start(seed: u64) -> (ProcessCluster, TxnLoad) {
    let cluster = ProcessCluster::start(ClusterOptions::default()).expect("a cluster");
    cluster.wait_replicated().expect("three replicas");
    let regions = Regions::connect(&cluster.endpoint()).await.expect("the scheduler");
    // Transactions over several regions from the start: lists, and the bank.
    regions.split(&[wire_key(4)]).await.expect("divided");
    regions.split(&[wire_key(10)]).await.expect("divided");
    let load = TxnLoad::start(vec![cluster.endpoint()], CLIENTS, seed).await.expect("clients");
    load.wait_progress(SOME, SOON).expect("the cluster works");
    (cluster, load)
}

async fn verdict(load: TxnLoad) -> TxnReport {
    match load.finish().await {
        Ok(report) => {
            println!("{report:?}");
            assert!(report.sums > 0 && report.killed > 0, "{report:?}");
            report
        }
        Err(broken) => panic!("{broken}"),
    }
}

/// The store that leads the region of a key.
async fn leader_of(cluster: &ProcessCluster, key: u64) -> usize {
    let regions = Regions::connect(&cluster.endpoint()).await.expect("the scheduler");
    let leader = regions.of(&wire_key(key)).await.expect("a leader").leader.store_id;
    let is_it = |index: &usize| cluster.store_id(*index).is_ok_and(|id| id == leader);
    wait_for("the leader's place", SOON, || (0..cluster.stores.len()).find(is_it)).expect("a known store")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_are_killed_under_transactions() {
    let (mut cluster, load) = start(1).await;
    for key in [0, 5, 12] {
        let victim = leader_of(&cluster, key).await;
        cluster.stores[victim].process.kill();
        load.wait_progress(SOME, SOON).expect("the others go on");
        cluster.stores[victim].restart().expect("it starts again");
        load.wait_progress(SOME, SOON).expect("the cluster works");
    }
    verdict(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_freeze_under_transactions() {
    let (cluster, load) = start(2).await;
    for key in [0, 5, 12] {
        let victim = leader_of(&cluster, key).await;
        cluster.stores[victim].process.freeze();
        // It wakes up with its old idea of who leads, of the time, and of what its readers have seen.
        load.wait_progress(SOME, SOON).expect("the others go on");
        cluster.stores[victim].process.thaw();
        load.wait_progress(SOME, SOON).expect("the cluster works");
    }
    verdict(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_are_divided_and_leaders_stopped_gently_under_transactions() {
    let (mut cluster, load) = start(3).await;
    let regions = Regions::connect(&cluster.endpoint()).await.expect("the scheduler");
    for (round, key) in [2, 6, 9, 12].into_iter().enumerate() {
        regions.split(&[wire_key(key)]).await.expect("divided");
        load.wait_progress(SOME, SOON).expect("the cluster works");
        // A store that is asked to stop hands all its leaders over first.
        let leaver = round % cluster.stores.len();
        cluster.stores[leaver].process.terminate(SOON).expect("it ends");
        load.wait_progress(SOME, SOON).expect("the others go on");
        cluster.stores[leaver].restart().expect("it starts again");
    }
    verdict(load).await;
}
