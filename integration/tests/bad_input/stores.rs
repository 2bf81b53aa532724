//! What a store must not take from something that claims to be another store.

use bytes::Bytes;
use integration::cluster::regions::raw_key;
use kvproto::metapb;
use kvproto::raft_serverpb::{ExtraMessage, RaftMessage, SnapshotChunk};
use kvproto::tikvpb::BatchRaftMessage;
use prost::Message;
use tonic::{Code, Request};

use super::Victim;

/// The Raft part of a message, as far as these tests fill it in.
#[derive(Clone, PartialEq, prost::Message)]
struct Raft {
    #[prost(int32, tag = "1")]
    msg_type: i32,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(uint64, tag = "4")]
    term: u64,
    #[prost(uint64, tag = "5")]
    log_term: u64,
    #[prost(uint64, tag = "6")]
    index: u64,
    #[prost(uint64, tag = "8")]
    commit: u64,
    #[prost(message, optional, tag = "9")]
    snapshot: Option<RaftSnapshot>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RaftSnapshot {
    #[prost(bytes = "bytes", tag = "1")]
    data: Bytes,
}

const MSG_SNAPSHOT: i32 = 7;

const CLUSTER: &str = "kvasir-cluster-id";

impl Victim {
    fn cluster_id(&self) -> u64 {
        self.regions.header().expect("a header").cluster_id
    }

    async fn raft(&mut self, cluster_id: Option<u64>, msgs: Vec<RaftMessage>) -> Result<(), Code> {
        let batch = BatchRaftMessage { msgs, ..Default::default() };
        let mut request = Request::new(tokio_stream::iter([batch]));
        if let Some(id) = cluster_id {
            request.metadata_mut().insert(CLUSTER, id.into());
        }
        self.store.batch_raft(request).await.map(drop).map_err(|status| status.code())
    }

    async fn snapshot(&mut self, cluster_id: u64, chunks: Vec<SnapshotChunk>) -> Result<(), (Code, String)> {
        let mut request = Request::new(tokio_stream::iter(chunks));
        request.metadata_mut().insert(CLUSTER, cluster_id.into());
        let sent = self.store.snapshot(request).await.map(drop);
        sent.map_err(|status| (status.code(), status.message().to_string()))
    }

    /// A message from a made-up peer to the peer here, with this Raft part.
    async fn message(&self, raft: Raft) -> RaftMessage {
        let at = self.at().await;
        RaftMessage {
            region_id: at.region.id,
            from_peer: Some(metapb::Peer { id: 900, store_id: 901, ..Default::default() }),
            to_peer: Some(at.leader),
            region_epoch: at.region.region_epoch,
            message: raft.encode_to_vec().into(),
            ..Default::default()
        }
    }
}

#[tokio::test]
async fn messages_of_another_cluster_are_refused() {
    let mut victim = Victim::start().await;
    let id = victim.cluster_id();
    assert_eq!(victim.raft(None, vec![]).await, Err(Code::FailedPrecondition));
    assert_eq!(victim.raft(Some(id + 1), vec![]).await, Err(Code::FailedPrecondition));
    assert_eq!(victim.raft(Some(id), vec![]).await, Ok(()));
    let (code, text) = victim.snapshot(id + 1, vec![]).await.expect_err("refused");
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains(&id.to_string()) && text.contains(&(id + 1).to_string()), "{text}");
    victim.assert_well().await;
}

#[tokio::test]
async fn no_message_of_a_stranger_moves_a_region() {
    let mut victim = Victim::start().await;
    let at = victim.at().await;
    let mut messages = Vec::new();
    // Every kind there is and some that there are not, from the future and without any sense.
    for msg_type in -1..=25 {
        for term in [0, 1, u64::MAX] {
            let raft = Raft {
                msg_type,
                term,
                to: at.leader.id,
                from: 900,
                index: u64::MAX,
                log_term: u64::MAX,
                commit: u64::MAX,
                ..Default::default()
            };
            messages.push(victim.message(raft).await);
        }
    }
    let plain = victim.message(Raft::default()).await;
    messages.extend([
        RaftMessage::default(),
        RaftMessage { message: Bytes::from_static(b"\xff\xff\xff\xff\xff\xff"), ..plain.clone() },
        RaftMessage { to_peer: Some(metapb::Peer { store_id: 77, ..at.leader }), ..plain.clone() },
        RaftMessage { to_peer: Some(metapb::Peer { id: 78, ..at.leader }), ..plain.clone() },
        RaftMessage { region_id: u64::MAX, ..plain.clone() },
        RaftMessage { region_id: 0, ..plain.clone() },
        RaftMessage { region_epoch: None, ..plain.clone() },
        RaftMessage { extra_msg: Some(ExtraMessage { r#type: 99, ..Default::default() }), ..plain.clone() },
        RaftMessage { is_tombstone: true, ..plain.clone() },
        RaftMessage { start_key: "z".into(), end_key: "a".into(), ..plain },
    ]);
    let id = victim.cluster_id();
    victim.raft(Some(id), messages).await.expect("the stream is taken");
    victim.assert_well().await;
    let now = victim.at().await;
    assert_eq!((now.region, now.leader), (at.region, at.leader), "nothing has changed");
}

#[tokio::test]
async fn a_snapshot_that_makes_no_sense_is_refused() {
    let mut victim = Victim::start().await;
    let id = victim.cluster_id();
    let announced = |data: &'static [u8]| Raft {
        msg_type: MSG_SNAPSHOT,
        term: 9,
        from: 900,
        snapshot: Some(RaftSnapshot { data: data.into() }),
        ..Default::default()
    };
    let chunk = |message, data: &'static [u8]| SnapshotChunk { message, data: data.into() };
    let broken = victim.message(announced(b"no manifest")).await;
    let empty = victim.message(announced(b"")).await;
    for chunks in [
        vec![],
        vec![chunk(None, b"data first")],
        vec![chunk(Some(RaftMessage::default()), b"")],
        vec![chunk(Some(broken), b"data")],
        vec![chunk(Some(empty), b""), chunk(None, b"data")],
    ] {
        let (_, text) = victim.snapshot(id, chunks).await.expect_err("refused");
        assert!(!text.is_empty());
    }
    assert_eq!(victim.get("stays").await, Some("v".into()));
    assert!(victim.regions.of(&raw_key("k")).await.is_ok());
    victim.assert_well().await;
}
