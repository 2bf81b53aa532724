//! Disks that fill up, turn read-only or lose power under stores of a real cluster. Each store that cannot go on says
//! why and ends; the cluster goes on while most of it has disks; what was acknowledged is there when they are back.

use std::collections::BTreeMap;
use std::time::Duration;

use integration::cluster::disk::{self, Disk};
use integration::cluster::{
    ClusterOptions, Load, LoadOptions, ProcessCluster, Report, get, wait_for, wait_until,
};
use kvclient::RawClient;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
const SOME: u64 = 150;
/// Room for a few log files of 16 MiB.
const MEBIBYTES: u64 = 256;
/// Values large enough to fill a log file soon.
const VALUE_BYTES: usize = 32 << 10;
/// Less room than stores keep in reserve, and more than they fill before they notice.
const SCARCE: u64 = 48 << 20;

/// A cluster whose first store has a disk of its own.
fn one_disk(home: &TempDir) -> (Disk, ProcessCluster) {
    let disk = Disk::create(home.path(), "disk", MEBIBYTES).expect("a disk");
    let data_dirs = BTreeMap::from([(0, disk.dir().join("store"))]);
    let options = ClusterOptions { data_dirs, ..ClusterOptions::default() };
    (disk, ProcessCluster::start(options).expect("a cluster"))
}

/// A cluster that has all its data on one disk.
fn all_on_one_disk(home: &TempDir, store_config: &str) -> (Disk, ProcessCluster) {
    let disk = Disk::create(home.path(), "disks", 4 * MEBIBYTES).expect("a disk");
    let (dir, store_config) = (Some(disk.dir().to_path_buf()), store_config.to_string());
    let options = ClusterOptions { dir, store_config, ..ClusterOptions::default() };
    (disk, ProcessCluster::start(options).expect("a cluster"))
}

async fn load(cluster: &ProcessCluster, value_bytes: usize) -> Load {
    let options = LoadOptions { value_bytes, ..LoadOptions::default() };
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

/// The store ends by itself and its last words name the reason.
fn ends_with(cluster: &mut ProcessCluster, index: usize, words: &str) {
    let process = &mut cluster.stores[index].process;
    let status = process.wait_exit(SOON).expect("it ends");
    assert!(!status.success(), "{status}");
    assert!(process.log_tail().contains(words), "it does not say {words:?}: {}", process.log_tail());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_a_full_disk_ends_and_comes_back_when_there_is_room() {
    if !disk::available() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let (disk, mut cluster) = one_disk(&home);
    let load = load(&cluster, VALUE_BYTES).await;
    disk.fill().expect("it fills");
    ends_with(&mut cluster, 0, "No space left on device");
    load.wait_progress(SOME, SOON).expect("the others go on");
    // Without room it may come up and end again, but it must not say that all is well and serve less than it had.
    cluster.stores[0].process.start_again().expect("it starts");
    load.wait_progress(SOME, SOON).expect("the others go on");
    disk.empty().expect("room");
    cluster.stores[0].restart().expect("it comes back");
    cluster.wait_caught_up(0).expect("it catches up");
    verdict(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_turns_read_only_ends_its_store() {
    if !disk::available() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let (disk, mut cluster) = one_disk(&home);
    let load = load(&cluster, VALUE_BYTES).await;
    disk.fail_read_only().expect("it fails");
    ends_with(&mut cluster, 0, "cannot write the Raft log");
    load.wait_progress(SOME, SOON).expect("the others go on");
    cluster.stores[0].process.start_again().expect("it starts");
    ends_with(&mut cluster, 0, "Read-only file system");
    disk.come_back().expect("the disk is mended");
    cluster.stores[0].restart().expect("it comes back");
    cluster.wait_caught_up(0).expect("it catches up");
    verdict(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_lose_power_in_turn_lose_nothing_else() {
    if !disk::available() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let (disk, mut cluster) = one_disk(&home);
    let load = load(&cluster, 1_000).await;
    for _ in 0..3 {
        disk.lose_power().expect("power goes");
        cluster.stores[0].process.kill();
        load.wait_progress(SOME, SOON).expect("the others go on");
        disk.come_back().expect("power is back");
        cluster.stores[0].restart().expect("it comes back");
        cluster.wait_caught_up(0).expect("it catches up");
        load.wait_progress(SOME, SOON).expect("the cluster works");
    }
    verdict(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_power_keeps_all_it_acknowledged() {
    if !disk::available() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let (disk, mut cluster) = all_on_one_disk(&home, "");
    let load = load(&cluster, 1_000).await;
    for _ in 0..2 {
        disk.lose_power().expect("power goes");
        cluster.stores.iter_mut().for_each(|store| store.process.kill());
        cluster.scheduler.kill();
        disk.come_back().expect("power is back");
        cluster.restart_all().expect("everything comes back");
        load.wait_progress(SOME, SOON).expect("the cluster works");
    }
    verdict(load).await;
}

/// Little room is left: stores stop early enough to be alive when there is more. The leader's store is the first; the
/// others take its regions over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_low_on_space_hands_over_and_a_cluster_without_room_waits_for_more() {
    if !disk::available() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let (one, cluster) = one_disk(&home);
    let first_load = load(&cluster, 200).await;
    one.fill_but(SCARCE).expect("it fills");
    let led = || cluster.leader().is_some_and(|leader| leader != 0);
    wait_until("another leader than the store without room", SOON, led).expect("it hands over");
    wait_until("the store to say so", SOON, || says_it_is_full(&cluster, 0)).expect("it says so");
    first_load.wait_progress(SOME, SOON).expect("the cluster works");
    verdict(first_load).await;

    let (all, cluster) = all_on_one_disk(&home, "");
    let second_load = load(&cluster, 200).await;
    all.fill_but(SCARCE).expect("it fills");
    wait_until("all to say so", SOON, || (0..3).all(|n| says_it_is_full(&cluster, n))).expect("they say so");
    let client = RawClient::connect([cluster.endpoint()]).await.expect("a client");
    let refused = client.put("more", "data").await.expect_err("there is no room for it");
    assert!(refused.to_string().contains("reserve-space"), "{refused}");
    client.delete("more").await.expect("deletions are taken");
    all.empty().expect("room");
    second_load.wait_progress(SOME, SOON).expect("it goes on by itself");
    verdict(second_load).await;
}

fn says_it_is_full(cluster: &ProcessCluster, index: usize) -> bool {
    let reply = get(cluster.stores[index].status_address, "/ready", SOON);
    reply.is_ok_and(|reply| reply.status == 503 && reply.body.contains("reserve-space"))
}

/// Without a reserve the stores run into the wall.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_room_keeps_all_it_acknowledged() {
    if !disk::available() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let (disk, mut cluster) = all_on_one_disk(&home, "[storage]\nreserve-space = \"0KiB\"\n");
    let load = load(&cluster, VALUE_BYTES).await;
    disk.fill().expect("it fills");
    let somebody_ended =
        || cluster.stores.iter_mut().any(|store| store.process.died().is_some()).then_some(());
    wait_for("a store to end", SOON, somebody_ended).expect("a store ends");
    disk.empty().expect("room");
    cluster.restart_all().expect("everything comes back");
    load.wait_progress(SOME, SOON).expect("the cluster works");
    verdict(load).await;
}
