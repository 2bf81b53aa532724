//! Finishes transactions whose clients are gone, so that nobody is blocked by their locks for good.
//!
//! A client that stops between prewrite and commit leaves locks. Every reader that meets one can clean it up once its
//! time to live has passed, but not every client knows how: so each store looks at the locks of the regions it
//! leads and has those resolved that expired a while ago. What becomes of the transaction is decided by its primary key,
//! or by all its keys when it committed asynchronously, as ever; this only asks the question.
//!
//! Owns the choice of locks: what is looked at is a plain engine snapshot, since a lock that is not there any more costs
//! one question and nothing else.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use kvproto::ts::Timestamp;
use prometheus::{IntCounter, Registry};

use crate::engine::{Cf, Engine, IterOptions};
use crate::raftstore::meta::region_view::{RegionMeta, ViewRegistry};
use crate::txn::edge::Oracle;
use crate::txn::error::LockInfo;
use crate::txn::mvcc::scan::encoded_bounds;
use crate::txn::mvcc::{Lock, key};

/// A lock is left alone for so long after it has expired: its client may be slow, and readers may be at it.
const GRACE_MS: u64 = 2_000;
/// The most locks of one region that are resolved in one turn.
const LOCKS_MAX: usize = 256;

/// Finds out what became of transactions, and finishes their locks.
pub trait Resolver: Send + Sync + 'static {
    /// Gives the number of transactions that have ended. The error is for the log.
    fn resolve(&self, locks: Vec<LockInfo>) -> BoxFuture<'_, Result<usize, String>>;
}

/// What was done.
pub struct CleanerMetrics {
    /// Expired locks that were found.
    found: IntCounter,
    /// Transactions that were ended.
    ended: IntCounter,
    failed: IntCounter,
}

impl CleanerMetrics {
    /// Counters that start at zero, shown by `registry`.
    ///
    /// # Errors
    /// When the registry has metrics of these names.
    pub fn new(registry: &Registry) -> Result<CleanerMetrics, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(CleanerMetrics {
            found: counter("kvasir_lock_cleaner_expired_total", "Expired locks that the cleaner has found.")?,
            ended: counter("kvasir_lock_cleaner_ended_total", "Transactions that the cleaner has ended.")?,
            failed: counter(
                "kvasir_lock_cleaner_failed_total",
                "Attempts of the cleaner that have failed; it tries again.",
            )?,
        })
    }
}

/// See the file's head.
pub struct Cleaner {
    pub engine: Arc<dyn Engine>,
    pub views: Arc<ViewRegistry>,
    pub oracle: Arc<dyn Oracle>,
    pub resolver: Arc<dyn Resolver>,
    pub metrics: CleanerMetrics,
}

impl Cleaner {
    /// Looks at all regions that this store leads, one after the other.
    pub async fn turn(&self) {
        for view in self.views.all() {
            if !view.is_leader() || !view.serves {
                continue;
            }
            if let Err(error) = self.clean(&view.meta).await {
                self.metrics.failed.inc();
                tracing::info!(region = view.meta.region.id, error, "expired locks wait for the next look");
            }
        }
    }

    async fn clean(&self, region: &RegionMeta) -> Result<(), String> {
        if !self.has_locks(region)? {
            return Ok(());
        }
        let now = Timestamp::new(self.oracle.timestamp().await?);
        let locks = self.expired(region, now)?;
        if locks.is_empty() {
            return Ok(());
        }
        self.metrics.found.inc_by(locks.len() as u64);
        let ended = self.resolver.resolve(locks).await?;
        self.metrics.ended.inc_by(ended as u64);
        Ok(())
    }

    fn has_locks(&self, region: &RegionMeta) -> Result<bool, String> {
        let mut any = false;
        self.walk(region, |_, _| {
            any = true;
            false
        })?;
        Ok(any)
    }

    /// Locks that expired a while before `now`.
    fn expired(&self, region: &RegionMeta, now: Timestamp) -> Result<Vec<LockInfo>, String> {
        let mut found = Vec::new();
        self.walk(region, |encoded, stored| {
            // One that cannot be read is reported to those who need it.
            let lock = Lock::decode(Bytes::copy_from_slice(stored)).ok().filter(|lock| is_expired(lock, now));
            if let (Some(lock), Ok(key)) = (lock, key::user_key(encoded)) {
                found.push(LockInfo { key, lock });
            }
            found.len() < LOCKS_MAX
        })?;
        Ok(found)
    }

    /// Shows encoded keys and stored locks to `visit` until it has seen enough.
    fn walk(&self, region: &RegionMeta, mut visit: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), String> {
        let (lower, upper) = encoded_bounds(&region.start, &region.end);
        let options = IterOptions { lower, upper, no_fill_cache: true, ..IterOptions::default() };
        let mut locks = self.engine.snapshot().iter(Cf::Lock, options).map_err(|e| e.to_string())?;
        locks.seek_to_first();
        while locks.valid() {
            if !visit(locks.key(), locks.value()) {
                return Ok(());
            }
            locks.next();
        }
        locks.status().map_err(|e| e.to_string())
    }
}

fn is_expired(lock: &Lock, now: Timestamp) -> bool {
    let dies_ms = Timestamp::new(lock.start_ts).physical_ms().saturating_add(lock.ttl);
    dies_ms.saturating_add(GRACE_MS) < now.physical_ms()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use kvproto::metapb;
    use parking_lot::Mutex;

    use super::*;
    use crate::engine::mem::MemEngine;
    use crate::engine::{WriteBatch, WriteOptions};
    use crate::raftstore::meta::region_view::RegionView;
    use crate::txn::mvcc::{Key, LockKind};

    /// An oracle at a fixed time, and a resolver that notes what it gets.
    #[derive(Default)]
    struct World {
        asked: Mutex<u64>,
        resolved: Mutex<Vec<Bytes>>,
    }

    const NOW_MS: u64 = 100_000;

    fn at_ms(ms: u64) -> u64 {
        Timestamp::compose(ms, 0).unwrap().get()
    }

    impl Oracle for World {
        fn timestamp(&self) -> BoxFuture<'static, Result<u64, String>> {
            *self.asked.lock() += 1;
            std::future::ready(Ok(at_ms(NOW_MS))).boxed()
        }
    }

    impl Resolver for World {
        fn resolve(&self, locks: Vec<LockInfo>) -> BoxFuture<'_, Result<usize, String>> {
            let ended = locks.len();
            self.resolved.lock().extend(locks.into_iter().map(|info| info.key));
            std::future::ready(Ok(ended)).boxed()
        }
    }

    fn view(id: u64, start: &'static str, end: &'static str, leads: bool) -> RegionView {
        let region = metapb::Region { id, ..Default::default() };
        let meta = Arc::new(RegionMeta { region, start: start.into(), end: end.into() });
        let (me, other) =
            (metapb::Peer { id: 1, ..Default::default() }, metapb::Peer { id: 2, ..Default::default() });
        RegionView::new(meta, me, Some(if leads { me } else { other }), 5, leads)
    }

    fn cleaner(world: &Arc<World>, locks: &[(&'static str, u64, u64)]) -> Cleaner {
        let (engine, mut batch) = (MemEngine::new(), WriteBatch::new());
        for (user, start_ms, ttl) in locks {
            let lock = Lock::new(LockKind::Put, at_ms(*start_ms), "primary".into(), *ttl);
            batch.put(Cf::Lock, Key::new((*user).into()).encoded().to_vec(), lock.encode());
        }
        engine.write(&batch, WriteOptions::default()).unwrap();
        let views = Arc::new(ViewRegistry::default());
        for view in [view(1, "", "m", true), view(2, "m", "", false)] {
            views.cell(view.meta.region.id).publish(Some(view));
        }
        let metrics = CleanerMetrics::new(&Registry::new()).unwrap();
        Cleaner { engine: Arc::new(engine), views, oracle: world.clone(), resolver: world.clone(), metrics }
    }

    #[test]
    fn locks_that_expired_a_while_ago_are_resolved_where_this_store_leads() {
        let world: Arc<World> = Arc::default();
        let long_ago = NOW_MS - GRACE_MS - 3_001;
        let locks = [
            ("dead", long_ago, 3_000),
            ("just expired", long_ago + 1, 3_000),
            ("alive", long_ago, 30_000),
            ("of another store", long_ago, 3_000),
        ];
        cleaner(&world, &locks).turn().now_or_never().unwrap();
        assert_eq!(*world.resolved.lock(), ["dead"]);
    }

    #[test]
    fn without_locks_nobody_is_asked() {
        let world: Arc<World> = Arc::default();
        cleaner(&world, &[]).turn().now_or_never().unwrap();
        assert_eq!((*world.asked.lock(), world.resolved.lock().len()), (0, 0));
    }
}
