//! Which stores may receive a new peer of a region, or more leaders.

use kvproto::metapb;

use super::View;
use crate::core::region::RegionInfo;
use crate::core::store::{StoreInfo, StoreState};

/// Whether `store` may receive a peer of `region`: it is up and has said what space it has, it is not one of the
/// region's stores, it does not stop, and it has room for data and for one more snapshot.
pub fn accepts_peer(view: &View<'_>, region: &RegionInfo, store: &StoreInfo) -> bool {
    is_serving(view, store)
        && region.peer_on(store.meta.id).is_none()
        && store.snapshots_in_flight() <= view.config.snapshots_max
        && !store.is_low_on_space(view.config.low_space_ratio)
}

/// Whether the peer may become leader: a healthy voter on a store that may have more leaders.
pub fn accepts_leader(view: &View<'_>, region: &RegionInfo, peer: &metapb::Peer) -> bool {
    peer.role() == metapb::PeerRole::Voter
        && view.is_healthy(region, peer)
        && view.cluster.store(peer.store_id).is_some_and(|store| store_accepts_leaders(view, store))
}

/// Whether the store may have more leaders.
pub fn store_accepts_leaders(view: &View<'_>, store: &StoreInfo) -> bool {
    is_serving(view, store) && !view.schedulers.evicts(store.meta.id)
}

/// Whether every peer of the region takes part, and there are as many as there should be: only such a region is
/// moved for the sake of balance.
pub fn is_settled(view: &View<'_>, region: &RegionInfo) -> bool {
    region.leader.is_some()
        && region.meta.peers.len() == view.config.max_replicas
        && region
            .meta
            .peers
            .iter()
            .all(|peer| peer.role() == metapb::PeerRole::Voter && view.is_healthy(region, peer))
}

fn is_serving(view: &View<'_>, store: &StoreInfo) -> bool {
    store.state(view.now_ms, view.config.silence) == StoreState::Up
        && store.stats.is_some()
        && !store.is_busy()
        && !store.is_stopping()
}
