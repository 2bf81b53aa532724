//! What a seed stands for: the shape of the cluster, the manners of network and disks, the faults, the load.
//!
//! Every figure is drawn from the seed (swarm testing): one run has a perfect network and dying disks, another
//! the opposite. Limits keep the faults within what the system promises to survive.

use std::sync::Arc;

use bytes::Bytes;
use kvproto::key::BoundaryForm;
use kvproto::kvrpcpb::ApiVersion;
use kvserver::raftstore::RaftConfig;
use kvserver::raftstore::split_keys::SplitLimits;

use super::clock::StoreClock;
use super::rng::Rng;
use super::txn::workload::Workload;

/// Nanoseconds in a microsecond and a millisecond.
pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;

/// How one store's driver works.
#[derive(Clone, Copy, Debug)]
pub struct StoreMode {
    /// Log writes and applies stop the raft thread; otherwise they complete as later events.
    pub inline: bool,
    /// How long the raft thread collects events before it looks at them, nanoseconds.
    pub turn_delay_ns: u64,
    pub clock: StoreClock,
}

/// Manners of the network. Latencies in nanoseconds, the others are probabilities per message.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    pub latency_ns: (u64, u64),
    pub loss: f64,
    pub duplicate: f64,
    /// A message that takes much longer than the others.
    pub straggle: f64,
    /// Messages of one link arrive in order.
    pub fifo: bool,
    /// Requests and answers between clients and stores that get lost.
    pub client_loss: f64,
}

/// Manners of the disks.
#[derive(Clone, Debug)]
pub struct DiskPlan {
    pub log_ns: (u64, u64),
    pub apply_ns: (u64, u64),
    /// Writes that take much longer, and how long.
    pub stall: f64,
    pub stall_ns: u64,
    /// Between flushes of the engine in the background.
    pub flush_ns: u64,
    /// Steps of snapshots and removals.
    pub task_ns: (u64, u64),
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process dies, perhaps together with its machine.
    Crash,
    /// All machines lose power at once.
    PowerCut,
    /// A process or its machine is stopped for a while; its clock goes on.
    Pause,
    /// Links are cut, one way or both.
    Partition,
    /// Leadership is handed on.
    Transfer,
    /// A member is added, promoted or removed.
    Membership,
    /// The scheduler's leader is replaced, with or without a gap; orders of the old one may still arrive.
    Scheduler,
    /// A store is told that another is gone, or back.
    FalseHint,
    /// An entry made for an old region version gets into a log.
    StaleEntry,
    /// A store is away for so long that its replicas are replaced, and then comes back with its old data.
    StoreAway,
    /// The rate of a clock changes, within what is promised.
    Drift,
    /// A region is divided.
    Split,
}

/// Faults: nanoseconds between two, and the weight of each kind.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    pub every_ns: (u64, u64),
    pub weights: Vec<(Fault, u64)>,
    /// Faults in all.
    pub at_most: u64,
    /// How long a fault lasts, nanoseconds.
    pub lasts_ns: (u64, u64),
    /// How long a store is away, nanoseconds.
    pub away_ns: (u64, u64),
}

/// The load.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    pub clients: usize,
    /// Registers per region.
    pub keys: u64,
    /// Other keys per region that are only written.
    pub noise_keys: u64,
    pub think_ns: (u64, u64),
    /// How long a client waits for an answer, nanoseconds.
    pub patience_ns: u64,
    /// Out of 100 operations.
    pub reads: u64,
    pub swaps: u64,
    pub noise: u64,
    pub stale: u64,
    /// Probability that a reader is interrupted between two of its steps.
    pub interrupt: f64,
}

/// The load of transactions.
#[derive(Clone, Debug)]
pub struct TxnPlan {
    pub workload: Workload,
    pub clients: usize,
    pub keys: u64,
    pub think_ns: (u64, u64),
    /// Out of 100 transactions: those that lock what they read, that want to commit asynchronously, in one phase.
    pub pessimistic: u64,
    pub async_commit: u64,
    pub one_phase: u64,
    /// Probability that a client dies instead of going on, at each step.
    pub crash: f64,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Regions at the start.
    pub regions: u64,
    /// With so many regions none is divided any more.
    pub regions_max: usize,
    /// A larger region is divided without being asked.
    pub split: SplitLimits,
    pub max_replicas: usize,
    pub stores: Vec<StoreMode>,
    pub raft: Vec<Arc<RaftConfig>>,
    pub network: NetworkPlan,
    pub disk: DiskPlan,
    pub faults: FaultPlan,
    pub load: LoadPlan,
    pub txn: TxnPlan,
    pub scheduler_tick_ns: u64,
    pub store_heartbeat_ns: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Plan {
        Plan::draw_with(seed, None)
    }

    /// The plan of a seed, with a number of stores from and to.
    pub fn draw_with(seed: u64, stores: Option<(u64, u64)>) -> Plan {
        let mut rng = Rng::new(seed, 0);
        let (low, high) = stores.unwrap_or((3, 5));
        let stores: Vec<StoreMode> = (0..rng.range(low, high)).map(|_| draw_store(&mut rng)).collect();
        let raft = draw_raft(&mut rng, seed, stores.len());
        let max_replicas = if stores.len() == 5 && rng.chance(0.3) { 5 } else { 3 };
        Plan {
            seed,
            regions: rng.range(1, 3),
            regions_max: Rng::new(seed, 8).range(6, 16) as usize,
            split: draw_split(seed),
            max_replicas,
            stores,
            raft,
            network: draw_network(&mut rng),
            disk: draw_disk(&mut rng),
            faults: draw_faults(&mut rng),
            load: draw_load(&mut rng),
            txn: draw_transactions(seed),
            scheduler_tick_ns: rng.range(200, 1_000) * MS,
            store_heartbeat_ns: rng.range(200, 1_000) * MS,
        }
    }

    /// Logs lose their old entries so early that whoever was away for a moment needs a snapshot.
    pub fn keep_logs_short(&mut self) {
        for raft in &mut self.raft {
            let short = RaftConfig {
                log_gc_ticks: 2,
                log_gc_threshold: 4,
                log_gc_count_limit: 24,
                ..(**raft).clone()
            };
            *raft = Arc::new(short);
        }
    }

    /// How keys stand in the bounds of regions.
    pub fn form(&self) -> BoundaryForm {
        BoundaryForm::of_raw(self.raft[0].api)
    }

    /// Clients with this load of transactions, or none.
    pub fn set_transactions(&mut self, workload: Option<Workload>, clients_die: bool) {
        let mut rng = Rng::new(self.seed, 12);
        self.txn.clients = if workload.is_some() { rng.range(2, 6) as usize } else { 0 };
        self.txn.workload = workload.unwrap_or(self.txn.workload);
        self.txn.crash = if clients_die { 0.003 + rng.share(0.02) } else { 0.0 };
        let api = if workload.is_some() { ApiVersion::V2 } else { ApiVersion::V1 };
        for raft in &mut self.raft {
            *raft = Arc::new(RaftConfig { api, ..(**raft).clone() });
        }
    }

    /// A key where a region may be divided: often one that is in use.
    pub fn any_key(&self, rng: &mut Rng) -> Bytes {
        let kind = [b'k', b'n', b'f', b'z'][rng.index(4)];
        let last = if rng.chance(0.5) { rng.below(8) * 16 } else { rng.below(256) };
        Bytes::from(vec![Plan::prefix(rng.below(self.regions)), kind, last as u8])
    }

    /// First byte of the keys of the region with this number.
    pub fn prefix(region: u64) -> u8 {
        b'a' + region as u8
    }
}

fn draw_store(rng: &mut Rng) -> StoreMode {
    StoreMode {
        inline: rng.chance(0.5),
        turn_delay_ns: if rng.chance(0.5) { 0 } else { rng.log_range(US, 500 * US) },
        clock: StoreClock::new(rng.range(0, 3_600_000) * MS, draw_drift(rng)),
    }
}

/// A rate within what leases allow for, parts per million above that of true time.
pub fn draw_drift(rng: &mut Rng) -> i64 {
    rng.range(0, 20_000) as i64 - 10_000
}

fn draw_raft(rng: &mut Rng, seed: u64, stores: usize) -> Vec<Arc<RaftConfig>> {
    let common = RaftConfig {
        api: if draws_transactions(seed) { ApiVersion::V2 } else { ApiVersion::V1 },
        seed,
        entry_cache_bytes_max: rng.log_range(512, 1 << 20) as usize,
        message_max_bytes: rng.log_range(64, 1 << 20),
        inflight_messages_max: rng.log_range(2, 256) as usize,
        log_gc_ticks: rng.range(2, 40),
        log_gc_threshold: rng.log_range(4, 64),
        log_gc_count_limit: rng.log_range(24, 512),
        right_derive_when_split: seed.is_multiple_of(2),
        split_check_ticks: 20,
        split_check_diff: 64 << (seed % 5),
        report_ticks: rng.range(10, 60),
        stale_check_ticks: rng.range(30, 100),
        ..Default::default()
    };
    // In production each store brings its own seed.
    let own = rng.chance(0.5);
    let seed_of = |store: usize| if own { seed ^ store as u64 } else { seed };
    (0..stores).map(|store| Arc::new(RaftConfig { seed: seed_of(store), ..common.clone() })).collect()
}

/// In one of three runs regions of a few keys are too large.
fn draw_split(seed: u64) -> SplitLimits {
    if !seed.is_multiple_of(3) {
        return SplitLimits::default();
    }
    let split_bytes = Rng::new(seed, 9).range(40, 160);
    SplitLimits { split_bytes, max_bytes: split_bytes * 3 / 2, ..Default::default() }
}

fn draw_network(rng: &mut Rng) -> NetworkPlan {
    let low = rng.log_range(20 * US, 2 * MS);
    let mut rare = |most: f64| if rng.chance(0.5) { 0.0 } else { rng.share(most) };
    let (loss, duplicate, straggle, client_loss) = (rare(0.15), rare(0.1), rare(0.02), rare(0.05));
    NetworkPlan {
        latency_ns: (low, low * rng.range(1, 8)),
        loss,
        duplicate,
        straggle,
        fifo: rng.chance(0.3),
        client_loss,
    }
}

fn draw_disk(rng: &mut Rng) -> DiskPlan {
    let log = rng.log_range(50 * US, 4 * MS);
    let apply = rng.log_range(5 * US, 2 * MS);
    let task = rng.log_range(MS, 50 * MS);
    DiskPlan {
        log_ns: (log, log * rng.range(1, 6)),
        apply_ns: (apply, apply * rng.range(1, 6)),
        stall: if rng.chance(0.6) { 0.0 } else { 0.005 },
        stall_ns: rng.log_range(20 * MS, 1_500 * MS),
        flush_ns: rng.log_range(50 * MS, 10_000 * MS),
        task_ns: (task, task * rng.range(1, 6)),
    }
}

fn draw_faults(rng: &mut Rng) -> FaultPlan {
    use Fault::*;
    let every = rng.log_range(50 * MS, 800 * MS);
    let lasts = rng.log_range(10 * MS, 800 * MS);
    let mut weight = |most: u64| if rng.chance(0.35) { 0 } else { rng.range(1, most) };
    let most = [
        (Crash, 10),
        (PowerCut, 2),
        (Pause, 6),
        (Partition, 10),
        (Transfer, 6),
        (Membership, 6),
        (Scheduler, 2),
        (FalseHint, 4),
        (StaleEntry, 2),
        (Drift, 2),
    ];
    let mut weights = most.map(|(fault, most)| (fault, weight(most))).to_vec();
    // Rarely: while a store is away, few others may fail.
    weights.push((StoreAway, u64::from(rng.chance(0.15))));
    weights.push((Split, if rng.chance(0.4) { 0 } else { rng.range(1, 10) }));
    FaultPlan {
        every_ns: (every, every * 4),
        weights,
        at_most: u64::MAX,
        lasts_ns: (lasts, lasts * rng.range(2, 10)),
        away_ns: (12_000 * MS, 25_000 * MS),
    }
}

fn draw_load(rng: &mut Rng) -> LoadPlan {
    let think = rng.log_range(3 * MS, 150 * MS);
    LoadPlan {
        clients: rng.range(2, 8) as usize,
        keys: rng.range(1, 4),
        noise_keys: rng.range(1, 24),
        think_ns: (think, think * rng.range(1, 5)),
        patience_ns: rng.log_range(150 * MS, 4_000 * MS),
        reads: rng.range(20, 70),
        swaps: rng.range(0, 20),
        noise: rng.range(0, 30),
        stale: rng.range(0, 3),
        interrupt: if rng.chance(0.4) { 0.0 } else { 0.2 },
    }
}

/// Whether a seed's load has transactions.
fn draws_transactions(seed: u64) -> bool {
    seed.is_multiple_of(4)
}

fn draw_transactions(seed: u64) -> TxnPlan {
    let mut rng = Rng::new(seed, 11);
    let think = rng.log_range(3 * MS, 100 * MS);
    let workload = [Workload::Bank, Workload::Registers, Workload::Lists, Workload::Skew][rng.index(4)];
    TxnPlan {
        workload,
        clients: if draws_transactions(seed) { rng.range(2, 6) as usize } else { 0 },
        keys: rng.range(2, 8),
        think_ns: (think, think * rng.range(1, 5)),
        pessimistic: if rng.chance(0.3) { 0 } else { rng.range(10, 90) },
        async_commit: if rng.chance(0.3) { 0 } else { rng.range(30, 100) },
        one_phase: if rng.chance(0.3) { 0 } else { rng.range(30, 100) },
        crash: if rng.chance(0.4) { 0.0 } else { 0.002 + rng.share(0.02) },
    }
}
