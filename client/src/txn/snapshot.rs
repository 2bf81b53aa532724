//! Reads at one timestamp, past the locks of transactions that do not matter to it.
//!
//! Owns the two lists of such transactions, which travel with every later read. Invariant: a transaction is on
//! a list only when its fate at this timestamp is settled: committed at or before it; or rolled back, or committed
//! after it, if at all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvproto::kvrpcpb::{
    BatchGetRequest, BatchGetResponse, Context, GetRequest, KeyError, LockInfo, ScanRequest,
};
use kvproto::ts::Timestamp;
use parking_lot::Mutex;

use super::client::Shared;
use super::key_error::{Refusal, key_locked};
use super::lock_resolver::Resolved;
use super::scanner::TxnScan;
use crate::KvPair;
use crate::backoff::{Backoff, Jitter};
use crate::bounds::{IntoKeyRange, span};
use crate::error::Result;
use crate::request::pages::{Cursor, Page, PageSource};
use crate::request::plan::{At, Call};
use crate::request::retry::Access;
use crate::request::shard::Items;

/// Transactions that a list names at most; who is dropped is met again.
const LISTED_MAX: usize = 128;
/// Between looks at a transaction that may still commit.
const LIVE_LOCK: Backoff = Backoff::from_millis(1, 100);

/// The data as they were at one timestamp. Cheap to clone; clones share what they know about locks.
#[derive(Clone)]
pub struct Snapshot {
    shared: Arc<Shared>,
    ts: Timestamp,
    lists: Arc<Mutex<Lists>>,
}

/// Transactions whose locks are not in the way.
#[derive(Default)]
struct Lists {
    /// Rolled back, or committed later if at all.
    pass: Vec<u64>,
    /// Committed: their locks' values are read.
    access: Vec<u64>,
}

/// How often and how long a call has met locks.
pub(super) struct LockWaits {
    attempt: u32,
    jitter: Option<Jitter>,
}

impl LockWaits {
    pub(super) fn new() -> LockWaits {
        LockWaits { attempt: 0, jitter: None }
    }

    /// Waits before the next attempt, at most `most` and `left`. False when no time is left.
    pub(super) async fn pause(&mut self, most: Duration, left: Duration) -> bool {
        let jitter = self.jitter.get_or_insert_with(Jitter::from_process).draw();
        let pause = LIVE_LOCK.delay(self.attempt, jitter).min(most);
        self.attempt += 1;
        if pause >= left {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}

impl Snapshot {
    pub(super) fn new(shared: Arc<Shared>, ts: Timestamp) -> Snapshot {
        Snapshot { shared, ts, lists: Arc::default() }
    }

    /// The timestamp it reads at.
    pub fn timestamp(&self) -> Timestamp {
        self.ts
    }

    /// The value of `key`, or `None` when it does not exist.
    ///
    /// ```no_run
    /// # async fn run(client: kvclient::TransactionClient) -> kvclient::Result<()> {
    /// let now = client.current_timestamp().await?;
    /// let value = client.snapshot(now).get("hello").await?;
    /// # Ok(()) }
    /// ```
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let key = self.shared.wire_key(key.into())?;
        self.get_wire(&key).await.map_err(|error| self.shared.user_error(error))
    }

    /// The pairs of those `keys` that exist, in key order.
    pub async fn batch_get<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<KvPair>> {
        let keys = self.shared.wire_keys(keys)?;
        let found = self.batch_get_wire(keys).await.map_err(|error| self.shared.user_error(error))?;
        found
            .into_iter()
            .map(|(key, value)| Ok(KvPair { key: self.shared.codec.user_key(key)?, value }))
            .collect()
    }

    /// Reads the pairs in `range` in key order, across regions.
    pub fn scan(&self, range: impl IntoKeyRange) -> TxnScan {
        TxnScan::new(self.clone(), span(range, self.shared.codec), Vec::new())
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) async fn get_wire(&self, key: &Bytes) -> Result<Option<Bytes>> {
        let call = self.shared.executor.call(Access::Read);
        let mut waits = LockWaits::new();
        loop {
            let build = |_: &_| GetRequest {
                key: key.clone(),
                version: self.ts.get(),
                context: self.context(),
                ..GetRequest::default()
            };
            let (_, reply) = self.shared.executor.run(call.part(), At::Key(key), build).await?;
            match reply.error {
                None => return Ok((!reply.not_found).then_some(reply.value)),
                Some(error) => self.refused(vec![error], &call, &mut waits).await?,
            }
        }
    }

    /// Pairs of wire keys, in key order.
    pub(super) async fn batch_get_wire(&self, keys: Vec<Bytes>) -> Result<Vec<(Bytes, Bytes)>> {
        let call = self.shared.executor.call(Access::Read);
        let mut waits = LockWaits::new();
        let mut found = Vec::with_capacity(keys.len());
        let mut left = Items::new(keys);
        loop {
            let mut errors = Vec::new();
            let mut again = Vec::new();
            let build = |keys: &Vec<Bytes>| BatchGetRequest {
                keys: keys.clone(),
                version: self.ts.get(),
                context: self.context(),
                ..BatchGetRequest::default()
            };
            let take = |keys: Vec<Bytes>, reply: BatchGetResponse| {
                sort_pairs(keys, reply, &mut found, &mut again, &mut errors);
            };
            self.shared.executor.run_all(call.part(), left, build, take).await?;
            if errors.is_empty() {
                break;
            }
            self.refused(errors, &call, &mut waits).await?;
            left = Items::new(again);
        }
        found.sort_unstable_by(|a: &(Bytes, Bytes), b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// What the next request tells about locks.
    fn context(&self) -> Option<Context> {
        let lists = self.lists.lock();
        if lists.pass.is_empty() && lists.access.is_empty() {
            return None;
        }
        let (resolved_locks, committed_locks) = (lists.pass.clone(), lists.access.clone());
        Some(Context { resolved_locks, committed_locks, ..Context::default() })
    }

    /// Deals with what a store has refused: returns when the read may be tried again.
    async fn refused(&self, errors: Vec<KeyError>, call: &Call, waits: &mut LockWaits) -> Result<()> {
        let mut locks: Vec<LockInfo> = Vec::new();
        for error in errors {
            match Refusal::new(error, self.ts) {
                Refusal::Locked(found) => locks.extend(found),
                refusal => return Err(refusal.into_error(self.ts)),
            }
        }
        let first = locks.first().cloned();
        let resolved = self.shared.resolver.look(locks, self.ts, call).await?;
        self.learn(&resolved);
        if let Some(wait) = resolved.wait
            && !waits.pause(wait, call.left()).await
        {
            return Err(key_locked(first.as_ref()));
        }
        Ok(())
    }

    fn learn(&self, resolved: &Resolved) {
        let mut lists = self.lists.lock();
        let later = resolved.rolled_back.iter().chain(&resolved.pushed).copied();
        let (before, after): (Vec<_>, Vec<_>) =
            resolved.committed.iter().partition(|(_, commit_ts)| *commit_ts <= self.ts);
        for start_ts in later.chain(after.iter().map(|(start_ts, _)| *start_ts)) {
            add(&mut lists.pass, start_ts);
        }
        for (start_ts, _) in before {
            add(&mut lists.access, start_ts);
        }
    }

    async fn fetch_page(self, mut cursor: Cursor) -> Result<Page> {
        let call = self.shared.executor.call(Access::Read);
        let mut waits = LockWaits::new();
        while !cursor.is_done() {
            let build = |region: &_| {
                let (start_key, end_key) = cursor.bounds(region);
                ScanRequest {
                    start_key,
                    end_key,
                    limit: cursor.want(),
                    version: self.ts.get(),
                    key_only: cursor.keys_only,
                    reverse: cursor.reverse,
                    context: self.context(),
                    ..ScanRequest::default()
                }
            };
            let (region, mut reply) = self.shared.executor.run(call.part(), cursor.at(), build).await?;
            // The error of the whole request may stand in the first pair as well.
            let in_pairs = reply.pairs.iter_mut().filter_map(|pair| pair.error.take());
            let errors: Vec<KeyError> = reply.error.take().into_iter().chain(in_pairs).collect();
            if !errors.is_empty() {
                self.refused(errors, &call, &mut waits).await?;
                continue;
            }
            match cursor.page(&region, reply.pairs) {
                Page { pairs, next: Some(next) } if pairs.is_empty() => cursor = next,
                page => return Ok(page),
            }
        }
        Ok(Page::last())
    }
}

impl PageSource for Snapshot {
    fn fetch(&self, cursor: Cursor) -> impl Future<Output = Result<Page>> + Send + 'static {
        self.clone().fetch_page(cursor)
    }
}

fn add(list: &mut Vec<u64>, start_ts: Timestamp) {
    if list.contains(&start_ts.get()) {
        return;
    }
    if list.len() >= LISTED_MAX {
        list.remove(0);
    }
    list.push(start_ts.get());
}

/// Takes the pairs of one reply apart: found, refused because of `errors`, and so to be asked for again.
fn sort_pairs(
    keys: Vec<Bytes>,
    reply: BatchGetResponse,
    found: &mut Vec<(Bytes, Bytes)>,
    again: &mut Vec<Bytes>,
    errors: &mut Vec<KeyError>,
) {
    let refused = errors.len();
    let mut known = Vec::new();
    for pair in reply.pairs {
        match pair.error {
            None => known.push((pair.key, pair.value)),
            Some(error) => errors.push(error),
        }
    }
    if errors.len() == refused {
        errors.extend(reply.error);
    }
    if errors.len() == refused {
        found.extend(known);
        return;
    }
    // A refused pair does not always name its key, and an absent one none: ask for all that is not known.
    again.extend(keys.into_iter().filter(|key| !known.iter().any(|(found, _)| found == key)));
    found.extend(known);
}
