//! Evens out replicas among stores, by their size and number together: a store's score is the sum of the weights
//! of its replicas.
//!
//! A replica moves from the store with the highest score to the one with the lowest when afterwards the first has
//! still the higher one, by more than a small share of it. Each such move makes the scores strictly more even, so
//! they settle, and sizes that change a little move nothing.

use kvproto::metapb;

use crate::core::region::{IDLE_WEIGHT, RegionInfo};
use crate::core::store::StoreState;
use crate::id::IdSource;
use crate::schedule::operator::{Operator, OperatorKind, Purpose, builder};
use crate::schedule::store_limit::LimitKind;
use crate::schedule::{View, filter};

const PURPOSE: Purpose = Purpose { name: "balance-region", kind: OperatorKind::Region };
/// How many regions of one store, and of all, are looked at in one search. The next one goes on behind them.
const CANDIDATES_MAX: usize = 512;
const SEARCH_MAX: usize = 4096;
/// Scores that differ by less than one part in so many are even.
const TOLERANCE_PARTS: i64 = 200;

/// The move that evens out most.
pub fn next(view: &View<'_>, cursor: &mut u64, ids: &mut dyn IdSource) -> Option<Operator> {
    let mut stores: Vec<(i64, u64)> = view
        .cluster
        .stores()
        .filter(|store| view.state(store.meta.id) == StoreState::Up)
        .map(|store| (view.weight_load(store.meta.id), store.meta.id))
        .collect();
    stores.sort_unstable();
    let (mut left, mut seen) = (SEARCH_MAX, None);
    for (high, source) in stores.iter().rev() {
        let gap = |low: &i64| high - low - high / TOLERANCE_PARTS;
        let lower = stores.iter().take_while(|(low, _)| gap(low) >= 2 * IDLE_WEIGHT as i64);
        for (low, target) in lower {
            let (region, last) = find(view, *source, *target, gap(low), *cursor, &mut left);
            seen = seen.or(last);
            let Some(region) = region else { continue };
            let old = region.peer_on(*source)?;
            let new = metapb::Peer { id: ids.next_id()?, store_id: *target, ..Default::default() };
            *cursor = region.id();
            return builder::replace_peer(view, region, PURPOSE, old, new);
        }
    }
    *cursor = seen.unwrap_or(*cursor);
    None
}

/// A region to move, best one that is led elsewhere, since a leader moves twice; and the last that was looked at.
fn find<'a>(
    view: &View<'a>,
    source: u64,
    target: u64,
    gap: i64,
    after: u64,
    left: &mut usize,
) -> (Option<&'a RegionInfo>, Option<u64>) {
    let Some(store) = view.cluster.store(target) else { return (None, None) };
    let limits = view.operators.limits();
    let candidates = CANDIDATES_MAX.min(*left);
    let mut last = None;
    let mut fits = view.cluster.held_by(source, after).take(candidates).filter(|region| {
        *left -= 1;
        last = Some(region.id());
        2 * region.weight() as i64 <= gap
            && view.operators.get(region.id()).is_none()
            && filter::is_settled(view, region)
            && filter::accepts_peer(view, region, store)
            && limits.has_room(view, target, LimitKind::AddPeer, region)
            && limits.has_room(view, source, LimitKind::RemovePeer, region)
    });
    let first = fits.next();
    let found = match first.is_some_and(|region| region.leader_store() == Some(source)) {
        true => fits.find(|region| region.leader_store() != Some(source)).or(first),
        false => first,
    };
    drop(fits);
    (found, last)
}
