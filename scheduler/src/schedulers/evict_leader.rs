//! Keeps stores free of leaders, by order: for maintenance, or because they misbehave.

use crate::schedule::operator::{Operator, OperatorKind, Priority, Purpose, builder};
use crate::schedule::{View, selector};
use crate::schedulers::SchedulerName;

const PURPOSE: Purpose = Purpose { name: "evict-leader", kind: OperatorKind::Evict };
/// How many regions of a store are looked at in one search. The next one goes on behind them.
const CANDIDATES_MAX: usize = 1024;

/// The next leader to move.
pub fn next(view: &View<'_>, cursor: &mut u64) -> Option<Operator> {
    let state = view.schedulers.get(SchedulerName::EvictLeader)?;
    state.stores.iter().find_map(|store| off(view, *store, PURPOSE, cursor))
}

/// A move of some leader off the store; None when it has none, or none that can go.
pub fn off(view: &View<'_>, store_id: u64, purpose: Purpose, cursor: &mut u64) -> Option<Operator> {
    let may_go = |region_id| {
        let operator: Option<&Operator> = view.operators.get(region_id);
        operator.is_none_or(|running| running.kind().priority() < Priority::High)
    };
    let mut seen = *cursor;
    let found = view
        .cluster
        .led_by(store_id, *cursor)
        .take(CANDIDATES_MAX)
        .inspect(|region| seen = region.id())
        .filter(|region| may_go(region.id()))
        .find_map(|region| Some((region, selector::better_leader(view, region, store_id)?)));
    *cursor = seen;
    let (region, target) = found?;
    builder::evict_leader(view, region, purpose, target)
}
