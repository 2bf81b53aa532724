//! Timestamps that clients share over gRPC besides those of the oracle: the one that applications agreed on, and one
//! that is below all later ones.
//!
//! The first is durable before whoever raised it is answered, and is only raised. A timestamp from the future is
//! refused.

use kvproto::{pdpb, ts::Timestamp};
use tonic::{Response, Status};

use super::grpc_service::{GrpcService, unavailable};
use crate::cluster::{Cluster, Present};
use crate::core::client_keys::EXTERNAL_TIMESTAMP;
use crate::error::ClusterError;

type Reply<T> = Result<Response<T>, Status>;

impl GrpcService {
    pub(super) async fn min_ts(&self, request: pdpb::GetMinTsRequest) -> Reply<pdpb::GetMinTsResponse> {
        self.check(request.header.as_ref())?;
        let timestamp = self.state.tso.allocate(1).await.map_err(unavailable)?;
        let header = Some(self.state.header());
        Ok(Response::new(pdpb::GetMinTsResponse { header, timestamp: Some(timestamp) }))
    }

    /// The oracle's present, to judge timestamps by.
    pub(super) async fn present(&self) -> Result<Present, Status> {
        let taken = self.state.tso.allocate(1).await.map_err(unavailable)?;
        let ts = Timestamp::try_from(&taken).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Present { now_ms: self.state.clock.now_ms(), ts })
    }

    pub(super) async fn external_timestamp(
        &self,
        request: pdpb::GetExternalTimestampRequest,
    ) -> Reply<pdpb::GetExternalTimestampResponse> {
        self.check(request.header.as_ref())?;
        let (header, timestamp) =
            self.look_up(|cluster| Ok(cluster.client_keys().number(EXTERNAL_TIMESTAMP)))?;
        Ok(Response::new(pdpb::GetExternalTimestampResponse { header, timestamp }))
    }

    pub(super) async fn raise_external_timestamp(
        &self,
        request: pdpb::SetExternalTimestampRequest,
    ) -> Reply<pdpb::SetExternalTimestampResponse> {
        self.check(request.header.as_ref())?;
        let asked = request.timestamp;
        let present = self.present().await?.ts.get();
        let change = |cluster: &mut Cluster| match asked > present {
            true => {
                let what = format!("{asked} is in the future: use a timestamp of this cluster's oracle");
                Err(ClusterError::InvalidTimestamp(what))
            }
            false => cluster.raise_client_number(EXTERNAL_TIMESTAMP, asked),
        };
        let raised = self.state.change(|cluster, _, _| change(cluster)).await;
        let raised = raised.and_then(|now| match now == asked {
            true => Ok(()),
            false => {
                let what = format!("{asked} is below {now}, which is set: it never goes back");
                Err(ClusterError::InvalidTimestamp(what).into())
            }
        });
        let (header, ()) = self.split(raised)?;
        Ok(Response::new(pdpb::SetExternalTimestampResponse { header }))
    }
}
