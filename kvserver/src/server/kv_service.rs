//! The gRPC service of a store: every command as a call of its own, and the way into the batched stream.
//!
//! Unary handlers count, admit and time; the work itself is in `convert::raw` and `convert::txn`. A request that finds the server
//! full waits a while and is then shed with a typed error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvproto::kvrpcpb as pb;
use kvproto::raft_serverpb::{Done, RaftMessage, SnapshotChunk};
use kvproto::tikvpb::tikv_server::Tikv;
use kvproto::tikvpb::{BatchCommandsRequest, BatchRaftMessage};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::admission::{Admission, Cost, Permit};
use super::batch_service::{BatchStream, waiting_cost};
use super::convert::raw::{RawCommands, RawWrite};
use super::convert::txn::TxnCommands;
use super::convert::{Failure, Reply, region_error};
use super::{raft_service, region_service};
use crate::clock;
use crate::error::RegionError;
use crate::metrics::{Command, Metrics};
use crate::storage::store::{RaftIngress, Store};

/// How long a request waits for room before it is shed. Shorter than the patience of every client.
pub const ADMISSION_WAIT: Duration = Duration::from_millis(1_000);

/// A healthy store's slow score.
const SLOW_SCORE: i32 = 1;

/// The service. Clones share everything.
#[derive(Clone)]
pub struct KvService {
    pub(super) shared: Arc<Shared>,
}

/// What all requests of a server use.
pub struct Shared {
    pub raw: RawCommands,
    pub txn: TxnCommands,
    pub admission: Arc<Admission>,
    pub metrics: Arc<Metrics>,
    pub store: Arc<dyn Store>,
    pub ingress: Option<Arc<dyn RaftIngress>>,
    pub store_id: u64,
    /// Cancelled when the server stops; streams end then, for they would never do so by themselves.
    pub stop: CancellationToken,
    feedbacks: AtomicU64,
}

impl KvService {
    pub fn new(
        raw: RawCommands,
        txn: TxnCommands,
        admission: Arc<Admission>,
        metrics: Arc<Metrics>,
        store: Arc<dyn Store>,
        stop: CancellationToken,
    ) -> KvService {
        let (ingress, store_id, feedbacks) = (store.ingress(), store.store_id(), AtomicU64::new(0));
        let shared = Shared { raw, txn, admission, metrics, store, ingress, store_id, stop, feedbacks };
        KvService { shared: Arc::new(shared) }
    }

    /// Admits, runs and times one request.
    async fn run<R: Reply>(
        &self,
        command: Command,
        bytes: usize,
        work: impl Future<Output = R>,
    ) -> Result<Response<R>, Status> {
        self.run_at(command, Cost { requests: 1, bytes }, work).await
    }

    /// The same for a request that costs what is said.
    async fn run_at<R: Reply>(
        &self,
        command: Command,
        cost: Cost,
        work: impl Future<Output = R>,
    ) -> Result<Response<R>, Status> {
        let started = clock::now();
        let reply = match self.shared.admit(cost).await {
            Ok(_permit) => work.await,
            Err(busy) => R::failed(busy),
        };
        self.shared.metrics.observe(command, clock::now().since(started) / 1_000, 1);
        Ok(Response::new(reply))
    }

    async fn write<W: RawWrite>(
        &self,
        command: Command,
        request: Request<W>,
    ) -> Result<Response<W::Reply>, Status> {
        let (request, now) = (request.into_inner(), clock::unix_seconds());
        let bytes = request.bytes();
        let work = async {
            if request.for_cas() {
                return self.shared.raw.write_latched(request, now).await;
            }
            let (tx, rx) = tokio::sync::oneshot::channel();
            // The receiver is gone when the client hung up; the write goes on.
            self.shared.raw.write(&request, now, move |reply| drop(tx.send(reply)));
            rx.await.unwrap_or_else(|_| W::Reply::failed(stopping()))
        };
        self.run(command, bytes, work).await
    }
}

impl Shared {
    /// Waits for room; the failure says that the server is busy.
    pub async fn admit(&self, cost: Cost) -> Result<Permit, Failure> {
        if let Some(permit) = self.admission.try_enter(cost) {
            return Ok(permit);
        }
        match tokio::time::timeout(ADMISSION_WAIT, self.admission.enter(cost)).await {
            Ok(permit) => Ok(permit),
            Err(_) => Err(self.shed()),
        }
    }

    /// Counts a request that is sent away, and says why.
    pub fn shed(&self) -> Failure {
        self.metrics.shed.inc();
        let reason = "too many requests in flight on this store".into();
        Failure::Region(Box::new(region_error(RegionError::ServerIsBusy { reason })))
    }

    /// What clients are told about this store's health.
    pub fn health_feedback(&self) -> pb::HealthFeedback {
        let feedback_seq_no = self.feedbacks.fetch_add(1, Ordering::Relaxed) + 1;
        pb::HealthFeedback { store_id: self.store_id, feedback_seq_no, slow_score: SLOW_SCORE }
    }
}

/// A scan's reply has no field for a refusal, and clients take a pair with an error for data: a unary call fails
/// as a whole. In a batched stream, where one command cannot, the pair has to do.
#[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
fn accepted(pairs: &[pb::KvPair]) -> Result<(), Status> {
    match pairs.first().and_then(|pair| pair.error.as_ref()) {
        Some(error) => Err(Status::invalid_argument(error.abort.clone())),
        None => Ok(()),
    }
}

fn stopping() -> Failure {
    let unknown = RegionError::Undetermined("the server is stopping".into());
    Failure::Region(Box::new(region_error(unknown)))
}

#[tonic::async_trait]
impl Tikv for KvService {
    async fn raw_get(
        &self,
        request: Request<pb::RawGetRequest>,
    ) -> Result<Response<pb::RawGetResponse>, Status> {
        let (request, now) = (request.into_inner(), clock::unix_seconds());
        self.run(Command::RawGet, 0, self.shared.raw.get(request, now)).await
    }

    async fn raw_batch_get(
        &self,
        request: Request<pb::RawBatchGetRequest>,
    ) -> Result<Response<pb::RawBatchGetResponse>, Status> {
        let (request, now) = (request.into_inner(), clock::unix_seconds());
        self.run(Command::RawBatchGet, 0, self.shared.raw.batch_get(request, now)).await
    }

    async fn raw_put(
        &self,
        request: Request<pb::RawPutRequest>,
    ) -> Result<Response<pb::RawPutResponse>, Status> {
        self.write(Command::RawPut, request).await
    }

    async fn raw_batch_put(
        &self,
        request: Request<pb::RawBatchPutRequest>,
    ) -> Result<Response<pb::RawBatchPutResponse>, Status> {
        self.write(Command::RawBatchPut, request).await
    }

    async fn raw_delete(
        &self,
        request: Request<pb::RawDeleteRequest>,
    ) -> Result<Response<pb::RawDeleteResponse>, Status> {
        self.write(Command::RawDelete, request).await
    }

    async fn raw_batch_delete(
        &self,
        request: Request<pb::RawBatchDeleteRequest>,
    ) -> Result<Response<pb::RawBatchDeleteResponse>, Status> {
        self.write(Command::RawBatchDelete, request).await
    }

    async fn raw_delete_range(
        &self,
        request: Request<pb::RawDeleteRangeRequest>,
    ) -> Result<Response<pb::RawDeleteRangeResponse>, Status> {
        self.write(Command::RawDeleteRange, request).await
    }

    async fn raw_scan(
        &self,
        request: Request<pb::RawScanRequest>,
    ) -> Result<Response<pb::RawScanResponse>, Status> {
        let (request, now) = (request.into_inner(), clock::unix_seconds());
        let reply = self.run(Command::RawScan, 0, self.shared.raw.scan(request, now)).await?;
        accepted(&reply.get_ref().kvs)?;
        Ok(reply)
    }

    async fn raw_batch_scan(
        &self,
        request: Request<pb::RawBatchScanRequest>,
    ) -> Result<Response<pb::RawBatchScanResponse>, Status> {
        let (request, now) = (request.into_inner(), clock::unix_seconds());
        let reply = self.run(Command::RawBatchScan, 0, self.shared.raw.batch_scan(request, now)).await?;
        accepted(&reply.get_ref().kvs)?;
        Ok(reply)
    }

    async fn raw_get_key_ttl(
        &self,
        request: Request<pb::RawGetKeyTtlRequest>,
    ) -> Result<Response<pb::RawGetKeyTtlResponse>, Status> {
        let (request, now) = (request.into_inner(), clock::unix_seconds());
        self.run(Command::RawGetTtl, 0, self.shared.raw.get_ttl(request, now)).await
    }

    async fn raw_checksum(
        &self,
        request: Request<pb::RawChecksumRequest>,
    ) -> Result<Response<pb::RawChecksumResponse>, Status> {
        let (request, now) = (request.into_inner(), clock::unix_seconds());
        self.run(Command::RawChecksum, 0, self.shared.raw.checksum(request, now)).await
    }

    async fn raw_compare_and_swap(
        &self,
        request: Request<pb::RawCasRequest>,
    ) -> Result<Response<pb::RawCasResponse>, Status> {
        let (request, now) = (request.into_inner(), clock::unix_seconds());
        let bytes = request.key.len() + request.value.len();
        self.run(Command::RawCas, bytes, self.shared.raw.compare_and_swap(request, now)).await
    }

    async fn kv_get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        self.run(Command::KvGet, 0, self.shared.txn.get(request.into_inner())).await
    }

    async fn kv_batch_get(
        &self,
        request: Request<pb::BatchGetRequest>,
    ) -> Result<Response<pb::BatchGetResponse>, Status> {
        self.run(Command::KvBatchGet, 0, self.shared.txn.batch_get(request.into_inner())).await
    }

    async fn kv_scan(&self, request: Request<pb::ScanRequest>) -> Result<Response<pb::ScanResponse>, Status> {
        self.run(Command::KvScan, 0, self.shared.txn.scan(request.into_inner())).await
    }

    async fn kv_prewrite(
        &self,
        request: Request<pb::PrewriteRequest>,
    ) -> Result<Response<pb::PrewriteResponse>, Status> {
        let request = request.into_inner();
        self.run(Command::KvPrewrite, request.encoded_len(), self.shared.txn.prewrite(request)).await
    }

    async fn kv_commit(
        &self,
        request: Request<pb::CommitRequest>,
    ) -> Result<Response<pb::CommitResponse>, Status> {
        let request = request.into_inner();
        self.run(Command::KvCommit, request.encoded_len(), self.shared.txn.commit(request)).await
    }

    async fn kv_cleanup(
        &self,
        request: Request<pb::CleanupRequest>,
    ) -> Result<Response<pb::CleanupResponse>, Status> {
        let request = request.into_inner();
        self.run(Command::KvCleanup, request.encoded_len(), self.shared.txn.cleanup(request)).await
    }

    async fn kv_batch_rollback(
        &self,
        request: Request<pb::BatchRollbackRequest>,
    ) -> Result<Response<pb::BatchRollbackResponse>, Status> {
        let request = request.into_inner();
        self.run(Command::KvBatchRollback, request.encoded_len(), self.shared.txn.batch_rollback(request))
            .await
    }

    async fn kv_pessimistic_lock(
        &self,
        request: Request<pb::PessimisticLockRequest>,
    ) -> Result<Response<pb::PessimisticLockResponse>, Status> {
        let request = request.into_inner();
        self.run_at(
            Command::KvPessimisticLock,
            waiting_cost(&request),
            self.shared.txn.pessimistic_lock(request),
        )
        .await
    }

    async fn kv_pessimistic_rollback(
        &self,
        request: Request<pb::PessimisticRollbackRequest>,
    ) -> Result<Response<pb::PessimisticRollbackResponse>, Status> {
        let request = request.into_inner();
        self.run(
            Command::KvPessimisticRollback,
            request.encoded_len(),
            self.shared.txn.pessimistic_rollback(request),
        )
        .await
    }

    async fn kv_check_txn_status(
        &self,
        request: Request<pb::CheckTxnStatusRequest>,
    ) -> Result<Response<pb::CheckTxnStatusResponse>, Status> {
        let request = request.into_inner();
        self.run(Command::KvCheckTxnStatus, request.encoded_len(), self.shared.txn.check_txn_status(request))
            .await
    }

    async fn kv_check_secondary_locks(
        &self,
        request: Request<pb::CheckSecondaryLocksRequest>,
    ) -> Result<Response<pb::CheckSecondaryLocksResponse>, Status> {
        let request = request.into_inner();
        self.run(
            Command::KvCheckSecondaryLocks,
            request.encoded_len(),
            self.shared.txn.check_secondary_locks(request),
        )
        .await
    }

    async fn kv_txn_heart_beat(
        &self,
        request: Request<pb::TxnHeartBeatRequest>,
    ) -> Result<Response<pb::TxnHeartBeatResponse>, Status> {
        let request = request.into_inner();
        self.run(Command::KvTxnHeartBeat, request.encoded_len(), self.shared.txn.txn_heart_beat(request))
            .await
    }

    async fn kv_resolve_lock(
        &self,
        request: Request<pb::ResolveLockRequest>,
    ) -> Result<Response<pb::ResolveLockResponse>, Status> {
        let request = request.into_inner();
        self.run(Command::KvResolveLock, request.encoded_len(), self.shared.txn.resolve_lock(request)).await
    }

    async fn kv_scan_lock(
        &self,
        request: Request<pb::ScanLockRequest>,
    ) -> Result<Response<pb::ScanLockResponse>, Status> {
        self.run(Command::KvScanLock, 0, self.shared.txn.scan_lock(request.into_inner())).await
    }

    async fn kv_delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        self.run(Command::KvDeleteRange, request.encoded_len(), self.shared.txn.delete_range(request)).await
    }

    async fn mvcc_get_by_key(
        &self,
        request: Request<pb::MvccGetByKeyRequest>,
    ) -> Result<Response<pb::MvccGetByKeyResponse>, Status> {
        self.run(Command::Mvcc, 0, self.shared.txn.mvcc_by_key(request.into_inner())).await
    }

    async fn mvcc_get_by_start_ts(
        &self,
        request: Request<pb::MvccGetByStartTsRequest>,
    ) -> Result<Response<pb::MvccGetByStartTsResponse>, Status> {
        self.run(Command::Mvcc, 0, self.shared.txn.mvcc_by_start_ts(request.into_inner())).await
    }

    async fn unsafe_destroy_range(
        &self,
        request: Request<pb::UnsafeDestroyRangeRequest>,
    ) -> Result<Response<pb::UnsafeDestroyRangeResponse>, Status> {
        let work = region_service::unsafe_destroy_range(&self.shared, request.into_inner());
        self.run(Command::UnsafeDestroyRange, 0, work).await
    }

    type BatchCommandsStream = BatchStream;

    async fn batch_commands(
        &self,
        request: Request<Streaming<BatchCommandsRequest>>,
    ) -> Result<Response<BatchStream>, Status> {
        Ok(Response::new(BatchStream::new(self.shared.clone(), request.into_inner())))
    }

    async fn raft(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<Done>, Status> {
        raft_service::raft(&self.shared, request).await
    }

    async fn batch_raft(
        &self,
        request: Request<Streaming<BatchRaftMessage>>,
    ) -> Result<Response<Done>, Status> {
        raft_service::batch_raft(&self.shared, request).await
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Result<Response<Done>, Status> {
        raft_service::snapshot(&self.shared, request).await
    }

    /// No timestamp is known to be safe for stale reads: 0 makes clients read from leaders.
    async fn get_store_safe_ts(
        &self,
        _request: Request<pb::StoreSafeTsRequest>,
    ) -> Result<Response<pb::StoreSafeTsResponse>, Status> {
        Ok(Response::new(pb::StoreSafeTsResponse { safe_ts: 0 }))
    }

    async fn get_health_feedback(
        &self,
        _request: Request<pb::GetHealthFeedbackRequest>,
    ) -> Result<Response<pb::GetHealthFeedbackResponse>, Status> {
        let health_feedback = Some(self.shared.health_feedback());
        Ok(Response::new(pb::GetHealthFeedbackResponse { health_feedback, ..Default::default() }))
    }

    /// Advice about transactions that nothing here keeps.
    async fn broadcast_txn_status(
        &self,
        _request: Request<pb::BroadcastTxnStatusRequest>,
    ) -> Result<Response<pb::BroadcastTxnStatusResponse>, Status> {
        Ok(Response::new(pb::BroadcastTxnStatusResponse {}))
    }

    /// Requests that wait for locks here.
    async fn get_lock_wait_info(
        &self,
        _request: Request<pb::GetLockWaitInfoRequest>,
    ) -> Result<Response<pb::GetLockWaitInfoResponse>, Status> {
        Ok(Response::new(self.shared.txn.lock_wait_info()))
    }

    async fn split_region(
        &self,
        request: Request<pb::SplitRegionRequest>,
    ) -> Result<Response<pb::SplitRegionResponse>, Status> {
        let request = request.into_inner();
        let bytes = request.split_keys.iter().map(|key| key.len()).sum();
        let answered = match self.shared.admit(Cost { requests: 1, bytes }).await {
            Ok(_permit) => region_service::split_region(&self.shared, request).await?,
            Err(Failure::Region(busy)) => {
                pb::SplitRegionResponse { region_error: Some(*busy), ..Default::default() }
            }
            Err(_) => return Err(Status::resource_exhausted("too many requests in flight on this store")),
        };
        Ok(Response::new(answered))
    }

    async fn check_leader(
        &self,
        request: Request<pb::CheckLeaderRequest>,
    ) -> Result<Response<pb::CheckLeaderResponse>, Status> {
        Ok(Response::new(region_service::check_leader(&self.shared, request.get_ref())))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        Ok(Response::new(region_service::read_index(&self.shared, request.get_ref()).await))
    }
}
