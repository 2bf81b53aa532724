//! Transactional requests made by hand: what a client sends that dies between two steps. Tests leave locks with them
//! that no client would leave on purpose.
//!
//! Requests travel as one frame of the batched stream to the leader of a key, and again while the region moves. A
//! frame reaches one region, so all its keys must lie there.

use bytes::Bytes;
use kvproto::errorpb;
use kvproto::key::{KeyCodec, KeyspaceId, Mode};
use kvproto::kvrpcpb::{self as pb, ApiVersion, Context, Mutation, Op};
use kvproto::pdpb::{TsoRequest, TsoResponse};
use kvproto::tikvpb::batch_commands_request::{self, request::Cmd};
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use kvproto::tikvpb::{BatchCommandsRequest, BatchCommandsResponse};
use tonic::Status;

use super::regions::Regions;

/// How long a lock lives that is to look like one of a running transaction.
const LIVE_MS: u64 = 60_000;

/// Sends requests to a cluster.
#[derive(Clone)]
pub struct ByHand {
    regions: Regions,
    codec: KeyCodec,
}

/// A transaction that a test writes step by step. Keys are user keys.
#[derive(Clone, Debug)]
pub struct Draft {
    pub start_ts: u64,
    /// Need not be among the keys that are locked.
    pub primary: String,
    /// In milliseconds.
    pub ttl_ms: u64,
    pub async_commit: bool,
    /// The keys of an asynchronous commit besides the primary.
    pub secondaries: Vec<String>,
}

impl Draft {
    /// The same, committed asynchronously with these keys besides the primary.
    pub fn with_async_commit(self, secondaries: &[&str]) -> Draft {
        let secondaries = secondaries.iter().map(|key| key.to_string()).collect();
        Draft { async_commit: true, secondaries, ..self }
    }

    /// The same, of a client that is known to be dead a millisecond after it began.
    pub fn expired(self) -> Draft {
        Draft { ttl_ms: 1, ..self }
    }
}

impl ByHand {
    /// Connects to the cluster whose scheduler is at `endpoint`. Keys are those of keyspace DEFAULT; in V1 they travel as
    /// they are.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn connect(endpoint: &str, api: ApiVersion) -> Result<ByHand, Status> {
        let codec = match api {
            ApiVersion::V2 => KeyCodec::V2 { mode: Mode::Txn, keyspace: KeyspaceId::DEFAULT },
            _ => KeyCodec::V1,
        };
        Ok(ByHand { regions: Regions::connect(endpoint).await?, codec })
    }

    /// The regions underneath.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The key as requests carry it.
    pub fn key(&self, user: &str) -> Bytes {
        self.codec.wire_key(Bytes::copy_from_slice(user.as_bytes()))
    }

    /// Keys as requests carry them.
    pub fn keys(&self, users: &[&str]) -> Vec<Bytes> {
        users.iter().map(|user| self.key(user)).collect()
    }

    /// A transaction that begins now.
    ///
    /// # Errors
    /// When the scheduler gives no timestamp.
    pub async fn begin(&self, primary: &str) -> Result<Draft, Status> {
        Ok(Draft {
            start_ts: self.timestamp().await?,
            primary: primary.to_string(),
            ttl_ms: LIVE_MS,
            async_commit: false,
            secondaries: Vec::new(),
        })
    }

    /// A new timestamp.
    ///
    /// # Errors
    /// When the scheduler gives none.
    pub async fn timestamp(&self) -> Result<u64, Status> {
        let request = TsoRequest { header: self.regions.header(), count: 1, ..Default::default() };
        // The stream stays open until it has answered.
        let requests = futures::StreamExt::chain(
            futures::stream::iter([request]),
            futures::stream::pending::<TsoRequest>(),
        );
        let mut answers = self.regions.pd().tso(requests).await?.into_inner();
        match answers.message().await? {
            Some(TsoResponse { timestamp: Some(ts), .. }) => {
                Ok(((ts.physical as u64) << kvproto::ts::LOGICAL_BITS) | ts.logical as u64)
            }
            _ => Err(Status::unavailable("the scheduler gave no timestamp")),
        }
    }

    /// Sends one command to the leader of a wire key.
    ///
    /// # Errors
    /// The server's, or that the region does not settle. Refusals of keys are in the answer.
    pub async fn ask(&self, key: &[u8], command: impl Fn(Context) -> Cmd) -> Result<Answer, Status> {
        let mut answers = self.ask_all(key, |context| vec![command(context)]).await?;
        answers.pop().ok_or_else(|| Status::internal("no answer"))
    }

    /// Sends commands in one frame to the leader of a wire key and returns their answers in the same order.
    ///
    /// # Errors
    /// The server's, or that the region does not settle. Refusals of keys are in the answers.
    pub async fn ask_all(
        &self,
        key: &[u8],
        commands: impl Fn(Context) -> Vec<Cmd>,
    ) -> Result<Vec<Answer>, Status> {
        self.regions
            .settle(|| async {
                let at = self.regions.of(key).await?;
                let context = Context { api_version: self.codec.api_version() as i32, ..at.context() };
                let answers = self.exchange(at.leader.store_id, commands(context)).await?;
                Ok(answers.iter().all(|answer| region_error(answer).is_none()).then_some(answers))
            })
            .await
    }

    async fn exchange(&self, store_id: u64, commands: Vec<Cmd>) -> Result<Vec<Answer>, Status> {
        let count = commands.len();
        let requests = commands.into_iter().map(|cmd| batch_commands_request::Request { cmd: Some(cmd) });
        let frame = BatchCommandsRequest {
            request_ids: (0..count as u64).collect(),
            requests: requests.collect(),
            ..Default::default()
        };
        let mut store = self.regions.store(store_id).await?;
        let mut stream = store.batch_commands(futures::stream::iter([frame])).await?.into_inner();
        let mut answers = vec![None; count];
        while answers.iter().any(Option::is_none) {
            let frame: BatchCommandsResponse =
                stream.message().await?.ok_or_else(|| Status::internal("the stream ended too early"))?;
            for (id, response) in frame.request_ids.into_iter().zip(frame.responses) {
                let slot = answers.get_mut(id as usize).ok_or_else(|| Status::internal("an id of nobody"))?;
                *slot = response.cmd;
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Locks these keys with values, as the first phase of a commit does. Returns why keys could not be locked.
    ///
    /// # Errors
    /// The server's.
    pub async fn prewrite(
        &self,
        draft: &Draft,
        pairs: &[(&str, &str)],
    ) -> Result<pb::PrewriteResponse, Status> {
        let first = pairs.first().map(|(key, _)| self.key(key)).unwrap_or_default();
        let command = |context| {
            Cmd::Prewrite(pb::PrewriteRequest { context: Some(context), ..self.locking(draft, pairs) })
        };
        match self.ask(&first, command).await? {
            Answer::Prewrite(answer) => Ok(answer),
            other => Err(Status::internal(format!("{other:?}"))),
        }
    }

    /// The request that locks these keys with values.
    pub fn locking(&self, draft: &Draft, pairs: &[(&str, &str)]) -> pb::PrewriteRequest {
        let put = |(key, value): &(&str, &str)| Mutation {
            op: Op::Put as i32,
            key: self.key(key),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ..Default::default()
        };
        let has_primary = pairs.iter().any(|(key, _)| *key == draft.primary);
        let secondaries = draft.secondaries.iter().filter(|_| has_primary).map(|key| self.key(key));
        pb::PrewriteRequest {
            mutations: pairs.iter().map(put).collect(),
            primary_lock: self.key(&draft.primary),
            start_version: draft.start_ts,
            lock_ttl: draft.ttl_ms,
            txn_size: pairs.len() as u64,
            use_async_commit: draft.async_commit,
            secondaries: secondaries.collect(),
            ..Default::default()
        }
    }

    /// Commits keys of a transaction.
    ///
    /// # Errors
    /// The server's; a refusal is in the answer.
    pub async fn commit(
        &self,
        start_version: u64,
        commit_version: u64,
        keys: &[&str],
    ) -> Result<pb::CommitResponse, Status> {
        let keys = self.keys(keys);
        let command = |context| {
            let (context, keys) = (Some(context), keys.clone());
            Cmd::Commit(pb::CommitRequest {
                context,
                start_version,
                keys,
                commit_version,
                ..Default::default()
            })
        };
        match self.ask(&keys.first().cloned().unwrap_or_default(), command).await? {
            Answer::Commit(answer) => Ok(answer),
            other => Err(Status::internal(format!("{other:?}"))),
        }
    }

    /// The request that takes a pessimistic lock of the primary without waiting.
    pub fn pessimistic(&self, draft: &Draft) -> pb::PessimisticLockRequest {
        let key = self.key(&draft.primary);
        pb::PessimisticLockRequest {
            mutations: vec![Mutation {
                op: Op::PessimisticLock as i32,
                key: key.clone(),
                ..Default::default()
            }],
            primary_lock: key,
            start_version: draft.start_ts,
            lock_ttl: draft.ttl_ms,
            for_update_ts: draft.start_ts,
            wait_timeout: -1,
            ..Default::default()
        }
    }
}

/// What an answer says about the region, if anything.
fn region_error(answer: &Answer) -> Option<&errorpb::Error> {
    match answer {
        Answer::Get(answer) => answer.region_error.as_ref(),
        Answer::Scan(answer) => answer.region_error.as_ref(),
        Answer::Prewrite(answer) => answer.region_error.as_ref(),
        Answer::Commit(answer) => answer.region_error.as_ref(),
        Answer::Cleanup(answer) => answer.region_error.as_ref(),
        Answer::BatchGet(answer) => answer.region_error.as_ref(),
        Answer::BatchRollback(answer) => answer.region_error.as_ref(),
        Answer::ScanLock(answer) => answer.region_error.as_ref(),
        Answer::ResolveLock(answer) => answer.region_error.as_ref(),
        Answer::DeleteRange(answer) => answer.region_error.as_ref(),
        Answer::PessimisticLock(answer) => answer.region_error.as_ref(),
        Answer::PessimisticRollback(answer) => answer.region_error.as_ref(),
        Answer::CheckTxnStatus(answer) => answer.region_error.as_ref(),
        Answer::TxnHeartBeat(answer) => answer.region_error.as_ref(),
        Answer::CheckSecondaryLocks(answer) => answer.region_error.as_ref(),
        _ => None,
    }
}
