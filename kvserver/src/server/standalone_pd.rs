//! The scheduler service of a standalone server: one store, one region, the DEFAULT keyspace, timestamps.
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
use crate::storage::standalone_storage::{REGION_ID, STORE_ID, peer, region};

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
    tso: Tso,
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
        tso: Tso,
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
        StandalonePd { shared: Arc::new(Shared { cluster_id, api, url, store, tso }) }
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

    fn found(&self, found: bool) -> Response<pdpb::GetRegionResponse> {
        let header = self.header();
        Response::new(match found {
            true => pdpb::GetRegionResponse {
                header,
                region: Some(region()),
                leader: Some(peer()),
                ..Default::default()
            },
            false => pdpb::GetRegionResponse { header, ..Default::default() },
        })
    }

    fn store_only<T>(&self) -> Reply<T> {
        Err(Status::unimplemented("a standalone server is a cluster of one: other stores cannot join it"))
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

/// Whether `[start, end)` has any key; an empty `end` is no bound.
fn some_keys(start: &Bytes, end: &Bytes) -> bool {
    end.is_empty() || start < end
}

fn whole_region() -> pdpb::Region {
    pdpb::Region { region: Some(region()), leader: Some(peer()), ..Default::default() }
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
        self.check(&request.get_ref().header)?;
        Ok(self.found(true))
    }

    /// There is no region before the one that covers everything.
    async fn get_prev_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Reply<pdpb::GetRegionResponse> {
        self.check(&request.get_ref().header)?;
        Ok(self.found(false))
    }

    async fn get_region_by_id(
        &self,
        request: Request<pdpb::GetRegionByIdRequest>,
    ) -> Reply<pdpb::GetRegionResponse> {
        self.check(&request.get_ref().header)?;
        Ok(self.found(request.get_ref().region_id == REGION_ID))
    }

    async fn scan_regions(
        &self,
        request: Request<pdpb::ScanRegionsRequest>,
    ) -> Reply<pdpb::ScanRegionsResponse> {
        let request = request.into_inner();
        self.check(&request.header)?;
        let mut reply = pdpb::ScanRegionsResponse { header: self.header(), ..Default::default() };
        if some_keys(&request.start_key, &request.end_key) {
            reply.region_metas.push(region());
            reply.leaders.push(peer());
            reply.regions.push(whole_region());
        }
        Ok(Response::new(reply))
    }

    async fn batch_scan_regions(
        &self,
        request: Request<pdpb::BatchScanRegionsRequest>,
    ) -> Reply<pdpb::BatchScanRegionsResponse> {
        let request = request.into_inner();
        self.check(&request.header)?;
        let any = request.ranges.iter().any(|r| some_keys(&r.start_key, &r.end_key));
        let regions = if any { vec![whole_region()] } else { Vec::new() };
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
