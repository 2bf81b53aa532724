//! The scheduler in the world: the real `Cluster` behind a link that loses messages, restarts included.
//!
//! Owns the cluster, its ids and its records. A restart keeps what was written, but records that heartbeats bring
//! back may be missing from it.

use kvproto::{eraftpb, metapb, pdpb};
use kvserver::raftstore::bootstrap;
use kvserver::raftstore::message::input::{ChangePeerKind, RegionReport};
use kvserver::raftstore::message::{Input, RegionCommand};
use scheduler::cluster::{Cluster, Output};
use scheduler::core::store::SilenceLimits;
use scheduler::id::IdSource;
use scheduler::kv::records::MetaWrite;
use scheduler::schedule::ScheduleConfig;

use super::event::{Event, Life};
use super::plan::{MS, Plan};
use super::rng::fold;
use super::world::World;

/// Ids of the simulated world: peers get those above everything given out at the start.
struct Ids(u64);

impl IdSource for Ids {
    fn next_id(&mut self) -> Option<u64> {
        self.0 += 1;
        Some(self.0)
    }
}

/// See the file's head.
pub struct Placement {
    cluster: Cluster,
    config: ScheduleConfig,
    ids: Ids,
    records: Vec<MetaWrite>,
    /// Orders given.
    pub orders: u64,
}

const CLUSTER_ID: u64 = 1;

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
        let mut placement = Placement {
            cluster: Cluster::new(CLUSTER_ID, config.clone()),
            config,
            ids: Ids(1_000),
            records: Vec::new(),
            orders: 0,
        };
        let first = &regions[0];
        let peer = first.peers[0];
        let whole = bootstrap::first_region(first.id, peer.id, peer.store_id);
        let out = placement.cluster.bootstrap(0, store_meta(peer.store_id), vec![whole], None);
        placement.records.extend(out.map_err(|e| e.to_string())?.writes);
        for store_id in 1..=plan.stores.len() as u64 {
            if store_id != peer.store_id {
                let out = placement.cluster.put_store(0, store_meta(store_id), None);
                placement.records.extend(out.map_err(|e| e.to_string())?.writes);
            }
        }
        Ok(placement)
    }

    /// A fresh id.
    pub fn next_id(&mut self) -> u64 {
        self.ids.0 += 1;
        self.ids.0
    }

    /// A region as the scheduler knows it.
    pub fn region(&self, region_id: u64) -> Option<&metapb::Region> {
        self.cluster.basic().regions().get(region_id).map(|r| &r.meta)
    }

    /// Whether the scheduler still wants something of a region.
    pub fn is_busy_with(&self, region_id: u64) -> bool {
        self.cluster.operator(region_id).is_some()
    }

    fn restart(&mut self, now_ms: u64, keep_rebuildable: impl FnMut() -> bool) -> Result<(), String> {
        let mut keep = keep_rebuildable;
        self.records.retain(|r| !r.is_rebuildable() || keep());
        self.cluster = Cluster::new(CLUSTER_ID, self.config.clone());
        let records = self.records.clone();
        records.into_iter().try_for_each(|r| self.cluster.restore(r, now_ms)).map_err(|e| e.to_string())
    }
}

fn store_meta(id: u64) -> metapb::Store {
    metapb::Store { id, address: format!("store-{id}"), ..Default::default() }
}

impl World {
    /// A leader reports; the report may get lost.
    pub fn send_report(&mut self, store: usize, report: RegionReport) {
        if self.network.loses_request() {
            return;
        }
        let request = Box::new(pdpb::RegionHeartbeatRequest {
            region: Some(report.region),
            leader: Some(report.leader),
            term: report.term,
            down_peers: report.down,
            pending_peers: report.pending,
            bytes_written: report.bytes_written,
            keys_written: report.keys_written,
            ..Default::default()
        });
        let at = self.now_ns + self.network.latency();
        self.queue.push(at, Event::RegionHeartbeat { from: store, request });
    }

    /// A report reaches the scheduler.
    pub fn on_region_heartbeat(&mut self, request: pdpb::RegionHeartbeatRequest) {
        let now_ms = self.now_ns / MS;
        let p = &mut self.placement;
        // A refused report is stale; the leader reports again.
        if let Ok(out) = p.cluster.region_heartbeat(now_ms, request, &mut p.ids) {
            self.carry_out_orders(out);
        }
    }

    /// A store's regular report.
    pub fn on_store_heartbeat(&mut self, life: Life) {
        self.queue.push(self.now_ns + self.plan.store_heartbeat_ns, Event::StoreHeartbeat(life));
        let stats = pdpb::StoreStats {
            store_id: self.stores[life.store].id,
            capacity: 1 << 40,
            available: 1 << 40,
            ..Default::default()
        };
        let p = &mut self.placement;
        match p.cluster.store_heartbeat(self.now_ns / MS, stats, &mut p.ids) {
            Ok((_, out)) => self.carry_out_orders(out),
            Err(error) => self.violate("scheduler", format!("store heartbeat refused: {error}")),
        }
    }

    /// The scheduler looks around.
    pub fn on_scheduler_tick(&mut self) {
        self.queue.push(self.now_ns + self.plan.scheduler_tick_ns, Event::SchedulerTick);
        let p = &mut self.placement;
        let out = p.cluster.tick(self.now_ns / MS, &mut p.ids);
        self.carry_out_orders(out);
    }

    /// The scheduler's process starts anew and asks all leaders to report.
    pub fn on_scheduler_restart(&mut self) {
        let rng = &mut self.nemesis_rng;
        if let Err(error) = self.placement.restart(self.now_ns / MS, || rng.chance(0.8)) {
            return self.violate("scheduler", format!("restart: {error}"));
        }
        for store in 0..self.stores.len() {
            self.put_in(store, Input::HeartbeatAll);
        }
    }

    fn carry_out_orders(&mut self, out: Output) {
        self.placement.records.extend(out.writes);
        for order in out.commands {
            let Some(target) = order.target_peer else { continue };
            let store = target.store_id as usize - 1;
            self.placement.orders += 1;
            self.trace_hash = fold(self.trace_hash, order.region_id ^ target.id << 32);
            if !self.stores[store].is_up() || self.network.loses_request() {
                continue;
            }
            let Some(input) = to_input(order) else {
                return self.violate("scheduler", "an order without content".to_string());
            };
            let life = self.stores[store].life();
            let at = self.now_ns + self.network.latency();
            self.queue.push(at, Event::Input { life, input: Box::new(input) });
        }
    }
}

/// An order as a store takes it.
fn to_input(order: pdpb::RegionHeartbeatResponse) -> Option<Input> {
    let command = if let Some(change) = order.change_peer {
        let kind = match change.change_type() {
            eraftpb::ConfChangeType::AddNode => ChangePeerKind::AddVoter,
            eraftpb::ConfChangeType::AddLearnerNode => ChangePeerKind::AddLearner,
            eraftpb::ConfChangeType::RemoveNode => ChangePeerKind::Remove,
        };
        RegionCommand::ChangePeer { kind, peer: change.peer? }
    } else {
        RegionCommand::TransferLeader { peer: order.transfer_leader?.peer? }
    };
    Some(Input::Command { region_id: order.region_id, epoch: order.region_epoch?, command })
}
