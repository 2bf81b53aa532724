//! Scatters regions: spreads the replicas and leaders of a group of regions over the stores, each region of it where
//! the group has the fewest so far.
//!
//! Owns the count of every group, for a while: a group is scattered by several requests. It does not look at the
//! balance of the whole cluster; the schedulers do that afterwards.

use std::collections::BTreeMap;

use super::operator::{Operator, Purpose, builder};
use super::{View, filter, order};
use crate::core::region::RegionInfo;
use crate::id::IdSource;

const PURPOSE: Purpose = Purpose::admin("scatter-region");
/// How many groups are remembered, and how long after their last use.
const GROUPS_MAX: usize = 256;
const GROUP_MS: u64 = 5 * 60_000;

#[derive(Debug, Default)]
struct Group {
    peers: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    used_ms: u64,
}

fn count(counts: &BTreeMap<u64, u64>, store: u64) -> u64 {
    counts.get(&store).copied().unwrap_or(0)
}

/// See the module.
#[derive(Debug, Default)]
pub struct Groups(BTreeMap<String, Group>);

/// Where a region of a group is to go.
#[derive(Debug)]
pub struct Plan {
    /// None when the region is well placed.
    pub operator: Option<Operator>,
    group: String,
    stores: Vec<u64>,
    leader: u64,
}

impl Groups {
    /// Finds the places of a region of the group.
    pub fn plan(
        &self,
        view: &View<'_>,
        region: &RegionInfo,
        group: &str,
        ids: &mut dyn IdSource,
    ) -> Result<Plan, String> {
        let leads = region.leader_store().filter(|_| filter::is_settled(view, region));
        let leads = leads.ok_or("it has missing, surplus or unhealthy replicas")?;
        let empty = Group::default();
        let counts = self.0.get(group).filter(|group| is_fresh(group, view.now_ms)).unwrap_or(&empty);
        let fits = view.cluster.stores().filter(|store| filter::accepts_peer(view, region, store));
        let mut free: Vec<u64> = fits.map(|store| store.meta.id).collect();
        let (mut stores, mut moves) = (Vec::new(), Vec::new());
        for peer in &region.meta.peers {
            let stay = (count(&counts.peers, peer.store_id), 0, peer.store_id);
            let goals = free.iter().map(|store| (count(&counts.peers, *store), 1, *store));
            let (_, _, goal) = goals.min().map_or(stay, |goal| goal.min(stay));
            stores.push(goal);
            if goal != peer.store_id {
                free.retain(|store| *store != goal);
                moves.push((*peer, order::new_peer(view, region, goal, ids)?));
            }
        }
        let may_lead = |store: &&u64| {
            **store == leads
                || view.cluster.store(**store).is_some_and(|s| filter::store_accepts_leaders(view, s))
        };
        let fewest = |store: &&u64| (count(&counts.leaders, **store), **store != leads, **store);
        let leader = stores.iter().filter(may_lead).min_by_key(fewest).copied().unwrap_or(leads);
        let operator = builder::move_peers(view, region, PURPOSE, &moves, Some(leader));
        Ok(Plan { operator, group: group.to_string(), stores, leader })
    }

    /// Counts a region whose plan is carried out.
    pub fn count(&mut self, plan: &Plan, now_ms: u64) {
        self.0.retain(|_, group| is_fresh(group, now_ms));
        if self.0.len() >= GROUPS_MAX
            && !self.0.contains_key(&plan.group)
            && let Some(oldest) = self.0.iter().min_by_key(|(_, group)| group.used_ms).map(|(k, _)| k.clone())
        {
            self.0.remove(&oldest);
        }
        let group = self.0.entry(plan.group.clone()).or_default();
        group.used_ms = now_ms;
        for store in &plan.stores {
            *group.peers.entry(*store).or_default() += 1;
        }
        *group.leaders.entry(plan.leader).or_default() += 1;
    }
}

fn is_fresh(group: &Group, now_ms: u64) -> bool {
    now_ms.saturating_sub(group.used_ms) <= GROUP_MS
}
