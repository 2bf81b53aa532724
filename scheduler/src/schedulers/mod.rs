//! Schedulers look at the whole cluster and say which move would even it out, or empty a store of leaders. Pure.
//!
//! Owns which of them are there, until when each is paused, and which stores are kept free of leaders. A move is
//! proposed only when it makes the cluster strictly more even, so that a cluster that nobody changes settles.

pub mod balance_leader;
pub mod balance_region;
pub mod evict_leader;
pub mod evict_stopping_store;

use std::collections::{BTreeMap, BTreeSet};

use crate::id::IdSource;
use crate::kv::records::SchedulerRecord;
use crate::schedule::View;
use crate::schedule::operator::{Operator, OperatorKind};

/// A scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SchedulerName {
    EvictStoppingStore,
    EvictLeader,
    BalanceLeader,
    BalanceRegion,
}

impl SchedulerName {
    /// Every scheduler, the most urgent first.
    pub const ALL: [SchedulerName; 4] = [
        SchedulerName::EvictStoppingStore,
        SchedulerName::EvictLeader,
        SchedulerName::BalanceLeader,
        SchedulerName::BalanceRegion,
    ];

    /// The field's name.
    pub fn as_str(self) -> &'static str {
        match self {
            SchedulerName::EvictStoppingStore => "evict-stopping-store-scheduler",
            SchedulerName::EvictLeader => "evict-leader-scheduler",
            SchedulerName::BalanceLeader => "balance-leader-scheduler",
            SchedulerName::BalanceRegion => "balance-region-scheduler",
        }
    }

    /// The scheduler of that name.
    pub fn parse(name: &str) -> Option<SchedulerName> {
        SchedulerName::ALL.into_iter().find(|scheduler| scheduler.as_str() == name)
    }

    /// The kind of its operators.
    pub fn kind(self) -> OperatorKind {
        match self {
            SchedulerName::EvictStoppingStore | SchedulerName::EvictLeader => OperatorKind::Evict,
            SchedulerName::BalanceLeader => OperatorKind::Leader,
            SchedulerName::BalanceRegion => OperatorKind::Region,
        }
    }

    /// The most urgent move it wants, if any. `cursor` is where it last found a region; `ids` are for new peers.
    pub fn next(self, view: &View<'_>, cursor: &mut u64, ids: &mut dyn IdSource) -> Option<Operator> {
        match self {
            SchedulerName::EvictStoppingStore => evict_stopping_store::next(view, cursor),
            SchedulerName::EvictLeader => evict_leader::next(view, cursor),
            SchedulerName::BalanceLeader => balance_leader::next(view, cursor),
            SchedulerName::BalanceRegion => balance_region::next(view, cursor, ids),
        }
    }
}

/// A scheduler that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SchedulerState {
    /// It does nothing before this, milliseconds of the core's clock.
    pub paused_until_ms: u64,
    /// The stores that evict-leader-scheduler keeps free of leaders.
    pub stores: BTreeSet<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Schedulers {
    present: BTreeMap<SchedulerName, SchedulerState>,
}

impl Default for Schedulers {
    fn default() -> Schedulers {
        let present = SchedulerName::ALL.into_iter().filter(|name| *name != SchedulerName::EvictLeader);
        Schedulers { present: present.map(|name| (name, SchedulerState::default())).collect() }
    }
}

impl Schedulers {
    /// The schedulers that are there.
    pub fn present(&self) -> impl Iterator<Item = (SchedulerName, &SchedulerState)> {
        self.present.iter().map(|(name, state)| (*name, state))
    }

    /// The scheduler, when it is there.
    pub fn get(&self, name: SchedulerName) -> Option<&SchedulerState> {
        self.present.get(&name)
    }

    /// Whether the scheduler is there and not paused.
    pub fn is_active(&self, name: SchedulerName, now_ms: u64) -> bool {
        self.present.get(&name).is_some_and(|state| now_ms >= state.paused_until_ms)
    }

    /// Whether the store is to be kept free of leaders by order. A pause does not bring leaders back.
    pub fn evicts(&self, store_id: u64) -> bool {
        self.present.get(&SchedulerName::EvictLeader).is_some_and(|state| state.stores.contains(&store_id))
    }

    /// Sets or removes a scheduler, and returns the record of it.
    pub fn set(&mut self, name: SchedulerName, state: Option<SchedulerState>) -> SchedulerRecord {
        let record = SchedulerRecord {
            name: name.as_str().to_string(),
            is_removed: state.is_none(),
            paused_until_ms: state.as_ref().map_or(0, |state| state.paused_until_ms),
            stores: state.iter().flat_map(|state| state.stores.iter().copied()).collect(),
        };
        match state {
            Some(state) => self.present.insert(name, state),
            None => self.present.remove(&name),
        };
        record
    }

    /// Takes in a stored record; false when this version knows no such scheduler.
    pub fn restore(&mut self, record: SchedulerRecord) -> bool {
        let Some(name) = SchedulerName::parse(&record.name) else { return false };
        let state = SchedulerState {
            paused_until_ms: record.paused_until_ms,
            stores: record.stores.into_iter().collect(),
        };
        self.set(name, (!record.is_removed).then_some(state));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_the_same_after_a_restart() {
        let mut before = Schedulers::default();
        let stores = BTreeSet::from([3, 5]);
        let records = [
            before.set(SchedulerName::EvictLeader, Some(SchedulerState { paused_until_ms: 0, stores })),
            before.set(SchedulerName::BalanceRegion, None),
            before.set(
                SchedulerName::BalanceLeader,
                Some(SchedulerState { paused_until_ms: 77, ..SchedulerState::default() }),
            ),
        ];
        let mut after = Schedulers::default();
        for record in records {
            assert!(after.restore(record));
        }
        assert_eq!(after.present, before.present);
        assert!(after.evicts(5) && !after.evicts(4));
        assert!(!after.is_active(SchedulerName::BalanceLeader, 76));
        assert!(after.is_active(SchedulerName::BalanceLeader, 77));
        assert!(!after.is_active(SchedulerName::BalanceRegion, 77));
    }

    #[test]
    fn every_name_is_read_back() {
        for name in SchedulerName::ALL {
            assert_eq!(SchedulerName::parse(name.as_str()), Some(name));
        }
        assert!(
            !Schedulers::default().restore(SchedulerRecord { name: "later".into(), ..Default::default() })
        );
    }
}
