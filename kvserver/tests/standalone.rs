//! A standalone server over a real connection: every raw command in a batched stream, what is never dropped,
//! the scheduler service, the status pages, and what a restart keeps.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvproto::kvrpcpb as pb;
use kvproto::pdpb;
use kvproto::pdpb::pd_client::PdClient;
use kvproto::tikvpb::batch_commands_request::{Request, request::Cmd};
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use kvproto::tikvpb::tikv_client::TikvClient;
use kvproto::tikvpb::{BatchCommandsEmptyRequest, BatchCommandsRequest};
use kvserver::{Config, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

async fn start(dir: &std::path::Path) -> Server {
    let mut config = Config::default();
    config.server.addr = "127.0.0.1:0".into();
    config.server.status_addr = "127.0.0.1:0".into();
    config.storage.data_dir = dir.into();
    config.resolve(256 << 20, 2);
    Server::start_standalone(config, "127.0.0.1:0").await.unwrap()
}

async fn connect(addr: std::net::SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

fn context() -> Option<pb::Context> {
    Some(pb::Context {
        region_id: 4,
        region_epoch: Some(kvproto::metapb::RegionEpoch { conf_ver: 1, version: 1 }),
        api_version: pb::ApiVersion::V2 as i32,
        ..Default::default()
    })
}

fn key(name: &str) -> Bytes {
    [b"r\0\0\0", name.as_bytes()].concat().into()
}

/// Sends all commands in one frame and collects the answers by position.
async fn batch(client: &mut TikvClient<Channel>, commands: Vec<Cmd>) -> Vec<Option<Answer>> {
    let n = commands.len();
    let requests = commands.into_iter().map(|cmd| Request { cmd: Some(cmd) }).collect();
    send(client, requests, n).await
}

async fn send(client: &mut TikvClient<Channel>, requests: Vec<Request>, n: usize) -> Vec<Option<Answer>> {
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    let request_ids = (0..n as u64).collect();
    tx.send(BatchCommandsRequest { requests, request_ids, ..Default::default() }).await.unwrap();
    let mut answers = client.batch_commands(ReceiverStream::new(rx)).await.unwrap().into_inner();
    let mut by_id = BTreeMap::new();
    while by_id.len() < n {
        let frame =
            tokio::time::timeout(DEADLINE, answers.message()).await.expect("an answer for every command");
        let frame = frame.unwrap().expect("the stream stays open");
        assert_eq!(frame.transport_layer_load, 0);
        for (id, answer) in frame.request_ids.into_iter().zip(frame.responses) {
            assert!(by_id.insert(id, answer.cmd).is_none(), "{id} was answered twice");
        }
    }
    drop(tx);
    assert!(answers.message().await.unwrap().is_none(), "the stream ends after the last answer");
    by_id.into_values().collect()
}

fn put(name: &str, value: &str) -> Cmd {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Cmd::RawPut(pb::RawPutRequest { context: context(), key: key(name), value, ..Default::default() })
}

fn get(name: &str) -> Cmd {
    Cmd::RawGet(pb::RawGetRequest { context: context(), key: key(name), ..Default::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_frame_of_many_commands_is_answered_completely() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut client = TikvClient::new(connect(server.addr()).await);
    let puts = (0..2000).map(|i| put(&format!("k{i:04}"), &format!("v{i}"))).collect();
    for answer in batch(&mut client, puts).await {
        assert!(matches!(answer, Some(Answer::RawPut(r)) if r.error.is_empty() && r.region_error.is_none()));
    }
    let gets = (0..2001).map(|i| get(&format!("k{i:04}"))).collect();
    for (i, answer) in batch(&mut client, gets).await.into_iter().enumerate() {
        let Some(Answer::RawGet(reply)) = answer else { panic!("{i}") };
        assert_eq!(
            (reply.value, reply.not_found),
            match i {
                2000 => (Bytes::new(), true),
                _ => (Bytes::from(format!("v{i}")), false),
            }
        );
    }
    let scan = pb::RawScanRequest {
        context: context(),
        start_key: key(""),
        end_key: key("k0003"),
        limit: 10,
        ..Default::default()
    };
    let ranges = vec![pb::KeyRange { start_key: key("k1999"), end_key: Bytes::new() }];
    let batch_scan =
        pb::RawBatchScanRequest { context: context(), ranges, each_limit: 9, ..Default::default() };
    let keys = vec![key("k0001"), key("nothing"), key("k0002")];
    let batch_get = pb::RawBatchGetRequest { context: context(), keys, ..Default::default() };
    let delete =
        pb::RawDeleteRequest { context: context(), key: key("k0000"), for_cas: true, ..Default::default() };
    let commands = vec![
        Cmd::RawScan(scan),
        Cmd::RawBatchScan(batch_scan),
        Cmd::RawBatchGet(batch_get),
        Cmd::RawDelete(delete),
    ];
    let answers = batch(&mut client, commands).await;
    let values = |pairs: &[pb::KvPair]| pairs.iter().map(|p| p.value.clone()).collect::<Vec<_>>();
    assert!(matches!(&answers[1], Some(Answer::RawBatchScan(r)) if values(&r.kvs) == ["v1999"]));
    assert!(matches!(&answers[2], Some(Answer::RawBatchGet(r)) if values(&r.pairs) == ["v1", "v2"]));
    assert!(matches!(&answers[3], Some(Answer::RawDelete(r)) if r.error.is_empty()));
    let Some(Answer::RawScan(r)) = &answers[0] else { panic!() };
    let seen = values(&r.kvs);
    assert!(seen == ["v0", "v1", "v2"] || seen == ["v1", "v2"], "the delete ran beside the scan: {seen:?}");
    server.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_serves_is_answered_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut client = TikvClient::new(connect(server.addr()).await);
    let empty = Cmd::Empty(BatchCommandsEmptyRequest { test_id: 7, delay_time: 1 });
    let flush = Cmd::Flush(pb::FlushRequest { context: context(), ..Default::default() });
    let v1 = Cmd::RawGet(pb::RawGetRequest {
        context: context().map(|c| pb::Context { api_version: pb::ApiVersion::V1 as i32, ..c }),
        key: key("k"),
        ..Default::default()
    });
    let elsewhere = Cmd::RawPut(pb::RawPutRequest {
        context: context().map(|c| pb::Context { region_id: 99, ..c }),
        key: key("k"),
        ..Default::default()
    });
    let commands = [empty, flush, v1, elsewhere];
    let mut requests: Vec<Request> = commands.into_iter().map(|cmd| Request { cmd: Some(cmd) }).collect();
    requests.push(Request { cmd: None });
    let answers = send(&mut client, requests, 5).await;
    assert!(matches!(&answers[0], Some(Answer::Empty(r)) if r.test_id == 7));
    assert!(matches!(&answers[1], Some(Answer::Flush(r)) if r.region_error.is_some()));
    assert!(matches!(&answers[2], Some(Answer::RawGet(r)) if r.error.contains("keyspace DEFAULT")));
    assert!(matches!(&answers[3], Some(Answer::RawPut(r))
        if r.region_error.as_ref().is_some_and(|e| e.region_not_found.is_some())));
    assert_eq!(answers[4], None);
    // A unary scan fails as a whole, and a key outside of the region is sent away.
    let scan =
        pb::RawScanRequest { context: context(), start_key: "v1".into(), limit: 1, ..Default::default() };
    let refused = client.raw_scan(scan).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("is in no raw keyspace"), "{}", refused.message());
    let ranges = vec![pb::KeyRange { start_key: "v1".into(), end_key: Bytes::new() }];
    let scan = pb::RawBatchScanRequest { context: context(), ranges, each_limit: 1, ..Default::default() };
    assert_eq!(client.raw_batch_scan(scan).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let context = context().map(|c| pb::Context { region_id: 2, ..c });
    let get = pb::RawGetRequest { context, key: key("k"), ..Default::default() };
    let error = client.raw_get(get).await.unwrap().into_inner().region_error.unwrap();
    assert!(error.key_not_in_region.is_some(), "{error:?}");
    server.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_and_timestamps_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let cluster = server.cluster_id();
    let mut client = TikvClient::new(connect(server.addr()).await);
    batch(&mut client, vec![put("k", "v")]).await;
    let mut pd = PdClient::new(connect(server.pd_addr().unwrap()).await);
    let first = timestamp(&mut pd).await;
    server.shutdown(false).await.unwrap();
    let server = start(dir.path()).await;
    assert_eq!(server.cluster_id(), cluster);
    let mut client = TikvClient::new(connect(server.addr()).await);
    let request = pb::RawGetRequest { context: context(), key: key("k"), ..Default::default() };
    assert_eq!(client.raw_get(request).await.unwrap().into_inner().value, "v");
    let mut pd = PdClient::new(connect(server.pd_addr().unwrap()).await);
    assert!(timestamp(&mut pd).await > first);
    let wrong = pdpb::GetAllStoresRequest {
        header: Some(pdpb::RequestHeader { cluster_id: cluster + 1, ..Default::default() }),
        ..Default::default()
    };
    let refused = pd.get_all_stores(wrong).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    server.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_are_found_by_key_id_and_range() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut pd = PdClient::new(connect(server.pd_addr().unwrap()).await);
    let bound = |wire: &[u8]| Bytes::from(kvproto::key::encode(wire));
    let id = |reply: pdpb::GetRegionResponse| reply.region.map(|region| region.id);
    let at = |key: &Bytes| pdpb::GetRegionRequest { region_key: key.clone(), ..Default::default() };
    let cases: [(&[u8], u64); 5] =
        [(b"a", 2), (b"r\0\0\0", 4), (b"r\0\0\x01", 6), (b"x\0\0\0k", 8), (b"z", 10)];
    for (wire, wanted) in cases {
        let found = pd.get_region(at(&bound(wire))).await.unwrap().into_inner();
        let region = found.region.clone().unwrap();
        assert_eq!((region.id, found.leader), (wanted, region.peers.first().copied()));
        let before = pd.get_prev_region(at(&bound(wire))).await.unwrap().into_inner();
        assert_eq!(id(before), Some(wanted - 2).filter(|id| *id > 0));
        let by_id = pdpb::GetRegionByIdRequest { region_id: wanted, ..Default::default() };
        let found = pd.get_region_by_id(by_id).await.unwrap().into_inner();
        assert_eq!(found.region, Some(region));
    }
    assert_eq!(id(pd.get_region(at(&Bytes::new())).await.unwrap().into_inner()), Some(2));
    let by_id = pdpb::GetRegionByIdRequest { region_id: 3, ..Default::default() };
    assert_eq!(id(pd.get_region_by_id(by_id).await.unwrap().into_inner()), None);

    let ids = |regions: Vec<pdpb::Region>| {
        regions.iter().map(|r| r.region.as_ref().unwrap().id).collect::<Vec<_>>()
    };
    let scans = [
        (Bytes::new(), Bytes::new(), 0, vec![2, 4, 6, 8, 10]),
        (bound(b"r\0\0\0k"), bound(b"x\0\0\0"), 0, vec![4, 6]),
        (bound(b"r\0\0\0"), Bytes::new(), 2, vec![4, 6]),
        (bound(b"b"), bound(b"a"), 0, vec![]),
    ];
    for (start_key, end_key, limit, wanted) in scans {
        let request = pdpb::ScanRegionsRequest { start_key, end_key, limit, ..Default::default() };
        let found = pd.scan_regions(request).await.unwrap().into_inner();
        assert_eq!((ids(found.regions), found.leaders.len()), (wanted.clone(), wanted.len()));
    }
    let range = |start: &[u8], end: &[u8]| pdpb::KeyRange { start_key: bound(start), end_key: bound(end) };
    let ranges = vec![range(b"r\0\0\0a", b"r\0\0\0b"), range(b"r\0\0\0b", b"x\0\0\0")];
    let request = pdpb::BatchScanRegionsRequest { ranges, ..Default::default() };
    assert_eq!(ids(pd.batch_scan_regions(request).await.unwrap().into_inner().regions), [4, 6]);
    server.shutdown(false).await.unwrap();
}

async fn timestamp(pd: &mut PdClient<Channel>) -> (i64, i64) {
    let request = tokio_stream::once(pdpb::TsoRequest { count: 3, ..Default::default() });
    let reply = pd.tso(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(reply.count, 3);
    reply.timestamp.map(|t| (t.physical, t.logical)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_pages_tell_what_the_server_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut client = TikvClient::new(connect(server.addr()).await);
    batch(&mut client, vec![put("k", "v"), get("k")]).await;
    let page = async |method: &str, path: &str| {
        let mut stream = TcpStream::connect(server.status_addr().unwrap()).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    };
    let has = |page: String, wanted: &str| assert!(page.contains(wanted), "{wanted} is not in\n{page}");
    has(page("GET", "/ready").await, "HTTP/1.1 200");
    assert!(page("HEAD", "/ready").await.ends_with("\r\n\r\n"), "HEAD has no body");
    has(page("GET", "/config").await, "\"api-version\":2");
    has(page("GET", "/status").await, "\"role\":\"standalone\"");
    has(page("GET", "/region/4").await, "\"serves\":true");
    has(page("GET", "/region/3").await, "HTTP/1.1 404");
    has(page("GET", "/metrics").await, "kvasir_request_duration_seconds_count{command=\"raw_put\"} 1");
    server.shutdown(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut config = Config::default();
    config.server.addr = "127.0.0.1:0".into();
    config.server.status_addr = String::new();
    config.storage.data_dir = dir.path().into();
    config.resolve(256 << 20, 2);
    let error = Server::start_standalone(config, "127.0.0.1:0").await.err().unwrap().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    server.shutdown(false).await.unwrap();
}
