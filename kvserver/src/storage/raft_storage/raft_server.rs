//! What other stores send to this one: checked, counted, handed to the core.

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kvproto::raft_serverpb::{RaftMessage, SnapshotChunk};
use tonic::Status;

use super::snap_runner::SnapRunner;
use super::transport::Network;
use crate::raftstore::message::{Input, PeerMessage};
use crate::storage::store::RaftIngress;

/// See the file's head.
pub struct RaftServer {
    network: Network,
    snapshots: SnapRunner,
}

impl RaftServer {
    /// Hands snapshots to `snapshots`.
    pub fn new(network: Network, snapshots: SnapRunner) -> RaftServer {
        RaftServer { network, snapshots }
    }
}

impl RaftIngress for RaftServer {
    fn message(&self, message: RaftMessage) {
        self.network.counters.received.inc();
        let region_id = message.region_id;
        let message = match PeerMessage::from_wire(message) {
            // Without its files a snapshot is of no use.
            Ok(message) if message.is_snapshot() => {
                tracing::debug!(region = region_id, "a snapshot came without its files");
                return self.network.counters.drop_messages("malformed", 1);
            }
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(region = region_id, %error, "message refused");
                return self.network.counters.drop_messages("malformed", 1);
            }
        };
        if self.network.router.send(Input::Raft(message)).is_err() {
            self.network.counters.drop_messages("overloaded", 1);
        }
    }

    fn snapshot(
        &self,
        chunks: BoxStream<'static, Result<SnapshotChunk, Status>>,
    ) -> BoxFuture<'static, Result<(), Status>> {
        self.snapshots.receive(chunks).boxed()
    }
}
