//! Clients: each does one operation at a time on one of a few registers, and notes what it saw.
//!
//! A refusal means that nothing happened, and the client tries again where the error points. An unknown outcome is
//! noted as such and never repeated. Writes write values that nobody else ever writes.

use std::collections::{BTreeMap, BTreeSet};

use kvserver::error::RegionError;

use super::check::linear::{Action, Operation, Value};
use super::check::{Broken, broken, linear};
use super::event::Event;
use super::plan::{LoadPlan, MS, Plan};
use super::rng::Rng;
use super::world::World;

/// What a client asks a store to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Put(Value),
    Swap {
        expect: Value,
        new: Value,
    },
    /// Writes to a key that nobody reads.
    Noise {
        key: u64,
        delete: u8,
    },
}

/// A command on its way.
#[derive(Clone, Debug)]
pub struct Request {
    pub client: usize,
    pub attempt: u64,
    pub region_id: u64,
    /// The region version that the client knows.
    pub version: u64,
    pub key: Vec<u8>,
    pub command: Command,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done,
    Value(Value),
    NotSwapped(Value),
    Refused(RegionError),
    Unknown,
}

/// What a client is at.
#[derive(Debug)]
struct Running {
    request: Request,
    register: usize,
    /// When the present attempt was made.
    started_ns: u64,
    /// The present attempt has no answer yet.
    asked: bool,
}

/// One client.
#[derive(Debug, Default)]
struct Client {
    running: Option<Running>,
    /// Operations it still does once all is calm; successes count.
    left: u64,
}

/// All clients.
pub struct Clients {
    plan: LoadPlan,
    regions: u64,
    stores: usize,
    rng: Rng,
    clients: Vec<Client>,
    /// Where each region's leader was last seen.
    hints: Vec<Option<usize>>,
    histories: Vec<Vec<Operation>>,
    next_value: Value,
    next_attempt: u64,
    /// Values of requests with an old region version: they must never be seen.
    forbidden: BTreeSet<Value>,
    last_seen: BTreeMap<usize, Value>,
    calm: bool,
    /// Successful operations, refusals, unknown outcomes.
    pub counts: [u64; 3],
}

impl Clients {
    /// The clients of a plan.
    pub fn new(plan: &Plan, rng: Rng) -> Clients {
        let registers = (plan.regions * plan.load.keys) as usize;
        Clients {
            plan: plan.load.clone(),
            regions: plan.regions,
            stores: plan.stores.len(),
            rng,
            clients: (0..plan.load.clients).map(|_| Client::default()).collect(),
            hints: vec![None; plan.regions as usize],
            histories: vec![Vec::new(); registers],
            next_value: 1,
            next_attempt: 1,
            forbidden: BTreeSet::new(),
            last_seen: BTreeMap::new(),
            calm: false,
            counts: [0; 3],
        }
    }

    /// Number of clients.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// True when there are no clients.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// From now on each client does `left` more successful operations and stops.
    pub fn calm_down(&mut self, left: u64) {
        self.calm = true;
        self.clients.iter_mut().for_each(|c| c.left = left);
    }

    /// A client that has not finished, with what it is at.
    pub fn unfinished(&self) -> Option<String> {
        let at = self.clients.iter().position(|c| c.left > 0 || c.running.is_some())?;
        Some(format!("client {at} has {:?}", self.clients[at]))
    }

    /// A value that a request with an old region version carries.
    pub fn forbidden_value(&mut self) -> Value {
        let value = self.value();
        self.forbidden.insert(value);
        value
    }

    /// A random register: the number of its region and its key.
    pub fn any_register(&mut self) -> (u64, Vec<u8>) {
        let register = self.rng.index(self.histories.len());
        self.register(register)
    }

    /// Checks every register's history.
    pub fn check_histories(&self) -> Result<(), Broken> {
        self.histories.iter().enumerate().try_for_each(|(i, h)| linear::check(&format!("register {i}"), h))
    }

    fn value(&mut self) -> Value {
        self.next_value += 1;
        self.next_value
    }

    fn register(&self, register: usize) -> (u64, Vec<u8>) {
        let region = register as u64 % self.regions;
        (region, vec![Plan::prefix(region), b'k', (register as u64 / self.regions) as u8])
    }

    fn draw(&mut self, client: usize, first_region_id: u64, version: u64) -> (usize, Request) {
        let register = self.rng.index(self.histories.len());
        let (region, mut key) = self.register(register);
        let kind = self.rng.below(100);
        let (reads, swaps) = (self.plan.reads, self.plan.swaps);
        let command = if kind < reads {
            Command::Read
        } else if kind < reads + swaps {
            let expect = self.last_seen.get(&register).copied().unwrap_or(0);
            Command::Swap { expect, new: self.value() }
        } else if kind < reads + swaps + self.plan.noise {
            key[1] = b'n';
            Command::Noise { key: self.rng.below(self.plan.noise_keys), delete: self.rng.below(16) as u8 }
        } else {
            Command::Put(self.value())
        };
        let old = self.rng.below(100) < self.plan.stale;
        if old && let Command::Put(value) | Command::Swap { new: value, .. } = command {
            self.forbidden.insert(value);
        }
        let version = if old { version - 1 } else { version };
        let region_id = first_region_id + region;
        (register, Request { client, attempt: 0, region_id, version, key, command })
    }

    /// The store to ask: usually where the leader was last seen.
    fn target(&mut self, region: usize) -> usize {
        match self.hints[region] {
            Some(store) if !self.rng.chance(0.2) => store,
            _ => self.rng.index(self.stores),
        }
    }
}

impl World {
    /// A client begins an operation or repeats one that was refused.
    pub fn on_client_wakes(&mut self, client: usize) {
        let (first, version) = (self.first_region_id(), self.region_version());
        let c = &mut self.clients;
        if c.clients[client].running.as_ref().is_some_and(|r| r.asked) {
            return;
        }
        if c.clients[client].running.is_none() {
            if c.calm && c.clients[client].left == 0 {
                return;
            }
            let (register, request) = c.draw(client, first, version);
            c.clients[client].running = Some(Running { request, register, started_ns: 0, asked: false });
        }
        c.next_attempt += 1;
        let attempt = c.next_attempt;
        let Some(running) = &mut c.clients[client].running else { return };
        running.request.attempt = attempt;
        (running.started_ns, running.asked) = (self.now_ns, true);
        let request = Box::new(running.request.clone());
        let store = c.target((request.region_id - first) as usize);
        // When no answer comes, nobody knows what happened.
        let gives_up = self.now_ns + self.plan.load.patience_ns;
        self.queue.push(gives_up, Event::Response { client, attempt, outcome: Outcome::Unknown });
        if !self.network.loses_request() {
            let at = self.now_ns + self.network.latency();
            self.queue.push(at, Event::RequestArrives { store, request });
        }
    }

    /// A store answers, or the client notices that it never will.
    pub fn on_response(&mut self, client: usize, attempt: u64, outcome: Outcome) {
        let (first, version) = (self.first_region_id(), self.region_version());
        let now_ns = self.now_ns;
        let c = &mut self.clients;
        let Some(running) = c.clients[client].running.take_if(|r| r.request.attempt == attempt) else {
            return;
        };
        let region = (running.request.region_id - first) as usize;
        if let Outcome::Refused(error) = &outcome {
            c.counts[1] += 1;
            let gives_up = matches!(error, RegionError::EpochNotMatch { .. });
            c.hints[region] = match error {
                RegionError::NotLeader { leader: Some(leader), .. } => Some(leader.store_id as usize - 1),
                _ => None,
            };
            if !gives_up {
                c.clients[client].running = Some(Running { asked: false, ..running });
            }
            let pause = c.rng.range(2, 30) * MS;
            return self.queue.push(now_ns + pause, Event::ClientWakes(client));
        }
        match outcome {
            Outcome::Unknown => {
                c.counts[2] += 1;
                c.hints[region] = None;
            }
            _ => {
                c.counts[0] += 1;
                c.clients[client].left = c.clients[client].left.saturating_sub(1);
            }
        }
        let verdict = c.note(&running, &outcome, now_ns, version);
        self.judge(verdict);
        let think = {
            let (low, high) = self.clients.plan.think_ns;
            self.clients.rng.range(low, high)
        };
        self.queue.push(now_ns + think, Event::ClientWakes(client));
    }

    /// The version every region has.
    pub fn region_version(&self) -> u64 {
        self.plan.regions
    }
}

impl Clients {
    /// Notes an operation in its register's history.
    fn note(
        &mut self,
        running: &Running,
        outcome: &Outcome,
        now_ns: u64,
        version: u64,
    ) -> Result<(), Broken> {
        let request = &running.request;
        let action = match (&request.command, outcome) {
            (Command::Noise { .. }, _) => return Ok(()),
            (Command::Read, Outcome::Value(v)) => Action::Read(*v),
            (Command::Read, _) => return Ok(()),
            (Command::Put(v), _) => Action::Write(*v),
            (Command::Swap { .. }, Outcome::NotSwapped(v)) => Action::SwapFailed(*v),
            (Command::Swap { expect, new }, _) => Action::Swap { expect: *expect, new: *new },
        };
        if request.version < version && *outcome != Outcome::Unknown {
            return broken(
                "epoch",
                format!("{request:?} with an old region version was served: {outcome:?}"),
            );
        }
        if let Action::Read(v) | Action::SwapFailed(v) = action {
            self.last_seen.insert(running.register, v);
            if self.forbidden.contains(&v) {
                let what = format!("{request:?} saw {v}, which was written with an old region version");
                return broken("epoch", what);
            }
        } else if let Action::Write(v) | Action::Swap { new: v, .. } = action {
            self.last_seen.insert(running.register, v);
        }
        let end = (*outcome != Outcome::Unknown).then_some(now_ns);
        self.histories[running.register].push(Operation { start: running.started_ns, end, action });
        Ok(())
    }
}
