//! The schedulers on whole clusters: a world of stores and leaders that obey at once, driven tick by tick. What
//! counts is where things end up, and that they stay there.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kvproto::{eraftpb, metapb, pdpb};
use proptest::prelude::*;
use scheduler::cluster::{Cluster, Output};
use scheduler::error::ClusterError;
use scheduler::id::IdSource;
use scheduler::kv::records::MetaWrite;
use scheduler::schedule::operator_controller::OperatorEvent;
use scheduler::schedule::store_limit::StoreLimit;
use scheduler::schedule::{RegionCommand, ScheduleConfig};

const TICK_MS: u64 = 100;
const BEAT_TICKS: u64 = 50;
const MINUTE: u64 = 60_000;
const GIB: u64 = 1 << 30;

struct Ids(u64);

impl IdSource for Ids {
    fn next_id(&mut self) -> Option<u64> {
        self.0 += 1;
        Some(self.0)
    }
}

struct Region {
    meta: metapb::Region,
    leader: u64,
    term: u64,
    mib: u64,
}

struct World {
    cluster: Cluster,
    ids: Ids,
    now_ms: u64,
    ticks: u64,
    /// The stores that live, with what they report.
    stores: BTreeMap<u64, pdpb::StoreStats>,
    regions: BTreeMap<u64, Region>,
    records: Vec<MetaWrite>,
    /// Orders that are on their way.
    orders: VecDeque<RegionCommand>,
    /// Names of the operators that began.
    begun: Vec<&'static str>,
    /// How long a new replica lacks its data.
    copy_ms: u64,
    /// Replicas that lack theirs, with their regions and until when.
    copying: BTreeMap<u64, (u64, u64)>,
}

/// Where a region is: its stores, the leader's first, and its size in MiB.
type Place = (Vec<u64>, u64);

/// Fast stores: the limit has tests of its own.
fn config() -> ScheduleConfig {
    let store_limit = StoreLimit { add_peer: 100_000, remove_peer: 100_000 };
    ScheduleConfig { store_limit, ..ScheduleConfig::default() }
}

fn store(id: u64) -> metapb::Store {
    metapb::Store { id, address: format!("host-{id}"), ..Default::default() }
}

/// The regions tile the key space.
fn region(index: usize, count: usize, (stores, mib): Place) -> Region {
    let id = index as u64 + 1;
    let key = |n: usize| if n.is_multiple_of(count) { Bytes::new() } else { format!("{n:06}").into() };
    let peer = |store: &u64| metapb::Peer { id: id * 100 + store, store_id: *store, ..Default::default() };
    let meta = metapb::Region {
        id,
        start_key: key(index),
        end_key: key(index + 1),
        region_epoch: Some(metapb::RegionEpoch { conf_ver: 3, version: 2 }),
        peers: stores.iter().map(peer).collect(),
        ..Default::default()
    };
    Region { meta, leader: stores[0], term: 6, mib }
}

impl World {
    fn new(stores: u64, places: Vec<Place>, config: ScheduleConfig) -> World {
        World::with_copies(stores, places, config, 0)
    }

    /// A world in which a new replica lacks its data for some time.
    fn with_copies(stores: u64, places: Vec<Place>, config: ScheduleConfig, copy_ms: u64) -> World {
        let mut cluster = Cluster::new(7, config);
        let whole = metapb::Region {
            id: 999_999,
            region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 1 }),
            peers: vec![metapb::Peer { id: 999_998, store_id: 1, ..Default::default() }],
            ..Default::default()
        };
        let records = cluster.bootstrap(0, store(1), vec![whole], None).unwrap().writes;
        let count = places.len();
        let regions = places.into_iter().enumerate().map(|(index, place)| region(index, count, place));
        let mut world = World {
            cluster,
            ids: Ids(1_000_000),
            now_ms: 0,
            ticks: 0,
            stores: BTreeMap::new(),
            regions: regions.map(|region| (region.meta.id, region)).collect(),
            records,
            orders: VecDeque::new(),
            begun: Vec::new(),
            copy_ms,
            copying: BTreeMap::new(),
        };
        (1..=stores).for_each(|id| world.add_store(id));
        world.report_all();
        world
    }

    fn add_store(&mut self, id: u64) {
        let out = self.cluster.put_store(self.now_ms, store(id), None).unwrap();
        self.take(out);
        let stats =
            pdpb::StoreStats { store_id: id, capacity: 100 * GIB, available: 50 * GIB, ..Default::default() };
        self.stores.insert(id, stats);
        self.beat(id);
    }

    fn beat(&mut self, id: u64) {
        let mut stats = self.stores[&id].clone();
        let holds = |region: &&Region| region.meta.peers.iter().any(|peer| peer.store_id == id);
        stats.region_count = self.regions.values().filter(holds).count() as u32;
        match self.cluster.store_heartbeat(self.now_ms, stats, &mut self.ids) {
            Ok((_, out)) => self.take(out),
            Err(error) => assert_eq!(error, ClusterError::StoreTombstone(id)),
        }
    }

    fn report_all(&mut self) {
        let ids: Vec<u64> = self.regions.keys().copied().collect();
        ids.into_iter().for_each(|id| self.report(id));
    }

    fn report(&mut self, id: u64) {
        let region = &self.regions[&id];
        let request = pdpb::RegionHeartbeatRequest {
            region: Some(region.meta.clone()),
            leader: region.meta.peers.iter().find(|peer| peer.store_id == region.leader).copied(),
            term: region.term,
            approximate_size: region.mib << 20,
            pending_peers: region
                .meta
                .peers
                .iter()
                .filter(|p| self.copying.contains_key(&p.id))
                .copied()
                .collect(),
            ..Default::default()
        };
        let out = self.cluster.region_heartbeat(self.now_ms, request, &mut self.ids).unwrap();
        self.take(out);
    }

    fn take(&mut self, out: Output) {
        self.records.extend(out.writes);
        for event in out.events {
            if let OperatorEvent::Created { name, .. } = event {
                self.begun.push(name);
            }
        }
        let is_idle = self.orders.is_empty();
        self.orders.extend(out.commands);
        // Whoever found no orders on their way carries out these, and those that follow from them.
        while is_idle && let Some(command) = self.orders.front().cloned() {
            self.obey(command);
            self.orders.pop_front();
        }
    }

    /// Does what the region's leader would do, if it lives and the command is for its epoch.
    fn obey(&mut self, command: RegionCommand) {
        let id = command.region_id;
        let region = self.regions.get_mut(&id).unwrap();
        if command.region_epoch != region.meta.region_epoch || !self.stores.contains_key(&region.leader) {
            return;
        }
        if let Some(transfer) = command.transfer_leader {
            region.leader = transfer.peer.unwrap().store_id;
            region.term += 1;
        }
        if let Some(change) = command.change_peer {
            let peer = change.peer.unwrap();
            region.meta.peers.retain(|other| other.id != peer.id);
            if change.change_type() == eraftpb::ConfChangeType::RemoveNode {
                assert_ne!(region.leader, peer.store_id, "a leader was asked to remove itself");
            } else {
                assert!(region.meta.peers.iter().all(|other| other.store_id != peer.store_id));
                let is_new = change.change_type() == eraftpb::ConfChangeType::AddLearnerNode;
                if is_new && self.copy_ms > 0 {
                    self.copying.insert(peer.id, (id, self.now_ms + self.copy_ms));
                }
                region.meta.peers.push(peer);
            }
            region.meta.region_epoch.as_mut().unwrap().conf_ver += 1;
        }
        self.report(id);
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(TICK_MS) {
            self.ticks += 1;
            self.now_ms += TICK_MS;
            if self.ticks.is_multiple_of(BEAT_TICKS) {
                self.stores.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| self.beat(id));
            }
            let out = self.cluster.tick(self.now_ms, &mut self.ids);
            self.take(out);
            let now_ms = self.now_ms;
            let copied = self.copying.values().filter(|(_, until)| *until <= now_ms);
            let copied: Vec<u64> = copied.map(|(region, _)| *region).collect();
            self.copying.retain(|_, (_, until)| *until > now_ms);
            copied.into_iter().for_each(|id| self.report(id));
        }
    }

    fn leaders(&self) -> Vec<usize> {
        let count = |id: &u64| self.regions.values().filter(|region| region.leader == *id).count();
        self.stores.keys().map(count).collect()
    }

    fn replicas(&self) -> Vec<usize> {
        let holds = |region: &Region, id: u64| region.meta.peers.iter().any(|peer| peer.store_id == id);
        self.stores.keys().map(|id| self.regions.values().filter(|r| holds(r, *id)).count()).collect()
    }

    /// Nothing begins for two minutes in which all report again and again.
    fn assert_settled(&mut self) {
        let begun = self.begun.len();
        for _ in 0..8 {
            self.report_all();
            self.run(MINUTE / 4);
        }
        assert_eq!(self.begun[begun..], [""; 0], "the cluster does not come to rest");
        assert_eq!(self.cluster.operators_running(), 0);
    }
}

fn spread(numbers: &[usize]) -> usize {
    numbers.iter().max().unwrap() - numbers.iter().min().unwrap()
}

fn on_three(count: usize) -> Vec<Place> {
    vec![(vec![1, 2, 3], 1); count]
}

#[test]
fn two_hundred_leaders_on_one_store_spread_to_within_one_and_rest() {
    let mut world = World::new(3, on_three(200), config());
    world.run(MINUTE);
    assert!(spread(&world.leaders()) <= 1, "{:?}", world.leaders());
    assert_eq!(world.begun, ["balance-leader"; 133], "no leader moves twice");
    world.assert_settled();
}

#[test]
fn a_new_store_gets_its_share_of_replicas_and_leaders() {
    let mut world = World::new(3, on_three(200), config());
    world.run(MINUTE);
    world.begun.clear();
    world.add_store(4);
    world.run(2 * MINUTE);
    assert!(spread(&world.replicas()) <= 2, "{:?}", world.replicas());
    assert!(spread(&world.leaders()) <= 1, "{:?}", world.leaders());
    assert!(world.begun.len() < 250, "150 replicas and 50 leaders move: {}", world.begun.len());
    world.assert_settled();
}

#[test]
fn a_replica_that_still_lacks_its_data_is_counted_once() {
    // Two regions lack a replica, and get it on the store that lacks two: then all stores are even.
    let stores =
        [&[1, 2, 3][..], &[1, 2, 3], &[1, 3, 4], &[1, 3, 4], &[1, 2, 4], &[3, 2, 4], &[1, 2], &[2, 3]];
    let places = stores.into_iter().map(|stores| (stores.to_vec(), 1)).collect();
    let mut world = World::with_copies(4, places, config(), 3_000);
    world.run(MINUTE);
    assert_eq!(world.replicas(), [6, 6, 6, 6]);
    assert!(!world.begun.contains(&"balance-region"), "{:?}", world.begun);
}

#[test]
fn a_store_with_large_regions_gives_some_to_one_with_as_many_small_ones() {
    let mut places = vec![(vec![1, 2, 3], 500); 20];
    places.extend(vec![(vec![4, 5, 6], 1); 20]);
    let mut world = World::new(6, places, config());
    world.run(5 * MINUTE);
    let mib = |world: &World, id: u64| -> u64 {
        let holds = |region: &&Region| region.meta.peers.iter().any(|peer| peer.store_id == id);
        world.regions.values().filter(holds).map(|region| region.mib).sum()
    };
    for id in 1..=6 {
        let held = mib(&world, id);
        assert!((4_000..=6_000).contains(&held), "store {id} holds {held} MiB");
    }
    world.assert_settled();
}

#[test]
fn a_store_is_kept_free_of_leaders_until_the_order_ends() {
    let mut world = World::new(3, on_three(30), config());
    world.run(MINUTE);
    let out = world.cluster.add_scheduler("evict-leader-scheduler", Some(2)).unwrap();
    world.take(out);
    world.run(MINUTE);
    assert_eq!(world.leaders(), [15, 0, 15]);
    world.assert_settled();
    // A restart does not bring leaders back.
    let mut again = Cluster::new(7, config());
    for record in world.records.clone() {
        again.restore(record, world.now_ms).unwrap();
    }
    world.cluster = again;
    world.stores.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| world.beat(id));
    world.report_all();
    world.run(MINUTE);
    assert_eq!(world.leaders(), [15, 0, 15]);
    let out = world.cluster.remove_scheduler("evict-leader-scheduler", Some(2)).unwrap();
    world.take(out);
    world.run(MINUTE);
    assert_eq!(world.leaders(), [10, 10, 10]);
}

#[test]
fn a_store_that_stops_loses_its_leaders_at_its_next_heartbeat() {
    let mut world = World::new(3, on_three(30), config());
    world.run(MINUTE);
    world.stores.get_mut(&1).unwrap().is_stopping = true;
    world.beat(1);
    world.run(5 * TICK_MS);
    assert_eq!(world.leaders(), [0, 15, 15]);
    world.assert_settled();
}

#[test]
fn a_removed_store_is_emptied_and_becomes_a_tombstone() {
    let mut world = World::new(4, on_three(40), config());
    world.run(2 * MINUTE);
    let out = world.cluster.remove_store(world.now_ms, 1, &mut world.ids).unwrap();
    world.take(out);
    world.run(2 * MINUTE);
    assert_eq!(world.replicas(), [0, 40, 40, 40]);
    let state = world.cluster.basic().store(1).unwrap().meta.state();
    assert_eq!(state, metapb::StoreState::Tombstone);
}

#[test]
fn the_balance_waits_until_most_regions_have_reported() {
    let mut world = World::new(3, on_three(100), ScheduleConfig { halt_scheduling: true, ..config() });
    let mut again = Cluster::new(7, config());
    for record in world.records.clone() {
        again.restore(record, world.now_ms).unwrap();
    }
    world.cluster = again;
    (1..=3).for_each(|id| world.beat(id));
    (1..=79).for_each(|id| world.report(id));
    world.run(MINUTE);
    assert_eq!(world.leaders(), [100, 0, 0]);
    world.report(80);
    world.run(MINUTE);
    assert!(spread(&world.leaders()[..2]) <= 20, "{:?}", world.leaders());
}

#[test]
fn a_pause_stops_the_balance_for_its_time() {
    let mut world = World::new(3, on_three(30), ScheduleConfig { halt_scheduling: true, ..config() });
    let mut again = Cluster::new(7, config());
    for record in world.records.clone() {
        again.restore(record, world.now_ms).unwrap();
    }
    world.cluster = again;
    let out = world.cluster.pause_scheduler(world.now_ms, "all", MINUTE).unwrap();
    world.take(out);
    (1..=3).for_each(|id| world.beat(id));
    world.report_all();
    world.run(MINUTE - TICK_MS);
    assert_eq!(world.leaders(), [30, 0, 0]);
    world.run(MINUTE);
    assert_eq!(world.leaders(), [10, 10, 10]);
}

#[test]
fn nothing_moves_to_stores_that_are_full_busy_silent_or_stopping() {
    type Trouble = fn(&mut pdpb::StoreStats);
    let troubles: [Trouble; 3] =
        [|stats| stats.is_busy = true, |stats| stats.is_stopping = true, |stats| stats.available = GIB];
    for trouble in troubles {
        let mut world = World::new(3, on_three(30), config());
        world.run(MINUTE);
        world.add_store(4);
        trouble(world.stores.get_mut(&4).unwrap());
        world.beat(4);
        world.run(MINUTE);
        assert_eq!(world.replicas(), [30, 30, 30, 0]);
    }
    let mut world = World::new(4, on_three(30), ScheduleConfig { halt_scheduling: true, ..config() });
    world.cluster = {
        let mut again = Cluster::new(7, config());
        for record in world.records.clone() {
            again.restore(record, 0).unwrap();
        }
        again
    };
    (1..=3).for_each(|id| world.beat(id));
    // Store 4 is registered and has said nothing yet.
    world.stores.remove(&4);
    world.report_all();
    world.run(MINUTE);
    assert_eq!(world.cluster.basic().region_count(4), 0);
}

#[test]
fn large_replicas_move_at_the_rate_of_the_store_limit() {
    let mut world = World::new(3, vec![(vec![1, 2, 3], 100); 60], ScheduleConfig::default());
    world.run(MINUTE);
    world.add_store(4);
    world.run(2 * MINUTE);
    let gained = world.replicas()[3];
    assert!((25..=32).contains(&gained), "fifteen a minute: {gained} in two");
}

#[test]
fn leaders_that_can_move_are_found_behind_many_that_cannot() {
    let on_first_three = |n: usize| {
        let mut stores = vec![1, 2, 3];
        stores.rotate_left(n % 3);
        (stores, 0)
    };
    let mut regions: Vec<Place> = (0..1_800).map(on_first_three).collect();
    // Only these have a replica on store 4, and their ids come last.
    regions.extend(vec![(vec![1, 2, 4], 0); 60]);
    let mut world = World::new(4, regions, ScheduleConfig { region_operators_max: 0, ..config() });
    world.run(3 * MINUTE);
    assert_eq!(world.leaders()[3], 60);
}

fn places(stores: u64) -> impl Strategy<Value = Vec<Place>> {
    let some = prop::sample::subsequence((1..=stores).collect::<Vec<_>>(), 3).prop_shuffle();
    prop::collection::vec((some, prop_oneof![3 => 0u64..4, 1 => 0u64..600]), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Wherever replicas and leaders begin, they come to rest, and no store is left clearly worse off than another.
    #[test]
    fn every_cluster_comes_to_rest(places in (3u64..7).prop_flat_map(|n| (Just(n), places(n)))) {
        let (stores, places) = places;
        let largest = places.iter().map(|(_, mib)| mib + 10).max().unwrap();
        let mut world = World::new(stores, places, config());
        world.run(3 * MINUTE);
        let scores: Vec<u64> = (1..=stores).map(|id| world.cluster.basic().weight(id)).collect();
        let (high, low) = (scores.iter().max().unwrap(), scores.iter().min().unwrap());
        prop_assert!(high - low <= 2 * largest + high / 100, "{scores:?}");
        world.assert_settled();
    }
}
