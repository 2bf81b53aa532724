//! Takes leaders off stores that are about to stop, and off those that are being removed, before they go: a client
//! then meets a leader that moved, not one that is gone.

use super::evict_leader::off;
use crate::core::store::{StoreInfo, StoreState};
use crate::schedule::View;
use crate::schedule::operator::{Operator, OperatorKind, Purpose};

const PURPOSE: Purpose = Purpose { name: "evict-stopping-store", kind: OperatorKind::Evict };

/// The next leader to move.
pub fn next(view: &View<'_>, cursor: &mut u64) -> Option<Operator> {
    let leaves = |store: &&StoreInfo| store.is_stopping() || view.state(store.meta.id) == StoreState::Offline;
    view.cluster.stores().filter(leaves).find_map(|store| off(view, store.meta.id, PURPOSE, cursor))
}
