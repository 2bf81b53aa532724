//! One step of an operator: what it asks a leader to do, and how its effect shows in heartbeats.
//!
//! A step sends nothing that its region's last heartbeat makes unsafe: a leader is never asked to remove itself,
//! and a learner is promoted only after its leader stopped reporting it as pending.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use kvproto::{eraftpb, metapb, pdpb};

use crate::core::region::RegionInfo;
use crate::core::store::StoreState;
use crate::schedule::{RegionCommand, ScheduleConfig, View};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Add a peer that receives the log but does not vote; done when it has caught up.
    AddLearner { store_id: u64, peer_id: u64 },
    /// Give the learner a vote.
    PromoteLearner { store_id: u64, peer_id: u64 },
    /// Remove the peer.
    RemovePeer { store_id: u64, peer_id: u64 },
    /// Move leadership from one store to another; a third one that took it is somebody else's decision.
    TransferLeader { from_store_id: u64, to_store_id: u64 },
    /// Move leadership off a store; best to the other one, but any will do.
    EvictLeader { from_store_id: u64, to_store_id: u64 },
    /// Split the region, which has this version, at these keys; in half when there are none. Keys are boundaries.
    Split { version: u64, keys: Arc<[Bytes]> },
}

/// What the rest of an operator will change on one store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Influence {
    pub peers: i64,
    pub leaders: i64,
    /// In the unit of [`RegionInfo::weight`].
    pub weight: i64,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepState {
    Running,
    Finished,
    Impossible(&'static str),
}

impl Step {
    /// Judges the step by the region's last heartbeat.
    pub fn state(&self, region: &RegionInfo, view: &View<'_>) -> StepState {
        match *self {
            Step::AddLearner { store_id, peer_id } => add_learner_state(region, view, store_id, peer_id),
            Step::PromoteLearner { peer_id, .. } => match region.peer(peer_id) {
                Some(peer) if peer.role() == metapb::PeerRole::Voter => StepState::Finished,
                Some(_) => StepState::Running,
                None => StepState::Impossible("the learner is gone"),
            },
            Step::RemovePeer { peer_id, store_id } => match region.peer(peer_id) {
                None => StepState::Finished,
                Some(_) if region.leader_store() == Some(store_id) => {
                    StepState::Impossible("the peer leads the region")
                }
                Some(_) => StepState::Running,
            },
            Step::TransferLeader { from_store_id, to_store_id } => match region.leader_store() {
                Some(leads) if leads == to_store_id => StepState::Finished,
                Some(leads) if leads != from_store_id => {
                    StepState::Impossible("another store has become leader")
                }
                _ => hand_over_state(region, view, to_store_id),
            },
            Step::EvictLeader { from_store_id, to_store_id } => match region.leader_store() {
                Some(leads) if leads == from_store_id => hand_over_state(region, view, to_store_id),
                _ => StepState::Finished,
            },
            Step::Split { version, .. } => match region.version() > version {
                true => StepState::Finished,
                false => StepState::Running,
            },
        }
    }

    /// Whether the step adds, promotes or removes a peer.
    pub fn changes_members(&self) -> bool {
        match self {
            Step::AddLearner { .. } | Step::PromoteLearner { .. } | Step::RemovePeer { .. } => true,
            Step::TransferLeader { .. } | Step::EvictLeader { .. } | Step::Split { .. } => false,
        }
    }

    /// By how much the step has raised the region's conf_ver so far.
    pub fn conf_ver_delta(&self, region: &RegionInfo) -> u64 {
        let done = match *self {
            Step::AddLearner { peer_id, .. } => region.peer(peer_id).is_some(),
            Step::PromoteLearner { peer_id, .. } => {
                region.peer(peer_id).is_some_and(|peer| peer.role() == metapb::PeerRole::Voter)
            }
            Step::RemovePeer { peer_id, .. } => region.peer(peer_id).is_none(),
            Step::TransferLeader { .. } | Step::EvictLeader { .. } | Step::Split { .. } => false,
        };
        u64::from(done)
    }

    /// How long the step may take, in milliseconds.
    pub fn time_limit_ms(&self, config: &ScheduleConfig) -> u64 {
        match self {
            Step::AddLearner { .. } => config.slow_step_ms,
            _ => config.fast_step_ms,
        }
    }

    /// What the step will change, store by store; `weight` is that of a replica of the region.
    pub fn influences(&self, weight: i64) -> impl Iterator<Item = (u64, Influence)> {
        let peer = |store, peers: i64| Some((store, Influence { peers, weight: peers * weight, leaders: 0 }));
        let leader = |store, leaders: i64| Some((store, Influence { leaders, ..Influence::default() }));
        let changes = match *self {
            Step::AddLearner { store_id, .. } => [peer(store_id, 1), None],
            Step::RemovePeer { store_id, .. } => [peer(store_id, -1), None],
            Step::TransferLeader { from_store_id, to_store_id }
            | Step::EvictLeader { from_store_id, to_store_id } => {
                [leader(from_store_id, -1), leader(to_store_id, 1)]
            }
            Step::PromoteLearner { .. } | Step::Split { .. } => [None, None],
        };
        changes.into_iter().flatten()
    }

    /// The command for the region's leader; None without a leader, or when there is nothing to ask for.
    pub fn command(&self, region: &RegionInfo) -> Option<RegionCommand> {
        use eraftpb::ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
        use metapb::PeerRole::{Learner, Voter};
        let mut command = RegionCommand {
            region_id: region.id(),
            region_epoch: region.meta.region_epoch,
            target_peer: Some(region.leader?),
            ..RegionCommand::default()
        };
        let change = |store_id, id, role: metapb::PeerRole, kind: eraftpb::ConfChangeType| pdpb::ChangePeer {
            peer: Some(metapb::Peer { id, store_id, role: role as i32, ..Default::default() }),
            change_type: kind as i32,
        };
        match *self {
            // Present and lagging: the leader is already at it.
            Step::AddLearner { peer_id, .. } if region.peer(peer_id).is_some() => return None,
            Step::AddLearner { store_id, peer_id } => {
                command.change_peer = Some(change(store_id, peer_id, Learner, AddLearnerNode));
            }
            Step::PromoteLearner { store_id, peer_id } => {
                command.change_peer = Some(change(store_id, peer_id, Voter, AddNode));
            }
            Step::RemovePeer { store_id, peer_id } => {
                assert_ne!(region.leader_store(), Some(store_id), "a leader is never asked to remove itself");
                let role = region.peer(peer_id)?.role();
                command.change_peer = Some(change(store_id, peer_id, role, RemoveNode));
            }
            Step::TransferLeader { to_store_id, .. } | Step::EvictLeader { to_store_id, .. } => {
                let peer = *region.peer_on(to_store_id)?;
                command.transfer_leader = Some(pdpb::TransferLeader { peer: Some(peer), peers: vec![peer] });
            }
            Step::Split { ref keys, .. } => {
                let policy = match keys.is_empty() {
                    true => pdpb::CheckPolicy::Approximate,
                    false => pdpb::CheckPolicy::Usekey,
                };
                let (policy, keys) = (policy as i32, keys.to_vec());
                command.split_region = Some(pdpb::SplitRegion { policy, keys });
            }
        }
        Some(command)
    }
}

fn hand_over_state(region: &RegionInfo, view: &View<'_>, to_store_id: u64) -> StepState {
    match region.peer_on(to_store_id) {
        // It cannot take over, or should not any more: somebody else can.
        _ if view.state(to_store_id) != StoreState::Up => StepState::Impossible("the store is not up"),
        Some(peer) if peer.role() == metapb::PeerRole::Voter => StepState::Running,
        _ => StepState::Impossible("the new leader is not a voter"),
    }
}

fn add_learner_state(region: &RegionInfo, view: &View<'_>, store_id: u64, peer_id: u64) -> StepState {
    match region.peer_on(store_id) {
        Some(peer) if peer.id != peer_id => StepState::Impossible("the store has another peer of the region"),
        Some(_) if region.is_pending(peer_id) || region.is_down(peer_id) => StepState::Running,
        Some(_) => StepState::Finished,
        // Nothing has been copied yet: better to choose another store than to wait for this one.
        None if view.state(store_id) != StoreState::Up => StepState::Impossible("the store is not up"),
        None => StepState::Running,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Step::AddLearner { store_id, peer_id } => write!(f, "add learner {peer_id} on store {store_id}"),
            Step::PromoteLearner { store_id, peer_id } => {
                write!(f, "promote learner {peer_id} on store {store_id}")
            }
            Step::RemovePeer { store_id, peer_id } => {
                write!(f, "remove peer {peer_id} from store {store_id}")
            }
            Step::TransferLeader { from_store_id, to_store_id }
            | Step::EvictLeader { from_store_id, to_store_id } => {
                write!(f, "transfer leader from store {from_store_id} to store {to_store_id}")
            }
            Step::Split { ref keys, .. } if keys.is_empty() => write!(f, "split in half"),
            Step::Split { ref keys, .. } => write!(f, "split at {} keys", keys.len()),
        }
    }
}
