//! How far this store knows old versions to be forgotten: the two safe points of the cluster, as it last heard of them.
//!
//! Below the txn safe point nobody may read or begin to write here; up to the GC safe point this store drops versions
//! that no reader at or above it can see. Every layer may look: the engine's compactions, snapshots between stores,
//! the runner of transactions.
//!
//! Invariants: both only rise; the txn safe point rises first, so what is dropped was refused before. A reader asks
//! [`SafePoints::check`] again **after** it has read: a compaction does not spare what the reader's snapshot still
//! showed, and then this answer tells.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A timestamp below the txn safe point: what was visible at it may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld {
    pub ts: u64,
    pub safe_point: u64,
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct SafePoints {
    txn: AtomicU64,
    gc: AtomicU64,
}

impl SafePoints {
    /// Below this nobody reads or begins to write.
    pub fn txn(&self) -> u64 {
        self.txn.load(SeqCst)
    }

    /// Up to this old versions are dropped; at or below the txn safe point.
    pub fn gc(&self) -> u64 {
        self.gc.load(SeqCst)
    }

    /// Refuses a reader or a writer that began at `ts`, when what it relies on may be gone. Asked before anything is
    /// read, to save the work, and after, when it counts.
    pub fn check(&self, ts: u64) -> Result<(), TooOld> {
        match self.txn() {
            safe_point if ts < safe_point => Err(TooOld { ts, safe_point }),
            _ => Ok(()),
        }
    }

    /// Takes in what the scheduler or another store says. Nothing goes back, and a txn safe point below the GC safe
    /// point is raised to it.
    pub fn raise(&self, txn: u64, gc: u64) {
        self.txn.fetch_max(txn.max(gc), SeqCst);
        self.gc.fetch_max(gc, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_only_rise_and_deletion_never_passes_refusal() {
        let points = SafePoints::default();
        assert_eq!(points.check(0), Ok(()));
        points.raise(10, 5);
        points.raise(7, 3);
        assert_eq!((points.txn(), points.gc()), (10, 5));
        assert_eq!(points.check(9), Err(TooOld { ts: 9, safe_point: 10 }));
        assert_eq!((points.check(10), points.check(u64::MAX)), (Ok(()), Ok(())));
        points.raise(0, 20);
        assert_eq!((points.txn(), points.gc()), (20, 20));
    }
}
