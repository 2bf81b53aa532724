//! Crashes and starts of a store's process.
//!
//! A crash keeps what is durable and, of what came after, a random first part; entries whose write had not been
//! acknowledged may be among it. A start finishes what was interrupted (snapshots being put in place, peers being
//! removed) as the real one does, then loads the shard.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kvserver::raftstore::Shard;
use kvserver::raftstore::apply::Applier;
use kvserver::raftstore::bootstrap::Found;
use kvserver::raftstore::message::{Input, Output};
use kvserver::raftstore::meta::region_view::ViewRegistry;
use kvserver::raftstore::meta::values::PeerState;
use kvserver::raftstore::raftstore::ShardOptions;
use kvserver::raftstore::recovery::{self, RecoveryError};
use kvserver::storage::raft_storage::LostStores;
use kvserver::storage::raft_storage::region_reader::RegionReader;

use super::event::Event;
use super::plan::MS;
use super::store::Process;
use super::world::World;

impl World {
    /// The store's process dies; with `power_cut` it takes with it what was not on the disk.
    pub fn crash(&mut self, store: usize, power_cut: bool) {
        let life = self.stores[store].life();
        let Some(process) = self.stores[store].process.take() else { return };
        let s = &mut self.stores[store];
        s.lives += 1;
        s.paused_until_ns = 0;
        let Process { shard, inbox, log_queue, writing, attempts, txn, .. } = process;
        self.end_transactions(life, txn);
        // Callbacks answer when they are dropped; nobody listens any more.
        drop((shard, inbox));
        self.replies.lock().retain(|(life, _, _)| life.store != store);
        // The write under way may have reached the disk, and only its completion was lost.
        let reached = if writing > 0 { self.disk.index(writing + 1) } else { 0 };
        for batch in log_queue.iter().take(reached) {
            if let Err(error) = self.stores[store].log.write_unsynced(batch.write()) {
                return self.violate("driver", format!("store {store}: log write: {error}"));
            }
        }
        drop(log_queue);
        let s = &self.stores[store];
        let (log, engine) = (s.log.unsynced(), s.engine.unsynced());
        let (keep_log, keep_engine) = match power_cut {
            true => (self.disk.index(log + 1), self.disk.index(engine + 1)),
            false => (log, engine),
        };
        s.engine.crash(keep_engine);
        if let Err(error) = s.log.crash(keep_log) {
            return self.violate("driver", format!("store {store}: crash: {error}"));
        }
        self.crashes += 1;
        if power_cut && self.nemesis_rng.chance(0.5) {
            // The whole machine starts again, and with it the clock that leases are measured by.
            let shown = self.nemesis_rng.range(0, 3_600_000) * MS;
            self.stores[store].mode.clock.restart(self.now_ns, shown);
        }
        self.drop_requests(attempts.into_values());
        self.tell_others_of(store, false);
    }

    /// The others notice that a process is gone, or back.
    fn tell_others_of(&mut self, store: usize, back: bool) {
        let store_id = self.stores[store].id;
        for other in (0..self.stores.len()).filter(|other| *other != store) {
            if !self.stores[other].is_up() || self.network.is_cut(store, other) {
                continue;
            }
            let input = if back { Input::StoreBack { store_id } } else { Input::StoreLost { store_id } };
            let at = self.now_ns + self.network.latency() + MS;
            let life = self.stores[other].life();
            self.queue.push(at, Event::Input { life, input: Box::new(input) });
        }
    }

    /// Starts the store's process over what is on its disk.
    pub fn start(&mut self, store: usize) {
        if self.stores[store].is_up() {
            return;
        }
        if let Err(error) = self.try_start(store) {
            self.violate("restart", format!("store {store} cannot start: {error}"));
        }
    }

    /// What the recovered regions promise by their snapshots, and no files without use.
    fn after_recovery(&mut self, store: usize, found: &[Found]) {
        let s = &mut self.stores[store];
        s.files.received.lock().clear();
        s.files.built.lock().clear();
        let live = found.iter().filter(|f| f.state.state() == PeerState::Normal);
        s.snapshot_index = live.map(|f| (f.meta.region.id, f.apply.truncated_index)).collect();
    }

    fn try_start(&mut self, store: usize) -> Result<(), RecoveryError> {
        let found = recovery::recover(&self.stores[store].steps())?;
        self.after_recovery(store, &found);
        let verdict = self.checks.coverage.on_records(store, &found);
        self.judge(verdict);
        for f in found.iter().filter(|f| f.state.state() == PeerState::Normal) {
            self.check_state(store, f.meta.region.id)?;
        }
        let now = self.stores[store].mode.clock.read(self.now_ns);
        let (life, views) = (self.stores[store].life(), Arc::new(ViewRegistry::default()));
        let engine = Arc::new(self.stores[store].engine.clone());
        let reader = RegionReader::new(self.stores[store].id, engine, views.clone(), LostStores::default());
        let reader = Arc::new(reader);
        let txn = self.txn_process(life, reader.clone());
        let s = &mut self.stores[store];
        let options = ShardOptions {
            config: self.plan.raft[store].clone(),
            store_id: s.id,
            engine: Arc::new(s.engine.clone()),
            log: s.log.clone(),
            views: views.clone(),
        };
        let mut out = Output::default();
        let shard = Shard::load(options, found, now, &mut out)?;
        s.process = Some(Process {
            shard,
            applier: Applier::new(self.plan.form()),
            reader,
            txn,
            views,
            inbox: VecDeque::new(),
            out: Output::default(),
            turn_scheduled: false,
            tick_at_ns: u64::MAX,
            log_queue: VecDeque::new(),
            writing: 0,
            apply_queue: VecDeque::new(),
            applying: 0,
            tasks: BTreeMap::new(),
            attempts: BTreeMap::new(),
            kept: BTreeMap::new(),
            latches: BTreeMap::new(),
        });
        self.carry_out(store, &mut out);
        let life = self.stores[store].life();
        self.queue.push(self.now_ns + 1, Event::Turn(life));
        self.queue.push(self.now_ns + self.plan.disk.flush_ns, Event::Flush(life));
        self.queue.push(self.now_ns + MS, Event::StoreHeartbeat(life));
        self.schedule_tick(store);
        self.tell_others_of(store, true);
        Ok(())
    }
}
