//! The store as the layers above see it: consistent snapshots of a region, and atomic writes to it.
//!
//! `standalone_storage` answers from one engine without Raft, `raft_storage` through the raftstore. Both check
//! the request's region context and answer with region errors that carry the truth they have.

use std::sync::Arc;

use kvproto::kvrpcpb::ApiVersion;

use crate::engine::Snapshot;
use crate::error::RegionResult;
pub use crate::raftstore::message::RegionContext;
use crate::raftstore::message::{Callback, WriteSet};
use crate::raftstore::meta::region_view::RegionMeta;

pub mod raft_storage;
pub mod standalone_storage;
pub mod store;

/// A region's data at one instant, at which this store was its leader.
#[derive(Clone)]
pub struct RegionSnapshot {
    pub snapshot: Arc<dyn Snapshot>,
    pub region: Arc<RegionMeta>,
    /// The term in which it led; 0 without terms. A write that depends on what was read here is good in this term only:
    /// another leader may have written before a later one.
    pub term: u64,
}

/// Reads and writes of regions.
pub trait Storage: Send + Sync + 'static {
    /// The form of keys this cluster was bootstrapped with.
    fn api(&self) -> ApiVersion;

    /// The region a write is meant for, after the checks of `ctx` that need no quorum: store, region, peer,
    /// leadership, term and version. What it answers is checked again when the write is proposed.
    fn region(&self, ctx: &RegionContext) -> RegionResult<Arc<RegionMeta>>;

    /// A snapshot under the leader's lease. `None` when the lease is in doubt: ask [`Storage::confirm`] first.
    /// Takes no lock and does not wait.
    fn lease_snapshot(&self, ctx: &RegionContext) -> RegionResult<Option<RegionSnapshot>>;

    /// Confirms with a quorum that this store leads and has applied everything that was committed when it was
    /// asked. After `done` said so, [`Storage::confirmed_snapshot`] is linearizable.
    fn confirm(&self, ctx: &RegionContext, done: Callback<()>);

    /// A snapshot for a request whose leadership was just confirmed; the context is checked again.
    fn confirmed_snapshot(&self, ctx: &RegionContext) -> RegionResult<RegionSnapshot>;

    /// Applies `write` atomically; `done` is called once it is visible here, or it failed, or nobody can know.
    /// The epoch of `ctx` is checked when the write is proposed and again when it is applied.
    fn write(&self, ctx: &RegionContext, write: WriteSet, done: Callback<()>);
}

/// A snapshot for a read: under the lease when it is alive, else after a confirmation.
pub async fn snapshot(storage: &dyn Storage, ctx: &RegionContext) -> RegionResult<RegionSnapshot> {
    if let Some(snapshot) = storage.lease_snapshot(ctx)? {
        return Ok(snapshot);
    }
    let (done, confirmed) = callback();
    storage.confirm(ctx, done);
    confirmed.await?;
    storage.confirmed_snapshot(ctx)
}

/// A callback and the future that its result arrives in.
pub fn callback<T: Send + 'static>() -> (Callback<T>, impl Future<Output = RegionResult<T>> + Send) {
    let (tx, rx) = tokio::sync::oneshot::channel();
    // The receiver may be gone when a client hung up; then nobody is left to tell.
    let done = Callback::new(move |result| drop(tx.send(result)));
    let gone = || crate::error::RegionError::Undetermined("the store is stopping".into());
    (done, async move { rx.await.unwrap_or_else(|_| Err(gone())) })
}
