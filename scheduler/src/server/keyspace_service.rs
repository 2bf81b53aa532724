//! The smaller gRPC faces: `keyspacepb.Keyspace` and the health check.
//!
//! Holds no state.

use kvproto::health::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use kvproto::keyspacepb::{self, keyspace_server::Keyspace};
use tonic::{Request, Response, Status};

use super::grpc_service::GrpcService;

#[tonic::async_trait]
impl Keyspace for GrpcService {
    async fn load_keyspace(
        &self,
        request: Request<keyspacepb::LoadKeyspaceRequest>,
    ) -> Result<Response<keyspacepb::LoadKeyspaceResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let (header, keyspace) =
            self.look_up(|cluster| cluster.keyspace_by_name(&request.name).cloned().map(Some))?;
        Ok(Response::new(keyspacepb::LoadKeyspaceResponse { header, keyspace }))
    }

    async fn load_keyspace_by_id(
        &self,
        request: Request<keyspacepb::LoadKeyspaceByIdRequest>,
    ) -> Result<Response<keyspacepb::LoadKeyspaceResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let id = match request.keyspace {
            Some(keyspacepb::load_keyspace_by_id_request::Keyspace::Id(id)) => id,
            None => 0,
        };
        let (header, keyspace) = self.look_up(|cluster| cluster.keyspace_by_id(id).cloned().map(Some))?;
        Ok(Response::new(keyspacepb::LoadKeyspaceResponse { header, keyspace }))
    }

    async fn get_all_keyspaces(
        &self,
        request: Request<keyspacepb::GetAllKeyspacesRequest>,
    ) -> Result<Response<keyspacepb::GetAllKeyspacesResponse>, Status> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let start = match request.start_keyspace {
            Some(keyspacepb::get_all_keyspaces_request::StartKeyspace::StartId(id)) => id,
            None => 0,
        };
        let (header, keyspaces) =
            self.look_up(|cluster| Ok(cluster.keyspaces().list(start, request.limit).cloned().collect()))?;
        Ok(Response::new(keyspacepb::GetAllKeyspacesResponse { header, keyspaces }))
    }
}

#[tonic::async_trait]
impl kvproto::health::health_server::Health for GrpcService {
    async fn check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = match self.state.writer.failure() {
            Some(_) => ServingStatus::NotServing,
            None => ServingStatus::Serving,
        };
        Ok(Response::new(HealthCheckResponse { status: status as i32 }))
    }
}
