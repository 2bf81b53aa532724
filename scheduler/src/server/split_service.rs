//! Splits over gRPC: ids for new regions, and reports of what came out.
//!
//! Ids are handed out only from the durable window. Those of a split that then fails are lost, never used twice.

use std::sync::Arc;

use kvproto::{metapb, pdpb};
use tonic::{Response, Status};

use super::grpc_service::GrpcService;
use super::state::{ChangeError, State};

type Reply<T> = Result<Response<T>, Status>;

impl GrpcService {
    pub(super) async fn ask_many_splits(
        &self,
        request: pdpb::AskBatchSplitRequest,
    ) -> Reply<pdpb::AskBatchSplitResponse> {
        self.check(request.header.as_ref())?;
        let region = request.region.unwrap_or_default();
        let (header, ids) = self.split(split_ids(&self.state, &region, request.split_count).await)?;
        Ok(Response::new(pdpb::AskBatchSplitResponse { header, ids }))
    }

    pub(super) async fn ask_one_split(
        &self,
        request: pdpb::AskSplitRequest,
    ) -> Reply<pdpb::AskSplitResponse> {
        self.check(request.header.as_ref())?;
        let region = request.region.unwrap_or_default();
        let (header, ids) = self.split(split_ids(&self.state, &region, 1).await)?;
        let pdpb::SplitId { new_region_id, new_peer_ids } = ids.into_iter().next().unwrap_or_default();
        Ok(Response::new(pdpb::AskSplitResponse { header, new_region_id, new_peer_ids }))
    }

    pub(super) async fn take_split(
        &self,
        request: pdpb::ReportBatchSplitRequest,
    ) -> Reply<pdpb::ReportBatchSplitResponse> {
        self.check(request.header.as_ref())?;
        let (header, ()) = self.split(report(&self.state, request.regions).await)?;
        Ok(Response::new(pdpb::ReportBatchSplitResponse { header }))
    }

    pub(super) async fn take_split_in_two(
        &self,
        request: pdpb::ReportSplitRequest,
    ) -> Reply<pdpb::ReportSplitResponse> {
        self.check(request.header.as_ref())?;
        let regions = request.left.into_iter().chain(request.right).collect();
        let (header, ()) = self.split(report(&self.state, regions).await)?;
        Ok(Response::new(pdpb::ReportSplitResponse { header }))
    }
}

/// Ids for `count` new regions, each with a peer for every peer of the region.
async fn split_ids(
    state: &Arc<State>,
    region: &metapb::Region,
    count: u32,
) -> Result<Vec<pdpb::SplitId>, ChangeError> {
    let each = state.read(|cluster, _| cluster.check_split(region, count))?;
    let last = state.alloc_ids(u64::from(count) * each).await?;
    let mut next = last + 1 - u64::from(count) * each;
    let mut take = || {
        next += 1;
        next - 1
    };
    let ids = (0..count).map(|_| pdpb::SplitId {
        new_region_id: take(),
        new_peer_ids: region.peers.iter().map(|_| take()).collect(),
    });
    Ok(ids.collect())
}

async fn report(state: &Arc<State>, regions: Vec<metapb::Region>) -> Result<(), ChangeError> {
    let made: Vec<u64> = regions.iter().map(|region| region.id).collect();
    state
        .change(|cluster, ids, now_ms| Ok(((), cluster.report_split(now_ms, regions, ids)?)))
        .await
        .inspect(|()| tracing::info!(regions = ?made, "region split"))
}
