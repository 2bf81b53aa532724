//! Storage over replicated regions: reads from the published views, writes through the raftstore.
//!
//! `region_reader` serves reads without a hand-off, `leader_wait` holds requests through an election, `transport`,
//! `raft_client` and `resolver` carry messages to other stores, `raft_server` takes theirs, `snap_runner` moves
//! snapshots. `raft_store` puts all of it together, from opening the directory to the graceful stop.

use std::sync::Arc;

use kvproto::kvrpcpb::ApiVersion;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{RegionContext, RegionSnapshot, Storage};
use crate::error::RegionResult;
use crate::raftstore::message::input::SplitRequest;
use crate::raftstore::message::{Callback, Propose, ReadRequest, WriteSet};
use crate::raftstore::meta::region_view::RegionMeta;
use crate::raftstore::router::Router;

pub mod counters;
mod leader_wait;
pub mod raft_client;
mod raft_server;
mod raft_store;
pub mod region_reader;
mod resolver;
mod snap_runner;
mod space;
mod store_figures;
mod transport;

use leader_wait::{LeaderWait, Request};
pub use raft_store::RaftStore;
use region_reader::RegionReader;
use space::Space;
pub use transport::LostStores;

/// Reads and writes of the regions of one store.
pub struct RaftStorage {
    api: ApiVersion,
    reader: Arc<RegionReader>,
    wait: Arc<LeaderWait>,
    space: Space,
}

impl RaftStorage {
    /// Starts to serve; the task holds requests that wait for a leader, until `stopping`.
    fn start(
        api: ApiVersion,
        reader: RegionReader,
        space: Space,
        router: Router,
        stopping: CancellationToken,
    ) -> (Arc<RaftStorage>, JoinHandle<()>) {
        let reader = Arc::new(reader);
        let (wait, waiting) = LeaderWait::start(reader.clone(), router, stopping);
        (Arc::new(RaftStorage { api, reader, wait, space }), waiting)
    }

    /// Divides a region. Without a leader the wish waits for one, like a write.
    pub fn split(&self, request: SplitRequest) {
        self.wait.submit(Request::Split(request));
    }
}

impl Storage for RaftStorage {
    fn api(&self) -> ApiVersion {
        self.api
    }

    fn region(&self, ctx: &RegionContext) -> RegionResult<Arc<RegionMeta>> {
        self.reader.region(ctx)
    }

    fn lease_snapshot(&self, ctx: &RegionContext) -> RegionResult<Option<RegionSnapshot>> {
        self.reader.lease_snapshot(ctx)
    }

    fn confirm(&self, ctx: &RegionContext, done: Callback<()>) {
        self.wait.submit(Request::Read(ReadRequest { ctx: *ctx, done }));
    }

    fn confirmed_snapshot(&self, ctx: &RegionContext) -> RegionResult<RegionSnapshot> {
        self.reader.confirmed_snapshot(ctx)
    }

    fn write(&self, ctx: &RegionContext, write: WriteSet, done: Callback<()>) {
        match self.space.check(&write) {
            Ok(()) => self.wait.submit(Request::Write(Propose { ctx: *ctx, write, done })),
            Err(full) => done.call(Err(full)),
        }
    }
}
