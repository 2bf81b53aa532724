//! Messages to other stores: one link per store, one task per link, batched streams.
//!
//! Owns the queue of each link, bounded in messages and bytes. A link's task encodes what waits and writes it to a
//! `BatchRaft` stream; what queues while a frame is written goes into the next one, without a timer. When the
//! connection breaks the core is told at once; when it cannot be made again the store counts as lost. Losing
//! messages is allowed: Raft sends again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::Stream;
use kvproto::tikvpb::BatchRaftMessage;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::counters::Counters;
use super::raft_client;
use super::resolver::{ResolveError, Resolver};
use crate::clock;
use crate::raftstore::message::{Input, PeerMessage};
use crate::raftstore::raft_worker::Transport;
use crate::raftstore::router::Router;

/// What may wait for one store.
const QUEUE_MESSAGES_MAX: usize = 16_384;
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// What travels in one frame: at least one message, then up to these.
const FRAME_MESSAGES_MAX: usize = 1_024;
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Pauses between attempts to connect.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// A connection that lived shorter than this did not really work.
const LIVED_NS: u64 = 1_000_000_000;

/// Stores whose process is gone, as far as this store can tell. Clones share the knowledge.
#[derive(Clone, Default)]
pub struct LostStores {
    stores: Arc<RwLock<BTreeSet<u64>>>,
}

impl LostStores {
    /// Whether the store is gone.
    pub fn contains(&self, store_id: u64) -> bool {
        self.stores.read().contains(&store_id)
    }

    pub(super) fn set(&self, store_id: u64, lost: bool) {
        let mut stores = self.stores.write();
        if lost {
            stores.insert(store_id)
        } else {
            stores.remove(&store_id)
        };
    }
}

/// What everything that talks to other stores works with. Clones share it.
#[derive(Clone)]
pub struct Network {
    pub cluster_id: u64,
    pub store_id: u64,
    pub router: Router,
    pub resolver: Arc<Resolver>,
    pub lost: LostStores,
    pub counters: Counters,
    /// Ends links, transfers and waiting requests.
    pub stopping: CancellationToken,
}

/// See the file's head.
pub struct GrpcTransport {
    network: Network,
    runtime: Handle,
    links: Mutex<BTreeMap<u64, Arc<Link>>>,
}

impl GrpcTransport {
    /// A transport whose links run on the current runtime.
    pub fn new(network: Network) -> GrpcTransport {
        GrpcTransport { network, runtime: Handle::current(), links: Mutex::default() }
    }

    fn open(&self, store_id: u64) -> Arc<Link> {
        let link = Arc::new(Link {
            store_id,
            network: self.network.clone(),
            queue: Mutex::default(),
            wake: Notify::new(),
            generation: AtomicU64::new(0),
        });
        let (task, stopping) = (link.clone(), self.network.stopping.clone());
        self.runtime.spawn(async move { stopping.run_until_cancelled_owned(task.run()).await });
        link
    }
}

impl Transport for GrpcTransport {
    fn send(&self, messages: &mut Vec<PeerMessage>) {
        let mut links = self.links.lock();
        for message in messages.drain(..) {
            let store_id = message.to.store_id;
            // A snapshot travels on a stream of its own, by its own task.
            if message.is_snapshot() {
                self.network.counters.drop_messages("malformed", 1);
                continue;
            }
            links.entry(store_id).or_insert_with(|| self.open(store_id)).push(message);
        }
    }
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<PeerMessage>,
    bytes: usize,
    /// Messages were refused since the queue was last empty, and the core was told.
    overflowed: bool,
}

/// The way to one store.
struct Link {
    store_id: u64,
    network: Network,
    queue: Mutex<Queue>,
    wake: Notify,
    /// Which stream may take from the queue.
    generation: AtomicU64,
}

impl Link {
    fn push(&self, message: PeerMessage) {
        let bytes = message.bytes();
        let mut queue = self.queue.lock();
        let full = queue.messages.len() >= QUEUE_MESSAGES_MAX || queue.bytes + bytes > QUEUE_BYTES_MAX;
        if full && !queue.messages.is_empty() {
            let first = !std::mem::replace(&mut queue.overflowed, true);
            drop(queue);
            self.network.counters.drop_messages("queue_full", 1);
            if first {
                self.network.router.complete(Input::Unreachable { store_id: self.store_id });
            }
            return;
        }
        let was_empty = queue.messages.is_empty();
        queue.bytes += bytes;
        queue.messages.push_back(message);
        drop(queue);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// The messages of the next frame; empty when none wait.
    fn take(&self) -> Vec<PeerMessage> {
        let mut queue = self.queue.lock();
        let (mut bytes, mut n) = (0, 0);
        for message in queue.messages.iter().take(FRAME_MESSAGES_MAX) {
            bytes += message.bytes();
            if n > 0 && bytes > FRAME_BYTES_MAX {
                bytes -= message.bytes();
                break;
            }
            n += 1;
        }
        queue.bytes -= bytes;
        queue.overflowed &= n < queue.messages.len();
        queue.messages.drain(..n).collect()
    }

    fn clear(&self) {
        let dropped = std::mem::take(&mut *self.queue.lock());
        self.network.counters.drop_messages("disconnected", dropped.messages.len());
    }

    async fn run(self: Arc<Link>) {
        let mut pause = RECONNECT_MIN;
        // After a break the connection is made again even if nobody has anything to say: is the store still there?
        let mut look_at_once = false;
        loop {
            while !look_at_once && self.queue.lock().messages.is_empty() {
                self.wake.notified().await;
            }
            look_at_once = false;
            match self.connect_and_serve().await {
                Ok(lived_ns) => {
                    look_at_once = true;
                    if lived_ns >= LIVED_NS {
                        pause = RECONNECT_MIN;
                        continue;
                    }
                }
                Err(error) => self.on_connect_failed(&error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// Connects and sends until the connection breaks; gives how long that was.
    async fn connect_and_serve(self: &Arc<Link>) -> Result<u64, LinkError> {
        let (store_id, network) = (self.store_id, &self.network);
        let address = network.resolver.resolve(store_id).await?;
        let connected = raft_client::connect(&address).await;
        let mut client =
            connected.map_err(|e| LinkError::Connect(address.clone(), raft_client::describe(&e)))?;
        if network.lost.contains(store_id) {
            network.lost.set(store_id, false);
            network.router.complete(Input::StoreBack { store_id });
            tracing::info!(store = store_id, address, "connected again");
        }
        let since = clock::now();
        let ended =
            client.batch_raft(raft_client::of_cluster(network.cluster_id, self.clone().frames())).await;
        // What is left of the stream must not take messages from its successor.
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_waiters();
        network.resolver.doubt(store_id);
        network.router.complete(Input::Unreachable { store_id });
        if let Err(status) = ended {
            tracing::info!(
                store = store_id,
                address,
                error = raft_client::describe(&status),
                "connection broke"
            );
        }
        Ok(clock::now().since(since))
    }

    fn on_connect_failed(&self, error: &LinkError) {
        let (store_id, network) = (self.store_id, &self.network);
        self.clear();
        network.resolver.doubt(store_id);
        match error {
            LinkError::Connect(..) if !network.lost.contains(store_id) => {
                network.lost.set(store_id, true);
                network.router.complete(Input::StoreLost { store_id });
                tracing::warn!(store = store_id, %error, "store lost");
            }
            _ => {
                network.router.complete(Input::Unreachable { store_id });
                tracing::debug!(store = store_id, %error, "no connection");
            }
        }
    }

    /// The frames of one stream.
    fn frames(self: Arc<Link>) -> impl Stream<Item = BatchRaftMessage> + Send {
        let generation = self.generation.load(Ordering::Acquire);
        futures::stream::unfold(self, move |link| async move {
            loop {
                if link.generation.load(Ordering::Acquire) != generation {
                    return None;
                }
                let messages = link.take();
                if !messages.is_empty() {
                    link.network.counters.sent.inc_by(messages.len() as u64);
                    let msgs = messages.into_iter().map(PeerMessage::into_wire).collect();
                    return Some((BatchRaftMessage { msgs, ..Default::default() }, link));
                }
                link.wake.notified().await;
            }
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("cannot connect to {0}: {1}")]
    Connect(String, String),
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use kvproto::metapb;

    use super::*;
    use crate::raftstore::inbox::Inbox;
    use crate::raftstore::message::peer_message::Payload;
    use crate::raftstore::scheduler_client::fake::FakeScheduler;

    /// Store 2 is said to be at `address`.
    fn transport(address: &str) -> (GrpcTransport, Arc<Inbox>, LostStores) {
        let (router, inbox) = Router::new();
        let lost = LostStores::default();
        let scheduler = FakeScheduler::default();
        scheduler.state.lock().stores =
            vec![metapb::Store { id: 2, address: address.into(), ..Default::default() }];
        let resolver = Arc::new(Resolver::new(Arc::new(scheduler)));
        let network = Network {
            cluster_id: 1,
            store_id: 1,
            router,
            resolver,
            lost: lost.clone(),
            counters: Counters::new().unwrap(),
            stopping: CancellationToken::new(),
        };
        (GrpcTransport::new(network), inbox, lost)
    }

    fn message(region_id: u64) -> PeerMessage {
        let peer = |id| metapb::Peer { id, store_id: id, ..Default::default() };
        let epoch = metapb::RegionEpoch::default();
        PeerMessage {
            region_id,
            from: peer(1),
            to: peer(2),
            epoch,
            range: None,
            payload: Payload::CheckStale,
        }
    }

    #[tokio::test]
    async fn a_store_nobody_answers_for_counts_as_lost() {
        // Bound and closed again: nothing listens there.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (transport, inbox, lost) = transport(&address.to_string());
        transport.send(&mut vec![message(7)]);
        let told = tokio::task::spawn_blocking(move || {
            let mut batch = Vec::new();
            inbox.take(&mut batch, Some(clock::now().plus_ms(30_000)));
            batch
        });
        let told = told.await.unwrap();
        assert!(matches!(told[..], [Input::StoreLost { store_id: 2 }]), "{told:?}");
        assert!(lost.contains(2));
    }

    #[tokio::test]
    async fn what_waits_travels_in_one_frame_and_a_broken_stream_takes_no_more() {
        let (transport, _inbox, _) = transport("127.0.0.1:1");
        let link = Arc::new(Link {
            store_id: 2,
            network: transport.network.clone(),
            queue: Mutex::default(),
            wake: Notify::new(),
            generation: AtomicU64::new(0),
        });
        let mut frames = Box::pin(link.clone().frames());
        (1..=3).for_each(|id| link.push(message(id)));
        let regions: Vec<u64> = frames.next().await.unwrap().msgs.iter().map(|m| m.region_id).collect();
        assert_eq!(regions, [1, 2, 3]);
        link.generation.fetch_add(1, Ordering::AcqRel);
        link.push(message(4));
        assert!(frames.next().await.is_none());
        assert_eq!(link.take().len(), 1, "it is left for the next stream");
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_tells_the_core_once() {
        let (transport, inbox, _) = transport("127.0.0.1:1");
        let link = Link {
            store_id: 2,
            network: transport.network.clone(),
            queue: Mutex::default(),
            wake: Notify::new(),
            generation: AtomicU64::new(0),
        };
        (0..QUEUE_MESSAGES_MAX as u64 + 5).for_each(|id| link.push(message(id)));
        let mut told = Vec::new();
        inbox.take(&mut told, Some(clock::now()));
        assert!(matches!(told[..], [Input::Unreachable { store_id: 2 }]), "{told:?}");
        assert_eq!(link.take().len(), FRAME_MESSAGES_MAX);
        assert_eq!(link.queue.lock().messages.len(), QUEUE_MESSAGES_MAX - FRAME_MESSAGES_MAX);
    }
}
