//! A store of a cluster, put together: opened, brought into the cluster, run, stopped.
//!
//! Owns the order. Start: the directory, the scheduler, the identity, what a crash left, the registration, the
//! raft threads, the talk with the scheduler. The gRPC listener is bound before, since the address is registered
//! here. Stop: the talk with the scheduler ends, the raft threads finish what has arrived, the background threads
//! their task at work, then the databases close.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use kvproto::key::BoundaryForm;
use kvproto::metapb;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::counters::Counters;
use super::raft_server::RaftServer;
use super::region_reader::RegionReader;
use super::resolver::Resolver;
use super::snap_runner::SnapRunner;
use super::space::{self, Space};
use super::store_figures::Figures;
use super::transport::{GrpcTransport, LostStores, Network};
use super::{RaftStorage, RegionContext, Storage};
use crate::clock;
use crate::config::{Config, Placement};
use crate::engine::{Engine, EngineStats};
use crate::error::RegionResult;
use crate::raftstore::apply::Applier;
use crate::raftstore::bootstrap::Found;
use crate::raftstore::message::input::SplitRequest;
use crate::raftstore::message::{Input, Output, RegionCommand};
use crate::raftstore::meta::region_view::{RegionView, ViewRegistry};
use crate::raftstore::meta::values::{RegionStatus, StoreIdent};
use crate::raftstore::node::{Disk, Garbage, Introduction, Joining, NodeError};
use crate::raftstore::raft_worker::{Fatal, RaftWorker, WorkerOptions};
use crate::raftstore::raftstore::ShardOptions;
use crate::raftstore::recovery;
use crate::raftstore::router::Router;
use crate::raftstore::runner::Runners;
use crate::raftstore::runner::region_task::RegionStore;
use crate::raftstore::runner::scheduler_task::{SchedulerTask, SchedulerTaskOptions};
use crate::raftstore::scheduler_client::SchedulerClient;
use crate::raftstore::snap::SnapConfig;
use crate::raftstore::util::region;
use crate::raftstore::{RaftConfig, Shard};
use crate::storage::store::{RaftIngress, Store};

/// How long leaders may take to leave.
const LEAVE_MS: u64 = 5_000;
/// How often it is looked whether leaders are still here, and after how many looks another peer is asked to lead.
const LEAVE_EVERY: Duration = Duration::from_millis(20);
const LEAVE_LOOKS: usize = 10;
/// After how many looks at a disk without room leaders are handed over again.
const HAND_OVER_LOOKS: usize = 20;
/// Pause between attempts to reach the scheduler at start.
const SCHEDULER_RETRY: Duration = Duration::from_millis(500);

/// A running store.
pub struct RaftStore {
    ident: StoreIdent,
    scheduler: Arc<dyn SchedulerClient>,
    disk: Disk,
    storage: Arc<RaftStorage>,
    ingress: Arc<RaftServer>,
    views: Arc<ViewRegistry>,
    network: Network,
    scheduler_task: SchedulerTask,
    figures: Arc<Figures>,
    runners: Arc<Runners>,
    worker: Mutex<Option<RaftWorker>>,
    /// Tasks that hold the engine.
    tasks: Mutex<Vec<JoinHandle<()>>>,
    runtime: Handle,
}

impl RaftStore {
    /// Starts a store. `config` is resolved and valid, and its `advertise-addr` and `status-addr` are where this
    /// store will answer. Waits for the scheduler as long as it does not answer. `fatal` is called when the store
    /// cannot go on and its process should end; `garbage` says what it need not keep. Needs a tokio runtime.
    pub async fn start(config: &Config, garbage: Garbage, fatal: Fatal) -> Result<Arc<RaftStore>, NodeError> {
        let disk = open(config, garbage, fatal.clone()).await?;
        let scheduler = connect(&config.pd.endpoints).await?;
        let mut raft = config.raft(0);
        let introduction = introduction(config);
        let joining =
            Joining { disk: &disk, scheduler: &*scheduler, config: &raft, introduction: &introduction };
        let ident = joining.identify().await?;
        let form = BoundaryForm::of_raw(raft.api);
        let (engine, log, snaps) = (disk.engine.clone(), disk.log.clone(), disk.snaps.clone());
        let regions = RegionStore { engine, log, snaps, form };
        let recovering = regions.steps();
        let found = blocking(move || Ok(recovery::recover(&recovering)?)).await?;
        let found = joining.join(&ident, found).await?;
        raft.seed = ident.cluster_id;
        let parts = Parts { disk, scheduler, raft, ident, regions, found, fatal };
        parts.run(config)
    }

    /// The store at work: its disk is watched.
    fn begin(store: RaftStore) -> Arc<RaftStore> {
        let stopping = store.network.stopping.clone();
        let store = Arc::new(store);
        let watch = tokio::spawn(watch_space(Arc::downgrade(&store), stopping));
        store.tasks.lock().push(watch);
        store
    }

    /// Counters of messages and snapshots.
    pub fn counters(&self) -> &Counters {
        &self.network.counters
    }

    /// The data, for background work that goes over all of it.
    pub fn engine(&self) -> Arc<dyn Engine> {
        self.disk.engine.clone()
    }

    /// The connection to the scheduler.
    pub fn scheduler(&self) -> &Arc<dyn SchedulerClient> {
        &self.scheduler
    }

    /// The views of regions that this store leads.
    fn led(&self) -> Vec<Arc<RegionView>> {
        self.views.all().into_iter().filter(|view| view.is_leader()).collect()
    }

    /// Asks every leader here to hand over; `attempt` picks among the other voters that can be reached.
    fn hand_over(&self, led: &[Arc<RegionView>], attempt: usize) {
        for view in led {
            let region = &view.meta.region;
            let can_lead = |p: &&metapb::Peer| {
                p.id != view.peer.id && !region::is_learner(p) && !self.network.lost.contains(p.store_id)
            };
            let others: Vec<&metapb::Peer> = region.peers.iter().filter(can_lead).collect();
            if others.is_empty() {
                continue;
            }
            let peer = *others[attempt % others.len()];
            let command = RegionCommand::TransferLeader { peer };
            let (region_id, epoch) = (region.id, region::epoch(region));
            if self.network.router.send(Input::Command { region_id, epoch, command }).is_err() {
                return;
            }
        }
    }

    /// No leader is known of a region that has a peer here.
    fn is_leaderless(&self, region_id: u64) -> bool {
        self.views.get(region_id).is_some_and(|(_, view)| view.leader.is_none())
    }

    async fn leave_all(&self) {
        self.figures.stopping.cancel();
        self.scheduler_task.report_store_now();
        let deadline = clock::now().plus_ms(LEAVE_MS);
        let mut left = BTreeSet::new();
        for attempt in 0.. {
            let mut led = self.led();
            led.retain(|view| view.meta.region.peers.iter().filter(|p| !region::is_learner(p)).count() > 1);
            left.extend(led.iter().map(|view| view.meta.region.id));
            // Who leads no more may still have to vote for the next leader.
            if led.is_empty() && !left.iter().any(|id| self.is_leaderless(*id)) || clock::now() >= deadline {
                break;
            }
            // A transfer gets some time before another peer is tried.
            if attempt % LEAVE_LOOKS == 0 {
                self.hand_over(&led, attempt / LEAVE_LOOKS);
            }
            tokio::time::sleep(LEAVE_EVERY).await;
        }
    }

    fn stop(&self) -> Result<(), NodeError> {
        self.network.stopping.cancel();
        if let Some(worker) = self.worker.lock().take() {
            worker.stop();
        }
        self.runners.stop();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        // They were told to end; one that panicked has been reported.
        self.runtime.block_on(futures::future::join_all(tasks));
        self.disk.log.close()?;
        self.disk.engine.close()?;
        Ok(())
    }
}

/// Looks at the room on the disk until the store stops; a store that is low on it gives its leaders away.
async fn watch_space(store: Weak<RaftStore>, stopping: CancellationToken) {
    for look in 0.. {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(space::LOOK_EVERY) => {}
        }
        let Some(store) = store.upgrade() else { return };
        let dir = store.disk.dir.clone();
        // A file system that fails may take its time.
        let Ok(found) = tokio::task::spawn_blocking(move || space::disk_space(&dir)).await else { return };
        let available = match found {
            Ok((_, available)) => available,
            Err(error) => {
                tracing::warn!(%error, "the file system does not tell its size");
                continue;
            }
        };
        let just_now = store.storage.space.note(available);
        if just_now || store.storage.space.shortage().is_some() && look % HAND_OVER_LOOKS == 0 {
            store.hand_over(&store.led(), look / HAND_OVER_LOOKS);
        }
    }
}

/// Runs what may block away from the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| NodeError::Thread(std::io::Error::other(e)))?
}

async fn open(config: &Config, garbage: Garbage, fatal: Fatal) -> Result<Disk, NodeError> {
    let snap = SnapConfig {
        sending_max: u32::try_from(config.server.concurrent_send_snap_limit).unwrap_or(u32::MAX),
        receiving_max: u32::try_from(config.server.concurrent_recv_snap_limit).unwrap_or(u32::MAX),
        bytes_per_second: config.server.snap_io_max_bytes_per_sec.0,
        ..SnapConfig::default()
    };
    let (dir, engine) = (config.storage.data_dir.clone(), config.engine());
    blocking(move || Disk::open(&dir, &engine, garbage, snap, fatal)).await
}

/// Connects to the scheduler; tries until it answers.
async fn connect(endpoints: &[String]) -> Result<Arc<dyn SchedulerClient>, NodeError> {
    loop {
        match kvclient::SchedulerClient::connect(endpoints).await {
            Ok(client) => return Ok(Arc::new(client)),
            Err(error) if error.is_retryable() => tracing::warn!(%error, "waiting for the scheduler"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(SCHEDULER_RETRY).await;
    }
}

fn introduction(config: &Config) -> Introduction {
    let address = match config.server.advertise_addr.as_str() {
        "" => &config.server.addr,
        advertised => advertised,
    };
    Introduction {
        address: address.into(),
        status_address: config.server.status_addr.clone(),
        labels: config.server.labels.clone().into_iter().collect(),
    }
}

/// What is at hand once the store belongs to the cluster.
struct Parts {
    disk: Disk,
    scheduler: Arc<dyn SchedulerClient>,
    raft: RaftConfig,
    ident: StoreIdent,
    regions: RegionStore,
    found: Vec<Found>,
    fatal: Fatal,
}

impl Parts {
    /// Starts the threads and tasks.
    fn run(self, config: &Config) -> Result<Arc<RaftStore>, NodeError> {
        let Parts { disk, scheduler, raft, ident, regions, found, fatal } = self;
        let (store_id, api, form) = (ident.store_id, raft.api, regions.form);
        let (router, inbox) = Router::new();
        let (views, lost) = (Arc::new(ViewRegistry::default()), LostStores::default());
        let resolver = Arc::new(Resolver::new(scheduler.clone()));
        let (counters, stopping) = (Counters::new()?, CancellationToken::new());
        let cluster_id = ident.cluster_id;
        let network =
            Network { cluster_id, store_id, router: router.clone(), resolver, lost, counters, stopping };
        let transfers = SnapRunner::new(network.clone(), disk.snaps.clone());
        let scheduler_task = SchedulerTask::default();
        let (sender, limits) = (Arc::new(transfers.clone()), config.coprocessor.limits());
        let (reports, failed) = (scheduler_task.clone(), fatal.clone());
        let runners = Runners::start(regions, router.clone(), reports, sender, limits, failed)?;
        let runners = Arc::new(runners);

        let mut first = Output::default();
        let (engine, log) = (disk.engine.clone(), disk.log.clone());
        let options = ShardOptions { config: Arc::new(raft), store_id, engine, log, views: views.clone() };
        let shard = Shard::load(options, found, clock::now(), &mut first)?;
        let worker = RaftWorker::start(WorkerOptions {
            store_id,
            shard,
            applier: Applier::new(form),
            first,
            engine: disk.engine.clone(),
            log: disk.log.clone(),
            router: router.clone(),
            inbox,
            transport: Arc::new(GrpcTransport::new(network.clone())),
            tasks: runners.clone(),
            fatal,
            threaded_log: config.raftstore.log_write == Placement::Threaded,
            threaded_apply: config.raftstore.apply == Placement::Threaded,
        })?;

        let figures = Figures::new(store_id, disk.clone(), form, views.clone(), runners.clone());
        let (figures, worker) = (Arc::new(figures), Mutex::new(Some(worker)));
        let interval_ms = config.raftstore.pd_store_heartbeat_tick_interval.as_millis();
        let mut tasks = scheduler_task.spawn(SchedulerTaskOptions {
            scheduler: scheduler.clone(),
            router: router.clone(),
            figures: figures.clone(),
            store_interval: Duration::from_millis(interval_ms),
            stopping: network.stopping.clone(),
        });
        let reader = RegionReader::new(store_id, disk.engine.clone(), views.clone(), network.lost.clone());
        let space = Space::new(store_id, config.storage.reserve_space.0);
        let (storage, waiting) = RaftStorage::start(api, reader, space, router, network.stopping.clone());
        tasks.push(waiting);
        let (tasks, runtime) = (Mutex::new(tasks), Handle::current());
        let ingress = Arc::new(RaftServer::new(network.clone(), transfers));
        Ok(RaftStore::begin(RaftStore {
            ident,
            scheduler,
            disk,
            storage,
            ingress,
            views,
            network,
            scheduler_task,
            figures,
            runners,
            worker,
            tasks,
            runtime,
        }))
    }
}

impl Store for RaftStore {
    fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    fn ingress(&self) -> Option<Arc<dyn RaftIngress>> {
        Some(self.ingress.clone())
    }

    fn views(&self) -> Arc<ViewRegistry> {
        self.views.clone()
    }

    fn inspect(&self, region_id: u64) -> BoxFuture<'_, Option<Arc<RegionStatus>>> {
        let (done, status) = crate::storage::callback();
        let sent = self.network.router.send(Input::Inspect { region_id, done });
        async move {
            // An overloaded store has no time to be looked at.
            sent.ok()?;
            status.await.ok()
        }
        .boxed()
    }

    fn split(
        &self,
        ctx: &RegionContext,
        keys: Vec<Bytes>,
    ) -> Option<BoxFuture<'static, RegionResult<Vec<metapb::Region>>>> {
        let (done, divided) = crate::storage::callback();
        self.storage.split(SplitRequest { ctx: *ctx, keys, done });
        Some(divided.boxed())
    }

    fn first_leader(&self) -> BoxFuture<'_, Option<String>> {
        async move {
            let known = self.views.first().and_then(|view| view.leader);
            let store_id = match known {
                Some(leader) => leader.store_id,
                // An answer that does not come is as good as none.
                None => self.scheduler.leader_of(Bytes::new()).await.ok()??,
            };
            self.network.resolver.resolve(store_id).await.ok()
        }
        .boxed()
    }

    fn cluster_id(&self) -> u64 {
        self.ident.cluster_id
    }

    fn store_id(&self) -> u64 {
        self.ident.store_id
    }

    fn engine_stats(&self) -> EngineStats {
        self.disk.engine.stats()
    }

    fn stalled(&self) -> bool {
        self.disk.engine.stalled()
    }

    fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.scheduler_task.is_accepted() {
            reasons.push("the scheduler has not taken a report of this store yet".into());
        }
        if self.figures.stopping.is_cancelled() {
            reasons.push("the store is stopping".into());
        }
        reasons.extend(self.storage.space.shortage());
        reasons
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        self.leave_all().boxed()
    }

    fn close(&self) -> Result<(), String> {
        self.stop().map_err(|e| e.to_string())
    }
}
