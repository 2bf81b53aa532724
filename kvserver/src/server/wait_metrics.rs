//! Waits for locks and deadlocks as Prometheus sees them. The runner and the detector count; this only shows.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge};

use super::deadlock_service::Deadlocks;
use crate::txn::lock_waits::LockWaitCounts;
use crate::txn::scheduler::Txn;

/// See the file's head.
pub struct WaitMetrics {
    txn: Arc<Txn>,
    deadlocks: Deadlocks,
    waiting: IntGauge,
    begun: IntCounter,
    released: IntCounter,
    timed_out: IntCounter,
    found: IntCounter,
}

impl WaitMetrics {
    pub fn new(txn: Arc<Txn>, deadlocks: Deadlocks) -> Result<WaitMetrics, prometheus::Error> {
        Ok(WaitMetrics {
            txn,
            deadlocks,
            waiting: IntGauge::new("kvasir_lock_waiters", "Requests that wait for a lock.")?,
            begun: IntCounter::new(
                "kvasir_lock_waits_total",
                "Times that a request began to wait for a lock.",
            )?,
            released: IntCounter::new(
                "kvasir_lock_wake_ups_total",
                "Waiters woken because their lock was released.",
            )?,
            timed_out: IntCounter::new(
                "kvasir_lock_wait_timeouts_total",
                "Waits for a lock that took too long.",
            )?,
            found: IntCounter::new(
                "kvasir_deadlocks_total",
                "Deadlocks that this store found, for itself and others.",
            )?,
        })
    }

    fn all(&self) -> [&dyn Collector; 5] {
        [&self.waiting, &self.begun, &self.released, &self.timed_out, &self.found]
    }
}

impl Collector for WaitMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(|metric| metric.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (waiting, LockWaitCounts { begun, released, timed_out }) = self.txn.wait_counts();
        self.waiting.set(waiting as i64);
        for (counter, sum) in [
            (&self.begun, begun),
            (&self.released, released),
            (&self.timed_out, timed_out),
            (&self.found, self.deadlocks.found()),
        ] {
            counter.reset();
            counter.inc_by(sum);
        }
        self.all().into_iter().flat_map(|metric| metric.collect()).collect()
    }
}
