//! Messages for peers that do not exist here (yet, or any more).
//!
//! A message of a leader or candidate for a member on this store brings the peer into being, without data: a
//! snapshot will bring that. A tombstone stands against it: a peer that was destroyed does not come back by a late
//! message; whoever writes to it is told. Neither does a peer come into being over the range of another region that
//! lives here: that one is about to be divided, and the message is kept for then. Responses and everything else bring
//! nothing into being.

use std::sync::Arc;

use kvproto::metapb;
use raft::eraftpb::MessageType;

use super::message::peer_message::Payload;
use super::message::{Output, PeerMessage};
use super::meta::keys;
use super::meta::region_map::Holder;
use super::meta::region_view::RegionMeta;
use super::meta::values::{self, ApplyState, INITIAL_STATE, PeerState, RegionState};
use super::op::split::Child;
use super::peer::{Peer, StoreCtx};
use super::util::region;
use crate::engine::Result;
use crate::engine::log_store::LoggedState;

/// What to do with a message for a region without a peer here.
pub(super) enum Arrival {
    /// Bring this peer into being and give it the message.
    Create(Box<Peer>),
    /// The region is not divided here yet: keep the message.
    TooEarly,
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
    match overlap(m, ctx) {
        None => {}
        Some(Holder::Live) => return Ok(Arrival::TooEarly),
        Some(Holder::Pending | Holder::Cleaning) => return Ok(Arrival::Ignore),
    }
    let region = metapb::Region { id: m.region_id, ..Default::default() };
    let meta = Arc::new(RegionMeta { region, start: Default::default(), end: Default::default() });
    let logged = promises(m.region_id, ctx)?;
    tracing::info!(region = m.region_id, peer = m.to.id, "creating peer at the word of peer {}", m.from.id);
    let peer = Peer::load(meta, m.to, logged, &ApplyState::default(), ctx)?;
    Ok(Arrival::Create(Box::new(peer)))
}

/// Who holds a part of the sender's range here. A sender that does not tell its range knows this peer to have data:
/// then there must be none of another region.
fn overlap(m: &PeerMessage, ctx: &StoreCtx) -> Option<Holder> {
    let (start_key, end_key) = m.range.clone().unwrap_or_default();
    let region = metapb::Region { id: m.region_id, start_key, end_key, ..Default::default() };
    match region::meta(region, ctx.form()) {
        Ok(meta) => ctx.map.overlap(&meta).map(|overlap| overlap.holder),
        // No valid boundary, no peer.
        Err(_) => Some(Holder::Cleaning),
    }
}

/// Whether a peer that a split announces may come into being here: not when it, or a later one of its region, was
/// removed or lives here already.
pub(super) fn may_be_born(region_id: u64, peer_id: u64, ctx: &StoreCtx) -> bool {
    if ctx.leaving.contains(&region_id) {
        return false;
    }
    if ctx.without_data.get(&region_id).is_some_and(|id| *id != peer_id) {
        return false;
    }
    let state: Result<Option<RegionState>> =
        values::load(&*ctx.engine, &keys::region_state(region_id), "region state");
    match state {
        Ok(None) => true,
        Ok(Some(state)) => {
            state.state() == PeerState::Tombstone && state.peer.unwrap_or_default().id < peer_id
        }
        // The apply will meet the same disk.
        Err(error) => {
            tracing::error!(region = region_id, %error, "cannot tell what became of the region here");
            false
        }
    }
}

/// The peer of a new region, over its part of the data of the region that was divided.
pub(super) fn newborn(child: &Child, ctx: &StoreCtx) -> Result<Peer> {
    let logged = promises(child.meta.region.id, ctx)?;
    Peer::load(child.meta.clone(), child.peer, logged, &INITIAL_STATE, ctx)
}

/// What a peer without data has promised in an earlier life. It had no data, so its entries mean nothing.
fn promises(region_id: u64, ctx: &StoreCtx) -> Result<Option<LoggedState>> {
    Ok(ctx.log.load(region_id)?.map(|mut l| {
        (l.first_index, l.last_index) = (0, 0);
        l.hard_state.commit = 0;
        l
    }))
}

/// A destroyed peer is asked whether the sender is still a member, as far as it knew.
fn answer_from_beyond(m: &PeerMessage, region: &metapb::Region, old: metapb::Peer, out: &mut Output) {
    let epoch = super::util::region::epoch(region);
    let was_member = region.peers.iter().any(|p| p.id == m.from.id);
    if !was_member && super::util::epoch::is_older(&m.epoch, &epoch) {
        let payload = Payload::Tombstone;
        out.early.push(PeerMessage {
            region_id: m.region_id,
            from: old,
            to: m.from,
            epoch,
            range: None,
            payload,
        });
    }
}
