//! Messages for peers that do not exist here (yet, or any more).
//!
//! A message of a leader or candidate for a member on this store brings the peer into being, without data: a
//! snapshot will bring that. A tombstone stands against it: a peer that was destroyed does not come back by a late
//! message; whoever writes to it is told. Responses and everything else bring nothing into being.

use std::sync::Arc;

use kvproto::metapb;
use raft::eraftpb::MessageType;

use super::message::peer_message::Payload;
use super::message::{Output, PeerMessage};
use super::meta::keys;
use super::meta::region_view::RegionMeta;
use super::meta::values::{self, ApplyState, PeerState, RegionState};
use super::peer::{Peer, StoreCtx};
use crate::engine::Result;

/// What to do with a message for a region without a peer here.
pub(super) enum Arrival {
    /// Bring this peer into being and give it the message.
    Create(Box<Peer>),
    /// Nothing is to be done.
    Ignore,
}

/// True when the sender leads or wants to: only such messages bring a peer into being.
fn is_initial(m: &PeerMessage) -> bool {
    m.raft().is_some_and(|raft| {
        matches!(
            raft.msg_type,
            MessageType::MsgHeartbeat
                | MessageType::MsgAppend
                | MessageType::MsgSnapshot
                | MessageType::MsgRequestVote
                | MessageType::MsgRequestPreVote
        )
    })
}

/// Decides about a message for a region without a peer here.
pub(super) fn on_unknown_region(m: &PeerMessage, ctx: &StoreCtx, out: &mut Output) -> Result<Arrival> {
    let state: Option<RegionState> =
        values::load(&*ctx.engine, &keys::region_state(m.region_id), "region state")?;
    if let Some(state) = state.filter(|s| s.state() == PeerState::Tombstone) {
        let old = state.peer.unwrap_or_default();
        if m.to.id <= old.id {
            if let (Payload::Raft(_) | Payload::CheckStale, Some(region)) = (&m.payload, &state.region) {
                answer_from_beyond(m, region, old, out);
            }
            return Ok(Arrival::Ignore);
        }
    }
    if !is_initial(m) {
        return Ok(Arrival::Ignore);
    }
    let region = metapb::Region { id: m.region_id, ..Default::default() };
    let meta = Arc::new(RegionMeta { region, start: Default::default(), end: Default::default() });
    let logged = ctx.log.load(m.region_id)?.map(|mut l| {
        // Only the promises of an earlier life count; it had no data, so its entries mean nothing.
        (l.first_index, l.last_index) = (0, 0);
        l.hard_state.commit = 0;
        l
    });
    tracing::info!(region = m.region_id, peer = m.to.id, "creating peer at the word of peer {}", m.from.id);
    let peer = Peer::load(meta, m.to, logged, &ApplyState::default(), ctx)?;
    Ok(Arrival::Create(Box::new(peer)))
}

/// A destroyed peer is asked whether the sender is still a member, as far as it knew.
fn answer_from_beyond(m: &PeerMessage, region: &metapb::Region, old: metapb::Peer, out: &mut Output) {
    let epoch = super::util::region::epoch(region);
    let was_member = region.peers.iter().any(|p| p.id == m.from.id);
    if !was_member && super::util::epoch::is_older(&m.epoch, &epoch) {
        let payload = Payload::Tombstone;
        out.early.push(PeerMessage { region_id: m.region_id, from: old, to: m.from, epoch, payload });
    }
}
