//! The gRPC face: `pdpb.PD`.
//!
//! Holds no state. Every answer has a header with the cluster id; a refusal by the cluster is an error inside it,
//! a foreign cluster id is FAILED_PRECONDITION, and metadata that cannot be written is UNAVAILABLE.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use kvproto::pdpb::{self, pd_server::Pd};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::dispatch::until_not_leader;
use super::heartbeat_streams::{QUEUE_MAX, Reporter};
use super::region_scan::wire_region;
use super::state::{ChangeError, State};
use crate::cluster::Cluster;
use crate::core::region::RegionInfo;
use crate::core::store::StoreInfo;
use crate::error::ClusterError;
use crate::id::{self, IdWindow};
use crate::kv::KvError;

/// See the module.
#[derive(Clone)]
pub struct GrpcService {
    pub(super) state: Arc<State>,
}

/// Refuses a request that is meant for another cluster.
#[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
pub fn check_cluster(want: u64, header: Option<&pdpb::RequestHeader>) -> Result<(), Status> {
    let got = header.map_or(0, |header| header.cluster_id);
    match got == want {
        true => Ok(()),
        false => Err(Status::failed_precondition(format!("mismatch cluster id, need {want} but got {got}"))),
    }
}

/// The answer when metadata cannot be written.
pub fn unavailable(error: KvError) -> Status {
    Status::unavailable(error.to_string())
}

/// Ids that this scheduler did not hand out would collide with those it hands out later.
fn check_issued(ids: &IdWindow, used: impl IntoIterator<Item = u64>) -> Result<(), ClusterError> {
    match used.into_iter().find(|id| !ids.is_issued(*id)) {
        Some(id) => Err(ClusterError::ForeignId(id)),
        None => Ok(()),
    }
}

impl GrpcService {
    /// A face of `state`.
    pub fn new(state: Arc<State>) -> GrpcService {
        GrpcService { state }
    }

    #[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
    pub(super) fn check(&self, header: Option<&pdpb::RequestHeader>) -> Result<(), Status> {
        check_cluster(self.state.cluster_id(), header)
    }

    /// The header of an answer, and its body when there is one.
    #[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
    pub(super) fn split<T: Default>(
        &self,
        outcome: Result<T, ChangeError>,
    ) -> Result<(Option<pdpb::ResponseHeader>, T), Status> {
        let mut header = self.state.header();
        match outcome {
            Ok(value) => Ok((Some(header), value)),
            Err(ChangeError::Cluster(error)) => {
                header.error = Some(error.to_wire());
                Ok((Some(header), T::default()))
            }
            Err(ChangeError::Kv(error)) => Err(unavailable(error)),
        }
    }

    /// Looks something up in a bootstrapped cluster.
    #[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
    pub(super) fn look_up<T: Default>(
        &self,
        look: impl FnOnce(&Cluster) -> Result<T, ClusterError>,
    ) -> Result<(Option<pdpb::ResponseHeader>, T), Status> {
        let found = self.state.read(|cluster, _| {
            cluster.require_bootstrapped()?;
            look(cluster)
        });
        self.split(found.map_err(ChangeError::Cluster))
    }

    /// Waits for the region with this key while a new leader may not have heard of it, or of who leads it.
    async fn region_of_key(
        &self,
        header: Option<&pdpb::RequestHeader>,
        find: impl Fn(&Cluster) -> Option<&RegionInfo>,
    ) -> Result<Response<pdpb::GetRegionResponse>, Status> {
        self.check(header)?;
        let is_complete = |region: &RegionInfo| region.leader.is_some();
        let look = |cluster: &Cluster| {
            let is_there = !cluster.is_bootstrapped() || find(cluster).is_some_and(is_complete);
            is_there.then_some(())
        };
        let waited = self.state.read_reported(look).await;
        let response = self.region_response(header, &find)?;
        if waited.is_none() && response.get_ref().region.is_none() {
            return Err(Status::unavailable("no store has reported a region with this key yet: try again"));
        }
        Ok(response)
    }

    #[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
    fn region_response(
        &self,
        header: Option<&pdpb::RequestHeader>,
        find: impl FnOnce(&Cluster) -> Option<&RegionInfo>,
    ) -> Result<Response<pdpb::GetRegionResponse>, Status> {
        self.check(header)?;
        let (header, region) = self.look_up(|cluster| Ok(find(cluster).map(wire_region)))?;
        let region = region.unwrap_or_default();
        Ok(Response::new(pdpb::GetRegionResponse {
            header,
            region: region.region,
            leader: region.leader,
            down_peers: region.down_peers,
            pending_peers: region.pending_peers,
            buckets: None,
        }))
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Pd for GrpcService {
    type TsoStream = BoxStream<pdpb::TsoResponse>;
    type RegionHeartbeatStream = ReceiverStream<Result<pdpb::RegionHeartbeatResponse, Status>>;

    async fn get_members(
        &self,
        _request: Request<pdpb::GetMembersRequest>,
    ) -> Result<Response<pdpb::GetMembersResponse>, Status> {
        // Clients learn the cluster id here, so they cannot know it yet.
        Ok(Response::new(self.state.members()))
    }

    async fn bootstrap(
        &self,
        request: Request<pdpb::BootstrapRequest>,
    ) -> Result<Response<pdpb::BootstrapResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let store = request.store.unwrap_or_default();
        let mut regions = vec![request.region.unwrap_or_default()];
        regions.extend(request.more_regions);
        let outcome = self
            .state
            .change(|cluster, ids, now_ms| {
                let peers = regions.iter().flat_map(|region| &region.peers).map(|peer| peer.id);
                let of_regions = regions.iter().map(|region| region.id).chain(peers);
                check_issued(ids, std::iter::once(store.id).chain(of_regions))?;
                Ok(((), cluster.bootstrap(now_ms, store, regions, request.traits)?))
            })
            .await;
        let (header, ()) = self.split(outcome)?;
        if header.as_ref().is_some_and(|header| header.error.is_none()) {
            tracing::info!(cluster_id = self.state.cluster_id(), "cluster bootstrapped");
        }
        Ok(Response::new(pdpb::BootstrapResponse { header }))
    }

    async fn is_bootstrapped(
        &self,
        request: Request<pdpb::IsBootstrappedRequest>,
    ) -> Result<Response<pdpb::IsBootstrappedResponse>, Status> {
        self.check(request.get_ref().header.as_ref())?;
        let bootstrapped = self.state.read(|cluster, _| cluster.is_bootstrapped());
        Ok(Response::new(pdpb::IsBootstrappedResponse { header: Some(self.state.header()), bootstrapped }))
    }

    /// The ids are `id - count + 1 ..= id`.
    async fn alloc_id(
        &self,
        request: Request<pdpb::AllocIdRequest>,
    ) -> Result<Response<pdpb::AllocIdResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let count = request.count.max(1);
        if count > id::COUNT_MAX {
            let text = format!("cannot allocate {count} ids at once, the most is {}", id::COUNT_MAX);
            return Err(Status::invalid_argument(text));
        }
        let last = self.state.alloc_ids(u64::from(count)).await.map_err(unavailable)?;
        Ok(Response::new(pdpb::AllocIdResponse { header: Some(self.state.header()), id: last, count }))
    }

    async fn get_store(
        &self,
        request: Request<pdpb::GetStoreRequest>,
    ) -> Result<Response<pdpb::GetStoreResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let id = request.store_id;
        let (header, found) = self.look_up(|cluster| {
            let store = cluster.basic().store(id).ok_or(ClusterError::UnknownStore(id))?;
            Ok(Some((store.to_wire(), store.stats.clone())))
        })?;
        // Clients of the field look into the store before they look at the error.
        let (store, stats) = found.unwrap_or_default();
        Ok(Response::new(pdpb::GetStoreResponse { header, store: Some(store), stats }))
    }

    async fn put_store(
        &self,
        request: Request<pdpb::PutStoreRequest>,
    ) -> Result<Response<pdpb::PutStoreResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let (store, traits) = (request.store.unwrap_or_default(), request.traits);
        let (id, address) = (store.id, store.address.clone());
        let outcome = self
            .state
            .change(|cluster, ids, now_ms| {
                check_issued(ids, [store.id])?;
                Ok(((), cluster.put_store(now_ms, store, traits.as_ref())?))
            })
            .await;
        match &outcome {
            Ok(()) => tracing::info!(store_id = id, address, "store registered"),
            Err(error) => tracing::warn!(store_id = id, address, %error, "store refused"),
        }
        let (header, ()) = self.split(outcome)?;
        Ok(Response::new(pdpb::PutStoreResponse { header }))
    }

    async fn get_all_stores(
        &self,
        request: Request<pdpb::GetAllStoresRequest>,
    ) -> Result<Response<pdpb::GetAllStoresResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let (header, stores) = self.look_up(|cluster| {
            let is_wanted =
                |state| !request.exclude_tombstone_stores || state != kvproto::metapb::StoreState::Tombstone;
            let stores = cluster.basic().stores().filter(|store| is_wanted(store.meta.state()));
            Ok(stores.map(StoreInfo::to_wire).collect())
        })?;
        Ok(Response::new(pdpb::GetAllStoresResponse { header, stores }))
    }

    async fn store_heartbeat(
        &self,
        request: Request<pdpb::StoreHeartbeatRequest>,
    ) -> Result<Response<pdpb::StoreHeartbeatResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        self.state.metrics.store_heartbeats.inc();
        let stats = request.stats.unwrap_or_default();
        let outcome = self
            .state
            .change(|cluster, ids, now_ms| {
                let (state, out) = cluster.store_heartbeat(now_ms, stats, ids)?;
                Ok((state as i32, out))
            })
            .await;
        let (header, state) = self.split(outcome)?;
        Ok(Response::new(pdpb::StoreHeartbeatResponse { header, state, ..Default::default() }))
    }

    async fn get_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Result<Response<pdpb::GetRegionResponse>, Status> {
        let request = request.into_inner();
        let header = request.header.as_ref();
        self.region_of_key(header, |c| c.basic().regions().by_key(&request.region_key)).await
    }

    async fn get_prev_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Result<Response<pdpb::GetRegionResponse>, Status> {
        let request = request.into_inner();
        self.region_response(request.header.as_ref(), |c| {
            c.basic().regions().prev_of_key(&request.region_key)
        })
    }

    async fn get_region_by_id(
        &self,
        request: Request<pdpb::GetRegionByIdRequest>,
    ) -> Result<Response<pdpb::GetRegionResponse>, Status> {
        let request = request.into_inner();
        self.region_response(request.header.as_ref(), |c| c.basic().regions().get(request.region_id))
    }

    async fn scan_regions(
        &self,
        request: Request<pdpb::ScanRegionsRequest>,
    ) -> Result<Response<pdpb::ScanRegionsResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let found = self.scan(&request.start_key, &request.end_key, limit);
        let (header, regions) = self.split(found.map_err(ChangeError::Cluster))?;
        Ok(Response::new(pdpb::ScanRegionsResponse {
            header,
            region_metas: regions.iter().filter_map(|region| region.region.clone()).collect(),
            leaders: regions.iter().map(|region| region.leader.unwrap_or_default()).collect(),
            regions,
        }))
    }

    async fn batch_scan_regions(
        &self,
        request: Request<pdpb::BatchScanRegionsRequest>,
    ) -> Result<Response<pdpb::BatchScanRegionsResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let (header, regions) = self.split(self.batch_scan(&request).map_err(ChangeError::Cluster))?;
        Ok(Response::new(pdpb::BatchScanRegionsResponse { header, regions }))
    }

    async fn get_operator(
        &self,
        request: Request<pdpb::GetOperatorRequest>,
    ) -> Result<Response<pdpb::GetOperatorResponse>, Status> {
        self.tell_operator(request.into_inner()).await
    }

    async fn scatter_region(
        &self,
        request: Request<pdpb::ScatterRegionRequest>,
    ) -> Result<Response<pdpb::ScatterRegionResponse>, Status> {
        self.spread(request.into_inner()).await
    }

    async fn split_regions(
        &self,
        request: Request<pdpb::SplitRegionsRequest>,
    ) -> Result<Response<pdpb::SplitRegionsResponse>, Status> {
        self.split_at_keys(request.into_inner()).await
    }

    async fn split_and_scatter_regions(
        &self,
        request: Request<pdpb::SplitAndScatterRegionsRequest>,
    ) -> Result<Response<pdpb::SplitAndScatterRegionsResponse>, Status> {
        self.split_and_spread(request.into_inner()).await
    }

    async fn ask_split(
        &self,
        request: Request<pdpb::AskSplitRequest>,
    ) -> Result<Response<pdpb::AskSplitResponse>, Status> {
        self.ask_one_split(request.into_inner()).await
    }

    async fn report_split(
        &self,
        request: Request<pdpb::ReportSplitRequest>,
    ) -> Result<Response<pdpb::ReportSplitResponse>, Status> {
        self.take_split_in_two(request.into_inner()).await
    }

    async fn ask_batch_split(
        &self,
        request: Request<pdpb::AskBatchSplitRequest>,
    ) -> Result<Response<pdpb::AskBatchSplitResponse>, Status> {
        self.ask_many_splits(request.into_inner()).await
    }

    async fn report_batch_split(
        &self,
        request: Request<pdpb::ReportBatchSplitRequest>,
    ) -> Result<Response<pdpb::ReportBatchSplitResponse>, Status> {
        self.take_split(request.into_inner()).await
    }

    async fn get_cluster_config(
        &self,
        request: Request<pdpb::GetClusterConfigRequest>,
    ) -> Result<Response<pdpb::GetClusterConfigResponse>, Status> {
        self.check(request.get_ref().header.as_ref())?;
        let (header, found) = self.look_up(|cluster| {
            let max_peer_count = cluster.config().max_replicas as u32;
            let meta = kvproto::metapb::Cluster { id: cluster.id(), max_peer_count };
            Ok(Some((meta, cluster.traits().copied())))
        })?;
        let (cluster, traits) = found.map_or((None, None), |(cluster, traits)| (Some(cluster), traits));
        Ok(Response::new(pdpb::GetClusterConfigResponse { header, cluster, traits }))
    }

    async fn get_cluster_info(
        &self,
        _request: Request<pdpb::GetClusterInfoRequest>,
    ) -> Result<Response<pdpb::GetClusterInfoResponse>, Status> {
        Ok(Response::new(pdpb::GetClusterInfoResponse {
            header: Some(self.state.header()),
            service_modes: vec![pdpb::ServiceMode::PdSvcMode as i32],
            tso_urls: Vec::new(),
        }))
    }

    /// No cluster of this program is restored from snapshots of disks.
    async fn is_snapshot_recovering(
        &self,
        request: Request<pdpb::IsSnapshotRecoveringRequest>,
    ) -> Result<Response<pdpb::IsSnapshotRecoveringResponse>, Status> {
        self.check(request.get_ref().header.as_ref())?;
        let header = Some(self.state.header());
        Ok(Response::new(pdpb::IsSnapshotRecoveringResponse { header, marked: false }))
    }

    async fn get_gc_safe_point(
        &self,
        request: Request<pdpb::GetGcSafePointRequest>,
    ) -> Result<Response<pdpb::GetGcSafePointResponse>, Status> {
        self.safe_point(request.into_inner()).await
    }

    async fn update_gc_safe_point(
        &self,
        request: Request<pdpb::UpdateGcSafePointRequest>,
    ) -> Result<Response<pdpb::UpdateGcSafePointResponse>, Status> {
        self.raise_safe_point(request.into_inner()).await
    }

    async fn update_service_gc_safe_point(
        &self,
        request: Request<pdpb::UpdateServiceGcSafePointRequest>,
    ) -> Result<Response<pdpb::UpdateServiceGcSafePointResponse>, Status> {
        self.take_service_safe_point(request.into_inner()).await
    }

    async fn advance_txn_safe_point(
        &self,
        request: Request<pdpb::AdvanceTxnSafePointRequest>,
    ) -> Result<Response<pdpb::AdvanceTxnSafePointResponse>, Status> {
        self.move_txn_safe_point(request.into_inner()).await
    }

    async fn advance_gc_safe_point(
        &self,
        request: Request<pdpb::AdvanceGcSafePointRequest>,
    ) -> Result<Response<pdpb::AdvanceGcSafePointResponse>, Status> {
        self.move_gc_safe_point(request.into_inner()).await
    }

    async fn set_gc_barrier(
        &self,
        request: Request<pdpb::SetGcBarrierRequest>,
    ) -> Result<Response<pdpb::SetGcBarrierResponse>, Status> {
        self.put_barrier(request.into_inner()).await
    }

    async fn delete_gc_barrier(
        &self,
        request: Request<pdpb::DeleteGcBarrierRequest>,
    ) -> Result<Response<pdpb::DeleteGcBarrierResponse>, Status> {
        self.drop_barrier(request.into_inner()).await
    }

    async fn set_global_gc_barrier(
        &self,
        request: Request<pdpb::SetGlobalGcBarrierRequest>,
    ) -> Result<Response<pdpb::SetGlobalGcBarrierResponse>, Status> {
        self.put_global_barrier(request.into_inner()).await
    }

    async fn delete_global_gc_barrier(
        &self,
        request: Request<pdpb::DeleteGlobalGcBarrierRequest>,
    ) -> Result<Response<pdpb::DeleteGlobalGcBarrierResponse>, Status> {
        self.drop_global_barrier(request.into_inner()).await
    }

    async fn get_gc_state(
        &self,
        request: Request<pdpb::GetGcStateRequest>,
    ) -> Result<Response<pdpb::GetGcStateResponse>, Status> {
        self.gc_state(request.into_inner()).await
    }

    async fn get_all_keyspaces_gc_states(
        &self,
        request: Request<pdpb::GetAllKeyspacesGcStatesRequest>,
    ) -> Result<Response<pdpb::GetAllKeyspacesGcStatesResponse>, Status> {
        self.gc_states(request.into_inner()).await
    }

    async fn get_external_timestamp(
        &self,
        request: Request<pdpb::GetExternalTimestampRequest>,
    ) -> Result<Response<pdpb::GetExternalTimestampResponse>, Status> {
        self.external_timestamp(request.into_inner()).await
    }

    async fn set_external_timestamp(
        &self,
        request: Request<pdpb::SetExternalTimestampRequest>,
    ) -> Result<Response<pdpb::SetExternalTimestampResponse>, Status> {
        self.raise_external_timestamp(request.into_inner()).await
    }

    async fn get_min_ts(
        &self,
        request: Request<pdpb::GetMinTsRequest>,
    ) -> Result<Response<pdpb::GetMinTsResponse>, Status> {
        self.min_ts(request.into_inner()).await
    }

    async fn tso(
        &self,
        request: Request<Streaming<pdpb::TsoRequest>>,
    ) -> Result<Response<Self::TsoStream>, Status> {
        let served = self.state.metrics.timestamps.clone();
        let answers = self.state.tso.serve(request.into_inner(), self.state.header(), served);
        let stopping = self.state.stopping.clone().cancelled_owned();
        Ok(Response::new(Box::pin(until_not_leader(answers, stopping))))
    }

    async fn region_heartbeat(
        &self,
        request: Request<Streaming<pdpb::RegionHeartbeatRequest>>,
    ) -> Result<Response<Self::RegionHeartbeatStream>, Status> {
        let (sender, commands) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(Reporter::new(self.state.clone(), sender).run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(commands)))
    }
}
