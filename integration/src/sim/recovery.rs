//! Crashes and starts of a store's process.
//!
//! A crash keeps what is durable and, of what came after, a random first part; entries whose write had not been
//! acknowledged may be among it. A start finishes what was interrupted (snapshots being put in place, peers being
//! removed), then loads the shard.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kvproto::key::BoundaryForm;
use kvserver::engine::log_store::{HardState, LogStore, LogWrite, RegionLogWrite};
use kvserver::engine::{Engine, EngineError};
use kvserver::raftstore::Shard;
use kvserver::raftstore::apply::Applier;
use kvserver::raftstore::bootstrap::{self, Found};
use kvserver::raftstore::message::{Input, Output};
use kvserver::raftstore::meta::region_view::ViewRegistry;
use kvserver::raftstore::meta::values::{PeerState, RegionState};
use kvserver::raftstore::op::snapshot::snapshot_states;
use kvserver::raftstore::raftstore::ShardOptions;
use kvserver::raftstore::snap::SnapKey;
use kvserver::storage::raft_storage::LostStores;
use kvserver::storage::raft_storage::region_reader::RegionReader;

use super::background::{SYNC, clear_data, replace_data};
use super::event::Event;
use super::plan::MS;
use super::store::Process;
use super::world::World;

impl World {
    /// The store's process dies; with `power_cut` it takes with it what was not on the disk.
    pub fn crash(&mut self, store: usize, power_cut: bool) {
        let Some(process) = self.stores[store].process.take() else { return };
        let s = &mut self.stores[store];
        s.lives += 1;
        s.paused_until_ns = 0;
        let Process { shard, inbox, log_queue, writing, attempts, .. } = process;
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

    fn try_start(&mut self, store: usize) -> Result<(), EngineError> {
        let found = self.recover(store)?;
        let verdict = self.checks.coverage.on_records(store, &found);
        self.judge(verdict);
        for f in found.iter().filter(|f| f.state.state() == PeerState::Normal) {
            self.check_state(store, f.meta.region.id)?;
        }
        let now = self.stores[store].mode.clock.read(self.now_ns);
        let s = &mut self.stores[store];
        let views = Arc::new(ViewRegistry::default());
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
            applier: Applier::new(BoundaryForm::of_raw(self.plan.raft[store].api)),
            reader: RegionReader::new(s.id, Arc::new(s.engine.clone()), views.clone(), LostStores::default()),
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
            built: BTreeMap::new(),
            attempts: BTreeMap::new(),
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

    /// Finishes what the last life left half done.
    fn recover(&mut self, store: usize) -> Result<Vec<Found>, EngineError> {
        let form = BoundaryForm::of_raw(self.plan.raft[store].api);
        let engine = self.stores[store].engine.clone();
        for found in bootstrap::load_regions(&engine, form)? {
            match found.state.state() {
                PeerState::Applying => self.finish_snapshot(store, &found)?,
                PeerState::Tombstone if found.state.cleaning => self.finish_removal(store, &found)?,
                PeerState::Normal | PeerState::Tombstone => {}
            }
        }
        // Snapshots that nobody began to apply have no further use.
        self.stores[store].received.clear();
        bootstrap::load_regions(&engine, form)
    }

    fn finish_snapshot(&mut self, store: usize, found: &Found) -> Result<(), EngineError> {
        let (engine, log) = (self.stores[store].engine.clone(), self.stores[store].log.clone());
        let region_id = found.meta.region.id;
        let (index, term) = (found.state.snapshot_index, found.state.snapshot_term);
        let key = SnapKey { region_id, term, index };
        let old = log.load(region_id)?.unwrap_or_default().hard_state;
        // The log may be the one from before the snapshot; its promises stay.
        let (term, vote) = if old.term >= term { (old.term, old.vote) } else { (term, 0) };
        let hard_state = Some(HardState { term, vote, commit: index });
        let reset = RegionLogWrite { region_id, reset: true, hard_state, ..Default::default() };
        log.append(&LogWrite { regions: vec![reset] }, true)?;
        let Some(content) = self.stores[store].received.get(&key).cloned() else {
            return Err(EngineError::Io(format!("snapshot {key} was being applied and has no files")));
        };
        replace_data(&engine, &found.meta, &content)?;
        let (_, done, _) = snapshot_states(&found.meta, &found.peer, &key);
        engine.write(&done, SYNC)?;
        self.snapshot_in_place(store, &key)
    }

    fn finish_removal(&mut self, store: usize, found: &Found) -> Result<(), EngineError> {
        let (engine, log) = (self.stores[store].engine.clone(), self.stores[store].log.clone());
        log.remove(found.meta.region.id)?;
        self.stores[store].snapshot_index.remove(&found.meta.region.id);
        if !found.meta.region.peers.is_empty() {
            clear_data(&engine, &found.meta)?;
        }
        let state = RegionState { cleaning: false, ..found.state.clone() };
        let mut done = kvserver::engine::WriteBatch::new();
        let key = kvserver::raftstore::meta::keys::region_state(found.meta.region.id);
        done.put(kvserver::engine::Cf::Meta, key, kvserver::raftstore::meta::values::encode(&state));
        engine.write(&done, SYNC)
    }
}
