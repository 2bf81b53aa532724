//! What administrators do with transactional data: look at locks and versions, end abandoned transactions, remove
//! whole ranges.

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use kvproto::kvrpcpb::*;
use kvproto::ts::Timestamp;

use super::client::TransactionClient;
use super::key_error::Refusal;
use super::resolution::Caller;
use crate::bounds::{IntoKeyRange, span, successor};
use crate::error::{Error, Result};
use crate::request::plan::At;
use crate::request::retry::Access;
use crate::request::shard::{Span, Spans};

/// Locks to fetch at a time.
const LOCK_PAGE: u32 = 1024;

impl TransactionClient {
    /// Locks on keys in `range` of transactions that began at or before `max_ts`, at most `limit`, in key order.
    pub async fn scan_locks(
        &self,
        range: impl IntoKeyRange,
        max_ts: Timestamp,
        limit: usize,
    ) -> Result<Vec<LockInfo>> {
        let mut span = span(range, self.shared.codec);
        let mut found = Vec::new();
        while found.len() < limit && !span.is_empty() {
            let want = u32::try_from(limit - found.len()).unwrap_or(u32::MAX).min(LOCK_PAGE);
            let (locks, next) = self.lock_page(&span, max_ts, want).await?;
            found.extend(locks);
            let Some(next) = next else { break };
            span = next;
        }
        found.into_iter().map(|lock| self.user_lock(lock)).collect()
    }

    /// Ends all transactions that began at or before `safepoint` and hold locks on keys in `range`, those that are still
    /// at work included, and returns how many locks there were. For clean-up before old versions are removed.
    pub async fn cleanup_locks(&self, range: impl IntoKeyRange, safepoint: Timestamp) -> Result<usize> {
        let mut span = span(range, self.shared.codec);
        let mut count = 0;
        while !span.is_empty() {
            let (locks, next) = self.lock_page(&span, safepoint, LOCK_PAGE).await?;
            count += locks.len();
            self.shared.resolver.resolve(locks, Caller::Force).await?;
            let Some(next) = next else { break };
            span = next;
        }
        Ok(count)
    }

    /// Removes all versions of all keys in `range` at once, without a transaction: only where nobody reads or writes.
    pub async fn delete_range(&self, range: impl IntoKeyRange) -> Result<()> {
        let build = |span: &Span| DeleteRangeRequest {
            start_key: span.start.clone(),
            end_key: span.end.clone(),
            ..DeleteRangeRequest::default()
        };
        let executor = &self.shared.executor;
        let spans = Spans::new(span(range, self.shared.codec));
        executor.run_all(executor.patient_call(Access::Write), spans, build, |_, _| {}).await
    }

    /// The lock on `key` and all its versions, newest first, with the values that are not in their versions: for people
    /// who look for a fault.
    pub async fn mvcc(&self, key: impl Into<Bytes>) -> Result<MvccInfo> {
        let key = self.shared.wire_key(key.into())?;
        let executor = &self.shared.executor;
        let build = |_: &_| MvccGetByKeyRequest { key: key.clone(), ..MvccGetByKeyRequest::default() };
        let (_, reply) = executor.run(executor.call(Access::Read), At::Key(&key), build).await?;
        Ok(reply.info.unwrap_or_default())
    }

    /// Removes everything in `range` from all stores at once, locks and old versions included, as if it had never been:
    /// for data that nobody will ever read again. Ends when every store has done it.
    pub async fn unsafe_destroy_range(&self, range: impl IntoKeyRange) -> Result<()> {
        let executor = &self.shared.executor;
        let span = span(range, self.shared.codec);
        if span.is_empty() {
            return Ok(());
        }
        let stores = self.scheduler().get_all_stores(true).await?;
        let call = executor.patient_call(Access::Write);
        let destroy = |store: kvproto::metapb::Store| {
            let context = Context { api_version: executor.api().into(), ..Context::default() };
            let (start_key, end_key) = (span.start.clone(), span.end.clone());
            executor.on_store(
                &call,
                store.id,
                UnsafeDestroyRangeRequest { context: Some(context), start_key, end_key },
            )
        };
        let concurrency = executor.config().concurrency.max(1);
        let replies = stream::iter(stores).map(destroy).buffer_unordered(concurrency);
        replies.try_for_each(|_| std::future::ready(Ok::<_, Error>(()))).await
    }

    /// Locks of one region, and the rest of `span`.
    async fn lock_page(
        &self,
        span: &Span,
        max_ts: Timestamp,
        limit: u32,
    ) -> Result<(Vec<LockInfo>, Option<Span>)> {
        let executor = &self.shared.executor;
        let build = |_: &_| ScanLockRequest {
            max_version: max_ts.get(),
            start_key: span.start.clone(),
            end_key: span.end.clone(),
            limit,
            ..ScanLockRequest::default()
        };
        let call = executor.call(Access::Read);
        let (region, reply) = executor.run(call, At::Key(&span.start), build).await?;
        if let Some(error) = reply.error {
            return Err(self.shared.user_error(Refusal::new(error, max_ts).into_error(max_ts)));
        }
        let next = match reply.locks.last().filter(|_| reply.locks.len() >= limit as usize) {
            Some(last) => Some(successor(&last.key)),
            None => Some(region.end.clone()).filter(|end| !end.is_empty()),
        };
        let next = next.map(|start| Span { start, end: span.end.clone() });
        Ok((reply.locks, next.filter(|span| !span.is_empty())))
    }

    fn user_lock(&self, mut lock: LockInfo) -> Result<LockInfo> {
        let codec = self.shared.codec;
        lock.key = codec.user_key(lock.key)?;
        lock.primary_lock = codec.user_key(lock.primary_lock)?;
        let secondaries = std::mem::take(&mut lock.secondaries).into_iter();
        lock.secondaries = secondaries.map(|key| Ok(codec.user_key(key)?)).collect::<Result<_>>()?;
        Ok(lock)
    }
}
