//! Handing leadership to another peer.
//!
//! Propose: checked here (a voter, nearly caught up, no membership change under way). The lease is given up for the
//! rest of the term and the view without it is published before the library may send MsgTimeoutNow, since the
//! receiver is elected in spite of everybody's lease (INV-LEASE). There is nothing to apply.

use kvproto::metapb;

use crate::raftstore::peer::Peer;
use crate::raftstore::util::region::is_learner;

/// Entries the next leader may lag behind; it has to fetch them before it is told to campaign.
const LAG_MAX: u64 = 128;

/// Why leadership stays where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this peer does not lead")]
    NotLeader,
    #[error("peer {0} is not a voter of the region")]
    NotVoter(u64),
    #[error("peer {0} lags {1} entries behind")]
    Lags(u64, u64),
    #[error("a membership change is in progress")]
    Changing,
}

impl Peer {
    pub(in crate::raftstore) fn transfer_leader(&mut self, to: &metapb::Peer) -> Result<(), Refusal> {
        if !self.is_leader() {
            return Err(Refusal::NotLeader);
        }
        if to.id == self.peer.id {
            return Ok(());
        }
        if self.member(to.id).is_none_or(|p| is_learner(&p)) {
            return Err(Refusal::NotVoter(to.id));
        }
        if self.rn.raft.has_pending_conf() {
            return Err(Refusal::Changing);
        }
        let matched = self.rn.raft.prs().get(to.id).map_or(0, |p| p.matched);
        let lag = self.rn.raft.raft_log.last_index().saturating_sub(matched);
        if lag > LAG_MAX {
            return Err(Refusal::Lags(to.id, lag));
        }
        self.lease.suspend();
        self.publish_view();
        self.rn.transfer_leader(to.id);
        Ok(())
    }
}
