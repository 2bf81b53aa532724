//! The fake scheduler: several members may listen, one leads.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use futures::Stream;
use kvproto::keyspacepb::keyspace_server::{Keyspace, KeyspaceServer};
use kvproto::keyspacepb::*;
use kvproto::metapb;
use kvproto::pdpb::pd_server::{Pd, PdServer};
use kvproto::pdpb::*;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{CLUSTER_ID, Server, World, serve};

/// What the members share.
pub struct State {
    /// Addresses of all members; the leader's index.
    pub members: Mutex<Vec<String>>,
    pub leader: AtomicUsize,
    pub cluster_id: AtomicU64,
    pub bootstrapped: AtomicBool,
    pub next_id: AtomicU64,
    pub ts: AtomicU64,
    pub tso_requests: AtomicUsize,
    /// Changes when the open timestamp and heartbeat streams break.
    pub streams: watch::Sender<u64>,
    pub heartbeats: Mutex<Vec<RegionHeartbeatRequest>>,
    /// Look-ups of regions are answered while there are any of these permits.
    pub lookups: Semaphore,
}

impl Default for State {
    fn default() -> State {
        State {
            members: Mutex::default(),
            leader: AtomicUsize::new(0),
            cluster_id: AtomicU64::new(CLUSTER_ID),
            bootstrapped: AtomicBool::new(true),
            next_id: AtomicU64::new(0),
            ts: AtomicU64::new(1000 << 18),
            tso_requests: AtomicUsize::new(0),
            streams: watch::channel(0).0,
            heartbeats: Mutex::default(),
            lookups: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }
}

#[derive(Clone)]
struct Member {
    world: Arc<World>,
    index: usize,
}

/// Starts one more member; the first one leads.
pub fn start(world: Arc<World>) -> Server {
    serve(|address| {
        let index = {
            let mut members = world.pd.members.lock();
            members.push(format!("http://{address}"));
            members.len() - 1
        };
        let member = Member { world, index };
        let router = tonic::transport::Server::builder().add_service(PdServer::new(member.clone()));
        router.add_service(KeyspaceServer::new(member))
    })
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Member {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: self.world.pd.cluster_id.load(SeqCst), error: None })
    }

    fn error(&self, kind: ErrorType, message: &str) -> Option<ResponseHeader> {
        let error = Some(Error { r#type: kind.into(), message: message.to_string() });
        Some(ResponseHeader { error, ..self.header().unwrap() })
    }

    /// Refuses what only the leader of the right cluster may answer.
    fn check(&self, header: &Option<RequestHeader>) -> Result<(), Status> {
        if self.world.pd.leader.load(SeqCst) != self.index {
            return Err(Status::unavailable("not leader"));
        }
        let (got, need) =
            (header.as_ref().map_or(0, |h| h.cluster_id), self.world.pd.cluster_id.load(SeqCst));
        if got != need {
            let text = format!("mismatch cluster id, need {need} but got {got}");
            return Err(Status::failed_precondition(text));
        }
        Ok(())
    }

    fn region(&self, find: impl Fn(&[super::Region]) -> Option<usize>) -> GetRegionResponse {
        let regions = self.world.regions.lock().clone();
        let found = find(&regions).map(|index| &regions[index]);
        GetRegionResponse {
            header: self.header(),
            region: found.map(|region| self.world.meta(region)),
            leader: found.map(|region| self.world.leader_peer(region)),
            ..Default::default()
        }
    }

    fn holds(&self, region: &super::Region, boundary: &bytes::Bytes) -> bool {
        let form = self.world.form();
        let (start, end) = (form.boundary(region.start.clone()), form.boundary(region.end.clone()));
        start <= *boundary && (end.is_empty() || *boundary < end)
    }
}

/// Answers each request of a stream with `answer`, until the test breaks the stream.
fn answer_each<Q: Send + 'static, R: Send + 'static>(
    member: Member,
    mut requests: Streaming<Q>,
    answer: impl Fn(&Member, Q) -> R + Send + 'static,
) -> Response<Replies<R>> {
    let (replies, queue) = mpsc::channel(64);
    let mut broken = member.world.pd.streams.subscribe();
    broken.mark_unchanged();
    tokio::spawn(async move {
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                _ = broken.changed() => return,
            };
            let Ok(Some(request)) = request else { return };
            if replies.send(Ok(answer(&member, request))).await.is_err() {
                return;
            }
        }
    });
    Response::new(Box::pin(ReceiverStream::new(queue)))
}

#[tonic::async_trait]
impl Pd for Member {
    type TsoStream = Replies<TsoResponse>;
    type RegionHeartbeatStream = Replies<RegionHeartbeatResponse>;

    async fn get_members(
        &self,
        _: Request<GetMembersRequest>,
    ) -> Result<Response<GetMembersResponse>, Status> {
        let member =
            |url: &String| kvproto::pdpb::Member { client_urls: vec![url.clone()], ..Default::default() };
        let members: Vec<_> = self.world.pd.members.lock().iter().map(member).collect();
        let leader = members.get(self.world.pd.leader.load(SeqCst)).cloned();
        Ok(Response::new(GetMembersResponse { header: self.header(), members, leader, ..Default::default() }))
    }

    async fn is_bootstrapped(
        &self,
        request: Request<IsBootstrappedRequest>,
    ) -> Result<Response<IsBootstrappedResponse>, Status> {
        self.check(&request.get_ref().header)?;
        let bootstrapped = self.world.pd.bootstrapped.load(SeqCst);
        Ok(Response::new(IsBootstrappedResponse { header: self.header(), bootstrapped }))
    }

    async fn alloc_id(&self, request: Request<AllocIdRequest>) -> Result<Response<AllocIdResponse>, Status> {
        self.check(&request.get_ref().header)?;
        let count = request.get_ref().count;
        let id = self.world.pd.next_id.fetch_add(u64::from(count), SeqCst) + u64::from(count);
        Ok(Response::new(AllocIdResponse { header: self.header(), id, count }))
    }

    async fn get_store(
        &self,
        request: Request<GetStoreRequest>,
    ) -> Result<Response<GetStoreResponse>, Status> {
        self.check(&request.get_ref().header)?;
        let id = request.get_ref().store_id;
        let address = self.world.addresses.lock().get(&id).map(|address| address.to_string());
        let store = address.map(|address| metapb::Store { id, address, ..Default::default() });
        let header = match &store {
            Some(_) => self.header(),
            None => self.error(ErrorType::Unknown, "no such store"),
        };
        Ok(Response::new(GetStoreResponse { header, store, ..Default::default() }))
    }

    async fn get_region(
        &self,
        request: Request<GetRegionRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        self.check(&request.get_ref().header)?;
        self.world.get_region_calls.fetch_add(1, SeqCst);
        self.world.pd.lookups.acquire().await.expect("never closed").forget();
        let key = &request.get_ref().region_key;
        Ok(Response::new(self.region(|regions| regions.iter().position(|region| self.holds(region, key)))))
    }

    async fn get_prev_region(
        &self,
        request: Request<GetRegionRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        self.check(&request.get_ref().header)?;
        let key = &request.get_ref().region_key;
        let before = |regions: &[super::Region]| {
            regions.iter().position(|region| self.holds(region, key))?.checked_sub(1)
        };
        Ok(Response::new(self.region(before)))
    }

    async fn get_region_by_id(
        &self,
        request: Request<GetRegionByIdRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        self.check(&request.get_ref().header)?;
        let id = request.get_ref().region_id;
        Ok(Response::new(self.region(|regions| regions.iter().position(|region| region.id == id))))
    }

    async fn get_cluster_config(
        &self,
        request: Request<GetClusterConfigRequest>,
    ) -> Result<Response<GetClusterConfigResponse>, Status> {
        self.check(&request.get_ref().header)?;
        let header = match self.world.pd.bootstrapped.load(SeqCst) {
            true => self.header(),
            false => self.error(ErrorType::NotBootstrapped, "no store has joined"),
        };
        let traits = ClusterTraits { api_version: self.world.api.into(), ..Default::default() };
        Ok(Response::new(GetClusterConfigResponse { header, cluster: None, traits: Some(traits) }))
    }

    async fn tso(
        &self,
        request: Request<Streaming<TsoRequest>>,
    ) -> Result<Response<Self::TsoStream>, Status> {
        let answer = |member: &Member, request: TsoRequest| {
            let pd = &member.world.pd;
            pd.tso_requests.fetch_add(1, SeqCst);
            let last = pd.ts.fetch_add(u64::from(request.count), SeqCst) + u64::from(request.count);
            let timestamp = Some(kvproto::ts::Timestamp::new(last).into());
            TsoResponse { header: member.header(), count: request.count, timestamp }
        };
        Ok(answer_each(self.clone(), request.into_inner(), answer))
    }

    async fn region_heartbeat(
        &self,
        request: Request<Streaming<RegionHeartbeatRequest>>,
    ) -> Result<Response<Self::RegionHeartbeatStream>, Status> {
        let answer = |member: &Member, request: RegionHeartbeatRequest| {
            let region_id = request.region.as_ref().map_or(0, |region| region.id);
            member.world.pd.heartbeats.lock().push(request);
            RegionHeartbeatResponse { header: member.header(), region_id, ..Default::default() }
        };
        Ok(answer_each(self.clone(), request.into_inner(), answer))
    }

    crate::unused_methods! {
        bootstrap: BootstrapRequest => BootstrapResponse;
        put_store: PutStoreRequest => PutStoreResponse;
        get_all_stores: GetAllStoresRequest => GetAllStoresResponse;
        store_heartbeat: StoreHeartbeatRequest => StoreHeartbeatResponse;
        scan_regions: ScanRegionsRequest => ScanRegionsResponse;
        batch_scan_regions: BatchScanRegionsRequest => BatchScanRegionsResponse;
        get_operator: GetOperatorRequest => GetOperatorResponse;
        scatter_region: ScatterRegionRequest => ScatterRegionResponse;
        split_regions: SplitRegionsRequest => SplitRegionsResponse;
        split_and_scatter_regions: SplitAndScatterRegionsRequest => SplitAndScatterRegionsResponse;
        ask_split: AskSplitRequest => AskSplitResponse;
        report_split: ReportSplitRequest => ReportSplitResponse;
        ask_batch_split: AskBatchSplitRequest => AskBatchSplitResponse;
        report_batch_split: ReportBatchSplitRequest => ReportBatchSplitResponse;
        get_cluster_info: GetClusterInfoRequest => GetClusterInfoResponse;
        is_snapshot_recovering: IsSnapshotRecoveringRequest => IsSnapshotRecoveringResponse;
        get_gc_safe_point: GetGcSafePointRequest => GetGcSafePointResponse;
        update_gc_safe_point: UpdateGcSafePointRequest => UpdateGcSafePointResponse;
        update_service_gc_safe_point: UpdateServiceGcSafePointRequest => UpdateServiceGcSafePointResponse;
        advance_txn_safe_point: AdvanceTxnSafePointRequest => AdvanceTxnSafePointResponse;
        advance_gc_safe_point: AdvanceGcSafePointRequest => AdvanceGcSafePointResponse;
        set_gc_barrier: SetGcBarrierRequest => SetGcBarrierResponse;
        delete_gc_barrier: DeleteGcBarrierRequest => DeleteGcBarrierResponse;
        set_global_gc_barrier: SetGlobalGcBarrierRequest => SetGlobalGcBarrierResponse;
        delete_global_gc_barrier: DeleteGlobalGcBarrierRequest => DeleteGlobalGcBarrierResponse;
        get_gc_state: GetGcStateRequest => GetGcStateResponse;
        get_all_keyspaces_gc_states: GetAllKeyspacesGcStatesRequest => GetAllKeyspacesGcStatesResponse;
        get_external_timestamp: GetExternalTimestampRequest => GetExternalTimestampResponse;
        set_external_timestamp: SetExternalTimestampRequest => SetExternalTimestampResponse;
        get_min_ts: GetMinTsRequest => GetMinTsResponse;
    }
}

#[tonic::async_trait]
impl Keyspace for Member {
    async fn load_keyspace(
        &self,
        request: Request<LoadKeyspaceRequest>,
    ) -> Result<Response<LoadKeyspaceResponse>, Status> {
        let request = request.into_inner();
        self.check(&request.header)?;
        let state = match request.name.as_str() {
            "DEFAULT" => Some(KeyspaceState::Enabled),
            "old" => Some(KeyspaceState::Archived),
            _ => None,
        };
        let id = Some(keyspace_meta::Keyspace::Id(0));
        let keyspace =
            state.map(|state| KeyspaceMeta { keyspace: id, state: state.into(), ..Default::default() });
        let header = match &keyspace {
            Some(_) => self.header(),
            None => self.error(ErrorType::EntryNotFound, "no such keyspace"),
        };
        Ok(Response::new(LoadKeyspaceResponse { header, keyspace }))
    }

    crate::unused_methods! {
        load_keyspace_by_id: LoadKeyspaceByIdRequest => LoadKeyspaceResponse;
        get_all_keyspaces: GetAllKeyspacesRequest => GetAllKeyspacesResponse;
    }
}
