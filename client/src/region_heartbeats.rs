//! The stream on which a store reports its regions to the scheduler and receives operator steps.
//!
//! Owns nothing but the two halves of the stream: when it breaks, the store opens a new one and reports again.

use kvproto::pdpb::{RegionHeartbeatRequest, RegionHeartbeatResponse, RequestHeader};
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::error::{Error, Result};
use crate::leader_watch::LeaderWatch;
use crate::scheduler_conn::{Attempt, classify};

/// Region heartbeats that wait for the stream; the sender waits when they are full.
pub(crate) const HEARTBEAT_QUEUE: usize = 256;

/// An open stream of region heartbeats and the operator steps that come back.
pub struct RegionHeartbeats {
    pub(crate) sender: RegionHeartbeatSender,
    pub(crate) receiver: Streaming<RegionHeartbeatResponse>,
}

/// The sending half; cheap to clone.
#[derive(Clone)]
pub struct RegionHeartbeatSender {
    pub(crate) header: RequestHeader,
    pub(crate) queue: mpsc::Sender<RegionHeartbeatRequest>,
    pub(crate) leader: LeaderWatch,
}

impl RegionHeartbeats {
    /// Reports a region; waits while too many reports are on their way. Fails when the stream is broken or another
    /// scheduler leads.
    pub async fn send(&self, heartbeat: RegionHeartbeatRequest) -> Result<()> {
        self.sender.send(heartbeat).await
    }

    /// The next operator step; `None` when the scheduler closed the stream. Fails when it broke or another scheduler
    /// leads. Safe to use in `select!`.
    pub async fn recv(&mut self) -> Result<Option<RegionHeartbeatResponse>> {
        tokio::select! {
            biased;
            message = self.receiver.message() => message.map_err(|status| match classify(status) {
                Attempt::Again(error) | Attempt::Final(error) => error,
            }),
            () = self.sender.leader.changed() => Err(other_leader()),
        }
    }

    /// A handle that only sends.
    pub fn sender(&self) -> RegionHeartbeatSender {
        self.sender.clone()
    }
}

impl RegionHeartbeatSender {
    /// Reports a region; waits while too many reports are on their way. Fails when the stream is broken or another
    /// scheduler leads.
    pub async fn send(&self, mut heartbeat: RegionHeartbeatRequest) -> Result<()> {
        heartbeat.header = Some(self.header.clone());
        let mut leader = self.leader.clone();
        tokio::select! {
            biased;
            sent = self.queue.send(heartbeat) => sent.map_err(|_| Error::SchedulerUnavailable {
                endpoints: "the leader".to_string(),
                cause: "the heartbeat stream is closed".to_string(),
            }),
            () = leader.changed() => Err(other_leader()),
        }
    }
}

fn other_leader() -> Error {
    let cause = "another scheduler leads".to_string();
    Error::SchedulerUnavailable { endpoints: "the former leader".to_string(), cause }
}
