//! Chooses among the stores that the filters let through. Ties go to the lower store id, so that the same
//! cluster always gives the same choice.

use std::cmp::Reverse;

use kvproto::metapb;

use super::{View, filter};
use crate::core::region::RegionInfo;
use crate::core::store::StoreState;

/// The store for a new peer: the one with the fewest peers, then the one with the most free space.
pub fn new_peer_store(view: &View<'_>, region: &RegionInfo) -> Option<u64> {
    view.cluster
        .stores()
        .filter(|store| filter::accepts_peer(view, region, store))
        .min_by_key(|store| (view.load(store.meta.id), Reverse(store.available()), store.meta.id))
        .map(|store| store.meta.id)
}

/// The store that takes over leadership from `from`: a healthy voter, with the fewest leaders. Stores that
/// stay are preferred to those being removed.
pub fn next_leader(view: &View<'_>, region: &RegionInfo, from: u64) -> Option<u64> {
    region
        .voters()
        .filter(|peer| peer.store_id != from && view.is_healthy(region, peer))
        .min_by_key(|peer| {
            let leaves = view.state(peer.store_id) != StoreState::Up;
            (leaves, view.cluster.leader_count(peer.store_id), peer.store_id)
        })
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
