//! Which locks a read must not pass, and which it looks through.
//!
//! A lock hides what its transaction will have written: a read at or after the lock's start cannot know whether that
//! commits before the read or after it, and has to ask. It need not when the lock changes nothing, when its
//! transaction has promised to commit later, or when the client knows how the transaction ended.

use super::{Lock, LockKind};

/// How consistent a read is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// What was committed at the read's timestamp, and nothing else ever.
    #[default]
    Snapshot,
    /// The newest committed versions up to the timestamp; locks are ignored.
    ReadCommitted,
}

/// What a read may see.
#[derive(Clone, Debug, Default)]
pub struct ReadRules {
    /// The read sees what committed at or before this; [`u64::MAX`] sees everything that is committed.
    pub ts: u64,
    pub isolation: Isolation,
    /// Start timestamps of transactions that did not commit before `ts`: their locks are ignored. Sorted.
    resolved: Vec<u64>,
    /// Start timestamps of transactions that committed before `ts`: their locks are read as if committed. Sorted.
    committed: Vec<u64>,
}

/// What a lock means for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It is not in the way.
    Free,
    /// The read has to wait or to resolve it.
    Blocked,
    /// The lock's change is what the read sees.
    Through,
}

impl ReadRules {
    /// A snapshot read at `ts`.
    pub fn at(ts: u64) -> ReadRules {
        ReadRules { ts, ..ReadRules::default() }
    }

    /// With what the client knows of transactions: those it may ignore, and those it must see.
    pub fn knowing(mut self, mut resolved: Vec<u64>, mut committed: Vec<u64>) -> ReadRules {
        resolved.sort_unstable();
        committed.sort_unstable();
        (self.resolved, self.committed) = (resolved, committed);
        self
    }

    /// What a lock on the wire key `key` means for this read.
    pub fn sight(&self, key: &[u8], lock: &Lock) -> Sight {
        if !self.may_matter(lock.kind, lock.start_ts) || lock.min_commit_ts > self.ts {
            return Sight::Free;
        }
        if self.resolved.binary_search(&lock.start_ts).is_ok() {
            return Sight::Free;
        }
        // The latest data is wanted, and the transaction has not committed: its primary key says so. An async commit
        // may be committed already, without a record of it.
        if self.ts == u64::MAX && lock.primary == key && !lock.is_async_commit() {
            return Sight::Free;
        }
        match self.committed.binary_search(&lock.start_ts) {
            Ok(_) => Sight::Through,
            Err(_) => Sight::Blocked,
        }
    }

    /// False when no lock of this kind and start timestamp is in the way: most need not be read in full.
    pub fn may_matter(&self, kind: LockKind, start_ts: u64) -> bool {
        self.isolation == Isolation::Snapshot
            && start_ts <= self.ts
            && matches!(kind, LockKind::Put | LockKind::Delete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(kind: LockKind) -> Lock {
        Lock::new(kind, 10, "primary".into(), 0)
    }

    #[test]
    fn changes_from_before_the_read_block_it() {
        let put = lock(LockKind::Put);
        for (ts, sight) in [(9, Sight::Free), (10, Sight::Blocked), (u64::MAX, Sight::Blocked)] {
            assert_eq!(ReadRules::at(ts).sight(b"k", &put), sight, "{ts}");
        }
        assert_eq!(ReadRules::at(10).sight(b"k", &lock(LockKind::Delete)), Sight::Blocked);
        for kind in [LockKind::Lock, LockKind::Pessimistic] {
            assert_eq!(ReadRules::at(20).sight(b"k", &lock(kind)), Sight::Free);
        }
        let committed = ReadRules { isolation: Isolation::ReadCommitted, ..ReadRules::at(20) };
        assert_eq!(committed.sight(b"k", &put), Sight::Free);
    }

    #[test]
    fn a_promise_to_commit_later_lets_reads_pass() {
        let promised = Lock { min_commit_ts: 21, ..lock(LockKind::Put) };
        assert_eq!(ReadRules::at(20).sight(b"k", &promised), Sight::Free);
        assert_eq!(ReadRules::at(21).sight(b"k", &promised), Sight::Blocked);
    }

    #[test]
    fn the_latest_read_ignores_a_lock_on_its_primary_unless_it_commits_by_itself() {
        let latest = ReadRules::at(u64::MAX);
        let put = lock(LockKind::Put);
        assert_eq!(latest.sight(b"primary", &put), Sight::Free);
        let asynchronous = Lock { secondaries: Some(vec![]), min_commit_ts: 11, ..put };
        assert_eq!(latest.sight(b"primary", &asynchronous), Sight::Blocked);
        assert_eq!(ReadRules::at(20).sight(b"primary", &lock(LockKind::Put)), Sight::Blocked);
    }

    #[test]
    fn what_the_client_knows_is_believed() {
        let put = lock(LockKind::Put);
        let sight = |resolved, committed| ReadRules::at(20).knowing(resolved, committed).sight(b"k", &put);
        assert_eq!(sight(vec![11, 10, 9], vec![]), Sight::Free);
        assert_eq!(sight(vec![11, 9], vec![30, 10]), Sight::Through);
        assert_eq!(sight(vec![11, 9], vec![30]), Sight::Blocked);
    }
}
