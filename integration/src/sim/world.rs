//! The world: everything there is, and the loop that lets the next thing happen.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use kvproto::metapb::{Peer, Region, RegionEpoch};
use kvserver::engine::log_store::LogStore;
use kvserver::engine::{Engine, EngineError};
use kvserver::error::RegionResult;
use kvserver::raftstore::bootstrap;
use kvserver::raftstore::message::Input;
use kvserver::raftstore::runner::region_steps::SYNCED;
use parking_lot::Mutex;

use super::breakage::Breakage;
use super::check::commit::CommitChecker;
use super::check::coverage::CoverageChecker;
use super::check::epoch::EpochChecker;
use super::check::state::StateChecker;
use super::check::{Broken, Verdict};
use super::client::Clients;
use super::event::{Event, Life, Queue};
use super::network::Network;
use super::placement::Placement;
use super::plan::{MS, Plan};
use super::rng::{Rng, fold};
use super::store::Store;
use super::txn::TxnWorld;

/// Checkers that remember.
#[derive(Default)]
pub struct Checks {
    pub commit: CommitChecker,
    pub state: StateChecker,
    pub coverage: CoverageChecker,
    pub epoch: EpochChecker,
}

/// Results of callbacks that nobody has looked at yet.
pub type Replies = Arc<Mutex<Vec<(Life, u64, RegionResult<()>)>>>;

/// See the file's head.
pub struct World {
    pub plan: Plan,
    pub breakage: Breakage,
    pub now_ns: u64,
    pub events: u64,
    pub queue: Queue,
    pub network: Network,
    pub disk: Rng,
    pub work: Rng,
    pub nemesis_rng: Rng,
    pub stores: Vec<Store>,
    pub placement: Placement,
    pub clients: Clients,
    pub txn: TxnWorld,
    pub replies: Replies,
    pub checks: Checks,
    pub healed: bool,
    pub next_task: u64,
    /// Faults so far, and some kinds of them.
    pub struck: u64,
    pub partitions: u64,
    pub returns: u64,
    pub conf_changes: u64,
    pub crashes: u64,
    pub snapshots_applied: u64,
    pub trace_hash: u64,
    /// Whether to print every event.
    pub trace: bool,
    broken: Option<Broken>,
}

/// Between two looks at what is too costly to check after every event.
const PROBE_NS: u64 = 200 * MS;

const FIRST_REGION: u64 = 100;

impl World {
    /// The world of a plan, at time 0, with every store started.
    pub fn new(plan: Plan, breakage: Breakage, trace: bool) -> Result<World, String> {
        let stream = |n| Rng::new(plan.seed, n);
        let mut choose = stream(5);
        let count = plan.stores.len();
        let regions: Vec<Region> = (0..plan.regions)
            .map(|number| first_region(&plan, number, choose.below(count as u64) + 1))
            .collect();
        let form = plan.form();
        let lying = matches!(breakage, Breakage::AckBeforePersist | Breakage::LostEntries);
        let mut stores: Vec<Store> =
            plan.stores.iter().enumerate().map(|(i, mode)| Store::new(i, *mode, form, lying)).collect();
        if breakage == Breakage::SlowClock {
            stores[0].mode.clock.set_drift(0, -600_000);
        }
        for region in &regions {
            write_first_records(&stores[region.peers[0].store_id as usize - 1], region)
                .map_err(|e| e.to_string())?;
        }
        let mut world = World {
            breakage,
            now_ns: MS,
            events: 0,
            queue: Queue::default(),
            network: Network::new(plan.network.clone(), count, stream(1)),
            disk: stream(2),
            work: stream(6),
            nemesis_rng: stream(4),
            stores,
            placement: Placement::new(&plan, &regions)?,
            clients: Clients::new(&plan, stream(3)),
            txn: TxnWorld::new(&plan),
            replies: Replies::default(),
            checks: Checks::default(),
            healed: false,
            next_task: 0,
            struck: 0,
            partitions: 0,
            returns: 0,
            conf_changes: 0,
            crashes: 0,
            snapshots_applied: 0,
            trace_hash: plan.seed,
            trace,
            broken: None,
            plan,
        };
        world.begin();
        Ok(world)
    }

    fn begin(&mut self) {
        (0..self.stores.len()).for_each(|store| self.start(store));
        for client in 0..self.clients.len() {
            self.queue.push(200 * MS + client as u64 * MS, Event::ClientWakes(client));
        }
        self.begin_transactions();
        self.queue.push(self.plan.scheduler_tick_ns, Event::SchedulerTick);
        self.queue.push(2_000 * MS, Event::Nemesis);
        self.queue.push(PROBE_NS, Event::Probe);
    }

    /// Every region that some running store has a peer of.
    pub fn regions(&self) -> BTreeSet<u64> {
        self.stores.iter().filter_map(|s| s.process.as_ref()).flat_map(|p| p.shard.regions()).collect()
    }

    /// Notes what a checker says.
    pub fn judge(&mut self, verdict: Verdict) {
        if let Err(broken) = verdict {
            self.broken.get_or_insert(broken);
        }
    }

    /// A promise was broken.
    pub fn violate(&mut self, checker: &'static str, what: String) {
        self.broken.get_or_insert(Broken { checker, what });
    }

    /// The memory engine cannot fail; when it does, something is deeply wrong.
    pub fn judge_engine(&mut self, result: Result<(), EngineError>) {
        if let Err(error) = result {
            self.violate("driver", error.to_string());
        }
    }

    /// Lets the next event happen.
    pub fn step(&mut self) -> Verdict {
        let Some((at_ns, event)) = self.queue.pop() else {
            self.violate("driver", "nothing will ever happen again".into());
            return self.broken.take().map_or(Ok(()), Err);
        };
        self.now_ns = at_ns;
        self.events += 1;
        if let Some(event) = self.admit(event) {
            self.note(&event);
            self.happen(event);
        }
        self.drive_transactions();
        self.broken.take().map_or(Ok(()), Err)
    }

    /// Puts off what concerns a paused store, and forgets what was meant for an earlier life.
    fn admit(&mut self, event: Event) -> Option<Event> {
        let life = match &event {
            Event::Input { life, .. } | Event::Task { life, .. } | Event::RequestStep { life, .. } => {
                Some(*life)
            }
            Event::Turn(life) | Event::Tick(life) | Event::LogWritten(life) | Event::AppliedWritten(life) => {
                Some(*life)
            }
            Event::Flush(life) | Event::StoreHeartbeat(life) => Some(*life),
            Event::Txn(event) => event.life(),
            _ => None,
        };
        if life.is_some_and(|life| self.is_past(life)) {
            return None;
        }
        let store = match &event {
            Event::Deliver { to, .. } => Some(*to),
            Event::RequestArrives { store, .. } => Some(*store),
            Event::SnapshotArrives(transit) => Some(transit.to),
            Event::Order { store, .. } => Some(*store),
            Event::Txn(event) => event.store(),
            _ => life.map(|life| life.store),
        };
        if let Some(store) = store
            && self.stores[store].is_up()
            && self.stores[store].paused_until_ns > self.now_ns
        {
            self.queue.push(self.stores[store].paused_until_ns, event);
            return None;
        }
        Some(event)
    }

    fn happen(&mut self, event: Event) {
        match event {
            // The receiver's process is gone: nobody takes the message.
            Event::Deliver { to, message } => self.put_in(to, Input::Raft(*message)),
            Event::SnapshotArrives(transit) => self.on_snapshot_arrives(*transit),
            Event::Input { life, input } => self.put_in(life.store, *input),
            Event::Turn(life) => self.on_turn(life.store),
            Event::Tick(life) => self.on_tick(life.store),
            Event::LogWritten(life) => self.on_log_written(life.store),
            Event::AppliedWritten(life) => self.on_applied_written(life.store),
            Event::Task { life, task } => self.on_task(life, task),
            Event::Flush(life) => {
                let flushed = self.stores[life.store].engine.sync();
                self.judge_engine(flushed);
                self.queue.push(self.now_ns + self.plan.disk.flush_ns, Event::Flush(life));
            }
            Event::Restart(store) => self.start(store),
            Event::ClientWakes(client) => self.on_client_wakes(client),
            Event::ClientLocates { client, attempt } => self.on_client_locates(client, attempt),
            Event::RequestArrives { store, request } => self.on_request(store, request),
            Event::RequestStep { life, attempt } => self.on_request_step(life, attempt),
            Event::Response { client, attempt, outcome } => self.on_response(client, attempt, outcome),
            Event::RegionHeartbeat { request, .. } => self.on_region_heartbeat(*request),
            Event::AskSplit { life, region, count } => self.on_ask_split(life, *region, count),
            Event::ReportSplit(regions) => self.on_report_split(regions),
            Event::StoreHeartbeat(life) => self.on_store_heartbeat(life),
            Event::SchedulerTick => self.on_scheduler_tick(),
            Event::SchedulerTakesOver => self.on_scheduler_takes_over(),
            Event::Order { store, order } => self.on_order(store, *order),
            Event::Return(store) => self.on_return(store),
            Event::Txn(event) => self.on_txn_event(event),
            Event::Nemesis => self.on_nemesis(),
            Event::Mend => self.network.mend_all(),
            Event::Probe => {
                self.check_stopped();
                self.queue.push(self.now_ns + PROBE_NS, Event::Probe);
            }
        }
    }

    /// Adds the event to the trace.
    fn note(&mut self, event: &Event) {
        let hash = fold(fold(self.trace_hash, self.now_ns), event.tag());
        self.trace_hash = match event {
            Event::Deliver { to, message } => match message.raft() {
                Some(m) => {
                    let what = [m.msg_type as u64, m.term, m.index, m.commit, m.entries.len() as u64, m.to];
                    what.into_iter().fold(fold(hash, *to as u64), fold)
                }
                None => fold(hash, message.to.id),
            },
            Event::Response { client, attempt, outcome } => {
                let tag = match outcome {
                    super::client::Outcome::Value(v) | super::client::Outcome::NotSwapped(v) => *v,
                    super::client::Outcome::Refused(_) => u64::MAX,
                    super::client::Outcome::NotSent => u64::MAX - 1,
                    super::client::Outcome::Broken => u64::MAX - 2,
                    super::client::Outcome::Silent => u64::MAX - 3,
                    super::client::Outcome::Done => 0,
                };
                fold(fold(fold(hash, *client as u64), *attempt), tag)
            }
            _ => hash,
        };
        if self.trace {
            println!("{:>10}.{:06} ms  {event:?}", self.now_ns / MS, self.now_ns % MS);
        }
    }
}

/// The region with this number, with its first peer.
fn first_region(plan: &Plan, number: u64, store_id: u64) -> Region {
    let form = plan.form();
    let bound = |number: u64| match number {
        0 => Bytes::new(),
        _ if number == plan.regions => Bytes::new(),
        _ => form.boundary(vec![Plan::prefix(number)].into()),
    };
    Region {
        id: FIRST_REGION + number,
        start_key: bound(number),
        end_key: bound(number + 1),
        // As if it had come out of splits of the first one.
        region_epoch: Some(RegionEpoch { conf_ver: 1, version: plan.regions }),
        peers: vec![Peer { id: FIRST_REGION * 5 + number, store_id, ..Default::default() }],
        ..Default::default()
    }
}

fn write_first_records(store: &Store, region: &Region) -> Result<(), EngineError> {
    let (records, log) = bootstrap::region_records(region, &region.peers[0]);
    store.engine.write(&records, SYNCED)?;
    // The bootstrap itself is not what is tested: a disk that lies begins to lie afterwards.
    store.log.append(&log, true).map(drop)
}
