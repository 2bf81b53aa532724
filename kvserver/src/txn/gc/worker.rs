//! The thread that removes garbage from a store: long values of versions that compactions dropped, and what the walks
//! over all versions and all long values find.
//!
//! Owns the pace: small steps with pauses between them, so that a disk and a processor that serve requests hardly
//! notice; nothing at all while the engine makes writers wait. A walk begins when the GC safe point has moved since the
//! last one and that one was long enough ago.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::compaction_filter::Filters;
use super::filter::Dropped;
use super::orphans::{OrphanWalk, Suspects};
use super::walk::{Step, Walk};
use crate::clock::{self, Now};
use crate::engine::{Cf, Engine, Result, WriteBatch, WriteOptions};

/// Records that one step of a walk looks at, and the pause after it.
const STEP: usize = 2048;
const PAUSE: Duration = Duration::from_millis(20);
/// Values deleted with one write.
const VALUES_MAX: usize = 1024;
/// How often it is looked whether there is anything to do.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was removed.
pub struct GcMetrics {
    /// Records by `what` (versions, marks, values) and `by` (compaction, walk).
    removed: IntCounterVec,
    walks: IntCounter,
    walked: IntCounter,
    txn_safe_point: IntGauge,
    gc_safe_point: IntGauge,
}

impl GcMetrics {
    /// Counters that start at zero, shown by `registry`.
    ///
    /// # Errors
    /// When the registry has metrics of these names.
    pub fn new(registry: &Registry) -> std::result::Result<GcMetrics, prometheus::Error> {
        let opts = Opts::new("kvasir_gc_removed_total", "Records removed as garbage, by kind and by whom.");
        let metrics = GcMetrics {
            removed: IntCounterVec::new(opts, &["what", "by"])?,
            walks: IntCounter::new("kvasir_gc_walks_total", "Walks over all versions that were finished.")?,
            walked: IntCounter::new("kvasir_gc_walked_total", "Records that walks have looked at.")?,
            txn_safe_point: IntGauge::new(
                "kvasir_txn_safe_point_ms",
                "Wall time below which nobody may read, milliseconds.",
            )?,
            gc_safe_point: IntGauge::new(
                "kvasir_gc_safe_point_ms",
                "Wall time up to which garbage is removed, milliseconds.",
            )?,
        };
        registry.register(Box::new(metrics.removed.clone()))?;
        registry.register(Box::new(metrics.walks.clone()))?;
        registry.register(Box::new(metrics.walked.clone()))?;
        registry.register(Box::new(metrics.txn_safe_point.clone()))?;
        registry.register(Box::new(metrics.gc_safe_point.clone()))?;
        Ok(metrics)
    }

    fn count(&self, by: &str, dropped: Dropped) {
        self.removed.with_label_values(&["versions", by]).inc_by(dropped.versions);
        self.removed.with_label_values(&["marks", by]).inc_by(dropped.marks);
    }

    fn count_orphans(&self, dropped: Dropped) {
        self.removed.with_label_values(&["values", "walk"]).inc_by(dropped.versions);
        self.removed.with_label_values(&["marks", "walk"]).inc_by(dropped.marks);
    }
}

#[derive(Default)]
struct Stop {
    is_stopping: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Rests; true when it is time to end.
    fn rest(&self, time: Duration) -> bool {
        let mut is_stopping = self.is_stopping.lock();
        if !*is_stopping {
            self.changed.wait_for(&mut is_stopping, time);
        }
        *is_stopping
    }
}

/// See the file's head.
pub struct GcWorker {
    stop: Arc<Stop>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Job {
    engine: Arc<dyn Engine>,
    filters: Filters,
    metrics: GcMetrics,
    /// Between the beginnings of two walks.
    walk_every_ms: u64,
    walk: Option<Walk>,
    /// Follows the other walk.
    orphan_walk: Option<OrphanWalk>,
    suspects: Suspects,
    /// When the last walk began, and up to where it went.
    walked_at: Option<Now>,
    walked_to: u64,
}

impl GcWorker {
    /// Starts the thread. It holds the engine until [`GcWorker::stop`].
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        engine: Arc<dyn Engine>,
        filters: Filters,
        metrics: GcMetrics,
        walk_every: Duration,
    ) -> std::io::Result<GcWorker> {
        let stop: Arc<Stop> = Arc::default();
        let walk_every_ms = u64::try_from(walk_every.as_millis()).unwrap_or(u64::MAX);
        let mut job = Job {
            engine,
            filters,
            metrics,
            walk_every_ms,
            walk: None,
            orphan_walk: None,
            suspects: Suspects::default(),
            walked_at: None,
            walked_to: 0,
        };
        let of_thread = stop.clone();
        let run = move || job.run(&of_thread);
        let thread = std::thread::Builder::new().name("gc-worker".into()).spawn(run)?;
        Ok(GcWorker { stop, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the thread after its step. Blocks.
    pub fn stop(&self) {
        *self.stop.is_stopping.lock() = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the garbage collector ended in a panic");
        }
    }
}

impl Job {
    fn run(&mut self, stop: &Stop) {
        let mut pause = LOOK_EVERY;
        while !stop.rest(pause) {
            pause = match self.turn() {
                Ok(true) => PAUSE,
                Ok(false) => LOOK_EVERY,
                Err(error) => {
                    // Whoever meets the same failure while serving decides whether the store can go on.
                    tracing::warn!(%error, "garbage cannot be removed now");
                    LOOK_EVERY
                }
            };
        }
    }

    /// One step; true when there is more to do.
    fn turn(&mut self) -> Result<bool> {
        let points = &self.filters.safe_points;
        let ms = |ts| i64::try_from(kvproto::ts::Timestamp::new(ts).physical_ms()).unwrap_or(i64::MAX);
        self.metrics.txn_safe_point.set(ms(points.txn()));
        self.metrics.gc_safe_point.set(ms(points.gc()));
        self.metrics.count("compaction", self.filters.garbage.take_counts());
        if self.engine.stalled() {
            return Ok(false);
        }
        let more_values = self.delete_values()?;
        Ok(self.walk()? || more_values)
    }

    fn delete_values(&mut self) -> Result<bool> {
        let keys = self.filters.garbage.take_values(VALUES_MAX);
        if keys.is_empty() {
            return Ok(false);
        }
        let (count, mut batch) = (keys.len(), WriteBatch::new());
        keys.into_iter().for_each(|key| batch.delete(Cf::Default, key));
        self.engine.write(&batch, WriteOptions::default())?;
        self.metrics.removed.with_label_values(&["values", "compaction"]).inc_by(count as u64);
        Ok(count == VALUES_MAX)
    }

    fn walk(&mut self) -> Result<bool> {
        let (now, safe_point) = (clock::now(), self.filters.safe_points.gc());
        let is_due = self.walked_at.is_none_or(|at| now >= at.plus_ms(self.walk_every_ms));
        let is_idle = self.walk.is_none() && self.orphan_walk.is_none();
        if is_idle && is_due && safe_point > self.walked_to {
            self.walk = Some(Walk::new(safe_point));
            (self.walked_at, self.walked_to) = (Some(now), safe_point);
        }
        let step = match (&mut self.walk, &mut self.orphan_walk) {
            (Some(walk), _) => {
                let step = walk.step(&*self.engine, STEP)?;
                self.metrics.count("walk", step.dropped);
                if step.is_done {
                    self.walk = None;
                    let suspects = std::mem::take(&mut self.suspects);
                    self.orphan_walk = Some(OrphanWalk::new(self.walked_to, suspects));
                }
                Step { is_done: false, ..step }
            }
            (None, Some(walk)) => {
                let step = walk.step(&*self.engine, now, STEP)?;
                self.metrics.count_orphans(step.dropped);
                if step.is_done {
                    self.suspects =
                        self.orphan_walk.take().map(OrphanWalk::into_suspects).unwrap_or_default();
                    self.metrics.walks.inc();
                }
                step
            }
            (None, None) => return Ok(false),
        };
        self.metrics.walked.inc_by(step.seen);
        Ok(!step.is_done)
    }
}
