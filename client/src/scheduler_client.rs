//! The scheduler's operations as methods, each with a deadline.
//!
//! A call that meets a dead or deposed leader asks all known members for the new one and tries again with bounded
//! backoff until its deadline. Every request but GetMembers carries the cluster id, so that a client never talks to
//! another cluster.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvproto::keyspacepb::keyspace_client::KeyspaceClient;
use kvproto::keyspacepb::{KeyspaceMeta, LoadKeyspaceRequest};
use kvproto::memberpb::TransferLeaderRequest;
use kvproto::memberpb::members_client::MembersClient;
use kvproto::metapb;
use kvproto::pdpb::pd_client::PdClient;
use kvproto::pdpb::*;
use kvproto::ts::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::{Error, Result};
use crate::region_heartbeats::{HEARTBEAT_QUEUE, RegionHeartbeatSender, RegionHeartbeats};
use crate::scheduler_conn::{Attempt, Inner, classify};
use crate::tso_batcher;

/// Times of a scheduler connection.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerOptions {
    /// Deadline of every call, retries included.
    pub timeout: Duration,
    /// Longest wait for one answer before another member is asked.
    pub attempt_timeout: Duration,
    /// Longest wait for a TCP connection.
    pub connect_timeout: Duration,
}

impl Default for SchedulerOptions {
    fn default() -> SchedulerOptions {
        SchedulerOptions {
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_millis(1500),
            connect_timeout: Duration::from_secs(1),
        }
    }
}

/// A region and what the scheduler knows about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegionInfo {
    /// Range (in boundary form), epoch and peers.
    pub region: metapb::Region,
    /// The last known leader.
    pub leader: Option<metapb::Peer>,
    /// Peers that the leader does not hear.
    pub down_peers: Vec<PeerStats>,
    /// Peers that still catch up.
    pub pending_peers: Vec<metapb::Peer>,
}

/// What a cluster is configured to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterConfig {
    /// Cluster number and replica count.
    pub cluster: metapb::Cluster,
    /// What is equal on every store; absent when the scheduler does not tell.
    pub traits: Option<ClusterTraits>,
}

/// A connection to the scheduler. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct SchedulerClient {
    pub(crate) inner: Arc<Inner>,
    pub(crate) timeout: Duration,
}

impl SchedulerClient {
    /// Connects to the cluster whose schedulers listen at `endpoints` (`host:port` or `http://host:port`; one
    /// is enough to find the others) with default times.
    pub async fn connect(endpoints: &[String]) -> Result<SchedulerClient> {
        SchedulerClient::connect_with(endpoints, SchedulerOptions::default()).await
    }

    /// Like [`connect`](Self::connect). Tries until `options.timeout` while no leader answers.
    pub async fn connect_with(endpoints: &[String], options: SchedulerOptions) -> Result<SchedulerClient> {
        let inner = Arc::new(Inner::connect(endpoints, options).await?);
        Ok(SchedulerClient { inner, timeout: options.timeout })
    }

    /// The same connection with another deadline for each call.
    pub fn with_timeout(&self, timeout: Duration) -> SchedulerClient {
        let mut client = self.clone();
        client.timeout = timeout;
        client
    }

    /// Number of the cluster, equal for all its members and never zero.
    pub fn cluster_id(&self) -> u64 {
        self.inner.cluster_id()
    }

    /// Address of the member that leads, as last seen.
    pub fn leader_url(&self) -> String {
        self.inner.leader_url()
    }

    /// The schedulers of the cluster and which of them leads.
    pub async fn get_members(&self) -> Result<GetMembersResponse> {
        self.inner
            .call(self.timeout, |mut pd, _| async move { pd.get_members(GetMembersRequest::default()).await })
            .await
    }

    /// Asks the leader to let the scheduler with this name lead, or any other than `from`. Succeeds when the leader has
    /// stepped back; the next one may need a moment. Nothing is done when the wished one leads, or `from` does not.
    pub async fn transfer_leader(&self, name: Option<&str>, from: Option<&str>) -> Result<()> {
        self.inner
            .call_channel(self.timeout, |channel, header| {
                let text = |name: Option<&str>| name.unwrap_or_default().to_string();
                let (name, from) = (text(name), text(from));
                let request = TransferLeaderRequest { header: Some(header), name, from };
                async move { MembersClient::new(channel).transfer_leader(request).await }
            })
            .await
            .map(|_| ())
    }

    /// Whether a first store has joined.
    pub async fn is_bootstrapped(&self) -> Result<bool> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                pd.is_bootstrapped(IsBootstrappedRequest { header: Some(header) }).await
            })
            .await?;
        Ok(reply.bootstrapped)
    }

    /// Starts the cluster with its first store and regions, which tile the key space. Fails with kind
    /// `AlreadyBootstrapped` when another store was first, and also when an earlier attempt of this call succeeded
    /// but its answer was lost: ask for the regions then.
    pub async fn bootstrap(
        &self,
        store: metapb::Store,
        regions: Vec<metapb::Region>,
        traits: ClusterTraits,
    ) -> Result<()> {
        let mut regions = regions.into_iter();
        let request = BootstrapRequest {
            header: None,
            store: Some(store),
            region: regions.next(),
            traits: Some(traits),
            more_regions: regions.collect(),
        };
        self.inner
            .call(self.timeout, |mut pd, header| {
                let request = BootstrapRequest { header: Some(header), ..request.clone() };
                async move { pd.bootstrap(request).await }
            })
            .await
            .map(|_| ())
    }

    /// Reserves `count` ids that were never handed out and returns the first of them.
    pub async fn alloc_id(&self, count: u32) -> Result<u64> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                pd.alloc_id(AllocIdRequest { header: Some(header), count }).await
            })
            .await?;
        // The field's protocol names the last id of a batch.
        let first = reply.id.checked_sub(u64::from(count.max(1)) - 1);
        first.filter(|id| *id > 0).ok_or_else(|| Error::Protocol(format!("id {} for {count} ids", reply.id)))
    }

    /// Registers a store or changes its addresses and labels.
    pub async fn put_store(&self, store: metapb::Store, traits: ClusterTraits) -> Result<()> {
        let request = PutStoreRequest { header: None, store: Some(store), traits: Some(traits) };
        self.inner
            .call(self.timeout, |mut pd, header| {
                let request = PutStoreRequest { header: Some(header), ..request.clone() };
                async move { pd.put_store(request).await }
            })
            .await
            .map(|_| ())
    }

    /// A store by number. [`Error::StoreNotFound`] when there is none.
    pub async fn get_store(&self, store_id: u64) -> Result<metapb::Store> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                pd.get_store(GetStoreRequest { header: Some(header), store_id }).await
            })
            .await;
        match reply {
            Ok(reply) => reply.store.ok_or(Error::StoreNotFound(store_id)),
            Err(Error::Scheduler { kind: ErrorType::EntryNotFound | ErrorType::Unknown, message }) => {
                tracing::debug!(store_id, message, "scheduler has no such store");
                Err(Error::StoreNotFound(store_id))
            }
            Err(error) => Err(error),
        }
    }

    /// All stores, optionally without those that left the cluster.
    pub async fn get_all_stores(&self, exclude_tombstone: bool) -> Result<Vec<metapb::Store>> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                let exclude_tombstone_stores = exclude_tombstone;
                pd.get_all_stores(GetAllStoresRequest { header: Some(header), exclude_tombstone_stores })
                    .await
            })
            .await?;
        Ok(reply.stores)
    }

    /// Reports how a store is doing.
    pub async fn store_heartbeat(&self, stats: StoreStats) -> Result<StoreHeartbeatResponse> {
        self.inner
            .call(self.timeout, |mut pd, header| {
                let request = StoreHeartbeatRequest { header: Some(header), stats: Some(stats.clone()) };
                async move { pd.store_heartbeat(request).await }
            })
            .await
    }

    /// The region that holds `key` (boundary form), or `None` when none is known.
    pub async fn get_region(&self, key: Bytes) -> Result<Option<RegionInfo>> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| {
                let request =
                    GetRegionRequest { header: Some(header), region_key: key.clone(), need_buckets: false };
                async move { pd.get_region(request).await }
            })
            .await;
        region_info(reply)
    }

    /// The region right before the one that holds `key` (boundary form).
    pub async fn get_prev_region(&self, key: Bytes) -> Result<Option<RegionInfo>> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| {
                let request =
                    GetRegionRequest { header: Some(header), region_key: key.clone(), need_buckets: false };
                async move { pd.get_prev_region(request).await }
            })
            .await;
        region_info(reply)
    }

    /// A region by number, or `None` when none is known.
    pub async fn get_region_by_id(&self, region_id: u64) -> Result<Option<RegionInfo>> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                let request = GetRegionByIdRequest { header: Some(header), region_id, need_buckets: false };
                pd.get_region_by_id(request).await
            })
            .await;
        region_info(reply)
    }

    /// Up to `limit` regions in key order that touch `[start, end)` (boundary form; an empty end has no bound, a
    /// limit of 0 neither).
    pub async fn scan_regions(&self, start: Bytes, end: Bytes, limit: u32) -> Result<Vec<RegionInfo>> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| {
                let (start_key, end_key) = (start.clone(), end.clone());
                let request = ScanRegionsRequest { header: Some(header), start_key, limit, end_key };
                async move { pd.scan_regions(request).await }
            })
            .await?;
        let info = |r: Region| {
            let region = r.region?;
            let (down_peers, pending_peers) = (r.down_peers, r.pending_peers);
            Some(RegionInfo { region, leader: known(r.leader), down_peers, pending_peers })
        };
        Ok(reply.regions.into_iter().filter_map(info).collect())
    }

    /// What the cluster is configured to; `traits.api_version` is the API of its raw data.
    pub async fn get_cluster_config(&self) -> Result<ClusterConfig> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                pd.get_cluster_config(GetClusterConfigRequest { header: Some(header) }).await
            })
            .await?;
        Ok(ClusterConfig { cluster: reply.cluster.unwrap_or_default(), traits: reply.traits })
    }

    /// A keyspace by name.
    pub async fn load_keyspace(&self, name: &str) -> Result<KeyspaceMeta> {
        let reply = self
            .inner
            .call_channel(self.timeout, |channel, header| {
                let request = LoadKeyspaceRequest { header: Some(header), name: name.to_string() };
                async move { KeyspaceClient::new(channel).load_keyspace(request).await }
            })
            .await;
        match reply {
            Ok(reply) => reply.keyspace.ok_or_else(|| Error::KeyspaceNotFound(name.to_string())),
            Err(Error::Scheduler { kind: ErrorType::EntryNotFound, .. }) => {
                Err(Error::KeyspaceNotFound(name.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// Reserves `count` consecutive timestamps and returns the **last**; the caller owns `last - count + 1 ..=
    /// last`. Concurrent calls share one request.
    pub async fn get_timestamp(&self, count: u32) -> Result<Timestamp> {
        if count == 0 || count > tso_batcher::MAX_COUNT {
            let most = tso_batcher::MAX_COUNT;
            return Err(Error::InvalidArgument(format!("{count} timestamps; ask for 1 to {most}")));
        }
        self.inner
            .retry(self.timeout, |leader| async move {
                drop(leader);
                tso_batcher::request(&self.inner.tso(), count).await.map_err(Attempt::Again)
            })
            .await
    }

    /// Opens a stream of region heartbeats. The caller opens a new one when it breaks, and then reports all
    /// regions again.
    pub async fn region_heartbeats(&self) -> Result<RegionHeartbeats> {
        self.inner
            .retry(self.timeout, |leader| async move {
                let watch = self.inner.watch_leader(leader.generation);
                let (sender, queue) = mpsc::channel(HEARTBEAT_QUEUE);
                let mut pd = PdClient::new(leader.channel.clone());
                let reply = pd.region_heartbeat(ReceiverStream::new(queue)).await.map_err(classify)?;
                let sender =
                    RegionHeartbeatSender { header: self.inner.header(), queue: sender, leader: watch };
                Ok(RegionHeartbeats { sender, receiver: reply.into_inner() })
            })
            .await
    }
}

/// A leader without a number is how the wire says "unknown".
fn known(leader: Option<metapb::Peer>) -> Option<metapb::Peer> {
    leader.filter(|peer| peer.id != 0)
}

fn region_info(reply: Result<GetRegionResponse>) -> Result<Option<RegionInfo>> {
    match reply {
        Ok(GetRegionResponse { region: Some(region), leader, down_peers, pending_peers, .. })
            if region.id != 0 =>
        {
            Ok(Some(RegionInfo { region, leader: known(leader), down_peers, pending_peers }))
        }
        Ok(_) | Err(Error::Scheduler { kind: ErrorType::RegionNotFound, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
