//! Clients: each does one operation at a time on one of a few registers, and notes what it saw.
//!
//! Owns what each client is at and the histories. How a request finds its region, and what follows a failure, is in
//! `route`. A refusal means that nothing happened, and the client tries again; a write with an unknown outcome is
//! noted as such and never repeated. Writes write values that nobody else ever writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvclient::region_cache::{Region, RegionCache};
use kvclient::request::retry::Access;
use kvserver::error::RegionError;
use kvserver::storage::RegionContext;

use super::check::linear::{Action, Operation, Value};
use super::check::{Broken, broken, linear};
use super::event::Event;
use super::plan::{LoadPlan, Plan};
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
    pub ctx: RegionContext,
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
    /// Nobody took the request.
    NotSent,
    /// The connection broke before the answer.
    Broken,
    /// No answer came in time.
    Silent,
}

/// What a client is at.
#[derive(Debug)]
pub(super) struct Running {
    pub request: Request,
    register: usize,
    /// The region as the present attempt knows it.
    pub view: Option<Arc<Region>>,
    /// Attempts that failed.
    pub failures: u32,
    /// When the present attempt was made.
    pub started_ns: u64,
    pub deadline_ns: u64,
    /// Something is under way that will wake the client.
    pub waits: bool,
    /// It carries an old region version, and must be refused.
    pub probe: bool,
}

impl Running {
    /// What a repetition of the request would mean.
    pub fn access(&self) -> Access {
        match self.request.command {
            Command::Read => Access::Read,
            // A value is to be written once: twice is another history.
            Command::Put(_) | Command::Swap { .. } => Access::ConditionalWrite,
            Command::Noise { .. } => Access::Write,
        }
    }
}

/// One client.
pub(super) struct Client {
    pub cache: RegionCache,
    pub running: Option<Running>,
    /// Operations it still does once all is calm; successes count.
    left: u64,
}

/// All clients.
pub struct Clients {
    plan: LoadPlan,
    regions: u64,
    pub(super) rng: Rng,
    pub(super) clients: Vec<Client>,
    histories: Vec<Vec<Operation>>,
    next_value: Value,
    next_attempt: u64,
    /// Values of requests with an old region version: they must never be seen.
    forbidden: BTreeSet<Value>,
    last_seen: BTreeMap<usize, Value>,
    calm: bool,
    /// Successful operations, refused attempts, unknown outcomes.
    pub counts: [u64; 3],
}

/// Regions that a client remembers: sometimes fewer than there are.
const CACHE_MAX: usize = 24;
/// An operation gives up after so many times the patience for one attempt.
const ATTEMPTS: u64 = 10;

impl Clients {
    /// The clients of a plan.
    pub fn new(plan: &Plan, rng: Rng) -> Clients {
        let registers = (plan.regions * plan.load.keys) as usize;
        let form = plan.form();
        let client = |_| Client { cache: RegionCache::new(form, CACHE_MAX), running: None, left: 0 };
        Clients {
            plan: plan.load.clone(),
            regions: plan.regions,
            rng,
            clients: (0..plan.load.clients).map(client).collect(),
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
        Some(format!(
            "client {at} has {} operations left, and {:?}",
            self.clients[at].left, self.clients[at].running
        ))
    }

    /// A value that a request with an old region version carries.
    pub fn forbidden_value(&mut self) -> Value {
        let value = self.value();
        self.forbidden.insert(value);
        value
    }

    /// The key of a random register.
    pub fn any_register(&mut self) -> Vec<u8> {
        let register = self.rng.index(self.histories.len());
        self.key(register)
    }

    /// Checks every register's history.
    pub fn check_histories(&self) -> Result<(), Broken> {
        self.histories.iter().enumerate().try_for_each(|(i, h)| linear::check(&format!("register {i}"), h))
    }

    /// The number of the next attempt.
    pub(super) fn attempt(&mut self) -> u64 {
        self.next_attempt += 1;
        self.next_attempt
    }

    fn value(&mut self) -> Value {
        self.next_value += 1;
        self.next_value
    }

    fn key(&self, register: usize) -> Vec<u8> {
        let register = register as u64;
        // With room for bounds between them.
        vec![Plan::prefix(register % self.regions), b'k', (register / self.regions) as u8 * 16]
    }

    fn draw(&mut self, client: usize, now_ns: u64) -> Running {
        let register = self.rng.index(self.histories.len());
        let mut key = self.key(register);
        let kind = self.rng.below(100);
        let (reads, swaps) = (self.plan.reads, self.plan.swaps);
        let command = if kind < reads {
            Command::Read
        } else if kind < reads + swaps {
            let expect = self.last_seen.get(&register).copied().unwrap_or(0);
            Command::Swap { expect, new: self.value() }
        } else if kind < reads + swaps + self.plan.noise {
            let noise = self.rng.below(self.plan.noise_keys);
            (key[1], key[2]) = (b'n', noise as u8);
            Command::Noise { key: noise, delete: self.rng.below(16) as u8 }
        } else {
            Command::Put(self.value())
        };
        let probe = self.rng.below(100) < self.plan.stale;
        if probe && let Command::Put(value) | Command::Swap { new: value, .. } = command {
            self.forbidden.insert(value);
        }
        Running {
            request: Request { client, attempt: 0, ctx: RegionContext::default(), key, command },
            register,
            view: None,
            failures: 0,
            started_ns: 0,
            deadline_ns: now_ns + ATTEMPTS * self.plan.patience_ns,
            waits: false,
            probe,
        }
    }
}

impl World {
    /// A client begins an operation or goes on with one.
    pub fn on_client_wakes(&mut self, client: usize) {
        let now_ns = self.now_ns;
        let c = &mut self.clients;
        if c.clients[client].running.as_ref().is_some_and(|r| r.waits) {
            return;
        }
        if c.clients[client].running.is_none() {
            if c.calm && c.clients[client].left == 0 {
                return;
            }
            c.clients[client].running = Some(c.draw(client, now_ns));
        }
        self.route(client);
    }

    /// A store answers, or the client notices that it never will.
    pub fn on_response(&mut self, client: usize, attempt: u64, outcome: Outcome) {
        let c = &mut self.clients.clients[client];
        let Some(running) = c.running.take_if(|r| r.request.attempt == attempt) else { return };
        match outcome {
            Outcome::Done | Outcome::Value(_) | Outcome::NotSwapped(_) => {
                c.left = c.left.saturating_sub(1);
                self.clients.counts[0] += 1;
                self.end_operation(client, running, Some(outcome));
            }
            failure => self.after_failure(client, running, failure),
        }
    }

    /// Notes how an operation ended (`None`: nobody knows), and lets the client think.
    pub(super) fn end_operation(&mut self, client: usize, running: Running, outcome: Option<Outcome>) {
        let verdict = self.clients.note(&running, outcome.as_ref(), self.now_ns);
        self.judge(verdict);
        self.think(client);
    }

    /// The client's next operation comes after a while.
    pub(super) fn think(&mut self, client: usize) {
        let (low, high) = self.clients.plan.think_ns;
        let think = self.clients.rng.range(low, high);
        self.queue.push(self.now_ns + think, Event::ClientWakes(client));
    }
}

impl Clients {
    /// Notes an operation in its register's history.
    fn note(&mut self, running: &Running, outcome: Option<&Outcome>, now_ns: u64) -> Result<(), Broken> {
        let request = &running.request;
        if running.probe && outcome.is_some() {
            let what = format!("{request:?} with an old region version was served: {outcome:?}");
            return broken("epoch", what);
        }
        let action = match (&request.command, outcome) {
            (Command::Noise { .. }, _) => return Ok(()),
            (Command::Read, Some(Outcome::Value(v))) => Action::Read(*v),
            (Command::Read, _) => return Ok(()),
            (Command::Put(v), _) => Action::Write(*v),
            (Command::Swap { .. }, Some(Outcome::NotSwapped(v))) => Action::SwapFailed(*v),
            (Command::Swap { expect, new }, _) => Action::Swap { expect: *expect, new: *new },
        };
        if let Action::Read(v) | Action::SwapFailed(v) = action {
            self.last_seen.insert(running.register, v);
            if self.forbidden.contains(&v) {
                let what = format!("{request:?} saw {v}, which was written with an old region version");
                return broken("epoch", what);
            }
        } else if let Action::Write(v) | Action::Swap { new: v, .. } = action {
            self.last_seen.insert(running.register, v);
        }
        let end = outcome.map(|_| now_ns);
        self.histories[running.register].push(Operation { start: running.started_ns, end, action });
        Ok(())
    }
}
