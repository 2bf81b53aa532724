//! Handing a peer's effects out: messages, log writes, committed entries, confirmed reads.
//!
//! One code path serves inline and threaded writing: everything is handed out asynchronously, and the
//! completions come back as inputs. Invariants: messages that must wait for the disk go into the log batch
//! (INV-LOG); a hand-out with nothing to write, of a peer with nothing under way, waits for nobody; a changed
//! commit index alone is not written, since what was applied tells it after a restart.

use raft::eraftpb::{self, MessageType};
use raft::{Ready, SoftState, StateRole};

use super::apply::{AdminOutcome, Applied, ApplyTask};
use super::message::output::PersistedReady;
use super::message::peer_message::Payload;
use super::message::{Output, PeerMessage, Task};
use super::op::snapshot;
use super::peer::{Peer, StoreCtx};
use crate::engine::log_store::HardState;
use crate::error::RegionError;

impl Peer {
    /// Adds everything this peer wants done to `out`.
    pub(super) fn collect(&mut self, ctx: &mut StoreCtx, out: &mut Output) {
        if self.doomed {
            self.try_destroy(ctx, out);
            return;
        }
        if self.stopped.is_some() || self.applying.is_some() {
            return;
        }
        self.flush_proposals(ctx, out);
        self.flush_reads(ctx, out);
        self.fix_election_timeout(ctx);
        self.spread_split();
        // A snapshot replaces log and data: it waits until nothing of the old ones is under way.
        if self.rn.snap().is_some() && self.is_busy() {
            return;
        }
        if self.rn.has_ready() {
            let ready = self.rn.ready();
            self.hand_out(ready, ctx, out);
        }
        self.want_snapshot(out);
        self.report_if_due(ctx, out);
    }

    fn hand_out(&mut self, mut ready: Ready, ctx: &mut StoreCtx, out: &mut Output) {
        if let Some(soft) = ready.ss() {
            self.on_role(&SoftState { leader_id: soft.leader_id, raft_state: soft.raft_state }, ctx, out);
        }
        let committed_index = self.rn.raft.raft_log.committed;
        if self.is_leader() && self.lease.on_commit(committed_index).is_some() {
            self.extend_lease();
        }
        for read in ready.take_read_states() {
            self.on_read_confirmed(&read.request_ctx, read.index);
        }
        for m in ready.take_messages() {
            self.send_early(m, out);
        }
        let held = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        if ready.snapshot().get_metadata().index > 0 {
            assert!(committed.is_empty(), "entries before a snapshot are not applied");
            self.begin_apply_snapshot(ready, held, ctx, out);
        } else {
            self.write_log(ready, held, out);
        }
        if let Some(last) = committed.last() {
            assert!(last.index <= self.rn.store().persisted(), "INV-APPLY: applied beyond what is persisted");
            self.sent_to_apply = last.index;
            let skip = self.foresee_splits(&committed, ctx);
            out.apply.push(ApplyTask::Entries { region_id: self.region_id, entries: committed, skip });
        }
        self.answer_reads(out);
    }

    /// Puts the log part of a hand-out on its way.
    fn write_log(&mut self, mut ready: Ready, held: Vec<eraftpb::Message>, out: &mut Output) {
        let number = ready.number();
        let before = self.rn.store().hard_state();
        let hard_state = ready.hs().map(|h| HardState { term: h.term, vote: h.vote, commit: h.commit });
        let votes = hard_state.is_some_and(|h| (h.term, h.vote) != (before.term, before.vote));
        let must_write = ready.must_sync();
        let mut write = self.rn.mut_store().append(ready.take_entries(), hard_state);
        if must_write {
            // The newest commit index travels along for free.
            write.hard_state = Some(self.rn.store().hard_state());
        } else {
            assert!(write.entries.is_empty() && !votes, "INV-LOG: what must be durable is written");
            write.hard_state = None;
        }
        let last_index = write.entries.last().map_or(0, |e| e.index);
        self.rn.advance_append_async(ready);
        if !must_write && self.unpersisted.is_empty() {
            // Everything these messages promise is on disk already.
            self.rn.on_persist_ready(number);
            out.early.extend(self.wrap(held));
            return;
        }
        let votes_under_way = votes || self.unpersisted.iter().any(|(_, votes)| *votes);
        let (free, bound): (Vec<_>, Vec<_>) = held.into_iter().partition(|m| {
            // A reply to a heartbeat promises nothing but the term.
            m.msg_type == MessageType::MsgHeartbeatResponse && !votes_under_way
        });
        out.early.extend(self.wrap(free));
        self.unpersisted.push((number, votes));
        let token = PersistedReady { region_id: self.region_id, peer_id: self.peer.id, number, last_index };
        out.log.add(write, token, must_write);
        out.log.hold(self.wrap(bound));
    }

    /// A log write is durable.
    pub(super) fn on_persisted(&mut self, done: &PersistedReady) {
        let Some(at) = self.unpersisted.iter().position(|(number, _)| *number == done.number) else {
            // It was written by a peer that has been replaced by a snapshot or destroyed since.
            return;
        };
        assert_eq!(at, 0, "log writes of a peer complete in order");
        self.unpersisted.remove(0);
        if self.doomed {
            // The library may have forgotten this peer already: it led when its removal was applied.
            return;
        }
        if done.last_index > 0 {
            self.rn.mut_store().on_persisted(done.last_index);
        }
        self.rn.on_persist_ready(done.number);
    }

    /// Entries are applied and their effects visible.
    pub(super) fn on_applied(&mut self, applied: Applied, ctx: &mut StoreCtx, out: &mut Output) {
        if self.doomed {
            // Its entries were on their way when the peer was removed; the end goes on once all of them are done.
            self.applied = (applied.index, applied.term);
            if applied.stopped.is_some() {
                self.sent_to_apply = applied.index;
            }
            // New regions live on although the one they come from does not.
            for outcome in applied.admin.clone() {
                if let AdminOutcome::Split { index, derived, children } = outcome {
                    self.on_split(index, derived, children, ctx, out);
                }
            }
            self.forget_foreseen(&applied, ctx);
            return;
        }
        assert!(applied.index >= self.applied.0, "INV-APPLY: region {} went back", self.region_id);
        self.applied = (applied.index, applied.term);
        self.rn.advance_apply_to(applied.index);
        self.written.bytes += applied.bytes_written;
        self.written.log_bytes += applied.bytes_written;
        self.written.unchecked += applied.bytes_written;
        self.written.keys += applied.keys_written;
        let answers = self.proposals.take_applied(&applied);
        // Before the outcomes: one of them may drop entries that were applied only now.
        let wanted = self.slowest_active_follower();
        self.rn.mut_store().on_applied(applied.index, wanted, ctx.config.entry_cache_bytes_max);
        for outcome in applied.admin.clone() {
            match outcome {
                AdminOutcome::Split { index, derived, children } => {
                    self.on_split(index, derived, children, ctx, out);
                }
                AdminOutcome::ChangePeer { change, region } => {
                    self.on_conf_changed(&change, region, ctx, out)
                }
                AdminOutcome::CompactLog { index, term } => self.on_log_compacted(index, term, out),
            }
        }
        self.forget_foreseen(&applied, ctx);
        self.end_refused_split(&applied);
        for (done, result) in answers {
            out.reply(done, result.map_err(|error| self.complete(error, ctx)));
        }
        if let Some(reason) = applied.stopped {
            self.sent_to_apply = self.applied.0;
            self.stop(reason, ctx, out);
            return;
        }
        // The first entry of the term is applied: from now on reads are served.
        self.publish_view();
        self.answer_reads(out);
    }

    /// Adds to an error of the apply what only the store as a whole knows.
    fn complete(&self, error: RegionError, ctx: &StoreCtx) -> RegionError {
        match error {
            RegionError::EpochNotMatch { .. } => {
                RegionError::EpochNotMatch { current: ctx.current_regions(&self.meta()) }
            }
            other => other,
        }
    }

    /// The last index that every follower which keeps up is known to have.
    fn slowest_active_follower(&self) -> u64 {
        if !self.is_leader() {
            return u64::MAX;
        }
        let progress = self.rn.raft.prs().iter().filter(|(id, p)| **id != self.peer.id && p.recent_active);
        progress.map(|(_, p)| p.matched).min().unwrap_or(u64::MAX)
    }

    fn on_role(&mut self, soft: &SoftState, ctx: &mut StoreCtx, out: &mut Output) {
        if soft.leader_id != raft::INVALID_ID {
            self.ticks.leaderless = 0;
        }
        match soft.raft_state {
            StateRole::Leader => {
                self.lease.reset();
                self.heard = self.meta().region.peers.iter().map(|p| (p.id, (*p, ctx.now))).collect();
                // The empty entry with which the term begins buys the first lease.
                self.lease.on_sent(self.rn.raft.raft_log.last_index(), ctx.now);
                self.report_soon();
            }
            StateRole::Follower | StateRole::Candidate | StateRole::PreCandidate => {
                self.lease.reset();
                self.publish_view();
                let error = self.not_leader();
                for done in self.proposals.on_leadership_lost(ctx.now) {
                    out.reply(done, Err(error.clone()));
                }
                for done in self.reads.take_all() {
                    out.reply(done, Err(error.clone()));
                }
                self.abandon_split();
            }
        }
        self.publish_view();
    }

    /// Proposes all waiting writes as one message.
    fn flush_proposals(&mut self, ctx: &mut StoreCtx, out: &mut Output) {
        if self.proposals.arrived.is_empty() {
            return;
        }
        if !self.is_leader() {
            let error = self.not_leader();
            for p in std::mem::take(&mut self.proposals.arrived) {
                out.reply(p.done, Err(error.clone()));
            }
            return;
        }
        if self.rn.raft.lead_transferee.is_some() || self.is_splitting() {
            // Leadership is being handed over, or the region divided: the answer will be known in a moment.
            return;
        }
        let meta = self.meta();
        let mut entries = Vec::with_capacity(self.proposals.arrived.len());
        let mut dones = Vec::with_capacity(self.proposals.arrived.len());
        for p in std::mem::take(&mut self.proposals.arrived) {
            if let Err(error) = self.check_write(&p, &meta, ctx) {
                out.reply(p.done, Err(error));
                continue;
            }
            entries.push(eraftpb::Entry { data: p.write.seal(meta.version()), ..Default::default() });
            dones.push(p.done);
        }
        if entries.is_empty() {
            return;
        }
        let first = self.rn.raft.raft_log.last_index() + 1;
        let term = self.term();
        let mut m = eraftpb::Message::default();
        m.set_msg_type(MessageType::MsgPropose);
        m.from = self.peer.id;
        m.entries = entries.into();
        if self.rn.step(m).is_err() {
            for done in dones {
                out.reply(
                    done,
                    Err(RegionError::ServerIsBusy { reason: "the proposal was not taken".into() }),
                );
            }
            return;
        }
        self.lease.on_sent(first + dones.len() as u64 - 1, ctx.now);
        for (i, done) in dones.into_iter().enumerate() {
            self.proposals.push(first + i as u64, term, done);
        }
    }

    fn check_write(
        &self,
        p: &super::message::Propose,
        meta: &super::meta::region_view::RegionMeta,
        ctx: &StoreCtx,
    ) -> Result<(), RegionError> {
        if p.ctx.version != meta.version() {
            return Err(RegionError::EpochNotMatch { current: ctx.current_regions(meta) });
        }
        if p.ctx.term != 0 && p.ctx.term < self.term() {
            return Err(RegionError::StaleCommand);
        }
        let bytes = p.write.bytes() as u64;
        if bytes > ctx.config.entry_max_bytes {
            return Err(RegionError::RaftEntryTooLarge { region_id: self.region_id, bytes });
        }
        Ok(())
    }

    /// Asks the quorum on behalf of all arrived reads.
    fn flush_reads(&mut self, ctx: &mut StoreCtx, out: &mut Output) {
        if !self.reads.has_arrived() {
            return;
        }
        if !self.is_leader() {
            let error = self.not_leader();
            for done in self.reads.take_all() {
                out.reply(done, Err(error.clone()));
            }
        } else if self.rn.raft.commit_to_current_term() {
            let context = self.reads.begin(ctx.now);
            self.rn.read_index(context);
        }
        // Else: a new leader that has not committed in its term yet. The library would drop the request silently;
        // it is asked when the commit arrives.
    }

    fn on_read_confirmed(&mut self, context: &[u8], index: u64) {
        if let Some(asked) = self.reads.on_confirmed(context, index)
            && self.lease.renew(asked).is_some()
        {
            self.extend_lease();
        }
    }

    /// Answers the reads that have waited long enough for the apply.
    pub(super) fn answer_reads(&mut self, out: &mut Output) {
        if self.reads.len() == 0 || !self.serves() {
            return;
        }
        for done in self.reads.take_ready(self.applied.0) {
            out.reply(done, Ok(()));
        }
    }

    fn send_early(&mut self, mut m: eraftpb::Message, out: &mut Output) {
        if m.msg_type == MessageType::MsgSnapshot {
            self.send_snapshot(m, out);
        } else {
            self.mend_batched_append(&mut m);
            let wrapped = self.wrap(vec![m]);
            out.early.extend(wrapped);
        }
    }

    /// The library adds entries to an append without entries that waits for the same peer, even when they do not
    /// follow the index that append begins after (it had gone back for that peer meanwhile). The receiver would then
    /// acknowledge entries that it has not got.
    fn mend_batched_append(&self, m: &mut eraftpb::Message) {
        let Some(first) = m.entries.first().map(|e| e.index) else { return };
        if m.msg_type != MessageType::MsgAppend || first == m.index + 1 {
            return;
        }
        m.index = first - 1;
        match self.rn.raft.raft_log.term(m.index) {
            Ok(term) if term > 0 => m.log_term = term,
            // Compacted away: the peer's next answer brings it a snapshot.
            Ok(_) | Err(_) => {
                (m.index, m.log_term) = (0, 0);
                m.entries.clear();
            }
        }
    }

    pub(super) fn wrap(&self, messages: Vec<eraftpb::Message>) -> Vec<PeerMessage> {
        let wrap = |m: eraftpb::Message| {
            // A peer that left meanwhile is no longer in the region; it was the last to be told.
            let to = self.member(m.to).or_else(|| self.known_sender(m.to))?;
            let range = self.range_for(to.id);
            Some(PeerMessage { range, ..self.message(to, Payload::Raft(Box::new(m))) })
        };
        messages.into_iter().filter_map(wrap).collect()
    }

    fn send_snapshot(&mut self, m: eraftpb::Message, out: &mut Output) {
        let key = snapshot::key_of(self.region_id, m.get_snapshot());
        if let Some(to) = self.member(m.to) {
            let range = self.range_for(to.id);
            let message = PeerMessage { range, ..self.message(to, Payload::Raft(Box::new(m))) };
            out.tasks.push(Task::SendSnapshot { key, message });
        }
    }
}
