//! Membership change, one replica at a time: add a learner, promote it, remove a replica.
//!
//! Propose: the leader checks the scheduler's order against its epoch and its own safety rules and proposes an
//! entry whose context names peer, kind and epoch. Apply: every replica decides by [`decide`], a pure function of
//! the region and the entry. After the apply the shard tells the consensus library and, when the peer itself
//! was removed, destroys it.
//!
//! Invariants: a change raises `conf_ver` by one; a leader refuses to remove or demote itself; a refused change
//! leaves region and consensus members as they were, on every replica alike.

use bytes::{BufMut, Bytes, BytesMut};
use kvproto::metapb::{Peer, PeerRole, Region, RegionEpoch};
use raft::eraftpb::{ConfChange, ConfChangeType};

use crate::raftstore::message::Output;
use crate::raftstore::message::input::ChangePeerKind;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::raftstore::peer::{Peer as RaftPeer, StoreCtx};
use crate::raftstore::util::region::{epoch, is_learner, peer_by_id, peer_on_store};

const FORMAT: u8 = 1;

/// Why a membership change is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("another membership change is in progress")]
    Busy,
    #[error("the region's membership has changed since the order was given")]
    StaleEpoch,
    #[error("store {0} already holds another peer of the region")]
    StoreTaken(u64),
    #[error("peer {0} is already a member with this role")]
    AlreadyMember(u64),
    #[error("peer {0} is a voter and cannot become a learner in one step")]
    Demotion(u64),
    #[error("peer {0} is not a member")]
    NotMember(u64),
    #[error("peer {0} is the leader; move leadership away first")]
    Leader(u64),
    #[error("peer {0} is the last voter")]
    LastVoter(u64),
    #[error("this peer does not lead")]
    NotLeader,
}

/// The region after `kind` of `peer`, or why it stays as it is.
pub fn next_region(region: &Region, kind: ChangePeerKind, peer: &Peer) -> Result<Region, Refusal> {
    let mut next = region.clone();
    let member = peer_by_id(region, peer.id);
    match kind {
        ChangePeerKind::AddLearner | ChangePeerKind::AddVoter => {
            let role = match kind {
                ChangePeerKind::AddLearner => PeerRole::Learner,
                ChangePeerKind::AddVoter | ChangePeerKind::Remove => PeerRole::Voter,
            };
            if peer_on_store(region, peer.store_id).is_some_and(|p| p.id != peer.id) {
                return Err(Refusal::StoreTaken(peer.store_id));
            }
            match member {
                Some(p) if p.role == role as i32 => return Err(Refusal::AlreadyMember(peer.id)),
                Some(p) if p.store_id != peer.store_id => return Err(Refusal::StoreTaken(p.store_id)),
                Some(p) if !is_learner(p) => return Err(Refusal::Demotion(peer.id)),
                Some(_) => {
                    next.peers.iter_mut().filter(|p| p.id == peer.id).for_each(|p| p.role = role as i32)
                }
                None => next.peers.push(Peer { role: role as i32, ..*peer }),
            }
        }
        ChangePeerKind::Remove => {
            let member = member.ok_or(Refusal::NotMember(peer.id))?;
            if !is_learner(member) && region.peers.iter().filter(|p| !is_learner(p)).count() == 1 {
                return Err(Refusal::LastVoter(peer.id));
            }
            next.peers.retain(|p| p.id != peer.id);
        }
    }
    let old = epoch(region);
    next.region_epoch = Some(RegionEpoch { conf_ver: old.conf_ver + 1, ..old });
    Ok(next)
}

/// What a committed change means for `region`: the next region, or a refusal that every replica reaches alike.
/// The outer error is an entry that cannot be understood: the peer must stop.
pub fn decide(region: &Region, change: &ConfChange) -> Result<Result<Region, Refusal>, String> {
    let (kind, peer, conf_ver) = decode(change)?;
    if conf_ver != epoch(region).conf_ver {
        return Ok(Err(Refusal::StaleEpoch));
    }
    Ok(next_region(region, kind, &peer))
}

/// The entry for a change, checked against `region` when it was proposed.
pub fn entry(region: &RegionMeta, kind: ChangePeerKind, peer: &Peer) -> ConfChange {
    let mut change = ConfChange::default();
    change.set_change_type(match kind {
        ChangePeerKind::AddLearner => ConfChangeType::AddLearnerNode,
        ChangePeerKind::AddVoter => ConfChangeType::AddNode,
        ChangePeerKind::Remove => ConfChangeType::RemoveNode,
    });
    change.node_id = peer.id;
    let mut context = BytesMut::with_capacity(17);
    context.put_u8(FORMAT);
    context.put_u64(peer.store_id);
    context.put_u64(region.conf_ver());
    change.context = context.freeze();
    change
}

fn decode(change: &ConfChange) -> Result<(ChangePeerKind, Peer, u64), String> {
    let kind = match change.change_type {
        ConfChangeType::AddNode => ChangePeerKind::AddVoter,
        ConfChangeType::RemoveNode => ChangePeerKind::Remove,
        ConfChangeType::AddLearnerNode => ChangePeerKind::AddLearner,
    };
    let context: &Bytes = &change.context;
    match context.first() {
        Some(&FORMAT) if context.len() == 17 => {}
        Some(&version) if version != FORMAT => {
            return Err(format!(
                "membership change format {version} is newer than this build; upgrade this store"
            ));
        }
        _ => return Err("membership change is damaged".into()),
    }
    let word = |at: usize| context[at..at + 8].iter().fold(0, |n, b| n << 8 | u64::from(*b));
    let role = match kind {
        ChangePeerKind::AddLearner => PeerRole::Learner,
        ChangePeerKind::AddVoter | ChangePeerKind::Remove => PeerRole::Voter,
    };
    let peer = Peer { id: change.node_id, store_id: word(1), role: role as i32, ..Default::default() };
    Ok((kind, peer, word(9)))
}

impl RaftPeer {
    /// Proposes a change the scheduler ordered, or says why not.
    pub(in crate::raftstore) fn propose_conf_change(
        &mut self,
        kind: ChangePeerKind,
        peer: &Peer,
    ) -> Result<(), Refusal> {
        if !self.is_leader() {
            return Err(Refusal::NotLeader);
        }
        if self.rn.raft.has_pending_conf() {
            return Err(Refusal::Busy);
        }
        if peer.id == self.peer.id && kind != ChangePeerKind::AddVoter {
            return Err(Refusal::Leader(peer.id));
        }
        next_region(&self.meta().region, kind, peer)?;
        let change = entry(&self.meta(), kind, peer);
        self.rn.propose_conf_change(Vec::new(), change).map_err(|_| Refusal::Busy)?;
        Ok(())
    }

    /// Takes over an applied change.
    pub(in crate::raftstore) fn on_conf_changed(
        &mut self,
        change: &ConfChange,
        region: std::sync::Arc<RegionMeta>,
        ctx: &mut StoreCtx,
        out: &mut Output,
    ) {
        // The library refuses only a change that leaves no voter, which `next_region` never lets through.
        if let Err(error) = self.rn.apply_conf_change(change) {
            self.stop(
                format!("the consensus library refused a decided membership change: {error}"),
                ctx,
                out,
            );
            return;
        }
        let removed = peer_by_id(&region.region, self.peer.id).is_none();
        self.set_region(region);
        self.forget_departed_peers();
        self.discard_snapshot();
        if removed {
            self.destroy(ctx, out);
            return;
        }
        self.publish_view();
        if self.is_leader() {
            self.report_soon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u64, role: PeerRole) -> Peer {
        Peer { id, store_id: id + 100, role: role as i32, ..Default::default() }
    }

    fn region(peers: &[Peer]) -> Region {
        let region_epoch = Some(RegionEpoch { conf_ver: 4, version: 1 });
        Region { id: 1, region_epoch, peers: peers.to_vec(), ..Default::default() }
    }

    #[test]
    fn a_learner_joins_is_promoted_and_leaves() {
        use ChangePeerKind::*;
        let one = region(&[peer(1, PeerRole::Voter)]);
        let two = next_region(&one, AddLearner, &peer(2, PeerRole::Learner)).unwrap();
        assert_eq!((two.peers.len(), epoch(&two).conf_ver, is_learner(&two.peers[1])), (2, 5, true));
        let two = next_region(&two, AddVoter, &peer(2, PeerRole::Voter)).unwrap();
        assert_eq!((epoch(&two).conf_ver, is_learner(&two.peers[1])), (6, false));
        let one = next_region(&two, Remove, &peer(1, PeerRole::Voter)).unwrap();
        assert_eq!(one.peers, vec![peer(2, PeerRole::Voter)]);
        assert_eq!(next_region(&one, Remove, &peer(2, PeerRole::Voter)), Err(Refusal::LastVoter(2)));
    }

    #[test]
    fn changes_that_make_no_sense_are_refused() {
        use ChangePeerKind::*;
        let r = region(&[peer(1, PeerRole::Voter), peer(2, PeerRole::Voter)]);
        let on_taken_store = Peer { id: 9, store_id: 101, ..Default::default() };
        assert_eq!(next_region(&r, AddLearner, &on_taken_store), Err(Refusal::StoreTaken(101)));
        assert_eq!(next_region(&r, AddLearner, &peer(2, PeerRole::Learner)), Err(Refusal::Demotion(2)));
        assert_eq!(next_region(&r, AddVoter, &peer(2, PeerRole::Voter)), Err(Refusal::AlreadyMember(2)));
        assert_eq!(next_region(&r, Remove, &peer(7, PeerRole::Voter)), Err(Refusal::NotMember(7)));
    }

    #[test]
    fn an_entry_carries_what_every_replica_needs_to_decide() {
        let r = region(&[peer(1, PeerRole::Voter)]);
        let meta = RegionMeta { region: r.clone(), start: Bytes::new(), end: Bytes::new() };
        let change = entry(&meta, ChangePeerKind::AddLearner, &peer(2, PeerRole::Learner));
        let next = decide(&r, &change).unwrap().unwrap();
        assert_eq!(next.peers[1], peer(2, PeerRole::Learner));
        assert_eq!(decide(&next, &change), Ok(Err(Refusal::StaleEpoch)), "applied twice");
        let mut unknown = change.clone();
        unknown.context = Bytes::from_static(b"\x09");
        assert!(decide(&r, &unknown).unwrap_err().contains("upgrade"));
    }
}
