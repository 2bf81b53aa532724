//! Leaders that die, freeze, are cut off or are asked to stop, on real clusters under load: the history of all
//! clients stays linearizable, nothing acknowledged is lost, a leader of the past answers no read with the past,
//! and a restart in good order is invisible to clients of the SDK.

use std::time::Duration;

use integration::cluster::{
    ClusterOptions, End, Load, LoadOptions, ProcessCluster, Report, Watch, wait_for, wait_until,
};
use kvclient::RawClient;

const SOON: Duration = Duration::from_secs(30);
/// Operations that must succeed before and after each fault.
const SOME: u64 = 150;

fn start(options: ClusterOptions) -> ProcessCluster {
    ProcessCluster::start(options).expect("a cluster of three stores")
}

async fn load(cluster: &ProcessCluster) -> Load {
    let load = Load::start(vec![cluster.endpoint()], LoadOptions::default()).await.expect("clients");
    load.wait_progress(SOME, SOON).expect("the cluster works");
    load
}

fn leader(cluster: &ProcessCluster) -> usize {
    wait_for("a leader", SOON, || cluster.leader()).expect("a leader")
}

async fn verdict(load: Load) -> Report {
    match load.finish().await {
        Ok(report) => report,
        Err(broken) => panic!("{broken}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_stay_linearizable_when_leaders_are_killed() {
    let mut cluster = start(ClusterOptions::default());
    let load = load(&cluster).await;
    for _ in 0..3 {
        let leader = leader(&cluster);
        cluster.stores[leader].process.kill();
        load.wait_progress(SOME, SOON).expect("writes resume without it");
        cluster.stores[leader].restart().expect("it comes back");
        cluster.wait_caught_up(leader).expect("it catches up");
    }
    let report = verdict(load).await;
    assert!(report.ledger > 100, "{report:?}");
}

/// The old leader's clients keep asking it, also while it is frozen: their questions wait in its sockets and are
/// answered when it goes on, when others have long written more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_frozen_answers_no_stale_read() {
    let cluster = start(ClusterOptions::default().with_leaders_at_rest());
    let client = RawClient::connect([cluster.endpoint()]).await.expect("a client");
    let load = load(&cluster).await;
    let old = leader(&cluster);
    let watch = Watch::start(&client, &cluster.stores[old]).await.expect("a watch");
    for _ in 0..2 {
        wait_until("reads from the store", SOON, || watch.answers().0 + watch.answers().1 > 20).unwrap();
        cluster.stores[old].process.freeze();
        let frozen_at = watch.acknowledged();
        let overtaken = || watch.acknowledged() > frozen_at + 20;
        wait_until("others to write on", SOON, overtaken).expect("writes resume");
        cluster.stores[old].process.thaw();
        let before = watch.answers().1;
        wait_until("its answers", SOON, || watch.answers().1 > before + 20).expect("it refuses reads");
    }
    assert!(watch.answers().0 > 0, "it never answered while it led");
    watch.finish().await.expect("no stale answer");
    verdict(load).await;
}

/// Cut off from the other stores in both ways, or in one, while its clients still reach it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_answers_no_stale_read() {
    let cluster = start(ClusterOptions { proxied: true, ..ClusterOptions::default() }.with_leaders_at_rest());
    let client = RawClient::connect([cluster.endpoint()]).await.expect("a client");
    let load = load(&cluster).await;
    type Cut = fn(&ProcessCluster, usize, usize);
    let both: Cut = |cluster, old, other| cluster.links().cut(End::Store(old), End::Store(other));
    let away: Cut = |cluster, old, other| cluster.links().cut_one_way(End::Store(old), End::Store(other));
    for cut in [both, away] {
        let old = leader(&cluster);
        let watch = Watch::start(&client, &cluster.stores[old]).await.expect("a watch");
        wait_until("reads from the store", SOON, || watch.answers().0 > 20).expect("the leader answers");
        (0..3).filter(|other| *other != old).for_each(|other| cut(&cluster, old, other));
        let replaced = || cluster.leader().is_some_and(|now| now != old);
        wait_until("another leader", SOON, replaced).expect("another leader");
        let cut_at = watch.acknowledged();
        let overtaken = || watch.acknowledged() > cut_at + 20;
        wait_until("others to write on", SOON, overtaken).expect("writes resume");
        cluster.links().heal();
        watch.finish().await.expect("no stale answer");
        cluster.wait_caught_up(old).expect("it follows again");
        load.wait_progress(SOME, SOON).expect("the cluster works");
    }
    verdict(load).await;
}

/// Nothing from the others reaches the leader: it learns of no acknowledgement and must give way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_gives_way() {
    let cluster = start(ClusterOptions { proxied: true, ..ClusterOptions::default() }.with_leaders_at_rest());
    let load = load(&cluster).await;
    let old = leader(&cluster);
    let others = (0..3).filter(|other| *other != old);
    others.for_each(|other| cluster.links().cut_one_way(End::Store(other), End::Store(old)));
    let replaced = || cluster.leader().is_some_and(|now| now != old);
    wait_until("another leader", SOON, replaced).expect("another leader");
    load.wait_progress(SOME, SOON).expect("writes resume");
    cluster.links().heal();
    cluster.wait_caught_up(old).expect("it follows again");
    verdict(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_invisible_to_clients() {
    let mut cluster = start(ClusterOptions::default());
    let load = load(&cluster).await;
    for index in 0..cluster.stores.len() {
        let status = cluster.stores[index].process.terminate(SOON).expect("it stops");
        assert!(status.success(), "{status}");
        load.wait_progress(SOME, SOON).expect("the cluster works without it");
        cluster.stores[index].restart().expect("it comes back");
        cluster.wait_caught_up(index).expect("it catches up");
    }
    cluster.scheduler.terminate(SOON).expect("the scheduler stops");
    load.wait_progress(SOME, SOON).expect("the cluster works without the scheduler");
    cluster.restart_scheduler().expect("the scheduler comes back");
    load.wait_progress(SOME, SOON).expect("the cluster works");
    let report = verdict(load).await;
    assert_eq!((report.failed, report.unknown), (0, 0), "{:#?}", report.errors);
}
