//! What travels between the peers of a region, and its form on the wire.
//!
//! A [`PeerMessage`] is a Raft message with its addressing: region, peers, and the sender's region epoch. On the
//! wire it is a `raft_serverpb::RaftMessage` whose Raft part is bytes. Everything that arrives is validated
//! here before the consensus library sees it, because the library panics on what it does not expect.

use bytes::Bytes;
use kvproto::{metapb, raft_serverpb};
use protobuf::Message as _;
use raft::eraftpb;

use raft_serverpb::ExtraMessageType;

/// What a message is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// For the consensus library.
    Raft(Box<eraftpb::Message>),
    /// "You are no longer a member; the region is now as in `region_epoch`": the receiver destroys itself.
    Tombstone,
    /// "Am I still a member?", asked by a peer that has long not heard of a leader.
    CheckStale,
}

/// A message from one peer of a region to another.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerMessage {
    pub region_id: u64,
    pub from: metapb::Peer,
    pub to: metapb::Peer,
    pub epoch: metapb::RegionEpoch,
    /// The sender's region, in boundary form, when the receiver may have no data yet: it must not come into being over
    /// a region that holds the range still.
    pub range: Option<(Bytes, Bytes)>,
    pub payload: Payload,
}

/// Why a message from another store was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("the message lacks {0}")]
    Missing(&'static str),
    #[error("the Raft part cannot be read: {0}")]
    Unreadable(String),
    #[error("the Raft part is not for or from the peers in the envelope")]
    Misaddressed,
    #[error("message type {0} never travels between stores")]
    LocalType(i32),
    #[error("{what} {value} is not a number that any log reaches")]
    OutOfRange { what: &'static str, value: u64 },
    #[error("extra message {0} is not known to this build")]
    UnknownExtra(i32),
}

impl PeerMessage {
    /// The Raft part, when there is one.
    pub fn raft(&self) -> Option<&eraftpb::Message> {
        match &self.payload {
            Payload::Raft(m) => Some(m),
            Payload::Tombstone | Payload::CheckStale => None,
        }
    }

    /// True for the message that announces a snapshot: it travels with the snapshot's files, on its own stream.
    pub fn is_snapshot(&self) -> bool {
        self.raft().is_some_and(|m| m.msg_type == eraftpb::MessageType::MsgSnapshot)
    }

    /// Bytes of payload, for limits.
    pub fn bytes(&self) -> usize {
        64 + self.raft().map_or(0, |m| m.entries.iter().map(|e| e.data.len() + 32).sum())
    }

    /// The form on the wire.
    pub fn into_wire(self) -> raft_serverpb::RaftMessage {
        let mut wire = raft_serverpb::RaftMessage {
            region_id: self.region_id,
            from_peer: Some(self.from),
            to_peer: Some(self.to),
            region_epoch: Some(self.epoch),
            ..Default::default()
        };
        if let Some((start, end)) = self.range {
            (wire.start_key, wire.end_key) = (start, end);
        }
        match self.payload {
            Payload::Raft(m) => {
                // Writing to memory can only fail when a required field is missing, and proto3 has none.
                wire.message = m.write_to_bytes().map(Bytes::from).unwrap_or_default();
            }
            Payload::Tombstone => wire.is_tombstone = true,
            Payload::CheckStale => {
                wire.extra_msg = Some(raft_serverpb::ExtraMessage {
                    r#type: ExtraMessageType::MsgCheckStalePeer as i32,
                    ..Default::default()
                })
            }
        }
        wire
    }

    /// Reads and validates what another store sent.
    pub fn from_wire(wire: raft_serverpb::RaftMessage) -> Result<PeerMessage, MessageError> {
        let from = wire.from_peer.ok_or(MessageError::Missing("the sender"))?;
        let to = wire.to_peer.ok_or(MessageError::Missing("the receiver"))?;
        let epoch = wire.region_epoch.ok_or(MessageError::Missing("the region epoch"))?;
        if wire.region_id == 0 || from.id == 0 || to.id == 0 {
            return Err(MessageError::Missing("a region or peer id"));
        }
        let payload = if wire.is_tombstone {
            Payload::Tombstone
        } else if let Some(extra) = wire.extra_msg {
            if extra.r#type != ExtraMessageType::MsgCheckStalePeer as i32 {
                return Err(MessageError::UnknownExtra(extra.r#type));
            }
            Payload::CheckStale
        } else {
            Payload::Raft(Box::new(raft_part(&wire.message, from.id, to.id)?))
        };
        let told = !wire.start_key.is_empty() || !wire.end_key.is_empty();
        let range = told.then_some((wire.start_key, wire.end_key));
        Ok(PeerMessage { region_id: wire.region_id, from, to, epoch, range, payload })
    }
}

fn raft_part(bytes: &Bytes, from: u64, to: u64) -> Result<eraftpb::Message, MessageError> {
    use eraftpb::MessageType::*;
    let mut m = eraftpb::Message::default();
    let mut input = protobuf::CodedInputStream::from_carllerche_bytes(bytes);
    m.merge_from(&mut input).map_err(|e| MessageError::Unreadable(e.to_string()))?;
    if m.from != from || m.to != to {
        return Err(MessageError::Misaddressed);
    }
    match m.msg_type {
        MsgAppend
        | MsgAppendResponse
        | MsgRequestVote
        | MsgRequestVoteResponse
        | MsgSnapshot
        | MsgHeartbeat
        | MsgHeartbeatResponse
        | MsgTransferLeader
        | MsgTimeoutNow
        | MsgRequestPreVote
        | MsgRequestPreVoteResponse => {}
        // Reads are asked of leaders only: nobody passes them on.
        MsgReadIndex | MsgReadIndexResp => return Err(MessageError::LocalType(m.msg_type as i32)),
        MsgHup | MsgBeat | MsgPropose | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum => {
            return Err(MessageError::LocalType(m.msg_type as i32));
        }
    }
    check_numbers(&m)?;
    if m.msg_type == MsgSnapshot && m.get_snapshot().get_metadata().index == 0 {
        return Err(MessageError::Missing("the snapshot's index"));
    }
    let mut previous = m.index;
    for entry in m.get_entries() {
        if entry.index != previous + 1 {
            return Err(MessageError::Unreadable("entries are not contiguous".into()));
        }
        previous = entry.index;
    }
    Ok(m)
}

/// No term or index comes near this; beyond it the library's sums would overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// The library takes a message without a term for one of its own, and counts on from the numbers in the others.
fn check_numbers(m: &eraftpb::Message) -> Result<(), MessageError> {
    if m.term == 0 {
        return Err(MessageError::Missing("the term"));
    }
    let last = m.get_entries().last().map_or(0, |entry| entry.index.max(entry.term));
    let snapshot = m.get_snapshot().get_metadata();
    for (what, value) in [
        ("term", m.term),
        ("log term", m.log_term),
        ("index", m.index),
        ("index", last),
        ("index", snapshot.index),
        ("term", snapshot.term),
        ("commit", m.commit),
        ("commit term", m.commit_term),
        ("hint", m.reject_hint),
    ] {
        if value >= NUMBER_MAX {
            return Err(MessageError::OutOfRange { what, value });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: eraftpb::MessageType) -> PeerMessage {
        let mut m = eraftpb::Message::default();
        m.set_msg_type(kind);
        (m.from, m.to, m.term, m.index) = (11, 12, 2, 4);
        let mut e = eraftpb::Entry::default();
        (e.index, e.data) = (5, Bytes::from_static(b"data"));
        m.entries.push(e);
        let peer = |id, store_id| metapb::Peer { id, store_id, ..Default::default() };
        let epoch = metapb::RegionEpoch { conf_ver: 1, version: 2 };
        let payload = Payload::Raft(Box::new(m));
        let range = Some((Bytes::from_static(b"a"), Bytes::new()));
        PeerMessage { region_id: 7, from: peer(11, 1), to: peer(12, 2), epoch, range, payload }
    }

    #[test]
    fn a_message_survives_the_wire() {
        for payload in
            [message(eraftpb::MessageType::MsgAppend).payload, Payload::Tombstone, Payload::CheckStale]
        {
            let m = PeerMessage { payload, ..message(eraftpb::MessageType::MsgAppend) };
            assert_eq!(PeerMessage::from_wire(m.clone().into_wire()), Ok(m));
        }
    }

    #[test]
    fn messages_that_would_panic_the_library_are_refused() {
        let local = message(eraftpb::MessageType::MsgHup).into_wire();
        assert_eq!(PeerMessage::from_wire(local), Err(MessageError::LocalType(0)));
        let mut read = message(eraftpb::MessageType::MsgReadIndex);
        let Payload::Raft(m) = &mut read.payload else { unreachable!() };
        m.entries.clear();
        assert_eq!(PeerMessage::from_wire(read.into_wire()), Err(MessageError::LocalType(15)));
        let mut foreign = message(eraftpb::MessageType::MsgAppend).into_wire();
        foreign.from_peer.as_mut().unwrap().id = 99;
        assert_eq!(PeerMessage::from_wire(foreign), Err(MessageError::Misaddressed));
        let mut garbage = message(eraftpb::MessageType::MsgAppend).into_wire();
        garbage.message = Bytes::from_static(b"\xff\xff\xff");
        assert!(matches!(PeerMessage::from_wire(garbage), Err(MessageError::Unreadable(_))));
        let changed = |change: fn(&mut eraftpb::Message)| {
            let mut message = message(eraftpb::MessageType::MsgHeartbeat);
            let Payload::Raft(m) = &mut message.payload else { unreachable!() };
            change(m);
            PeerMessage::from_wire(message.into_wire()).unwrap_err()
        };
        assert_eq!(changed(|m| m.term = 0), MessageError::Missing("the term"));
        for change in [
            (|m| m.term = u64::MAX) as fn(&mut eraftpb::Message),
            |m| m.commit = u64::MAX,
            |m| m.log_term = u64::MAX,
            |m| (m.index, m.entries) = (u64::MAX, Default::default()),
            |m| m.reject_hint = u64::MAX,
        ] {
            assert!(matches!(changed(change), MessageError::OutOfRange { .. }));
        }
        let mut gap = message(eraftpb::MessageType::MsgAppend);
        let Payload::Raft(m) = &mut gap.payload else { unreachable!() };
        m.entries[0].index = 9;
        assert!(matches!(PeerMessage::from_wire(gap.into_wire()), Err(MessageError::Unreadable(_))));
    }
}
