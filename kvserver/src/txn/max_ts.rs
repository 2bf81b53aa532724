//! What async commit and one-phase commit need to know about readers: the largest timestamp that anybody has read at,
//! and the locks that are decided on but not applied yet.
//!
//! A transaction that chooses its own commit timestamp must choose one above every read that did not see its lock. So
//! a reader first raises the largest timestamp, then looks for memory locks; a prewrite first puts its memory lock,
//! then reads the largest timestamp. Whichever comes second sees the other (both steps are sequentially consistent).
//!
//! Invariants (INV-MAXTS): the largest timestamp only rises, and [`u64::MAX`] never raises it; a memory lock goes only
//! when its guard is dropped: after the write is visible, or has definitely failed. What earlier leaders of a region
//! have read is covered by [`MaxTs::note_synced`]: a prewrite that chooses its timestamp runs in a term and version for which
//! a timestamp was taken from the oracle after they began.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use super::mvcc::Lock;

/// See the file's head.
#[derive(Debug, Default)]
pub struct MaxTs {
    max: AtomicU64,
    /// Number of memory locks: most reads find none and need not look.
    count: AtomicUsize,
    locks: Mutex<BTreeMap<Bytes, Arc<MemoryLock>>>,
    /// By region: the term and version for which the largest timestamp covers what earlier leaders have read.
    synced: Mutex<BTreeMap<u64, (u64, u64)>>,
}

/// A lock that is decided on and not applied yet.
#[derive(Debug)]
pub struct MemoryLock {
    pub key: Bytes,
    /// What the lock record will be. `min_commit_ts` stands only in [`MemoryLock::min_commit_ts`].
    pub lock: Lock,
    min_commit_ts: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    gone: bool,
    wakers: Vec<Waker>,
}

impl MemoryLock {
    /// The least timestamp at which the transaction commits: 0 while it is not known yet.
    pub fn min_commit_ts(&self) -> u64 {
        self.min_commit_ts.load(Ordering::SeqCst)
    }

    /// True when a read at `ts` must not pass.
    pub fn blocks(&self, ts: u64) -> bool {
        // A read at the end of time sees what is committed now; this is not.
        ts != u64::MAX && self.lock.start_ts <= ts && self.min_commit_ts() <= ts
    }

    /// Ready once the lock is gone: applied, or its write failed.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.waiting.lock();
        if waiting.gone {
            return Poll::Ready(());
        }
        if !waiting.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until the lock is gone.
    pub async fn gone(self: Arc<Self>) {
        std::future::poll_fn(|cx| self.poll_gone(cx)).await;
    }
}

/// The memory locks of one prewrite; they go when this is dropped.
#[derive(Debug)]
pub struct MemoryGuard {
    table: Arc<MaxTs>,
    locks: Vec<Arc<MemoryLock>>,
}

impl MemoryGuard {
    /// Makes known at which timestamp the transaction commits at the earliest.
    pub fn set_min_commit_ts(&self, ts: u64) {
        self.locks.iter().for_each(|lock| lock.min_commit_ts.store(ts, Ordering::SeqCst));
    }
}

impl Drop for MemoryGuard {
    fn drop(&mut self) {
        let mut table = self.table.locks.lock();
        for lock in &self.locks {
            if table.get(&lock.key).is_some_and(|held| Arc::ptr_eq(held, lock)) {
                table.remove(&lock.key);
                self.table.count.fetch_sub(1, Ordering::SeqCst);
            }
        }
        drop(table);
        for lock in &self.locks {
            let mut waiting = lock.waiting.lock();
            waiting.gone = true;
            waiting.wakers.drain(..).for_each(Waker::wake);
        }
    }
}

impl MaxTs {
    /// The largest timestamp of any read.
    pub fn get(&self) -> u64 {
        self.max.load(Ordering::SeqCst)
    }

    /// Notes a read at `ts`.
    pub fn raise(&self, ts: u64) {
        if ts != u64::MAX {
            self.max.fetch_max(ts, Ordering::SeqCst);
        }
    }

    /// Puts memory locks. The caller holds the latches of their keys and reads [`MaxTs::get`] afterwards.
    pub fn lock(self: &Arc<Self>, locks: impl IntoIterator<Item = (Bytes, Lock)>) -> MemoryGuard {
        let mut table = self.locks.lock();
        let mut held = Vec::new();
        for (key, lock) in locks {
            let (min_commit_ts, waiting) = (AtomicU64::new(0), Mutex::default());
            let lock = Arc::new(MemoryLock { key: key.clone(), lock, min_commit_ts, waiting });
            if table.insert(key, lock.clone()).is_none() {
                self.count.fetch_add(1, Ordering::SeqCst);
            }
            held.push(lock);
        }
        MemoryGuard { table: self.clone(), locks: held }
    }

    /// A memory lock that a read of `key` at `ts` must wait for. The caller has raised the largest timestamp.
    pub fn blocking(&self, key: &[u8], ts: u64) -> Option<Arc<MemoryLock>> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.locks.lock().get(key).filter(|lock| lock.blocks(ts)).cloned()
    }

    /// The first memory lock in `[start, end)` (an empty `end` is open) that a read at `ts` must wait for.
    pub fn blocking_in(&self, start: &[u8], end: &[u8], ts: u64) -> Option<Arc<MemoryLock>> {
        if self.count.load(Ordering::SeqCst) == 0 || (!end.is_empty() && start >= end) {
            return None;
        }
        let end = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        let table = self.locks.lock();
        let mut range = table.range::<[u8], _>((Bound::Included(start), end));
        range.find(|(_, lock)| lock.blocks(ts)).map(|(_, lock)| lock.clone())
    }

    /// True when the largest timestamp covers what earlier leaders of the region have read.
    pub fn is_synced(&self, region_id: u64, term: u64, version: u64) -> bool {
        self.synced.lock().get(&region_id) == Some(&(term, version))
    }

    /// Notes a timestamp that was asked for after the region was led here in this term and version.
    pub fn note_synced(&self, region_id: u64, term: u64, version: u64, ts: u64) {
        self.raise(ts);
        let mut synced = self.synced.lock();
        let known = synced.entry(region_id).or_default();
        *known = (*known).max((term, version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::mvcc::LockKind;

    fn table_with(key: &'static str, start_ts: u64, min_commit_ts: u64) -> (Arc<MaxTs>, MemoryGuard) {
        let table = Arc::new(MaxTs::default());
        let guard = table.lock([(key.into(), Lock::new(LockKind::Put, start_ts, key.into(), 0))]);
        guard.set_min_commit_ts(min_commit_ts);
        (table, guard)
    }

    #[test]
    fn the_end_of_time_does_not_raise() {
        let table = MaxTs::default();
        table.raise(5);
        table.raise(u64::MAX);
        table.raise(3);
        assert_eq!(table.get(), 5);
    }

    #[test]
    fn a_memory_lock_blocks_reads_at_or_after_its_commit_until_it_goes() {
        let (table, guard) = table_with("k", 10, 20);
        assert!(table.blocking(b"k", 19).is_none() && table.blocking(b"k", u64::MAX).is_none());
        assert!(table.blocking(b"other", 30).is_none());
        let lock = table.blocking(b"k", 20).unwrap();
        assert!(table.blocking_in(b"a", b"k", 20).is_none() && table.blocking_in(b"a", b"", 20).is_some());
        let waker = futures::task::noop_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(lock.poll_gone(&mut cx).is_pending());
        drop(guard);
        assert!(lock.poll_gone(&mut cx).is_ready() && table.blocking(b"k", 20).is_none());
    }

    #[test]
    fn before_the_commit_timestamp_is_known_every_later_read_waits() {
        let (table, _guard) = table_with("k", 10, 0);
        assert!(table.blocking(b"k", 10).is_some() && table.blocking(b"k", 9).is_none());
    }

    #[test]
    fn only_the_term_and_version_that_was_asked_for_is_synced() {
        let table = MaxTs::default();
        table.note_synced(1, 5, 2, 100);
        assert!(table.is_synced(1, 5, 2) && !table.is_synced(1, 6, 2) && !table.is_synced(1, 5, 3));
        assert_eq!(table.get(), 100);
        table.note_synced(1, 4, 9, 120);
        assert!(table.is_synced(1, 5, 2), "a late answer for an earlier term changes nothing");
    }
}
