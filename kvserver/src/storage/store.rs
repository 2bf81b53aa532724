//! A running store as the server sees it, whatever keeps its data: what to serve from, whom to tell about
//! messages of other stores, whether it is ready, and how to stop it.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kvproto::metapb;
use kvproto::raft_serverpb::{RaftMessage, SnapshotChunk};
use tonic::Status;

use super::{RegionContext, Storage};
use crate::engine::EngineStats;
use crate::error::RegionResult;
use crate::raftstore::meta::region_view::ViewRegistry;
use crate::raftstore::meta::values::RegionStatus;

/// Metadata of streams between stores: the sender's cluster. Region and peer ids of two clusters are alike, so that a
/// store that was reached under an address of another cluster must not take what was meant for its neighbour.
pub const CLUSTER_ID_KEY: &str = "kvasir-cluster-id";

/// Where messages of other stores go in.
pub trait RaftIngress: Send + Sync + 'static {
    /// Takes one message. Does not wait; a message for which there is no room is dropped, as on any network.
    fn message(&self, message: RaftMessage);

    /// Takes a snapshot that another store sends; ends when it is stored and verified.
    fn snapshot(
        &self,
        chunks: BoxStream<'static, Result<SnapshotChunk, Status>>,
    ) -> BoxFuture<'static, Result<(), Status>>;
}

/// A store that runs.
pub trait Store: Send + Sync + 'static {
    /// Reads and writes of its regions.
    fn storage(&self) -> Arc<dyn Storage>;

    /// The way in for messages of other stores; `None` for a store that stands alone.
    fn ingress(&self) -> Option<Arc<dyn RaftIngress>>;

    /// The regions that have a peer here.
    fn views(&self) -> Arc<ViewRegistry>;

    /// What the region's peer looks like inside; `None` when it has no Raft peer here.
    fn inspect(&self, region_id: u64) -> BoxFuture<'_, Option<Arc<RegionStatus>>>;

    /// Divides a region before each of `keys`, and answers with what stands in its place, in key order. `None` for a
    /// store that divides no regions.
    fn split(
        &self,
        ctx: &RegionContext,
        keys: Vec<Bytes>,
    ) -> Option<BoxFuture<'static, RegionResult<Vec<metapb::Region>>>>;

    /// Where other stores reach the one that leads the region with the first key; `None` while that is not known.
    fn first_leader(&self) -> BoxFuture<'_, Option<String>>;

    fn cluster_id(&self) -> u64;

    fn store_id(&self) -> u64;

    /// Figures of the data engine.
    fn engine_stats(&self) -> EngineStats;

    /// True while the engine makes writers wait.
    fn stalled(&self) -> bool;

    /// Why the store should get no requests yet; empty when it should.
    fn not_ready(&self) -> Vec<String>;

    /// Hands leadership to other stores, as far as that goes in reasonable time.
    fn leave(&self) -> BoxFuture<'_, ()>;

    /// Stops everything and flushes. Blocks; called once, after the last request.
    fn close(&self) -> Result<(), String>;
}
