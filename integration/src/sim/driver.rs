//! The driver of one store: the contract of the real raft thread, log writer and apply worker, in virtual time.
//!
//! A turn lets time pass, steps what is in the inbox, and collects. Its output is carried out in the order the core
//! demands: replies, early messages, the log batch, and (with the proof of durability) the messages that waited for
//! it, apply tasks, background tasks. An inline store does nothing else while a write is under way; a threaded one
//! goes on and finds the completion in its inbox.

use std::collections::BTreeSet;

use kvserver::engine::log_store::LogStore;
use kvserver::engine::{Engine, EngineError, WriteBatch, WriteOptions};
use kvserver::raftstore::apply::{AdminOutcome, Applied, ApplyTask};
use kvserver::raftstore::message::write_set::{self, Entry};
use kvserver::raftstore::message::{Input, Output, PeerMessage, WriteSet};
use kvserver::raftstore::meta::values::INITIAL_STATE;
use raft::eraftpb;

use super::breakage::Breakage;
use super::check::lease::Claim;
use super::check::{lease, log, state};
use super::event::{Event, Life};
use super::rng::{fold, fold_bytes};
use super::world::World;

/// Most writes that one disk write takes together.
const MERGED_MAX: usize = 8;

impl World {
    /// Puts an event into a store's inbox.
    pub fn put_in(&mut self, store: usize, input: Input) {
        if let Some(process) = &mut self.stores[store].process {
            process.inbox.push_back(input);
            self.schedule_turn(store);
        }
    }

    fn schedule_turn(&mut self, store: usize) {
        let life = self.stores[store].life();
        let mode = self.stores[store].mode;
        let Some(process) = &mut self.stores[store].process else { return };
        if !process.turn_scheduled && !process.is_blocked(mode) {
            process.turn_scheduled = true;
            self.queue.push(self.now_ns + mode.turn_delay_ns, Event::Turn(life));
        }
    }

    /// A scheduled turn.
    pub fn on_turn(&mut self, store: usize) {
        let mode = self.stores[store].mode;
        let Some(process) = &mut self.stores[store].process else { return };
        process.turn_scheduled = false;
        if !process.is_blocked(mode) {
            self.turn(store);
        }
    }

    /// A tick is due.
    pub fn on_tick(&mut self, store: usize) {
        let now_ns = self.now_ns;
        let Some(process) = &mut self.stores[store].process else { return };
        if process.tick_at_ns <= now_ns {
            process.tick_at_ns = u64::MAX;
        }
        self.on_turn(store);
        self.schedule_tick(store);
    }

    /// Makes sure that a tick event comes when the shard wants one.
    pub fn schedule_tick(&mut self, store: usize) {
        let life = self.stores[store].life();
        let mode = self.stores[store].mode;
        let Some(process) = &mut self.stores[store].process else { return };
        // A blocked thread looks at its clock again when its disk has answered.
        if process.is_blocked(mode) {
            return;
        }
        let Some(deadline) = process.shard.next_deadline() else { return };
        let at = mode.clock.when(deadline).max(self.now_ns + 1);
        if at < process.tick_at_ns {
            process.tick_at_ns = at;
            self.queue.push(at, Event::Tick(life));
        }
    }

    fn turn(&mut self, store: usize) {
        let now = self.stores[store].mode.clock.read(self.now_ns);
        let Some(process) = &mut self.stores[store].process else { return };
        let mut out = std::mem::take(&mut process.out);
        process.shard.advance_to(now, &mut out);
        while let Some(input) = process.inbox.pop_front() {
            process.shard.step(now, input, &mut out);
        }
        process.shard.collect(&mut out);
        self.carry_out(store, &mut out);
        if let Some(process) = &mut self.stores[store].process {
            process.out = out;
        }
        self.check_views(store);
        self.schedule_tick(store);
    }

    /// Carries an output out, in order.
    pub fn carry_out(&mut self, store: usize, out: &mut Output) {
        for reply in out.replies.drain(..) {
            reply.done.call(reply.result);
        }
        let mut early = std::mem::take(&mut out.early);
        self.send_all(store, &mut early);
        out.early = early;
        let log = std::mem::take(&mut out.log);
        if let Some(process) = &mut self.stores[store].process {
            if !log.is_empty() {
                process.log_queue.push_back(log);
            }
            for task in out.apply.drain(..) {
                process.apply_queue.push_back(task);
            }
        }
        self.begin_log_write(store);
        self.begin_apply(store);
        for task in out.tasks.drain(..) {
            self.begin_task(store, task);
        }
        self.drain_replies();
    }

    /// Lets messages leave the store.
    pub fn send_all(&mut self, store: usize, messages: &mut Vec<PeerMessage>) {
        for message in messages.drain(..) {
            // What a peer promised before it was removed was true then; its log is gone since.
            if self.breakage != Breakage::LostEntries && self.is_here(store, &message) {
                let s = &self.stores[store];
                let snapshot = s.snapshot_index.get(&message.region_id).copied().unwrap_or(0);
                let verdict = log::check(store, &message, s.log.on_disk(message.region_id), snapshot);
                self.judge(verdict);
            }
            self.send(store, message);
        }
    }

    /// Whether the sender of a message is still a peer of its store.
    fn is_here(&self, store: usize, message: &PeerMessage) -> bool {
        let process = self.stores[store].process.as_ref();
        let view = process.and_then(|p| p.views.get(message.region_id));
        view.is_some_and(|(_, view)| view.peer.id == message.from.id)
    }

    fn send(&mut self, from: usize, message: PeerMessage) {
        let to = message.to.store_id as usize - 1;
        if to >= self.stores.len() {
            return self.violate("driver", format!("message to store {}", to + 1));
        }
        let message = if self.network.by_wire() {
            match PeerMessage::from_wire(message.into_wire()) {
                Ok(message) => message,
                Err(error) => return self.violate("wire", error.to_string()),
            }
        } else {
            message
        };
        let [first, second] = self.network.send(self.now_ns, from, to);
        if let Some(at) = second {
            self.queue.push(at, Event::Deliver { to, message: Box::new(message.clone()) });
        }
        if let Some(at) = first {
            self.queue.push(at, Event::Deliver { to, message: Box::new(message) });
        }
    }

    fn begin_log_write(&mut self, store: usize) {
        let life = self.stores[store].life();
        let Some(process) = &mut self.stores[store].process else { return };
        if process.writing > 0 || process.log_queue.is_empty() {
            return;
        }
        process.writing = process.log_queue.len().min(1 + self.disk.index(MERGED_MAX));
        let synced = process.log_queue.iter().take(process.writing).any(|batch| batch.must_sync());
        let takes = if synced { self.write_latency(self.plan.disk.log_ns) } else { 1 };
        self.queue.push(self.now_ns + takes, Event::LogWritten(life));
    }

    /// How long one write takes, stalls included.
    pub fn write_latency(&mut self, (low, high): (u64, u64)) -> u64 {
        let takes = self.disk.range(low, high);
        let stalls = self.disk.chance(self.plan.disk.stall) && !self.healed;
        takes + if stalls { self.plan.disk.stall_ns } else { 0 }
    }

    /// The log write under way is on the disk: its completion goes into the inbox before its messages leave.
    pub fn on_log_written(&mut self, store: usize) {
        let mode = self.stores[store].mode;
        let Some(process) = &mut self.stores[store].process else { return };
        let mut batches = process.log_queue.drain(..std::mem::take(&mut process.writing));
        let Some(mut batch) = batches.next() else { return };
        batches.for_each(|later| batch.append(later));
        let durable = match self.stores[store].log.append(batch.write(), batch.must_sync()) {
            Ok(durable) => durable,
            Err(error) => return self.violate("driver", format!("store {store}: log write: {error}")),
        };
        let (persisted, mut after) = batch.persisted(durable);
        if let Some(process) = &mut self.stores[store].process {
            if mode.inline {
                process.inbox.push_front(Input::Persisted(persisted));
            } else {
                process.inbox.push_back(Input::Persisted(persisted));
            }
        }
        self.send_all(store, &mut after);
        self.begin_log_write(store);
        self.schedule_turn(store);
    }

    fn begin_apply(&mut self, store: usize) {
        let life = self.stores[store].life();
        let Some(process) = &mut self.stores[store].process else { return };
        if process.applying > 0 || process.apply_queue.is_empty() {
            return;
        }
        process.applying = process.apply_queue.len();
        let takes = self.write_latency(self.plan.disk.apply_ns);
        self.queue.push(self.now_ns + takes, Event::AppliedWritten(life));
    }

    /// The apply under way gets into the engine.
    pub fn on_applied_written(&mut self, store: usize) {
        let Some(process) = &mut self.stores[store].process else { return };
        let tasks: Vec<ApplyTask> =
            process.apply_queue.drain(..std::mem::take(&mut process.applying)).collect();
        let mut batch = WriteBatch::new();
        let mut outcomes: Vec<Applied> = Vec::with_capacity(tasks.len());
        for task in tasks {
            let Some(task) = self.observe(store, task) else { return };
            let Some(process) = &mut self.stores[store].process else { return };
            outcomes.extend(process.applier.apply(task, &mut batch));
        }
        if self.breakage == Breakage::ApplyTorn && self.nemesis_rng.chance(0.01) {
            let data = |op: &kvserver::engine::Op| !matches!(op, kvserver::engine::Op::Put { cf, .. } if *cf == kvserver::engine::Cf::Raw);
            let kept: Vec<_> = batch.ops().iter().filter(|op| data(op)).cloned().collect();
            batch.clear();
            kept.into_iter().for_each(|op| batch.push(op));
        }
        let split = |a: &Applied| a.admin.iter().any(|admin| matches!(admin, AdminOutcome::Split { .. }));
        let forgets = self.breakage == Breakage::SplitWithoutSync && outcomes.iter().any(split);
        let sync = outcomes.iter().any(Applied::must_sync) && !forgets;
        if let Err(error) = self.stores[store].engine.write(&batch, WriteOptions { sync, no_slowdown: true })
        {
            return self.violate("driver", format!("store {store}: apply write: {error}"));
        }
        // The batch holds the effects of all: the engine shows a region as its last outcome left it.
        let born = outcomes.iter().flat_map(|a| &a.admin).filter_map(|admin| match admin {
            AdminOutcome::Split { children, .. } => Some(children.iter().filter(|c| !c.skipped)),
            AdminOutcome::ChangePeer { .. } | AdminOutcome::CompactLog { .. } => None,
        });
        let born: Vec<u64> = born.flatten().map(|child| child.meta.region.id).collect();
        for region_id in &born {
            // Its log begins as if with a snapshot.
            let begins = INITIAL_STATE.applied_index;
            self.stores[store].snapshot_index.insert(*region_id, begins);
        }
        let reached: BTreeSet<u64> = outcomes.iter().map(|a| a.region_id).chain(born).collect();
        for region_id in reached {
            let checked = self.check_state(store, region_id);
            self.judge_engine(checked);
        }
        for applied in outcomes {
            if let Some(reason) = &applied.stopped {
                self.violate("stopped", format!("store {store} region {}: {reason}", applied.region_id));
            }
            if let Some(process) = &mut self.stores[store].process {
                process.inbox.push_back(Input::Applied(applied));
            }
        }
        self.begin_apply(store);
        self.schedule_turn(store);
    }

    /// Shows an apply task to the commit checker; deliberate mistakes happen here too.
    fn observe(&mut self, store: usize, mut task: ApplyTask) -> Option<ApplyTask> {
        match &mut task {
            ApplyTask::Register { region, state, .. } => {
                self.checks.commit.on_registered(store, region.region.id, state.applied_index);
            }
            ApplyTask::Entries { region_id, entries, .. } => {
                self.break_entries(entries);
                for entry in entries.iter() {
                    let hash = hash_of(entry);
                    let known = self.checks.commit.len();
                    self.trace_hash = fold(self.trace_hash, hash);
                    let verdict =
                        self.checks.commit.on_entry(store, *region_id, (entry.index, entry.term), hash);
                    if verdict.is_err() {
                        self.judge(verdict);
                        return None;
                    }
                    let changes = entry.entry_type == eraftpb::EntryType::EntryConfChange;
                    self.conf_changes += u64::from(changes && self.checks.commit.len() > known);
                }
                if self.breakage == Breakage::EpochAtApply {
                    let found = self.stores[store].region_on_disk(*region_id);
                    let version = found.ok().flatten().map_or(0, |(meta, _)| meta.version());
                    entries.iter_mut().for_each(|entry| renew(entry, version));
                }
            }
            ApplyTask::Remove { .. } => {}
        }
        Some(task)
    }

    fn break_entries(&mut self, entries: &mut Vec<eraftpb::Entry>) {
        match self.breakage {
            Breakage::ApplyGap if self.nemesis_rng.chance(0.01) => {
                entries.pop();
            }
            Breakage::ApplyOther if self.nemesis_rng.chance(0.01) => {
                entries.iter_mut().for_each(|entry| entry.data.clear());
            }
            _ => {}
        }
    }

    /// Compares a store's data of a region with what others had at the same index.
    pub fn check_state(&mut self, store: usize, region_id: u64) -> Result<(), EngineError> {
        let Some((meta, apply)) = self.stores[store].region_on_disk(region_id)? else { return Ok(()) };
        let verdict = self.checks.epoch.on_region(store, &meta.region);
        self.judge(verdict);
        let hash = state::hash_of(&self.stores[store].engine, &meta)?;
        self.trace_hash = fold(self.trace_hash, hash);
        let verdict = self.checks.state.on_state(store, region_id, apply.applied_index, hash);
        self.judge(verdict);
        Ok(())
    }

    /// Looks at what the store has just published.
    fn check_views(&mut self, store: usize) {
        let views = self.stores[store].views();
        let live = views.iter().map(|view| &*view.meta).filter(|meta| !meta.region.peers.is_empty());
        let apart = self.checks.coverage.on_live(store, live);
        self.judge(apart);
        for view in views.iter().filter(|view| view.is_leader()) {
            let led = self.checks.coverage.on_leader(view.meta.region.id, view.term, view.peer.id);
            self.judge(led);
        }
        if self.breakage == Breakage::LeaseOverSplit {
            let now = self.stores[store].mode.clock.read(self.now_ns);
            self.stores[store].keep_old_leases(&views, now);
        }
        let claims: Vec<Claim> = (0..self.stores.len()).flat_map(|other| self.claims(other)).collect();
        self.judge(lease::check(claims));
    }

    /// What a store would serve under its leases at this instant.
    fn claims(&self, store: usize) -> impl Iterator<Item = Claim> {
        let s = &self.stores[store];
        let now = s.mode.clock.read(self.now_ns);
        let mut views = if s.runs(self.now_ns) { s.views() } else { Vec::new() };
        views.extend(s.process.iter().flat_map(|p| &p.kept).filter_map(|(_, (_, kept))| kept.clone()));
        let alive = views.into_iter().filter(move |view| view.serves && view.lease_alive(now));
        alive.map(move |view| Claim::new(store, view.term, &view.meta))
    }

    /// True when the event is for a life that is over.
    pub fn is_past(&self, life: Life) -> bool {
        self.stores[life.store].lives != life.number || !self.stores[life.store].is_up()
    }
}

fn hash_of(entry: &eraftpb::Entry) -> u64 {
    let head = fold(fold(entry.index, entry.term), entry.entry_type as u64);
    fold_bytes(fold_bytes(head, &entry.data), &entry.context)
}

/// Seals a write again, for the present region version: what an applier without the epoch check would see.
fn renew(entry: &mut eraftpb::Entry, version: u64) {
    if let Ok(Entry::Write { region_version, ops }) = write_set::decode(&entry.data)
        && region_version < version
    {
        let mut write = WriteSet::default();
        for op in ops.flatten() {
            match op {
                kvserver::engine::Op::Put { cf, key, value } => write.put(cf, &key, &[&value]),
                kvserver::engine::Op::Delete { cf, key } => write.delete(cf, &key),
                kvserver::engine::Op::DeleteRange { cf, start, end } => write.delete_range(cf, &start, &end),
            }
        }
        entry.data = write.seal(version);
    }
}
