//! Splits: whether a region may be split now, and what the cluster takes from the report of a split.
//!
//! A split itself is the store's work. Invariants: a region that is being given other members is not split, since
//! its parts would inherit a half-made change; a report never takes the place of anything newer.

use kvproto::metapb;

use super::{Cluster, Output, scene};
use crate::coordinator::Scene;
use crate::core::region::RegionInfo;
use crate::error::ClusterError;
use crate::id::IdSource;

/// The most new regions that one request may ask for, and that one report may name.
pub const SPLIT_COUNT_MAX: u32 = 1024;
/// More peers than any region has: what is above comes from a broken caller, and would waste ids.
const PEERS_MAX: usize = 64;

impl Cluster {
    /// Checks that `count` new regions may be cut off the region, which the store describes as it knows it.
    /// Returns how many ids each new region needs: its own, and one for each peer.
    pub fn check_split(&self, region: &metapb::Region, count: u32) -> Result<u64, ClusterError> {
        self.require_bootstrapped()?;
        let id = region.id;
        let refuse = |reason: String| Err(ClusterError::SplitRefused { region_id: id, reason });
        if !(1..=SPLIT_COUNT_MAX).contains(&count) {
            return refuse(format!("{count} new regions; ask for 1 to {SPLIT_COUNT_MAX}"));
        }
        if !(1..=PEERS_MAX).contains(&region.peers.len()) {
            return refuse(format!("it comes with {} peers", region.peers.len()));
        }
        if self.config.halt_scheduling {
            return refuse("scheduling is halted (schedule.halt-scheduling)".into());
        }
        if !self.config.splits_enabled {
            return refuse("splits are switched off (schedule.enable-tikv-split-region)".into());
        }
        let known = self.basic.regions().get(id).ok_or(ClusterError::UnknownRegion(id))?;
        let epoch = region.region_epoch.unwrap_or_default();
        if epoch.version < known.version() || epoch.conf_ver < known.conf_ver() {
            let (version, conf_ver) = (known.version(), known.conf_ver());
            let (got_version, got_conf_ver) = (epoch.version, epoch.conf_ver);
            return refuse(format!(
                "its epoch {got_version}/{got_conf_ver} is older than the known {version}/{conf_ver}"
            ));
        }
        match self.operator(id).filter(|operator| operator.changes_members()) {
            Some(operator) => refuse(format!("it is being changed ({}); ask again later", operator.name())),
            None => Ok(1 + region.peers.len() as u64),
        }
    }

    /// Takes in what came out of a split, left to right. What is known already in this version or a newer one,
    /// because heartbeats were faster, is left as it is.
    pub fn report_split(
        &mut self,
        now_ms: u64,
        regions: Vec<metapb::Region>,
        ids: &mut dyn IdSource,
    ) -> Result<Output, ClusterError> {
        self.require_bootstrapped()?;
        let mut parts = regions.into_iter().map(RegionInfo::from_meta).collect::<Result<Vec<_>, _>>()?;
        check_parts(&parts)?;
        let former = |part: &RegionInfo| self.basic.regions().get(part.id());
        let parent = parts
            .iter()
            .find_map(|part| former(part).filter(|known| known.version() < part.version()))
            .cloned();
        // The parent's own heartbeat may have been faster than the report: where it is led is known all the same.
        let led_from = parts.iter().find_map(|part| former(part).and_then(RegionInfo::leader_store));
        parts.retain(|part| former(part).is_none_or(|known| known.version() < part.version()));
        if let Some(parent) = &parent {
            // The parent first: it shrinks, so that its parts do not cover it.
            parts.sort_by_key(|part| part.id() != parent.id());
        }
        let count = parts.len() as u64;
        let mut out = Output::default();
        for mut part in parts {
            part.leader = led_from.and_then(|store| part.peer_on(store)).copied();
            if let Some(parent) = &parent {
                inherit(&mut part, parent, count);
            }
            let id = part.id();
            match self.take_in(now_ms, part, &mut out) {
                Ok(()) => self.coordinator.drive(scene!(self, now_ms), id, ids, &mut out),
                // Something newer covers it: it has been split again.
                Err(ClusterError::Stale(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(out)
    }
}

/// The parts must adjoin each other.
fn check_parts(parts: &[RegionInfo]) -> Result<(), ClusterError> {
    let refuse = |reason: String| Err(ClusterError::InvalidSplit(reason));
    if !(2..=SPLIT_COUNT_MAX as usize + 1).contains(&parts.len()) {
        return refuse(format!("{} regions; report 2 to {}", parts.len(), SPLIT_COUNT_MAX + 1));
    }
    let adjoin = |pair: &&[RegionInfo]| {
        !pair[0].meta.end_key.is_empty() && pair[0].meta.end_key == pair[1].meta.start_key
    };
    match parts.windows(2).find(|pair| !adjoin(pair)) {
        Some(pair) => refuse(format!("region {} does not end where {} starts", pair[0].id(), pair[1].id())),
        None => Ok(()),
    }
}

/// Until its own heartbeat comes, a part is taken to have its share of the parent's data. (It is also taken to be led
/// from where its parent is led, since that peer is the first to campaign.)
fn inherit(part: &mut RegionInfo, parent: &RegionInfo, parts: u64) {
    if part.id() == parent.id() {
        part.term = parent.term;
    }
    part.approximate_size = parent.approximate_size.div_ceil(parts);
    part.approximate_keys = parent.approximate_keys.div_ceil(parts);
}
