//! Evens out the number of leaders among stores.
//!
//! A leader moves from the store with the most to the one with the fewest when that leaves the first with no fewer
//! than the second. Each such move makes the numbers strictly more even, so they settle within one of each other
//! where replicas allow it.

use crate::core::region::RegionInfo;
use crate::core::store::StoreState;
use crate::schedule::operator::{Operator, OperatorKind, Purpose, builder};
use crate::schedule::{View, filter};

const PURPOSE: Purpose = Purpose { name: "balance-leader", kind: OperatorKind::Leader };
/// How many regions of one store, and of all, are looked at in one search. The next one goes on behind them.
const CANDIDATES_MAX: usize = 512;
const SEARCH_MAX: usize = 4096;

/// The move that evens out most.
pub fn next(view: &View<'_>, cursor: &mut u64) -> Option<Operator> {
    let mut stores: Vec<(i64, u64)> = view
        .cluster
        .stores()
        .filter(|store| view.state(store.meta.id) == StoreState::Up)
        .map(|store| (view.leader_load(store.meta.id), store.meta.id))
        .collect();
    stores.sort_unstable();
    let (mut left, mut seen) = (SEARCH_MAX, None);
    for (most, source) in stores.iter().rev() {
        if view.schedulers.evicts(*source) {
            continue;
        }
        for (_, target) in stores.iter().take_while(|(fewest, _)| most - fewest >= 2) {
            let accepts = view.cluster.store(*target).is_some_and(|s| filter::store_accepts_leaders(view, s));
            if !accepts {
                continue;
            }
            let (region, last) = find(view, *source, *target, *cursor, &mut left);
            seen = seen.or(last);
            if let Some(region) = region {
                *cursor = region.id();
                return builder::transfer_leader(view, region, PURPOSE, *target);
            }
        }
    }
    *cursor = seen.unwrap_or(*cursor);
    None
}

/// A region whose leader can move, and the last one that was looked at.
fn find<'a>(
    view: &View<'a>,
    source: u64,
    target: u64,
    after: u64,
    left: &mut usize,
) -> (Option<&'a RegionInfo>, Option<u64>) {
    let mut last = None;
    let found = view.cluster.led_by(source, after).take(CANDIDATES_MAX.min(*left)).find(|region| {
        *left -= 1;
        last = Some(region.id());
        view.operators.get(region.id()).is_none()
            && region.peer_on(target).is_some_and(|peer| filter::accepts_leader(view, region, peer))
    });
    (found, last)
}
