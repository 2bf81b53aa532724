//! Orders the steps of a membership change so that every prefix of them is safe.
//!
//! Rules: a new peer starts as a learner and is promoted when it has caught up; a peer is removed only after its
//! substitute votes; a leader hands over before its peer is removed, and only to a healthy voter that stays.

use kvproto::metapb;

use super::Operator;
use super::step::Step;
use crate::core::region::RegionInfo;
use crate::schedule::{View, selector};

/// Adds one voter on `store_id`.
pub fn add_replica(view: &View<'_>, region: &RegionInfo, store_id: u64, peer_id: u64) -> Operator {
    let steps = vec![Step::AddLearner { store_id, peer_id }, Step::PromoteLearner { store_id, peer_id }];
    Operator::new("add-replica", region, steps, view.now_ms)
}

/// Gives a vote to a learner that has caught up.
pub fn promote_learner(view: &View<'_>, region: &RegionInfo, learner: &metapb::Peer) -> Operator {
    let step = Step::PromoteLearner { store_id: learner.store_id, peer_id: learner.id };
    Operator::new("promote-learner", region, vec![step], view.now_ms)
}

/// Puts a new voter on `store_id` in the place of `old`. None when `old` leads and nobody can take over.
pub fn replace_peer(
    view: &View<'_>,
    region: &RegionInfo,
    name: &'static str,
    old: &metapb::Peer,
    new: metapb::Peer,
) -> Option<Operator> {
    let (store_id, peer_id) = (new.store_id, new.id);
    let mut steps = vec![Step::AddLearner { store_id, peer_id }, Step::PromoteLearner { store_id, peer_id }];
    steps.extend(removal(view, region, old, Some(store_id))?);
    Some(Operator::new(name, region, steps, view.now_ms))
}

/// Removes `peer`. None when it leads and nobody can take over.
pub fn remove_peer(
    view: &View<'_>,
    region: &RegionInfo,
    name: &'static str,
    peer: &metapb::Peer,
) -> Option<Operator> {
    Some(Operator::new(name, region, removal(view, region, peer, None)?, view.now_ms))
}

/// The steps that remove a peer; `substitute` is a store whose peer will be a voter by then.
fn removal(
    view: &View<'_>,
    region: &RegionInfo,
    peer: &metapb::Peer,
    substitute: Option<u64>,
) -> Option<Vec<Step>> {
    let mut steps = Vec::with_capacity(2);
    if region.leader_store() == Some(peer.store_id) {
        let to_store_id = selector::next_leader(view, region, peer.store_id).or(substitute)?;
        steps.push(Step::TransferLeader { from_store_id: peer.store_id, to_store_id });
    }
    steps.push(Step::RemovePeer { store_id: peer.store_id, peer_id: peer.id });
    Some(steps)
}
