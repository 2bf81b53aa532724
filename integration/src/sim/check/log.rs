//! A vote or an acknowledgement leaves a store only after what it promises is on the disk (INV-LOG).
//!
//! Looks at the messages that leave and at what of the store's log would survive a loss of power at that moment.

use kvserver::raftstore::message::PeerMessage;
use raft::eraftpb::MessageType;

use super::{Verdict, broken};
use crate::sim::disk::OnDisk;

/// Checks one message that leaves `store`. `snapshot` is the last index of the snapshot the store has taken in.
pub fn check(store: usize, message: &PeerMessage, disk: OnDisk, snapshot: u64) -> Verdict {
    let Some(m) = message.raft().filter(|m| !m.reject) else { return Ok(()) };
    let region_id = message.region_id;
    match m.msg_type {
        // Entries of an older term may be acknowledged and replaced in one write: as if there had been two.
        MessageType::MsgAppendResponse
            if m.term >= disk.hard_state.term && m.index > disk.last_index.max(snapshot) =>
        {
            let what =
                format!("store {store} region {region_id}: acknowledges {} with {disk:?} on disk", m.index);
            broken("log", what)
        }
        MessageType::MsgRequestVoteResponse
            if disk.hard_state.term < m.term
                || (disk.hard_state.term == m.term && disk.hard_state.vote != m.to) =>
        {
            let what =
                format!("store {store} region {region_id}: votes for {} in {} with {disk:?}", m.to, m.term);
            broken("log", what)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kvserver::engine::log_store::HardState;
    use kvserver::raftstore::message::peer_message::Payload;
    use raft::eraftpb::Message;

    use super::*;

    fn message(kind: MessageType, term: u64, index: u64) -> PeerMessage {
        let mut m = Message { term, index, to: 3, ..Default::default() };
        m.set_msg_type(kind);
        let payload = Payload::Raft(Box::new(m));
        let (from, to) = Default::default();
        PeerMessage { region_id: 1, from, to, epoch: Default::default(), range: None, payload }
    }

    #[test]
    fn what_is_not_on_disk_may_not_be_promised() {
        let disk = OnDisk { last_index: 8, hard_state: HardState { term: 4, vote: 3, commit: 0 } };
        let ack =
            |index, snapshot| check(0, &message(MessageType::MsgAppendResponse, 4, index), disk, snapshot);
        assert_eq!(ack(8, 0), Ok(()));
        assert!(ack(9, 0).is_err());
        assert_eq!(ack(9, 9), Ok(()), "a snapshot stands for the log it replaced");
        let late = check(0, &message(MessageType::MsgAppendResponse, 3, 9), disk, 0);
        assert_eq!(late, Ok(()), "a newer leader has replaced them since");
        let vote = |term| check(0, &message(MessageType::MsgRequestVoteResponse, term, 0), disk, 0);
        assert_eq!(vote(4), Ok(()));
        assert!(vote(5).is_err());
        let other = OnDisk { hard_state: HardState { vote: 2, ..disk.hard_state }, ..disk };
        assert!(check(0, &message(MessageType::MsgRequestVoteResponse, 4, 0), other, 0).is_err());
    }
}
