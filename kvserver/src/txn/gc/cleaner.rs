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
use parking_lot::Mutex;
use prometheus::{IntCounter, Registry};

use crate::engine::{Cf, Engine, IterOptions};
use crate::raftstore::meta::region_view::ViewRegistry;
use crate::txn::error::LockInfo;
use crate::txn::mvcc::{Lock, key};

/// A lock is left alone for so long after it has expired: its client may be slow, and readers may be at it.
const GRACE_MS: u64 = 2_000;
/// The most locks that are resolved in one turn.
const LOCKS_MAX: usize = 1024;
/// Locks that are resolved together.
const TOGETHER: usize = 64;

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
    engine: Arc<dyn Engine>,
    views: Arc<ViewRegistry>,
    resolver: Arc<dyn Resolver>,
    metrics: CleanerMetrics,
    /// Where the next look begins: behind those that filled the last one, so that locks which cannot be resolved now do
    /// not hide the others.
    from: Mutex<Bytes>,
}

impl Cleaner {
    /// A cleaner of the locks in `engine`, in the regions of `views` that are led here.
    pub fn new(
        engine: Arc<dyn Engine>,
        views: Arc<ViewRegistry>,
        resolver: Arc<dyn Resolver>,
        metrics: CleanerMetrics,
    ) -> Cleaner {
        Cleaner { engine, views, resolver, metrics, from: Mutex::default() }
    }

    /// Whether there is any lock here. Looks at the engine: call it where blocking is allowed.
    pub fn has_locks(&self) -> Result<bool, String> {
        let mut any = false;
        self.walk(Bytes::new(), |_, _| {
            any = true;
            false
        })?;
        Ok(any)
    }

    /// Locks in regions that this store leads which expired a while before `now`. Looks at all locks of the store: call
    /// it where blocking is allowed.
    pub fn expired(&self, now: Timestamp) -> Result<Vec<LockInfo>, String> {
        let views = self.views.all().into_iter().filter(|view| view.is_leader() && view.serves);
        let mut led: Vec<_> = views.map(|view| view.meta.clone()).collect();
        led.sort_by(|a, b| a.start.cmp(&b.start));
        let is_led = |key: &[u8]| {
            let before = led.partition_point(|region| region.start <= key);
            before > 0 && led[before - 1].contains(key)
        };
        let (mut found, mut next) = (Vec::new(), Bytes::new());
        let from = self.from.lock().clone();
        self.walk(from, |encoded, stored| {
            // One that cannot be read is reported to those who need it.
            let lock = Lock::decode(Bytes::copy_from_slice(stored)).ok().filter(|lock| is_expired(lock, now));
            if let (Some(lock), Ok(key)) = (lock, key::user_key(encoded))
                && is_led(&key)
            {
                found.push(LockInfo { key, lock });
            }
            if found.len() < LOCKS_MAX {
                return true;
            }
            next = [encoded, &[0]].concat().into();
            false
        })?;
        *self.from.lock() = next;
        self.metrics.found.inc_by(found.len() as u64);
        Ok(found)
    }

    /// Has these locks resolved, some at a time: a region that does not answer keeps only those that share its turn.
    pub async fn resolve(&self, locks: Vec<LockInfo>) {
        let mut locks = locks.into_iter().peekable();
        while locks.peek().is_some() {
            match self.resolver.resolve(locks.by_ref().take(TOGETHER).collect()).await {
                Ok(ended) => self.metrics.ended.inc_by(ended as u64),
                Err(error) => self.failed(&error),
            }
        }
    }

    /// Notes an attempt that failed.
    pub fn failed(&self, error: &str) {
        self.metrics.failed.inc();
        tracing::info!(error, "expired locks wait for the next look");
    }

    /// Shows encoded keys and stored locks to `visit` until it has seen enough.
    fn walk(&self, from: Bytes, mut visit: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), String> {
        let options = IterOptions { lower: from, no_fill_cache: true, ..IterOptions::default() };
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

    use super::*;
    use crate::engine::mem::MemEngine;
    use crate::engine::{WriteBatch, WriteOptions};
    use crate::raftstore::meta::region_view::{RegionMeta, RegionView};
    use crate::txn::mvcc::{Key, LockKind};

    /// A resolver that notes what it gets.
    #[derive(Default)]
    struct World {
        resolved: Mutex<Vec<Bytes>>,
    }

    const NOW_MS: u64 = 100_000;

    fn at_ms(ms: u64) -> u64 {
        Timestamp::compose(ms, 0).unwrap().get()
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
        Cleaner::new(Arc::new(engine), views, world.clone(), metrics)
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
        let cleaner = cleaner(&world, &locks);
        assert!(cleaner.has_locks().unwrap());
        let expired = cleaner.expired(Timestamp::new(at_ms(NOW_MS))).unwrap();
        cleaner.resolve(expired).now_or_never().unwrap();
        assert_eq!(*world.resolved.lock(), ["dead"]);
    }

    #[test]
    fn locks_that_stay_do_not_hide_those_behind_them() {
        let (world, name) = (Arc::default(), |n: usize| -> &'static str { format!("{n:05}").leak() });
        let locks: Vec<_> = (0..LOCKS_MAX + 3).map(|n| (name(n), 1_000, 0)).collect();
        let cleaner = cleaner(&world, &locks);
        let look = || cleaner.expired(Timestamp::new(at_ms(NOW_MS))).unwrap();
        assert_eq!(look().len(), LOCKS_MAX);
        assert_eq!(look().first().map(|info| info.key.clone()), Some(name(LOCKS_MAX).into()));
        assert_eq!(look().len(), LOCKS_MAX, "and again from the first one");
    }

    #[test]
    fn without_locks_there_is_nothing_to_ask() {
        let cleaner = cleaner(&Arc::default(), &[]);
        assert!(!cleaner.has_locks().unwrap());
        assert!(cleaner.expired(Timestamp::new(at_ms(NOW_MS))).unwrap().is_empty());
    }
}
