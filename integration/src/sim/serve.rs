//! What a store's request tasks do: the same steps in the same order as the real ones, with room for others in
//! between.
//!
//! Reads go through the store's own `RegionReader`, a step at a time: the view, the engine's snapshot, then the clock
//! and the view again. When the lease is in doubt they ask for a confirmation first. Commands that write hold the key's
//! latch from before their snapshot until the outcome of their write is known.

use std::sync::Arc;

use bytes::Bytes;
use kvserver::engine::{Cf, Engine, ReadTier};
use kvserver::error::{RegionError, RegionResult};
use kvserver::raftstore::message::{Callback, Input, Propose, ReadRequest, WriteSet};
use kvserver::raftstore::meta::region_view::{RegionMeta, RegionView};
use kvserver::storage::raft_storage::region_reader::{Begun, RegionReader, Snapped};
use kvserver::storage::{RegionContext, RegionSnapshot};

use super::breakage::Breakage;
use super::check::lease::{self, Claim};
use super::check::linear::Value;
use super::client::{Command, Outcome, Request};
use super::event::{Event, Life};
use super::plan::MS;
use super::store::Process;
use super::world::World;

/// Where a request stands.
enum Phase {
    Begin,
    /// The view is loaded.
    TakeSnapshot(Begun),
    /// The snapshot is taken.
    CheckLease(Snapped),
    /// The snapshot is taken and nobody looks whether it may be used.
    Trust(RegionSnapshot),
    /// Waits for the shard: a confirmation, or the fate of a write.
    Confirming,
    Confirmed,
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
            return self.respond(client, attempt, Outcome::NotSent);
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
        let ctx = &self.context(store, request);
        let Some(process) = &self.stores[store].process else { return Ok(Next::Answer(Outcome::Broken)) };
        let reader: &RegionReader = &process.reader;
        if let (Phase::Begin, Some(at)) = (&phase, self.kept_lease(store, ctx)) {
            return Ok(Next::Go(Phase::Trust(at)));
        }
        match phase {
            Phase::Begin if is_blind(request) => {
                // What is only checked at propose must be refused there too: every other blind write goes through to it.
                let region = match request.attempt.is_multiple_of(2) {
                    true => view_of(process, ctx.region_id)?.meta.clone(),
                    false => reader.region(ctx)?,
                };
                self.write(store, request, *ctx, &region)
            }
            Phase::Begin => match reader.begin(ctx)? {
                Some(begun) => Ok(Next::Go(Phase::TakeSnapshot(begun))),
                None => Ok(self.confirm(store, request, *ctx)),
            },
            Phase::TakeSnapshot(begun) if self.breakage == Breakage::StaleLease => {
                let (snapshot, view) = (self.stores[store].engine.snapshot(), begun.view());
                let at = RegionSnapshot { snapshot, region: view.meta.clone(), term: view.term };
                Ok(Next::Go(Phase::Trust(at)))
            }
            Phase::TakeSnapshot(begun) => Ok(Next::Go(Phase::CheckLease(reader.take_snapshot(begun)))),
            Phase::CheckLease(snapped) => {
                match snapped.end(self.stores[store].mode.clock.read(self.now_ns)) {
                    Some(at) => self.answer_under_lease(store, request, *ctx, &at),
                    None => Ok(self.confirm(store, request, *ctx)),
                }
            }
            Phase::Trust(at) => self.answer_under_lease(store, request, *ctx, &at),
            Phase::Confirmed => {
                let at = reader.confirmed_snapshot(ctx)?;
                self.answer_from(store, request, *ctx, &at)
            }
            phase @ (Phase::Confirming | Phase::Writing) => Ok(Next::Wait(phase)),
        }
    }

    /// What a store serves that forgot to give its lease up when the region was divided.
    fn kept_lease(&self, store: usize, ctx: &RegionContext) -> Option<RegionSnapshot> {
        let s = &self.stores[store];
        let view = s.process.as_ref()?.kept.get(&ctx.region_id)?.1.as_ref()?;
        let now = s.mode.clock.read(self.now_ns);
        let serves = view.lease_alive(now) && view.meta.version() == ctx.version;
        serves.then(|| RegionSnapshot {
            snapshot: s.engine.snapshot(),
            region: view.meta.clone(),
            term: view.term,
        })
    }

    /// Where the request is for, as the store takes it.
    fn context(&self, store: usize, request: &Request) -> RegionContext {
        let process =
            self.stores[store].process.as_ref().filter(|_| self.breakage == Breakage::EpochAtPropose);
        match process.and_then(|p| p.views.get(request.ctx.region_id)) {
            Some((_, view)) => RegionContext { version: view.meta.version(), ..request.ctx },
            None => request.ctx,
        }
    }

    fn confirm(&mut self, store: usize, request: &Request, ctx: RegionContext) -> Next {
        let done = self.callback(store, request.attempt);
        self.put_in(store, Input::Read(ReadRequest { ctx, done }));
        Next::Wait(Phase::Confirming)
    }

    fn answer_under_lease(
        &mut self,
        store: usize,
        request: &Request,
        ctx: RegionContext,
        at: &RegionSnapshot,
    ) -> RegionResult<Next> {
        let newest = self.checks.commit.newest_term(ctx.region_id);
        let claim = Claim::new(store, at.term, &at.region);
        self.judge(lease::check_read(&claim, newest));
        self.answer_from(store, request, ctx, at)
    }

    fn answer_from(
        &mut self,
        store: usize,
        request: &Request,
        ctx: RegionContext,
        at: &RegionSnapshot,
    ) -> RegionResult<Next> {
        check_key(&at.region, &request.key)?;
        let stored = at.snapshot.get(Cf::Raw, &request.key, ReadTier::All);
        let stored = stored.map_err(|e| RegionError::ServerIsBusy { reason: e.to_string() })?;
        let value = stored.map_or(0, |bytes| decode(&bytes));
        match request.command {
            Command::Swap { expect, .. } if expect == value => {
                // What was read holds in the term it was read in.
                let ctx = RegionContext { term: at.term, ..ctx };
                self.write(store, request, ctx, &at.region)
            }
            Command::Swap { .. } => Ok(Next::Answer(Outcome::NotSwapped(value))),
            _ => Ok(Next::Answer(Outcome::Value(value))),
        }
    }

    fn write(
        &mut self,
        store: usize,
        request: &Request,
        ctx: RegionContext,
        region: &RegionMeta,
    ) -> RegionResult<Next> {
        // A probe is to be refused for its version, not for its key.
        if ctx.version == region.version() {
            check_key(region, &request.key)?;
        }
        let write = write_of(request, region);
        let done = self.callback(store, request.attempt);
        self.put_in(store, Input::Propose(Propose { ctx, write, done }));
        Ok(Next::Wait(Phase::Writing))
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
            (Phase::Confirming, Ok(())) => {
                at.phase = Phase::Confirmed;
                process.attempts.insert(attempt, at);
                self.on_request_step(life, attempt);
            }
            (_, Ok(())) => self.finish(life.store, at, Outcome::Done),
            (_, Err(error)) => self.finish(life.store, at, Outcome::Refused(error)),
        }
    }

    /// The process is gone: its clients see their connections break.
    pub fn drop_requests(&mut self, attempts: impl IntoIterator<Item = Attempt>) {
        for at in attempts {
            self.respond(at.request.client, at.request.attempt, Outcome::Broken);
        }
    }
}

/// Writes that do not depend on what they find.
fn is_blind(request: &Request) -> bool {
    matches!(request.command, Command::Put(_) | Command::Noise { .. })
}

fn view_of(process: &Process, region_id: u64) -> RegionResult<Arc<RegionView>> {
    process.views.get(region_id).map(|(_, view)| view).ok_or(RegionError::RegionNotFound { region_id })
}

fn check_key(region: &RegionMeta, key: &[u8]) -> RegionResult<()> {
    if region.contains(key) {
        return Ok(());
    }
    Err(RegionError::KeyNotInRegion {
        key: Bytes::copy_from_slice(key),
        region_id: region.region.id,
        start_key: region.start.clone(),
        end_key: region.end.clone(),
    })
}

/// The write of a command, as far as it is about keys of the region.
fn write_of(request: &Request, region: &RegionMeta) -> WriteSet {
    let mut write = WriteSet::default();
    let value = |v: Value| v.to_be_bytes();
    match request.command {
        Command::Put(v) | Command::Swap { new: v, .. } => write.put(Cf::Raw, &request.key, &[&value(v)]),
        Command::Noise { key, delete } => {
            let noise = |key: u64| [request.key[0], b'n', key as u8];
            match delete {
                0 => {
                    let end = Bytes::copy_from_slice(&noise(key + 4));
                    let inside = region.end.is_empty() || end < region.end;
                    write.delete_range(Cf::Raw, &request.key, if inside { &end } else { &region.end });
                }
                1..4 => write.delete(Cf::Raw, &request.key),
                _ => {
                    write.put(Cf::Raw, &request.key, &[&value(request.attempt)]);
                    let second = noise(key + 1);
                    if region.contains(&second) {
                        write.put(Cf::Raw, &second, &[&value(request.attempt), b"and more"]);
                    }
                }
            }
        }
        Command::Read => {}
    }
    write
}

fn decode(bytes: &Bytes) -> Value {
    bytes.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}
