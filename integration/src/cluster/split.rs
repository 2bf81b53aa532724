//! Dividing regions of a running cluster, as a client does it: the scheduler says where each key lives, and the
//! region's leader is asked to cut there, until every cut is a region's beginning.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvclient::{RegionInfo, SchedulerClient};
use kvproto::key::BoundaryForm;
use kvproto::kvrpcpb::ApiVersion;

use super::regions::Regions;

/// Keys that a store takes in one request.
const KEYS_AT_ONCE: usize = 256;
/// How long one round is waited for before the next.
const PAUSE: Duration = Duration::from_millis(20);

/// Cuts keyspaces of a v2 cluster at these keys, as they are on the wire (mode byte, keyspace, key). Returns when the
/// scheduler knows every new region and its leader.
///
/// # Errors
/// When that is not so within `within`, with what was in the way last.
pub async fn split_at(scheduler: &SchedulerClient, keys: &[Bytes], within: Duration) -> Result<(), String> {
    let deadline = Instant::now() + within;
    let url = scheduler.leader_url();
    let cluster = Regions::connect(url.trim_start_matches("http://")).await.map_err(|e| e.to_string())?;
    let mut last_error = String::new();
    loop {
        let regions = regions(scheduler).await?;
        let missing = missing(&regions, keys);
        if missing.is_empty() && regions.iter().all(|r| r.leader.is_some()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{} of {} cuts are missing; {last_error}", missing.len(), keys.len()));
        }
        for keys in by_region(&regions, missing) {
            if let Err(error) = cluster.split(&keys[..keys.len().min(KEYS_AT_ONCE)]).await {
                last_error = error.to_string();
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// All regions, as the scheduler knows them.
///
/// # Errors
/// When the scheduler does not answer.
pub async fn regions(scheduler: &SchedulerClient) -> Result<Vec<RegionInfo>, String> {
    scheduler.scan_regions(Bytes::new(), Bytes::new(), 0).await.map_err(|e| e.to_string())
}

/// Regions led by each store.
pub fn leaders(regions: &[RegionInfo]) -> BTreeMap<u64, usize> {
    let mut led = BTreeMap::new();
    for leader in regions.iter().filter_map(|r| r.leader) {
        *led.entry(leader.store_id).or_default() += 1;
    }
    led
}

/// The boundary before a key.
fn boundary(key: &Bytes) -> Bytes {
    BoundaryForm::of_raw(ApiVersion::V2).boundary(key.clone())
}

fn missing<'a>(regions: &[RegionInfo], keys: &'a [Bytes]) -> Vec<&'a Bytes> {
    let mut starts: Vec<&Bytes> = regions.iter().map(|r| &r.region.start_key).collect();
    starts.sort();
    keys.iter().filter(|key| starts.binary_search(&&boundary(key)).is_err()).collect()
}

/// The keys, those of one region together.
fn by_region(regions: &[RegionInfo], keys: Vec<&Bytes>) -> Vec<Vec<Bytes>> {
    let mut work: BTreeMap<usize, Vec<Bytes>> = BTreeMap::new();
    for key in keys {
        let boundary = boundary(key);
        let holds = |r: &RegionInfo| {
            r.region.start_key <= boundary && (r.region.end_key.is_empty() || boundary < r.region.end_key)
        };
        if let Some(at) = regions.iter().position(holds) {
            work.entry(at).or_default().push(key.clone());
        }
    }
    work.into_values().collect()
}
