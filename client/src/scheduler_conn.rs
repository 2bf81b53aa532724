//! What keeps a scheduler connection alive: the current leader's channel, the search for a new one, and calls that
//! are tried again until their deadline.
//!
//! Owns the leader's channel. One search runs at a time and serves all callers; a failed one answers everyone for a
//! moment, so that a scheduler that is down is not stormed. Tasks that end with the runtime of the caller who started them
//! are started again by the next caller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kvproto::pdpb::pd_client::PdClient;
use kvproto::pdpb::*;
use kvproto::{keyspacepb, memberpb};
use parking_lot::RwLock;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::backoff::{Backoff, Jitter};
use crate::channel;
use crate::error::{Error, Result};
use crate::leader_search::{add_members, find_leader};
use crate::leader_watch::{self, LeaderWatch};
use crate::scheduler_client::SchedulerOptions;
use crate::tso_batcher;

const RETRY: Backoff = Backoff::from_millis(20, 200);
/// So many times in one call a new leader is asked without a pause.
const FOLLOWED_MAX: u32 = 3;
/// After a search without a result its error answers everyone for this long.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Inner {
    cluster_id: u64,
    options: SchedulerOptions,
    leader: ArcSwap<Leader>,
    /// The leader's generation, for those who wait for another one.
    generation: watch::Sender<u64>,
    /// Asks for the leader from time to time, once somebody has opened a long stream.
    asking: RwLock<Option<JoinHandle<()>>>,
    search: Mutex<Search>,
    tso: RwLock<Option<mpsc::Sender<tso_batcher::Call>>>,
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

impl Inner {
    /// Finds the leader through `endpoints`; tries until the timeout of `options`.
    pub(crate) async fn connect(endpoints: &[String], options: SchedulerOptions) -> Result<Inner> {
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
                    let leader = ArcSwap::from_pointee(leader);
                    let search = Mutex::new(Search { channels, failed: None });
                    return Ok(Inner {
                        cluster_id,
                        options,
                        leader,
                        generation: watch::Sender::new(0),
                        asking: RwLock::default(),
                        search,
                        tso: RwLock::default(),
                    });
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

    pub(crate) fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    pub(crate) fn leader_url(&self) -> String {
        self.leader.load().url.clone()
    }

    /// The queue of the task that fetches timestamps, which starts with the first call.
    pub(crate) fn tso(self: &Arc<Inner>) -> mpsc::Sender<tso_batcher::Call> {
        let open = |tso: &Option<mpsc::Sender<_>>| tso.clone().filter(|queue| !queue.is_closed());
        if let Some(queue) = open(&self.tso.read()) {
            return queue;
        }
        let mut tso = self.tso.write();
        open(&tso).unwrap_or_else(|| tso.insert(tso_batcher::spawn(Arc::downgrade(self))).clone())
    }

    /// Sends a request to the leader, with the cluster id in its header.
    pub(crate) async fn call<T, F, Fut>(&self, timeout: Duration, request: F) -> Result<T>
    where
        T: Reply,
        F: Fn(PdClient<Channel>, RequestHeader) -> Fut,
        Fut: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        self.call_channel(timeout, |channel, header| request(PdClient::new(channel), header)).await
    }

    /// Like `call`, for another service on the same port.
    pub(crate) async fn call_channel<T, F, Fut>(&self, timeout: Duration, request: F) -> Result<T>
    where
        T: Reply,
        F: Fn(Channel, RequestHeader) -> Fut,
        Fut: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let header = self.header();
        self.retry(timeout, |leader| {
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
    pub(crate) async fn retry<T, F, Fut>(&self, timeout: Duration, attempt: F) -> Result<T>
    where
        F: Fn(Arc<Leader>) -> Fut,
        Fut: Future<Output = std::result::Result<T, Attempt>>,
    {
        let started = Instant::now();
        let mut jitter = None;
        let mut last = None;
        let mut followed = 0;
        for number in 0.. {
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            let leader = self.leader.load_full();
            let generation = leader.generation;
            match tokio::time::timeout(left.min(self.options.attempt_timeout), attempt(leader)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Attempt::Final(error))) => return Err(error),
                Ok(Err(Attempt::Again(error))) => last = Some(Box::new(error)),
                Err(_) => {
                    let cause = format!("{} does not answer", self.leader_url());
                    last = Some(Box::new(self.unavailable(cause)));
                }
            }
            let left = timeout.saturating_sub(started.elapsed());
            match tokio::time::timeout(left, self.search_leader(generation)).await {
                // A new leader is asked at once.
                Ok(Ok(found)) if found != generation && followed < FOLLOWED_MAX => {
                    followed += 1;
                    continue;
                }
                Ok(Err(error)) if !error.is_retryable() => return Err(error),
                Ok(Err(error)) => last = Some(Box::new(error)),
                Ok(Ok(_)) | Err(_) => {}
            }
            let jitter = jitter.get_or_insert_with(Jitter::from_process);
            let left = timeout.saturating_sub(started.elapsed());
            tokio::time::sleep(RETRY.delay(number, jitter.draw()).min(left)).await;
        }
        Err(Error::Timeout { after: started.elapsed(), last })
    }

    pub(crate) fn header(&self) -> RequestHeader {
        RequestHeader { cluster_id: self.cluster_id, ..RequestHeader::default() }
    }

    /// The leader's channel, and a watch for another leader.
    pub(crate) fn channel(&self) -> (Channel, LeaderWatch) {
        let leader = self.leader.load();
        let watch = LeaderWatch::new(self.generation.subscribe(), leader.generation);
        (leader.channel.clone(), watch)
    }

    /// Tells when another leader than the one of this generation is found, and sees to it that one is looked for.
    pub(crate) fn watch_leader(self: &Arc<Inner>, generation: u64) -> LeaderWatch {
        let mut asking = self.asking.write();
        if asking.as_ref().is_none_or(JoinHandle::is_finished) {
            *asking = Some(tokio::spawn(leader_watch::ask_from_time_to_time(Arc::downgrade(self))));
        }
        drop(asking);
        LeaderWatch::new(self.generation.subscribe(), generation)
    }

    /// Asks the members who leads.
    pub(crate) async fn look_for_leader(&self) -> Result<()> {
        let generation = self.leader.load().generation;
        self.search_leader(generation).await.map(drop)
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.options.attempt_timeout
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
        let found = match find_leader(&search.channels, self.options.attempt_timeout).await {
            Ok((id, ..)) if id != self.cluster_id => Err(Error::ClusterMismatch(format!(
                "cluster id is {id}, was {} when this client connected",
                self.cluster_id
            ))),
            other => other,
        };
        match found {
            Ok((_, url, members)) => {
                search.failed = None;
                let mut leader =
                    add_members(&mut search.channels, url, members, self.options.connect_timeout)?;
                if leader.url != current.url {
                    tracing::info!(from = current.url, to = leader.url, "scheduler leader changed");
                    leader.generation = seen + 1;
                    self.leader.store(Arc::new(leader));
                    self.generation.send_replace(seen + 1);
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

/// A reply whose header may hold an error.
pub(crate) trait Reply {
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
    AskBatchSplitResponse,
    BootstrapResponse,
    AllocIdResponse,
    PutStoreResponse,
    GetStoreResponse,
    GetAllStoresResponse,
    ReportBatchSplitResponse,
    GetGcStateResponse,
    AdvanceTxnSafePointResponse,
    AdvanceGcSafePointResponse,
    SetGcBarrierResponse,
    DeleteGcBarrierResponse,
    StoreHeartbeatResponse,
    GetRegionResponse,
    ScanRegionsResponse,
    GetClusterConfigResponse,
    keyspacepb::LoadKeyspaceResponse,
    memberpb::TransferLeaderResponse,
);
