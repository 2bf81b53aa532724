//! A small cluster in the test's own process: a scheduler and stores that speak the real protocol over loopback
//! sockets, keep their data in one map, and misbehave when a test asks for it.

#![allow(dead_code)] // every test binary uses its own part

pub mod scheduler;
pub mod store;
pub mod txn;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvclient::{Config, RawClient, TransactionClient};
use kvproto::key::{BoundaryForm, KeyCodec, KeyspaceId, Mode};
use kvproto::kvrpcpb::ApiVersion;
use kvproto::{errorpb, metapb};
use parking_lot::Mutex;
use tokio::sync::watch;

pub const CLUSTER_ID: u64 = 7;

/// A region of the fake cluster; boundaries are wire keys.
#[derive(Clone)]
pub struct Region {
    pub id: u64,
    pub start: Bytes,
    pub end: Bytes,
    pub version: u64,
    /// The store that leads.
    pub leader: u64,
}

/// What all servers of the cluster share.
pub struct World {
    pub api: ApiVersion,
    pub regions: Mutex<Vec<Region>>,
    pub data: Mutex<BTreeMap<Bytes, (Bytes, u64)>>,
    pub txn: Mutex<txn::Data>,
    /// Names of transactional requests whose next execution breaks the stream instead of an answer.
    pub lose: Mutex<Vec<&'static str>>,
    /// What the next requests meet before they are executed, one after the other: a region error, or nothing.
    pub refusals: Mutex<VecDeque<Option<errorpb::Error>>>,
    /// Commits are refused.
    pub no_commits: AtomicBool,
    /// Names of transactional requests that are not executed until the test says so.
    pub hold: Mutex<Vec<&'static str>>,
    /// Names of the transactional requests that were executed.
    pub seen: Mutex<Vec<&'static str>>,
    pub addresses: Mutex<BTreeMap<u64, SocketAddr>>,
    /// Requests in each frame that arrived.
    pub frames: Mutex<Vec<usize>>,
    /// Stores take requests and never answer.
    pub mute: AtomicBool,
    /// A compare-and-swap is executed and then its connection breaks.
    pub break_cas: AtomicBool,
    /// NotLeader comes without the leader's name.
    pub hide_leader: AtomicBool,
    pub executed: AtomicUsize,
    pub get_region_calls: AtomicUsize,
    /// Changes when all open streams of the stores break.
    pub streams: watch::Sender<u64>,
    /// Changes when all open streams of the stores end in good order, as when a store stops.
    pub finished: watch::Sender<u64>,
    pub pd: scheduler::State,
}

impl World {
    pub fn new(api: ApiVersion) -> Arc<World> {
        let all = Region { id: 1, start: Bytes::new(), end: Bytes::new(), version: 1, leader: 1 };
        Arc::new(World {
            api,
            regions: Mutex::new(vec![all]),
            data: Mutex::default(),
            txn: Mutex::default(),
            lose: Mutex::default(),
            refusals: Mutex::default(),
            no_commits: AtomicBool::new(false),
            hold: Mutex::default(),
            seen: Mutex::default(),
            addresses: Mutex::default(),
            frames: Mutex::default(),
            mute: AtomicBool::new(false),
            break_cas: AtomicBool::new(false),
            hide_leader: AtomicBool::new(false),
            executed: AtomicUsize::new(0),
            get_region_calls: AtomicUsize::new(0),
            streams: watch::channel(0).0,
            finished: watch::channel(0).0,
            pd: scheduler::State::default(),
        })
    }

    /// The wire key of a transactional key.
    pub fn txn_wire(&self, user: &str) -> Bytes {
        let codec = KeyCodec::V2 { mode: Mode::Txn, keyspace: KeyspaceId::DEFAULT };
        codec.wire_key(Bytes::from(user.to_string()))
    }

    pub fn wire(&self, user: &str) -> Bytes {
        let codec = match self.api {
            ApiVersion::V2 => KeyCodec::V2 { mode: Mode::Raw, keyspace: KeyspaceId::DEFAULT },
            _ => KeyCodec::V1,
        };
        codec.wire_key(Bytes::from(user.to_string()))
    }

    pub fn form(&self) -> BoundaryForm {
        BoundaryForm::of_raw(self.api)
    }

    /// Cuts the region that holds `user`; the right part is new and led by `leader`.
    pub fn split(&self, user: &str, leader: u64) {
        self.split_at(self.wire(user), leader);
    }

    /// The same at a wire key.
    pub fn split_at(&self, at: Bytes, leader: u64) {
        let mut regions = self.regions.lock();
        let id = regions.iter().map(|r| r.id).max().unwrap_or(0) + 1;
        let index = regions.iter().position(|r| r.start < at && (r.end.is_empty() || at < r.end)).unwrap();
        let version = regions[index].version + 1;
        let right = Region { id, start: at.clone(), end: regions[index].end.clone(), version, leader };
        regions[index].end = at;
        regions[index].version = version;
        regions.insert(index + 1, right);
    }

    pub fn lead(&self, region_id: u64, store_id: u64) {
        let mut regions = self.regions.lock();
        regions.iter_mut().find(|r| r.id == region_id).unwrap().leader = store_id;
    }

    pub fn meta(&self, region: &Region) -> metapb::Region {
        let peer = |store_id| metapb::Peer { id: region.id * 100 + store_id, store_id, ..Default::default() };
        let stores: Vec<u64> = self.addresses.lock().keys().copied().collect();
        metapb::Region {
            id: region.id,
            start_key: self.form().boundary(region.start.clone()),
            end_key: self.form().boundary(region.end.clone()),
            region_epoch: Some(metapb::RegionEpoch { version: region.version, conf_ver: 1 }),
            peers: stores.into_iter().map(peer).collect(),
            ..Default::default()
        }
    }

    pub fn leader_peer(&self, region: &Region) -> metapb::Peer {
        metapb::Peer { id: region.id * 100 + region.leader, store_id: region.leader, ..Default::default() }
    }

    /// Breaks every open stream to a store.
    pub fn break_streams(&self) {
        self.streams.send_modify(|n| *n += 1);
    }

    /// Ends every open stream to a store in good order.
    pub fn finish_streams(&self) {
        self.finished.send_modify(|n| *n += 1);
    }
}

/// A server on a runtime of its own, which dies with all its connections when it is dropped, as a process would.
pub struct Server {
    pub address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts a server on a free port; `router` is told the address.
pub fn serve(router: impl FnOnce(SocketAddr) -> tonic::transport::server::Router) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let router = router(address);
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)).await.unwrap();
    });
    Server { address, runtime: Some(runtime) }
}

/// A scheduler and stores 1 to `stores`.
pub struct Cluster {
    pub world: Arc<World>,
    pub scheduler: Server,
    pub stores: BTreeMap<u64, Server>,
}

impl Cluster {
    pub async fn start(api: ApiVersion, stores: u64) -> Cluster {
        let world = World::new(api);
        let mut cluster =
            Cluster { scheduler: scheduler::start(world.clone()), stores: BTreeMap::new(), world };
        for id in 1..=stores {
            cluster.start_store(id);
        }
        cluster
    }

    pub fn start_store(&mut self, id: u64) {
        let server = store::start(self.world.clone(), id);
        self.world.addresses.lock().insert(id, server.address);
        self.stores.insert(id, server);
    }

    pub async fn client(&self) -> RawClient {
        self.client_with(Config::default()).await
    }

    pub async fn client_with(&self, config: Config) -> RawClient {
        RawClient::with_config([self.scheduler.address.to_string()], config).await.unwrap()
    }
}

/// A transactional client of the cluster.
impl Cluster {
    pub async fn txn_client(&self) -> TransactionClient {
        self.txn_client_with(Config::default()).await
    }

    pub async fn txn_client_with(&self, config: Config) -> TransactionClient {
        TransactionClient::with_config([self.scheduler.address.to_string()], config).await.unwrap()
    }
}

/// Waits until `condition` holds; fails after five seconds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(5), "{what}");
        tokio::task::yield_now().await;
    }
}

/// Answers methods that no test uses.
#[macro_export]
macro_rules! unused_methods {
    ($($name:ident: $request:ty => $reply:ty;)*) => {$(
        fn $name<'life0, 'async_trait>(
            &'life0 self,
            _: tonic::Request<$request>,
        ) -> std::pin::Pin<
            Box<dyn Future<Output = Result<tonic::Response<$reply>, tonic::Status>> + Send + 'async_trait>,
        >
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(tonic::Status::unimplemented(stringify!($name))) })
        }
    )*};
}
