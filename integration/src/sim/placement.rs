//! The scheduler in the world: the real `Cluster` behind links that lose messages, with its durable records.
//!
//! Owns the leading scheduler's cluster, its id window and its records. The leader can be lost: until another one
//! takes over nothing is answered. The next one knows what was written (records that heartbeats bring back may be
//! missing) and has a clock of its own; what the old one ordered may still arrive.

use std::collections::VecDeque;

use kvproto::{metapb, pdpb};
use kvserver::engine::{Cf, Engine, RangeEstimate};
use kvserver::raftstore::bootstrap;
use kvserver::raftstore::message::Input;
use kvserver::raftstore::message::input::{RegionReport, SplitIds};
use kvserver::raftstore::runner::scheduler_task;
use scheduler::cluster::{Cluster, Output};
use scheduler::core::store::SilenceLimits;
use scheduler::error::ClusterError;
use scheduler::id::{IdSource, IdWindow, LOW_WATER};
use scheduler::kv::records::MetaWrite;
use scheduler::schedule::ScheduleConfig;

use super::event::{Event, Life};
use super::plan::{MS, Plan};
use super::rng::fold;
use super::world::World;

/// See the file's head.
pub struct Placement {
    /// `None` while nobody leads.
    cluster: Option<Cluster>,
    config: ScheduleConfig,
    ids: IdWindow,
    /// What the disk has: the end of the id window, and the records.
    saved_end: u64,
    records: Vec<MetaWrite>,
    /// What the leader's clock shows above true time, milliseconds.
    ahead_ms: u64,
    /// The newest orders, which may come late.
    recent: VecDeque<pdpb::RegionHeartbeatResponse>,
    /// Orders given.
    pub orders: u64,
    /// How often another scheduler took over.
    pub changes: u64,
}

const CLUSTER_ID: u64 = 1;
/// Everything given out at the start has a smaller id.
const FIRST_ID: u64 = 1_000;
/// Orders that may come late.
const RECENT_MAX: usize = 32;

impl Placement {
    /// A scheduler that knows the stores and the first of `regions` as if it covered all keys; the leaders'
    /// reports bring the others.
    pub fn new(plan: &Plan, regions: &[metapb::Region]) -> Result<Placement, String> {
        let config = ScheduleConfig {
            max_replicas: plan.max_replicas,
            silence: SilenceLimits { disconnected_ms: 2_000, down_ms: 6_000 },
            fast_step_ms: 5_000,
            slow_step_ms: 10_000,
            ..Default::default()
        };
        let mut cluster = Cluster::new(CLUSTER_ID, config.clone());
        let mut records = Vec::new();
        let first = &regions[0];
        let peer = first.peers[0];
        let whole = bootstrap::first_region(first.id, peer.id, peer.store_id);
        let out = cluster.bootstrap(0, store_meta(peer.store_id), vec![whole], None);
        records.extend(out.map_err(|e| e.to_string())?.writes);
        for store_id in 1..=plan.stores.len() as u64 {
            if store_id != peer.store_id {
                let out = cluster.put_store(0, store_meta(store_id), None);
                records.extend(out.map_err(|e| e.to_string())?.writes);
            }
        }
        Ok(Placement {
            cluster: Some(cluster),
            config,
            ids: IdWindow::new(FIRST_ID),
            saved_end: FIRST_ID,
            records,
            ahead_ms: 0,
            recent: VecDeque::new(),
            orders: 0,
            changes: 0,
        })
    }

    /// A fresh id.
    pub fn next_id(&mut self) -> Option<u64> {
        self.save_ids();
        self.ids.next_id()
    }

    /// Makes more ids durable when few are left.
    fn save_ids(&mut self) {
        if self.ids.left() < LOW_WATER {
            self.saved_end = self.ids.extension(LOW_WATER);
            self.ids.extended_to(self.saved_end);
        }
    }

    /// Ids for `count` new regions cut off a region, durable before they are given.
    fn ids_for_split(&mut self, region: &metapb::Region, count: u32) -> Result<Vec<SplitIds>, String> {
        let cluster = self.cluster.as_ref().ok_or("no scheduler leads")?;
        cluster.check_split(region, count).map_err(|e| e.to_string())?;
        let mut next = || self.next_id().ok_or("no ids are left");
        let mut given = Vec::new();
        for _ in 0..count {
            let region_id = next()?;
            let peer_ids = region.peers.iter().map(|_| next()).collect::<Result<Vec<_>, _>>()?;
            given.push(SplitIds { region_id, peer_ids });
        }
        Ok(given)
    }

    /// A region as the scheduler knows it.
    pub fn region(&self, region_id: u64) -> Option<&metapb::Region> {
        self.cluster.as_ref()?.basic().regions().get(region_id).map(|r| &r.meta)
    }

    /// The region that holds a key, in the form of bounds, and its leader, as the scheduler knows them.
    pub fn locate(&self, key: &[u8]) -> Option<(metapb::Region, Option<metapb::Peer>)> {
        let region = self.cluster.as_ref()?.basic().regions().by_key(key)?;
        Some((region.meta.clone(), region.leader))
    }

    /// What the leader's wall clock shows, milliseconds; `None` while nobody leads.
    pub fn wall_ms(&self, now_ns: u64) -> Option<u64> {
        self.cluster.as_ref().map(|_| self.now_ms(now_ns))
    }

    fn now_ms(&self, now_ns: u64) -> u64 {
        now_ns / MS + self.ahead_ms
    }

    /// Shows the leading cluster something, with its time and its ids. Without a leader nothing comes of it.
    fn with(
        &mut self,
        now_ns: u64,
        f: impl FnOnce(&mut Cluster, u64, &mut IdWindow) -> Result<Output, ClusterError>,
    ) -> Result<Output, ClusterError> {
        self.save_ids();
        let now_ms = self.now_ms(now_ns);
        let Some(cluster) = &mut self.cluster else { return Ok(Output::default()) };
        let out = f(cluster, now_ms, &mut self.ids)?;
        self.records.extend(out.writes.iter().cloned());
        Ok(out)
    }

    /// A scheduler that has just begun to lead: it reads what is on disk.
    fn take_over(&mut self, now_ns: u64, mut keep_rebuildable: impl FnMut() -> bool) -> Result<(), String> {
        self.records.retain(|r| !r.is_rebuildable() || keep_rebuildable());
        self.ids = IdWindow::new(self.saved_end);
        let now_ms = self.now_ms(now_ns);
        let mut cluster = Cluster::new(CLUSTER_ID, self.config.clone());
        let mut records = self.records.iter().cloned();
        records.try_for_each(|r| cluster.restore(r, now_ms)).map_err(|e| e.to_string())?;
        self.cluster = Some(cluster);
        self.changes += 1;
        Ok(())
    }
}

fn store_meta(id: u64) -> metapb::Store {
    metapb::Store { id, address: format!("store-{id}"), ..Default::default() }
}

impl World {
    /// A leader reports; the report may get lost.
    pub fn send_report(&mut self, store: usize, report: RegionReport) {
        if self.network.loses_scheduler_message(store) {
            return;
        }
        let size = match report.size {
            Some(size) => size,
            None => self.region_size(store, report.region.id),
        };
        let request = Box::new(scheduler_task::request(report, size));
        let at = self.now_ns + self.network.latency();
        self.queue.push(at, Event::RegionHeartbeat { from: store, request });
    }

    /// What the engine makes of a region's size.
    fn region_size(&mut self, store: usize, region_id: u64) -> RangeEstimate {
        let s = &self.stores[store];
        let size = s.region_on_disk(region_id).and_then(|found| match found {
            Some((meta, _)) => s.engine.estimate(Cf::Raw, &meta.start, &meta.end),
            None => Ok(RangeEstimate::default()),
        });
        size.unwrap_or_else(|error| {
            self.violate("driver", error.to_string());
            RangeEstimate::default()
        })
    }

    /// A report reaches the scheduler.
    pub fn on_region_heartbeat(&mut self, request: pdpb::RegionHeartbeatRequest) {
        let taken = self
            .placement
            .with(self.now_ns, |cluster, now_ms, ids| cluster.region_heartbeat(now_ms, request, ids));
        // A refused report is stale; the leader reports again.
        if let Ok(out) = taken {
            self.carry_out_orders(out);
        }
    }

    /// A leader wants ids for new regions.
    pub fn ask_split(&mut self, store: usize, region: metapb::Region, count: u32) {
        let life = self.stores[store].life();
        let at = self.now_ns + self.network.latency();
        self.queue.push(at, Event::AskSplit { life, region: Box::new(region), count });
    }

    /// The scheduler gives ids or says why not. When one of the two messages gets lost, the store notices.
    pub fn on_ask_split(&mut self, life: Life, region: metapb::Region, count: u32) {
        let lost = self.network.loses_scheduler_message(life.store);
        let answer = self.placement.ids_for_split(&region, count);
        let again = self.network.loses_scheduler_message(life.store);
        let result = if lost || again { Err("no answer".to_string()) } else { answer };
        let (region_id, version) = (region.id, region.region_epoch.unwrap_or_default().version);
        let at = self.now_ns + self.network.latency();
        let input = Box::new(Input::SplitIds { region_id, version, result });
        self.queue.push(at, Event::Input { life, input });
    }

    /// A leader tells what came out of a split; nobody misses the message when it gets lost.
    pub fn report_split(&mut self, store: usize, regions: Vec<metapb::Region>) {
        if !self.network.loses_scheduler_message(store) {
            let at = self.now_ns + self.network.latency();
            self.queue.push(at, Event::ReportSplit(regions));
        }
    }

    /// The scheduler hears of a split.
    pub fn on_report_split(&mut self, regions: Vec<metapb::Region>) {
        let taken = self
            .placement
            .with(self.now_ns, |cluster, now_ms, ids| cluster.report_split(now_ms, regions, ids));
        match taken {
            Ok(out) => self.carry_out_orders(out),
            Err(error) => self.violate("scheduler", format!("report of a split refused: {error}")),
        }
    }

    /// A store's regular report.
    pub fn on_store_heartbeat(&mut self, life: Life) {
        self.queue.push(self.now_ns + self.plan.store_heartbeat_ns, Event::StoreHeartbeat(life));
        if self.network.loses_scheduler_message(life.store) {
            return;
        }
        let stats = pdpb::StoreStats {
            store_id: self.stores[life.store].id,
            capacity: 1 << 40,
            available: 1 << 40,
            ..Default::default()
        };
        let taken = self.placement.with(self.now_ns, |cluster, now_ms, ids| {
            cluster.store_heartbeat(now_ms, stats, ids).map(|(_, out)| out)
        });
        match taken {
            Ok(out) => self.carry_out_orders(out),
            Err(error) => self.violate("scheduler", format!("store heartbeat refused: {error}")),
        }
    }

    /// The scheduler looks around.
    pub fn on_scheduler_tick(&mut self) {
        self.queue.push(self.now_ns + self.plan.scheduler_tick_ns, Event::SchedulerTick);
        let taken = self.placement.with(self.now_ns, |cluster, now_ms, ids| Ok(cluster.tick(now_ms, ids)));
        if let Ok(out) = taken {
            self.carry_out_orders(out);
        }
    }

    /// Nobody leads the schedulers any more. What the last one ordered is still on its way.
    pub fn on_scheduler_lost(&mut self) {
        self.placement.cluster = None;
        for order in std::mem::take(&mut self.placement.recent) {
            if self.nemesis_rng.chance(0.3) {
                let late = self.nemesis_rng.log_range(10 * MS, 8_000 * MS);
                self.send_order(order, late);
            }
        }
    }

    /// Another scheduler begins to lead and asks all leaders of regions to report.
    pub fn on_scheduler_takes_over(&mut self) {
        // Locks live by the scheduler's clock: far ahead, they would outlive the run.
        let ahead_max = if self.plan.txn.clients > 0 { 2_000 } else { 60_000 };
        self.placement.ahead_ms = self.nemesis_rng.below(ahead_max);
        self.txn.timestamps.take_over();
        let rng = &mut self.nemesis_rng;
        if let Err(error) = self.placement.take_over(self.now_ns, || rng.chance(0.8)) {
            return self.violate("scheduler", format!("restart: {error}"));
        }
        for store in 0..self.stores.len() {
            self.put_in(store, Input::HeartbeatAll);
        }
    }

    fn carry_out_orders(&mut self, out: Output) {
        if self.trace {
            out.events.iter().for_each(|event| println!("{:>17}  {event:?}", "scheduler"));
        }
        for order in out.commands {
            let Some(target) = order.target_peer else { continue };
            self.placement.orders += 1;
            self.trace_hash = fold(self.trace_hash, order.region_id ^ target.id << 32);
            self.placement.recent.push_back(order.clone());
            if self.placement.recent.len() > RECENT_MAX {
                self.placement.recent.pop_front();
            }
            if !self.network.loses_scheduler_message(target.store_id as usize - 1) {
                self.send_order(order, 0);
            }
        }
    }

    fn send_order(&mut self, order: pdpb::RegionHeartbeatResponse, late_ns: u64) {
        let Some(target) = order.target_peer else { return };
        let at = self.now_ns + self.network.latency() + late_ns;
        self.queue.push(at, Event::Order { store: target.store_id as usize - 1, order: Box::new(order) });
    }

    /// An order reaches a store.
    pub fn on_order(&mut self, store: usize, order: pdpb::RegionHeartbeatResponse) {
        let (region_id, epoch) = (order.region_id, order.region_epoch.unwrap_or_default());
        match scheduler_task::command(order) {
            Some(command) => self.put_in(store, Input::Command { region_id, epoch, command }),
            None => self.violate("scheduler", "an order without content".to_string()),
        }
    }
}
