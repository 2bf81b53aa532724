//! The way of commands to stores: one bounded queue for each store that has a heartbeat stream open.
//!
//! A store that reports on a new stream gets its commands there. A full queue or a missing stream drops the
//! command and counts it: operators send again what heartbeats do not confirm, so nothing is lost for good.

use std::collections::BTreeMap;

use kvproto::pdpb::RegionHeartbeatResponse;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

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
