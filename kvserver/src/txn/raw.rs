//! Raw key-value operations over [`Storage`]: reads, writes, time to live, compare-and-swap, checksums.
//!
//! Data lives in [`Cf::Raw`] under the key as it is on the wire, with a header that says when it expires
//! ([`value`]). Expiry is computed from a `now` that the caller took before proposing: applying reads no clock.
//!
//! Reads look at what is in memory first, in the caller's task, and go to the read pool when that is not enough.
//! Plain writes take no latch. Compare-and-swap, and writes marked as its companions, hold the latches of their
//! keys from before the snapshot until the outcome is known (INV-LATCH); the guard travels with the write's
//! callback, so a client that hangs up changes nothing. When the outcome is unknown the latches are let go all
//! the same: the next snapshot needs a leader that has applied everything earlier terms could commit, so it
//! sees the write or its absence.

use std::sync::Arc;

use bytes::Bytes;
use futures::channel::oneshot;
use kvproto::kvrpcpb::ApiVersion;

use crate::engine::{Cf, EngineError, ReadTier};
use crate::error::RegionError;
use crate::raftstore::message::{Callback, WriteSet};
use crate::storage::{self, RegionContext, RegionSnapshot, Storage};
use crate::txn::latches::Latches;
use crate::txn::range;

pub mod checksum;
pub mod key_check;
pub mod read;
#[cfg(test)]
mod tests;
pub mod value;

pub use checksum::Checksum;
pub use key_check::{KeyCheck, KeyRefusal, column_family};
pub use read::Reader;

pub use super::pairs::{LongReply, Pairs};
pub use super::range::Scan;

/// Slots of the latch table.
const LATCH_SLOTS: usize = 2048;
/// Up to so many keys or pairs a read tries the cache in the caller's task before it goes to the read pool.
const INLINE_READS: usize = 32;

/// Why a raw request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    #[error(transparent)]
    Region(#[from] RegionError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error("{ttls} times to live for {pairs} pairs: give none, one for all, or one for each")]
    TtlCount { ttls: usize, pairs: usize },
    #[error("the reply would be larger than {max} bytes: ask with a smaller limit")]
    ReplyTooLarge { max: usize },
    #[error("the server is stopping")]
    Stopping,
}

/// Runs work that may wait for a disk, away from the caller's task.
pub trait Offload: Send + Sync + 'static {
    /// Runs `job` soon. It is dropped when the server is stopping, or when too many wait already: then the
    /// answer is false.
    fn offload(&self, job: Box<dyn FnOnce() + Send>) -> bool;
}

/// What every raw request says about itself.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub ctx: RegionContext,
    /// The API version the client speaks.
    pub api: ApiVersion,
    /// Seconds since 1970, taken when the request arrived.
    pub now: u64,
}

/// A compare-and-swap.
#[derive(Clone, Debug)]
pub struct Swap {
    pub key: Bytes,
    /// What the key must hold; `None` when it must be absent.
    pub expected: Option<Bytes>,
    /// What it shall hold; `None` to delete it.
    pub new: Option<Bytes>,
    /// Seconds that the new value lives; 0 for ever.
    pub ttl: u64,
}

/// What came of a compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swapped {
    pub succeeded: bool,
    /// What the key held before.
    pub previous: Option<Bytes>,
}

/// Raw key-value requests of one store.
pub struct Raw {
    storage: Arc<dyn Storage>,
    latches: Arc<Latches>,
    pool: Arc<dyn Offload>,
    keys: KeyCheck,
    /// Bytes that one write may have.
    write_bytes_max: usize,
}

impl Raw {
    /// Requests against `storage`; a write of more than `write_bytes_max` bytes is refused.
    pub fn new(storage: Arc<dyn Storage>, pool: Arc<dyn Offload>, write_bytes_max: usize) -> Raw {
        let keys = KeyCheck { cluster: storage.api() };
        Raw { storage, latches: Latches::new(LATCH_SLOTS), pool, keys, write_bytes_max }
    }

    /// The rules for keys of this cluster.
    pub fn keys(&self) -> KeyCheck {
        self.keys
    }

    /// A snapshot of the region without waiting; `None` when its lease is in doubt.
    pub fn lease_snapshot(&self, ctx: &RegionContext) -> Result<Option<RegionSnapshot>, RawError> {
        Ok(self.storage.lease_snapshot(ctx)?)
    }

    /// The value of a key from memory alone. [`EngineError::NotCached`] when it takes a disk to know.
    pub fn get_cached(
        &self,
        at: &RegionSnapshot,
        call: &Call,
        key: &[u8],
    ) -> Result<Option<Bytes>, RawError> {
        self.check_key(call, key)?;
        Reader { at, now: call.now, tier: ReadTier::Cache }.get(key)
    }

    /// The value of a key.
    pub async fn get(&self, call: &Call, key: Bytes) -> Result<Option<Bytes>, RawError> {
        self.check_key(call, &key)?;
        self.read(call, 1, move |r| r.get(&key)).await
    }

    /// The seconds a key has left: 0 when it does not expire, `None` when it is absent.
    pub async fn get_ttl(&self, call: &Call, key: Bytes) -> Result<Option<u64>, RawError> {
        self.check_key(call, &key)?;
        self.read(call, 1, move |r| r.get_ttl(&key)).await
    }

    /// The pairs of those keys that exist.
    pub async fn batch_get(&self, call: &Call, keys: Vec<Bytes>) -> Result<Vec<(Bytes, Bytes)>, RawError> {
        self.keys.api(call.api)?;
        for key in &keys {
            self.keys.key(key)?;
        }
        self.read(call, keys.len(), move |r| r.batch_get(&keys)).await
    }

    /// The pairs of the ranges, one range after the other, each up to its limit.
    pub async fn scan(&self, call: &Call, mut scans: Vec<Scan>, long: LongReply) -> Result<Pairs, RawError> {
        self.keys.api(call.api)?;
        let mut pairs = 0usize;
        for scan in &mut scans {
            scan.upper = self.keys.range(&scan.lower, std::mem::take(&mut scan.upper))?;
            pairs = pairs.saturating_add(scan.limit);
        }
        self.read(call, pairs, move |reader| {
            let mut pairs = Pairs::default();
            for scan in &scans {
                if reader.scan(scan, long, &mut pairs)? {
                    break;
                }
            }
            Ok(pairs)
        })
        .await
    }

    /// The checksum of the pairs in the ranges.
    pub async fn checksum(&self, call: &Call, mut ranges: Vec<(Bytes, Bytes)>) -> Result<Checksum, RawError> {
        self.keys.api(call.api)?;
        for (lower, upper) in &mut ranges {
            *upper = self.keys.range(lower, std::mem::take(upper))?;
        }
        self.read(call, usize::MAX, move |reader| {
            let mut sum = Checksum::default();
            for (lower, upper) in &ranges {
                reader.checksum(lower, upper, &mut sum)?;
            }
            Ok(sum)
        })
        .await
    }

    /// The write that sets `pairs`. `ttls` is empty, one for all, or one for each.
    pub fn put(&self, call: &Call, pairs: &[(Bytes, Bytes)], ttls: &[u64]) -> Result<WriteSet, RawError> {
        self.keys.api(call.api)?;
        if ttls.len() > 1 && ttls.len() != pairs.len() {
            return Err(RawError::TtlCount { ttls: ttls.len(), pairs: pairs.len() });
        }
        let region = self.storage.region(&call.ctx)?;
        let bytes = pairs.iter().map(|(k, v)| k.len() + v.len() + 24).sum();
        self.check_size(call, bytes)?;
        let mut write = WriteSet::with_capacity(bytes);
        for (i, (key, value)) in pairs.iter().enumerate() {
            self.keys.key(key)?;
            range::in_region(&region, key)?;
            let ttl = ttls.get(i).or(ttls.first()).copied().unwrap_or(0);
            write.put(Cf::Raw, key, &[value::Header::new(ttl, call.now).as_slice(), value]);
        }
        Ok(write)
    }

    /// The write that removes `keys`.
    pub fn delete(&self, call: &Call, keys: &[Bytes]) -> Result<WriteSet, RawError> {
        self.keys.api(call.api)?;
        let region = self.storage.region(&call.ctx)?;
        let bytes = keys.iter().map(|k| k.len() + 8).sum();
        self.check_size(call, bytes)?;
        let mut write = WriteSet::with_capacity(bytes);
        for key in keys {
            self.keys.key(key)?;
            range::in_region(&region, key)?;
            write.delete(Cf::Raw, key);
        }
        Ok(write)
    }

    /// The write that removes `[start, end)`; an empty `end` is no bound. The range must lie in the region: to
    /// remove only a part of it and report success would be a lie.
    pub fn delete_range(&self, call: &Call, start: &Bytes, end: &Bytes) -> Result<WriteSet, RawError> {
        self.keys.api(call.api)?;
        let end = self.keys.range(start, end.clone())?;
        let region = self.storage.region(&call.ctx)?;
        let mut write = WriteSet::with_capacity(start.len() + end.len() + 16);
        if !end.is_empty() && *start >= end {
            return Ok(write);
        }
        range::in_region(&region, start)?;
        if !region.end.is_empty() && (end.is_empty() || end > region.end) {
            return Err(range::not_in_region(&region, &end).into());
        }
        write.delete_range(Cf::Raw, start, &end);
        Ok(write)
    }

    /// Hands a write over; `done` learns the outcome. An empty write succeeds at once.
    pub fn write(&self, call: &Call, write: WriteSet, done: Callback<()>) {
        if write.is_empty() {
            return done.call(Ok(()));
        }
        self.storage.write(&call.ctx, write, done);
    }

    /// Writes while holding the latches of `keys`, for writes that must not cut into a compare-and-swap.
    pub async fn write_latched(&self, call: &Call, keys: &[Bytes], write: WriteSet) -> Result<(), RawError> {
        let guard = self.latches.acquire(keys.iter().map(|k| &k[..])).await;
        self.write_holding(call, write, guard).await
    }

    /// Sets or deletes a key if it holds what is expected.
    pub async fn compare_and_swap(&self, call: &Call, swap: Swap) -> Result<Swapped, RawError> {
        self.check_key(call, &swap.key)?;
        let write = match &swap.new {
            Some(value) => self.put(call, &[(swap.key.clone(), value.clone())], &[swap.ttl])?,
            None => self.delete(call, std::slice::from_ref(&swap.key))?,
        };
        let guard = self.latches.acquire([&swap.key[..]]).await;
        let key = swap.key.clone();
        let at = storage::snapshot(&*self.storage, &call.ctx).await?;
        let term = at.term;
        let previous = self.read_at(at, call, 1, move |r| r.get(&key)).await?;
        if previous != swap.expected {
            return Ok(Swapped { succeeded: false, previous });
        }
        // The latch keeps out only what comes through this store: once another has led, the key may hold something else.
        let ctx = RegionContext { term, ..call.ctx };
        self.write_holding(&Call { ctx, ..*call }, write, guard).await?;
        Ok(Swapped { succeeded: true, previous })
    }

    async fn write_holding(
        &self,
        call: &Call,
        write: WriteSet,
        guard: crate::txn::latches::Guard,
    ) -> Result<(), RawError> {
        let (done, outcome) = storage::callback();
        let done = Callback::new(move |result| {
            if let Err(RegionError::Undetermined(reason)) = &result {
                tracing::info!(reason, "a latched write ended without a known outcome");
            }
            drop(guard);
            done.call(result);
        });
        self.write(call, write, done);
        Ok(outcome.await?)
    }

    fn check_key(&self, call: &Call, key: &[u8]) -> Result<(), RawError> {
        self.keys.api(call.api)?;
        Ok(self.keys.key(key)?)
    }

    fn check_size(&self, call: &Call, bytes: usize) -> Result<(), RawError> {
        if bytes <= self.write_bytes_max {
            return Ok(());
        }
        Err(RegionError::RaftEntryTooLarge { region_id: call.ctx.region_id, bytes: bytes as u64 }.into())
    }

    /// Runs `f` on a snapshot: here and from memory when at most [`INLINE_READS`] keys are wanted and they are
    /// cached, else in the read pool.
    async fn read<T, F>(&self, call: &Call, keys: usize, f: F) -> Result<T, RawError>
    where
        T: Send + 'static,
        F: Fn(&Reader<'_>) -> Result<T, RawError> + Send + 'static,
    {
        let at = storage::snapshot(&*self.storage, &call.ctx).await?;
        self.read_at(at, call, keys, f).await
    }

    async fn read_at<T, F>(&self, at: RegionSnapshot, call: &Call, keys: usize, f: F) -> Result<T, RawError>
    where
        T: Send + 'static,
        F: Fn(&Reader<'_>) -> Result<T, RawError> + Send + 'static,
    {
        let now = call.now;
        if keys <= INLINE_READS {
            match f(&Reader { at: &at, now, tier: ReadTier::Cache }) {
                Err(RawError::Engine(EngineError::NotCached)) => {}
                done => return done,
            }
        }
        let (tx, rx) = oneshot::channel();
        let accepted = self.pool.offload(Box::new(move || {
            // Nobody listens when the client hung up.
            if !tx.is_canceled() {
                drop(tx.send(f(&Reader { at: &at, now, tier: ReadTier::All })));
            }
        }));
        if !accepted {
            return Err(
                RegionError::ServerIsBusy { reason: "too many reads wait for the disk".into() }.into()
            );
        }
        rx.await.unwrap_or(Err(RawError::Stopping))
    }
}
