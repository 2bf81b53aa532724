//! Files that rot or are cut short under a store of a real cluster: the store says what it found and does not go
//! on with less than it promised; clients notice nothing but a pause, and a new store takes its place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::cluster::{
    ClusterError, ClusterOptions, Load, LoadOptions, ProcessCluster, Report, damage, wait_for, wait_until,
};
use kvclient::RawClient;

const SOON: Duration = Duration::from_secs(30);
const SOME: u64 = 150;

async fn load(cluster: &ProcessCluster, options: LoadOptions) -> Load {
    let load = Load::start(vec![cluster.endpoint()], options).await.expect("clients");
    load.wait_progress(SOME, SOON).expect("the cluster works");
    load
}

async fn verdict(load: Load) -> Report {
    match load.finish().await {
        Ok(report) => report,
        Err(broken) => panic!("{broken}"),
    }
}

fn leader(cluster: &ProcessCluster) -> usize {
    wait_for("a leader", SOON, || cluster.leader()).expect("a leader")
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// Damages a log file whose written part ends there.
type Damage = fn(&Path, u64) -> std::io::Result<()>;

/// Starts the store again: it must give up with an error that tells what to do.
fn must_refuse(cluster: &mut ProcessCluster, index: usize, what: &str) {
    let process = &mut cluster.stores[index].process;
    let before = process.log().len();
    process.start_again().expect("it starts");
    let status = process.wait_exit(SOON).unwrap_or_else(|e| panic!("{what}: it goes on: {e}"));
    let log = process.log();
    let said = &log[before..];
    assert!(!status.success(), "{what}: {status}");
    assert!(said.contains("empty data directory"), "{what}: it does not say what to do: {said}");
}

/// RocksDB takes rot in the middle of a recycled log for its end, so without the store's own mark a store would go on
/// and have forgotten entries and votes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_raft_log_was_damaged_refuses_to_start_and_is_replaced() {
    let mut cluster = ProcessCluster::start(ClusterOptions::default()).expect("a cluster");
    let load = load(&cluster, LoadOptions::default()).await;
    let victim = leader(&cluster);
    cluster.stores[victim].process.kill();
    load.wait_progress(SOME, SOON).expect("the cluster works without it");

    let raft = cluster.stores[victim].data_dir.join("raft");
    let whole = cluster.dir().join("raft-as-it-was");
    copy(&raft, &whole);
    let damages: [(&str, Damage); 2] = [
        ("a bit flipped in the middle", |log, end| damage::flip(log, end / 2)),
        ("half of the log cut off", |log, end| damage::truncate(log, end / 2)),
    ];
    for (what, damage) in damages {
        copy(&whole, &raft);
        let log = damage::newest_log(&raft).expect("a log");
        damage(&log, damage::written_end(&log).expect("its end")).expect("damage");
        must_refuse(&mut cluster, victim, what);
        must_refuse(&mut cluster, victim, what);
    }
    load.wait_progress(SOME, SOON).expect("the cluster works without it");

    // What the message says: the store leaves, and an empty one takes its place.
    cluster.add_store().expect("another store");
    cluster.remove_store(victim).expect("its replicas move");
    load.wait_progress(SOME, SOON).expect("the cluster works");
    verdict(load).await;
}

/// The last record may be one that was never synced, as a new commit index is not: then nothing that was promised is
/// lost, and the store may go on. Otherwise it may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_end_of_a_raft_log_loses_nothing_that_was_acknowledged() {
    let mut cluster = ProcessCluster::start(ClusterOptions::default()).expect("a cluster");
    let load = load(&cluster, LoadOptions::default()).await;
    let damages: [Damage; 2] =
        [|log, end| damage::flip(log, end - 20), |log, end| damage::truncate(log, end - 3)];
    for damage in damages {
        let victim = leader(&cluster);
        cluster.stores[victim].process.kill();
        let log = damage::newest_log(&cluster.stores[victim].data_dir.join("raft")).expect("a log");
        damage(&log, damage::written_end(&log).expect("its end")).expect("damage");
        match cluster.stores[victim].restart() {
            Ok(()) => cluster.wait_caught_up(victim).expect("it catches up"),
            Err(ClusterError::Died { tail, .. }) => {
                assert!(tail.contains("empty data directory"), "it does not say what to do: {tail}");
                cluster.add_store().expect("another store");
                cluster.remove_store(victim).expect("its replicas move");
            }
            Err(other) => panic!("{other}"),
        }
        load.wait_progress(SOME, SOON).expect("the cluster works");
    }
    verdict(load).await;
}

/// A store that lost its data directory's halves must not begin a new life under the old promises.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_one_of_its_databases_refuses_to_start() {
    let mut cluster = ProcessCluster::start(ClusterOptions::default()).expect("a cluster");
    let load = load(&cluster, LoadOptions::default()).await;
    let victim = leader(&cluster);
    for lost in ["raft", "db"] {
        cluster.stores[victim].process.kill();
        let dir = cluster.stores[victim].data_dir.join(lost);
        let aside = cluster.dir().join(format!("{lost}-aside"));
        std::fs::rename(&dir, &aside).expect("a rename");
        must_refuse(&mut cluster, victim, lost);
        std::fs::remove_dir_all(&dir).expect("what it made");
        std::fs::rename(&aside, &dir).expect("a rename");
        cluster.stores[victim].restart().expect("with its data it comes back");
        cluster.wait_caught_up(victim).expect("it catches up");
    }
    verdict(load).await;
}

/// The damage is found when somebody reads there, which only a leader does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_reads_a_damaged_block_stops_and_stays_stopped() {
    let mut cluster = ProcessCluster::start(ClusterOptions::default()).expect("a cluster");
    let options = LoadOptions { value_bytes: 5_000, ..LoadOptions::default() };
    let load = load(&cluster, options).await;
    load.wait_progress(1_000, SOON).expect("data");
    let (victim, other) = (0, 1);
    // A clean stop leaves everything in sorted files.
    cluster.stores[victim].process.terminate(SOON).expect("it stops");
    let database = cluster.stores[victim].data_dir.join("db");
    let file = damage::largest_sst(&database).expect("a sorted file");
    damage::flip(&file, file.metadata().expect("its size").len() / 2).expect("damage");
    verdict(load).await;
    cluster.stores[victim].process.start_again().expect("it starts");

    // With one store gone and the other asked to hand over, the damaged one is the only one left to lead: it reads.
    // Perhaps something came across the damage before.
    cluster.stores[other].process.kill();
    cluster.stores[2].process.ask_to_stop();
    let client = RawClient::connect([cluster.endpoint()]).await.expect("a client");
    let reading = tokio::spawn({
        let client = client.clone();
        async move { while client.scan("ledger-".."ledger.").collect().await.is_err() {} }
    });
    let process = &mut cluster.stores[victim].process;
    let status = process.wait_exit(SOON).expect("it stops by itself");
    assert!(!status.success(), "{status}");
    assert!(process.log().contains("corrupt data"), "it does not say why: {}", process.log_tail());
    must_refuse(&mut cluster, victim, "a store that found damage");
    cluster.stores[2].process.wait_exit(SOON).expect("it stops");
    cluster.stores[2].restart().expect("it comes back");
    cluster.stores[other].restart().expect("it comes back");
    tokio::time::timeout(SOON, reading).await.expect("the others have it all").expect("the reader");
}

/// A Raft log that was flushed to sorted files, all of which rot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_flushed_raft_log_rots_refuses_to_start() {
    const EVERY: usize = 256;
    let mut cluster = ProcessCluster::start(ClusterOptions::default()).expect("a cluster");
    let load = load(&cluster, LoadOptions { value_bytes: 2_000, ..LoadOptions::default() }).await;
    let victim = leader(&cluster);
    cluster.stores[victim].process.terminate(SOON).expect("it stops");
    let raft = cluster.stores[victim].data_dir.join("raft");
    for file in damage::files(&raft, "sst").expect("sorted files") {
        let length = file.metadata().expect("its size").len();
        (0..length).step_by(EVERY).for_each(|at| damage::flip(&file, at).expect("damage"));
    }
    must_refuse(&mut cluster, victim, "rot everywhere");
    load.wait_progress(SOME, SOON).expect("the cluster works without it");
    verdict(load).await;
}

/// The leader's snapshot rots after it was built: the follower does not take it, and gets another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_not_taken_and_a_good_one_follows() {
    let config = "[raftstore]\nraft-log-gc-tick-interval = \"100ms\"\nraft-log-gc-threshold = 10\n\
                  raft-log-gc-count-limit = 100\n[server]\nsnap-io-max-bytes-per-sec = \"1MiB\"\n";
    let options = ClusterOptions { store_config: config.to_string(), ..ClusterOptions::default() };
    let mut cluster = ProcessCluster::start(options).expect("a cluster");
    let load = load(&cluster, LoadOptions { value_bytes: 10_000, ..LoadOptions::default() }).await;
    let behind = (leader(&cluster) + 1) % 3;
    cluster.stores[behind].process.kill();
    load.wait_progress(1_500, SOON).expect("writes that it misses");
    let report = verdict(load).await;
    cluster.stores[behind].restart().expect("it comes back");

    // Whoever leads by now has built it.
    let big = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let written = file.metadata().is_ok_and(|m| m.len() > 1 << 20);
        name.starts_with("gen_") && name.ends_with("_raw.sst") && written
    };
    let built = || {
        let dirs = cluster.stores.iter().map(|store| store.data_dir.join("snap"));
        dirs.filter_map(|dir| damage::files(&dir, "sst").ok()).flatten().find(big)
    };
    let file = wait_for("a snapshot on its way", SOON, built).expect("a snapshot");
    damage::flip(&file, file.metadata().expect("its size").len() - 100).expect("damage");
    let log = || cluster.stores.iter().map(|store| store.process.log()).collect::<String>();
    wait_until("somebody to notice", SOON, || log().contains("checksum")).expect("the damage is noticed");
    cluster.wait_caught_up(behind).expect("another snapshot arrives");
    assert!(report.ledger > 100, "{report:?}");
}
