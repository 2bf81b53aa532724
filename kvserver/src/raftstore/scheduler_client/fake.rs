//! A scheduler in memory, for tests.

use bytes::Bytes;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kvproto::{metapb, pdpb};
use parking_lot::Mutex;

use super::{Bootstrap, Error, HeartbeatStream, Result, SchedulerClient};
use crate::raftstore::bootstrap;

/// See the file's head.
#[derive(Default)]
pub struct FakeScheduler {
    pub state: Mutex<State>,
}

/// What the scheduler knows.
#[derive(Default)]
pub struct State {
    pub last_id: u64,
    pub regions: Vec<metapb::Region>,
    pub traits: Option<pdpb::ClusterTraits>,
    pub stores: Vec<metapb::Store>,
    /// Pretend that another store is faster from now on.
    pub rival: bool,
    /// Streams of heartbeats to be given out, in this order.
    pub streams: Vec<Stream>,
}

/// One stream: where reports go, and the orders it brings before it ends.
pub struct Stream {
    pub reports: mpsc::Sender<pdpb::RegionHeartbeatRequest>,
    pub orders: mpsc::Receiver<pdpb::RegionHeartbeatResponse>,
}

impl HeartbeatStream for Stream {
    fn send(&mut self, report: pdpb::RegionHeartbeatRequest) -> BoxFuture<'_, Result<()>> {
        let sent = self.reports.try_send(report).map_err(|_| Error::NotBootstrapped);
        async move { sent }.boxed()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<pdpb::RegionHeartbeatResponse>>> {
        async move { Ok(self.orders.next().await) }.boxed()
    }
}

impl SchedulerClient for FakeScheduler {
    fn cluster_id(&self) -> u64 {
        77
    }

    fn is_bootstrapped(&self) -> BoxFuture<'_, Result<bool>> {
        async move { Ok(!self.state.lock().regions.is_empty()) }.boxed()
    }

    fn bootstrap(
        &self,
        store: metapb::Store,
        regions: Vec<metapb::Region>,
        traits: pdpb::ClusterTraits,
    ) -> BoxFuture<'_, Result<Bootstrap>> {
        let mut state = self.state.lock();
        if state.rival {
            state.regions = vec![bootstrap::first_region(900, 901, 902)];
        }
        let result = if state.regions.is_empty() {
            (state.regions, state.traits) = (regions, Some(traits));
            state.stores.push(store);
            Bootstrap::Created
        } else {
            Bootstrap::Exists
        };
        async move { Ok(result) }.boxed()
    }

    fn timestamp(&self) -> BoxFuture<'_, Result<u64>> {
        let mut state = self.state.lock();
        state.last_id += 1;
        let ts = state.last_id;
        async move { Ok(ts) }.boxed()
    }

    fn alloc_id(&self, count: u32) -> BoxFuture<'_, Result<u64>> {
        let mut state = self.state.lock();
        let first = state.last_id + 1;
        state.last_id += u64::from(count);
        async move { Ok(first) }.boxed()
    }

    fn traits(&self) -> BoxFuture<'_, Result<Option<pdpb::ClusterTraits>>> {
        async move { Ok(self.state.lock().traits) }.boxed()
    }

    fn put_store(&self, store: metapb::Store, _: pdpb::ClusterTraits) -> BoxFuture<'_, Result<()>> {
        self.state.lock().stores.push(store);
        async move { Ok(()) }.boxed()
    }

    fn store(&self, store_id: u64) -> BoxFuture<'_, Result<metapb::Store>> {
        let found = self.state.lock().stores.iter().find(|s| s.id == store_id).cloned();
        async move { found.ok_or(Error::StoreNotFound(store_id)) }.boxed()
    }

    fn region(&self, region_id: u64) -> BoxFuture<'_, Result<Option<metapb::Region>>> {
        async move { Ok(self.state.lock().regions.iter().find(|r| r.id == region_id).cloned()) }.boxed()
    }

    fn leader_of(&self, _: Bytes) -> BoxFuture<'_, Result<Option<u64>>> {
        async move { Ok(None) }.boxed()
    }

    fn ask_split(&self, region: metapb::Region, count: u32) -> BoxFuture<'_, Result<Vec<pdpb::SplitId>>> {
        let mut state = self.state.lock();
        let mut id = || {
            state.last_id += 1;
            state.last_id
        };
        let mut ids = Vec::new();
        for _ in 0..count {
            let (new_region_id, new_peer_ids) = (id(), region.peers.iter().map(|_| id()).collect());
            ids.push(pdpb::SplitId { new_region_id, new_peer_ids });
        }
        async move { Ok(ids) }.boxed()
    }

    fn report_split(&self, regions: Vec<metapb::Region>) -> BoxFuture<'_, Result<()>> {
        self.state.lock().regions.extend(regions);
        async move { Ok(()) }.boxed()
    }

    fn store_heartbeat(&self, _: pdpb::StoreStats) -> BoxFuture<'_, Result<()>> {
        async move { Ok(()) }.boxed()
    }

    fn heartbeats(&self) -> BoxFuture<'_, Result<Box<dyn HeartbeatStream>>> {
        let mut state = self.state.lock();
        let stream = if state.streams.is_empty() { None } else { Some(state.streams.remove(0)) };
        async move {
            match stream {
                Some(stream) => Ok(Box::new(stream) as Box<dyn HeartbeatStream>),
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}
