//! Decisions: which membership changes and leader moves a region needs, and their execution step by step. Pure.

pub mod checker;
pub mod filter;
pub mod operator;
pub mod operator_controller;
pub mod order;
pub mod scatter;
pub mod selector;
pub mod settings;
pub mod store_limit;

use kvproto::{metapb, pdpb};

use crate::core::basic_cluster::BasicCluster;
use crate::core::region::RegionInfo;
use crate::core::store::{SilenceLimits, StoreInfo, StoreState};
use crate::gc::GcConfig;
use crate::schedulers::Schedulers;
use operator_controller::OperatorController;
use store_limit::StoreLimit;

/// Limits of placement decisions. Times are milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleConfig {
    /// How many voters every region should have.
    pub max_replicas: usize,
    /// When the silence of a store counts.
    pub silence: SilenceLimits,
    /// How many operators that repair replicas may run at once.
    pub operators_max: usize,
    /// How many operators that even out leaders may run at once.
    pub leader_operators_max: usize,
    /// How many operators that even out replicas may run at once.
    pub region_operators_max: usize,
    /// How fast stores may gain and lose replicas.
    pub store_limit: StoreLimit,
    /// A store with more snapshots in flight than this gets no new peers.
    pub snapshots_max: u32,
    /// The used share of a store's space above which it gets no new peers.
    pub low_space_ratio: f64,
    /// How long a step may take that only needs a Raft round trip.
    pub fast_step_ms: u64,
    /// How long a step may take that copies a region.
    pub slow_step_ms: u64,
    /// How long to wait before the command of an unfinished step is sent again.
    pub resend_ms: u64,
    /// Nothing is moved or split: for the time of an operation on the whole cluster.
    pub halt_scheduling: bool,
    /// Whether stores may split regions.
    pub splits_enabled: bool,
    /// How long old versions are kept.
    pub gc: GcConfig,
}

impl Default for ScheduleConfig {
    fn default() -> ScheduleConfig {
        ScheduleConfig {
            max_replicas: 3,
            silence: SilenceLimits { disconnected_ms: 20_000, down_ms: 30 * 60_000 },
            operators_max: 64,
            leader_operators_max: 4,
            region_operators_max: 2048,
            store_limit: StoreLimit::default(),
            snapshots_max: 64,
            low_space_ratio: 0.8,
            fast_step_ms: 60_000,
            slow_step_ms: 10 * 60_000,
            resend_ms: 500,
            halt_scheduling: false,
            splits_enabled: true,
            gc: GcConfig::default(),
        }
    }
}

/// What a decision looks at.
pub struct View<'a> {
    pub cluster: &'a BasicCluster,
    pub operators: &'a OperatorController,
    pub schedulers: &'a Schedulers,
    pub config: &'a ScheduleConfig,
    pub now_ms: u64,
}

impl View<'_> {
    /// The state of a store; an unknown store counts as removed.
    pub fn state(&self, store_id: u64) -> StoreState {
        self.cluster
            .store(store_id)
            .map_or(StoreState::Tombstone, |store| store.state(self.now_ms, self.config.silence))
    }

    /// Whether the store answers the scheduler at present.
    pub fn is_connected(&self, store_id: u64) -> bool {
        self.cluster.store(store_id).is_some_and(|store| self.store_is_connected(store))
    }

    fn store_is_connected(&self, store: &StoreInfo) -> bool {
        store.is_connected(self.now_ms, self.config.silence)
    }

    /// Whether the peer takes part: its store answers, and its leader finds it neither down nor lagging.
    pub fn is_healthy(&self, region: &RegionInfo, peer: &metapb::Peer) -> bool {
        self.is_connected(peer.store_id) && !region.is_down(peer.id) && !region.is_pending(peer.id)
    }

    /// Peers on the store, with those that running operators are about to add or remove.
    pub fn load(&self, store_id: u64) -> i64 {
        self.cluster.region_count(store_id) as i64 + self.operators.influence_on(store_id).peers
    }

    /// Leaders on the store, with those that running operators are about to bring or take.
    pub fn leader_load(&self, store_id: u64) -> i64 {
        self.cluster.leader_count(store_id) as i64 + self.operators.influence_on(store_id).leaders
    }

    /// The weight of the replicas on the store, with those that running operators are about to add or remove.
    pub fn weight_load(&self, store_id: u64) -> i64 {
        self.cluster.weight(store_id) as i64 + self.operators.influence_on(store_id).weight
    }
}

/// A command for the leader of a region, as it travels.
pub type RegionCommand = pdpb::RegionHeartbeatResponse;
