//! The scheduler connection against fake members: finding and following the leader, timestamps in batches, the
//! heartbeat stream, and typed errors.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::{CLUSTER_ID, World, scheduler};
use kvclient::{Error, SchedulerClient, SchedulerOptions};
use kvproto::kvrpcpb::ApiVersion::V2;
use kvproto::metapb;
use kvproto::pdpb::RegionHeartbeatRequest;

#[tokio::test]
async fn the_leader_is_found_through_any_member_and_followed_when_it_moves() {
    let world = World::new(V2);
    let first = scheduler::start(world.clone());
    let second = scheduler::start(world.clone());
    let client = SchedulerClient::connect(&[format!("http://{}", second.address)]).await.unwrap();
    assert_eq!(client.cluster_id(), CLUSTER_ID);
    assert_eq!(client.leader_url(), format!("http://{}", first.address));
    assert_eq!(client.alloc_id(10).await.unwrap(), 1);
    world.pd.leader.store(1, SeqCst);
    assert_eq!(client.alloc_id(1).await.unwrap(), 11);
    assert_eq!(client.leader_url(), format!("http://{}", second.address));
    world.pd.leader.store(0, SeqCst);
    assert!(client.get_timestamp(1).await.is_ok());
    assert!(client.is_bootstrapped().await.unwrap());
    assert_eq!(client.get_members().await.unwrap().members.len(), 2);
}

#[tokio::test]
async fn a_stopped_leader_costs_no_more_than_finding_the_next_one() {
    let world = World::new(V2);
    let first = scheduler::start(world.clone());
    let _second = scheduler::start(world.clone());
    let client = SchedulerClient::connect(&[first.address.to_string()]).await.unwrap();
    assert!(client.get_timestamp(1).await.is_ok());
    world.pd.leader.store(1, SeqCst);
    drop(first);
    let (id, ts) = tokio::join!(client.alloc_id(1), client.get_timestamp(1));
    assert_eq!(id.unwrap(), 1);
    assert!(ts.is_ok());
}

#[tokio::test]
async fn timestamps_of_concurrent_callers_share_requests_and_never_repeat() {
    let world = World::new(V2);
    let member = scheduler::start(world.clone());
    let client = SchedulerClient::connect(&[member.address.to_string()]).await.unwrap();
    let calls = (0..500u32).map(|n| {
        let (client, count) = (client.clone(), n % 3 + 1);
        async move { (client.get_timestamp(count).await.unwrap().get(), u64::from(count)) }
    });
    let answers = futures::future::join_all(calls).await;
    let mut seen = BTreeSet::new();
    for (last, count) in &answers {
        assert!((last - count + 1..=*last).all(|ts| seen.insert(ts)));
    }
    assert_eq!(seen.len() as u64, answers.iter().map(|(_, count)| count).sum::<u64>());
    let requests = world.pd.tso_requests.load(SeqCst);
    assert!(requests < 50, "{requests} requests for 500 callers");
    let before = *seen.last().unwrap();
    world.pd.streams.send_modify(|n| *n += 1);
    assert!(client.get_timestamp(1).await.unwrap().get() > before);
    assert!(matches!(client.get_timestamp(0).await, Err(Error::InvalidArgument(_))));
}

#[test]
fn timestamps_outlive_the_runtime_that_asked_for_the_first() {
    let world = World::new(V2);
    let member = scheduler::start(world.clone());
    let lasting = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let passing = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = lasting.block_on(SchedulerClient::connect(&[member.address.to_string()])).unwrap();
    let first = passing.block_on(client.get_timestamp(1)).unwrap();
    drop(passing);
    assert!(lasting.block_on(client.get_timestamp(1)).unwrap() > first);
}

/// A leader that hangs breaks no stream, and a store that only listens calls nobody who would notice.
#[tokio::test]
async fn a_heartbeat_stream_ends_when_another_member_leads_though_nothing_broke() {
    let world = World::new(V2);
    let first = scheduler::start(world.clone());
    let second = scheduler::start(world.clone());
    let client = SchedulerClient::connect(&[first.address.to_string()]).await.unwrap();
    let mut stream = client.region_heartbeats().await.unwrap();
    world.pd.leader.store(1, SeqCst);
    let end = tokio::time::timeout(Duration::from_secs(30), stream.recv()).await.expect("an end");
    assert!(end.unwrap_err().is_retryable());
    assert_eq!(client.leader_url(), format!("http://{}", second.address));
    assert!(client.region_heartbeats().await.is_ok(), "the next one is at the new leader");
}

#[tokio::test]
async fn heartbeats_travel_both_ways_until_the_stream_breaks() {
    let world = World::new(V2);
    let member = scheduler::start(world.clone());
    let client = SchedulerClient::connect(&[member.address.to_string()]).await.unwrap();
    let heartbeat = |id| {
        let region = Some(metapb::Region { id, ..Default::default() });
        RegionHeartbeatRequest { region, ..Default::default() }
    };
    let mut stream = client.region_heartbeats().await.unwrap();
    for id in [5, 6] {
        stream.sender().send(heartbeat(id)).await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap().region_id, id);
    }
    let headers: Vec<u64> =
        world.pd.heartbeats.lock().iter().map(|h| h.header.as_ref().unwrap().cluster_id).collect();
    assert_eq!(headers, [CLUSTER_ID, CLUSTER_ID]);
    world.pd.streams.send_modify(|n| *n += 1);
    assert!(!matches!(stream.recv().await, Ok(Some(_))));
    let mut stream = client.region_heartbeats().await.unwrap();
    stream.send(heartbeat(7)).await.unwrap();
    assert_eq!(stream.recv().await.unwrap().unwrap().region_id, 7);
}

#[tokio::test]
async fn errors_are_typed_and_come_in_time() {
    let world = World::new(V2);
    let member = scheduler::start(world.clone());
    let client = SchedulerClient::connect(&[member.address.to_string()]).await.unwrap();
    assert!(matches!(client.get_store(9).await, Err(Error::StoreNotFound(9))));
    assert!(matches!(client.load_keyspace("none").await, Err(Error::KeyspaceNotFound(_))));
    assert!(client.get_region_by_id(77).await.unwrap().is_none());
    world.pd.bootstrapped.store(false, SeqCst);
    assert!(matches!(client.get_cluster_config().await, Err(Error::NotBootstrapped)));
    world.pd.cluster_id.store(8, SeqCst);
    assert!(matches!(client.alloc_id(1).await, Err(Error::ClusterMismatch(_))));
    world.pd.cluster_id.store(CLUSTER_ID, SeqCst);
    let address = member.address.to_string();
    drop(member);
    let started = Instant::now();
    let hasty = client.with_timeout(Duration::from_millis(200));
    assert!(matches!(hasty.alloc_id(1).await, Err(Error::Timeout { .. })));
    let options = SchedulerOptions { timeout: Duration::from_millis(200), ..SchedulerOptions::default() };
    let error = SchedulerClient::connect_with(&[address], options).await.err().unwrap();
    assert!(matches!(error, Error::SchedulerUnavailable { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3));
}
