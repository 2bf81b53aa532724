//! Finding peers in regions, and what the consensus library must know of a region's members.

use kvproto::key::BoundaryForm;
use kvproto::metapb::{Peer, PeerRole, Region, RegionEpoch};
use raft::eraftpb::ConfState;

use crate::raftstore::meta::region_view::RegionMeta;

/// The region's peer on a store.
pub fn peer_on_store(region: &Region, store_id: u64) -> Option<&Peer> {
    region.peers.iter().find(|p| p.store_id == store_id)
}

/// The region's peer with an id.
pub fn peer_by_id(region: &Region, peer_id: u64) -> Option<&Peer> {
    region.peers.iter().find(|p| p.id == peer_id)
}

/// True for a peer that receives the log and does not vote.
pub fn is_learner(peer: &Peer) -> bool {
    peer.role == PeerRole::Learner as i32
}

/// The region's epoch; a region without one counts as never changed.
pub fn epoch(region: &Region) -> RegionEpoch {
    region.region_epoch.unwrap_or_default()
}

/// The members in the consensus library's form.
pub fn conf_state(region: &Region) -> ConfState {
    let (learners, voters): (Vec<&Peer>, Vec<&Peer>) = region.peers.iter().partition(|p| is_learner(p));
    let ids = |peers: Vec<&Peer>| peers.iter().map(|p| p.id).collect::<Vec<_>>();
    ConfState { voters: ids(voters), learners: ids(learners), ..Default::default() }
}

/// The region with its bounds as user keys. A bound that is no valid boundary is an error: such a region must
/// not be served.
pub fn meta(region: Region, form: BoundaryForm) -> Result<RegionMeta, kvproto::key::KeyError> {
    let start = form.wire_key(region.start_key.clone())?;
    let end = form.wire_key(region.end_key.clone())?;
    Ok(RegionMeta { region, start, end })
}
