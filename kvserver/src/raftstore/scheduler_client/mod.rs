//! What a store asks of the scheduler, behind a trait: `grpc` asks a real one.
//!
//! Owns the vocabulary only. Every call ends by a deadline of its own and fails with the client's typed error.

use bytes::Bytes;
use futures::future::BoxFuture;
use kvproto::{metapb, pdpb};

#[cfg(test)]
pub mod fake;
pub mod grpc;

pub use kvclient::Error;

/// The result of asking the scheduler.
pub type Result<T> = std::result::Result<T, Error>;

/// How an attempt to create the cluster ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// The cluster now has this store and these regions.
    Created,
    /// The cluster exists already: another store was first, or an earlier attempt of this one.
    Exists,
}

/// The stream on which a store reports its regions and gets orders.
pub trait HeartbeatStream: Send {
    /// Reports a region; waits while too many reports are on their way.
    fn send(&mut self, report: pdpb::RegionHeartbeatRequest) -> BoxFuture<'_, Result<()>>;

    /// The next order; `None` when the scheduler closed the stream. Nothing is lost when the future is dropped.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<pdpb::RegionHeartbeatResponse>>>;
}

/// The scheduler.
pub trait SchedulerClient: Send + Sync + 'static {
    /// The cluster's number, never zero.
    fn cluster_id(&self) -> u64;

    /// Whether a first store has joined.
    fn is_bootstrapped(&self) -> BoxFuture<'_, Result<bool>>;

    /// Creates the cluster with its first store and regions, which tile the key space.
    fn bootstrap(
        &self,
        store: metapb::Store,
        regions: Vec<metapb::Region>,
        traits: pdpb::ClusterTraits,
    ) -> BoxFuture<'_, Result<Bootstrap>>;

    /// A timestamp above every one that was handed out before.
    fn timestamp(&self) -> BoxFuture<'_, Result<u64>>;

    /// Reserves `count` ids and gives the first.
    fn alloc_id(&self, count: u32) -> BoxFuture<'_, Result<u64>>;

    /// What is equal on every store; `None` before a first store joined.
    fn traits(&self) -> BoxFuture<'_, Result<Option<pdpb::ClusterTraits>>>;

    /// Registers a store or changes its addresses and labels.
    fn put_store(&self, store: metapb::Store, traits: pdpb::ClusterTraits) -> BoxFuture<'_, Result<()>>;

    /// A store by number.
    fn store(&self, store_id: u64) -> BoxFuture<'_, Result<metapb::Store>>;

    /// A region by number; `None` when none is known.
    fn region(&self, region_id: u64) -> BoxFuture<'_, Result<Option<metapb::Region>>>;

    /// The store that leads the region with this key (boundary form), as far as the scheduler knows.
    fn leader_of(&self, key: Bytes) -> BoxFuture<'_, Result<Option<u64>>>;

    /// Ids for `count` regions that `region` is to be divided into besides itself.
    fn ask_split(&self, region: metapb::Region, count: u32) -> BoxFuture<'_, Result<Vec<pdpb::SplitId>>>;

    /// Tells of the regions that a split made, in key order.
    fn report_split(&self, regions: Vec<metapb::Region>) -> BoxFuture<'_, Result<()>>;

    /// Reports how the store is doing.
    fn store_heartbeat(&self, stats: pdpb::StoreStats) -> BoxFuture<'_, Result<()>>;

    /// Opens a stream of region heartbeats.
    fn heartbeats(&self) -> BoxFuture<'_, Result<Box<dyn HeartbeatStream>>>;
}
