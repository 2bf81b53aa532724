//! Which stores may receive a new peer, and why not.

use std::fmt;

use super::View;
use crate::core::region::RegionInfo;
use crate::core::store::{StoreInfo, StoreState};

/// Why a store cannot receive a peer of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// Silent, down, being removed or removed.
    NotUp(&'static str),
    /// Registered, but has not sent a heartbeat yet, so nothing is known of its space.
    NoHeartbeatYet,
    /// The region has a peer there.
    HasPeer,
    /// The store says so.
    Busy,
    TooManySnapshots,
    LowSpace,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejection::NotUp(state) => write!(f, "{state}"),
            Rejection::NoHeartbeatYet => f.write_str("no heartbeat yet"),
            Rejection::HasPeer => f.write_str("has a peer"),
            Rejection::Busy => f.write_str("busy"),
            Rejection::TooManySnapshots => f.write_str("too many snapshots"),
            Rejection::LowSpace => f.write_str("low on space"),
        }
    }
}

/// Whether `store` may receive a peer of `region`; None means that it may.
pub fn reject_target(view: &View<'_>, region: &RegionInfo, store: &StoreInfo) -> Option<Rejection> {
    let state = store.state(view.now_ms, view.config.silence);
    if region.peer_on(store.meta.id).is_some() {
        return Some(Rejection::HasPeer);
    }
    if state != StoreState::Up {
        return Some(Rejection::NotUp(state.name()));
    }
    if store.stats.is_none() {
        return Some(Rejection::NoHeartbeatYet);
    }
    if store.is_busy() {
        return Some(Rejection::Busy);
    }
    if store.snapshots_in_flight() > view.config.snapshots_max {
        return Some(Rejection::TooManySnapshots);
    }
    if store.is_low_on_space(view.config.low_space_ratio) {
        return Some(Rejection::LowSpace);
    }
    None
}
