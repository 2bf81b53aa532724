//! Orders the steps of a change so that every prefix of them is safe.
//!
//! Rules: a new peer starts as a learner and is promoted when it has caught up; a peer is removed only after its
//! substitute votes; a leader hands over before its peer is removed, and only to a healthy voter that stays.

use kvproto::metapb;

use super::step::Step;
use super::{Operator, Purpose};
use crate::core::region::RegionInfo;
use crate::schedule::{View, selector};

/// Adds one voter on `store_id`.
pub fn add_voter(
    view: &View<'_>,
    region: &RegionInfo,
    purpose: Purpose,
    store_id: u64,
    peer_id: u64,
) -> Operator {
    let steps = vec![Step::AddLearner { store_id, peer_id }, Step::PromoteLearner { store_id, peer_id }];
    Operator::new(purpose, region, steps, view.now_ms)
}

/// Adds one peer without a vote on `store_id`.
pub fn add_learner(
    view: &View<'_>,
    region: &RegionInfo,
    purpose: Purpose,
    store_id: u64,
    peer_id: u64,
) -> Operator {
    Operator::new(purpose, region, vec![Step::AddLearner { store_id, peer_id }], view.now_ms)
}

/// Gives a vote to a learner that has caught up.
pub fn promote_learner(
    view: &View<'_>,
    region: &RegionInfo,
    purpose: Purpose,
    learner: &metapb::Peer,
) -> Operator {
    let step = Step::PromoteLearner { store_id: learner.store_id, peer_id: learner.id };
    Operator::new(purpose, region, vec![step], view.now_ms)
}

/// Puts a new voter in the place of `old`. None when `old` leads and nobody can take over.
pub fn replace_peer(
    view: &View<'_>,
    region: &RegionInfo,
    purpose: Purpose,
    old: &metapb::Peer,
    new: metapb::Peer,
) -> Option<Operator> {
    let steps = replacement(view, region, old, new, &[old.store_id])?;
    Some(Operator::new(purpose, region, steps, view.now_ms))
}

/// Removes `peer`. None when it leads and nobody can take over.
pub fn remove_peer(
    view: &View<'_>,
    region: &RegionInfo,
    purpose: Purpose,
    peer: &metapb::Peer,
) -> Option<Operator> {
    Some(Operator::new(purpose, region, removal(view, region, peer, None, &[peer.store_id])?, view.now_ms))
}

/// Hands leadership to `to_store_id`, and only there. None without a leader.
pub fn transfer_leader(
    view: &View<'_>,
    region: &RegionInfo,
    purpose: Purpose,
    to_store_id: u64,
) -> Option<Operator> {
    let step = Step::TransferLeader { from_store_id: region.leader_store()?, to_store_id };
    Some(Operator::new(purpose, region, vec![step], view.now_ms))
}

/// Gets leadership off its store, best to `to_store_id`. None without a leader.
pub fn evict_leader(
    view: &View<'_>,
    region: &RegionInfo,
    purpose: Purpose,
    to_store_id: u64,
) -> Option<Operator> {
    let step = Step::EvictLeader { from_store_id: region.leader_store()?, to_store_id };
    Some(Operator::new(purpose, region, vec![step], view.now_ms))
}

/// Puts new voters in the place of old ones, one after the other, and leadership on `leader` at the end if given.
/// None when there is nothing to do, or the leader must go and nobody can take over.
pub fn move_peers(
    view: &View<'_>,
    region: &RegionInfo,
    purpose: Purpose,
    moves: &[(metapb::Peer, metapb::Peer)],
    leader: Option<u64>,
) -> Option<Operator> {
    let leads = region.leader_store()?;
    let leaving: Vec<u64> = moves.iter().map(|(old, _)| old.store_id).collect();
    let mut moves = moves.to_vec();
    moves.sort_by_key(|(old, _)| old.store_id == leads);
    let mut steps = Vec::new();
    for (old, new) in &moves {
        steps.extend(replacement(view, region, old, *new, &leaving)?);
    }
    // A step of the replacements may have moved the leader already; the last one says where it is then.
    let moved = steps.iter().rev().find_map(|step| match step {
        Step::EvictLeader { to_store_id, .. } => Some(*to_store_id),
        _ => None,
    });
    let leads = moved.unwrap_or(leads);
    if let Some(to_store_id) = leader.filter(|store| *store != leads) {
        steps.push(Step::EvictLeader { from_store_id: leads, to_store_id });
    }
    (!steps.is_empty()).then(|| Operator::new(purpose, region, steps, view.now_ms))
}

fn replacement(
    view: &View<'_>,
    region: &RegionInfo,
    old: &metapb::Peer,
    new: metapb::Peer,
    leaving: &[u64],
) -> Option<Vec<Step>> {
    let (store_id, peer_id) = (new.store_id, new.id);
    let mut steps = vec![Step::AddLearner { store_id, peer_id }, Step::PromoteLearner { store_id, peer_id }];
    steps.extend(removal(view, region, old, Some(store_id), leaving)?);
    Some(steps)
}

/// The steps that remove a peer; `substitute` is a store whose peer will be a voter by then, and `leaving` are the
/// stores whose peers go.
fn removal(
    view: &View<'_>,
    region: &RegionInfo,
    peer: &metapb::Peer,
    substitute: Option<u64>,
    leaving: &[u64],
) -> Option<Vec<Step>> {
    let mut steps = Vec::with_capacity(2);
    if region.leader_store() == Some(peer.store_id) {
        let to_store_id = selector::next_leader(view, region, leaving).or(substitute)?;
        steps.push(Step::EvictLeader { from_store_id: peer.store_id, to_store_id });
    }
    steps.push(Step::RemovePeer { store_id: peer.store_id, peer_id: peer.id });
    Some(steps)
}
