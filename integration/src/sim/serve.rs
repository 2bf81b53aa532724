//! What a store's request tasks do: the same steps in the same order as the real ones, with room for others in
//! between.
//!
//! A read loads the region's view, takes an engine snapshot, then reads the clock and loads the view again; it is
//! served under the lease only when the view is still the newest and the lease alive. Otherwise it asks for a
//! confirmation first. Commands that write hold the key's latch from before their snapshot until the outcome of
//! their write is known.

use std::sync::Arc;

use bytes::Bytes;
use kvserver::engine::{Cf, Engine, ReadTier, Snapshot};
use kvserver::error::{RegionError, RegionResult};
use kvserver::raftstore::message::{Callback, Input, Propose, ReadRequest, WriteSet};
use kvserver::raftstore::meta::region_view::{RegionView, ViewCell};
use kvserver::storage::RegionContext;

use super::breakage::Breakage;
use super::check::lease::{self, Claim};
use super::check::linear::Value;
use super::client::{Command, Outcome, Request};
use super::event::{Event, Life};
use super::plan::MS;
use super::world::World;

/// Where a request stands.
enum Phase {
    Begin,
    /// The view is loaded.
    TakeSnapshot(Arc<ViewCell>, Arc<RegionView>),
    /// The snapshot is taken under this view.
    CheckLease(Arc<ViewCell>, Arc<RegionView>, Arc<dyn Snapshot>),
    /// Waits for the shard: a confirmation, or the fate of a write.
    Confirming(Arc<RegionView>),
    Confirmed(Arc<RegionView>),
    Writing,
}

/// One request at a store.
pub struct Attempt {
    request: Box<Request>,
    phase: Phase,
}

/// What the phase says is next.
enum Next {
    Go(Phase),
    Wait(Phase),
    Answer(Outcome),
}

impl World {
    /// A request reaches a store.
    pub fn on_request(&mut self, store: usize, request: Box<Request>) {
        let (client, attempt) = (request.client, request.attempt);
        let life = self.stores[store].life();
        let Some(process) = &mut self.stores[store].process else {
            let refused = RegionError::ServerIsBusy { reason: "connection refused".into() };
            return self.respond(client, attempt, Outcome::Refused(refused));
        };
        if !matches!(request.command, Command::Read) {
            let key = request.key.clone();
            if process.latches.contains_key(&key) {
                let refused = RegionError::ServerIsBusy { reason: "the key is latched".into() };
                return self.respond(client, attempt, Outcome::Refused(refused));
            }
            process.latches.insert(key, attempt);
        }
        process.attempts.insert(attempt, Attempt { request, phase: Phase::Begin });
        self.on_request_step(life, attempt);
    }

    /// A request goes on until it must wait, is interrupted, or has an answer.
    pub fn on_request_step(&mut self, life: Life, attempt: u64) {
        let store = life.store;
        loop {
            let Some(process) = &mut self.stores[store].process else { return };
            let Some(mut at) = process.attempts.remove(&attempt) else { return };
            let phase = std::mem::replace(&mut at.phase, Phase::Writing);
            match self.step_request(store, &at.request, phase) {
                Ok(Next::Go(phase)) => {
                    at.phase = phase;
                    self.keep(store, attempt, at);
                    if self.work.chance(self.plan.load.interrupt) {
                        let pause = self.work.log_range(MS / 100, 20 * MS);
                        return self.queue.push(self.now_ns + pause, Event::RequestStep { life, attempt });
                    }
                }
                Ok(Next::Wait(phase)) => {
                    at.phase = phase;
                    return self.keep(store, attempt, at);
                }
                Ok(Next::Answer(outcome)) => return self.finish(store, at, outcome),
                Err(error) => return self.finish(store, at, Outcome::Refused(error)),
            }
        }
    }

    fn keep(&mut self, store: usize, attempt: u64, at: Attempt) {
        if let Some(process) = &mut self.stores[store].process {
            process.attempts.insert(attempt, at);
        }
    }

    fn finish(&mut self, store: usize, at: Attempt, outcome: Outcome) {
        if let Some(process) = &mut self.stores[store].process {
            process.latches.retain(|_, holder| *holder != at.request.attempt);
        }
        self.respond(at.request.client, at.request.attempt, outcome);
    }

    /// Sends an answer to a client; when it gets lost, the client's patience ends some time.
    pub fn respond(&mut self, client: usize, attempt: u64, outcome: Outcome) {
        if !self.network.loses_request() {
            let at = self.now_ns + self.network.latency();
            self.queue.push(at, Event::Response { client, attempt, outcome });
        }
    }

    fn step_request(&mut self, store: usize, request: &Request, phase: Phase) -> RegionResult<Next> {
        match phase {
            Phase::Begin => {
                let (cell, view) = self.load_view(store, request)?;
                if !view.is_leader() {
                    let leader = view.leader;
                    return Err(RegionError::NotLeader { region_id: request.region_id, leader });
                }
                view.touch();
                if is_blind(request) {
                    return Ok(self.write(store, request, &view));
                }
                Ok(Next::Go(Phase::TakeSnapshot(cell, view)))
            }
            Phase::TakeSnapshot(cell, view) => {
                let snapshot = self.stores[store].engine.snapshot();
                Ok(Next::Go(Phase::CheckLease(cell, view, snapshot)))
            }
            Phase::CheckLease(cell, view, snapshot) => {
                let now = self.stores[store].mode.clock.read(self.now_ns);
                let trusting = self.breakage == Breakage::StaleLease;
                let served = view.serves && (trusting || (cell.is_current(&view) && view.lease_alive(now)));
                if served {
                    let claim = Claim { store, term: view.term };
                    let newest = self.checks.commit.newest_term(request.region_id);
                    self.judge(lease::check_read(request.region_id, claim, newest));
                    return self.answer_from(store, request, &view, &*snapshot);
                }
                Ok(self.confirm(store, request, view))
            }
            Phase::Confirmed(view) => {
                let (_, now) = self.load_view(store, request)?;
                if !now.serves {
                    return Err(RegionError::NotLeader { region_id: request.region_id, leader: None });
                }
                if now.peer.id != view.peer.id || now.term != view.term {
                    return Err(RegionError::StaleCommand);
                }
                let snapshot = self.stores[store].engine.snapshot();
                self.answer_from(store, request, &view, &*snapshot)
            }
            phase @ (Phase::Confirming(_) | Phase::Writing) => Ok(Next::Wait(phase)),
        }
    }

    fn load_view(&self, store: usize, request: &Request) -> RegionResult<(Arc<ViewCell>, Arc<RegionView>)> {
        let region_id = request.region_id;
        let process = self.stores[store].process.as_ref();
        let found = process.and_then(|p| p.views.get(region_id));
        let (cell, view) = found.ok_or(RegionError::RegionNotFound { region_id })?;
        if view.meta.region.peers.is_empty() {
            return Err(RegionError::RegionNotInitialized { region_id });
        }
        // What is only checked at propose must be refused there too: every other blind write goes through to it.
        let unchecked = is_blind(request) && request.attempt.is_multiple_of(2);
        let careless = unchecked || self.breakage == Breakage::EpochAtPropose;
        if view.meta.version() != request.version && !careless {
            return Err(RegionError::EpochNotMatch { current: vec![view.meta.region.clone()] });
        }
        Ok((cell, view))
    }

    fn context(&self, request: &Request, view: &RegionView) -> RegionContext {
        let careless = self.breakage == Breakage::EpochAtPropose;
        RegionContext {
            region_id: request.region_id,
            version: if careless { view.meta.version() } else { request.version },
            peer_id: view.peer.id,
            // A blind write is as good in any term.
            term: if is_blind(request) { 0 } else { view.term },
            ..Default::default()
        }
    }

    fn confirm(&mut self, store: usize, request: &Request, view: Arc<RegionView>) -> Next {
        let done = self.callback(store, request.attempt);
        let ctx = self.context(request, &view);
        self.put_in(store, Input::Read(ReadRequest { ctx, done }));
        Next::Wait(Phase::Confirming(view))
    }

    fn answer_from(
        &mut self,
        store: usize,
        request: &Request,
        view: &RegionView,
        snapshot: &dyn Snapshot,
    ) -> RegionResult<Next> {
        let stored = snapshot.get(Cf::Raw, &request.key, ReadTier::All);
        let stored = stored.map_err(|e| RegionError::ServerIsBusy { reason: e.to_string() })?;
        let value = stored.map_or(0, |bytes| decode(&bytes));
        match request.command {
            Command::Swap { expect, .. } if expect == value => Ok(self.write(store, request, view)),
            Command::Swap { .. } => Ok(Next::Answer(Outcome::NotSwapped(value))),
            _ => Ok(Next::Answer(Outcome::Value(value))),
        }
    }

    fn write(&mut self, store: usize, request: &Request, view: &RegionView) -> Next {
        let mut write = WriteSet::default();
        let value = |v: Value| v.to_be_bytes();
        match request.command {
            Command::Put(v) | Command::Swap { new: v, .. } => write.put(Cf::Raw, &request.key, &[&value(v)]),
            Command::Noise { key, delete } => {
                let noise = |key: u64| [request.key[0], b'n', key as u8];
                match delete {
                    0 => write.delete_range(Cf::Raw, &noise(key), &noise(key + 4)),
                    1..4 => write.delete(Cf::Raw, &noise(key)),
                    _ => {
                        write.put(Cf::Raw, &noise(key), &[&value(request.attempt)]);
                        write.put(Cf::Raw, &noise(key + 1), &[&value(request.attempt), b"and more"]);
                    }
                }
            }
            Command::Read => {}
        }
        let done = self.callback(store, request.attempt);
        let ctx = self.context(request, view);
        self.put_in(store, Input::Propose(Propose { ctx, write, done }));
        Next::Wait(Phase::Writing)
    }

    /// A callback that leaves its result for [`World::drain_replies`].
    fn callback(&self, store: usize, attempt: u64) -> Callback<()> {
        let life = self.stores[store].life();
        let replies = self.replies.clone();
        Callback::new(move |result| replies.lock().push((life, attempt, result)))
    }

    /// Carries on the requests whose answers have come.
    pub fn drain_replies(&mut self) {
        let mut replies = std::mem::take(&mut *self.replies.lock());
        for (life, attempt, result) in replies.drain(..) {
            if self.stores[life.store].life() == life {
                self.on_reply(life, attempt, result);
            }
        }
        // Keep the memory, and what came meanwhile.
        let mut newer = self.replies.lock();
        replies.append(&mut newer);
        *newer = replies;
    }

    fn on_reply(&mut self, life: Life, attempt: u64, result: RegionResult<()>) {
        let Some(process) = &mut self.stores[life.store].process else { return };
        let Some(mut at) = process.attempts.remove(&attempt) else { return };
        match (std::mem::replace(&mut at.phase, Phase::Writing), result) {
            (Phase::Confirming(view), Ok(())) => {
                at.phase = Phase::Confirmed(view);
                process.attempts.insert(attempt, at);
                self.on_request_step(life, attempt);
            }
            (_, Ok(())) => self.finish(life.store, at, Outcome::Done),
            (_, Err(RegionError::Undetermined(_))) => self.finish(life.store, at, Outcome::Unknown),
            (_, Err(error)) => self.finish(life.store, at, Outcome::Refused(error)),
        }
    }

    /// The process is gone: its clients see their connections break.
    pub fn drop_requests(&mut self, attempts: impl IntoIterator<Item = Attempt>) {
        for at in attempts {
            self.respond(at.request.client, at.request.attempt, Outcome::Unknown);
        }
    }
}

/// Writes that do not depend on what they find.
fn is_blind(request: &Request) -> bool {
    matches!(request.command, Command::Put(_) | Command::Noise { .. })
}

fn decode(bytes: &Bytes) -> Value {
    bytes.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}
