//! The standard gRPC health service: SERVING once the store is ready.

use std::sync::Arc;

use kvproto::health::health_check_response::ServingStatus;
use kvproto::health::health_server::{Health, HealthServer};
use kvproto::health::{HealthCheckRequest, HealthCheckResponse};
use tonic::{Request, Response, Status};

use crate::storage::store::Store;

/// Answers for a store.
pub struct StoreHealth {
    store: Arc<dyn Store>,
}

/// The service for a store.
pub fn service(store: Arc<dyn Store>) -> HealthServer<StoreHealth> {
    HealthServer::new(StoreHealth { store })
}

#[tonic::async_trait]
impl Health for StoreHealth {
    /// One answer for every service name: they stand and fall together.
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = match self.store.not_ready().is_empty() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        Ok(Response::new(HealthCheckResponse { status: status as i32 }))
    }
}
