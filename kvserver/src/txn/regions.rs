//! Work on a whole region: locks that are looked for, records that are shown, ranges that are removed.
//!
//! What is looked for is found in pages, each on a snapshot of its own; a command for the page then looks at every lock
//! again under its latch. Locks that come meanwhile are not missed by those who asked, for they belong to transactions
//! that were not meant.

use bytes::Bytes;

use super::commands::delete_range::delete_range;
use super::commands::resolve_lock::{Fates, RESOLVE_KEYS_MAX};
use super::commands::{PessimisticRollback, ResolveLock};
use super::error::{LockInfo, TxnResult};
use super::mvcc::LockKind;
use super::mvcc::inspect::{self, KeyRecords};
use super::mvcc::scan_lock::{self, LockKeys};
use super::range::{in_region, not_in_region};
use super::scheduler::{Txn, TxnCall, UNBOUNDED};
use crate::storage;

impl Txn {
    /// Ends transactions on all their keys of the region, and says on how many.
    pub async fn resolve_region(&self, call: &TxnCall, fates: Fates) -> TxnResult<usize> {
        let (mut from, mut resolved) = (Some(Bytes::new()), 0);
        while let Some(at) = from {
            let wanted = fates.clone();
            let LockKeys { keys, next } =
                self.lock_keys(call, at, move |_, start_ts| wanted.wants(start_ts)).await?;
            if !keys.is_empty() {
                resolved += self.run_found(call, ResolveLock { fates: fates.clone(), keys }).await?;
            }
            from = next;
        }
        Ok(resolved)
    }

    /// Gives back all claims of a transaction in the region, up to a for-update timestamp.
    pub async fn give_back_claims(&self, call: &TxnCall, command: PessimisticRollback) -> TxnResult<()> {
        let mut from = Some(Bytes::new());
        while let Some(at) = from {
            let wanted = command.clone();
            let LockKeys { keys, next } =
                self.lock_keys(call, at, move |kind, start_ts| wanted.wants(kind, start_ts)).await?;
            if !keys.is_empty() {
                self.run_found(call, PessimisticRollback { keys, ..command.clone() }).await?;
            }
            from = next;
        }
        Ok(())
    }

    async fn lock_keys(
        &self,
        call: &TxnCall,
        from: Bytes,
        wants: impl Fn(LockKind, u64) -> bool + Send + 'static,
    ) -> TxnResult<LockKeys> {
        let page = RESOLVE_KEYS_MAX;
        self.read(&call.ctx, UNBOUNDED, move |at, tier| scan_lock::lock_keys(at, tier, &from, page, &wants))
            .await
    }

    /// The locks of transactions that began at or before `max_ts`, in the part of `[start, end)` that lies in the region,
    /// in key order; an empty `end` is open. Transactions that choose their own commit timestamp and leave no lock are
    /// waited for.
    pub async fn scan_locks(
        &self,
        call: &TxnCall,
        (start, end): (Bytes, Bytes),
        max_ts: u64,
        limit: usize,
    ) -> TxnResult<Vec<LockInfo>> {
        self.before_scan(&start, &end, max_ts).await?;
        self.read(&call.ctx, UNBOUNDED, move |at, tier| {
            scan_lock::scan_lock(at, tier, (&start, &end), max_ts, limit)
        })
        .await
    }

    /// Everything that transactions have left on a key.
    pub async fn key_records(&self, call: &TxnCall, key: Bytes) -> TxnResult<KeyRecords> {
        self.read(&call.ctx, 1, move |at, tier| {
            in_region(&at.region, &key)?;
            inspect::by_key(at, tier, &key)
        })
        .await
    }

    /// The first key of the region on which a transaction has left something, with everything about it.
    pub async fn records_of(&self, call: &TxnCall, start_ts: u64) -> TxnResult<Option<(Bytes, KeyRecords)>> {
        self.read(&call.ctx, UNBOUNDED, move |at, tier| inspect::by_start_ts(at, tier, start_ts)).await
    }

    /// Removes everything that transactions have left in `[start, end)`; an empty `end` is open. The range must lie in the
    /// region: to remove only a part of it and report success would be a lie.
    pub async fn delete_range(&self, call: &TxnCall, start: &Bytes, end: &Bytes) -> TxnResult<()> {
        let region = self.storage.region(&call.ctx)?;
        if !end.is_empty() && start >= end {
            return Ok(());
        }
        in_region(&region, start)?;
        if !region.end.is_empty() && (end.is_empty() || *end > region.end) {
            return Err(not_in_region(&region, end).into());
        }
        let write = delete_range(&region, start, end);
        let (done, outcome) = storage::callback();
        self.storage.write(&call.ctx, write, done);
        Ok(outcome.await?)
    }
}
