//! What clients and tools ask of a region's peers besides data: who leads, up to where a replica must have applied
//! before it may answer, and to divide the region.
//!
//! Holds no state.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvproto::kvrpcpb as pb;
use kvproto::limits::MAX_KEY_BYTES;
use kvproto::{key, key::BoundaryForm};
use tonic::Status;

use super::convert::{region_context, region_error};
use super::kv_service::Shared;
use crate::engine::Cf;
use crate::error::{RegionError, RegionResult};
use crate::raftstore::meta::region_view::RegionView;
use crate::storage::{RegionContext, callback};
use crate::txn::commands::delete_range;
use crate::txn::range::clamp;
use crate::txn::raw::KeyCheck;

/// How often a range to be destroyed is looked at again while its regions change, and the pause before.
const DESTROY_ATTEMPTS: usize = 50;
const DESTROY_PAUSE: Duration = Duration::from_millis(100);
/// Cuts that one request may ask for.
const SPLIT_KEYS_MAX: usize = 256;

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

/// Removes a range, transactional and raw, from all regions that are led here, and answers when that is done. Regions
/// led elsewhere are for the stores that lead them: clients ask every store.
pub async fn unsafe_destroy_range(
    shared: &Shared,
    request: pb::UnsafeDestroyRangeRequest,
) -> pb::UnsafeDestroyRangeResponse {
    for attempt in 0..DESTROY_ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(DESTROY_PAUSE).await;
        }
        match destroy_range(shared, &request.start_key, &request.end_key).await {
            Ok(true) => return pb::UnsafeDestroyRangeResponse::default(),
            // Nobody is known to lead one of its regions: it may be led here in a moment.
            Ok(false) => {}
            // It was divided or has moved: the next look finds its parts, or that it is another store's.
            Err(
                RegionError::EpochNotMatch { .. } | RegionError::NotLeader { .. } | RegionError::StaleCommand,
            ) => {}
            Err(error) => {
                return pb::UnsafeDestroyRangeResponse { error: error.to_string(), ..Default::default() };
            }
        }
    }
    let error = "regions of the range kept changing or have no leader: try again".into();
    pb::UnsafeDestroyRangeResponse { error, ..Default::default() }
}

/// Removes the range from the regions led here. False when there is one that nobody is known to lead.
async fn destroy_range(shared: &Shared, start: &Bytes, end: &Bytes) -> RegionResult<bool> {
    let storage = shared.store.storage();
    let mut all_led = true;
    // A peer that has no data yet does not know its range.
    let with_data = |view: &Arc<RegionView>| !view.meta.region.peers.is_empty();
    for view in shared.store.views().all().into_iter().filter(with_data) {
        let Some((lower, upper)) = clamp(&view.meta, start, end) else { continue };
        all_led &= view.leader.is_some();
        if !view.is_leader() {
            continue;
        }
        let ctx = RegionContext {
            region_id: view.meta.region.id,
            version: view.meta.version(),
            conf_ver: view.meta.conf_ver(),
            ..RegionContext::default()
        };
        let mut write = delete_range(&view.meta, start, end);
        write.delete_range(Cf::Raw, &lower, &upper);
        let (done, outcome) = callback();
        storage.write(&ctx, write, done);
        outcome.await?;
    }
    Ok(all_led)
}

/// Divides a region before each of the request's keys, and answers with the regions that stand in its place.
pub async fn split_region(
    shared: &Shared,
    request: pb::SplitRegionRequest,
) -> Result<pb::SplitRegionResponse, Status> {
    let keys = match split_keys(shared, &request) {
        Ok(keys) => keys,
        Err(abort) => {
            let errors = vec![pb::KeyError { abort, ..Default::default() }];
            return Ok(pb::SplitRegionResponse { errors, ..Default::default() });
        }
    };
    let ctx = request.context.as_ref().map(region_context).unwrap_or_default();
    let divided = shared.store.split(&ctx, keys);
    let divided = divided.ok_or_else(|| Status::unimplemented("a standalone server divides no regions"))?;
    Ok(match divided.await {
        Ok(regions) => described(regions),
        Err(error) => {
            pb::SplitRegionResponse { region_error: Some(region_error(error)), ..Default::default() }
        }
    })
}

/// The keys to cut at, or what is wrong with them.
fn split_keys(shared: &Shared, request: &pb::SplitRegionRequest) -> Result<Vec<Bytes>, String> {
    #[expect(deprecated, reason = "clients of the field once sent a single key")]
    let keys = match request.split_keys.as_slice() {
        [] => std::slice::from_ref(&request.split_key),
        keys => keys,
    };
    if keys.len() > SPLIT_KEYS_MAX {
        return Err(format!("{} split keys at once: give at most {SPLIT_KEYS_MAX}", keys.len()));
    }
    let cluster = shared.store.storage().api();
    let plain = BoundaryForm::of_raw(cluster) == BoundaryForm::Plain;
    if plain && !request.is_raw_kv {
        return Err("this cluster keeps raw keys of API V1: set is_raw_kv".into());
    }
    for one in keys {
        if one.is_empty() {
            return Err("a region cannot be divided before the empty key".into());
        }
        let max = MAX_KEY_BYTES + key::PREFIX_LEN;
        if one.len() > max {
            return Err(format!("a split key of {} bytes is over the limit of {max}", one.len()));
        }
        if request.is_raw_kv {
            KeyCheck { cluster }.key(one).map_err(|refusal| refusal.to_string())?;
        }
    }
    Ok(keys.to_vec())
}

fn described(regions: Vec<kvproto::metapb::Region>) -> pb::SplitRegionResponse {
    #[expect(deprecated, reason = "older clients look at these when a region was cut in two")]
    match regions.as_slice() {
        [left, right] => pb::SplitRegionResponse {
            left: Some(left.clone()),
            right: Some(right.clone()),
            regions,
            ..Default::default()
        },
        _ => pb::SplitRegionResponse { regions, ..Default::default() },
    }
}
