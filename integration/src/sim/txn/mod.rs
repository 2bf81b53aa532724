//! Transactions in the world: the stores' own runner and the SDK's own state machines, in virtual time.
//!
//! `executor` polls futures as events; `port` is their way to timestamps, time, messages and the raftstore;
//! `timestamps` is the scheduler's oracle; `serve` answers requests at the stores, `mistakes` answers them wrongly on purpose. At the clients `calls` finds
//! regions and tries again, `session` is one transaction after the other, `workload` says which; `notes` keeps what
//! they saw, and `verdict` judges it at the end.
//!
//! A client may die whenever it is about to go on: its requests stay under way and its locks stay where they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use futures::channel::oneshot;
use kvclient::region_cache::{Region, RegionCache};
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvserver::raftstore::message::Input;
use parking_lot::Mutex;

use self::calls::Caller;
use self::executor::{Executor, Home};
use self::notes::Notes;
use self::port::{Effect, Effects, Heard, Port};
use self::session::Session;
use self::timestamps::Timestamps;
use super::event::{Event, Life};
use super::plan::{MS, Plan};
use super::rng::{Rng, fold};
use super::world::World;

pub mod calls;
pub mod executor;
pub mod mistakes;
pub mod notes;
pub mod port;
pub mod serve;
pub mod session;
pub mod timestamps;
pub mod verdict;
pub mod workload;

/// Regions that a client remembers.
const CACHE_MAX: usize = 24;
/// Stream of random numbers of the world's transactions, and of its clients from this one on.
const STREAM: u64 = 10;
const CLIENT_STREAM: u64 = 1_000;

/// What can happen to transactions.
#[derive(Debug)]
pub enum TxnEvent {
    /// A task goes on.
    Poll { task: u64, home: Home },
    /// A pause is over.
    Awake(oneshot::Sender<()>),
    /// A question for a timestamp reaches the scheduler.
    TimestampAsked { asker: oneshot::Sender<Option<u64>>, back_ns: u64 },
    /// Its answer, if there is one.
    Timestamp { asker: oneshot::Sender<Option<u64>>, answer: Option<u64> },
    /// The scheduler's answer about a key.
    Located { asker: oneshot::Sender<Option<Region>>, key: bytes::Bytes },
    /// A request reaches a store, or does so once more.
    Arrives { store: usize, call: u64, cmd: Box<Cmd>, again: bool },
    /// A client hears of its request.
    Heard { call: u64, heard: Heard },
    /// A client that died is back.
    Returns(usize),
}

impl TxnEvent {
    /// The store that must run for it to happen.
    pub fn store(&self) -> Option<usize> {
        match self {
            TxnEvent::Poll { home: Home::Store(life), .. } => Some(life.store),
            TxnEvent::Arrives { store, .. } => Some(*store),
            _ => None,
        }
    }

    /// The life that it is about.
    pub fn life(&self) -> Option<Life> {
        match self {
            TxnEvent::Poll { home: Home::Store(life), .. } => Some(*life),
            _ => None,
        }
    }

    /// A small number for what it is about, for the trace.
    pub fn tag(&self) -> u64 {
        match self {
            TxnEvent::Poll { task, .. } => 1 << 32 | task,
            TxnEvent::Awake(_) => 2 << 32,
            TxnEvent::TimestampAsked { .. } => 3 << 32,
            TxnEvent::Timestamp { answer, .. } => fold(4 << 32, answer.unwrap_or(0)),
            TxnEvent::Located { .. } => 5 << 32,
            TxnEvent::Arrives { call, .. } => 6 << 32 | call,
            TxnEvent::Heard { call, .. } => 7 << 32 | call,
            TxnEvent::Returns(client) => 8 << 32 | *client as u64,
        }
    }
}

/// Everything about transactions in a world.
pub struct TxnWorld {
    executor: Executor,
    effects: Effects,
    pub timestamps: Timestamps,
    /// Who waits for a call, by its number.
    calls: BTreeMap<u64, oneshot::Sender<Heard>>,
    newest_call: u64,
    rng: Rng,
    /// What the clients' clock shows: true time.
    clock: Arc<AtomicU64>,
    lives: Vec<u32>,
    pub notes: Arc<Mutex<Notes>>,
    plan: Arc<Plan>,
}

impl TxnWorld {
    /// The clients of a plan, and nothing under way.
    pub fn new(plan: &Plan) -> TxnWorld {
        let clients = plan.txn.clients;
        let notes = Notes { left: vec![0; clients], cleaned: clients == 0, ..Notes::default() };
        TxnWorld {
            executor: Executor::default(),
            effects: Effects::default(),
            timestamps: Timestamps::default(),
            calls: BTreeMap::new(),
            newest_call: 0,
            rng: Rng::new(plan.seed, STREAM),
            clock: Arc::default(),
            lives: vec![0; clients + 1],
            notes: Arc::new(Mutex::new(notes)),
            plan: Arc::new(plan.clone()),
        }
    }

    /// What keeps the clients from rest.
    pub fn unfinished(&self) -> Option<String> {
        let notes = self.notes.lock();
        if !notes.cleaned {
            return Some(format!("clients have {:?} transactions left, or locks are left", notes.left));
        }
        None
    }

    fn port(&self, home: Home, clock: Arc<AtomicU64>) -> Port {
        Port { home, effects: self.effects.clone(), clock }
    }

    /// Begins a life of a client; the one after the last cleans up.
    fn begin_client(&mut self, client: usize, stores: usize) {
        let life = self.lives[client];
        let home = Home::Client(client, life);
        let stream = (CLIENT_STREAM + client as u64) << 20 | u64::from(life);
        let rng = Rng::new(self.plan.seed, stream);
        let caller = Caller {
            port: self.port(home, self.clock.clone()),
            rng,
            cache: RegionCache::new(self.plan.form(), CACHE_MAX),
            patience_ns: self.plan.load.patience_ns,
            stores,
            refused: 0,
            has_late_copies: false,
        };
        let session = Session { client, caller, notes: self.notes.clone(), plan: self.plan.clone() };
        let future = match client < self.plan.txn.clients {
            true => session.live().boxed(),
            false => session.clean().boxed(),
        };
        self.executor.spawn(home, future);
    }
}

impl World {
    /// All clients begin.
    pub fn begin_transactions(&mut self) {
        for client in 0..self.plan.txn.clients {
            self.txn.begin_client(client, self.stores.len());
        }
    }

    /// Nothing fails any more.
    pub fn calm_transactions(&mut self) {
        let clients = self.plan.txn.clients;
        if clients == 0 {
            return;
        }
        {
            let mut notes = self.txn.notes.lock();
            notes.calm = true;
            notes.left.fill(2);
        }
        self.txn.begin_client(clients, self.stores.len());
    }

    /// After every event: tasks that were woken get their turn, and what they asked for is begun.
    pub fn drive_transactions(&mut self) {
        loop {
            let woken = self.txn.executor.take_woken();
            let effects = std::mem::take(&mut *self.txn.effects.lock());
            if woken.is_empty() && effects.is_empty() {
                return;
            }
            for (home, effect) in effects {
                self.carry_out_effect(home, effect);
            }
            for task in woken {
                let Some(home) = self.txn.executor.home(task) else { continue };
                let stops = self.txn.rng.chance(self.plan.load.interrupt / 8.0);
                let pause = if stops { self.txn.rng.log_range(MS / 100, 20 * MS) } else { 0 };
                self.queue.push(self.now_ns + pause, Event::Txn(TxnEvent::Poll { task, home }));
            }
        }
    }

    fn carry_out_effect(&mut self, home: Home, effect: Effect) {
        let store = match home {
            Home::Store(life) if self.is_past(life) => return,
            Home::Store(life) => Some(life.store),
            Home::Client(client, life) if self.txn.lives[client] != life => return,
            Home::Client(..) => None,
        };
        match (effect, store) {
            (Effect::Timestamp(asker), store) => self.ask_timestamp(store, asker),
            (Effect::Sleep(ns, sleeper), _) => {
                self.queue.push(self.now_ns + ns.max(1), Event::Txn(TxnEvent::Awake(sleeper)));
            }
            (Effect::Locate(key, asker), _) => {
                let takes = self.network.latency() * 2;
                self.queue.push(self.now_ns + takes, Event::Txn(TxnEvent::Located { asker, key }));
            }
            (Effect::Send { store, cmd, heard }, _) => self.send_call(store, cmd, heard),
            (Effect::Confirm(read), Some(store)) => self.put_in(store, Input::Read(read)),
            (Effect::Propose(propose), Some(store)) => self.put_in(store, Input::Propose(propose)),
            (Effect::Answer { call, answer }, Some(store)) => self.on_answer(store, call, answer),
            (Effect::Job(job), Some(_)) => job(),
            (Effect::Confirm(_) | Effect::Propose(_) | Effect::Answer { .. } | Effect::Job(_), None) => {}
        }
    }

    /// A request leaves a client: it may get lost, or arrive twice.
    fn send_call(&mut self, store: usize, cmd: Box<Cmd>, heard: oneshot::Sender<Heard>) {
        self.txn.newest_call += 1;
        let call = self.txn.newest_call;
        self.txn.calls.insert(call, heard);
        if self.network.doubles_request() {
            // The second one may come when the transaction is long over.
            let late = if self.txn.rng.chance(0.7) { 0 } else { self.txn.rng.log_range(10 * MS, 6_000 * MS) };
            let at = self.now_ns + self.network.latency() * 3 + late;
            self.queue.push(at, Event::Txn(TxnEvent::Arrives { store, call, cmd: cmd.clone(), again: true }));
        }
        if !self.network.loses_request() {
            let at = self.now_ns + self.network.latency();
            self.queue.push(at, Event::Txn(TxnEvent::Arrives { store, call, cmd, again: false }));
        }
    }

    /// Something about a call goes back to its client.
    pub(super) fn hear(&mut self, call: u64, heard: Heard) {
        if !self.network.loses_request() {
            let at = self.now_ns + self.network.latency();
            self.queue.push(at, Event::Txn(TxnEvent::Heard { call, heard }));
        }
    }

    /// Lets one of the events of transactions happen.
    pub fn on_txn_event(&mut self, event: TxnEvent) {
        self.txn.clock.store(self.now_ns, Ordering::Relaxed);
        match event {
            TxnEvent::Poll { task, home } => self.poll_task(task, home),
            // Whoever waited may be gone.
            TxnEvent::Awake(sleeper) => drop(sleeper.send(())),
            TxnEvent::TimestampAsked { asker, back_ns } => self.on_timestamp_asked(asker, back_ns),
            TxnEvent::Timestamp { asker, answer } => drop(asker.send(answer)),
            TxnEvent::Located { asker, key } => {
                let form = self.plan.form();
                let lost = self.network.loses_request();
                let known = self.placement.locate(&form.boundary(key)).filter(|_| !lost);
                let region =
                    known.and_then(|(meta, leader)| Region::new(meta, leader.as_ref(), None, form).ok());
                drop(asker.send(region));
            }
            // Once all is healed nothing comes twice any more, however long ago it was sent.
            TxnEvent::Arrives { again: true, .. } if self.healed => {}
            TxnEvent::Arrives { store, call, cmd, .. } => self.on_call(store, call, cmd),
            TxnEvent::Heard { call, heard } => {
                if let Some(waits) = self.txn.calls.remove(&call) {
                    drop(waits.send(heard));
                }
            }
            TxnEvent::Returns(client) => self.txn.begin_client(client, self.stores.len()),
        }
    }

    /// A task goes on, or its client dies instead.
    fn poll_task(&mut self, task: u64, home: Home) {
        match home {
            Home::Client(client, life) => {
                let mortal = !self.healed && client < self.plan.txn.clients;
                if mortal && self.txn.lives[client] == life && self.txn.rng.chance(self.plan.txn.crash) {
                    self.txn.executor.end(home);
                    self.txn.lives[client] += 1;
                    self.txn.notes.lock().crashes += 1;
                    let away = self.txn.rng.log_range(MS, 2_000 * MS);
                    return self.queue.push(self.now_ns + away, Event::Txn(TxnEvent::Returns(client)));
                }
            }
            Home::Store(life) => self.set_store_clock(life.store),
        }
        self.txn.executor.poll(task);
    }
}
