//! How a client's request finds its region, and what follows a failure: the SDK's own region cache and its own
//! decision about the next attempt, with the scheduler to ask for what is not known.
//!
//! Now and then a request goes to a store that does not lead as far as the client knows: it must answer truthfully too.

use std::sync::Arc;
use std::time::Duration;

use kvclient::region_cache::Region;
use kvclient::request::retry::{Attempt, Failure, Next, decide};
use kvproto::metapb;
use kvserver::error::RegionError;
use kvserver::server::convert;
use kvserver::storage::RegionContext;

use super::client::{Outcome, Running};
use super::event::Event;
use super::plan::MS;
use super::world::World;

/// Before the scheduler is asked again.
const ASK_AGAIN_NS: u64 = 50 * MS;

impl World {
    /// Sends the client's request on its way, or asks the scheduler where to.
    pub fn route(&mut self, client: usize) {
        let attempt = self.clients.attempt();
        let c = &mut self.clients.clients[client];
        let Some(running) = &mut c.running else { return };
        running.request.attempt = attempt;
        running.waits = true;
        match c.cache.lookup(&running.request.key) {
            Some(view) => self.send_request(client, view),
            None => {
                let at = self.now_ns + self.network.latency() * 2;
                self.queue.push(at, Event::ClientLocates { client, attempt });
            }
        }
    }

    /// The scheduler's answer reaches a client, if there is one.
    pub fn on_client_locates(&mut self, client: usize, attempt: u64) {
        let lost = self.network.loses_request();
        let form = self.plan.form();
        let c = &mut self.clients.clients[client];
        let Some(running) = c.running.as_mut().filter(|r| r.request.attempt == attempt) else { return };
        let bound = form.boundary(running.request.key.clone().into());
        let known = self.placement.locate(&bound).filter(|_| !lost);
        let Some((meta, leader)) = known else {
            running.waits = false;
            return self.queue.push(self.now_ns + ASK_AGAIN_NS, Event::ClientWakes(client));
        };
        match Region::new(meta, leader.as_ref(), None, form) {
            Ok(region) => {
                let view = c.cache.insert(region);
                self.send_request(client, view);
            }
            Err(error) => self.violate("client", format!("a bound that cannot be read: {error}")),
        }
    }

    fn send_request(&mut self, client: usize, view: Arc<Region>) {
        let astray = self.clients.rng.chance(0.1);
        let anywhere = self.clients.rng.index(self.stores.len());
        let Some(running) = &mut self.clients.clients[client].running else { return };
        let target = view.target().filter(|_| !astray);
        let (peer_id, store_id) = target.map_or((0, 0), |p| (p.id, p.store_id));
        running.request.ctx = RegionContext {
            region_id: view.id,
            version: view.epoch.version - u64::from(running.probe),
            conf_ver: view.epoch.conf_ver,
            peer_id,
            store_id,
            term: 0,
        };
        (running.started_ns, running.view) = (self.now_ns, Some(view));
        let (attempt, request) = (running.request.attempt, Box::new(running.request.clone()));
        let store = target.map_or(anywhere, |p| p.store_id as usize - 1);
        let gives_up = self.now_ns + self.plan.load.patience_ns;
        self.queue.push(gives_up, Event::Response { client, attempt, outcome: Outcome::Silent });
        if !self.network.loses_request() {
            let at = self.now_ns + self.network.latency();
            self.queue.push(at, Event::RequestArrives { store, request });
        }
    }

    /// Decides what follows a failed attempt.
    pub(super) fn after_failure(&mut self, client: usize, mut running: Running, outcome: Outcome) {
        let refused = match &outcome {
            Outcome::Refused(error) => Some(convert::region_error(error.clone())),
            _ => None,
        };
        let failure = match (&refused, &outcome) {
            (Some(error), _) => Failure::Region(error),
            (None, Outcome::NotSent) => Failure::NotSent,
            (None, Outcome::Silent) => Failure::Silent,
            (None, _) => Failure::Broken,
        };
        let epoch = running.view.as_ref().map_or(metapb::RegionEpoch::default(), |v| v.epoch);
        let left = Duration::from_nanos(running.deadline_ns.saturating_sub(self.now_ns));
        let jitter = self.clients.rng.draw() as u32;
        let (access, number, region_id) = (running.access(), running.failures, running.request.ctx.region_id);
        let attempt = Attempt { access, number, region_id, epoch, left, jitter };
        let decision = decide(failure, &attempt);
        self.clients.counts[1] += 1;
        if let Some(view) = running.view.take()
            && let Err(error) = self.clients.clients[client].cache.update(&view, decision.update)
        {
            return self.violate("client", format!("a bound that cannot be read: {error}"));
        }
        // An old version gets no better by trying again.
        let answered =
            running.probe && matches!(outcome, Outcome::Refused(RegionError::EpochNotMatch { .. }));
        let pause = match decision.next {
            Next::Now => Duration::ZERO,
            Next::After(pause) => pause,
            Next::Undetermined | Next::Deadline if decision.unknown => {
                self.clients.counts[2] += 1;
                return self.end_operation(client, running, None);
            }
            Next::Undetermined | Next::Deadline | Next::Refused(_) => return self.think(client),
        };
        if answered {
            return self.think(client);
        }
        (running.waits, running.failures) = (false, running.failures + 1);
        self.clients.clients[client].running = Some(running);
        // Even an answer that names the right place takes a moment to act on.
        let at = self.now_ns + (pause.as_nanos() as u64).max(MS / 10);
        self.queue.push(at, Event::ClientWakes(client));
    }
}
