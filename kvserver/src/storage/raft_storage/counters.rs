//! What happened between this store and others, for Prometheus.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Counters of one store. Clones share them.
#[derive(Clone)]
pub struct Counters {
    pub sent: IntCounter,
    pub received: IntCounter,
    /// By reason: `malformed`, `overloaded`, `queue_full`, `disconnected`.
    pub dropped: IntCounterVec,
    /// By outcome: `sent`, `send_failed`, `received`, `receive_failed`.
    pub snapshots: IntCounterVec,
}

impl Counters {
    /// Counters that start at zero.
    ///
    /// # Errors
    /// None that these names could cause.
    pub fn new() -> Result<Counters, prometheus::Error> {
        let by = |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        Ok(Counters {
            sent: IntCounter::new("kvasir_raft_messages_sent_total", "Messages handed to connections.")?,
            received: IntCounter::new("kvasir_raft_messages_received_total", "Messages of other stores.")?,
            dropped: by(
                "kvasir_raft_messages_dropped_total",
                "Messages not delivered, by reason.",
                "reason",
            )?,
            snapshots: by("kvasir_snapshots_total", "Snapshot transfers that ended, by outcome.", "outcome")?,
        })
    }

    /// Shows them in `registry`.
    ///
    /// # Errors
    /// When the registry has others of these names.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.sent.clone()))?;
        registry.register(Box::new(self.received.clone()))?;
        registry.register(Box::new(self.dropped.clone()))?;
        registry.register(Box::new(self.snapshots.clone()))
    }

    /// Counts messages that were not delivered.
    pub fn drop_messages(&self, reason: &str, n: usize) {
        if n > 0 {
            self.dropped.with_label_values(&[reason]).inc_by(n as u64);
        }
    }

    /// Counts the end of a snapshot's transfer.
    pub fn snapshot(&self, outcome: &str) {
        self.snapshots.with_label_values(&[outcome]).inc();
    }
}
