//! A store's way into its cluster: its directories, its identity, the first regions, its registration.
//!
//! Owns the order that makes a crash at any point harmless: the identity is on disk before anything else; the
//! first regions' records are on disk, all by one write, before the scheduler is told of them, so that a cluster
//! never has a region that no store holds; records of first regions that the cluster did not take are removed again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvproto::kvrpcpb::ApiVersion;
use kvproto::{metapb, pdpb};

use super::bootstrap::{self, Found};
use super::config::RaftConfig;
use super::damage::{self, Damaged};
use super::meta::keys;
use super::meta::values::{PeerState, StoreIdent};
use super::peer_storage::INITIAL_INDEX;
use super::raft_worker::Fatal;
use super::recovery::RecoveryError;
use super::scheduler_client::{Bootstrap, Error, SchedulerClient};
use super::snap::{SnapConfig, SnapError, SnapManager};
use crate::clock;
use crate::engine::filter::FilterSource;
use crate::engine::log_store::{LogStore, LogWrite};
use crate::engine::rocks::RocksEngine;
use crate::engine::{Cf, Engine, EngineConfig, EngineError, RocksLogStore, WriteBatch, WriteOptions};
use crate::safe_points::SafePoints;

/// Why a store did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot use data directory {path}: {cause}")]
    Directory { path: PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Damaged(#[from] Damaged),
    #[error(
        "{path} has Raft logs but no identity: db/ was lost or exchanged; remove the store from the cluster and start \
         it with an empty data directory"
    )]
    IdentityLost { path: PathBuf },
    #[error(transparent)]
    Snapshots(#[from] SnapError),
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error(transparent)]
    Scheduler(#[from] Error),
    #[error(
        "data directory {path} belongs to cluster {ours}, the scheduler to cluster {theirs}; give it the right \
         scheduler (pd.endpoints), or another data directory"
    )]
    OtherCluster { path: PathBuf, ours: u64, theirs: u64 },
    #[error(
        "the cluster was created with storage.api = \"v{cluster}\", this store is set to \"v{store}\"; change it here"
    )]
    OtherApi { cluster: u32, store: u32 },
    #[error(
        "this store has data of cluster {cluster}, which its scheduler says has no stores: the scheduler lost its \
         metadata; restore that, or start with an empty data directory"
    )]
    SchedulerEmpty { cluster: u64 },
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What a store does not keep: nothing of that by default.
#[derive(Clone, Default)]
pub struct Garbage {
    /// What compactions of the data may leave out.
    pub filters: Option<Arc<dyn FilterSource>>,
    /// Up to where they have been told to.
    pub safe_points: Arc<SafePoints>,
}

/// What a store keeps its data in.
#[derive(Clone)]
pub struct Disk {
    pub dir: PathBuf,
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn LogStore>,
    pub snaps: SnapManager,
}

impl Disk {
    /// Opens `db/`, `raft/` and `snap/` in `dir`, which belongs to this process from now on. Blocks. `fatal` is
    /// told when the disk fails later; `garbage` says what compactions of the data may leave out.
    ///
    /// # Errors
    /// [`EngineError::InUse`] when another process has it, [`NodeError::Damaged`] when its data was found damaged.
    pub fn open(
        dir: &Path,
        engine: &EngineConfig,
        garbage: Garbage,
        snap: SnapConfig,
        fatal: Fatal,
    ) -> Result<Disk, NodeError> {
        std::fs::create_dir_all(dir).map_err(|cause| NodeError::Directory { path: dir.into(), cause })?;
        damage::check(dir)?;
        let watcher = damage::watcher(dir, fatal);
        let Garbage { filters, safe_points } = garbage;
        // The data engine is opened first: its lock stands for the whole directory.
        let data = RocksEngine::open_filtered(&dir.join("db"), engine, filters)?;
        data.watch(damage::share(&watcher));
        let log = RocksLogStore::open(&dir.join("raft"), engine)?;
        log.watch(damage::share(&watcher));
        Ok(Disk {
            dir: dir.into(),
            engine: Arc::new(data),
            log: Arc::new(log),
            snaps: SnapManager::open_with(&dir.join("snap"), snap, safe_points)?,
        })
    }
}

/// How a store introduces itself.
#[derive(Clone, Debug, Default)]
pub struct Introduction {
    /// host:port that clients and other stores dial.
    pub address: String,
    /// host:port of the status pages; empty for none.
    pub status_address: String,
    pub labels: Vec<(String, String)>,
}

impl Introduction {
    fn store(&self, id: u64) -> metapb::Store {
        let label =
            |(key, value): &(String, String)| metapb::StoreLabel { key: key.clone(), value: value.clone() };
        metapb::Store {
            id,
            address: self.address.clone(),
            peer_address: self.address.clone(),
            status_address: self.status_address.clone(),
            labels: self.labels.iter().map(label).collect(),
            version: env!("CARGO_PKG_VERSION").into(),
            start_timestamp: i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX),
            ..Default::default()
        }
    }
}

/// What every store of the cluster must have in common with this one.
fn traits(config: &RaftConfig) -> pdpb::ClusterTraits {
    let ticks = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    pdpb::ClusterTraits {
        api_version: config.api as i32,
        raft_tick_ms: u32::try_from(config.tick_ms).unwrap_or(u32::MAX),
        raft_heartbeat_ticks: ticks(config.heartbeat_ticks),
        raft_election_ticks: ticks(config.election_ticks),
    }
}

/// The number of an API version in the store's identity.
fn api_number(api: ApiVersion) -> u32 {
    match api {
        ApiVersion::V1 | ApiVersion::V1ttl => 1,
        ApiVersion::V2 | ApiVersion::V3 => 2,
    }
}

fn check_api(cluster: u32, store: u32) -> Result<(), NodeError> {
    if cluster == store { Ok(()) } else { Err(NodeError::OtherApi { cluster, store }) }
}

/// A store on its way into the cluster.
pub struct Joining<'a> {
    pub disk: &'a Disk,
    pub scheduler: &'a dyn SchedulerClient,
    pub config: &'a RaftConfig,
    pub introduction: &'a Introduction,
}

const SYNCED: WriteOptions = WriteOptions { sync: true, no_slowdown: false };

impl Joining<'_> {
    /// The store's identity: what is on disk if it fits the cluster, or a new one, which is on disk when this
    /// returns.
    pub async fn identify(&self) -> Result<StoreIdent, NodeError> {
        let theirs = self.scheduler.cluster_id();
        let api = api_number(self.config.api);
        if let Some(ident) = bootstrap::load_ident(&*self.disk.engine)? {
            if ident.cluster_id != theirs {
                let path = self.disk.dir.clone();
                return Err(NodeError::OtherCluster { path, ours: ident.cluster_id, theirs });
            }
            check_api(ident.api, api)?;
            return Ok(ident);
        }
        if !self.disk.log.regions()?.is_empty() {
            return Err(NodeError::IdentityLost { path: self.disk.dir.clone() });
        }
        if let Some(traits) = self.scheduler.traits().await?
            && traits != pdpb::ClusterTraits::default()
        {
            check_api(api_number(traits.api_version()), api)?;
        }
        let store_id = self.scheduler.alloc_id(1).await?;
        let ident = StoreIdent { cluster_id: theirs, store_id, api };
        self.disk.engine.write(&bootstrap::ident_record(&ident), SYNCED)?;
        tracing::info!(store = store_id, cluster = theirs, "a new store");
        Ok(ident)
    }

    /// Registers the store, creating the cluster when it is the first. `found` are the regions on disk; the result
    /// are those that the store serves.
    pub async fn join(&self, ident: &StoreIdent, found: Vec<Found>) -> Result<Vec<Found>, NodeError> {
        let store = self.introduction.store(ident.store_id);
        let traits = traits(self.config);
        let found = if self.scheduler.is_bootstrapped().await? {
            self.keep_if_known(ident, found).await?
        } else {
            let alive = found.iter().filter(|f| f.state.state() != PeerState::Tombstone);
            let (first, others): (Vec<Found>, Vec<Found>) =
                alive.cloned().partition(|f| self.is_untouched_first(f, ident.store_id));
            let is_whole = first.len() == bootstrap::first_region_count(self.config.api);
            if !others.is_empty() || !(first.is_empty() || is_whole) {
                return Err(NodeError::SchedulerEmpty { cluster: ident.cluster_id });
            }
            self.create_cluster(ident, &store, traits, first).await?
        };
        self.scheduler.put_store(store, traits).await?;
        Ok(found)
    }

    async fn create_cluster(
        &self,
        ident: &StoreIdent,
        store: &metapb::Store,
        traits: pdpb::ClusterTraits,
        first: Vec<Found>,
    ) -> Result<Vec<Found>, NodeError> {
        let first = if first.is_empty() { self.write_first_regions(store.id).await? } else { first };
        let regions = first.iter().map(|f| f.meta.region.clone()).collect();
        match self.scheduler.bootstrap(store.clone(), regions, traits).await? {
            Bootstrap::Created => {
                tracing::info!(regions = first.len(), "the cluster is created");
                Ok(first)
            }
            Bootstrap::Exists => self.keep_if_known(ident, first).await,
        }
    }

    async fn write_first_regions(&self, store_id: u64) -> Result<Vec<Found>, NodeError> {
        let api = self.config.api;
        let ids = u32::try_from(2 * bootstrap::first_region_count(api)).unwrap_or(u32::MAX);
        let first_id = self.scheduler.alloc_id(ids).await?;
        let (mut batch, mut log) = (WriteBatch::new(), LogWrite::default());
        for region in bootstrap::first_regions(api, first_id, store_id) {
            let (records, log_records) = bootstrap::region_records(&region, &region.peers[0]);
            records.ops().iter().for_each(|op| batch.push(op.clone()));
            log.regions.extend(log_records.regions);
        }
        let _durable = self.disk.log.append(&log, true)?;
        self.disk.engine.write(&batch, SYNCED)?;
        let form = kvproto::key::BoundaryForm::of_raw(api);
        let mut found = bootstrap::load_regions(&*self.disk.engine, form)?;
        found.retain(|f| self.is_untouched_first(f, store_id));
        if found.len() != bootstrap::first_region_count(api) {
            return Err(
                EngineError::Corrupt("the first regions were written and are not there".into()).into()
            );
        }
        Ok(found)
    }

    /// First regions that were never used: the cluster has them, or it was created with another store's and these
    /// go. It took all of them or none.
    async fn keep_if_known(&self, ident: &StoreIdent, found: Vec<Found>) -> Result<Vec<Found>, NodeError> {
        let (unused, rest): (Vec<Found>, Vec<Found>) =
            found.iter().cloned().partition(|f| self.is_untouched_first(f, ident.store_id));
        if unused.is_empty() {
            return Ok(rest);
        }
        for first in &unused {
            if self.scheduler.region(first.meta.region.id).await?.is_some() {
                return Ok(found);
            }
        }
        tracing::info!(
            regions = unused.len(),
            "another store created the cluster; removing this store's first regions"
        );
        let mut batch = WriteBatch::new();
        for first in &unused {
            batch.delete(Cf::Meta, keys::region_state(first.meta.region.id));
            batch.delete(Cf::Meta, keys::apply_state(first.meta.region.id));
        }
        self.disk.engine.write(&batch, SYNCED)?;
        for first in &unused {
            self.disk.log.remove(first.meta.region.id)?;
        }
        Ok(rest)
    }

    /// True for a first region of this store in which nothing ever happened.
    fn is_untouched_first(&self, found: &Found, store_id: u64) -> bool {
        let region = &found.meta.region;
        let same = |first: metapb::Region| {
            let ids = bootstrap::first_region(region.id, found.peer.id, store_id);
            *region == metapb::Region { start_key: first.start_key, end_key: first.end_key, ..ids }
        };
        found.state.state() == PeerState::Normal
            && found.apply.applied_index == INITIAL_INDEX
            && bootstrap::first_regions(self.config.api, 1, store_id).into_iter().any(same)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::super::meta::values::{self, ApplyState};
    use super::super::scheduler_client::fake::FakeScheduler as Scheduler;
    use super::*;
    use crate::engine::log_store::MemLogStore;
    use crate::engine::mem::MemEngine;

    /// Ids of the first regions of store 1 in API V2.
    const FIRST: [u64; 5] = [2, 4, 6, 8, 10];

    fn disk(dir: &Path) -> Disk {
        Disk {
            dir: dir.into(),
            engine: Arc::new(MemEngine::new()),
            log: Arc::new(MemLogStore::new()),
            snaps: SnapManager::open(dir, SnapConfig::default()).unwrap(),
        }
    }

    fn start(disk: &Disk, scheduler: &Scheduler, api: ApiVersion) -> Result<Vec<u64>, NodeError> {
        let config = RaftConfig { api, ..Default::default() };
        let introduction = Introduction { address: "s:1".into(), ..Default::default() };
        let joining = Joining { disk, scheduler, config: &config, introduction: &introduction };
        let form = kvproto::key::BoundaryForm::of_raw(api);
        let work = async {
            let ident = joining.identify().await?;
            let found = bootstrap::load_regions(&*disk.engine, form)?;
            let found = joining.join(&ident, found).await?;
            Ok(found.iter().map(|f| f.meta.region.id).collect())
        };
        work.now_or_never().expect("the scheduler answers at once")
    }

    #[test]
    fn the_first_store_creates_the_cluster_once() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, scheduler) = (disk(dir.path()), Scheduler::default());
        assert_eq!(start(&disk, &scheduler, ApiVersion::V2).unwrap(), FIRST);
        assert_eq!(start(&disk, &scheduler, ApiVersion::V2).unwrap(), FIRST, "a restart keeps them");
        let state = scheduler.state.lock();
        assert_eq!(state.last_id, 11, "one store, five regions, five peers");
        assert_eq!(state.regions, bootstrap::first_regions(ApiVersion::V2, 2, 1));
        assert!(state.stores.iter().all(|s| s.id == 1 && s.address == "s:1"));
    }

    #[test]
    fn a_v1_cluster_starts_with_one_region() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, scheduler) = (disk(dir.path()), Scheduler::default());
        assert_eq!(start(&disk, &scheduler, ApiVersion::V1).unwrap(), [2]);
    }

    #[test]
    fn the_loser_of_the_race_removes_its_regions_and_joins() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, scheduler) = (disk(dir.path()), Scheduler::default());
        scheduler.state.lock().rival = true;
        assert!(start(&disk, &scheduler, ApiVersion::V2).unwrap().is_empty());
        let form = kvproto::key::BoundaryForm::of_raw(ApiVersion::V2);
        assert!(bootstrap::load_regions(&*disk.engine, form).unwrap().is_empty());
        assert_eq!(disk.log.regions().unwrap(), Vec::<u64>::new());
    }

    #[test]
    fn a_crash_before_the_scheduler_was_told_goes_on_with_the_same_regions() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, scheduler) = (disk(dir.path()), Scheduler::default());
        start(&disk, &scheduler, ApiVersion::V2).unwrap();
        scheduler.state.lock().regions.clear();
        assert_eq!(start(&disk, &scheduler, ApiVersion::V2).unwrap(), FIRST);
        let state = scheduler.state.lock();
        assert_eq!(state.regions.iter().map(|r| r.id).collect::<Vec<_>>(), FIRST);
    }

    #[test]
    fn a_scheduler_that_forgot_regions_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, scheduler) = (disk(dir.path()), Scheduler::default());
        start(&disk, &scheduler, ApiVersion::V2).unwrap();
        let used = ApplyState { applied_index: INITIAL_INDEX + 1, ..Default::default() };
        let mut batch = WriteBatch::new();
        batch.put(Cf::Meta, keys::apply_state(4), values::encode(&used));
        disk.engine.write(&batch, SYNCED).unwrap();
        scheduler.state.lock().regions.clear();
        let error = start(&disk, &scheduler, ApiVersion::V2).unwrap_err();
        assert!(matches!(error, NodeError::SchedulerEmpty { cluster: 77 }), "{error}");
    }

    #[test]
    fn what_belongs_to_another_cluster_is_refused_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, scheduler) = (disk(dir.path()), Scheduler::default());
        let foreign = StoreIdent { cluster_id: 5, store_id: 1, api: 2 };
        disk.engine.write(&bootstrap::ident_record(&foreign), SYNCED).unwrap();
        let error = start(&disk, &scheduler, ApiVersion::V2).unwrap_err().to_string();
        assert!(error.contains("cluster 5") && error.contains("cluster 77"), "{error}");
    }

    #[test]
    fn logs_without_an_identity_are_not_taken_over_by_a_new_store() {
        let dir = tempfile::tempdir().unwrap();
        let (old, scheduler) = (disk(dir.path()), Scheduler::default());
        start(&old, &scheduler, ApiVersion::V2).unwrap();
        let lost = Disk { engine: Arc::new(MemEngine::new()), ..old };
        let error = start(&lost, &scheduler, ApiVersion::V2).unwrap_err();
        assert!(matches!(error, NodeError::IdentityLost { .. }), "{error}");
    }

    #[test]
    fn another_api_than_the_clusters_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second, scheduler) = (disk(dir.path()), disk(dir.path()), Scheduler::default());
        start(&first, &scheduler, ApiVersion::V2).unwrap();
        let error = start(&second, &scheduler, ApiVersion::V1).unwrap_err();
        assert!(matches!(error, NodeError::OtherApi { cluster: 2, store: 1 }), "{error}");
        assert!(bootstrap::load_ident(&*second.engine).unwrap().is_none());
        assert!(start(&first, &scheduler, ApiVersion::V1).is_err(), "nor may a store change");
    }
}
