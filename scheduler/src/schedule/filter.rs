//! Which stores may receive a new peer of a region.

use super::View;
use crate::core::region::RegionInfo;
use crate::core::store::{StoreInfo, StoreState};

/// Whether `store` may receive a peer of `region`: it is up and has said what space it has, it is not one of the
/// region's stores, and it has room for data and for one more snapshot.
pub fn accepts_peer(view: &View<'_>, region: &RegionInfo, store: &StoreInfo) -> bool {
    store.state(view.now_ms, view.config.silence) == StoreState::Up
        && store.stats.is_some()
        && region.peer_on(store.meta.id).is_none()
        && !store.is_busy()
        && store.snapshots_in_flight() <= view.config.snapshots_max
        && !store.is_low_on_space(view.config.low_space_ratio)
}
