//! What a seed stands for: the shape of the cluster, the manners of network and disks, the faults, the load.
//!
//! Every figure is drawn from the seed (swarm testing): one run has a perfect network and dying disks, another
//! the opposite. Limits keep the faults within what the system promises to survive.

use std::sync::Arc;

use kvproto::kvrpcpb::ApiVersion;
use kvserver::raftstore::RaftConfig;

use super::clock::StoreClock;
use super::rng::Rng;

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

/// Faults: nanoseconds between two, and the weight of each kind.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    pub every_ns: (u64, u64),
    pub crash: u64,
    pub power_cut: u64,
    pub pause: u64,
    pub partition: u64,
    pub transfer: u64,
    pub membership: u64,
    pub scheduler: u64,
    pub false_hint: u64,
    pub stale_entry: u64,
    /// How long a fault lasts, nanoseconds.
    pub lasts_ns: (u64, u64),
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

/// All of it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub regions: u64,
    pub max_replicas: usize,
    pub stores: Vec<StoreMode>,
    pub raft: Vec<Arc<RaftConfig>>,
    pub network: NetworkPlan,
    pub disk: DiskPlan,
    pub faults: FaultPlan,
    pub load: LoadPlan,
    pub scheduler_tick_ns: u64,
    pub store_heartbeat_ns: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Plan {
        let mut rng = Rng::new(seed, 0);
        let stores: Vec<StoreMode> = (0..rng.range(3, 5)).map(|_| draw_store(&mut rng)).collect();
        let raft = draw_raft(&mut rng, seed, stores.len());
        let max_replicas = if stores.len() == 5 && rng.chance(0.3) { 5 } else { 3 };
        Plan {
            seed,
            regions: rng.range(1, 3),
            max_replicas,
            stores,
            raft,
            network: draw_network(&mut rng),
            disk: draw_disk(&mut rng),
            faults: draw_faults(&mut rng),
            load: draw_load(&mut rng),
            scheduler_tick_ns: rng.range(200, 1_000) * MS,
            store_heartbeat_ns: rng.range(200, 1_000) * MS,
        }
    }

    /// First byte of the keys of the region with this number.
    pub fn prefix(region: u64) -> u8 {
        b'a' + region as u8
    }
}

fn draw_store(rng: &mut Rng) -> StoreMode {
    let drift = rng.range(0, 20_000) as i64 - 10_000;
    StoreMode {
        inline: rng.chance(0.5),
        turn_delay_ns: if rng.chance(0.5) { 0 } else { rng.log_range(US, 500 * US) },
        clock: StoreClock { offset_ns: rng.range(0, 3_600_000) * MS, drift_ppm: drift },
    }
}

fn draw_raft(rng: &mut Rng, seed: u64, stores: usize) -> Vec<Arc<RaftConfig>> {
    let common = RaftConfig {
        api: ApiVersion::V1,
        seed,
        entry_cache_bytes_max: rng.log_range(512, 1 << 20) as usize,
        message_max_bytes: rng.log_range(64, 1 << 20),
        inflight_messages_max: rng.log_range(2, 256) as usize,
        log_gc_ticks: rng.range(2, 40),
        log_gc_threshold: rng.log_range(4, 64),
        log_gc_count_limit: rng.log_range(24, 512),
        report_ticks: rng.range(10, 60),
        stale_check_ticks: rng.range(30, 100),
        ..Default::default()
    };
    // In production each store brings its own seed.
    let own = rng.chance(0.5);
    let seed_of = |store: usize| if own { seed ^ store as u64 } else { seed };
    (0..stores).map(|store| Arc::new(RaftConfig { seed: seed_of(store), ..common.clone() })).collect()
}

fn draw_network(rng: &mut Rng) -> NetworkPlan {
    let low = rng.log_range(20 * US, 2 * MS);
    let mut rare = |most: f64| if rng.chance(0.5) { 0.0 } else { most * rng.below(1000) as f64 / 1000.0 };
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
    let every = rng.log_range(50 * MS, 800 * MS);
    let lasts = rng.log_range(10 * MS, 800 * MS);
    let mut weight = |most: u64| if rng.chance(0.35) { 0 } else { rng.range(1, most) };
    let (crash, power_cut, pause, partition) = (weight(10), weight(2), weight(6), weight(10));
    let (transfer, membership, scheduler) = (weight(6), weight(6), weight(2));
    let (false_hint, stale_entry) = (weight(4), weight(2));
    FaultPlan {
        every_ns: (every, every * 4),
        crash,
        power_cut,
        pause,
        partition,
        transfer,
        membership,
        scheduler,
        false_hint,
        stale_entry,
        lasts_ns: (lasts, lasts * rng.range(2, 10)),
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
