//! What clients and tools ask of a region's peers besides data: who leads, and up to where a replica must have
//! applied before it may answer.
//!
//! Holds no state.

use kvproto::kvrpcpb as pb;

use super::convert::{region_context, region_error};
use super::kv_service::Shared;
use crate::error::{RegionError, RegionResult};
use crate::storage::callback;

/// The regions for which this store knows the named leader, in the named term and epoch.
pub fn check_leader(shared: &Shared, request: &pb::CheckLeaderRequest) -> pb::CheckLeaderResponse {
    let views = shared.store.views();
    let is_known = |info: &&pb::LeaderInfo| {
        views.get(info.region_id).is_some_and(|(_, view)| {
            view.term == info.term
                && view.leader.is_some_and(|leader| leader.id == info.peer_id)
                && view.meta.region.region_epoch == info.region_epoch
        })
    };
    let regions = request.regions.iter().filter(is_known).map(|info| info.region_id).collect();
    pb::CheckLeaderResponse { regions, ts: request.ts }
}

/// An index that is applied on the leader, and not below what was committed when the request arrived.
pub async fn read_index(shared: &Shared, request: &pb::ReadIndexRequest) -> pb::ReadIndexResponse {
    match confirmed_index(shared, request).await {
        Ok(read_index) => pb::ReadIndexResponse { read_index, ..Default::default() },
        Err(error) => pb::ReadIndexResponse { region_error: Some(region_error(error)), ..Default::default() },
    }
}

async fn confirmed_index(shared: &Shared, request: &pb::ReadIndexRequest) -> RegionResult<u64> {
    let ctx = request.context.as_ref().map(region_context).unwrap_or_default();
    let (done, confirmed) = callback();
    shared.store.storage().confirm(&ctx, done);
    confirmed.await?;
    // Read after the confirmation: whatever was committed before it is applied by now.
    let status = shared.store.inspect(ctx.region_id).await;
    status.map(|status| status.applied_index).ok_or_else(|| RegionError::ReadIndexNotReady {
        region_id: ctx.region_id,
        reason: "its peer does not say how far it has applied".into(),
    })
}
