//! Brings every region to `max-replicas` voters on distinct, living stores.
//!
//! Order: learners that were left behind, then peers on lost or leaving stores, then missing replicas, then
//! surplus ones. Invariants: a voter is removed only when the voters that stay have a healthy majority; a voter
//! counts as lost only when its store has been silent for the whole down time and its leader misses it as well.

use kvproto::metapb;

use super::{Obstacle, Verdict};
use crate::core::region::RegionInfo;
use crate::core::store::StoreState;
use crate::id::IdSource;
use crate::schedule::operator::{Operator, OperatorKind, Purpose, builder};
use crate::schedule::{View, selector};

/// Says what `region` needs.
pub fn check(view: &View<'_>, region: &RegionInfo, ids: &mut dyn IdSource) -> Verdict {
    if region.leader.is_none() {
        return Verdict::Blocked(Obstacle::NoLeader);
    }
    if region.is_joint() {
        return Verdict::Blocked(Obstacle::Joint);
    }
    let checks = [check_learners, check_lost_voters, check_missing, check_surplus];
    for check in checks {
        match check(view, region, ids) {
            Verdict::Healthy => {}
            verdict => return verdict,
        }
    }
    Verdict::Healthy
}

/// A learner without an operator was left behind by one that was given up.
fn check_learners(view: &View<'_>, region: &RegionInfo, _ids: &mut dyn IdSource) -> Verdict {
    let Some(learner) = region.learners().next() else { return Verdict::Healthy };
    // A lost voter makes room for it: once promoted, the lost one is surplus.
    let sound_voters = region.voters().filter(|peer| loss(view, region, peer).is_none()).count();
    let is_needed = sound_voters < view.config.max_replicas;
    if !is_needed || is_hopeless(view, region, learner) {
        return mend_or_block(
            view,
            builder::remove_peer(view, region, Purpose::replica("remove-learner"), learner),
        );
    }
    if view.is_healthy(region, learner) {
        let purpose = Purpose::replica("promote-learner");
        return mend_or_block(view, Some(builder::promote_learner(view, region, purpose, learner)));
    }
    Verdict::Blocked(Obstacle::LearnerLags)
}

/// Whether another store should be tried instead of waiting for the learner.
fn is_hopeless(view: &View<'_>, region: &RegionInfo, learner: &metapb::Peer) -> bool {
    match view.state(learner.store_id) {
        // Its store reports, but the region's leader has long not heard from it.
        StoreState::Up => region.is_down(learner.id) && selector::new_peer_store(view, region).is_ok(),
        StoreState::Disconnected => selector::new_peer_store(view, region).is_ok(),
        StoreState::Down | StoreState::Offline | StoreState::Tombstone => true,
    }
}

/// Replaces voters on stores that are lost or being removed; the leader's own peer last, since it moves twice.
fn check_lost_voters(view: &View<'_>, region: &RegionInfo, ids: &mut dyn IdSource) -> Verdict {
    let lost = region
        .voters()
        .filter_map(|peer| Some((loss(view, region, peer)?, peer)))
        .min_by_key(|(_, peer)| (region.leader_store() == Some(peer.store_id), peer.store_id));
    let Some((name, old)) = lost else { return Verdict::Healthy };
    let voters = region.voters().count();
    if voters > view.config.max_replicas {
        // Surplus: nothing has to take its place.
        return check_surplus(view, region, ids);
    }
    if voters < view.config.max_replicas {
        return check_missing(view, region, ids);
    }
    with_new_peer(view, region, ids, |new| {
        builder::replace_peer(view, region, Purpose::replica(name), old, new)
    })
}

/// Why a voter must be replaced, as the name of the operator.
fn loss(view: &View<'_>, region: &RegionInfo, peer: &metapb::Peer) -> Option<&'static str> {
    match view.state(peer.store_id) {
        StoreState::Down if region.is_down(peer.id) => Some("replace-down-peer"),
        StoreState::Offline | StoreState::Tombstone => Some("replace-offline-peer"),
        StoreState::Up | StoreState::Disconnected | StoreState::Down => None,
    }
}

fn check_missing(view: &View<'_>, region: &RegionInfo, ids: &mut dyn IdSource) -> Verdict {
    if region.voters().count() >= view.config.max_replicas {
        return Verdict::Healthy;
    }
    with_new_peer(view, region, ids, |new| {
        Some(builder::add_voter(view, region, Purpose::replica("add-replica"), new.store_id, new.id))
    })
}

fn check_surplus(view: &View<'_>, region: &RegionInfo, _ids: &mut dyn IdSource) -> Verdict {
    if region.voters().count() <= view.config.max_replicas {
        return Verdict::Healthy;
    }
    let Some(peer) = selector::surplus_voter(view, region) else { return Verdict::Healthy };
    let staying = region.voters().filter(|other| other.id != peer.id);
    let (mut voters, mut healthy) = (0, 0);
    for other in staying {
        voters += 1;
        healthy += usize::from(view.is_healthy(region, other));
    }
    if healthy <= voters / 2 {
        return Verdict::Blocked(Obstacle::NoHealthyMajority);
    }
    mend_or_block(view, builder::remove_peer(view, region, Purpose::replica("remove-extra-replica"), peer))
}

/// Chooses a store and an id for a new peer, and builds the operator with it.
fn with_new_peer(
    view: &View<'_>,
    region: &RegionInfo,
    ids: &mut dyn IdSource,
    build: impl FnOnce(metapb::Peer) -> Option<Operator>,
) -> Verdict {
    if view.operators.is_full(OperatorKind::Replica, view.config) {
        return Verdict::Blocked(Obstacle::TooManyOperators);
    }
    let store_id = match selector::new_peer_store(view, region) {
        Ok(store_id) => store_id,
        Err(obstacle) => return Verdict::Blocked(obstacle),
    };
    let Some(id) = ids.next_id() else {
        return Verdict::Blocked(Obstacle::NoId);
    };
    mend_or_block(view, build(metapb::Peer { id, store_id, ..Default::default() }))
}

fn mend_or_block(view: &View<'_>, operator: Option<Operator>) -> Verdict {
    let Some(operator) = operator else { return Verdict::Blocked(Obstacle::NoNewLeader) };
    match view.operators.admit(&operator, view.config, view.now_ms) {
        Ok(()) => Verdict::Mend(operator),
        Err(obstacle) => Verdict::Blocked(obstacle),
    }
}
