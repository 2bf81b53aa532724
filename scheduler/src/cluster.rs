//! The cluster as a machine: requests and heartbeats in; metadata writes, commands and events out.
//!
//! Owns everything the scheduler knows: stores, regions, operators, keyspaces, the regions that wait for a
//! better moment. It reads no clock and does no I/O: `now_ms` and a source of ids are arguments, and what must
//! be written or sent is returned as data. The same inputs give the same outputs, so it also runs in the
//! deterministic simulator.
//!
//! Invariants:
//! - the caller makes durable what is returned in `writes`, in the order of the calls, before it answers;
//! - a refused input changes nothing;
//! - a region has at most one operator, and commands are only about what the region's last heartbeat shows.

mod gc;
mod operators;
mod schedulers;
mod settings;
mod split;

use std::collections::BTreeSet;

use bytes::Bytes;
use kvproto::mvccpb::KeyValue;
use kvproto::{keyspacepb, metapb, pdpb};
use prost::Message as _;

use crate::coordinator::{Coordinator, Scene};
use crate::core::basic_cluster::BasicCluster;
use crate::core::client_keys::ClientKeys;
use crate::core::region::RegionInfo;
use crate::core::store::{StoreInfo, StoreState};
use crate::error::ClusterError;
use crate::gc::Gc;
use crate::id::IdSource;
use crate::keyspace::{self, Keyspaces};
use crate::kv::records::{MetaWrite, RecordError};
use crate::schedule::checker::Obstacle;
use crate::schedule::operator::Operator;
use crate::schedule::operator_controller::OperatorEvent;
use crate::schedule::{RegionCommand, ScheduleConfig};

pub use gc::{NULL_KEYSPACE, Present};
pub use split::SPLIT_COUNT_MAX;

/// Regions that a cluster may start with: many more than any layout needs.
const FIRST_REGIONS_MAX: usize = 256;

/// What decisions look at: everything but the coordinator itself, so that both may be borrowed.
macro_rules! scene {
    ($cluster:expr, $now_ms:expr) => {
        Scene { basic: &$cluster.basic, config: &$cluster.config, now_ms: $now_ms }
    };
}
use scene;

/// What a call wants done.
#[derive(Debug, Default, PartialEq)]
pub struct Output {
    /// To be made durable before the caller answers.
    pub writes: Vec<MetaWrite>,
    /// To be sent to the store of each command's `target_peer`. A lost one is sent again.
    pub commands: Vec<RegionCommand>,
    /// What operators did: for logs, metrics and tests.
    pub events: Vec<OperatorEvent>,
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    id: u64,
    config: ScheduleConfig,
    /// None before bootstrap.
    traits: Option<pdpb::ClusterTraits>,
    basic: BasicCluster,
    keyspaces: Keyspaces,
    client_keys: ClientKeys,
    gc: Gc,
    coordinator: Coordinator,
}

impl Cluster {
    /// An empty cluster that waits for its first store.
    pub fn new(id: u64, config: ScheduleConfig) -> Cluster {
        assert_ne!(id, 0, "clients take cluster id 0 for an absent one");
        Cluster {
            id,
            config,
            traits: None,
            basic: BasicCluster::default(),
            keyspaces: Keyspaces::default(),
            client_keys: ClientKeys::default(),
            gc: Gc::default(),
            coordinator: Coordinator::default(),
        }
    }

    /// Takes in one stored record, at start.
    pub fn restore(&mut self, record: MetaWrite, now_ms: u64) -> Result<(), crate::error::Error> {
        match record {
            MetaWrite::Bootstrapped(traits) => self.traits = Some(traits),
            MetaWrite::Store(meta) => self.basic.put_store(StoreInfo::new(meta, now_ms)),
            MetaWrite::Keyspace(meta) => self.keyspaces.put(meta),
            MetaWrite::ClientKey(kept) => self.client_keys.restore(kept),
            MetaWrite::GcSafePoints(record) => self.gc.restore_safe_points(&record),
            MetaWrite::GcBarrier(record) => self.gc.restore_barrier(record),
            MetaWrite::RegionGone(_) | MetaWrite::GcBarrierGone(_) => {}
            MetaWrite::Setting(record) => {
                if !self.restore_setting(&record) {
                    return Err(RecordError::UnknownKey(format!("setting {}", record.key)).into());
                }
            }
            MetaWrite::Scheduler(record) => {
                let name = record.name.clone();
                if !self.coordinator.schedulers_mut().restore(record) {
                    return Err(RecordError::UnknownKey(format!("scheduler {name}")).into());
                }
            }
            MetaWrite::Region(meta) => {
                let region = RegionInfo::from_meta(meta).map_err(crate::error::Error::StoredRegion)?;
                // Region records are written without waiting for the disk, so after a power cut an old record
                // may overlap a newer one. It is a cache: the newer one wins, heartbeats bring the rest.
                let _stale = self.basic.put_region(region).is_err();
            }
        }
        Ok(())
    }

    /// The cluster's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The limits in force.
    pub fn config(&self) -> &ScheduleConfig {
        &self.config
    }

    /// Whether the first store has joined.
    pub fn is_bootstrapped(&self) -> bool {
        self.traits.is_some()
    }

    /// What every store must agree on; all zero when the first store did not say.
    pub fn traits(&self) -> Option<&pdpb::ClusterTraits> {
        self.traits.as_ref()
    }

    /// Stores and regions.
    pub fn basic(&self) -> &BasicCluster {
        &self.basic
    }

    /// Keyspaces.
    pub fn keyspaces(&self) -> &Keyspaces {
        &self.keyspaces
    }

    /// What clients keep here.
    pub fn client_keys(&self) -> &ClientKeys {
        &self.client_keys
    }

    /// Sets a key of clients. Returns the revision of the change and what stood there before.
    pub fn put_client_key(
        &mut self,
        key: Bytes,
        value: Bytes,
    ) -> Result<((i64, Option<KeyValue>), Output), ClusterError> {
        let (now, before) = self.client_keys.put(key, value)?;
        let revision = now.mod_revision;
        Ok(((revision, before), Output { writes: vec![MetaWrite::ClientKey(now)], ..Output::default() }))
    }

    /// Raises a number that is kept among the keys of clients; it never goes back. Returns what stands there now.
    pub fn raise_client_number(
        &mut self,
        key: &'static [u8],
        to: u64,
    ) -> Result<(u64, Output), ClusterError> {
        let (number, stored) = self.client_keys.raise(key, to)?;
        let writes = stored.into_iter().map(MetaWrite::ClientKey).collect();
        Ok((number, Output { writes, ..Output::default() }))
    }

    /// The running operator of a region.
    pub fn operator(&self, region_id: u64) -> Option<&Operator> {
        self.coordinator.operators().get(region_id)
    }

    /// How many operators run.
    pub fn operators_running(&self) -> usize {
        self.coordinator.operators().running().count()
    }

    /// How many regions need something and wait because of this obstacle.
    pub fn regions_waiting_for(&self, obstacle: Obstacle) -> usize {
        self.coordinator.waiting_for(obstacle)
    }

    /// The state of a store at `now_ms`.
    pub fn store_state(&self, store: &StoreInfo, now_ms: u64) -> StoreState {
        store.state(now_ms, self.config.silence)
    }

    /// Creates the cluster with its first store and its first regions, which tile the key space.
    pub fn bootstrap(
        &mut self,
        now_ms: u64,
        store: metapb::Store,
        regions: Vec<metapb::Region>,
        traits: Option<pdpb::ClusterTraits>,
    ) -> Result<Output, ClusterError> {
        if self.is_bootstrapped() {
            return Err(ClusterError::AlreadyBootstrapped);
        }
        check_store(&store)?;
        let regions = regions.into_iter().map(RegionInfo::from_meta).collect::<Result<Vec<_>, _>>()?;
        check_first_regions(&store, &regions)?;

        let traits = traits.unwrap_or_default();
        let mut info = StoreInfo::new(store, now_ms);
        info.set_state(metapb::StoreState::Up);
        let keyspace = keyspace::default_keyspace((now_ms / 1000) as i64);
        let mut writes = vec![MetaWrite::Bootstrapped(traits), MetaWrite::Store(info.meta.clone())];
        writes.extend(regions.iter().map(|region| MetaWrite::Region(region.meta.clone())));
        writes.push(MetaWrite::Keyspace(keyspace.clone()));
        for region in regions {
            self.basic.put_region(region)?;
        }
        self.basic.put_store(info);
        self.keyspaces.put(keyspace);
        self.traits = Some(traits);
        Ok(Output { writes, ..Output::default() })
    }

    /// Registers a store, or takes in its new address, labels and version.
    pub fn put_store(
        &mut self,
        now_ms: u64,
        mut store: metapb::Store,
        traits: Option<&pdpb::ClusterTraits>,
    ) -> Result<Output, ClusterError> {
        let cluster_traits = self.traits.as_ref().ok_or(ClusterError::NotBootstrapped)?;
        check_store(&store)?;
        if let Some(traits) = traits {
            check_traits(store.id, traits, cluster_traits)?;
        }
        let known = self.basic.store(store.id);
        let state = known.map_or(metapb::StoreState::Up, |known| known.meta.state());
        if state == metapb::StoreState::Tombstone {
            return Err(ClusterError::StoreTombstone(store.id));
        }
        let other = self.basic.stores().find(|other| {
            other.meta.id != store.id
                && other.meta.address == store.address
                && other.meta.state() != metapb::StoreState::Tombstone
        });
        if let Some(owner) = other {
            let (id, owner, address) = (store.id, owner.meta.id, store.address);
            return Err(ClusterError::DuplicateAddress { id, owner, address });
        }
        // What only the scheduler decides is not taken from the store.
        store.last_heartbeat = 0;
        store.physically_destroyed = false;
        let stats = known.and_then(|known| known.stats.clone());
        let mut info = StoreInfo { meta: store, stats, last_seen_ms: now_ms };
        info.set_state(state);
        let writes = vec![MetaWrite::Store(info.meta.clone())];
        self.basic.put_store(info);
        Ok(Output { writes, ..Output::default() })
    }

    /// Takes in a store's report. Regions that waited for a store are looked at when this one became usable.
    pub fn store_heartbeat(
        &mut self,
        now_ms: u64,
        stats: pdpb::StoreStats,
        ids: &mut dyn IdSource,
    ) -> Result<(metapb::NodeState, Output), ClusterError> {
        if !self.is_bootstrapped() {
            return Err(ClusterError::NotBootstrapped);
        }
        let (id, limits) = (stats.store_id, self.config.silence);
        let store = self.basic.store_mut(id).ok_or(ClusterError::UnknownStore(id))?;
        if store.meta.state() == metapb::StoreState::Tombstone {
            return Err(ClusterError::StoreTombstone(id));
        }
        let was_usable = store.stats.is_some() && store.state(now_ms, limits) == StoreState::Up;
        store.stats = Some(stats);
        store.last_seen_ms = now_ms;
        let node_state = store.meta.node_state();
        if !was_usable || store.is_stopping() {
            self.coordinator.store_changed();
        }
        let mut out = Output::default();
        if !was_usable {
            self.coordinator.check_waiting(scene!(self, now_ms), ids, &mut out);
        }
        Ok((node_state, out))
    }

    /// Takes in a region's report, moves its operator on, or gives it one when it needs it.
    pub fn region_heartbeat(
        &mut self,
        now_ms: u64,
        request: pdpb::RegionHeartbeatRequest,
        ids: &mut dyn IdSource,
    ) -> Result<Output, ClusterError> {
        if !self.is_bootstrapped() {
            return Err(ClusterError::NotBootstrapped);
        }
        let region = RegionInfo::from_heartbeat(request)?;
        // A leader on a removed store is heard all the same: only so can its region be moved off it.
        if let Some(id) = region.leader_store().filter(|id| self.basic.store(*id).is_none()) {
            return Err(ClusterError::UnknownStore(id));
        }
        let id = region.id();
        let mut out = Output::default();
        self.take_in(now_ms, region, &mut out)?;
        self.coordinator.drive(scene!(self, now_ms), id, ids, &mut out);
        self.coordinator.ask_schedulers(scene!(self, now_ms), ids, &mut out);
        Ok(out)
    }

    /// Takes in a description of a region unless it is stale.
    fn take_in(&mut self, now_ms: u64, region: RegionInfo, out: &mut Output) -> Result<(), ClusterError> {
        let id = region.id();
        let change = self.basic.put_region(region)?;
        for gone in change.gone {
            out.writes.push(MetaWrite::RegionGone(gone));
            self.coordinator.region_gone(now_ms, gone, out);
        }
        if change.meta_changed {
            out.writes.extend(self.basic.regions().get(id).map(|r| MetaWrite::Region(r.meta.clone())));
        }
        Ok(())
    }

    /// Begins to remove a store: its peers move away, then it becomes a tombstone.
    pub fn remove_store(
        &mut self,
        now_ms: u64,
        id: u64,
        ids: &mut dyn IdSource,
    ) -> Result<Output, ClusterError> {
        let limits = self.config.silence;
        let store = self.basic.store(id).ok_or(ClusterError::UnknownStore(id))?;
        match store.meta.state() {
            metapb::StoreState::Tombstone => return Err(ClusterError::StoreTombstone(id)),
            metapb::StoreState::Offline => return Ok(Output::default()),
            metapb::StoreState::Up => {}
        }
        let others = self.basic.stores().filter(|other| other.meta.id != id);
        let left = others.filter(|other| other.state(now_ms, limits) == StoreState::Up).count();
        let needed = self.config.max_replicas;
        if left < needed {
            return Err(ClusterError::TooFewStores { id, left, needed });
        }
        let mut out = Output::default();
        if let Some(store) = self.basic.store_mut(id) {
            store.set_state(metapb::StoreState::Offline);
            out.writes.push(MetaWrite::Store(store.meta.clone()));
        }
        let leaving: Vec<u64> = self.basic.regions_on(id).take(self.config.operators_max).collect();
        for region in leaving {
            self.coordinator.drive(scene!(self, now_ms), region, ids, &mut out);
        }
        Ok(out)
    }

    /// Time has passed: times out operators, repeats commands, and looks at the next regions of the patrol.
    pub fn tick(&mut self, now_ms: u64, ids: &mut dyn IdSource) -> Output {
        let mut out = Output::default();
        if !self.is_bootstrapped() {
            return out;
        }
        self.bury_empty_stores(now_ms, &mut out);
        self.coordinator.tick(scene!(self, now_ms), ids, &mut out);
        out
    }

    /// A store that was being removed and has no peers left is gone for good. It must say itself that it is empty,
    /// or be silent for the whole down time: after a restart some regions on it may not be known yet.
    fn bury_empty_stores(&mut self, now_ms: u64, out: &mut Output) {
        let down_ms = self.config.silence.down_ms;
        let is_empty = |store: &StoreInfo| {
            let is_lost = now_ms.saturating_sub(store.last_seen_ms) > down_ms;
            let says_so = store.stats.as_ref().is_some_and(|stats| stats.region_count == 0);
            self.basic.region_count(store.meta.id) == 0 && (says_so || is_lost)
        };
        let empty: Vec<u64> = self
            .basic
            .stores()
            .filter(|store| store.meta.state() == metapb::StoreState::Offline && is_empty(store))
            .map(|store| store.meta.id)
            .collect();
        for id in empty {
            let Some(store) = self.basic.store_mut(id) else { continue };
            store.set_state(metapb::StoreState::Tombstone);
            store.stats = None;
            out.writes.push(MetaWrite::Store(store.meta.clone()));
        }
    }

    /// The keyspace with this name.
    pub fn keyspace_by_name(&self, name: &str) -> Result<&keyspacepb::KeyspaceMeta, ClusterError> {
        self.require_bootstrapped()?;
        self.keyspaces.by_name(name).ok_or_else(|| ClusterError::UnknownKeyspace(format!("{name:?}")))
    }

    /// The keyspace with this id.
    pub fn keyspace_by_id(&self, id: u32) -> Result<&keyspacepb::KeyspaceMeta, ClusterError> {
        self.require_bootstrapped()?;
        self.keyspaces.by_id(id).ok_or_else(|| ClusterError::UnknownKeyspace(format!("with id {id}")))
    }

    /// Ok once the cluster is bootstrapped.
    pub fn require_bootstrapped(&self) -> Result<(), ClusterError> {
        if self.is_bootstrapped() { Ok(()) } else { Err(ClusterError::NotBootstrapped) }
    }
}

/// The largest record of a store: what etcd takes in one write is larger than this many times over.
const STORE_BYTES_MAX: usize = 64 << 10;

fn check_store(store: &metapb::Store) -> Result<(), ClusterError> {
    if store.id == 0 {
        return Err(ClusterError::InvalidStore("id 0; ask for one with AllocID"));
    }
    if store.address.is_empty() {
        return Err(ClusterError::InvalidStore("no address"));
    }
    if store.encoded_len() > STORE_BYTES_MAX {
        return Err(ClusterError::InvalidStore("addresses, labels and version are over 64 KiB together"));
    }
    Ok(())
}

/// The first regions must tile the key space without gap or overlap, each with one voter, on the first store, and
/// no id may stand for two regions or peers.
fn check_first_regions(store: &metapb::Store, regions: &[RegionInfo]) -> Result<(), ClusterError> {
    let refuse = |what: String| Err(ClusterError::InvalidBootstrap(what));
    if regions.len() > FIRST_REGIONS_MAX {
        return refuse(format!("{} regions, the most is {FIRST_REGIONS_MAX}", regions.len()));
    }
    let mut ids = BTreeSet::new();
    for region in regions {
        let id = region.id();
        let [peer] = region.meta.peers.as_slice() else {
            return refuse(format!("region {id} must have one voter, on the first store"));
        };
        if peer.store_id != store.id || peer.role() != metapb::PeerRole::Voter {
            return refuse(format!("region {id} must have one voter, on the first store"));
        }
        if let Some(twice) = [id, peer.id].into_iter().find(|id| !ids.insert(*id)) {
            return refuse(format!("id {twice} is used twice"));
        }
    }
    let mut ranges: Vec<&metapb::Region> = regions.iter().map(|region| &region.meta).collect();
    ranges.sort_by(|a, b| a.start_key.cmp(&b.start_key));
    let reaches_both_ends = ranges.first().is_some_and(|first| first.start_key.is_empty())
        && ranges.last().is_some_and(|last| last.end_key.is_empty());
    if !reaches_both_ends {
        return refuse("the first regions must cover all keys".into());
    }
    // An empty end is the end of the key space: nothing starts there.
    let fits =
        |pair: &&[&metapb::Region]| !pair[0].end_key.is_empty() && pair[0].end_key == pair[1].start_key;
    match ranges.windows(2).find(|pair| !fits(pair)) {
        Some(pair) => refuse(format!(
            "the first regions must tile the key space: region {} does not end where region {} starts",
            pair[0].id, pair[1].id
        )),
        None => Ok(()),
    }
}

fn check_traits(
    id: u64,
    store: &pdpb::ClusterTraits,
    cluster: &pdpb::ClusterTraits,
) -> Result<(), ClusterError> {
    // The first store said nothing: there is nothing to compare with.
    if *cluster == pdpb::ClusterTraits::default() || store == cluster {
        return Ok(());
    }
    let differ =
        |what, store: String, cluster: String| Err(ClusterError::TraitsDiffer { id, what, store, cluster });
    if store.api_version != cluster.api_version {
        let name = |t: &pdpb::ClusterTraits| format!("{:?}", t.api_version()).to_lowercase();
        return differ("storage.api", name(store), name(cluster));
    }
    let ticks = [
        ("raft tick (ms)", store.raft_tick_ms, cluster.raft_tick_ms),
        ("raft heartbeat ticks", store.raft_heartbeat_ticks, cluster.raft_heartbeat_ticks),
        ("raft election ticks", store.raft_election_ticks, cluster.raft_election_ticks),
    ];
    match ticks.into_iter().find(|(_, store, cluster)| store != cluster) {
        Some((what, store, cluster)) => differ(what, store.to_string(), cluster.to_string()),
        None => Ok(()),
    }
}
