//! Several schedulers on a real etcd: any of them, and any member of etcd, may die, freeze or be asked to go, and
//! timestamps only grow. Times are printed, never asserted.

use std::time::{Duration, Instant};

use integration::cluster::group::{PREFIX, Scheduler};
use integration::cluster::timestamps::{Crowd, TimestampLoad};
use integration::cluster::{Process, SchedulerGroup, binary, free_address, get, wait_until};
use kvclient::{RawClient, SchedulerClient, SchedulerOptions};
use kvproto::etcdserverpb::MemberListRequest;
use kvproto::etcdserverpb::cluster_client::ClusterClient;
use kvproto::pdpb::pd_client::PdClient;
use kvproto::pdpb::{AllocIdRequest, GetMembersRequest, IsBootstrappedRequest, RequestHeader};
use tikv_client::TimestampExt;

const SOON: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(2);

async fn patient(endpoints: &[String]) -> SchedulerClient {
    let options = SchedulerOptions { timeout: SOON, ..SchedulerOptions::default() };
    SchedulerClient::connect_with(endpoints, options).await.expect("a scheduler client")
}

/// How a leader ends.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Killed,
    Frozen,
    Terminated,
    SteppedBack,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timestamps_only_grow_whatever_happens_to_the_leader() {
    let mut group = SchedulerGroup::start(1, 3, 0).expect("three schedulers");
    let load = TimestampLoad::start(&group.endpoints(), 4).await.expect("clients");
    load.wait_more(SOON).expect("timestamps");
    for fate in [Fate::Killed, Fate::Frozen, Fate::Terminated, Fate::SteppedBack, Fate::Killed] {
        let leader = group.wait_leader().expect("a leader");
        let started = Instant::now();
        match fate {
            Fate::Killed => group.schedulers[leader].process.kill(),
            Fate::Frozen => group.schedulers[leader].process.freeze(),
            Fate::Terminated => {
                let ended = group.schedulers[leader].process.terminate(SOON).expect("it stops");
                assert!(ended.success(), "{ended}");
            }
            Fate::SteppedBack => {
                let to = group.schedulers[(leader + 1) % 3].name.clone();
                patient(&group.endpoints())
                    .await
                    .transfer_leader(Some(&to), None)
                    .await
                    .expect("it steps back");
            }
        }
        let next = group.wait_other_leader(leader).expect("another leader");
        let replaced = started.elapsed();
        if matches!(fate, Fate::SteppedBack) {
            assert_eq!(next, (leader + 1) % 3, "the one that was asked for leads");
        }
        match fate {
            Fate::Killed | Fate::Terminated => {
                group.schedulers[leader].process.start_again().expect("it starts again");
            }
            // With what waits in its sockets.
            Fate::Frozen => group.schedulers[leader].process.thaw(),
            Fate::SteppedBack => {}
        }
        group.schedulers[leader].wait_serving().expect("it is a member again");
        let pause = load.wait_more(SOON).expect("more timestamps");
        println!("{fate:?}: another leader after {replaced:?}, longest pause of timestamps {pause:?}");
        let leaders: Vec<bool> = group.schedulers.iter().map(|scheduler| scheduler.leads()).collect();
        assert!(leaders.iter().filter(|leads| **leads).count() <= 1, "{leaders:?}");
    }
    let taken = load.finish().await.unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{taken} timestamps");
}

/// Many clients in few processes: their questions travel together, and nothing else changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_requests_and_timestamps_only_grow_when_the_leader_is_killed() {
    let mut group = SchedulerGroup::start(1, 3, 0).expect("three schedulers");
    let crowd = Crowd { clients: 64, to_a_connection: 32 };
    let load = TimestampLoad::of(&group.endpoints(), crowd).await.expect("clients");
    load.wait_more(SOON).expect("timestamps");
    for round in 0..3 {
        let leader = group.wait_leader().expect("a leader");
        group.schedulers[leader].process.kill();
        group.wait_other_leader(leader).expect("another leader");
        let pause = load.wait_more(SOON).expect("more timestamps");
        println!("round {round}: longest pause of timestamps {pause:?}");
        group.schedulers[leader].process.start_again().expect("it starts again");
        group.schedulers[leader].wait_serving().expect("it is a member again");
    }
    // All at once: what comes back must not give anything twice.
    group.schedulers.iter_mut().for_each(|scheduler| scheduler.process.kill());
    for scheduler in &mut group.schedulers {
        scheduler.process.start_again().expect("it starts again");
    }
    let leader = group.wait_leader().expect("a leader");
    let figures = |name| group.schedulers[leader].metric(name).unwrap_or_default();
    wait_until("a good many timestamps", SOON, || figures("scheduler_tso_timestamps_total") > 10_000.0)
        .expect("timestamps");
    let (timestamps, requests) =
        (figures("scheduler_tso_timestamps_total"), figures("scheduler_tso_requests_total"));
    println!("{timestamps} timestamps in {requests} requests");
    assert!(timestamps >= 2.0 * requests, "{timestamps} timestamps in {requests} requests");
    let taken = load.finish().await.unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{taken} timestamps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_and_clients_follow_a_new_leader() {
    let mut group = SchedulerGroup::start(1, 3, 3).expect("three schedulers and three stores");
    let client = RawClient::connect(group.endpoints()).await.expect("a client");
    client.put("before", "1").await.expect("a put");
    let safe_point = patient(&group.endpoints()).await.get_timestamp(1).await.expect("a timestamp");
    let scheduler = patient(&group.endpoints()).await;
    scheduler.set_gc_barrier("backup", safe_point, None).await.expect("a barrier");
    scheduler.advance_txn_safe_point(Some(safe_point)).await.expect("a safe point");
    let official = tikv_client::TransactionClient::new(group.endpoints()).await.expect("the official client");
    let mut last = official.current_timestamp().await.expect("a timestamp").version();
    for is_frozen in [false, true] {
        let leader = group.wait_leader().expect("a leader");
        let started = Instant::now();
        match is_frozen {
            false => group.schedulers[leader].process.kill(),
            true => group.schedulers[leader].process.freeze(),
        }
        client.put("during", "2").await.expect("a put needs no scheduler");
        group.wait_other_leader(leader).expect("another leader");
        group.wait_replicated().expect("reports of all stores");
        println!("frozen {is_frozen}: all regions reported to the new leader after {:?}", started.elapsed());
        // A client without anything in its cache needs the new leader for every region.
        let fresh = RawClient::connect(group.endpoints()).await.expect("a client");
        assert_eq!(fresh.get("before").await.expect("a get").as_deref(), Some(&b"1"[..]));
        match is_frozen {
            false => group.schedulers[leader].process.start_again().expect("it starts again"),
            true => group.schedulers[leader].process.thaw(),
        }
        group.schedulers[leader].wait_serving().expect("it is a member again");
        let state = patient(&group.endpoints()).await.gc_state().await.expect("the state of a new leader");
        assert_eq!((state.txn_safe_point, state.barriers.len()), (safe_point, 1), "{state:?}");
        let next = official.current_timestamp().await.expect("a timestamp for the official client").version();
        assert!(next > last, "{next} after {last}");
        last = next;
    }
}

/// What waits in the sockets of a leader while it is frozen is a request to a leader of the past.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_that_wakes_up_writes_nothing() {
    let group = SchedulerGroup::start(1, 2, 0).expect("two schedulers");
    let cluster_id = patient(&group.endpoints()).await.cluster_id();
    let leader = group.wait_leader().expect("a leader");
    let frozen = &group.schedulers[leader];
    let mut pd = PdClient::connect(format!("http://{}", frozen.address)).await.expect("a connection");
    let header = Some(RequestHeader { cluster_id, ..Default::default() });
    pd.is_bootstrapped(IsBootstrappedRequest { header: header.clone() }).await.expect("it leads");

    frozen.freeze().expect("a frozen leader");
    let late = tokio::spawn(async move { pd.alloc_id(AllocIdRequest { header, count: 5000 }).await });
    group.wait_other_leader(leader).expect("another leader");
    let mut etcd =
        etcd_client::Client::connect(group.etcd.endpoints(), None).await.expect("a client of etcd");
    let all = || Some(etcd_client::GetOptions::new().with_prefix());
    let before = etcd.get("/kvasir/test/data/", all()).await.expect("the metadata");
    frozen.process.thaw();
    let refused = late.await.expect("no panic").expect_err("it does not lead any more");
    assert_eq!((refused.code(), refused.message()), (tonic::Code::Unavailable, "not leader"));
    let after = etcd.get("/kvasir/test/data/", all()).await.expect("the metadata");
    assert_eq!(format!("{:?}", before.kvs()), format!("{:?}", after.kvs()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_may_lose_a_member_and_be_away_for_a_while() {
    let mut group = SchedulerGroup::start(3, 2, 3).expect("three etcd members, two schedulers, three stores");
    let client = RawClient::connect(group.endpoints()).await.expect("a client");
    let load = TimestampLoad::start(&group.endpoints(), 2).await.expect("clients");
    load.wait_more(SOON).expect("timestamps");
    let scheduler = patient(&group.endpoints()).await;
    for member in 0..3 {
        match member % 2 {
            0 => group.etcd.members[member].kill(),
            _ => group.etcd.members[member].freeze(),
        }
        let gone = Instant::now();
        client.put("while a member is away", "1").await.expect("a put");
        // Longer than a lease: it must have been renewed without this member, and writes go on.
        while gone.elapsed() < LEASE {
            scheduler.alloc_id(1000).await.expect("ids, which are written before they are handed out");
        }
        let pause = load.wait_more(SOON).expect("timestamps with two of three members");
        println!("member {member} of etcd away: longest pause of timestamps {pause:?}");
        match member % 2 {
            0 => group.etcd.members[member].start_again().expect("it starts again"),
            _ => group.etcd.members[member].thaw(),
        }
        group.etcd.wait_healthy(&[0, 1, 2]).expect("three members");
    }

    let away = Instant::now();
    group.etcd.members.iter().for_each(|member| member.freeze());
    let is_known = |scheduler: &Scheduler| {
        scheduler.metric("scheduler_etcd_up") == Some(0.0)
            && scheduler.metric("scheduler_is_leader") == Some(0.0)
    };
    wait_until("schedulers that know that etcd is away", SOON, || group.schedulers.iter().all(is_known))
        .expect("a clear state");
    println!("no leader {:?} after etcd froze", away.elapsed());
    let statuses =
        kvclient::member_statuses(&group.endpoints(), Duration::from_secs(1)).await.expect("members answer");
    assert_eq!(statuses.len(), 2);
    for status in statuses {
        assert_eq!(status.obstacle.as_deref(), Some("etcd cannot be reached"), "{}", status.member.name);
    }
    let mut written = 0;
    while away.elapsed() < Duration::from_secs(10) {
        client.put(format!("key {written}"), "2").await.expect("a put needs no scheduler");
        written += 1;
    }
    assert_eq!(client.get("key 0").await.expect("a get").as_deref(), Some(&b"2"[..]));
    group.etcd.members.iter().for_each(|member| member.thaw());
    let back = Instant::now();
    group.wait_leader().expect("a leader");
    println!("a leader {:?} after etcd went on; {written} puts meanwhile", back.elapsed());
    load.wait_more(SOON).expect("timestamps");
    group.wait_replicated().expect("reports of all stores");
    load.finish().await.unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// Answers of a scheduler that does not lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_names_the_leader_passes_on_what_it_may_and_refuses_the_rest() {
    let group = SchedulerGroup::start(1, 2, 0).expect("two schedulers");
    let leader = group.wait_leader().expect("a leader");
    let follower = &group.schedulers[1 - leader];
    let url = format!("http://{}", follower.address);
    let mut pd = PdClient::connect(url.clone()).await.expect("a connection");
    let members = pd.get_members(GetMembersRequest::default()).await.expect("members").into_inner();
    assert_eq!(members.leader.map(|leader| leader.name), Some(group.schedulers[leader].name.clone()));
    assert_eq!(members.members.len(), 2);
    let cluster_id = members.header.expect("a header").cluster_id;
    let header = Some(RequestHeader { cluster_id, ..Default::default() });

    let refused =
        pd.alloc_id(AllocIdRequest { header: header.clone(), count: 1 }).await.expect_err("a follower");
    assert_eq!((refused.code(), refused.message()), (tonic::Code::Unavailable, "not leader"));
    let mut request = tonic::Request::new(AllocIdRequest { header, count: 1 });
    request.metadata_mut().insert("pd-forwarded-host", url.parse().expect("a value"));
    assert!(pd.alloc_id(request).await.expect("the leader's answer").into_inner().id > 0);
    let mut etcd = ClusterClient::connect(url).await.expect("a connection");
    let list = etcd.member_list(MemberListRequest::default()).await.expect("members as etcd lists them");
    assert_eq!(list.into_inner().members.len(), 2);

    let page = |path| get(follower.address, path, SOON).expect("an answer");
    assert_eq!(page("/pd/api/v1/regions").json().expect("the leader's JSON")["count"], 0);
    assert_eq!(page("/pd/api/v1/region/id/77").status, 404, "the leader's refusal");
    let health = page("/pd/api/v1/health").json().expect("JSON");
    assert!(
        health.as_array().is_some_and(|all| all.len() == 2 && all.iter().all(|one| one["health"] == true))
    );
    assert!(page("/pd/api/v2/ready").is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kvctl_shows_schedulers_and_lets_another_one_lead() {
    let group = SchedulerGroup::start(1, 2, 0).expect("two schedulers");
    let leader = group.wait_leader().expect("a leader");
    let (old, new) = (&group.schedulers[leader].name, &group.schedulers[1 - leader].name);
    let kvctl = |args: &[&str]| {
        let schedulers = ["--scheduler".to_string(), group.endpoints().join(",")];
        let program = binary("kvctl").expect("kvctl");
        std::process::Command::new(program).args(schedulers).args(args).output().expect("it runs")
    };
    let json = |args: &[&str]| -> serde_json::Value {
        let output = kvctl(&[args, &["--output", "json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let line = |member: &serde_json::Value| {
        let text = |key: &str| member[key].as_str().unwrap_or_default().to_string();
        (text("name"), member["leader"] == true, text("health"))
    };
    let mut want = [(old.clone(), true, "healthy".to_string()), (new.clone(), false, "healthy".to_string())];
    want.sort_unstable();
    let is_listed =
        || json(&["member", "list"]).as_array().expect("a list").iter().map(line).eq(want.iter().cloned());
    // A scheduler that has just started may need a moment to hear of the leader.
    wait_until("both schedulers in the list, healthy", SOON, is_listed).expect("a list of both");
    assert_eq!(json(&["member", "leader", "show"])["name"], old.as_str());
    assert_eq!(json(&["member", "leader", "transfer", new])["name"], new.as_str());
    assert_eq!(json(&["member", "leader", "transfer", new])["name"], new.as_str(), "it leads already");
    assert_eq!(json(&["member", "leader", "transfer"])["name"], old.as_str(), "any other one");
    let refused = kvctl(&["member", "leader", "transfer", "nobody"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("there are: s1, s2"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_scheduler_of_the_same_name_is_refused_and_other_clusters_share_the_etcd() {
    let group = SchedulerGroup::start(1, 1, 0).expect("a scheduler");
    let launch = group.scheduler_launch("s1", PREFIX, free_address()).expect("a launch");
    let mut second = Process::start(launch).expect("a process");
    assert!(!second.wait_exit(SOON).expect("it ends").success());
    assert!(second.log_tail().contains("choose another --name"), "{}", second.log_tail());

    let address = free_address();
    let launch = group.scheduler_launch("s1", "another", address).expect("a launch");
    let process = Process::start(launch).expect("a process");
    let mut other = Scheduler { process, address, name: "s1".into() };
    other.wait_serving().expect("it serves");
    wait_until("the leader of the other cluster", SOON, || other.leads()).expect("it leads its own cluster");
    let ours = patient(&group.endpoints()).await.cluster_id();
    assert_ne!(patient(&[address.to_string()]).await.cluster_id(), ours);
}
