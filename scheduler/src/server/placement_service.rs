//! Operators over gRPC: what is being done to a region, splits at given keys, and the spreading of regions.
//!
//! A split is an order to the region's leader. The answer comes when regions begin at the keys, or when the time is
//! up, and says how many do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvproto::pdpb;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Response, Status};

use super::grpc_service::GrpcService;
use super::state::{ChangeError, State};
use crate::cluster::Cluster;
use crate::error::ClusterError;
use crate::schedule::operator::Cancel;
use crate::schedule::operator_controller::Outcome;
use crate::schedule::order::{Order, SPLIT_KEYS_MAX};

/// The most keys, and regions, of one request.
const KEYS_MAX: usize = 4096;
/// How long a request waits for its splits, for regions that cannot be spread yet, and how often it looks.
const SPLIT_WAIT: Duration = Duration::from_secs(30);
const SCATTER_WAIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

type Reply<T> = Result<Response<T>, Status>;

impl GrpcService {
    pub(super) async fn tell_operator(
        &self,
        request: pdpb::GetOperatorRequest,
    ) -> Reply<pdpb::GetOperatorResponse> {
        self.check(request.header.as_ref())?;
        let found = self.state.read(|cluster, _| operator_of(cluster, request.region_id));
        let found = found.ok_or(ChangeError::Cluster(ClusterError::NoOperator(request.region_id)));
        let (header, found) = self.split(found)?;
        Ok(Response::new(pdpb::GetOperatorResponse { header, ..found }))
    }

    pub(super) async fn spread(
        &self,
        request: pdpb::ScatterRegionRequest,
    ) -> Reply<pdpb::ScatterRegionResponse> {
        self.check(request.header.as_ref())?;
        #[expect(deprecated, reason = "old clients fill in the field for one region")]
        let one = match request.region_id {
            0 => request.region.as_ref().map(|region| region.id),
            id => Some(id),
        };
        let regions = match request.regions_id.is_empty() {
            true => one.into_iter().collect(),
            false => request.regions_id,
        };
        check_count(regions.len())?;
        let (failed_regions_id, why) = scatter(&self.state, &regions, &request.group).await?;
        let mut header = self.state.header();
        // One region that cannot be spread is an error; of several, the others are.
        header.error = why.filter(|_| regions.len() == 1).map(|error| error.to_wire());
        let finished_percentage = percent(regions.len() - failed_regions_id.len(), regions.len());
        Ok(Response::new(pdpb::ScatterRegionResponse {
            header: Some(header),
            finished_percentage,
            failed_regions_id,
        }))
    }

    pub(super) async fn split_at_keys(
        &self,
        request: pdpb::SplitRegionsRequest,
    ) -> Reply<pdpb::SplitRegionsResponse> {
        self.check(request.header.as_ref())?;
        check_count(request.split_keys.len())?;
        let asked = request.split_keys.len();
        let (header, regions_id) = self.split(split(&self.state, request.split_keys).await)?;
        let finished_percentage = percent(regions_id.len(), asked);
        Ok(Response::new(pdpb::SplitRegionsResponse { header, finished_percentage, regions_id }))
    }

    pub(super) async fn split_and_spread(
        &self,
        request: pdpb::SplitAndScatterRegionsRequest,
    ) -> Reply<pdpb::SplitAndScatterRegionsResponse> {
        self.check(request.header.as_ref())?;
        check_count(request.split_keys.len())?;
        let asked = request.split_keys.len();
        let (header, regions_id) = self.split(split(&self.state, request.split_keys).await)?;
        let (failed, _) = scatter(&self.state, &regions_id, &request.group).await?;
        Ok(Response::new(pdpb::SplitAndScatterRegionsResponse {
            header,
            split_finished_percentage: percent(regions_id.len(), asked),
            scatter_finished_percentage: percent(regions_id.len() - failed.len(), asked),
            regions_id,
        }))
    }
}

#[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
fn check_count(count: usize) -> Result<(), Status> {
    match count {
        1..=KEYS_MAX => Ok(()),
        _ => Err(Status::invalid_argument(format!("{count} keys or regions; name 1 to {KEYS_MAX}"))),
    }
}

fn percent(done: usize, of: usize) -> u64 {
    (done * 100 / of.max(1)) as u64
}

/// The operator that runs on the region, or the one that ended last.
fn operator_of(cluster: &Cluster, region_id: u64) -> Option<pdpb::GetOperatorResponse> {
    let described = |name: &'static str, kind: &'static str, status: pdpb::OperatorStatus| {
        let (desc, kind) = (Bytes::from_static(name.as_bytes()), Bytes::from_static(kind.as_bytes()));
        pdpb::GetOperatorResponse { header: None, region_id, desc, kind, status: status as i32 }
    };
    if let Some(running) = cluster.operator(region_id) {
        return Some(described(running.name(), running.kind().name(), pdpb::OperatorStatus::Running));
    }
    let ended = cluster.operator_records().find(|record| record.region_id == region_id)?;
    let status = match &ended.outcome {
        Outcome::Finished => pdpb::OperatorStatus::Success,
        Outcome::Cancelled(Cancel::TimedOut { .. }) => pdpb::OperatorStatus::Timeout,
        Outcome::Cancelled(Cancel::Replaced { .. }) => pdpb::OperatorStatus::Replace,
        Outcome::Cancelled(_) => pdpb::OperatorStatus::Cancel,
    };
    Some(described(ended.name, ended.kind.name(), status))
}

/// Spreads regions, and returns those that cannot be spread, with the last reason. A region that is busy, or whose
/// replicas are not sound yet because it was just split, is tried again for a while.
async fn scatter(
    state: &Arc<State>,
    regions: &[u64],
    group: &str,
) -> Result<(Vec<u64>, Option<ClusterError>), Status> {
    let deadline = Instant::now() + SCATTER_WAIT;
    let mut looks = looks();
    let (mut left, mut hopeless) = (regions.to_vec(), Vec::new());
    loop {
        let (mut failed, mut why) = (Vec::new(), None);
        for region_id in std::mem::take(&mut left) {
            let done = state
                .change(|cluster, ids, now_ms| Ok(((), cluster.scatter(now_ms, region_id, group, ids)?)))
                .await;
            match done {
                Ok(()) => continue,
                Err(ChangeError::Kv(error)) => return Err(super::grpc_service::unavailable(error)),
                Err(ChangeError::Cluster(error)) => {
                    let may_pass = matches!(error, ClusterError::OperatorRefused { .. });
                    if may_pass {
                        failed.push(region_id)
                    } else {
                        hopeless.push(region_id)
                    }
                    why = Some(error);
                }
            }
        }
        if failed.is_empty() || Instant::now() >= deadline {
            hopeless.extend(failed);
            return Ok((hopeless, why));
        }
        left = failed;
        looks.tick().await;
    }
}

fn looks() -> tokio::time::Interval {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Has regions split until they begin at the keys, and returns those that do, once in key order.
async fn split(state: &Arc<State>, mut keys: Vec<Bytes>) -> Result<Vec<u64>, ChangeError> {
    keys.sort();
    keys.dedup();
    let deadline = Instant::now() + SPLIT_WAIT;
    let mut looks = looks();
    loop {
        looks.tick().await;
        let (begun, to_split) = state.read(|cluster, _| {
            cluster.require_bootstrapped()?;
            Ok::<_, ClusterError>(look(cluster, &keys))
        })?;
        if begun.len() == keys.len() || Instant::now() >= deadline {
            return Ok(begun);
        }
        for (region_id, keys) in to_split {
            let order = Order::Split { keys };
            let ordered =
                state.change(|cluster, ids, now_ms| Ok(((), cluster.order(now_ms, region_id, order, ids)?)));
            match ordered.await {
                // Busy, or gone: the next look finds out.
                Ok(()) | Err(ChangeError::Cluster(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The regions that begin at keys, and for the other keys the regions to split, unless they have an operator.
fn look(cluster: &Cluster, keys: &[Bytes]) -> (Vec<u64>, BTreeMap<u64, Vec<Bytes>>) {
    let (mut begun, mut to_split) = (Vec::new(), BTreeMap::<u64, Vec<Bytes>>::new());
    for key in keys {
        match cluster.basic().regions().by_key(key) {
            Some(region) if region.meta.start_key == *key => begun.push(region.id()),
            Some(region) if cluster.operator(region.id()).is_none() => {
                // The rest has its turn at the next look.
                let keys = to_split.entry(region.id()).or_default();
                if keys.len() < SPLIT_KEYS_MAX {
                    keys.push(key.clone());
                }
            }
            _ => {}
        }
    }
    (begun, to_split)
}
