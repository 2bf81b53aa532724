//! The deadlock detector: one store finds the deadlocks of all, the one that leads the region with the first key.
//!
//! The runner of commands asks through [`Deadlocks`]. On the detector's own store that is a call; on any other the edges
//! go over one stream, whose end means that another store may be the detector now. Nothing is repeated then: whoever
//! still waits names its edge again within a second, and a wait has a time-out in any case. The detector answers only
//! when there is a deadlock.
//!
//! Invariant: the graph holds edges of one term of leadership only; it starts empty in each.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use kvproto::deadlock::deadlock_client::DeadlockClient;
use kvproto::deadlock::deadlock_server::{Deadlock as DeadlockRpc, DeadlockServer};
use kvproto::deadlock::{
    DeadlockRequest, DeadlockRequestType, DeadlockResponse, WaitForEntriesRequest, WaitForEntriesResponse,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::convert::wait::{deadlock_from_wire, deadlock_to_wire, entry_from_wire, entry_to_wire};
use super::raft_service::same_cluster;
use crate::clock::{self, Now};
use crate::storage::raft_storage::raft_client;
use crate::storage::store::Store;
use crate::txn::deadlock::{Detector, WaitForGraph};
use crate::txn::error::{Deadlock, WaitEntry};

/// Edges on their way to the detector. Beyond this they are dropped: waits have a time-out.
const ASKS_MAX: usize = 4096;
/// Time to reach the detector's store, and the pause after it could not be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_MS: u64 = 100;
/// For so many milliseconds a store without the first region does not look for it again.
const LOOK_MS: u64 = 200;

/// Finds deadlocks, here or on the store that leads the first region. Clones share everything.
#[derive(Clone)]
pub struct Deadlocks {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    graph: Mutex<TermGraph>,
    asks: mpsc::Sender<Ask>,
    /// Until when the first region is taken to be elsewhere, nanoseconds since boot.
    elsewhere_until: AtomicU64,
    /// Deadlocks that were found here.
    found: AtomicU64,
    stop: CancellationToken,
}

/// The graph of one (region, term).
#[derive(Default)]
struct TermGraph {
    of: (u64, u64),
    graph: WaitForGraph,
}

/// What the forwarder is to do.
enum Ask {
    Detect(WaitEntry, oneshot::Sender<Deadlock>),
    Done(WaitEntry),
}

impl Shared {
    /// The region and term in which this store is the detector.
    fn leads(&self, now: Now) -> Option<(u64, u64)> {
        if now.0 < self.elsewhere_until.load(Ordering::Relaxed) {
            return None;
        }
        match self.store.views().first() {
            Some(view) if view.is_leader() => Some((view.meta.region.id, view.term)),
            Some(_) => None,
            None => {
                self.elsewhere_until.store(now.plus_ms(LOOK_MS).0, Ordering::Relaxed);
                None
            }
        }
    }

    /// Works on the graph if this store is the detector.
    fn on_graph<T>(&self, work: impl FnOnce(&mut WaitForGraph, Now) -> T) -> Option<T> {
        let now = clock::now();
        let of = self.leads(now)?;
        let mut graph = self.graph.lock();
        if graph.of != of {
            *graph = TermGraph { of, graph: WaitForGraph::default() };
        }
        Some(work(&mut graph.graph, now))
    }

    /// Adds an edge, or finds the circle that it would close; `None` when another store is the detector.
    fn detect(&self, edge: &WaitEntry) -> Option<Option<Deadlock>> {
        let found = self.on_graph(|graph, now| graph.detect(edge, now))?;
        if found.is_some() {
            self.found.fetch_add(1, Ordering::Relaxed);
        }
        Some(found)
    }
}

impl Deadlocks {
    /// For a running store; needs a tokio runtime. The forwarder's task ends with `stop`.
    pub fn start(store: Arc<dyn Store>, stop: CancellationToken) -> Deadlocks {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (graph, elsewhere_until) = (Mutex::default(), AtomicU64::new(0));
        let shared = Arc::new(Shared {
            store: store.clone(),
            graph,
            asks,
            elsewhere_until,
            found: AtomicU64::new(0),
            stop: stop.clone(),
        });
        let forwarder = Forwarder { store, link: None, retry_at: Now(0), pending: BTreeMap::new() };
        tokio::spawn(forwarder.run(asked, stop));
        Deadlocks { shared }
    }

    /// Deadlocks that this store has found.
    pub fn found(&self) -> u64 {
        self.shared.found.load(Ordering::Relaxed)
    }

    /// The service that other stores ask.
    pub fn service(&self) -> DeadlockServer<Deadlocks> {
        DeadlockServer::new(self.clone())
    }
}

impl Detector for Deadlocks {
    fn detect(&self, edge: WaitEntry) -> BoxFuture<'static, Option<Deadlock>> {
        if let Some(found) = self.shared.detect(&edge) {
            return std::future::ready(found).boxed();
        }
        let (tx, rx) = oneshot::channel();
        if self.shared.asks.try_send(Ask::Detect(edge, tx)).is_err() {
            tracing::debug!("too many waits on their way to the deadlock detector");
        }
        rx.map(Result::ok).boxed()
    }

    fn done(&self, edge: WaitEntry) {
        if self.shared.on_graph(|graph, _| graph.clean_up_wait_for(&edge)).is_none() {
            // The detector forgets it in time.
            drop(self.shared.asks.try_send(Ask::Done(edge)));
        }
    }
}

#[tonic::async_trait]
impl DeadlockRpc for Deadlocks {
    async fn get_wait_for_entries(
        &self,
        _: Request<WaitForEntriesRequest>,
    ) -> Result<Response<WaitForEntriesResponse>, Status> {
        let entries = self.shared.on_graph(|graph, now| graph.entries(now)).unwrap_or_default();
        let entries = entries.into_iter().map(entry_to_wire).collect();
        Ok(Response::new(WaitForEntriesResponse { entries }))
    }

    type DetectStream = BoxStream<'static, Result<DeadlockResponse, Status>>;

    async fn detect(
        &self,
        request: Request<Streaming<DeadlockRequest>>,
    ) -> Result<Response<Self::DetectStream>, Status> {
        same_cluster(self.shared.store.cluster_id(), &request)?;
        let state = (self.shared.clone(), request.into_inner());
        let answers = futures::stream::try_unfold(state, |(shared, mut asked)| async move {
            let answer = next_deadlock(&shared, &mut asked).await?;
            Ok(answer.map(|answer| (answer, (shared, asked))))
        });
        Ok(Response::new(answers.boxed()))
    }
}

/// Takes edges until one closes a circle; `None` at the end of the stream.
async fn next_deadlock(
    shared: &Shared,
    asked: &mut Streaming<DeadlockRequest>,
) -> Result<Option<DeadlockResponse>, Status> {
    loop {
        let request = tokio::select! {
            request = asked.message() => request?,
            () = shared.stop.cancelled() => return Err(Status::unavailable("the store is stopping")),
        };
        let Some(request) = request else { return Ok(None) };
        let (kind, edge) = (request.tp(), entry_from_wire(request.entry.unwrap_or_default()));
        let found = match kind {
            DeadlockRequestType::Detect => shared.detect(&edge),
            DeadlockRequestType::CleanUpWaitFor => {
                shared.on_graph(|graph, _| graph.clean_up_wait_for(&edge)).map(|()| None)
            }
            DeadlockRequestType::CleanUp => {
                shared.on_graph(|graph, _| graph.clean_up(edge.txn)).map(|()| None)
            }
        };
        match found {
            None => return Err(Status::failed_precondition("this store does not lead the first region")),
            Some(None) => {}
            Some(Some(deadlock)) => return Ok(Some(deadlock_to_wire(edge, deadlock))),
        }
    }
}

/// Sends edges to the detector's store and hands its answers to those who wait.
struct Forwarder {
    store: Arc<dyn Store>,
    link: Option<Link>,
    /// No attempt to reach the detector before this.
    retry_at: Now,
    /// Who may be told of a deadlock, by edge.
    pending: BTreeMap<(u64, u64, Bytes), oneshot::Sender<Deadlock>>,
}

/// The stream to the detector's store.
struct Link {
    requests: mpsc::Sender<DeadlockRequest>,
    answers: Pin<Box<Streaming<DeadlockResponse>>>,
}

fn place(edge: &WaitEntry) -> (u64, u64, Bytes) {
    (edge.txn, edge.wait_for, edge.key.clone())
}

impl Forwarder {
    async fn run(mut self, mut asks: mpsc::Receiver<Ask>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                ask = asks.recv() => match ask {
                    Some(ask) => self.forward(ask).await,
                    None => return,
                },
                answer = next_answer(&mut self.link) => match answer {
                    Some(answer) => self.deliver(answer),
                    None => self.disconnect(),
                },
            }
        }
    }

    async fn forward(&mut self, ask: Ask) {
        let (kind, edge) = match ask {
            Ask::Detect(edge, tell) => {
                self.pending.retain(|_, waiting| !waiting.is_closed());
                self.pending.insert(place(&edge), tell);
                (DeadlockRequestType::Detect, edge)
            }
            Ask::Done(edge) => {
                self.pending.remove(&place(&edge));
                (DeadlockRequestType::CleanUpWaitFor, edge)
            }
        };
        if self.link.is_none() && kind == DeadlockRequestType::Detect && clock::now() >= self.retry_at {
            let opened = tokio::time::timeout(CONNECT_TIMEOUT, open(&*self.store)).await;
            self.link = opened.ok().flatten();
            self.retry_at = clock::now().plus_ms(RETRY_MS);
        }
        let Some(link) = &self.link else { return };
        let request =
            DeadlockRequest { tp: kind as i32, entry: Some(entry_to_wire(edge)), ..Default::default() };
        // Full: the detector is slow, and waits have a time-out. Closed: the answers end, too, which is noticed.
        drop(link.requests.try_send(request));
    }

    fn deliver(&mut self, answer: DeadlockResponse) {
        let (edge, deadlock) = deadlock_from_wire(answer);
        if let Some(tell) = self.pending.remove(&place(&edge)) {
            drop(tell.send(deadlock));
        }
    }

    fn disconnect(&mut self) {
        self.link = None;
        self.retry_at = clock::now().plus_ms(RETRY_MS);
    }
}

/// The next answer; `None` when the stream has ended. Without a stream there is nothing to wait for.
async fn next_answer(link: &mut Option<Link>) -> Option<DeadlockResponse> {
    match link {
        Some(link) => match link.answers.next().await? {
            Ok(answer) => Some(answer),
            Err(status) => {
                tracing::debug!(%status, "the stream to the deadlock detector ended");
                None
            }
        },
        None => std::future::pending().await,
    }
}

/// Opens a stream to the detector's store; `None` when that is not to be had now.
async fn open(store: &dyn Store) -> Option<Link> {
    let address = store.first_leader().await?;
    let channel = match raft_client::channel(&address).await {
        Ok(channel) => channel,
        Err(error) => {
            tracing::debug!(
                error = raft_client::describe(&error),
                address,
                "no way to the deadlock detector"
            );
            return None;
        }
    };
    let (requests, rx) = mpsc::channel(ASKS_MAX);
    let stream = tokio_stream::wrappers::ReceiverStream::new(rx);
    let request = raft_client::of_cluster(store.cluster_id(), stream);
    let answers = DeadlockClient::new(channel).detect(request).await;
    let answers =
        answers.inspect_err(|status| tracing::debug!(%status, address, "no deadlock detector")).ok()?;
    Some(Link { requests, answers: Box::pin(answers.into_inner()) })
}

#[cfg(test)]
mod tests {
    use kvproto::kvrpcpb::ApiVersion;
    use tokio::net::TcpListener;

    use super::*;
    use crate::engine::mem::MemEngine;
    use crate::storage::standalone_storage::{StandaloneStorage, StandaloneStore};

    fn edge(txn: u64, wait_for: u64, key: &'static str) -> WaitEntry {
        WaitEntry { txn, wait_for, key: key.into() }
    }

    /// The detector of a store that leads everything, and a stream to it.
    async fn detector() -> (Deadlocks, Link, CancellationToken) {
        let storage = StandaloneStorage::start(Arc::new(MemEngine::new()), ApiVersion::V2).unwrap();
        let store: Arc<dyn Store> = Arc::new(StandaloneStore::new(storage, 77));
        let stop = CancellationToken::new();
        let deadlocks = Deadlocks::start(store, stop.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(deadlocks.service());
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        let channel = raft_client::channel(&address).await.unwrap();
        let (requests, rx) = mpsc::channel(8);
        let request = raft_client::of_cluster(77, tokio_stream::wrappers::ReceiverStream::new(rx));
        let answers = DeadlockClient::new(channel.clone()).detect(request).await.unwrap().into_inner();
        let of_another = raft_client::of_cluster(78, tokio_stream::empty());
        let refused = DeadlockClient::new(channel).detect(of_another).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        (deadlocks, Link { requests, answers: Box::pin(answers) }, stop)
    }

    async fn send(link: &Link, kind: DeadlockRequestType, edge: WaitEntry) {
        let request =
            DeadlockRequest { tp: kind as i32, entry: Some(entry_to_wire(edge)), ..Default::default() };
        link.requests.send(request).await.unwrap();
    }

    #[tokio::test]
    async fn edges_of_this_store_and_of_others_close_a_circle_together() {
        let (deadlocks, mut link, stop) = detector().await;
        assert_eq!(Detector::detect(&deadlocks, edge(1, 2, "a")).await, None);
        send(&link, DeadlockRequestType::Detect, edge(2, 3, "b")).await;
        send(&link, DeadlockRequestType::Detect, edge(3, 1, "c")).await;
        let (asked, deadlock) = deadlock_from_wire(link.answers.next().await.unwrap().unwrap());
        assert_eq!(asked, edge(3, 1, "c"));
        assert_eq!(deadlock.chain, [edge(1, 2, "a"), edge(2, 3, "b"), edge(3, 1, "c")]);
        deadlocks.done(edge(1, 2, "a"));
        send(&link, DeadlockRequestType::Detect, edge(3, 1, "c")).await;
        send(&link, DeadlockRequestType::Detect, edge(1, 3, "d")).await;
        let (asked, _) = deadlock_from_wire(link.answers.next().await.unwrap().unwrap());
        assert_eq!(
            asked,
            edge(1, 3, "d"),
            "without the first edge there was no circle, and now there is another"
        );
        stop.cancel();
    }
}
