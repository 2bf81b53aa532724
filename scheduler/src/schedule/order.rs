//! Operators that people or programs ask for: what they say, checked, made into steps.
//!
//! An order is obeyed when it is safe, not when it is wise: the checkers may undo it later, as they do with a
//! replica too many.

use std::collections::BTreeSet;

use bytes::Bytes;
use kvproto::metapb;

use super::operator::step::Step;
use super::operator::{Operator, Purpose, builder};
use super::{View, filter};
use crate::core::region::{RegionInfo, ends_after};
use crate::core::store::StoreState;
use crate::id::IdSource;

/// The most keys of one split: as many as a store takes at once.
pub const SPLIT_KEYS_MAX: usize = 256;

/// What is to be done with a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    TransferLeader {
        to_store_id: u64,
    },
    /// Put the replicas on exactly these stores.
    TransferRegion {
        to_store_ids: Vec<u64>,
    },
    TransferPeer {
        from_store_id: u64,
        to_store_id: u64,
    },
    AddPeer {
        store_id: u64,
    },
    AddLearner {
        store_id: u64,
    },
    RemovePeer {
        store_id: u64,
    },
    /// At these boundaries, or in half.
    Split {
        keys: Vec<Bytes>,
    },
}

/// Makes the operator, or says why it cannot be.
pub fn build(
    view: &View<'_>,
    region: &RegionInfo,
    order: Order,
    ids: &mut dyn IdSource,
) -> Result<Operator, String> {
    if region.leader.is_none() {
        return Err("its leader has not reported yet".into());
    }
    if region.is_joint() {
        return Err("its members are being changed".into());
    }
    match order {
        Order::TransferLeader { to_store_id } => transfer_leader(view, region, to_store_id),
        Order::TransferRegion { to_store_ids } => transfer_region(view, region, &to_store_ids, ids),
        Order::TransferPeer { from_store_id, to_store_id } => {
            let old = on(region, from_store_id)?;
            let new = new_peer(view, region, to_store_id, ids)?;
            let purpose = Purpose::admin("admin-move-peer");
            builder::replace_peer(view, region, purpose, old, new).ok_or_else(nobody_leads)
        }
        Order::AddPeer { store_id } => {
            let new = new_peer(view, region, store_id, ids)?;
            Ok(builder::add_voter(view, region, Purpose::admin("admin-add-peer"), store_id, new.id))
        }
        Order::AddLearner { store_id } => {
            let new = new_peer(view, region, store_id, ids)?;
            Ok(builder::add_learner(view, region, Purpose::admin("admin-add-learner"), store_id, new.id))
        }
        Order::RemovePeer { store_id } => remove_peer(view, region, store_id),
        Order::Split { keys } => split(view, region, keys),
    }
}

fn transfer_leader(view: &View<'_>, region: &RegionInfo, to_store_id: u64) -> Result<Operator, String> {
    let peer = on(region, to_store_id)?;
    if region.leader_store() == Some(to_store_id) {
        return Err(format!("store {to_store_id} leads it already"));
    }
    if peer.role() != metapb::PeerRole::Voter || !view.is_healthy(region, peer) {
        return Err(format!("its peer on store {to_store_id} is not a healthy voter"));
    }
    let purpose = Purpose::admin("admin-transfer-leader");
    builder::transfer_leader(view, region, purpose, to_store_id).ok_or_else(nobody_leads)
}

fn transfer_region(
    view: &View<'_>,
    region: &RegionInfo,
    wanted: &[u64],
    ids: &mut dyn IdSource,
) -> Result<Operator, String> {
    let voters: Vec<&metapb::Peer> = region.voters().collect();
    if wanted.len() != voters.len() || voters.len() != region.meta.peers.len() {
        return Err(format!("it has {} voters, so name as many stores", voters.len()));
    }
    if wanted.iter().collect::<BTreeSet<_>>().len() != wanted.len() {
        return Err("a store is named twice".into());
    }
    let leaving = voters.iter().filter(|peer| !wanted.contains(&peer.store_id));
    let coming = wanted.iter().filter(|store| region.peer_on(**store).is_none());
    let mut moves = Vec::new();
    for (old, store_id) in leaving.zip(coming) {
        moves.push((**old, new_peer(view, region, *store_id, ids)?));
    }
    if moves.is_empty() {
        return Err("its replicas are on these stores already".into());
    }
    let purpose = Purpose::admin("admin-move-region");
    builder::move_peers(view, region, purpose, &moves, None).ok_or_else(nobody_leads)
}

fn remove_peer(view: &View<'_>, region: &RegionInfo, store_id: u64) -> Result<Operator, String> {
    let peer = on(region, store_id)?;
    let others = || region.voters().filter(|other| other.id != peer.id);
    let healthy = others().filter(|other| view.is_healthy(region, other)).count();
    if peer.role() == metapb::PeerRole::Voter && healthy <= others().count() / 2 {
        return Err("the replicas that stay would have no healthy majority".into());
    }
    let purpose = Purpose::admin("admin-remove-peer");
    builder::remove_peer(view, region, purpose, peer).ok_or_else(nobody_leads)
}

fn split(view: &View<'_>, region: &RegionInfo, mut keys: Vec<Bytes>) -> Result<Operator, String> {
    keys.sort();
    keys.dedup();
    if keys.len() > SPLIT_KEYS_MAX {
        return Err(format!("{} keys; the most is {SPLIT_KEYS_MAX}", keys.len()));
    }
    let is_inside = |key: &Bytes| *key > region.meta.start_key && ends_after(&region.meta.end_key, key);
    if !keys.iter().all(is_inside) {
        return Err("a split key is not inside of it".into());
    }
    let step = Step::Split { version: region.version(), keys: keys.into() };
    Ok(Operator::new(Purpose::admin("admin-split-region"), region, vec![step], view.now_ms))
}

fn on(region: &RegionInfo, store_id: u64) -> Result<&metapb::Peer, String> {
    region.peer_on(store_id).ok_or_else(|| format!("it has no peer on store {store_id}"))
}

/// A peer for a store that can take it.
pub fn new_peer(
    view: &View<'_>,
    region: &RegionInfo,
    store_id: u64,
    ids: &mut dyn IdSource,
) -> Result<metapb::Peer, String> {
    let store = view.cluster.store(store_id).ok_or_else(|| format!("there is no store {store_id}"))?;
    if region.peer_on(store_id).is_some() {
        return Err(format!("store {store_id} has a peer of it already"));
    }
    if view.state(store_id) != StoreState::Up || !filter::accepts_peer(view, region, store) {
        return Err(format!("store {store_id} is not up, or has no room for a replica"));
    }
    let id = ids.next_id().ok_or("ids are being saved; try again")?;
    Ok(metapb::Peer { id, store_id, ..Default::default() })
}

fn nobody_leads() -> String {
    "no healthy voter can take over leadership".into()
}
