//! Everything that may happen to a cluster, mixed: crashes, partitions and an unreliable network while logs are cut so
//! short that snapshots are needed, while stores are replaced, while regions are divided, and all of it together.
//! Clients work throughout; their history must be linearizable and nothing acknowledged lost.
//!
//! The environment may ask for more: `SEED` draws other victims and keys, `ROUNDS` goes through the faults so often.

use std::time::Duration;

use integration::cluster::faults::{Fault, Nemesis};
use integration::cluster::{ClusterOptions, Load, LoadOptions, ProcessCluster};

const SOON: Duration = Duration::from_secs(30);
/// Logs keep so little that whoever was away needs a snapshot.
const SHORT_LOGS: &str = "[raftstore]\nraft-log-gc-tick-interval = \"100ms\"\nraft-log-gc-threshold = 5\n\
                          raft-log-gc-count-limit = 20\n";

/// Lets `faults` strike a cluster at work and gives it back, whole and judged, with the number of snapshots that were
/// put in place since it started.
async fn survive(seed: u64, store_config: &str, faults: &[Fault]) -> (ProcessCluster, usize) {
    let (seed, rounds) = (seed + from_environment("SEED", 0), from_environment("ROUNDS", 1));
    let options =
        ClusterOptions { proxied: true, store_config: store_config.to_string(), ..ClusterOptions::default() };
    let mut cluster = ProcessCluster::start(options).expect("a cluster of three stores");
    let placed = |cluster: &ProcessCluster| -> usize {
        let logs = cluster.stores.iter().map(|store| store.process.log());
        logs.map(|log| log.matches("snapshot is in place").count()).sum()
    };
    let before = placed(&cluster);
    let load = Load::start(vec![cluster.endpoint()], LoadOptions { seed, ..LoadOptions::default() });
    let load = load.await.expect("clients");
    load.wait_progress(100, SOON).expect("the cluster works");
    let mut nemesis = Nemesis::new(seed, &cluster);
    let all = (0..rounds).flat_map(|_| faults);
    for (round, fault) in all.enumerate() {
        let struck = nemesis.strike(*fault, &mut cluster, &load).await;
        struck.unwrap_or_else(|error| panic!("round {round}, {fault:?}: {error}"));
    }
    cluster.wait_replicated().expect("every region has its replicas");
    if let Err(broken) = load.finish().await {
        panic!("{broken}");
    }
    let snapshots = placed(&cluster) - before;
    (cluster, snapshots)
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn regions(cluster: &ProcessCluster) -> usize {
    let regions = cluster.api("/pd/api/v1/regions").expect("the scheduler answers");
    regions["regions"].as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_recover() {
    use Fault::{Crash, Partition, Unreliable};
    let faults = [Crash, Partition, Unreliable, Crash, Partition, Crash];
    let (_cluster, snapshots) = survive(1, SHORT_LOGS, &faults).await;
    assert!(snapshots > 0, "nobody needed a snapshot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conf_change_recover() {
    use Fault::{Crash, Partition, Replace, Unreliable};
    let (cluster, _) = survive(2, "", &[Replace, Crash, Partition, Unreliable, Replace, Crash]).await;
    assert!(cluster.stores.len() >= 5, "{} stores", cluster.stores.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn split_recover() {
    use Fault::{Crash, Partition, Split, Unreliable};
    let (cluster, _) =
        survive(3, "", &[Split, Crash, Split, Partition, Split, Unreliable, Split, Crash]).await;
    assert!(regions(&cluster) > 7, "only {} regions", regions(&cluster));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_together() {
    use Fault::{Crash, Partition, Replace, Split, Unreliable};
    let faults = [Split, Crash, Partition, Replace, Split, Unreliable, Crash, Partition, Split, Crash];
    let (cluster, snapshots) = survive(4, SHORT_LOGS, &faults).await;
    assert!(regions(&cluster) > 6 && snapshots > 0, "{} regions, {snapshots} snapshots", regions(&cluster));
}
