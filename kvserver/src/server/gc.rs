//! Garbage collection and lock cleaning in a running store of a cluster: what asks, what resolves, what keeps time.
//!
//! Owns the start and the end of these tasks. A store learns the safe points before it serves its first request, so that
//! a restart refuses what was refused before; after that it asks every `gc.poll-interval`. Without an answer it goes on
//! with what it knows: safe points only rise, and it drops nothing beyond those that it has heard of.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kvclient::SchedulerClient;
use kvclient::txn::LockResolver;
use kvclient::txn::resolution::Caller;
use kvproto::kvrpcpb as pb;
use kvproto::ts::Timestamp;
use prometheus::Registry;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::config::GcConfig;
use crate::storage::raft_storage::RaftStore;
use crate::storage::store::Store;
use crate::txn::edge::Oracle;
use crate::txn::error::LockInfo;
use crate::txn::gc::cleaner::{Cleaner, CleanerMetrics, Resolver};
use crate::txn::gc::compaction_filter::Filters;
use crate::txn::gc::driver::{Cluster, Driver, State};
use crate::txn::gc::worker::{GcMetrics, GcWorker};
use crate::txn::mvcc::LockKind;

/// Pause between attempts to learn the safe points at start.
const RETRY: Duration = Duration::from_millis(500);
/// Until when a region must have answered while locks are resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The scheduler and the other stores.
#[derive(Clone)]
struct Remote {
    scheduler: SchedulerClient,
    locks: LockResolver,
}

impl Cluster for Remote {
    fn state(&self) -> BoxFuture<'_, Result<State, String>> {
        async {
            let state = self.scheduler.gc_state().await.map_err(|e| e.to_string())?;
            Ok(State { txn: state.txn_safe_point.get(), gc: state.gc_safe_point.get() })
        }
        .boxed()
    }

    fn advance_txn(&self) -> BoxFuture<'_, Result<u64, String>> {
        async {
            let advanced = self.scheduler.advance_txn_safe_point(None).await.map_err(|e| e.to_string())?;
            if let Some(blocker) = &advanced.blocker {
                tracing::debug!(safe_point = %advanced.new, blocker, "the safe point is held back");
            }
            Ok(advanced.new.get())
        }
        .boxed()
    }

    fn resolve_locks(&self, up_to: u64) -> BoxFuture<'_, Result<u64, String>> {
        async move {
            let count = self.locks.end_all(Timestamp::new(up_to)).await;
            Ok(count.map_err(|e| format!("locks cannot be resolved: {e}"))? as u64)
        }
        .boxed()
    }

    fn advance_gc(&self, to: u64) -> BoxFuture<'_, Result<(), String>> {
        let advanced = self.scheduler.advance_gc_safe_point(Timestamp::new(to));
        async move { advanced.await.map(drop).map_err(|e| e.to_string()) }.boxed()
    }
}

impl Resolver for Remote {
    fn resolve(&self, locks: Vec<LockInfo>) -> BoxFuture<'_, Result<usize, String>> {
        let locks = locks.into_iter().map(lock_info).collect();
        async move {
            let resolved = self.locks.resolve(locks, Caller::Wait).await.map_err(|e| e.to_string())?;
            Ok(resolved.committed.len() + resolved.rolled_back.len())
        }
        .boxed()
    }
}

fn lock_info(info: LockInfo) -> pb::LockInfo {
    let LockInfo { key, lock } = info;
    let lock_type = match lock.kind {
        LockKind::Put => pb::Op::Put,
        LockKind::Delete => pb::Op::Del,
        LockKind::Lock => pb::Op::Lock,
        LockKind::Pessimistic => pb::Op::PessimisticLock,
    };
    pb::LockInfo {
        key,
        lock_version: lock.start_ts,
        lock_ttl: lock.ttl,
        txn_size: lock.txn_size,
        lock_type: lock_type as i32,
        lock_for_update_ts: lock.for_update_ts,
        use_async_commit: lock.is_async_commit(),
        min_commit_ts: lock.min_commit_ts,
        primary_lock: lock.primary,
        secondaries: lock.secondaries.unwrap_or_default(),
        ..Default::default()
    }
}

/// Everything that is ready to start once the store serves.
pub(super) struct Gc {
    remote: Remote,
    filters: Filters,
    config: GcConfig,
    store: Arc<RaftStore>,
    oracle: Arc<dyn Oracle>,
}

impl Gc {
    /// Asks the scheduler for the safe points until it answers.
    pub(super) async fn learn(
        endpoints: &[String],
        filters: Filters,
        config: GcConfig,
        store: Arc<RaftStore>,
        oracle: Arc<dyn Oracle>,
    ) -> Result<Gc, StartError> {
        let scheduler = loop {
            match SchedulerClient::connect(endpoints).await {
                Ok(scheduler) => break scheduler,
                Err(error) if error.is_retryable() => tracing::warn!(%error, "waiting for the scheduler"),
                Err(error) => return Err(StartError::Store(error.to_string())),
            }
            tokio::time::sleep(RETRY).await;
        };
        let config_of_locks = kvclient::Config { timeout: RESOLVE_TIMEOUT, ..kvclient::Config::default() };
        let locks = LockResolver::over(scheduler.clone(), config_of_locks);
        let remote = Remote { scheduler, locks };
        loop {
            match remote.state().await {
                Ok(state) => {
                    filters.safe_points.raise(state.txn, state.gc);
                    break;
                }
                Err(error) => tracing::warn!(error, "waiting for the safe points"),
            }
            tokio::time::sleep(RETRY).await;
        }
        Ok(Gc { remote, filters, config, store, oracle })
    }

    /// Starts the thread that removes garbage, and the tasks that keep time, which end with `stop`.
    pub(super) fn start(
        self,
        registry: &Registry,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<GcWorker, StartError> {
        let Gc { remote, filters, config, store, oracle } = self;
        let every = |interval: crate::config::ReadableDuration| Duration::from_millis(interval.as_millis());
        let views = store.views();
        let of_driver = views.clone();
        let driver = Driver {
            cluster: Arc::new(remote.clone()),
            safe_points: filters.safe_points.clone(),
            leads_first: Box::new(move || {
                of_driver.first().is_some_and(|view| view.serves && view.is_leader())
            }),
        };
        tasks.spawn(drive(driver, every(config.poll_interval), stop.clone()));
        let metrics = CleanerMetrics::new(registry)?;
        if config.lock_cleaner_interval.as_millis() > 0 {
            let (engine, resolver) = (store.engine(), Arc::new(remote));
            let cleaner = Arc::new(Cleaner::new(engine, views, resolver, metrics));
            tasks.spawn(clean(cleaner, oracle, every(config.lock_cleaner_interval), stop.clone()));
        }
        let metrics = GcMetrics::new(registry)?;
        let worker = GcWorker::start(store.engine(), filters, metrics, every(config.walk_interval));
        worker.map_err(|cause| StartError::Store(format!("cannot start a thread: {cause}")))
    }
}

async fn drive(driver: Driver, every: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let work = async {
        loop {
            ticks.tick().await;
            if let Err(error) = driver.turn().await {
                tracing::info!(error, "safe points stay where they are until the next look");
            }
        }
    };
    let _stopped: Option<()> = stop.run_until_cancelled(work).await;
}

async fn clean(cleaner: Arc<Cleaner>, oracle: Arc<dyn Oracle>, every: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let work = async {
        loop {
            ticks.tick().await;
            if let Err(error) = clean_once(&cleaner, &*oracle).await {
                cleaner.failed(&error);
            }
        }
    };
    let _stopped: Option<()> = stop.run_until_cancelled(work).await;
}

/// The oracle is asked only when there are locks.
async fn clean_once(cleaner: &Arc<Cleaner>, oracle: &dyn Oracle) -> Result<(), String> {
    let looking = cleaner.clone();
    if !blocking(move || looking.has_locks()).await? {
        return Ok(());
    }
    let now = Timestamp::new(oracle.timestamp().await?);
    let looking = cleaner.clone();
    let locks = blocking(move || looking.expired(now)).await?;
    cleaner.resolve(locks).await;
    Ok(())
}

/// Does what may read the disk away from the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}
