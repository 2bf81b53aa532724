//! The scheduler service of a standalone server: one store, its regions, the DEFAULT keyspace, timestamps.
//!
//! It answers what clients ask a scheduler for, truthfully and for ever the same. Stores cannot join: what only
//! they ask is UNIMPLEMENTED. Timestamps are in `standalone_tso`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kvproto::kvrpcpb::ApiVersion;
use kvproto::pdpb::pd_server::Pd;
use kvproto::{keyspacepb as ks, metapb, pdpb};
use tonic::{Request, Response, Status, Streaming};

use super::standalone_tso::{Tso, TsoError};
use crate::storage::standalone_storage::{STORE_ID, regions};

/// The only keyspace.
const KEYSPACE: &str = "DEFAULT";

/// What the service knows. Clones share it.
#[derive(Clone)]
pub struct StandalonePd {
    shared: Arc<Shared>,
}

struct Shared {
    cluster_id: u64,
    api: ApiVersion,
    /// The address clients reach this service at.
    url: String,
    store: metapb::Store,
    /// In key order, without gaps.
    regions: Vec<metapb::Region>,
    tso: Arc<Tso>,
}

type Reply<T> = Result<Response<T>, Status>;

impl StandalonePd {
    /// Speaks for the store at `store_addr`; `pd_addr` is where this service is reached.
    pub fn new(
        cluster_id: u64,
        api: ApiVersion,
        pd_addr: SocketAddr,
        store_addr: &str,
        status_addr: &str,
        tso: Arc<Tso>,
    ) -> StandalonePd {
        let store = metapb::Store {
            id: STORE_ID,
            address: store_addr.into(),
            peer_address: store_addr.into(),
            status_address: status_addr.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            node_state: metapb::NodeState::Serving as i32,
            start_timestamp: crate::clock::unix_seconds() as i64,
            ..Default::default()
        };
        let url = format!("http://{pd_addr}");
        let regions = regions(api);
        StandalonePd { shared: Arc::new(Shared { cluster_id, api, url, store, regions, tso }) }
    }

    fn header(&self) -> Option<pdpb::ResponseHeader> {
        Some(pdpb::ResponseHeader { cluster_id: self.shared.cluster_id, error: None })
    }

    fn error_header(&self, kind: pdpb::ErrorType, message: String) -> Option<pdpb::ResponseHeader> {
        let error = Some(pdpb::Error { r#type: kind as i32, message });
        Some(pdpb::ResponseHeader { cluster_id: self.shared.cluster_id, error })
    }

    /// Refuses a request that was meant for another cluster; 0 is a client that does not know yet.
    fn check(&self, header: &Option<pdpb::RequestHeader>) -> Result<(), Status> {
        let (need, got) = (self.shared.cluster_id, header.as_ref().map_or(0, |h| h.cluster_id));
        if got != 0 && got != need {
            let message = format!("mismatch cluster id, need {need} but got {got}");
            return Err(Status::failed_precondition(message));
        }
        Ok(())
    }

    fn member(&self) -> pdpb::Member {
        let client_urls = vec![self.shared.url.clone()];
        pdpb::Member { name: "standalone".into(), member_id: 1, client_urls, ..Default::default() }
    }

    /// Position of the region that holds `key`: the last one that starts at or before it.
    fn position(&self, key: &Bytes) -> usize {
        self.shared.regions.partition_point(|region| region.start_key <= *key).saturating_sub(1)
    }

    /// Up to `limit` regions that touch `[start, end)`; an empty `end` is no bound, a limit below 1 neither.
    fn scan<'a>(&'a self, start: &Bytes, end: &'a Bytes, limit: i32) -> &'a [metapb::Region] {
        let regions = &self.shared.regions[self.position(start)..];
        if !end.is_empty() && end <= start {
            return &[];
        }
        let within = regions.partition_point(|region| end.is_empty() || region.start_key < *end);
        let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        &regions[..within.min(limit)]
    }

    fn found(&self, region: Option<&metapb::Region>) -> Response<pdpb::GetRegionResponse> {
        Response::new(pdpb::GetRegionResponse {
            header: self.header(),
            region: region.cloned(),
            leader: region.and_then(leader),
            ..Default::default()
        })
    }

    fn store_only<T>(&self) -> Reply<T> {
        Err(Status::unimplemented("a standalone server is a cluster of one: other stores cannot join it"))
    }

    fn raw_only<T>(&self) -> Reply<T> {
        Err(Status::unimplemented("a standalone server keeps no timestamps of transactions"))
    }

    /// The keyspace, which only a v2 cluster has.
    fn keyspace(&self, wanted: bool) -> Option<ks::KeyspaceMeta> {
        let v2 = self.shared.api == ApiVersion::V2;
        (v2 && wanted).then(|| ks::KeyspaceMeta {
            name: KEYSPACE.into(),
            state: ks::KeyspaceState::Enabled as i32,
            keyspace: Some(ks::keyspace_meta::Keyspace::Id(0)),
            ..Default::default()
        })
    }

    fn keyspace_reply(&self, wanted: bool, asked: String) -> Response<ks::LoadKeyspaceResponse> {
        let keyspace = self.keyspace(wanted);
        let header = match &keyspace {
            Some(_) => self.header(),
            None => {
                let message =
                    format!("there is no keyspace {asked}: a standalone server has {KEYSPACE} with api v2");
                self.error_header(pdpb::ErrorType::EntryNotFound, message)
            }
        };
        Response::new(ks::LoadKeyspaceResponse { header, keyspace })
    }
}

/// The only peer of a region.
fn leader(region: &metapb::Region) -> Option<metapb::Peer> {
    region.peers.first().copied()
}

fn described(region: &metapb::Region) -> pdpb::Region {
    pdpb::Region { region: Some(region.clone()), leader: leader(region), ..Default::default() }
}

#[tonic::async_trait]
impl Pd for StandalonePd {
    async fn get_members(&self, _: Request<pdpb::GetMembersRequest>) -> Reply<pdpb::GetMembersResponse> {
        let member = self.member();
        Ok(Response::new(pdpb::GetMembersResponse {
            header: self.header(),
            members: vec![member.clone()],
            leader: Some(member.clone()),
            etcd_leader: Some(member),
            ..Default::default()
        }))
    }

    async fn is_bootstrapped(
        &self,
        request: Request<pdpb::IsBootstrappedRequest>,
    ) -> Reply<pdpb::IsBootstrappedResponse> {
        self.check(&request.get_ref().header)?;
        Ok(Response::new(pdpb::IsBootstrappedResponse { header: self.header(), bootstrapped: true }))
    }

    async fn get_store(&self, request: Request<pdpb::GetStoreRequest>) -> Reply<pdpb::GetStoreResponse> {
        let request = request.into_inner();
        self.check(&request.header)?;
        if request.store_id != STORE_ID {
            let message = format!("there is no store {}; the only one is {STORE_ID}", request.store_id);
            let header = self.error_header(pdpb::ErrorType::Unknown, message);
            // Clients of the field look into the store before they look at the error.
            let store = Some(metapb::Store::default());
            return Ok(Response::new(pdpb::GetStoreResponse { header, store, ..Default::default() }));
        }
        let store = Some(self.shared.store.clone());
        Ok(Response::new(pdpb::GetStoreResponse { header: self.header(), store, ..Default::default() }))
    }

    async fn get_all_stores(
        &self,
        request: Request<pdpb::GetAllStoresRequest>,
    ) -> Reply<pdpb::GetAllStoresResponse> {
        self.check(&request.get_ref().header)?;
        let stores = vec![self.shared.store.clone()];
        Ok(Response::new(pdpb::GetAllStoresResponse { header: self.header(), stores }))
    }

    async fn get_region(&self, request: Request<pdpb::GetRegionRequest>) -> Reply<pdpb::GetRegionResponse> {
        let request = request.get_ref();
        self.check(&request.header)?;
        Ok(self.found(self.shared.regions.get(self.position(&request.region_key))))
    }

    async fn get_prev_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Reply<pdpb::GetRegionResponse> {
        let request = request.get_ref();
        self.check(&request.header)?;
        let before = self.position(&request.region_key).checked_sub(1);
        Ok(self.found(before.and_then(|before| self.shared.regions.get(before))))
    }

    async fn get_region_by_id(
        &self,
        request: Request<pdpb::GetRegionByIdRequest>,
    ) -> Reply<pdpb::GetRegionResponse> {
        self.check(&request.get_ref().header)?;
        let wanted = request.get_ref().region_id;
        Ok(self.found(self.shared.regions.iter().find(|region| region.id == wanted)))
    }

    async fn scan_regions(
        &self,
        request: Request<pdpb::ScanRegionsRequest>,
    ) -> Reply<pdpb::ScanRegionsResponse> {
        let request = request.into_inner();
        self.check(&request.header)?;
        let found = self.scan(&request.start_key, &request.end_key, request.limit);
        Ok(Response::new(pdpb::ScanRegionsResponse {
            header: self.header(),
            region_metas: found.to_vec(),
            leaders: found.iter().filter_map(leader).collect(),
            regions: found.iter().map(described).collect(),
        }))
    }

    async fn batch_scan_regions(
        &self,
        request: Request<pdpb::BatchScanRegionsRequest>,
    ) -> Reply<pdpb::BatchScanRegionsResponse> {
        let request = request.into_inner();
        self.check(&request.header)?;
        let mut found: Vec<&metapb::Region> = Vec::new();
        for range in &request.ranges {
            // Ranges next to each other may share a region: it is listed once.
            let last = found.last().map(|region| region.id);
            let touched = self.scan(&range.start_key, &range.end_key, 0);
            found.extend(touched.iter().filter(|region| Some(region.id) != last));
        }
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
        found.truncate(limit.unwrap_or(usize::MAX));
        let regions = found.into_iter().map(described).collect();
        Ok(Response::new(pdpb::BatchScanRegionsResponse { header: self.header(), regions }))
    }

    async fn get_cluster_config(
        &self,
        request: Request<pdpb::GetClusterConfigRequest>,
    ) -> Reply<pdpb::GetClusterConfigResponse> {
        self.check(&request.get_ref().header)?;
        let cluster = Some(metapb::Cluster { id: self.shared.cluster_id, max_peer_count: 1 });
        let traits = pdpb::ClusterTraits { api_version: self.shared.api as i32, ..Default::default() };
        Ok(Response::new(pdpb::GetClusterConfigResponse {
            header: self.header(),
            cluster,
            traits: Some(traits),
        }))
    }

    async fn get_cluster_info(
        &self,
        _: Request<pdpb::GetClusterInfoRequest>,
    ) -> Reply<pdpb::GetClusterInfoResponse> {
        Ok(Response::new(pdpb::GetClusterInfoResponse {
            header: self.header(),
            service_modes: vec![pdpb::ServiceMode::PdSvcMode as i32],
            ..Default::default()
        }))
    }

    type TsoStream = BoxStream<'static, Result<pdpb::TsoResponse, Status>>;

    async fn tso(&self, request: Request<Streaming<pdpb::TsoRequest>>) -> Reply<Self::TsoStream> {
        let state = Some((self.clone(), request.into_inner()));
        let answers = stream::unfold(state, |state| async {
            let (pd, mut requests) = state?;
            let answer = match requests.next().await? {
                Ok(request) => pd.timestamps(request).await,
                Err(status) => Err(status),
            };
            let next = answer.is_ok().then_some((pd, requests));
            Some((answer, next))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn bootstrap(&self, _: Request<pdpb::BootstrapRequest>) -> Reply<pdpb::BootstrapResponse> {
        let message = "a standalone server is bootstrapped from the start".into();
        let header = self.error_header(pdpb::ErrorType::AlreadyBootstrapped, message);
        Ok(Response::new(pdpb::BootstrapResponse { header }))
    }

    async fn alloc_id(&self, _: Request<pdpb::AllocIdRequest>) -> Reply<pdpb::AllocIdResponse> {
        self.store_only()
    }

    async fn put_store(&self, _: Request<pdpb::PutStoreRequest>) -> Reply<pdpb::PutStoreResponse> {
        self.store_only()
    }

    async fn store_heartbeat(
        &self,
        _: Request<pdpb::StoreHeartbeatRequest>,
    ) -> Reply<pdpb::StoreHeartbeatResponse> {
        self.store_only()
    }

    async fn get_operator(&self, _: Request<pdpb::GetOperatorRequest>) -> Reply<pdpb::GetOperatorResponse> {
        self.store_only()
    }

    async fn scatter_region(
        &self,
        _: Request<pdpb::ScatterRegionRequest>,
    ) -> Reply<pdpb::ScatterRegionResponse> {
        self.store_only()
    }

    async fn split_regions(
        &self,
        _: Request<pdpb::SplitRegionsRequest>,
    ) -> Reply<pdpb::SplitRegionsResponse> {
        self.store_only()
    }

    async fn split_and_scatter_regions(
        &self,
        _: Request<pdpb::SplitAndScatterRegionsRequest>,
    ) -> Reply<pdpb::SplitAndScatterRegionsResponse> {
        self.store_only()
    }

    async fn ask_split(&self, _: Request<pdpb::AskSplitRequest>) -> Reply<pdpb::AskSplitResponse> {
        self.store_only()
    }

    async fn report_split(&self, _: Request<pdpb::ReportSplitRequest>) -> Reply<pdpb::ReportSplitResponse> {
        self.store_only()
    }

    async fn ask_batch_split(
        &self,
        _: Request<pdpb::AskBatchSplitRequest>,
    ) -> Reply<pdpb::AskBatchSplitResponse> {
        self.store_only()
    }

    async fn report_batch_split(
        &self,
        _: Request<pdpb::ReportBatchSplitRequest>,
    ) -> Reply<pdpb::ReportBatchSplitResponse> {
        self.store_only()
    }

    async fn is_snapshot_recovering(
        &self,
        request: Request<pdpb::IsSnapshotRecoveringRequest>,
    ) -> Reply<pdpb::IsSnapshotRecoveringResponse> {
        self.check(&request.get_ref().header)?;
        Ok(Response::new(pdpb::IsSnapshotRecoveringResponse { header: self.header(), marked: false }))
    }

    async fn get_min_ts(&self, request: Request<pdpb::GetMinTsRequest>) -> Reply<pdpb::GetMinTsResponse> {
        let request =
            pdpb::TsoRequest { header: request.into_inner().header, count: 1, ..Default::default() };
        let taken = self.timestamps(request).await?;
        Ok(Response::new(pdpb::GetMinTsResponse { header: taken.header, timestamp: taken.timestamp }))
    }

    async fn get_gc_safe_point(
        &self,
        _: Request<pdpb::GetGcSafePointRequest>,
    ) -> Reply<pdpb::GetGcSafePointResponse> {
        self.raw_only()
    }

    async fn update_gc_safe_point(
        &self,
        _: Request<pdpb::UpdateGcSafePointRequest>,
    ) -> Reply<pdpb::UpdateGcSafePointResponse> {
        self.raw_only()
    }

    async fn update_service_gc_safe_point(
        &self,
        _: Request<pdpb::UpdateServiceGcSafePointRequest>,
    ) -> Reply<pdpb::UpdateServiceGcSafePointResponse> {
        self.raw_only()
    }

    async fn advance_txn_safe_point(
        &self,
        _: Request<pdpb::AdvanceTxnSafePointRequest>,
    ) -> Reply<pdpb::AdvanceTxnSafePointResponse> {
        self.raw_only()
    }

    async fn advance_gc_safe_point(
        &self,
        _: Request<pdpb::AdvanceGcSafePointRequest>,
    ) -> Reply<pdpb::AdvanceGcSafePointResponse> {
        self.raw_only()
    }

    async fn set_gc_barrier(
        &self,
        _: Request<pdpb::SetGcBarrierRequest>,
    ) -> Reply<pdpb::SetGcBarrierResponse> {
        self.raw_only()
    }

    async fn delete_gc_barrier(
        &self,
        _: Request<pdpb::DeleteGcBarrierRequest>,
    ) -> Reply<pdpb::DeleteGcBarrierResponse> {
        self.raw_only()
    }

    async fn set_global_gc_barrier(
        &self,
        _: Request<pdpb::SetGlobalGcBarrierRequest>,
    ) -> Reply<pdpb::SetGlobalGcBarrierResponse> {
        self.raw_only()
    }

    async fn delete_global_gc_barrier(
        &self,
        _: Request<pdpb::DeleteGlobalGcBarrierRequest>,
    ) -> Reply<pdpb::DeleteGlobalGcBarrierResponse> {
        self.raw_only()
    }

    async fn get_gc_state(&self, _: Request<pdpb::GetGcStateRequest>) -> Reply<pdpb::GetGcStateResponse> {
        self.raw_only()
    }

    async fn get_all_keyspaces_gc_states(
        &self,
        _: Request<pdpb::GetAllKeyspacesGcStatesRequest>,
    ) -> Reply<pdpb::GetAllKeyspacesGcStatesResponse> {
        self.raw_only()
    }

    async fn get_external_timestamp(
        &self,
        _: Request<pdpb::GetExternalTimestampRequest>,
    ) -> Reply<pdpb::GetExternalTimestampResponse> {
        self.raw_only()
    }

    async fn set_external_timestamp(
        &self,
        _: Request<pdpb::SetExternalTimestampRequest>,
    ) -> Reply<pdpb::SetExternalTimestampResponse> {
        self.raw_only()
    }

    type RegionHeartbeatStream = BoxStream<'static, Result<pdpb::RegionHeartbeatResponse, Status>>;

    async fn region_heartbeat(
        &self,
        _: Request<Streaming<pdpb::RegionHeartbeatRequest>>,
    ) -> Reply<Self::RegionHeartbeatStream> {
        self.store_only()
    }
}

impl StandalonePd {
    async fn timestamps(&self, request: pdpb::TsoRequest) -> Result<pdpb::TsoResponse, Status> {
        self.check(&request.header)?;
        let last = self.shared.tso.take(request.count).await.map_err(|error| match error {
            TsoError::Count(_) => Status::invalid_argument(error.to_string()),
            TsoError::Save(_) => Status::unavailable(error.to_string()),
        })?;
        let timestamp = Some(last.into());
        Ok(pdpb::TsoResponse { header: self.header(), count: request.count, timestamp })
    }
}

#[tonic::async_trait]
impl ks::keyspace_server::Keyspace for StandalonePd {
    async fn load_keyspace(
        &self,
        request: Request<ks::LoadKeyspaceRequest>,
    ) -> Reply<ks::LoadKeyspaceResponse> {
        let request = request.into_inner();
        self.check(&request.header)?;
        Ok(self.keyspace_reply(request.name == KEYSPACE, request.name))
    }

    async fn load_keyspace_by_id(
        &self,
        request: Request<ks::LoadKeyspaceByIdRequest>,
    ) -> Reply<ks::LoadKeyspaceResponse> {
        let request = request.into_inner();
        self.check(&request.header)?;
        // An id of 0 may be left out on the wire.
        let ks::load_keyspace_by_id_request::Keyspace::Id(id) =
            request.keyspace.unwrap_or(ks::load_keyspace_by_id_request::Keyspace::Id(0));
        Ok(self.keyspace_reply(id == 0, id.to_string()))
    }

    async fn get_all_keyspaces(
        &self,
        request: Request<ks::GetAllKeyspacesRequest>,
    ) -> Reply<ks::GetAllKeyspacesResponse> {
        let request = request.into_inner();
        self.check(&request.header)?;
        let from_first = matches!(
            request.start_keyspace,
            None | Some(ks::get_all_keyspaces_request::StartKeyspace::StartId(0))
        );
        let keyspaces = self.keyspace(from_first).into_iter().collect();
        Ok(Response::new(ks::GetAllKeyspacesResponse { header: self.header(), keyspaces }))
    }
}
