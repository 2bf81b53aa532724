//! The fake store: checks region, epoch and leader as a real one does, then works on the shared map.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use futures::Stream;
use kvproto::kvrpcpb::*;
use kvproto::raft_serverpb::{Done, RaftMessage, SnapshotChunk};
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::{Response as Answer, response::Cmd as Reply};
use kvproto::tikvpb::tikv_server::{Tikv, TikvServer};
use kvproto::tikvpb::*;
use kvproto::{errorpb, metapb};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Region, Server, World, serve};

#[derive(Clone)]
pub struct Store {
    world: Arc<World>,
    id: u64,
}

pub fn start(world: Arc<World>, id: u64) -> Server {
    let service = TikvServer::new(Store { world, id }).max_decoding_message_size(usize::MAX);
    serve(|_| tonic::transport::Server::builder().add_service(service))
}

/// Executes a transactional request after the checks that every request passes.
macro_rules! answer {
    ($store:ident, $variant:ident, $reply:ident, $q:expr, $keys:expr, |$data:ident| $run:expr) => {{
        $store.world.seen.lock().push(stringify!($variant));
        let region_error = $store.check($q.context.as_ref(), $keys);
        if region_error.is_some() {
            return Reply::$variant($reply { region_error, ..Default::default() });
        }
        let $data = &mut *$store.world.txn.lock();
        Reply::$variant($run)
    }};
}

fn keys_of(mutations: &[Mutation]) -> Vec<Bytes> {
    mutations.iter().map(|mutation| mutation.key.clone()).collect()
}

/// What tests call a request that they lose or hold back.
fn name_of(command: &Cmd) -> &'static str {
    match command {
        Cmd::Prewrite(_) => "Prewrite",
        Cmd::Commit(_) => "Commit",
        Cmd::PessimisticLock(_) => "PessimisticLock",
        Cmd::PessimisticRollback(_) => "PessimisticRollback",
        Cmd::ResolveLock(_) => "ResolveLock",
        _ => "other",
    }
}

fn inside(region: &Region, key: &Bytes) -> bool {
    region.start <= *key && (region.end.is_empty() || *key < region.end)
}

impl Store {
    /// The region error of a request that reads or writes the given keys.
    fn check(&self, context: Option<&Context>, keys: &[&Bytes]) -> Option<errorpb::Error> {
        let context = context.expect("every request has a context");
        assert_eq!(context.api_version(), self.world.api);
        if let Some(Some(error)) = self.world.refusals.lock().pop_front() {
            return Some(error);
        }
        let (region_id, epoch) = (context.region_id, context.region_epoch.unwrap_or_default());
        let regions = self.world.regions.lock().clone();
        let mut error = errorpb::Error::default();
        let Some(region) = regions.iter().find(|r| r.id == region_id) else {
            error.region_not_found = Some(errorpb::RegionNotFound { region_id });
            return Some(error);
        };
        if context.peer.unwrap_or_default().store_id != self.id {
            error.store_not_match = Some(errorpb::StoreNotMatch::default());
        } else if region.leader != self.id {
            let hide = self.world.hide_leader.load(SeqCst);
            let leader = (!hide).then(|| self.world.leader_peer(region));
            error.not_leader = Some(errorpb::NotLeader { region_id, leader });
        } else if epoch.version != region.version {
            let current_regions: Vec<metapb::Region> = regions.iter().map(|r| self.world.meta(r)).collect();
            error.epoch_not_match = Some(errorpb::EpochNotMatch { current_regions });
        } else if keys.iter().any(|key| !inside(region, key)) {
            error.key_not_in_region = Some(errorpb::KeyNotInRegion { region_id, ..Default::default() });
        } else {
            return None;
        }
        Some(error)
    }

    fn execute(&self, command: Cmd) -> Reply {
        self.world.executed.fetch_add(1, SeqCst);
        let data = &self.world.data;
        match command {
            Cmd::RawGet(q) => {
                let region_error = self.check(q.context.as_ref(), &[&q.key]);
                let value = data.lock().get(&q.key).cloned();
                let not_found = value.is_none();
                let value = value.unwrap_or_default().0;
                Reply::RawGet(RawGetResponse { region_error, value, not_found, ..Default::default() })
            }
            Cmd::RawPut(q) => {
                let region_error = self.check(q.context.as_ref(), &[&q.key]);
                if region_error.is_none() {
                    data.lock().insert(q.key, (q.value, q.ttl));
                }
                Reply::RawPut(RawPutResponse { region_error, ..Default::default() })
            }
            Cmd::RawDelete(q) => {
                let region_error = self.check(q.context.as_ref(), &[&q.key]);
                if region_error.is_none() {
                    data.lock().remove(&q.key);
                }
                Reply::RawDelete(RawDeleteResponse { region_error, ..Default::default() })
            }
            Cmd::RawBatchGet(q) => {
                let region_error = self.check(q.context.as_ref(), &q.keys.iter().collect::<Vec<_>>());
                let data = data.lock();
                let pair = |key: &Bytes| {
                    Some(KvPair { key: key.clone(), value: data.get(key)?.0.clone(), ..Default::default() })
                };
                let pairs = q.keys.iter().filter_map(pair).collect();
                Reply::RawBatchGet(RawBatchGetResponse { region_error, pairs })
            }
            Cmd::RawBatchPut(q) => {
                let keys: Vec<&Bytes> = q.pairs.iter().map(|pair| &pair.key).collect();
                let region_error = self.check(q.context.as_ref(), &keys);
                if region_error.is_none() {
                    let ttl = q.ttls.first().copied().unwrap_or(0);
                    data.lock().extend(q.pairs.into_iter().map(|pair| (pair.key, (pair.value, ttl))));
                }
                Reply::RawBatchPut(RawBatchPutResponse { region_error, ..Default::default() })
            }
            Cmd::RawBatchDelete(q) => {
                let region_error = self.check(q.context.as_ref(), &q.keys.iter().collect::<Vec<_>>());
                if region_error.is_none() {
                    data.lock().retain(|key, _| !q.keys.contains(key));
                }
                Reply::RawBatchDelete(RawBatchDeleteResponse { region_error, ..Default::default() })
            }
            Cmd::RawScan(q) => Reply::RawScan(self.scan(q)),
            Cmd::RawDeleteRange(q) => {
                let region_error = self.check(q.context.as_ref(), &[&q.start_key]);
                if region_error.is_none() {
                    let past = |key: &Bytes| !q.end_key.is_empty() && *key >= q.end_key;
                    data.lock().retain(|key, _| *key < q.start_key || past(key));
                }
                Reply::RawDeleteRange(RawDeleteRangeResponse { region_error, ..Default::default() })
            }
            other => self.transact(other),
        }
    }

    /// Executes a transactional request.
    fn transact(&self, command: Cmd) -> Reply {
        match command {
            Cmd::Get(q) => answer!(self, Get, GetResponse, q, &[&q.key], |data| data.get(&q)),
            Cmd::BatchGet(q) => {
                let keys: Vec<&Bytes> = q.keys.iter().collect();
                answer!(self, BatchGet, BatchGetResponse, q, &keys, |data| data.batch_get(&q))
            }
            Cmd::Scan(q) => {
                let lower = if q.reverse { &q.end_key } else { &q.start_key };
                answer!(self, Scan, ScanResponse, q, &[lower], |data| data.scan(&q))
            }
            Cmd::Prewrite(q) => {
                let keys = keys_of(&q.mutations);
                let keys: Vec<&Bytes> = keys.iter().collect();
                answer!(self, Prewrite, PrewriteResponse, q, &keys, |data| data.prewrite(&q))
            }
            Cmd::Commit(_) if self.world.no_commits.load(SeqCst) => {
                let abort = "the test allows no commits".to_string();
                let error = Some(KeyError { abort, ..Default::default() });
                Reply::Commit(CommitResponse { error, ..Default::default() })
            }
            Cmd::Commit(q) => {
                let keys: Vec<&Bytes> = q.keys.iter().collect();
                answer!(self, Commit, CommitResponse, q, &keys, |data| data.commit(&q))
            }
            Cmd::BatchRollback(q) => {
                let keys: Vec<&Bytes> = q.keys.iter().collect();
                answer!(self, BatchRollback, BatchRollbackResponse, q, &keys, |data| data.batch_rollback(&q))
            }
            Cmd::PessimisticLock(q) => {
                let keys = keys_of(&q.mutations);
                let keys: Vec<&Bytes> = keys.iter().collect();
                answer!(self, PessimisticLock, PessimisticLockResponse, q, &keys, |data| data
                    .pessimistic_lock(&q))
            }
            Cmd::PessimisticRollback(q) => {
                let keys: Vec<&Bytes> = q.keys.iter().collect();
                answer!(self, PessimisticRollback, PessimisticRollbackResponse, q, &keys, |data| {
                    data.pessimistic_rollback(&q);
                    PessimisticRollbackResponse::default()
                })
            }
            other => self.settle(other),
        }
    }

    /// Executes what comes after the writes: what keeps transactions alive, ends them, and cleans up.
    fn settle(&self, command: Cmd) -> Reply {
        match command {
            Cmd::TxnHeartBeat(q) => {
                answer!(self, TxnHeartBeat, TxnHeartBeatResponse, q, &[&q.primary_lock], |data| data
                    .heart_beat(&q))
            }
            Cmd::CheckTxnStatus(q) => {
                answer!(self, CheckTxnStatus, CheckTxnStatusResponse, q, &[&q.primary_key], |data| {
                    data.check_txn_status(&q)
                })
            }
            Cmd::CheckSecondaryLocks(q) => {
                let keys: Vec<&Bytes> = q.keys.iter().collect();
                answer!(self, CheckSecondaryLocks, CheckSecondaryLocksResponse, q, &keys, |data| {
                    data.check_secondary_locks(&q)
                })
            }
            Cmd::ResolveLock(q) => {
                let keys: Vec<&Bytes> = q.keys.iter().collect();
                let inside = self.inside_of(q.context.as_ref());
                answer!(self, ResolveLock, ResolveLockResponse, q, &keys, |data| {
                    data.resolve_lock(&q, inside);
                    ResolveLockResponse::default()
                })
            }
            Cmd::ScanLock(q) => {
                let inside = self.inside_of(q.context.as_ref());
                answer!(self, ScanLock, ScanLockResponse, q, &[&q.start_key], |data| data
                    .scan_lock(&q, inside))
            }
            Cmd::DeleteRange(q) => {
                answer!(self, DeleteRange, DeleteRangeResponse, q, &[&q.start_key], |data| {
                    data.delete_range(&q);
                    DeleteRangeResponse::default()
                })
            }
            other => panic!("the client sent {other:?}"),
        }
    }

    /// Tells the keys of the region that a request is meant for.
    fn inside_of(&self, context: Option<&Context>) -> impl Fn(&Bytes) -> bool + use<> {
        let region_id = context.map_or(0, |context| context.region_id);
        let region = self.world.regions.lock().iter().find(|r| r.id == region_id).cloned();
        move |key: &Bytes| region.as_ref().is_some_and(|region| inside(region, key))
    }

    fn scan(&self, q: RawScanRequest) -> RawScanResponse {
        assert_eq!(q.context.as_ref().expect("a context").request_source, kvproto::limits::CUT_AWARE_SOURCE);
        let (lower, upper) = if q.reverse { (q.end_key, q.start_key) } else { (q.start_key, q.end_key) };
        let region_error = self.check(q.context.as_ref(), &[&lower]);
        let data = self.world.data.lock();
        let in_range = |key: &Bytes| *key >= lower && (upper.is_empty() || *key < upper);
        let pair = |(key, (value, _)): (&Bytes, &(Bytes, u64))| KvPair {
            key: key.clone(),
            value: if q.key_only { Bytes::new() } else { value.clone() },
            ..Default::default()
        };
        let mut kvs: Vec<KvPair> = data.iter().filter(|(key, _)| in_range(key)).map(pair).collect();
        if q.reverse {
            kvs.reverse();
        }
        kvs.truncate(q.limit as usize);
        // A real store cuts a reply that grows too large.
        let mut bytes = 0;
        let fits = |pair: &&KvPair| {
            let before = bytes;
            bytes += pair.value.len();
            before < kvproto::limits::SCAN_CUT_BYTES
        };
        let count = kvs.iter().take_while(fits).count();
        kvs.truncate(count);
        RawScanResponse { region_error, kvs }
    }
}

#[tonic::async_trait]
impl Tikv for Store {
    type BatchCommandsStream = Pin<Box<dyn Stream<Item = Result<BatchCommandsResponse, Status>> + Send>>;

    async fn batch_commands(
        &self,
        request: Request<Streaming<BatchCommandsRequest>>,
    ) -> Result<Response<Self::BatchCommandsStream>, Status> {
        let (store, mut frames) = (self.clone(), request.into_inner());
        let (replies, queue) = mpsc::channel(64);
        let mut broken = self.world.streams.subscribe();
        broken.mark_unchanged();
        let mut finished = self.world.finished.subscribe();
        finished.mark_unchanged();
        tokio::spawn(async move {
            loop {
                let frame = tokio::select! {
                    frame = frames.message() => frame,
                    _ = broken.changed() => {
                        let _ = replies.send(Err(Status::unavailable("the test breaks the stream"))).await;
                        return;
                    }
                    _ = finished.changed() => return,
                };
                let Ok(Some(frame)) = frame else { return };
                store.world.frames.lock().push(frame.requests.len());
                if store.world.mute.load(SeqCst) {
                    continue;
                }
                let mut lost = false;
                let mut responses = Vec::new();
                for request in frame.requests {
                    let command = request.cmd.expect("a command");
                    let name = name_of(&command);
                    while store.world.hold.lock().contains(&name) {
                        tokio::task::yield_now().await;
                    }
                    responses.push(Answer { cmd: Some(store.execute(command)) });
                    let mut lose = store.world.lose.lock();
                    if let Some(at) = lose.iter().position(|lose| *lose == name) {
                        lose.remove(at);
                        lost = true;
                    }
                }
                if lost {
                    let _ = replies.send(Err(Status::unavailable("the test loses the answer"))).await;
                    return;
                }
                let request_ids = frame.request_ids;
                let reply = BatchCommandsResponse { responses, request_ids, ..Default::default() };
                if replies.send(Ok(reply)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    async fn raw_get_key_ttl(
        &self,
        request: Request<RawGetKeyTtlRequest>,
    ) -> Result<Response<RawGetKeyTtlResponse>, Status> {
        let q = request.into_inner();
        let region_error = self.check(q.context.as_ref(), &[&q.key]);
        let found = self.world.data.lock().get(&q.key).cloned();
        let (not_found, ttl) = (found.is_none(), found.unwrap_or_default().1);
        Ok(Response::new(RawGetKeyTtlResponse { region_error, not_found, ttl, ..Default::default() }))
    }

    async fn raw_compare_and_swap(
        &self,
        request: Request<RawCasRequest>,
    ) -> Result<Response<RawCasResponse>, Status> {
        let q = request.into_inner();
        let region_error = self.check(q.context.as_ref(), &[&q.key]);
        if region_error.is_some() {
            return Ok(Response::new(RawCasResponse { region_error, ..Default::default() }));
        }
        let mut data = self.world.data.lock();
        let found = data.get(&q.key).map(|(value, _)| value.clone());
        let wanted = (!q.previous_not_exist).then_some(q.previous_value);
        let succeed = found == wanted;
        match (succeed, q.delete) {
            (true, true) => drop(data.remove(&q.key)),
            (true, false) => drop(data.insert(q.key, (q.value, q.ttl))),
            _ => {}
        }
        if self.world.break_cas.load(SeqCst) {
            return Err(Status::unavailable("the test breaks the connection"));
        }
        let previous_not_exist = found.is_none();
        let previous_value = found.unwrap_or_default();
        Ok(Response::new(RawCasResponse {
            succeed,
            previous_not_exist,
            previous_value,
            ..Default::default()
        }))
    }

    async fn raw_checksum(
        &self,
        request: Request<RawChecksumRequest>,
    ) -> Result<Response<RawChecksumResponse>, Status> {
        let q = request.into_inner();
        let KeyRange { start_key, end_key } = q.ranges[0].clone();
        let region_error = self.check(q.context.as_ref(), &[&start_key]);
        let mut reply = RawChecksumResponse { region_error, ..Default::default() };
        for (key, (value, _)) in self.world.data.lock().iter() {
            if *key >= start_key && (end_key.is_empty() || *key < end_key) {
                reply.checksum ^= u64::from(value[0]);
                reply.total_kvs += 1;
                reply.total_bytes += (key.len() + value.len()) as u64;
            }
        }
        Ok(Response::new(reply))
    }

    crate::unused_methods! {
        kv_get: GetRequest => GetResponse;
        kv_batch_get: BatchGetRequest => BatchGetResponse;
        kv_scan: ScanRequest => ScanResponse;
        kv_prewrite: PrewriteRequest => PrewriteResponse;
        kv_commit: CommitRequest => CommitResponse;
        kv_cleanup: CleanupRequest => CleanupResponse;
        kv_batch_rollback: BatchRollbackRequest => BatchRollbackResponse;
        kv_pessimistic_lock: PessimisticLockRequest => PessimisticLockResponse;
        kv_pessimistic_rollback: PessimisticRollbackRequest => PessimisticRollbackResponse;
        kv_txn_heart_beat: TxnHeartBeatRequest => TxnHeartBeatResponse;
        kv_check_txn_status: CheckTxnStatusRequest => CheckTxnStatusResponse;
        kv_check_secondary_locks: CheckSecondaryLocksRequest => CheckSecondaryLocksResponse;
        kv_resolve_lock: ResolveLockRequest => ResolveLockResponse;
        kv_scan_lock: ScanLockRequest => ScanLockResponse;
        kv_delete_range: DeleteRangeRequest => DeleteRangeResponse;
        unsafe_destroy_range: UnsafeDestroyRangeRequest => UnsafeDestroyRangeResponse;
        mvcc_get_by_key: MvccGetByKeyRequest => MvccGetByKeyResponse;
        mvcc_get_by_start_ts: MvccGetByStartTsRequest => MvccGetByStartTsResponse;
        raw_get: RawGetRequest => RawGetResponse;
        raw_batch_get: RawBatchGetRequest => RawBatchGetResponse;
        raw_put: RawPutRequest => RawPutResponse;
        raw_batch_put: RawBatchPutRequest => RawBatchPutResponse;
        raw_delete: RawDeleteRequest => RawDeleteResponse;
        raw_batch_delete: RawBatchDeleteRequest => RawBatchDeleteResponse;
        raw_scan: RawScanRequest => RawScanResponse;
        raw_batch_scan: RawBatchScanRequest => RawBatchScanResponse;
        raw_delete_range: RawDeleteRangeRequest => RawDeleteRangeResponse;
        broadcast_txn_status: BroadcastTxnStatusRequest => BroadcastTxnStatusResponse;
        get_lock_wait_info: GetLockWaitInfoRequest => GetLockWaitInfoResponse;
        split_region: SplitRegionRequest => SplitRegionResponse;
        check_leader: CheckLeaderRequest => CheckLeaderResponse;
        read_index: ReadIndexRequest => ReadIndexResponse;
        raft: Streaming<RaftMessage> => Done;
        batch_raft: Streaming<BatchRaftMessage> => Done;
        snapshot: Streaming<SnapshotChunk> => Done;
        get_store_safe_ts: StoreSafeTsRequest => StoreSafeTsResponse;
        get_health_feedback: GetHealthFeedbackRequest => GetHealthFeedbackResponse;
    }
}
