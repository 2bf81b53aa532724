//! Chooses among the stores that the filters let through. Ties go to the lower store id, so that the same
//! cluster always gives the same choice.

use std::cmp::Reverse;

use kvproto::metapb;

use super::checker::Obstacle;
use super::store_limit::LimitKind;
use super::{View, filter};
use crate::core::region::RegionInfo;
use crate::core::store::StoreState;

/// The store for a new peer: the one with the fewest peers, then the one with the most free space.
pub fn new_peer_store(view: &View<'_>, region: &RegionInfo) -> Result<u64, Obstacle> {
    let mut fits = view.cluster.stores().filter(|store| filter::accepts_peer(view, region, store)).peekable();
    if fits.peek().is_none() {
        return Err(Obstacle::NoStore);
    }
    fits.filter(|store| view.operators.limits().has_room(view, store.meta.id, LimitKind::AddPeer, region))
        .min_by_key(|store| (view.load(store.meta.id), Reverse(store.available()), store.meta.id))
        .map(|store| store.meta.id)
        .ok_or(Obstacle::StoreLimit)
}

/// The store that takes over leadership when those in `leaving` lose theirs: a healthy voter with the fewest
/// leaders. Stores that may have more leaders are preferred to those being removed, stopped or emptied.
pub fn next_leader(view: &View<'_>, region: &RegionInfo, leaving: &[u64]) -> Option<u64> {
    region
        .voters()
        .filter(|peer| !leaving.contains(&peer.store_id) && view.is_healthy(region, peer))
        .min_by_key(|peer| {
            let is_unwelcome = !filter::accepts_leader(view, region, peer);
            (is_unwelcome, view.leader_load(peer.store_id), peer.store_id)
        })
        .map(|peer| peer.store_id)
}

/// The store that leaders on `from` are to move to; None while no other store may have more.
pub fn better_leader(view: &View<'_>, region: &RegionInfo, from: u64) -> Option<u64> {
    region
        .voters()
        .filter(|peer| peer.store_id != from && filter::accepts_leader(view, region, peer))
        .min_by_key(|peer| (view.leader_load(peer.store_id), peer.store_id))
        .map(|peer| peer.store_id)
}

/// The voter to remove from a region that has too many: an unhealthy one first, then one on the fullest store;
/// the leader last.
pub fn surplus_voter<'a>(view: &View<'_>, region: &'a RegionInfo) -> Option<&'a metapb::Peer> {
    region.voters().max_by_key(|peer| {
        let trouble = match view.state(peer.store_id) {
            StoreState::Tombstone => 4,
            StoreState::Offline | StoreState::Down => 3,
            StoreState::Disconnected => 2,
            StoreState::Up if !view.is_healthy(region, peer) => 1,
            StoreState::Up => 0,
        };
        let leads = region.leader_store() == Some(peer.store_id);
        (trouble, !leads, view.load(peer.store_id), Reverse(peer.store_id))
    })
}
