//! The core of a store: all its peers, stepped one event at a time.
//!
//! Owns the peers, their ticks and the map of ranges. A driver feeds events with [`Shard::step`], lets time pass
//! with [`Shard::advance_to`], and takes the effects with [`Shard::collect`]. Everything is deterministic: the same
//! calls give the same effects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::apply::ApplyTask;
use super::bootstrap::Found;
use super::config::RaftConfig;
use super::lease;
use super::message::input::BuiltSnapshot;
use super::message::peer_message::Payload;
use super::message::{Input, Output, PeerMessage};
use super::meta::region_map::{Holder, RegionMap};
use super::meta::region_view::ViewRegistry;
use super::meta::values::{INITIAL_STATE, PeerState, RegionStatus};
use super::nursery::Nursery;
use super::peer::{Peer, StoreCtx};
use super::store_worker::{self, Arrival};
use super::ticker::Ticker;
use crate::clock::Now;
use crate::engine::log_store::LogStore;
use crate::engine::{Engine, EngineError};
use crate::error::RegionError;

/// What a shard is built over.
pub struct ShardOptions {
    pub config: Arc<RaftConfig>,
    pub store_id: u64,
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn LogStore>,
    pub views: Arc<ViewRegistry>,
}

/// See the file's head.
pub struct Shard {
    peers: BTreeMap<u64, Peer>,
    ctx: StoreCtx,
    ticker: Ticker,
    dirty: Vec<u64>,
    due: Vec<u64>,
    /// Until then no votes are given and nobody campaigns: leases promised before a restart run out.
    quiet_until: Now,
}

impl Shard {
    /// A shard over what was found on disk at `now`. The driver has finished what was `Applying` or `cleaning`.
    pub fn load(
        options: ShardOptions,
        found: Vec<Found>,
        now: Now,
        out: &mut Output,
    ) -> Result<Shard, EngineError> {
        let ShardOptions { config, store_id, engine, log, views } = options;
        let ticker = Ticker::new(config.tick_ns(), now);
        let map = RegionMap::default();
        let (lost_stores, leaving) = (BTreeSet::new(), BTreeSet::new());
        let (without_data, nursery) = (BTreeMap::new(), Nursery::default());
        let ctx = StoreCtx {
            config,
            store_id,
            engine,
            log,
            map,
            views,
            now,
            lost_stores,
            leaving,
            without_data,
            nursery,
        };
        let mut shard = Shard {
            peers: BTreeMap::new(),
            ctx,
            ticker,
            dirty: Vec::new(),
            due: Vec::new(),
            quiet_until: now,
        };
        for found in found.into_iter().filter(|f| f.state.state() == PeerState::Normal) {
            shard.load_peer(found, out)?;
        }
        // A voter that has no data yet is known by its log alone; it too may have answered for a lease.
        if shard.ctx.log.regions()?.iter().any(|region_id| !shard.peers.contains_key(region_id)) {
            shard.keep_quiet();
        }
        Ok(shard)
    }

    fn load_peer(&mut self, found: Found, out: &mut Output) -> Result<(), EngineError> {
        let region_id = found.meta.region.id;
        self.ctx.map.take(&found.meta, Holder::Live).map_err(|overlap| {
            EngineError::Corrupt(format!(
                "region {region_id} overlaps another region of this store: {overlap}"
            ))
        })?;
        let logged = self.ctx.log.load(region_id)?;
        let mut peer = Peer::load(found.meta.clone(), found.peer, logged, &found.apply, &self.ctx)?;
        out.apply.push(ApplyTask::Register {
            region: found.meta.clone(),
            peer: found.peer,
            state: found.apply,
        });
        let voters = found.meta.region.peers.len();
        if voters == 1 && found.meta.region.peers[0].id == found.peer.id {
            // Nobody else could hold a lease or lead.
            if let Err(error) = peer.rn.campaign() {
                tracing::warn!(region = region_id, %error, "the only member did not campaign");
            }
            peer.fix_election_timeout(&self.ctx);
        } else {
            self.keep_quiet();
        }
        self.ticker.add(region_id, self.ctx.now);
        self.peers.insert(region_id, peer);
        self.mark(region_id);
        Ok(())
    }

    /// For one election minimum: no votes, no campaigns.
    fn keep_quiet(&mut self) {
        let c = &self.ctx.config;
        self.quiet_until = self.ctx.now.plus_ms(c.election_ticks as u64 * c.tick_ms);
    }

    fn mark(&mut self, region_id: u64) {
        if let Some(peer) = self.peers.get_mut(&region_id)
            && !peer.dirty
        {
            peer.dirty = true;
            self.dirty.push(region_id);
        }
    }

    /// Takes one event in.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Output) {
        self.ctx.now = self.ctx.now.max(now);
        match input {
            Input::Raft(m) => self.on_message(m, out),
            Input::Propose(p) => {
                let region_id = p.ctx.region_id;
                match self.peers.get_mut(&region_id) {
                    Some(peer) => peer.propose(p, &self.ctx, out),
                    None => out.reply(p.done, Err(RegionError::RegionNotFound { region_id })),
                }
                self.mark(region_id);
            }
            Input::Read(r) => {
                let region_id = r.ctx.region_id;
                match self.peers.get_mut(&region_id) {
                    Some(peer) => peer.read(r, &self.ctx, out),
                    None => out.reply(r.done, Err(RegionError::RegionNotFound { region_id })),
                }
                self.mark(region_id);
            }
            Input::Split(s) => {
                let region_id = s.ctx.region_id;
                match self.peers.get_mut(&region_id) {
                    Some(peer) => peer.split(s, &self.ctx, out),
                    None => s.done.call(Err(RegionError::RegionNotFound { region_id })),
                }
                self.mark(region_id);
            }
            Input::Command { region_id, epoch, command } => {
                self.with_peer(region_id, out, |p, ctx, out| p.command(&epoch, command, ctx, out));
            }
            Input::Inspect { region_id, done } => done.call(self.status(region_id)),
            completion => {
                self.on_completion(completion, out);
                if self.ctx.nursery.has_born() {
                    self.take_in(out);
                }
            }
        }
    }

    fn on_completion(&mut self, input: Input, out: &mut Output) {
        match input {
            Input::Persisted(writes) => {
                for ready in &writes.numbers {
                    if let Some(peer) = self.peers.get_mut(&ready.region_id)
                        && peer.peer.id == ready.peer_id
                    {
                        peer.on_persisted(ready);
                    }
                    self.mark(ready.region_id);
                }
            }
            Input::Applied(applied) => {
                self.with_peer(applied.region_id, out, |p, ctx, out| p.on_applied(applied, ctx, out));
            }
            Input::SnapshotBuilt { region_id, result } => {
                let result: Result<BuiltSnapshot, String> = result;
                self.with_peer(region_id, out, |p, _, _| p.on_snapshot_built(result));
            }
            Input::SnapshotSent { region_id, to_peer, ok } => {
                self.with_peer(region_id, out, |p, _, _| p.on_snapshot_sent(to_peer, ok));
            }
            Input::SnapshotApplied { region_id, key } => {
                self.with_peer(region_id, out, |p, ctx, out| p.on_snapshot_applied(&key, ctx, out));
            }
            Input::LogCompacted { .. } => {}
            Input::Destroyed { region_id } => {
                self.ctx.map.release(region_id);
                self.ctx.leaving.remove(&region_id);
            }
            Input::Unreachable { store_id } => self.each_peer(|p, _| p.unreachable(store_id)),
            Input::StoreLost { store_id } => {
                self.ctx.lost_stores.insert(store_id);
                self.each_peer(|p, _| p.unreachable(store_id));
            }
            Input::StoreBack { store_id } => {
                self.ctx.lost_stores.remove(&store_id);
            }
            Input::Membership { region_id, peer_id, answer } => {
                self.with_peer(region_id, out, |p, ctx, out| {
                    if p.peer.id == peer_id && !ctx.nursery.expects(region_id) {
                        p.on_membership(answer, ctx, out);
                    }
                });
            }
            Input::SplitChecked { region_id, version, result } => {
                self.with_peer(region_id, out, |p, ctx, out| p.on_split_checked(version, result, ctx, out));
            }
            Input::SplitIds { region_id, version, result } => {
                self.with_peer(region_id, out, |p, ctx, _| p.on_split_ids(version, result, ctx));
            }
            Input::HeartbeatAll => self.each_peer(|p, _| p.report_soon()),
            Input::Raft(_)
            | Input::Propose(_)
            | Input::Read(_)
            | Input::Split(_)
            | Input::Command { .. }
            | Input::Inspect { .. } => {
                unreachable!("requests are not completions")
            }
        }
    }

    fn with_peer(
        &mut self,
        region_id: u64,
        out: &mut Output,
        f: impl FnOnce(&mut Peer, &mut StoreCtx, &mut Output),
    ) {
        if let Some(peer) = self.peers.get_mut(&region_id) {
            f(peer, &mut self.ctx, out);
        }
        self.mark(region_id);
    }

    fn each_peer(&mut self, mut f: impl FnMut(&mut Peer, &mut StoreCtx)) {
        for (region_id, peer) in &mut self.peers {
            f(peer, &mut self.ctx);
            if !peer.dirty {
                peer.dirty = true;
                self.dirty.push(*region_id);
            }
        }
    }

    fn on_message(&mut self, m: PeerMessage, out: &mut Output) {
        let region_id = m.region_id;
        if m.to.store_id != self.ctx.store_id {
            tracing::debug!(region = region_id, "message for store {} came here", m.to.store_id);
            return;
        }
        // Whoever writes is back.
        self.ctx.lost_stores.remove(&m.from.store_id);
        if self.ctx.now < self.quiet_until && is_vote_request(&m) {
            return;
        }
        if self.ctx.nursery.expects(region_id) {
            self.ctx.nursery.keep(m);
            return;
        }
        if !self.peers.contains_key(&region_id) {
            if self.ctx.leaving.contains(&region_id) {
                return;
            }
            match store_worker::on_unknown_region(&m, &self.ctx, out) {
                Ok(Arrival::Create(peer)) => {
                    self.ctx.without_data.insert(region_id, peer.peer.id);
                    self.peers.insert(region_id, *peer);
                    self.ticker.add(region_id, self.ctx.now);
                }
                Ok(Arrival::TooEarly) => {
                    self.ctx.nursery.keep(m);
                    return;
                }
                Ok(Arrival::Ignore) => return,
                Err(error) => {
                    tracing::error!(region = region_id, %error, "cannot tell what became of the region here");
                    return;
                }
            }
        }
        self.with_peer(region_id, out, |p, ctx, out| p.step_message(m, ctx, out));
    }

    /// Takes the regions in that a split has made. One whose peer was here before, without data, waits until nothing of
    /// that is being written: its promises count.
    fn take_in(&mut self, out: &mut Output) {
        for born in self.ctx.nursery.take_born() {
            let region_id = born.child.meta.region.id;
            if self.peers.get(&region_id).is_some_and(Peer::is_busy) {
                self.ctx.nursery.put_back(born);
                continue;
            }
            let mut peer = match store_worker::newborn(&born.child, &self.ctx) {
                Ok(peer) => peer,
                Err(error) => {
                    tracing::error!(region = region_id, %error, "new region not taken in; trying again");
                    self.ctx.nursery.put_back(born);
                    continue;
                }
            };
            // It may have told that leader that it will elect nobody else for now: that counts as well.
            let followed = self.peers.get(&region_id).map_or(raft::INVALID_ID, |p| p.rn.raft.leader_id);
            if followed != raft::INVALID_ID {
                let term = peer.term();
                peer.rn.raft.become_follower(term, followed);
            }
            let child = born.child;
            out.apply.push(ApplyTask::Register {
                region: child.meta.clone(),
                peer: child.peer,
                state: INITIAL_STATE,
            });
            let alone = child.meta.region.peers.len() == 1;
            if (born.campaigns || alone)
                && followed == raft::INVALID_ID
                && let Err(error) = peer.rn.campaign()
            {
                tracing::warn!(region = region_id, %error, "a new region did not campaign");
            }
            peer.fix_election_timeout(&self.ctx);
            if self.peers.insert(region_id, peer).is_none() {
                self.ticker.add(region_id, self.ctx.now);
            }
            self.ctx.without_data.remove(&region_id);
            self.mark(region_id);
            for m in self.ctx.nursery.settle(region_id) {
                self.with_peer(region_id, out, |p, ctx, out| p.step_message(m, ctx, out));
            }
        }
    }

    /// Lets time pass: ticks that are due are done, each peer's once; ticks that were missed are dropped.
    pub fn advance_to(&mut self, now: Now, out: &mut Output) {
        self.ctx.now = self.ctx.now.max(now);
        let mut due = std::mem::take(&mut self.due);
        self.ticker.advance_to(self.ctx.now, &mut due);
        let quiet = self.ctx.now < self.quiet_until;
        for region_id in due.drain(..) {
            self.with_peer(region_id, out, |p, ctx, out| p.tick(quiet, ctx, out));
        }
        self.due = due;
    }

    /// Hands out the effects of everything that happened since the last call.
    pub fn collect(&mut self, out: &mut Output) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for region_id in dirty.drain(..) {
            let Some(peer) = self.peers.get_mut(&region_id) else { continue };
            peer.dirty = false;
            peer.collect(&mut self.ctx, out);
            if peer.is_gone() {
                self.peers.remove(&region_id);
                self.ticker.remove(region_id);
                self.ctx.leaving.insert(region_id);
            }
        }
        // Keep the memory, and what became dirty meanwhile.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// When the driver must call [`Shard::advance_to`] at the latest; `None` when nothing is due ever.
    pub fn next_deadline(&self) -> Option<Now> {
        self.ticker.next_deadline()
    }

    /// What a peer looks like inside.
    pub fn status(&self, region_id: u64) -> Result<Arc<RegionStatus>, RegionError> {
        let peer = self.peers.get(&region_id).ok_or(RegionError::RegionNotFound { region_id })?;
        Ok(Arc::new(peer.status()))
    }

    /// The regions with a peer here, ascending.
    pub fn regions(&self) -> impl Iterator<Item = u64> + '_ {
        self.peers.keys().copied()
    }

    /// The ranges taken on this store.
    pub fn map(&self) -> &RegionMap {
        &self.ctx.map
    }

    /// The longest a lease may last after the send it counts from, nanoseconds.
    pub fn lease_length_ns(&self) -> u64 {
        lease::length_ns(self.ctx.config.tick_ms, self.ctx.config.election_ticks as u64)
    }
}

fn is_vote_request(m: &PeerMessage) -> bool {
    use raft::eraftpb::MessageType::{MsgRequestPreVote, MsgRequestVote};
    matches!(&m.payload, Payload::Raft(raft) if matches!(raft.msg_type, MsgRequestVote | MsgRequestPreVote))
}
