//! How fast a store may gain and lose replicas: a bucket of tokens for each store and direction.
//!
//! A replica costs one token; a small one a fifth of it, an empty one nothing, as the field has it. Buckets fill
//! with time and hold one token, or what comes in a second if that is more. Numbers are whole: a token is
//! `TOKEN` units, and a rate of one a minute brings one unit in a millisecond.

use std::collections::BTreeMap;

use super::View;
use super::operator::step::Step;
use super::operator::{Operator, Priority};
use crate::core::region::RegionInfo;

const TOKEN: u64 = 60_000;
/// Up to this size, in MiB, a replica is empty.
const EMPTY_MIB: u64 = 1;
/// Up to this size, in MiB, a replica is small.
const SMALL_MIB: u64 = 20;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitKind {
    AddPeer,
    RemovePeer,
}

/// Replicas a minute that a store may gain and lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimit {
    pub add_peer: u64,
    pub remove_peer: u64,
}

impl Default for StoreLimit {
    fn default() -> StoreLimit {
        StoreLimit { add_peer: 15, remove_peer: 15 }
    }
}

impl StoreLimit {
    fn of(self, kind: LimitKind) -> u64 {
        match kind {
            LimitKind::AddPeer => self.add_peer,
            LimitKind::RemovePeer => self.remove_peer,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    units: u64,
    at_ms: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct StoreLimits {
    buckets: BTreeMap<(u64, LimitKind), Bucket>,
}

impl StoreLimits {
    /// Whether the store may gain or lose a replica of `region` now.
    pub fn has_room(&self, view: &View<'_>, store_id: u64, kind: LimitKind, region: &RegionInfo) -> bool {
        let rate = view.config.store_limit.of(kind);
        self.units(store_id, kind, rate, view.now_ms) >= cost(region.approximate_size)
    }

    /// Whether the operator's additions and removals may all begin now. Somebody's order always may.
    pub fn admits(&self, operator: &Operator, limit: StoreLimit, now_ms: u64) -> bool {
        let cost = cost(operator.region_mib());
        operator.kind().priority() == Priority::Urgent
            || uses(operator)
                .all(|(store_id, kind)| self.units(store_id, kind, limit.of(kind), now_ms) >= cost)
    }

    /// Takes the tokens of an operator that begins.
    pub fn charge(&mut self, operator: &Operator, limit: StoreLimit, now_ms: u64) {
        let cost = cost(operator.region_mib());
        if cost == 0 {
            return;
        }
        for (store_id, kind) in uses(operator) {
            let units = self.units(store_id, kind, limit.of(kind), now_ms).saturating_sub(cost);
            self.buckets.insert((store_id, kind), Bucket { units, at_ms: now_ms });
        }
    }

    fn units(&self, store_id: u64, kind: LimitKind, rate: u64, now_ms: u64) -> u64 {
        let capacity = TOKEN.max(rate.saturating_mul(1000));
        match self.buckets.get(&(store_id, kind)) {
            None => capacity,
            Some(bucket) => {
                let gained = rate.saturating_mul(now_ms.saturating_sub(bucket.at_ms));
                bucket.units.saturating_add(gained).min(capacity)
            }
        }
    }
}

fn cost(region_mib: u64) -> u64 {
    if region_mib <= EMPTY_MIB {
        0
    } else if region_mib <= SMALL_MIB {
        TOKEN / 5
    } else {
        TOKEN
    }
}

fn uses(operator: &Operator) -> impl Iterator<Item = (u64, LimitKind)> {
    operator.steps_left().iter().filter_map(|step| match *step {
        Step::AddLearner { store_id, .. } => Some((store_id, LimitKind::AddPeer)),
        Step::RemovePeer { store_id, .. } => Some((store_id, LimitKind::RemovePeer)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::operator::{OperatorKind, Purpose};
    use kvproto::metapb;

    fn adding(mib: u64, kind: OperatorKind) -> Operator {
        let meta = metapb::Region { id: 1, ..Default::default() };
        let region = RegionInfo { meta, approximate_size: mib, ..Default::default() };
        let steps = vec![Step::AddLearner { store_id: 4, peer_id: 9 }];
        Operator::new(Purpose { name: "test", kind }, &region, steps, 0)
    }

    /// How many replicas of this size begin at once, up to ten.
    fn burst(limits: &mut StoreLimits, mib: u64, now_ms: u64) -> usize {
        let (operator, limit) = (adding(mib, OperatorKind::Region), StoreLimit::default());
        let admitted = (0..10).take_while(|_| {
            let admits = limits.admits(&operator, limit, now_ms);
            if admits {
                limits.charge(&operator, limit, now_ms);
            }
            admits
        });
        admitted.count()
    }

    #[test]
    fn fifteen_a_minute_is_one_in_four_seconds() {
        let mut limits = StoreLimits::default();
        assert_eq!(burst(&mut limits, 100, 0), 1);
        assert_eq!(burst(&mut limits, 100, 3999), 0);
        assert_eq!(burst(&mut limits, 100, 4000), 1);
        assert_eq!(burst(&mut limits, 100, 60_000), 1, "a bucket does not overflow");
    }

    #[test]
    fn small_replicas_are_cheap_empty_ones_free_and_orders_are_obeyed() {
        let mut limits = StoreLimits::default();
        assert_eq!(burst(&mut limits, 20, 0), 5);
        assert_eq!(burst(&mut limits, 1, 0), 10);
        let order = adding(100, OperatorKind::Admin);
        assert!(limits.admits(&order, StoreLimit::default(), 0));
    }

    #[test]
    fn a_higher_rate_allows_what_comes_in_a_second() {
        let limit = StoreLimit { add_peer: 300, remove_peer: 15 };
        let mut limits = StoreLimits::default();
        let operator = adding(100, OperatorKind::Replica);
        let mut begun = 0;
        while limits.admits(&operator, limit, 0) {
            limits.charge(&operator, limit, 0);
            begun += 1;
        }
        assert_eq!(begun, 5);
    }
}
