//! The scheduler over gRPC: the client library's connection, which follows the scheduler's leader.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use kvclient::RegionHeartbeats;
use kvproto::{metapb, pdpb};

use super::{Bootstrap, Error, HeartbeatStream, Result, SchedulerClient};

impl HeartbeatStream for RegionHeartbeats {
    fn send(&mut self, report: pdpb::RegionHeartbeatRequest) -> BoxFuture<'_, Result<()>> {
        RegionHeartbeats::send(self, report).boxed()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<pdpb::RegionHeartbeatResponse>>> {
        self.recv().boxed()
    }
}

impl SchedulerClient for kvclient::SchedulerClient {
    fn cluster_id(&self) -> u64 {
        kvclient::SchedulerClient::cluster_id(self)
    }

    fn is_bootstrapped(&self) -> BoxFuture<'_, Result<bool>> {
        kvclient::SchedulerClient::is_bootstrapped(self).boxed()
    }

    fn bootstrap(
        &self,
        store: metapb::Store,
        regions: Vec<metapb::Region>,
        traits: pdpb::ClusterTraits,
    ) -> BoxFuture<'_, Result<Bootstrap>> {
        let attempt = kvclient::SchedulerClient::bootstrap(self, store, regions, traits);
        async move {
            match attempt.await {
                Ok(()) => Ok(Bootstrap::Created),
                Err(Error::Scheduler { kind: pdpb::ErrorType::AlreadyBootstrapped, .. }) => {
                    Ok(Bootstrap::Exists)
                }
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn timestamp(&self) -> BoxFuture<'_, Result<u64>> {
        async move { Ok(self.get_timestamp(1).await?.get()) }.boxed()
    }

    fn alloc_id(&self, count: u32) -> BoxFuture<'_, Result<u64>> {
        kvclient::SchedulerClient::alloc_id(self, count).boxed()
    }

    fn traits(&self) -> BoxFuture<'_, Result<Option<pdpb::ClusterTraits>>> {
        async move {
            match self.get_cluster_config().await {
                Ok(config) => Ok(config.traits),
                Err(Error::NotBootstrapped) => Ok(None),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn put_store(&self, store: metapb::Store, traits: pdpb::ClusterTraits) -> BoxFuture<'_, Result<()>> {
        kvclient::SchedulerClient::put_store(self, store, traits).boxed()
    }

    fn store(&self, store_id: u64) -> BoxFuture<'_, Result<metapb::Store>> {
        self.get_store(store_id).boxed()
    }

    fn region(&self, region_id: u64) -> BoxFuture<'_, Result<Option<metapb::Region>>> {
        self.get_region_by_id(region_id).map(|found| Ok(found?.map(|info| info.region))).boxed()
    }

    fn leader_of(&self, key: Bytes) -> BoxFuture<'_, Result<Option<u64>>> {
        let found = self.get_region(key);
        found.map(|found| Ok(found?.and_then(|info| info.leader).map(|peer| peer.store_id))).boxed()
    }

    fn ask_split(&self, region: metapb::Region, count: u32) -> BoxFuture<'_, Result<Vec<pdpb::SplitId>>> {
        self.ask_batch_split(region, count, pdpb::SplitReason::Size).boxed()
    }

    fn report_split(&self, regions: Vec<metapb::Region>) -> BoxFuture<'_, Result<()>> {
        self.report_batch_split(regions).boxed()
    }

    fn store_heartbeat(&self, stats: pdpb::StoreStats) -> BoxFuture<'_, Result<()>> {
        kvclient::SchedulerClient::store_heartbeat(self, stats).map(|reply| reply.map(drop)).boxed()
    }

    fn heartbeats(&self) -> BoxFuture<'_, Result<Box<dyn HeartbeatStream>>> {
        async move {
            let stream: Box<dyn HeartbeatStream> = Box::new(self.region_heartbeats().await?);
            Ok(stream)
        }
        .boxed()
    }
}
