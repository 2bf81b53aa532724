//! Regions of key ranges, as clients ask for them.
//!
//! Holds no state. The cluster's lock is given up between chunks.

use bytes::Bytes;
use kvproto::pdpb;

use super::grpc_service::GrpcService;
use crate::core::region::RegionInfo;
use crate::error::ClusterError;

/// How many regions are copied while the cluster is locked.
const SCAN_CHUNK: usize = 1024;

/// Whether regions in key order leave no gap in the range; when the limit has cut them off, in what they reach.
fn covers(regions: &[pdpb::Region], range: &pdpb::KeyRange, is_cut: bool) -> bool {
    let mut reached = Some(&range.start_key);
    for region in regions.iter().filter_map(|region| region.region.as_ref()) {
        if reached.is_none_or(|reached| region.start_key > *reached) {
            return false;
        }
        // The empty end key is the end of the key space.
        reached = Some(&region.end_key).filter(|end| !end.is_empty());
    }
    is_cut || reached.is_none_or(|reached| !range.end_key.is_empty() && *reached >= range.end_key)
}

/// A region as clients get it.
pub(super) fn wire_region(region: &RegionInfo) -> pdpb::Region {
    pdpb::Region {
        region: Some(region.meta.clone()),
        leader: region.leader,
        down_peers: region.down_peers.clone(),
        pending_peers: region.pending_peers.clone(),
        buckets: None,
    }
}

impl GrpcService {
    /// Regions of a range, at most `limit` (0: all). The lock is given up between chunks, so a region that splits
    /// meanwhile may be seen in two pieces, as in any scan by several calls.
    pub(super) fn scan(
        &self,
        start: &Bytes,
        end: &Bytes,
        limit: usize,
    ) -> Result<Vec<pdpb::Region>, ClusterError> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let (mut regions, mut from) = (Vec::new(), start.clone());
        loop {
            let want = SCAN_CHUNK.min(limit - regions.len());
            let chunk: Vec<pdpb::Region> = self.state.read(|cluster, _| {
                cluster.require_bootstrapped()?;
                let found = cluster.basic().regions().scan(&from, end).take(want);
                Ok::<_, ClusterError>(found.map(wire_region).collect())
            })?;
            let is_last = chunk.len() < want;
            if let Some(region) = chunk.last().and_then(|last| last.region.as_ref()) {
                from = region.end_key.clone();
            }
            regions.extend(chunk);
            let is_at_end = from.is_empty() || !end.is_empty() && from >= *end;
            if is_last || is_at_end || regions.len() >= limit {
                return Ok(regions);
            }
        }
    }

    pub(super) fn batch_scan(
        &self,
        request: &pdpb::BatchScanRegionsRequest,
    ) -> Result<Vec<pdpb::Region>, ClusterError> {
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let mut regions: Vec<pdpb::Region> = Vec::new();
        for range in &request.ranges {
            if limit > 0 && regions.len() >= limit {
                break;
            }
            let left = if limit == 0 { 0 } else { limit - regions.len() };
            let mut found = self.scan(&range.start_key, &range.end_key, left)?;
            let is_cut = left > 0 && found.len() >= left;
            if request.contain_all_key_range && !covers(&found, range, is_cut) {
                return Err(ClusterError::RangeHasGaps);
            }
            // Ranges next to each other may share a region: it is listed once.
            let id_of = |region: &pdpb::Region| region.region.as_ref().map(|meta| meta.id);
            if regions
                .last()
                .is_some_and(|last| found.first().is_some_and(|first| id_of(first) == id_of(last)))
            {
                found.remove(0);
            }
            regions.extend(found);
        }
        Ok(regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(ranges: &[(&'static str, &'static str)]) -> Vec<pdpb::Region> {
        let region = |(start, end): &(&'static str, &'static str)| {
            let meta = kvproto::metapb::Region {
                start_key: Bytes::from_static(start.as_bytes()),
                end_key: Bytes::from_static(end.as_bytes()),
                ..Default::default()
            };
            pdpb::Region { region: Some(meta), ..Default::default() }
        };
        ranges.iter().map(region).collect()
    }

    #[test]
    fn gaps_are_found_at_both_ends_and_between() {
        let range = |start: &'static str, end: &'static str| pdpb::KeyRange {
            start_key: start.into(),
            end_key: end.into(),
        };
        let whole = regions(&[("", "b"), ("b", "d"), ("d", "")]);
        assert!(covers(&whole, &range("", ""), false) && covers(&whole, &range("a", "z"), false));
        let holed = regions(&[("b", "d"), ("e", "f")]);
        assert!(!covers(&holed, &range("b", "f"), false), "between");
        assert!(covers(&holed[..1], &range("b", "d"), false));
        assert!(!covers(&holed[..1], &range("a", "d"), false), "at the start");
        assert!(!covers(&holed[..1], &range("b", "e"), false), "at the end");
        assert!(!covers(&holed[..1], &range("b", ""), false), "at the end of the key space");
        assert!(covers(&holed[..1], &range("b", ""), true), "the rest was not asked for");
        assert!(!covers(&[], &range("a", "b"), false));
    }
}
