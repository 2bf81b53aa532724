//! Feeding a peer: messages of other peers, requests, ticks.
//!
//! Invariants: a message reaches the consensus library only when it is for this peer, from a region that is not
//! older than what both sides agreed on, and in a shape the library does not panic on; requests are checked in the
//! order clients rely on (peer, leader, term, epoch).

use kvproto::{metapb, pdpb};
use raft::eraftpb::MessageType;
use raft::{ProgressState, StateRole};

use super::message::input::{MembershipAnswer, RegionReport, SplitCheck};
use super::message::peer_message::Payload;
use super::message::{Output, PeerMessage, Propose, ReadRequest, RegionCommand, RegionContext, Task};
use super::peer::{Peer, StoreCtx};
use super::read_queue;
use super::util::epoch::is_older;
use super::util::region::{epoch, is_learner, peer_by_id};
use crate::clock::Now;
use crate::error::RegionError;

/// How often the time between two looks at a region is doubled while the scheduler gives no ids.
const SPLIT_PATIENCE_MAX: u32 = 6;
/// Seconds of silence after which a peer is reported as down.
const DOWN_AFTER_S: u64 = 10;

impl Peer {
    /// A message of another peer of this region, for this peer.
    pub(super) fn step_message(&mut self, m: PeerMessage, ctx: &mut StoreCtx, out: &mut Output) {
        if self.stopped.is_some() || self.doomed {
            return;
        }
        let mine = epoch(&self.meta().region);
        if m.to.id != self.peer.id {
            // For a later incarnation of the replica: this one was removed and does not know it yet.
            if m.to.id > self.peer.id && !is_older(&m.epoch, &mine) && m.epoch.conf_ver > mine.conf_ver {
                self.destroy(ctx, out);
            }
            return;
        }
        let member = self.member(m.from.id).is_some();
        match m.payload {
            Payload::Tombstone => {
                if m.epoch.conf_ver > mine.conf_ver || !self.rn.store().initialized() {
                    self.destroy(ctx, out);
                }
            }
            Payload::CheckStale => self.answer_stale_check(m.from, &m.epoch, member, out),
            Payload::Raft(_) if !member && is_older(&m.epoch, &mine) => {
                // It was removed and campaigns or answers from the past: tell it.
                out.early.push(self.message(m.from, Payload::Tombstone));
            }
            Payload::Raft(_) if !member && m.epoch.conf_ver == mine.conf_ver => {
                // The membership it claims to know is the one known here, and it is not in it.
                tracing::debug!(region = self.region_id, peer = m.from.id, "message of a stranger");
            }
            Payload::Raft(raft) => {
                self.heard.insert(m.from.id, (m.from, ctx.now));
                self.told_conf_ver = self.told_conf_ver.max(m.epoch.conf_ver);
                self.step_raft(*raft, ctx, out);
            }
        }
    }

    fn step_raft(&mut self, m: raft::eraftpb::Message, ctx: &mut StoreCtx, out: &mut Output) {
        let log = &self.rn.raft.raft_log;
        let too_far = match m.msg_type {
            // The library would panic: this peer lost entries that it once acknowledged.
            MessageType::MsgHeartbeat => m.term >= self.term() && m.commit > log.last_index(),
            // The library says term 0 for entries that were compacted away: nothing is known of those.
            MessageType::MsgAppend => {
                m.term >= self.term()
                    && m.index < log.committed
                    && m.entries.iter().any(|e| {
                        let differs = |known| known != 0 && known != e.term;
                        e.index <= log.committed && log.term(e.index).is_ok_and(differs)
                    })
            }
            _ => false,
        };
        if too_far {
            self.stop("the leader knows of committed entries that this log does not have".into(), ctx, out);
            return;
        }
        if m.msg_type == MessageType::MsgSnapshot && !self.accept_snapshot(&m, ctx) {
            return;
        }
        // Campaigning over a log whose beginning is not in place yet would panic the library.
        if m.msg_type == MessageType::MsgTimeoutNow && self.applying.is_some() {
            return;
        }
        let snapshot = m.msg_type == MessageType::MsgSnapshot;
        if let Err(error) = self.rn.step(m) {
            tracing::debug!(region = self.region_id, %error, "message not taken");
        }
        self.fix_election_timeout(ctx);
        if snapshot {
            self.release_unused_range(ctx);
        }
    }

    fn answer_stale_check(
        &self,
        from: metapb::Peer,
        theirs: &metapb::RegionEpoch,
        member: bool,
        out: &mut Output,
    ) {
        let mine = epoch(&self.meta().region);
        if !member && is_older(theirs, &mine) {
            out.early.push(self.message(from, Payload::Tombstone));
        }
    }

    /// The scheduler said what the region is like; this peer had doubts about its membership.
    pub(super) fn on_membership(&mut self, answer: MembershipAnswer, ctx: &mut StoreCtx, out: &mut Output) {
        let MembershipAnswer::Region(region) = answer else { return };
        // Without data this peer knows only of which membership those were who wrote to it. An answer that is older
        // may be from before it was added.
        let known = match self.rn.store().initialized() {
            true => epoch(&self.meta().region).conf_ver,
            false => self.told_conf_ver,
        };
        if epoch(&region).conf_ver >= known && peer_by_id(&region, self.peer.id).is_none() {
            self.destroy(ctx, out);
        }
    }

    /// Whether the request is for this peer at all.
    pub(super) fn check_target(&self, c: &RegionContext) -> Result<(), RegionError> {
        if self.stopped.is_some() {
            return Err(self.stopped_error());
        }
        if c.peer_id != 0 && c.peer_id != self.peer.id {
            return Err(RegionError::MismatchPeerId { requested: c.peer_id, actual: self.peer.id });
        }
        if !self.rn.store().initialized() {
            return Err(RegionError::RegionNotInitialized { region_id: self.region_id });
        }
        if self.doomed || !self.is_leader() {
            return Err(self.not_leader());
        }
        if c.term != 0 && c.term < self.term() {
            return Err(RegionError::StaleCommand);
        }
        Ok(())
    }

    /// Takes a write in; it is proposed at the end of the turn together with the others.
    pub(super) fn propose(&mut self, p: Propose, ctx: &StoreCtx, out: &mut Output) {
        let full = || RegionError::ServerIsBusy { reason: "too many writes wait in this region".into() };
        let room = self.proposals.len() < ctx.config.proposals_max;
        match self.check_target(&p.ctx).and_then(|()| if room { Ok(()) } else { Err(full()) }) {
            Ok(()) => self.proposals.arrived.push(p),
            Err(error) => out.reply(p.done, Err(error)),
        }
    }

    /// Takes a read in; the quorum is asked at the end of the turn for all of them.
    pub(super) fn read(&mut self, r: ReadRequest, ctx: &StoreCtx, out: &mut Output) {
        let stale = r.ctx.version != self.meta().version();
        let checked = self.check_target(&r.ctx).and_then(|()| match stale {
            true => Err(RegionError::EpochNotMatch { current: ctx.current_regions(&self.meta()) }),
            false => Ok(()),
        });
        match checked {
            Ok(()) => self.reads.push(r.done, ctx.now.plus_ms(ctx.config.read_index_timeout_ms)),
            Err(error) => out.reply(r.done, Err(error)),
        }
    }

    /// Carries out an order of the scheduler, or drops it with a reason in the log: the scheduler sees from the next
    /// report what became of it.
    pub(super) fn command(
        &mut self,
        given_for: &metapb::RegionEpoch,
        command: RegionCommand,
        ctx: &StoreCtx,
        out: &mut Output,
    ) {
        let refused = match command {
            RegionCommand::ChangePeer { kind, peer } => {
                if given_for.conf_ver != self.meta().conf_ver() {
                    Some("the membership has changed since".to_string())
                } else {
                    self.propose_conf_change(kind, &peer).err().map(|e| e.to_string())
                }
            }
            RegionCommand::TransferLeader { peer } => {
                self.transfer_leader(&peer).err().map(|e| e.to_string())
            }
            RegionCommand::Split { .. } if given_for.version != self.meta().version() => {
                Some("the region's range has changed since".to_string())
            }
            RegionCommand::Split { boundaries } if boundaries.is_empty() => {
                self.check_size(true, out);
                None
            }
            RegionCommand::Split { boundaries } => {
                let form = ctx.form();
                match boundaries.into_iter().map(|b| form.wire_key(b)).collect::<Result<Vec<_>, _>>() {
                    Ok(keys) => {
                        self.split_unasked(keys, ctx, out);
                        None
                    }
                    Err(error) => Some(format!("a boundary is damaged: {error}")),
                }
            }
        };
        if let Some(reason) = refused {
            tracing::info!(region = self.region_id, reason, "order of the scheduler not carried out");
            self.report_soon();
        }
    }

    /// One tick has passed.
    pub(super) fn tick(&mut self, quiet: bool, ctx: &mut StoreCtx, out: &mut Output) {
        if self.stopped.is_some() || self.doomed {
            return;
        }
        for done in self.reads.take_expired(ctx.now) {
            out.reply(done, Err(read_queue::expired(self.region_id)));
        }
        drop(self.proposals.take_orphaned(ctx.now, ctx.config.orphan_timeout_ms * 1_000_000));
        if !self.rn.store().initialized() {
            // It cannot campaign, but its election clock must run: it votes only when its leader has been silent.
            self.rn.tick();
            self.fix_election_timeout(ctx);
            self.tick_leaderless(ctx, out);
            return;
        }
        // Just after a start this store may have forgotten promises about leases, and while a snapshot is put in
        // place the log has no beginning: the peer does not campaign.
        let would_campaign = self.rn.raft.election_elapsed + 1 >= self.rn.raft.randomized_election_timeout();
        if self.is_leader() || !would_campaign || !(quiet || self.applying.is_some()) {
            self.rn.tick();
        }
        self.ticks.look_at_pending = true;
        self.fix_election_timeout(ctx);
        if self.is_leader() {
            self.tick_leader(ctx, out);
        } else {
            self.campaign_for_lost_leader(ctx);
            self.tick_leaderless(ctx, out);
        }
    }

    fn tick_leader(&mut self, ctx: &mut StoreCtx, out: &mut Output) {
        self.ticks.report += 1;
        if self.ticks.report >= ctx.config.report_ticks {
            self.report_soon();
        }
        self.ticks.log_gc += 1;
        if self.ticks.log_gc >= ctx.config.log_gc_ticks {
            self.ticks.log_gc = 0;
            self.propose_compact_log(ctx);
        }
        self.ticks.split_check += 1;
        let patience = 1 << self.ticks.splits_refused.min(SPLIT_PATIENCE_MAX);
        if self.ticks.split_check >= ctx.config.split_check_ticks * patience {
            self.ticks.split_check = 0;
            if self.size.is_none() || self.written.unchecked >= ctx.config.split_check_diff {
                self.check_size(false, out);
            }
        }
        // Somebody reads here and the lease runs out within two heartbeats: ask the quorum ahead of time.
        let margin_ms = 2 * ctx.config.heartbeat_ticks as u64 * ctx.config.tick_ms;
        let ends_soon = self.lease.until() <= ctx.now.plus_ms(margin_ms);
        let may = self.serves() && !self.lease.is_suspended() && !self.reads.is_asking();
        if may && ends_soon && self.take_read_lately() {
            let context = self.reads.begin(ctx.now);
            self.rn.read_index(context);
        }
    }

    /// Has the region's data looked at: whether it is too large, or where its middle is.
    fn check_size(&mut self, half: bool, out: &mut Output) {
        if self.serves() && !self.ticks.checking && self.splitting.is_none() {
            self.ticks.checking = true;
            self.written.unchecked = 0;
            out.tasks.push(Task::CheckSplit { region: self.meta(), half });
        }
    }

    /// The region's data was looked at.
    pub(super) fn on_split_checked(
        &mut self,
        version: u64,
        result: Result<SplitCheck, String>,
        ctx: &StoreCtx,
        out: &mut Output,
    ) {
        self.ticks.checking = false;
        match result {
            Ok(check) if version == self.meta().version() => {
                self.size = Some(check.size);
                if !check.split_keys.is_empty() && self.serves() {
                    self.split_unasked(check.split_keys, ctx, out);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(region = self.region_id, error, "size of the region not known"),
        }
    }

    /// The leader's process is known to be gone: do not wait for the whole timeout. Peers that still honour a lease
    /// drop votes silently, so this begins only once their clocks have passed it, and repeats.
    fn campaign_for_lost_leader(&mut self, ctx: &StoreCtx) {
        let r = &self.rn.raft;
        let lost = self.leader().is_some_and(|l| ctx.lost_stores.contains(&l.store_id));
        let past = r.election_elapsed as u64;
        let from = ctx.config.election_ticks as u64 + self.rank();
        let voter = self.member(self.peer.id).is_some_and(|p| !is_learner(&p)) && self.applying.is_none();
        if lost && voter && r.state == StateRole::Follower && past >= from && (past - from).is_multiple_of(2)
        {
            // Refused only while a membership change waits to be applied; the timeout remains.
            if let Err(error) = self.rn.campaign() {
                tracing::debug!(region = self.region_id, %error, "did not campaign");
            }
            self.fix_election_timeout(ctx);
        }
    }

    /// Long without a leader: perhaps the others went on without this peer.
    fn tick_leaderless(&mut self, ctx: &StoreCtx, out: &mut Output) {
        if self.hears_leader(ctx) {
            self.ticks.leaderless = 0;
            return;
        }
        self.ticks.leaderless += 1;
        if self.ticks.leaderless.is_multiple_of(ctx.config.stale_check_ticks) {
            let region = self.meta();
            for peer in region.region.peers.iter().filter(|p| p.id != self.peer.id) {
                out.early.push(self.message(*peer, Payload::CheckStale));
            }
            out.tasks.push(Task::AskMembership { region_id: self.region_id, peer_id: self.peer.id });
        }
    }

    /// Whether a leader wrote lately. What the library believes is not enough: a peer that does not vote, or has no
    /// data yet, believes in its last leader for ever.
    fn hears_leader(&self, ctx: &StoreCtx) -> bool {
        let lately = 2 * ctx.config.election_ticks as u64 * ctx.config.tick_ns();
        let recent = |(_, at): &(metapb::Peer, Now)| ctx.now.since(*at) < lately;
        match self.rn.store().initialized() {
            true => self.is_leader() || self.heard.get(&self.rn.raft.leader_id).is_some_and(recent),
            false => self.heard.values().any(recent),
        }
    }

    /// Messages to this store get lost.
    pub(super) fn unreachable(&mut self, store_id: u64) {
        if !self.is_leader() {
            return;
        }
        let on_store = |p: &&metapb::Peer| p.store_id == store_id;
        if let Some(id) = self.meta().region.peers.iter().find(on_store).map(|p| p.id) {
            self.rn.report_unreachable(id);
        }
    }

    /// Members that cannot take over yet: they wait for a snapshot or lag behind the log's beginning.
    fn pending_peers(&self) -> Vec<metapb::Peer> {
        let truncated = self.rn.store().truncated().0;
        let lags = |p: &&metapb::Peer| {
            let progress = self.rn.raft.prs().get(p.id);
            p.id != self.peer.id
                && progress.is_none_or(|pr| pr.matched <= truncated || pr.state == ProgressState::Snapshot)
        };
        self.meta().region.peers.iter().filter(lags).copied().collect()
    }

    fn down_peers(&self, ctx: &StoreCtx) -> Vec<pdpb::PeerStats> {
        let silent = |p: &metapb::Peer| {
            let since = self.heard.get(&p.id).map_or(0, |(_, at)| ctx.now.since(*at)) / 1_000_000_000;
            let down = p.id != self.peer.id && since >= DOWN_AFTER_S;
            down.then_some(pdpb::PeerStats { peer: Some(*p), down_seconds: since })
        };
        self.meta().region.peers.iter().filter_map(silent).collect()
    }

    /// Reports to the scheduler when it is time, or when a member caught up or fell behind.
    pub(super) fn report_if_due(&mut self, ctx: &StoreCtx, out: &mut Output) {
        if !self.is_leader() || !self.serves() {
            return;
        }
        if !self.ticks.report_now && !self.ticks.look_at_pending && self.ticks.pending.is_empty() {
            return;
        }
        self.ticks.look_at_pending = false;
        let pending = self.pending_peers();
        let ids: Vec<u64> = pending.iter().map(|p| p.id).collect();
        if !self.ticks.report_now && ids == self.ticks.pending {
            return;
        }
        (self.ticks.report_now, self.ticks.report, self.ticks.pending) = (false, 0, ids);
        out.tasks.push(Task::Report(Box::new(RegionReport {
            region: self.meta().region.clone(),
            leader: self.peer,
            term: self.term(),
            down: self.down_peers(ctx),
            pending,
            bytes_written: std::mem::take(&mut self.written.bytes),
            keys_written: std::mem::take(&mut self.written.keys),
            size: self.size,
        })));
    }
}
