//! What clients of the field ask of the scheduler's port besides `pdpb.PD`: the slice of etcd, driven by an etcd
//! client, and the answers that they poll for. What is not served says so, on a connection that stays open.

use etcd_client::{Client as Etcd, GetOptions, PutOptions, SortOrder, SortTarget};
use kvproto::pdpb::{self, pd_client::PdClient};
use kvproto::{metapb, ts::Timestamp};
use scheduler::{Config, Server};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request};

const SAFE_POINT: &str = "/tidb/store/gcworker/saved_safe_point";

async fn start(dir: &std::path::Path) -> Server {
    let config =
        Config { client_urls: "http://127.0.0.1:0".into(), data_dir: dir.into(), ..Config::default() };
    Server::start(config).await.expect("a scheduler")
}

async fn etcd(server: &Server) -> Etcd {
    Etcd::connect([server.client_url()], None).await.expect("a connection")
}

struct Pd {
    client: PdClient<Channel>,
    cluster_id: u64,
}

impl Pd {
    async fn of(server: &Server) -> Pd {
        let client = PdClient::connect(server.client_url()).await.expect("a connection");
        Pd { client, cluster_id: server.cluster_id() }
    }

    fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.cluster_id, ..Default::default() })
    }

    /// A cluster of one store and one region.
    async fn bootstrap(&mut self) {
        let request = pdpb::AllocIdRequest { header: self.header(), count: 3 };
        self.client.alloc_id(request).await.expect("ids");
        let store = metapb::Store { id: 1, address: "127.0.0.1:20160".into(), ..Default::default() };
        let peers = vec![metapb::Peer { id: 3, store_id: 1, ..Default::default() }];
        let region_epoch = Some(metapb::RegionEpoch { conf_ver: 1, version: 1 });
        let region = metapb::Region { id: 2, peers, region_epoch, ..Default::default() };
        let (header, store, region) = (self.header(), Some(store), Some(region));
        let request = pdpb::BootstrapRequest { header, store, region, ..Default::default() };
        let answer = self.client.bootstrap(request).await.expect("an answer").into_inner();
        assert_eq!(answer.header.unwrap().error, None);
    }

    async fn min_ts(&mut self) -> u64 {
        let request = pdpb::GetMinTsRequest { header: self.header() };
        let stamp = self.client.get_min_ts(request).await.expect("an answer").into_inner().timestamp.unwrap();
        Timestamp::compose(stamp.physical as u64, stamp.logical as u64).expect("in range").get()
    }

    async fn safe_point(&mut self) -> u64 {
        let request = pdpb::GetGcSafePointRequest { header: self.header() };
        self.client.get_gc_safe_point(request).await.expect("an answer").into_inner().safe_point
    }

    async fn raise_safe_point(&mut self, to: u64) -> pdpb::UpdateGcSafePointResponse {
        let request = pdpb::UpdateGcSafePointRequest { header: self.header(), safe_point: to };
        self.client.update_gc_safe_point(request).await.expect("an answer").into_inner()
    }

    async fn set_external(&mut self, timestamp: u64) -> Option<pdpb::Error> {
        let request = pdpb::SetExternalTimestampRequest { header: self.header(), timestamp };
        self.client.set_external_timestamp(request).await.expect("an answer").into_inner().header?.error
    }

    async fn external(&mut self) -> u64 {
        let request = pdpb::GetExternalTimestampRequest { header: self.header() };
        self.client.get_external_timestamp(request).await.expect("an answer").into_inner().timestamp
    }
}

#[tokio::test]
async fn an_etcd_client_lists_members_and_keeps_keys() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut etcd = etcd(&server).await;
    let members = etcd.member_list().await.expect("members");
    assert_eq!(members.header().unwrap().cluster_id(), server.cluster_id());
    assert_eq!(members.members().len(), 1);
    assert_eq!(members.members()[0].client_urls(), [server.client_url()]);
    assert_ne!(members.members()[0].id(), 0);

    let missing = etcd.get(SAFE_POINT, None).await.expect("an answer");
    assert_eq!((missing.kvs().len(), missing.count()), (0, 0));
    etcd.put(SAFE_POINT, "7", None).await.expect("a put");
    let put = etcd.put(SAFE_POINT, "8", Some(PutOptions::new().with_prev_key())).await.expect("a put");
    assert_eq!(put.prev_key().expect("it was there").value(), b"7");
    etcd.put("/tidb/other", "x", None).await.expect("a put");
    let found = etcd.get(SAFE_POINT, None).await.expect("an answer");
    let kv = &found.kvs()[0];
    assert_eq!((kv.key(), kv.value(), kv.version()), (SAFE_POINT.as_bytes(), &b"8"[..], 2));
    assert_eq!((kv.create_revision(), kv.mod_revision(), found.header().unwrap().revision()), (1, 2, 3));
    let sorted = GetOptions::new().with_prefix().with_sort(SortTarget::Key, SortOrder::Descend).with_limit(1);
    let first = etcd.get("/tidb/", Some(sorted)).await.expect("an answer");
    assert_eq!((first.kvs().len(), first.more(), first.count()), (1, true, 2));
    assert_eq!(first.kvs()[0].key(), SAFE_POINT.as_bytes());

    server.shutdown().await;
    let server = start(dir.path()).await;
    let mut etcd = self::etcd(&server).await;
    assert_eq!(etcd.get(SAFE_POINT, None).await.expect("an answer").kvs()[0].value(), b"8", "it is durable");
    server.shutdown().await;
}

#[tokio::test]
async fn bad_keys_are_refused_and_what_is_missing_of_etcd_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut etcd = etcd(&server).await;
    let code = |error: etcd_client::Error| match error {
        etcd_client::Error::GRpcStatus(status) => (status.code(), status.message().to_string()),
        other => panic!("{other}"),
    };
    let (refused, text) = code(etcd.put("", "v", None).await.unwrap_err());
    assert_eq!((refused, text.contains("key")), (Code::InvalidArgument, true), "{text}");
    let (refused, text) = code(etcd.put("/kvasir/mine", "v", None).await.unwrap_err());
    assert_eq!((refused, text.contains("/kvasir/")), (Code::InvalidArgument, true), "{text}");
    let (refused, _) = code(etcd.put("k", vec![b'v'; 1 << 20], None).await.unwrap_err());
    assert_eq!(refused, Code::InvalidArgument);
    let (refused, text) = code(etcd.put("k", "v", Some(PutOptions::new().with_lease(1))).await.unwrap_err());
    assert_eq!((refused, text.contains("lease")), (Code::Unimplemented, true), "{text}");
    assert_eq!(code(etcd.delete("k", None).await.unwrap_err()).0, Code::Unimplemented);
    assert_eq!(code(etcd.lease_grant(10, None).await.unwrap_err()).0, Code::Unimplemented);
    assert_eq!(code(etcd.status().await.unwrap_err()).0, Code::Unimplemented);
    assert!(etcd.get("k", None).await.expect("the connection lives").kvs().is_empty());
    server.shutdown().await;
}

#[tokio::test]
async fn shared_timestamps_are_durable_never_go_back_and_are_not_from_the_future() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut pd = Pd::of(&server).await;
    pd.bootstrap().await;
    let first = pd.min_ts().await;
    assert!(pd.min_ts().await > first);

    assert_eq!(pd.safe_point().await, 0);
    assert_eq!(pd.raise_safe_point(first).await.new_safe_point, first);
    assert_eq!(pd.raise_safe_point(first - 1).await.new_safe_point, first, "it never goes back");
    assert!(pd.raise_safe_point(u64::MAX).await.header.unwrap().error.unwrap().message.contains("future"));
    let mut etcd = etcd(&server).await;
    let kept = etcd.get(SAFE_POINT, None).await.expect("an answer");
    assert_eq!(kept.kvs()[0].value(), first.to_string().as_bytes(), "where other clients look for it");

    assert_eq!(pd.external().await, 0);
    assert_eq!(pd.set_external(first).await, None);
    assert!(pd.set_external(first - 1).await.unwrap().message.contains("never goes back"));
    assert!(pd.set_external(u64::MAX).await.unwrap().message.contains("future"));
    server.shutdown().await;
    let server = start(dir.path()).await;
    let mut pd = Pd::of(&server).await;
    assert_eq!((pd.external().await, pd.safe_point().await), (first, first));
    server.shutdown().await;
}

/// Calls a method that this build has no code for.
async fn call_unknown(channel: Channel, path: &'static str) -> Code {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("a channel");
    let codec = tonic_prost::ProstCodec::<pdpb::GetMembersRequest, pdpb::GetMembersResponse>::default();
    let request = Request::new(pdpb::GetMembersRequest::default());
    let answer = grpc.unary(request, PathAndQuery::from_static(path), codec).await;
    answer.map(|_| ()).expect_err("nothing serves it").code()
}

#[tokio::test]
async fn polled_answers_are_there_and_what_is_not_served_is_unimplemented() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut pd = Pd::of(&server).await;
    let info = pd.client.get_cluster_info(pdpb::GetClusterInfoRequest::default()).await.unwrap().into_inner();
    assert_eq!(info.service_modes, [pdpb::ServiceMode::PdSvcMode as i32]);
    let request = pdpb::IsSnapshotRecoveringRequest { header: pd.header() };
    assert!(!pd.client.is_snapshot_recovering(request).await.unwrap().into_inner().marked);
    let wrong = Some(pdpb::RequestHeader { cluster_id: 1, ..Default::default() });
    let refused = pd.client.get_min_ts(pdpb::GetMinTsRequest { header: wrong }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);

    let channel = Channel::from_shared(server.client_url()).unwrap().connect().await.unwrap();
    for path in [
        "/pdpb.PD/StoreGlobalConfig",
        "/pdpb.PD/GetDCLocationInfo",
        "/keyspacepb.Keyspace/WatchKeyspaces",
        "/etcdserverpb.Lease/LeaseGrant",
        "/etcdserverpb.Watch/Watch",
        "/resource_manager.ResourceManager/ListResourceGroups",
        "/meta_storagepb.MetaStorage/Get",
    ] {
        assert_eq!(call_unknown(channel.clone(), path).await, Code::Unimplemented, "{path}");
    }
    server.shutdown().await;
}
