//! Region heartbeat streams: reports come in, commands go out, through one bounded queue for each store.
//!
//! A store that reports on a new stream gets its commands there. A full queue or a missing stream drops the
//! command and counts it: operators send again what heartbeats do not confirm, so nothing is lost for good.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use kvproto::pdpb::{self, RegionHeartbeatResponse};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::grpc_service::{check_cluster, unavailable};
use super::state::{ChangeError, State};
use crate::error::ClusterError;

/// How many commands may wait for one store.
pub const QUEUE_MAX: usize = 1024;

/// Where a stream's answers go.
pub type Sender = mpsc::Sender<Result<RegionHeartbeatResponse, Status>>;

struct Bound {
    stream_id: u64,
    sender: Sender,
}

#[derive(Default)]
struct Table {
    streams_opened: u64,
    by_store: BTreeMap<u64, Bound>,
}

/// See the module.
#[derive(Default)]
pub struct HeartbeatStreams {
    table: Mutex<Table>,
}

impl HeartbeatStreams {
    /// An id for a new stream.
    pub fn open(&self) -> u64 {
        let mut table = self.table.lock();
        table.streams_opened += 1;
        table.streams_opened
    }

    /// Sends the store's commands to this stream from now on.
    pub fn bind(&self, store_id: u64, stream_id: u64, sender: &Sender) {
        self.table.lock().by_store.insert(store_id, Bound { stream_id, sender: sender.clone() });
    }

    /// The stream has ended. A newer one of the same store stays.
    pub fn unbind(&self, store_id: u64, stream_id: u64) {
        let mut table = self.table.lock();
        if table.by_store.get(&store_id).is_some_and(|bound| bound.stream_id == stream_id) {
            table.by_store.remove(&store_id);
        }
    }

    /// Queues a command for a store; false when it was dropped.
    pub fn send(&self, store_id: u64, command: RegionHeartbeatResponse) -> bool {
        let table = self.table.lock();
        table.by_store.get(&store_id).is_some_and(|bound| bound.sender.try_send(Ok(command)).is_ok())
    }
}

/// One region heartbeat stream of a store.
pub struct Reporter {
    stream_id: u64,
    state: Arc<State>,
    sender: Sender,
    bound_to: Option<u64>,
}

impl Reporter {
    /// A stream whose answers go to `sender`.
    pub fn new(state: Arc<State>, sender: Sender) -> Reporter {
        Reporter { stream_id: state.streams.open(), state, sender, bound_to: None }
    }

    /// Handles reports until the stream, or the server, ends.
    pub async fn run(mut self, mut reports: Streaming<pdpb::RegionHeartbeatRequest>) {
        let stopping = self.state.stopping.clone();
        loop {
            let report = tokio::select! {
                report = reports.next() => report,
                () = stopping.cancelled() => None,
            };
            let Some(report) = report else { break };
            let outcome = match report {
                Ok(report) => self.handle(report).await,
                Err(status) => Err(status),
            };
            if let Err(status) = outcome {
                tracing::debug!(store_id = self.bound_to, %status, "region heartbeat stream ends");
                // A store that does not read its stream any more learns it from the stream's end.
                let _unread = self.sender.try_send(Err(status)).is_err();
                break;
            }
        }
        if let Some(store_id) = self.bound_to {
            self.state.streams.unbind(store_id, self.stream_id);
        }
    }

    async fn handle(&mut self, report: pdpb::RegionHeartbeatRequest) -> Result<(), Status> {
        check_cluster(self.state.cluster_id(), report.header.as_ref())?;
        let region_id = report.region.as_ref().map_or(0, |region| region.id);
        if let Some(store_id) = report.leader.as_ref().map(|leader| leader.store_id)
            && self.bound_to.is_none()
        {
            self.state.streams.bind(store_id, self.stream_id, &self.sender);
            self.bound_to = Some(store_id);
        }
        let outcome = self
            .state
            .change(|cluster, ids, now_ms| Ok(((), cluster.region_heartbeat(now_ms, report, ids)?)))
            .await;
        let result = match &outcome {
            Ok(()) => "ok",
            Err(ChangeError::Cluster(ClusterError::Stale(_))) => "stale",
            Err(_) => "refused",
        };
        self.state.metrics.region_heartbeats.with_label_values(&[result]).inc();
        match outcome {
            // A stale report is a late one: the newer one is known already.
            Ok(()) | Err(ChangeError::Cluster(ClusterError::Stale(_))) => {
                self.state.note_report();
                Ok(())
            }
            Err(ChangeError::Kv(error)) => Err(unavailable(error)),
            Err(ChangeError::Cluster(error)) => {
                let header = pdpb::ResponseHeader { error: Some(error.to_wire()), ..self.state.header() };
                let refusal =
                    pdpb::RegionHeartbeatResponse { header: Some(header), region_id, ..Default::default() };
                if self.sender.try_send(Ok(refusal)).is_err() {
                    self.state.metrics.commands_dropped.inc();
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(region_id: u64) -> RegionHeartbeatResponse {
        RegionHeartbeatResponse { region_id, ..Default::default() }
    }

    #[test]
    fn commands_follow_the_newest_stream_and_outlive_the_old_one() {
        let streams = HeartbeatStreams::default();
        assert!(!streams.send(1, command(1)));
        let (old, mut old_rx) = mpsc::channel(QUEUE_MAX);
        let (new, mut new_rx) = mpsc::channel(QUEUE_MAX);
        let (old_id, new_id) = (streams.open(), streams.open());
        streams.bind(1, old_id, &old);
        assert!(streams.send(1, command(2)));
        streams.bind(1, new_id, &new);
        streams.unbind(1, old_id);
        assert!(streams.send(1, command(3)));
        assert_eq!(old_rx.try_recv().unwrap().unwrap().region_id, 2);
        assert_eq!(new_rx.try_recv().unwrap().unwrap().region_id, 3);
        streams.unbind(1, new_id);
        assert!(!streams.send(1, command(4)));
    }

    #[test]
    fn a_full_queue_drops_instead_of_waiting() {
        let streams = HeartbeatStreams::default();
        let (sender, _rx) = mpsc::channel(1);
        streams.bind(1, streams.open(), &sender);
        assert!(streams.send(1, command(1)));
        assert!(!streams.send(1, command(2)));
    }
}
