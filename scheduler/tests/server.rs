//! A whole scheduler on a free port, driven as stores, clients and start-up scripts drive it.

use std::time::{Duration, Instant};

use kvproto::health::{HealthCheckRequest, health_client::HealthClient};
use kvproto::keyspacepb::{self, keyspace_client::KeyspaceClient};
use kvproto::pdpb::{self, pd_client::PdClient};
use kvproto::{eraftpb, kvrpcpb, metapb};
use scheduler::{Config, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

const DEADLINE: Duration = Duration::from_secs(10);

fn config(dir: &std::path::Path) -> Config {
    Config { client_urls: "http://127.0.0.1:0".into(), data_dir: dir.into(), ..Config::default() }
}

/// A region of store 1 alone; its peer has the next id.
fn first_region(id: u64, start: &'static str, end: &'static str) -> metapb::Region {
    metapb::Region {
        id,
        start_key: start.into(),
        end_key: end.into(),
        region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 1 }),
        peers: vec![metapb::Peer { id: id + 1, store_id: 1, ..Default::default() }],
        ..Default::default()
    }
}

/// A client that fills in the cluster id.
struct Client {
    pd: PdClient<Channel>,
    url: String,
    cluster_id: u64,
}

impl Client {
    async fn of(server: &Server) -> Client {
        let url = server.client_url();
        let pd = PdClient::connect(url.clone()).await.unwrap();
        Client { pd, url, cluster_id: server.cluster_id() }
    }

    fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.cluster_id, ..Default::default() })
    }

    async fn bootstrap(&mut self, traits: Option<pdpb::ClusterTraits>) -> pdpb::ResponseHeader {
        self.alloc_id(20).await;
        self.bootstrap_with(vec![first_region(11, "", "")], traits).await
    }

    async fn bootstrap_with(
        &mut self,
        mut regions: Vec<metapb::Region>,
        traits: Option<pdpb::ClusterTraits>,
    ) -> pdpb::ResponseHeader {
        let (header, more_regions) = (self.header(), regions.split_off(1));
        let (store, region) = (Some(store(1)), regions.pop());
        let request = pdpb::BootstrapRequest { header, store, region, traits, more_regions };
        self.pd.bootstrap(request).await.unwrap().into_inner().header.unwrap()
    }

    async fn put_store(&mut self, id: u64, traits: Option<pdpb::ClusterTraits>) -> pdpb::ResponseHeader {
        let request = pdpb::PutStoreRequest { header: self.header(), store: Some(store(id)), traits };
        self.pd.put_store(request).await.unwrap().into_inner().header.unwrap()
    }

    async fn store_heartbeat(&mut self, id: u64) {
        let stats = pdpb::StoreStats { store_id: id, capacity: 100, available: 90, ..Default::default() };
        let request = pdpb::StoreHeartbeatRequest { header: self.header(), stats: Some(stats) };
        let answer = self.pd.store_heartbeat(request).await.unwrap().into_inner();
        assert_eq!(answer.header.unwrap().error, None);
        assert_eq!(answer.state, metapb::NodeState::Serving as i32);
    }

    async fn region(&mut self, key: &'static [u8]) -> pdpb::GetRegionResponse {
        let request =
            pdpb::GetRegionRequest { header: self.header(), region_key: key.into(), need_buckets: false };
        self.pd.get_region(request).await.unwrap().into_inner()
    }

    async fn alloc_id(&mut self, count: u32) -> u64 {
        let request = pdpb::AllocIdRequest { header: self.header(), count };
        let answer = self.pd.alloc_id(request).await.unwrap().into_inner();
        assert_eq!(answer.count, count);
        answer.id
    }

    /// Sends requests of these sizes at once on one stream, and returns the answers.
    async fn timestamps(&mut self, counts: &[u32]) -> Vec<(i64, i64)> {
        let header = self.header();
        let request = |count| pdpb::TsoRequest { header: header.clone(), count, ..Default::default() };
        let requests: Vec<_> = counts.iter().map(|count| request(*count)).collect();
        let mut answers = self.pd.tso(tokio_stream::iter(requests)).await.unwrap().into_inner();
        let mut stamps = Vec::new();
        for count in counts {
            let answer = answers.message().await.unwrap().unwrap();
            assert_eq!((answer.count, answer.header.unwrap().cluster_id), (*count, self.cluster_id));
            let stamp = answer.timestamp.unwrap();
            stamps.push((stamp.physical, stamp.logical));
        }
        stamps
    }

    /// Status line and body of a request over HTTP/1.1.
    async fn http(&self, method: &str, path: &str) -> (String, String) {
        let addr = self.url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_string(), body.to_string())
    }

    async fn json(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.http("GET", path).await;
        assert_eq!(status, "HTTP/1.1 200 OK", "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

fn store(id: u64) -> metapb::Store {
    metapb::Store {
        id,
        address: format!("127.0.0.1:{}", 20160 + id),
        version: "1.0.0".into(),
        ..Default::default()
    }
}

fn error_type(header: Option<pdpb::ResponseHeader>) -> pdpb::ErrorType {
    header.unwrap().error.map_or(pdpb::ErrorType::Ok, |error| error.r#type())
}

/// The leader of region 11 as a store would run it: carries out commands and reports.
struct Leader {
    header: Option<pdpb::RequestHeader>,
    region: metapb::Region,
    reports: mpsc::Sender<pdpb::RegionHeartbeatRequest>,
    commands: tonic::Streaming<pdpb::RegionHeartbeatResponse>,
}

impl Leader {
    async fn of(client: &mut Client) -> Leader {
        let region = client.region(b"").await.region.unwrap();
        let (reports, queue) = mpsc::channel(16);
        let commands = client.pd.region_heartbeat(ReceiverStream::new(queue)).await.unwrap().into_inner();
        Leader { header: client.header(), region, reports, commands }
    }

    async fn report(&self) {
        let report = pdpb::RegionHeartbeatRequest {
            header: self.header.clone(),
            region: Some(self.region.clone()),
            leader: Some(self.region.peers[0]),
            term: 6,
            ..Default::default()
        };
        self.reports.send(report).await.unwrap();
    }

    async fn obey_one(&mut self) {
        let command = tokio::time::timeout(DEADLINE, self.commands.message()).await;
        let command = command.expect("no command came").unwrap().expect("the stream ended");
        assert_eq!(command.header.unwrap().error, None);
        assert_eq!((command.region_id, command.target_peer), (11, Some(self.region.peers[0])));
        assert_eq!(command.region_epoch, self.region.region_epoch);
        let change = command.change_peer.unwrap();
        let peer = change.peer.unwrap();
        self.region.peers.retain(|other| other.id != peer.id);
        assert_ne!(change.change_type(), eraftpb::ConfChangeType::RemoveNode);
        self.region.peers.push(peer);
        self.region.region_epoch.as_mut().unwrap().conf_ver += 1;
    }

    fn voters(&self) -> usize {
        self.region.peers.iter().filter(|peer| peer.role() == metapb::PeerRole::Voter).count()
    }
}

#[tokio::test]
async fn a_new_cluster_gets_three_replicas_in_moments() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    assert_eq!(client.bootstrap(None).await.error, None);
    for id in 1..=3 {
        assert_eq!(client.put_store(id, None).await.error, None);
        client.store_heartbeat(id).await;
    }
    let mut leader = Leader::of(&mut client).await;
    let started = Instant::now();
    while leader.voters() < 3 {
        leader.report().await;
        leader.obey_one().await;
    }
    leader.report().await;
    assert!(started.elapsed() < Duration::from_secs(1), "took {:?}", started.elapsed());
    while client.region(b"any").await.region != Some(leader.region.clone()) {
        assert!(started.elapsed() < DEADLINE, "the last report did not arrive");
        tokio::task::yield_now().await;
    }
    let known = client.region(b"any").await;
    assert_eq!(known.leader, Some(leader.region.peers[0]));
    server.shutdown().await;
    // The stream ends with the server, without an error that a store would log.
    assert!(matches!(leader.commands.message().await, Ok(None)));
}

#[tokio::test]
async fn a_question_waits_for_the_report_that_a_new_leader_does_not_have_yet() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path())).await.unwrap();
    Client::of(&server).await.bootstrap(None).await;
    server.shutdown().await;

    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    let mut other = Client::of(&server).await;
    let leader = Leader::of(&mut client).await;
    // The question goes out first.
    let (answer, ()) = tokio::join!(other.region(b"any"), leader.report());
    assert_eq!(answer.leader, Some(leader.region.peers[0]), "the record in the metadata names no leader");
    server.shutdown().await;
}

#[tokio::test]
async fn timestamps_come_in_order_with_the_largest_of_each_batch() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    let counts = [1, 64, 1, 10_000, 1 << 18, 3, 1 << 18];
    let mut last = (0, -1);
    for ((physical, logical), count) in client.timestamps(&counts).await.into_iter().zip(counts) {
        let first = (physical, logical - i64::from(count) + 1);
        assert!(first.1 >= 0 && logical < 1 << 18);
        assert!(first > last, "{first:?} after {last:?}");
        last = (physical, logical);
    }
    let header = client.header();
    for count in [0, (1 << 18) + 1] {
        let request = pdpb::TsoRequest { header: header.clone(), count, ..Default::default() };
        let mut answers = client.pd.tso(tokio_stream::iter([request])).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_restart_keeps_the_cluster_and_repeats_no_id_or_timestamp() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    client.bootstrap(None).await;
    client.put_store(2, None).await;
    let (cluster_id, id) = (server.cluster_id(), client.alloc_id(1500).await);
    assert_eq!(client.alloc_id(1).await, id + 1);
    let stamp = client.timestamps(&[1]).await[0];

    let second = Server::start(config(dir.path())).await.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(second.contains("is in use by another scheduler"), "{second}");
    server.shutdown().await;

    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    assert_eq!(server.cluster_id(), cluster_id);
    assert!(client.alloc_id(1).await > id + 1);
    assert!(client.timestamps(&[1]).await[0] > stamp);
    assert_eq!(client.bootstrap(None).await.error.unwrap().r#type(), pdpb::ErrorType::AlreadyBootstrapped);
    let region = client.region(b"k").await;
    assert_eq!((region.region.unwrap().id, region.leader), (11, None));
    let request = pdpb::GetAllStoresRequest { header: client.header(), ..Default::default() };
    let stores = client.pd.get_all_stores(request).await.unwrap().into_inner().stores;
    assert_eq!(stores.iter().map(|store| store.id).collect::<Vec<_>>(), [1, 2]);
    server.shutdown().await;
}

#[tokio::test]
async fn a_cluster_may_start_with_regions_that_tile_the_key_space() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    client.alloc_id(20).await;
    let refused = [
        (vec![first_region(11, "", "m")], "cover all keys"),
        (vec![first_region(11, "", "m"), first_region(13, "n", "")], "does not end where region 13 starts"),
        (vec![first_region(11, "", "n"), first_region(13, "m", "")], "does not end where region 13 starts"),
        (vec![first_region(11, "", ""), first_region(13, "", "")], "does not end where region 13 starts"),
        (vec![first_region(11, "", "m"), first_region(12, "m", "")], "id 12 is used twice"),
        (vec![first_region(11, "", "m"), first_region(5000, "m", "")], "id 5000 was not handed out"),
        (vec![first_region(11, "", "m"), metapb::Region { id: 13, ..Default::default() }], "no epoch"),
    ];
    for (regions, why) in refused {
        let error = client.bootstrap_with(regions, None).await.error.expect(why);
        assert_eq!(error.r#type(), pdpb::ErrorType::InvalidValue);
        assert!(error.message.contains(why), "{} lacks {why}", error.message);
    }
    let request = pdpb::IsBootstrappedRequest { header: client.header() };
    assert!(!client.pd.is_bootstrapped(request).await.unwrap().into_inner().bootstrapped);

    let regions = vec![first_region(13, "h", "p"), first_region(11, "", "h"), first_region(15, "p", "")];
    assert_eq!(client.bootstrap_with(regions, None).await.error, None);
    server.shutdown().await;
    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    for (key, id) in [(&b""[..], 11), (b"g", 11), (b"h", 13), (b"p", 15), (b"z", 15)] {
        assert_eq!(client.region(key).await.region.unwrap().id, id, "after a restart");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn refusals_are_those_that_clients_understand() {
    let server = Server::start(Config { in_memory: true, ..config("unused".as_ref()) }).await.unwrap();
    let mut client = Client::of(&server).await;
    let members = client.pd.get_members(pdpb::GetMembersRequest::default()).await.unwrap().into_inner();
    assert_eq!(members.header.unwrap(), pdpb::ResponseHeader { cluster_id: client.cluster_id, error: None });
    assert_eq!(members.leader.unwrap().client_urls, [server.client_url()]);
    assert_eq!((members.members.len(), members.etcd_leader.unwrap().member_id == 0), (1, false));

    assert_eq!(error_type(client.region(b"").await.header), pdpb::ErrorType::NotBootstrapped);
    client.bootstrap(None).await;
    let foreign = client.put_store(5000, None).await.error.unwrap();
    assert_eq!(foreign.r#type(), pdpb::ErrorType::InvalidValue);
    assert!(foreign.message.contains("id 5000 was not handed out"), "{}", foreign.message);
    let request = pdpb::GetStoreRequest { header: client.header(), store_id: 99 };
    let answer = client.pd.get_store(request).await.unwrap().into_inner();
    // Clients that look at the store before the error must find one.
    let empty = Some(metapb::Store::default());
    assert_eq!((error_type(answer.header), answer.store), (pdpb::ErrorType::Unknown, empty));

    let foreign = Some(pdpb::RequestHeader { cluster_id: 5, ..Default::default() });
    let request = pdpb::GetRegionByIdRequest { header: foreign, region_id: 1, need_buckets: false };
    let status = client.pd.get_region_by_id(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), format!("mismatch cluster id, need {} but got 5", client.cluster_id));
    let unknown = pdpb::GetRegionByIdRequest { header: client.header(), region_id: 1, need_buckets: false };
    let answer = client.pd.get_region_by_id(unknown).await.unwrap().into_inner();
    assert_eq!((error_type(answer.header), answer.region), (pdpb::ErrorType::Ok, None));
    server.shutdown().await;
}

#[tokio::test]
async fn a_store_with_other_settings_than_the_first_is_refused() {
    let server = Server::start(Config { in_memory: true, ..config("unused".as_ref()) }).await.unwrap();
    let mut client = Client::of(&server).await;
    let traits = pdpb::ClusterTraits {
        api_version: kvrpcpb::ApiVersion::V2 as i32,
        raft_tick_ms: 50,
        raft_heartbeat_ticks: 2,
        raft_election_ticks: 10,
    };
    client.bootstrap(Some(traits)).await;
    assert_eq!(client.put_store(2, Some(traits)).await.error, None);
    assert_eq!(client.put_store(3, None).await.error, None);
    let other = pdpb::ClusterTraits { api_version: kvrpcpb::ApiVersion::V1 as i32, ..traits };
    let error = client.put_store(4, Some(other)).await.error.unwrap();
    assert_eq!(error.r#type(), pdpb::ErrorType::IncompatibleVersion);
    assert!(error.message.contains("storage.api (store v1, cluster v2)"), "{}", error.message);
    let other = pdpb::ClusterTraits { raft_tick_ms: 100, ..traits };
    let error = client.put_store(4, Some(other)).await.error.unwrap();
    assert!(error.message.contains("raft tick (ms) (store 100, cluster 50)"), "{}", error.message);
    let request = pdpb::GetClusterConfigRequest { header: client.header() };
    let answer = client.pd.get_cluster_config(request).await.unwrap().into_inner();
    assert_eq!((answer.traits, answer.cluster.unwrap().max_peer_count), (Some(traits), 3));
    server.shutdown().await;
}

#[tokio::test]
async fn splits_get_fresh_ids_and_their_reports_are_seen_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    client.bootstrap(None).await;
    let mut region = client.region(b"").await.region.unwrap();
    let ask = |client: &Client, region: &metapb::Region, split_count| pdpb::AskBatchSplitRequest {
        header: client.header(),
        region: Some(region.clone()),
        split_count,
        reason: pdpb::SplitReason::Admin as i32,
    };
    let mut ids = Vec::new();
    // More than one window of ids.
    for count in [2, 600] {
        let request = ask(&client, &region, count);
        let answer = client.pd.ask_batch_split(request).await.unwrap().into_inner();
        assert_eq!(answer.ids.len(), count as usize);
        assert!(answer.ids.iter().all(|split| split.new_peer_ids.len() == 1));
        ids.extend(answer.ids.iter().flat_map(|split| [split.new_region_id, split.new_peer_ids[0]]));
    }
    ids.push(client.alloc_id(1).await);
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] < pair[1]) && ids[0] > 20);

    region.region_epoch = Some(metapb::RegionEpoch { conf_ver: 1, version: 2 });
    let left = metapb::Region {
        id: ids[0],
        end_key: "m".into(),
        peers: vec![metapb::Peer { id: ids[1], store_id: 1, ..Default::default() }],
        ..region.clone()
    };
    region.start_key = "m".into();
    let regions = vec![left.clone(), region.clone()];
    let report = pdpb::ReportBatchSplitRequest { header: client.header(), regions };
    let answer = client.pd.report_batch_split(report).await.unwrap().into_inner();
    assert_eq!(error_type(answer.header), pdpb::ErrorType::Ok);
    assert_eq!(client.region(b"a").await.region, Some(left));
    assert_eq!(client.region(b"m").await.region, Some(region.clone()));

    let mut old = region.clone();
    old.region_epoch = Some(metapb::RegionEpoch { conf_ver: 1, version: 1 });
    let request = ask(&client, &old, 1);
    let refused = client.pd.ask_batch_split(request).await.unwrap().into_inner();
    assert_eq!((error_type(refused.header), refused.ids.len()), (pdpb::ErrorType::Unknown, 0));
    server.shutdown().await;
}

#[tokio::test]
async fn keyspaces_health_and_modes_are_served() {
    let server = Server::start(Config { in_memory: true, ..config("unused".as_ref()) }).await.unwrap();
    let mut client = Client::of(&server).await;
    client.bootstrap(None).await;
    let mut keyspaces = KeyspaceClient::connect(client.url.clone()).await.unwrap();
    let load = |name: &str| keyspacepb::LoadKeyspaceRequest { header: client.header(), name: name.into() };
    let found = keyspaces.load_keyspace(load("DEFAULT")).await.unwrap().into_inner().keyspace.unwrap();
    assert_eq!(found.keyspace, Some(keyspacepb::keyspace_meta::Keyspace::Id(0)));
    assert_eq!(found.state(), keyspacepb::KeyspaceState::Enabled);
    let missing = keyspaces.load_keyspace(load("nope")).await.unwrap().into_inner();
    assert_eq!(error_type(missing.header), pdpb::ErrorType::EntryNotFound);
    let all = keyspacepb::GetAllKeyspacesRequest { header: client.header(), ..Default::default() };
    let all = keyspaces.get_all_keyspaces(all).await.unwrap().into_inner().keyspaces;
    assert_eq!(all, [found]);

    let mut health = HealthClient::connect(client.url.clone()).await.unwrap();
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status().as_str_name(), "SERVING");
    let info = client.pd.get_cluster_info(pdpb::GetClusterInfoRequest::default()).await.unwrap().into_inner();
    assert_eq!(info.service_modes, [pdpb::ServiceMode::PdSvcMode as i32]);
    server.shutdown().await;
}

#[tokio::test]
async fn http_is_served_on_the_same_port() {
    let server = Server::start(Config { in_memory: true, ..config("unused".as_ref()) }).await.unwrap();
    let mut client = Client::of(&server).await;
    assert_eq!(client.json("/pd/api/v1/regions").await["count"], 0);
    assert_eq!(client.http("HEAD", "/pd/api/v1/regions").await.0, "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(client.http("GET", "/pd/api/v1/stores").await.0, "HTTP/1.1 503 Service Unavailable");

    client.bootstrap(None).await;
    client.store_heartbeat(1).await;
    let leader = Leader::of(&mut client).await;
    leader.report().await;
    let started = Instant::now();
    while client.region(b"").await.leader.is_none() {
        assert!(started.elapsed() < DEADLINE, "the report did not arrive");
        tokio::task::yield_now().await;
    }
    let regions = client.json("/pd/api/v1/regions").await;
    assert_eq!((&regions["count"], &regions["regions"][0]["id"]), (&1.into(), &11.into()));
    assert_eq!(regions["regions"][0]["leader"]["store_id"], 1);
    assert_eq!(regions["regions"][0]["epoch"]["conf_ver"], 1);
    assert_eq!(client.json("/pd/api/v1/regions/count").await["count"], 1);
    assert_eq!(client.json("/pd/api/v1/region/id/11").await["peers"][0]["role_name"], "Voter");
    assert_eq!(client.json("/pd/api/v1/region/key/a%00%FF").await["id"], 11);
    assert_eq!(client.json("/pd/api/v1/region/key/00FF?format=hex").await["id"], 11);
    assert_eq!(client.http("GET", "/pd/api/v1/region/id/12").await.0, "HTTP/1.1 404 Not Found");
    assert_eq!(client.http("GET", "/pd/api/v1/region/key/%zz").await.0, "HTTP/1.1 400 Bad Request");

    let stores = client.json("/pd/api/v1/stores").await;
    assert_eq!((&stores["count"], &stores["stores"][0]["store"]["state_name"]), (&1.into(), &"Up".into()));
    assert_eq!(stores["stores"][0]["status"]["leader_count"], 1);
    assert_eq!(client.json("/pd/api/v1/store/1").await["store"]["address"], "127.0.0.1:20161");
    assert_eq!(client.http("DELETE", "/pd/api/v1/store/1").await.0, "HTTP/1.1 400 Bad Request");
    assert_eq!(client.json("/pd/api/v1/members").await["leader"]["client_urls"][0], server.client_url());
    assert_eq!(client.json("/pd/api/v1/health").await[0]["health"], true);
    assert_eq!(client.json("/pd/api/v1/cluster").await["id"], client.cluster_id);
    assert_eq!(client.json("/pd/api/v1/version").await["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(client.http("GET", "/ping").await.0, "HTTP/1.1 200 OK");
    let (_, metrics) = client.http("GET", "/metrics").await;
    assert!(metrics.contains("scheduler_stores{state=\"Up\"} 1"), "{metrics}");
    assert!(metrics.contains("scheduler_region_heartbeats_total{result=\"ok\"} 1"), "{metrics}");
    server.shutdown().await;
}

#[tokio::test]
async fn safe_points_and_barriers_are_served_and_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    let header = client.header();
    let state = |include_global_gc_barriers| pdpb::GetGcStateRequest {
        header: header.clone(),
        include_global_gc_barriers,
        ..Default::default()
    };
    let early = client.pd.get_gc_state(state(false)).await.unwrap().into_inner();
    assert_eq!(error_type(early.header), pdpb::ErrorType::NotBootstrapped);
    client.bootstrap(None).await;

    let barrier = |barrier_id: &str, barrier_ts| pdpb::SetGcBarrierRequest {
        header: header.clone(),
        barrier_id: barrier_id.into(),
        barrier_ts,
        ttl_seconds: 100,
        ..Default::default()
    };
    let set = client.pd.set_gc_barrier(barrier("backup", 50)).await.unwrap().into_inner();
    assert_eq!(set.new_barrier_info.unwrap().ttl_seconds, 100);
    let request =
        pdpb::AdvanceTxnSafePointRequest { header: header.clone(), target: 60, ..Default::default() };
    let moved = client.pd.advance_txn_safe_point(request.clone()).await.unwrap().into_inner();
    assert_eq!((moved.old_txn_safe_point, moved.new_txn_safe_point), (0, 50));
    assert!(moved.blocker_description.contains("backup"), "{}", moved.blocker_description);
    let late = client.pd.set_gc_barrier(barrier("late", 49)).await.unwrap().into_inner();
    assert_eq!(error_type(late.header), pdpb::ErrorType::InvalidValue);
    let scope = |id| pdpb::KeyspaceScope { keyspace: Some(pdpb::keyspace_scope::Keyspace::KeyspaceId(id)) };
    let of_one = pdpb::AdvanceTxnSafePointRequest { keyspace_scope: Some(scope(0)), ..request };
    let refused = client.pd.advance_txn_safe_point(of_one).await.unwrap().into_inner();
    assert_eq!(error_type(refused.header), pdpb::ErrorType::InvalidValue);
    let request =
        pdpb::AdvanceGcSafePointRequest { header: header.clone(), target: 40, ..Default::default() };
    let moved = client.pd.advance_gc_safe_point(request).await.unwrap().into_inner();
    assert_eq!((moved.old_gc_safe_point, moved.new_gc_safe_point), (0, 40));
    let global = pdpb::SetGlobalGcBarrierRequest {
        header: header.clone(),
        barrier_id: "copy".into(),
        barrier_ts: 70,
        ttl_seconds: i64::MAX,
    };
    client.pd.set_global_gc_barrier(global).await.unwrap();
    let unknown = pdpb::GetGcStateRequest { keyspace_scope: Some(scope(77)), ..state(true) };
    let refused = client.pd.get_gc_state(unknown).await.unwrap().into_inner();
    assert_eq!(error_type(refused.header), pdpb::ErrorType::EntryNotFound);

    server.shutdown().await;
    let server = Server::start(config(dir.path())).await.unwrap();
    let mut client = Client::of(&server).await;
    let answer = client.pd.get_gc_state(state(true)).await.unwrap().into_inner();
    let kept = answer.gc_state.unwrap();
    assert_eq!((kept.txn_safe_point, kept.gc_safe_point, kept.gc_barriers.len()), (50, 40, 1));
    assert_eq!(answer.global_gc_barriers.unwrap().barriers[0].barrier_ts, 70);
    let page = client.json("/pd/api/v1/gc/safepoint").await;
    assert_eq!((&page["min_service_gc_safe_point"], &page["gc_safe_point"]), (&50.into(), &40.into()));
    assert_eq!(page["service_gc_safe_points"].as_array().unwrap().len(), 3);
    let (status, _) = client.http("DELETE", "/pd/api/v1/gc/safepoint/gc_worker").await;
    assert_eq!(status, "HTTP/1.1 400 Bad Request");
    let (status, _) = client.http("DELETE", "/pd/api/v1/gc/safepoint/backup").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let (status, _) = client.http("DELETE", "/pd/api/v1/gc/safepoint/backup").await;
    assert_eq!(status, "HTTP/1.1 404 Not Found");
    let request = pdpb::UpdateGcSafePointRequest { header: header.clone(), safe_point: 69 };
    let moved = client.pd.update_gc_safe_point(request).await.unwrap().into_inner();
    assert_eq!(moved.new_safe_point, 69);
    server.shutdown().await;
}
