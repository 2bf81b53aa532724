//! The connection to the scheduler: finds the leader, follows it when it moves, and gives every call a deadline.
//!
//! Owns the current leader's channel. A call that meets a dead or deposed leader asks all known members for the new
//! one (one search at a time, shared by all callers) and tries again with bounded backoff until its deadline.
//! Every request but GetMembers carries the cluster id, so that a client never talks to another cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use kvproto::keyspacepb::keyspace_client::KeyspaceClient;
use kvproto::keyspacepb::{KeyspaceMeta, LoadKeyspaceRequest};
use kvproto::pdpb::pd_client::PdClient;
use kvproto::pdpb::*;
use kvproto::ts::Timestamp;
use kvproto::{keyspacepb, metapb};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::backoff::{Backoff, Jitter};
use crate::channel;
use crate::error::{Error, Result};
use crate::leader_search::{add_members, find_leader};
use crate::region_heartbeats::{HEARTBEAT_QUEUE, RegionHeartbeatSender, RegionHeartbeats};
use crate::tso_batcher;

const RETRY: Backoff = Backoff::from_millis(20, 500);
/// After a search without a result its error answers everyone for this long.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);

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
    inner: Arc<Inner>,
    options: SchedulerOptions,
}

pub(crate) struct Inner {
    cluster_id: u64,
    connect_timeout: Duration,
    attempt_timeout: Duration,
    leader: ArcSwap<Leader>,
    search: Mutex<Search>,
    tso: OnceLock<mpsc::Sender<tso_batcher::Call>>,
}

pub(crate) struct Leader {
    /// Grows with every search that found one.
    pub(crate) generation: u64,
    pub(crate) url: String,
    pub(crate) channel: Channel,
}

/// What the search for a leader remembers.
struct Search {
    channels: BTreeMap<String, Channel>,
    failed: Option<(Instant, Error)>,
}

impl SchedulerClient {
    /// Connects to the cluster whose schedulers listen at `endpoints` (`host:port` or `http://host:port`; one
    /// is enough to find the others) with default times.
    pub async fn connect(endpoints: &[String]) -> Result<SchedulerClient> {
        SchedulerClient::connect_with(endpoints, SchedulerOptions::default()).await
    }

    /// Like [`connect`](Self::connect). Tries until `options.timeout` while no leader answers.
    pub async fn connect_with(endpoints: &[String], options: SchedulerOptions) -> Result<SchedulerClient> {
        let mut channels = BTreeMap::new();
        for endpoint in endpoints {
            let url = channel::url(endpoint)?;
            channels.insert(url, channel::lazy(endpoint, options.connect_timeout)?);
        }
        if channels.is_empty() {
            return Err(Error::InvalidArgument("no scheduler endpoint was given".to_string()));
        }
        let started = Instant::now();
        let mut jitter = Jitter::from_process();
        for attempt in 0.. {
            let left = options.timeout.saturating_sub(started.elapsed());
            let error = match find_leader(&channels, options.attempt_timeout.min(left)).await {
                Ok((cluster_id, url, members)) => {
                    let leader = add_members(&mut channels, url, members, options.connect_timeout)?;
                    let inner = Inner {
                        cluster_id,
                        connect_timeout: options.connect_timeout,
                        attempt_timeout: options.attempt_timeout,
                        leader: ArcSwap::from_pointee(leader),
                        search: Mutex::new(Search { channels, failed: None }),
                        tso: OnceLock::new(),
                    };
                    return Ok(SchedulerClient { inner: Arc::new(inner), options });
                }
                Err(error) => error,
            };
            let delay = RETRY.delay(attempt, jitter.draw());
            if !error.is_retryable() || started.elapsed() + delay >= options.timeout {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
        }
        unreachable!("the loop ends by returning")
    }

    /// The same connection with another deadline for each call.
    pub fn with_timeout(&self, timeout: Duration) -> SchedulerClient {
        let mut client = self.clone();
        client.options.timeout = timeout;
        client
    }

    /// Number of the cluster, equal for all its members and never zero.
    pub fn cluster_id(&self) -> u64 {
        self.inner.cluster_id
    }

    /// Address of the member that leads, as last seen.
    pub fn leader_url(&self) -> String {
        self.inner.leader.load().url.clone()
    }

    /// The schedulers of the cluster and which of them leads.
    pub async fn get_members(&self) -> Result<GetMembersResponse> {
        self.call(|mut pd, _| async move { pd.get_members(GetMembersRequest::default()).await }).await
    }

    /// Whether a first store has joined.
    pub async fn is_bootstrapped(&self) -> Result<bool> {
        let reply = self
            .call(|mut pd, header| async move {
                pd.is_bootstrapped(IsBootstrappedRequest { header: Some(header) }).await
            })
            .await?;
        Ok(reply.bootstrapped)
    }

    /// Starts the cluster with its first store and region. Fails with kind `AlreadyBootstrapped` when another
    /// store was first, and also when an earlier attempt of this call succeeded but its answer was lost: ask for the
    /// region then.
    pub async fn bootstrap(
        &self,
        store: metapb::Store,
        region: metapb::Region,
        traits: ClusterTraits,
    ) -> Result<()> {
        let request =
            BootstrapRequest { header: None, store: Some(store), region: Some(region), traits: Some(traits) };
        self.call(|mut pd, header| {
            let request = BootstrapRequest { header: Some(header), ..request.clone() };
            async move { pd.bootstrap(request).await }
        })
        .await
        .map(|_| ())
    }

    /// Reserves `count` ids that were never handed out and returns the first of them.
    pub async fn alloc_id(&self, count: u32) -> Result<u64> {
        let reply = self
            .call(|mut pd, header| async move {
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
        self.call(|mut pd, header| {
            let request = PutStoreRequest { header: Some(header), ..request.clone() };
            async move { pd.put_store(request).await }
        })
        .await
        .map(|_| ())
    }

    /// A store by number. [`Error::StoreNotFound`] when there is none.
    pub async fn get_store(&self, store_id: u64) -> Result<metapb::Store> {
        let reply = self
            .call(|mut pd, header| async move {
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
            .call(|mut pd, header| async move {
                let exclude_tombstone_stores = exclude_tombstone;
                pd.get_all_stores(GetAllStoresRequest { header: Some(header), exclude_tombstone_stores })
                    .await
            })
            .await?;
        Ok(reply.stores)
    }

    /// Reports how a store is doing.
    pub async fn store_heartbeat(&self, stats: StoreStats) -> Result<StoreHeartbeatResponse> {
        self.call(|mut pd, header| {
            let request = StoreHeartbeatRequest { header: Some(header), stats: Some(stats.clone()) };
            async move { pd.store_heartbeat(request).await }
        })
        .await
    }

    /// The region that holds `key` (boundary form), or `None` when none is known.
    pub async fn get_region(&self, key: Bytes) -> Result<Option<RegionInfo>> {
        let reply = self
            .call(|mut pd, header| {
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
            .call(|mut pd, header| {
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
            .call(|mut pd, header| async move {
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
            .call(|mut pd, header| {
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
            .call(|mut pd, header| async move {
                pd.get_cluster_config(GetClusterConfigRequest { header: Some(header) }).await
            })
            .await?;
        Ok(ClusterConfig { cluster: reply.cluster.unwrap_or_default(), traits: reply.traits })
    }

    /// A keyspace by name.
    pub async fn load_keyspace(&self, name: &str) -> Result<KeyspaceMeta> {
        let reply = self
            .call_channel(|channel, header| {
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
        let inbox = self.inner.tso.get_or_init(|| tso_batcher::spawn(Arc::downgrade(&self.inner)));
        self.retry(|leader| async move {
            drop(leader);
            tso_batcher::request(inbox, count).await.map_err(Attempt::Again)
        })
        .await
    }

    /// Opens a stream of region heartbeats. The caller opens a new one when it breaks, and then reports all
    /// regions again.
    pub async fn region_heartbeats(&self) -> Result<RegionHeartbeats> {
        self.retry(|leader| async move {
            let (sender, queue) = mpsc::channel(HEARTBEAT_QUEUE);
            let mut pd = PdClient::new(leader.channel.clone());
            let reply = pd.region_heartbeat(ReceiverStream::new(queue)).await.map_err(classify)?;
            let sender = RegionHeartbeatSender { header: self.inner.header(), queue: sender };
            Ok(RegionHeartbeats { sender, receiver: reply.into_inner() })
        })
        .await
    }

    async fn call<T, F, Fut>(&self, request: F) -> Result<T>
    where
        T: Reply,
        F: Fn(PdClient<Channel>, RequestHeader) -> Fut,
        Fut: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        self.call_channel(|channel, header| request(PdClient::new(channel), header)).await
    }

    async fn call_channel<T, F, Fut>(&self, request: F) -> Result<T>
    where
        T: Reply,
        F: Fn(Channel, RequestHeader) -> Fut,
        Fut: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let header = self.inner.header();
        self.retry(|leader| {
            let reply = request(leader.channel.clone(), header.clone());
            async move {
                let reply = reply.await.map_err(classify)?.into_inner();
                match reply.error() {
                    None => Ok(reply),
                    Some(error) => Err(Attempt::Final(header_error(error))),
                }
            }
        })
        .await
    }

    /// Runs `attempt` against the leader, and again after looking for a new one while it fails in a way that a
    /// new leader may cure.
    async fn retry<T, F, Fut>(&self, attempt: F) -> Result<T>
    where
        F: Fn(Arc<Leader>) -> Fut,
        Fut: Future<Output = std::result::Result<T, Attempt>>,
    {
        let started = Instant::now();
        let mut jitter = None;
        let mut last = None;
        for number in 0.. {
            let left = self.options.timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            let leader = self.inner.leader.load_full();
            let generation = leader.generation;
            match tokio::time::timeout(left.min(self.options.attempt_timeout), attempt(leader)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Attempt::Final(error))) => return Err(error),
                Ok(Err(Attempt::Again(error))) => last = Some(Box::new(error)),
                Err(_) => {
                    let cause = format!("{} does not answer", self.leader_url());
                    last = Some(Box::new(self.inner.unavailable(cause)));
                }
            }
            let left = self.options.timeout.saturating_sub(started.elapsed());
            match tokio::time::timeout(left, self.inner.search_leader(generation)).await {
                // A new leader is asked at once, the first time.
                Ok(Ok(found)) if found != generation && number == 0 => continue,
                Ok(Err(error)) if !error.is_retryable() => return Err(error),
                Ok(Err(error)) => last = Some(Box::new(error)),
                Ok(Ok(_)) | Err(_) => {}
            }
            let jitter = jitter.get_or_insert_with(Jitter::from_process);
            let left = self.options.timeout.saturating_sub(started.elapsed());
            tokio::time::sleep(RETRY.delay(number, jitter.draw()).min(left)).await;
        }
        Err(Error::Timeout { after: started.elapsed(), last })
    }
}

impl Inner {
    pub(crate) fn header(&self) -> RequestHeader {
        RequestHeader { cluster_id: self.cluster_id, ..RequestHeader::default() }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.leader.load().channel.clone()
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.attempt_timeout
    }

    fn unavailable(&self, cause: String) -> Error {
        Error::SchedulerUnavailable { endpoints: self.leader.load().url.clone(), cause }
    }

    /// Finds the leader unless another caller did since `seen`; returns the current generation.
    async fn search_leader(&self, seen: u64) -> Result<u64> {
        let mut search = self.search.lock().await;
        let current = self.leader.load_full();
        if current.generation != seen {
            return Ok(current.generation);
        }
        if let Some((at, error)) = &search.failed
            && at.elapsed() < SEARCH_PAUSE
        {
            return Err(error.clone());
        }
        let found = match find_leader(&search.channels, self.attempt_timeout).await {
            Ok((id, ..)) if id != self.cluster_id => Err(Error::ClusterMismatch(format!(
                "cluster id is {id}, was {} when this client connected",
                self.cluster_id
            ))),
            other => other,
        };
        match found {
            Ok((_, url, members)) => {
                search.failed = None;
                let mut leader = add_members(&mut search.channels, url, members, self.connect_timeout)?;
                if leader.url != current.url {
                    tracing::info!(from = current.url, to = leader.url, "scheduler leader changed");
                    leader.generation = seen + 1;
                    self.leader.store(Arc::new(leader));
                    return Ok(seen + 1);
                }
                Ok(seen)
            }
            Err(error) => {
                search.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

/// How an attempt failed.
pub(crate) enum Attempt {
    /// Perhaps cured by another leader or by waiting.
    Again(Error),
    /// Not cured by trying again.
    Final(Error),
}

pub(crate) fn classify(status: Status) -> Attempt {
    let message = describe(&status);
    match status.code() {
        Code::FailedPrecondition if message.contains("mismatch cluster id") => {
            Attempt::Final(Error::ClusterMismatch(message))
        }
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted => Attempt::Again(Error::SchedulerUnavailable {
            endpoints: "the leader".to_string(),
            cause: message,
        }),
        code => Attempt::Final(Error::Server(format!("{code:?}: {message}"))),
    }
}

/// The status's own words and its innermost cause, which says what the socket met.
pub(crate) fn describe(status: &Status) -> String {
    let mut text = status.message().to_string();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        source = cause.source();
        if source.is_none() {
            let cause = cause.to_string();
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
    }
    text
}

fn header_error(error: &kvproto::pdpb::Error) -> Error {
    match error.r#type() {
        ErrorType::NotBootstrapped => Error::NotBootstrapped,
        kind => Error::Scheduler { kind, message: error.message.clone() },
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

/// A reply whose header may hold an error.
trait Reply {
    fn error(&self) -> Option<&kvproto::pdpb::Error>;
}

macro_rules! replies {
    ($($reply:ty),+ $(,)?) => {$(
        impl Reply for $reply {
            fn error(&self) -> Option<&kvproto::pdpb::Error> {
                let error = self.header.as_ref()?.error.as_ref()?;
                (error.r#type() != ErrorType::Ok).then_some(error)
            }
        }
    )+};
}

replies!(
    GetMembersResponse,
    IsBootstrappedResponse,
    BootstrapResponse,
    AllocIdResponse,
    PutStoreResponse,
    GetStoreResponse,
    GetAllStoresResponse,
    StoreHeartbeatResponse,
    GetRegionResponse,
    ScanRegionsResponse,
    GetClusterConfigResponse,
    keyspacepb::LoadKeyspaceResponse,
);
