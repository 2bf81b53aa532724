//! Requests to a store: meant for something else, with impossible keys, sizes, limits and times to live.

use bytes::Bytes;
use integration::cluster::regions::raw_key;
use kvproto::errorpb;
use kvproto::kvrpcpb as pb;
use kvproto::metapb;
use kvproto::tikvpb::batch_commands_request::{self, request::Cmd};
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use kvproto::tikvpb::{BatchCommandsEmptyRequest, BatchCommandsRequest};
use tonic::client::GrpcService;
use tonic::codegen::http;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::Victim;

const MIB: usize = 1 << 20;

impl Victim {
    /// What a get and a put with this context are refused with; the same for both.
    async fn refused(&mut self, context: pb::Context) -> errorpb::Error {
        let key = raw_key("k");
        let get =
            pb::RawGetRequest { context: Some(context.clone()), key: key.clone(), ..Default::default() };
        let got = self.store.raw_get(get).await.expect("an answer").into_inner();
        let put = pb::RawPutRequest { context: Some(context), key, value: "x".into(), ..Default::default() };
        let put = self.store.raw_put(put).await.expect("an answer").into_inner();
        assert_eq!((got.error, put.error), Default::default());
        assert_eq!(got.region_error, put.region_error);
        let error = put.region_error.expect("it is refused");
        assert!(!error.message.is_empty());
        error
    }

    /// The answer to a put: what the region says, and what the application is told.
    async fn put_bytes(&mut self, key: Bytes, value: Bytes) -> (Option<errorpb::Error>, String) {
        let context = Some(self.at().await.context());
        let request = pb::RawPutRequest { context, key, value, ..Default::default() };
        let answer = self.store.raw_put(request).await.expect("an answer").into_inner();
        (answer.region_error, answer.error)
    }

    async fn scan(&mut self, change: impl FnOnce(&mut pb::RawScanRequest)) -> Result<usize, Code> {
        let context = Some(self.at().await.context());
        let (start_key, end_key) = (raw_key("scan/"), raw_key("scan0"));
        let mut request = pb::RawScanRequest { context, start_key, end_key, ..Default::default() };
        change(&mut request);
        let answer = self.store.raw_scan(request).await.map_err(|status| status.code())?.into_inner();
        assert_eq!(answer.region_error, None);
        Ok(answer.kvs.len())
    }
}

#[tokio::test]
async fn a_request_for_something_else_is_told_what_is_here() {
    let mut victim = Victim::start().await;
    let at = victim.at().await;
    let context = || at.context();
    let peer = at.leader;

    let of_store = |store_id| pb::Context { peer: Some(metapb::Peer { store_id, ..peer }), ..context() };
    let told = victim.refused(of_store(99)).await.store_not_match.expect("a store");
    assert_eq!((told.request_store_id, told.actual_store_id), (99, peer.store_id));

    let of_region = |region_id| pb::Context { region_id, ..context() };
    for wrong in [0, 987_654, u64::MAX] {
        let told = victim.refused(of_region(wrong)).await.region_not_found.expect("a region");
        assert_eq!(told.region_id, wrong);
    }
    let of_peer = pb::Context { peer: Some(metapb::Peer { id: 77, ..peer }), ..context() };
    let told = victim.refused(of_peer).await.mismatch_peer_id.expect("a peer");
    assert_eq!((told.request_peer_id, told.store_peer_id), (77, peer.id));

    assert!(victim.refused(pb::Context { term: 1, ..context() }).await.stale_command.is_some());
    let epoch = at.region.region_epoch.expect("an epoch");
    for version in [0, epoch.version + 1, u64::MAX] {
        let region_epoch = Some(metapb::RegionEpoch { version, ..epoch });
        let told = victim.refused(pb::Context { region_epoch, ..context() }).await;
        let current = told.epoch_not_match.expect("an epoch").current_regions;
        assert!(current.contains(&at.region), "{current:?}");
    }
    let nothing = victim.refused(pb::Context { api_version: 2, ..Default::default() }).await;
    assert!(nothing.region_not_found.is_some());
    victim.assert_well().await;
}

#[tokio::test]
async fn keys_outside_the_region_and_of_no_keyspace_are_refused() {
    let mut victim = Victim::start().await;
    let elsewhere = Bytes::from_static(b"r\0\0\x05key");
    let (region, text) = victim.put_bytes(elsewhere.clone(), "v".into()).await;
    let told = region.expect("refused").key_not_in_region.expect("where the region is");
    assert_eq!((told.key, &told.start_key[..4], text.as_str()), (elsewhere, &b"r\0\0\0"[..], ""));
    for (key, why) in [
        (Bytes::new(), "keyspace"),
        (Bytes::from("plain"), "keyspace"),
        (Bytes::from_static(b"r\0"), "keyspace"),
        (Bytes::from_static(b"x\0\0\0txn"), "keyspace"),
        (raw_key(&"k".repeat((8 << 10) + 1)), "limit"),
        (raw_key(&"k".repeat(MIB)), "limit"),
    ] {
        let (region, text) = victim.put_bytes(key, "v".into()).await;
        assert!(region.is_none() && text.contains(why), "{text}");
    }
    let at_limit = raw_key(&"k".repeat(8 << 10));
    assert_eq!(victim.put_bytes(at_limit, "v".into()).await, (None, String::new()));
    assert_eq!(
        victim.put_bytes(raw_key(""), "v".into()).await,
        (None, String::new()),
        "the prefix alone is a key"
    );
    assert_eq!(victim.put_bytes(raw_key("empty"), Bytes::new()).await, (None, String::new()));
    assert_eq!(victim.get("empty").await, Some(Bytes::new()), "an empty value is a value");
    victim.assert_well().await;
}

#[tokio::test]
async fn values_that_are_too_large_are_refused_up_to_a_hundred_mebibytes() {
    let mut victim = Victim::start().await;
    for mib in [9, 100] {
        let (region, text) = victim.put_bytes(raw_key("large"), vec![b'v'; mib * MIB].into()).await;
        let told = region.expect("refused").raft_entry_too_large.expect("how large it may be");
        assert!(told.entry_size as usize > mib * MIB && text.is_empty());
    }
    let context = Some(victim.at().await.context());
    let value = Bytes::from(vec![b'v'; MIB]);
    let pairs = (0..100).map(|n| pb::KvPair {
        key: raw_key(&n.to_string()),
        value: value.clone(),
        ..Default::default()
    });
    let batch =
        pb::RawBatchPutRequest { context: context.clone(), pairs: pairs.collect(), ..Default::default() };
    let answer = victim.store.raw_batch_put(batch).await.expect("an answer").into_inner();
    assert!(answer.region_error.expect("refused").raft_entry_too_large.is_some());

    // The same inside a batched stream: its neighbours are answered.
    let (key, value) = (raw_key("large"), Bytes::from(vec![b'v'; 100 * MIB]));
    let large = pb::RawPutRequest { context: context.clone(), key, value, ..Default::default() };
    let small = pb::RawGetRequest { context, key: raw_key("stays"), ..Default::default() };
    let answers = victim.stream(vec![Cmd::RawPut(large), Cmd::RawGet(small)]).await;
    let [(1, Some(Answer::RawPut(put))), (2, Some(Answer::RawGet(got)))] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert!(put.region_error.as_ref().expect("refused").raft_entry_too_large.is_some());
    assert_eq!(got.value, "v");
    assert_eq!(victim.get("large").await, None);
    victim.assert_well().await;
}

impl Victim {
    /// The answers to one frame, by id; ids count from 1.
    pub(super) async fn stream(&mut self, commands: Vec<Cmd>) -> Vec<(u64, Option<Answer>)> {
        let count = commands.len();
        let frame = BatchCommandsRequest {
            request_ids: (1..=count as u64).collect(),
            requests: commands
                .into_iter()
                .map(|cmd| batch_commands_request::Request { cmd: Some(cmd) })
                .collect(),
            ..Default::default()
        };
        let frames = tokio_stream::iter([frame]);
        let mut stream = self.store.batch_commands(frames).await.expect("a stream").into_inner();
        let mut answers = Vec::new();
        while answers.len() < count {
            let frame = stream.message().await.expect("no error").expect("every command is answered");
            answers.extend(frame.request_ids.into_iter().zip(frame.responses.into_iter().map(|r| r.cmd)));
        }
        answers.sort_by_key(|(id, _)| *id);
        answers
    }
}

#[tokio::test]
async fn limits_of_zero_and_of_the_maximum_are_taken_at_their_word() {
    let mut victim = Victim::start().await;
    for n in 0..10 {
        victim.put(&format!("scan/{n}"), "v").await;
    }
    assert_eq!(victim.scan(|r| r.limit = 0).await, Ok(0));
    assert_eq!(victim.scan(|r| r.limit = u32::MAX).await, Ok(10));
    let reversed = |r: &mut pb::RawScanRequest| {
        (r.start_key, r.end_key) = (r.end_key.clone(), r.start_key.clone());
    };
    assert_eq!(
        victim
            .scan(|r| {
                r.limit = 5;
                reversed(r)
            })
            .await,
        Ok(0),
        "a range with its ends swapped is empty"
    );
    assert_eq!(
        victim
            .scan(|r| {
                (r.limit, r.reverse) = (u32::MAX, true);
                reversed(r)
            })
            .await,
        Ok(10)
    );
    assert_eq!(
        victim
            .scan(|r| {
                r.limit = 5;
                r.start_key = Bytes::new()
            })
            .await,
        Err(Code::InvalidArgument)
    );
    assert_eq!(
        victim
            .scan(|r| {
                r.limit = 5;
                r.cf = "strange".into()
            })
            .await,
        Err(Code::InvalidArgument)
    );

    let context = Some(victim.at().await.context());
    let range = pb::KeyRange { start_key: raw_key("scan/"), end_key: raw_key("scan0") };
    for (each_limit, ranges, want) in [(0, 1, 0), (u32::MAX, 2, 20), (u32::MAX, 0, 0), (1, 20_000, 20_000)] {
        let ranges = vec![range.clone(); ranges];
        let request =
            pb::RawBatchScanRequest { context: context.clone(), ranges, each_limit, ..Default::default() };
        let answer = victim.store.raw_batch_scan(request).await.expect("an answer").into_inner();
        assert_eq!(answer.kvs.len(), want);
    }
    let none = pb::RawBatchGetRequest { context: context.clone(), ..Default::default() };
    assert!(victim.store.raw_batch_get(none).await.expect("an answer").into_inner().pairs.is_empty());
    let many = pb::RawBatchGetRequest {
        context: context.clone(),
        keys: vec![raw_key("stays"); 50_000],
        ..Default::default()
    };
    assert_eq!(victim.store.raw_batch_get(many).await.expect("an answer").into_inner().pairs.len(), 50_000);

    victim.assert_well().await;
}

#[tokio::test]
async fn times_to_live_of_the_maximum_and_in_the_wrong_number() {
    let mut victim = Victim::start().await;
    let context = Some(victim.at().await.context());
    let forever = pb::RawPutRequest {
        context: context.clone(),
        key: raw_key("t"),
        value: "v".into(),
        ttl: u64::MAX,
        ..Default::default()
    };
    let put = victim.store.raw_put(forever).await.expect("an answer").into_inner();
    assert_eq!((put.region_error, put.error.as_str()), (None, ""));
    assert_eq!(victim.get("t").await, Some("v".into()));
    let uneven = pb::RawBatchPutRequest {
        context,
        pairs: vec![pb::KvPair { key: raw_key("u"), value: "v".into(), ..Default::default() }; 3],
        ttls: vec![1, 2],
        ..Default::default()
    };
    let answer = victim.store.raw_batch_put(uneven).await.expect("an answer").into_inner();
    assert!(answer.error.contains("times to live"), "{}", answer.error);
    victim.assert_well().await;
}

/// Only the length is there: a gigabyte is to follow. Waiting for it, or making room for it, would be a mistake.
#[tokio::test]
async fn a_length_that_no_request_has_is_refused_before_its_bytes_come() {
    let mut victim = Victim::start().await;
    let address = format!("http://{}", victim.cluster.stores[0].address);
    let mut channel =
        Channel::from_shared(address.clone()).expect("an address").connect().await.expect("a connection");
    std::future::poll_fn(|cx| GrpcService::<tonic::body::Body>::poll_ready(&mut channel, cx))
        .await
        .expect("a channel");
    let request = http::Request::post(format!("{address}/tikvpb.Tikv/RawGet"))
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::new("\0@\0\0\0".to_string()))
        .expect("a request");
    let answer = GrpcService::<tonic::body::Body>::call(&mut channel, request).await.expect("an answer");
    let status = Status::from_header_map(answer.headers()).expect("a status");
    assert_eq!(status.code(), Code::OutOfRange, "{}", status.message());
    victim.assert_well().await;
}

#[tokio::test]
async fn malformed_frames_end_their_stream_and_nothing_else() {
    let mut victim = Victim::start().await;
    let empty = |test_id| Cmd::Empty(BatchCommandsEmptyRequest { test_id, delay_time: 0 });
    let request = |cmd| batch_commands_request::Request { cmd };
    let uneven = BatchCommandsRequest {
        requests: vec![request(Some(empty(1)))],
        request_ids: vec![1, 2, 3],
        ..Default::default()
    };
    let mut stream =
        victim.store.batch_commands(tokio_stream::iter([uneven])).await.expect("a stream").into_inner();
    assert_eq!(stream.message().await.expect_err("refused").code(), Code::InvalidArgument);

    // Commands without content, the same id twice, ids of the maximum, an empty frame: all answered.
    let frames = [
        BatchCommandsRequest::default(),
        BatchCommandsRequest {
            requests: vec![request(None), request(Some(empty(5))), request(Some(empty(6)))],
            request_ids: vec![u64::MAX, 0, 0],
            ..Default::default()
        },
    ];
    let mut stream =
        victim.store.batch_commands(tokio_stream::iter(frames)).await.expect("a stream").into_inner();
    let mut answered = Vec::new();
    while answered.len() < 3 {
        answered.extend(stream.message().await.expect("no error").expect("an answer").request_ids);
    }
    answered.sort_unstable();
    assert_eq!(answered, [0, 0, u64::MAX]);
    victim.assert_well().await;
}
