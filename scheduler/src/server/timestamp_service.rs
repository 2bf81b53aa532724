//! Timestamps that clients share over gRPC besides those of the oracle: the one below which old versions may be
//! gone, the one that applications agreed on, and one that is below all later ones.
//!
//! The first two are durable before whoever raised them is answered, are only raised, and are kept among the keys
//! of clients, where clients of the field also look for them. A timestamp from the future is refused.

use kvproto::{pdpb, ts::Timestamp};
use tonic::{Response, Status};

use super::grpc_service::{GrpcService, unavailable};
use super::state::ChangeError;
use crate::core::client_keys::{EXTERNAL_TIMESTAMP, SAVED_SAFE_POINT};
use crate::error::ClusterError;

type Reply<T> = Result<Response<T>, Status>;

impl GrpcService {
    pub(super) async fn min_ts(&self, request: pdpb::GetMinTsRequest) -> Reply<pdpb::GetMinTsResponse> {
        self.check(request.header.as_ref())?;
        let timestamp = self.state.tso.allocate(1).await.map_err(unavailable)?;
        let header = Some(self.state.header());
        Ok(Response::new(pdpb::GetMinTsResponse { header, timestamp: Some(timestamp) }))
    }

    /// Raises one of the numbers; returns what stands there now.
    async fn raise(&self, key: &'static [u8], to: u64) -> Result<Result<u64, ChangeError>, Status> {
        let now = self.state.tso.allocate(1).await.map_err(unavailable)?;
        let now = u64::try_from(now.physical).ok().zip(u64::try_from(now.logical).ok());
        let now = now.and_then(|(physical, logical)| Timestamp::compose(physical, logical));
        if now.is_none_or(|now| to > now.get()) {
            let what = format!("{to} is in the future: use a timestamp of this cluster's oracle");
            return Ok(Err(ClusterError::InvalidTimestamp(what).into()));
        }
        Ok(self.state.change(|cluster, _, _| cluster.raise_client_number(key, to)).await)
    }

    pub(super) async fn safe_point(
        &self,
        request: pdpb::GetGcSafePointRequest,
    ) -> Reply<pdpb::GetGcSafePointResponse> {
        self.check(request.header.as_ref())?;
        let (header, safe_point) =
            self.look_up(|cluster| Ok(cluster.client_keys().number(SAVED_SAFE_POINT)))?;
        Ok(Response::new(pdpb::GetGcSafePointResponse { header, safe_point }))
    }

    pub(super) async fn raise_safe_point(
        &self,
        request: pdpb::UpdateGcSafePointRequest,
    ) -> Reply<pdpb::UpdateGcSafePointResponse> {
        self.check(request.header.as_ref())?;
        let raised = self.raise(SAVED_SAFE_POINT, request.safe_point).await?;
        let (header, new_safe_point) = self.split(raised)?;
        Ok(Response::new(pdpb::UpdateGcSafePointResponse { header, new_safe_point }))
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
        let raised = self.raise(EXTERNAL_TIMESTAMP, asked).await?;
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
