//! What other stores send to this one: checked, counted, handed to the core.

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kvproto::raft_serverpb::{RaftMessage, SnapshotChunk};
use tonic::Status;

use super::counters::Counters;
use super::snap_runner::SnapRunner;
use crate::raftstore::message::{Input, PeerMessage};
use crate::raftstore::router::Router;
use crate::storage::store::RaftIngress;

/// See the file's head.
pub struct RaftServer {
    router: Router,
    snapshots: SnapRunner,
    counters: Counters,
}

impl RaftServer {
    /// Hands messages to `router` and snapshots to `snapshots`.
    pub fn new(router: Router, snapshots: SnapRunner, counters: Counters) -> RaftServer {
        RaftServer { router, snapshots, counters }
    }
}

impl RaftIngress for RaftServer {
    fn message(&self, message: RaftMessage) {
        self.counters.received.inc();
        let region_id = message.region_id;
        let message = match PeerMessage::from_wire(message) {
            // Without its files a snapshot is of no use.
            Ok(message) if message.is_snapshot() => {
                tracing::debug!(region = region_id, "a snapshot came without its files");
                return self.counters.drop_messages("malformed", 1);
            }
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(region = region_id, %error, "message refused");
                return self.counters.drop_messages("malformed", 1);
            }
        };
        if self.router.send(Input::Raft(message)).is_err() {
            self.counters.drop_messages("overloaded", 1);
        }
    }

    fn snapshot(
        &self,
        chunks: BoxStream<'static, Result<SnapshotChunk, Status>>,
    ) -> BoxFuture<'static, Result<(), Status>> {
        self.snapshots.receive(chunks).boxed()
    }
}
