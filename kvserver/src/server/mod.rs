//! The server: listeners, services and their life, from start to a graceful stop.
//!
//! Start order: listeners (so that a taken port is found before anything is written), the store, the services.
//! Stop order: leaders leave, streams and listeners end, the store flushes and closes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;

use crate::clock;
use crate::config::{Compression, Config, ConfigError};
use crate::metrics::Metrics;
use crate::safe_points::SafePoints;
use crate::storage::store::Store;
use crate::txn::edge::Oracle;
use crate::txn::gc::worker::GcWorker;
use crate::txn::raw::Raw;
use crate::txn::scheduler::{Txn, TxnParts};

pub mod admission;
pub mod batch_service;
mod clustered;
pub mod convert;
pub mod deadlock_service;
pub mod edge;
mod gc;
mod grpc_threads;
pub mod health;
pub mod kv_service;
pub mod raft_service;
pub mod read_pool;
mod region_service;
mod standalone;
mod standalone_pd;
mod standalone_tso;
pub mod status;
mod wait_metrics;

use admission::{Admission, Cost};
use convert::raw::RawCommands;
use convert::txn::TxnCommands;
use deadlock_service::Deadlocks;
use edge::ServerTimer;
use kv_service::KvService;
use kvproto::tikvpb::tikv_server::TikvServer;
use read_pool::ReadPool;
use status::StatusPages;
use wait_metrics::WaitMetrics;

/// How long open calls may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(3);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen on {addr}: {cause}")]
    Listen { addr: String, cause: std::io::Error },
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("{0}")]
    Store(String),
}

/// A running server. Dropping it leaves it running until the runtime ends: call [`Server::shutdown`].
pub struct Server {
    addr: SocketAddr,
    status_addr: Option<SocketAddr>,
    pd_addr: Option<SocketAddr>,
    store: Arc<dyn Store>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// Removes garbage; `None` for a server that collects none.
    gc: Option<GcWorker>,
    /// Why the store cannot go on, once it cannot.
    failure: watch::Receiver<Option<String>>,
}

/// What a server is, and where its transactions get their timestamps and their limits from.
struct Role {
    name: &'static str,
    oracle: Arc<dyn Oracle>,
    safe_points: Arc<SafePoints>,
}

/// Sockets that are taken before anything else happens.
struct Listeners {
    grpc: TcpListener,
    status: Option<TcpListener>,
}

impl Listeners {
    /// Binds, and puts the ports that the system chose into the configuration.
    async fn bind(config: &mut Config) -> Result<Listeners, StartError> {
        let grpc = bind(&config.server.addr).await?;
        if config.server.advertise_addr == config.server.addr || config.server.advertise_addr.is_empty() {
            config.server.advertise_addr = local(&grpc)?.to_string();
        }
        config.server.addr = local(&grpc)?.to_string();
        let status = match config.server.status_addr.as_str() {
            "" => None,
            addr => Some(bind(addr).await?),
        };
        if let Some(status) = &status {
            config.server.status_addr = local(status)?.to_string();
        }
        Ok(Listeners { grpc, status })
    }
}

async fn bind(addr: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr).await.map_err(|cause| StartError::Listen { addr: addr.into(), cause })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|cause| StartError::Listen { addr: "a bound socket".into(), cause })
}

impl Server {
    /// Where gRPC listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the status pages are.
    pub fn status_addr(&self) -> Option<SocketAddr> {
        self.status_addr
    }

    /// Where a standalone server's scheduler service listens.
    pub fn pd_addr(&self) -> Option<SocketAddr> {
        self.pd_addr
    }

    pub fn store_id(&self) -> u64 {
        self.store.store_id()
    }

    pub fn cluster_id(&self) -> u64 {
        self.store.cluster_id()
    }

    /// Why the server should get no requests yet; empty when it should.
    pub fn not_ready(&self) -> Vec<String> {
        self.store.not_ready()
    }

    /// Waits until the store cannot go on, and says why. The process should end then: what it answers may be
    /// wrong. A store that never fails keeps this waiting.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        match failure.wait_for(|reason| reason.is_some()).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Serves `store` on `listeners`.
    fn serve(
        config: Config,
        listeners: Listeners,
        store: Arc<dyn Store>,
        role: Role,
        metrics: Arc<Metrics>,
        failure: watch::Receiver<Option<String>>,
    ) -> Result<Server, StartError> {
        let Role { name: role, oracle, safe_points } = role;
        let (addr, status_addr) =
            (local(&listeners.grpc)?, listeners.status.as_ref().map(local).transpose()?);
        let max =
            Cost { requests: config.server.max_requests, bytes: bytes(config.server.max_request_bytes.0) };
        let admission = Admission::new(max);
        let runtime = tokio::runtime::Handle::current();
        let pool = ReadPool::new(runtime, config.readpool.max_thread_count, config.readpool.max_tasks);
        let (pool, write_bytes_max) = (Arc::new(pool), bytes(config.raftstore.raft_entry_max_size.0));
        let raw = Raw::new(store.storage(), pool.clone(), write_bytes_max);
        let (storage, timer) = (store.storage(), Arc::new(ServerTimer));
        let stop = CancellationToken::new();
        let deadlocks = Deadlocks::start(store.clone(), stop.clone());
        let (detector, waits) = (Arc::new(deadlocks.clone()), config.pessimistic_txn.options());
        let txn = Arc::new(Txn::new(TxnParts {
            storage,
            pool,
            oracle,
            timer,
            detector,
            waits,
            safe_points,
            write_bytes_max,
        }));
        let service = KvService::new(
            RawCommands::new(raw),
            TxnCommands::new(txn.clone()).waiting(config.pessimistic_txn.wait_for_lock_timeout.as_millis()),
            admission.clone(),
            metrics.clone(),
            store.clone(),
            stop.clone(),
        );
        let waits = WaitMetrics::new(txn.clone(), deadlocks.clone())?;
        metrics.registry().register(Box::new(waits))?;
        let routes = Routes::new(kv_server(service, config.server.grpc_compression_type))
            .add_service(deadlocks.service())
            .add_service(health::service(store.clone()));
        let mut tasks = JoinSet::new();
        let stopping = stop.clone();
        tasks.spawn(async move {
            let _stopped = stopping.run_until_cancelled(txn.drive_waits()).await;
            txn.end_waits();
        });
        tasks.spawn(grpc_threads::serve(
            listeners.grpc,
            routes,
            config.server.grpc_concurrency,
            stop.clone(),
        ));
        if let Some(listener) = listeners.status {
            let started = clock::now();
            let store = store.clone();
            let pages = StatusPages { config, store, admission, metrics, role, started };
            tasks.spawn(serve_http(listener, status::router(Arc::new(pages)), stop.clone()));
        }
        tracing::info!(%addr, store = store.store_id(), cluster = store.cluster_id(), role, "serving");
        Ok(Server { addr, status_addr, pd_addr: None, store, stop, tasks, gc: None, failure })
    }

    /// Stops: leaders leave, open calls end, the store flushes. With `fast` leaders do not leave first.
    pub async fn shutdown(mut self, fast: bool) -> Result<(), StartError> {
        if !fast {
            self.store.leave().await;
        }
        self.stop.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("calls that were still open are cut off");
        }
        self.tasks.shutdown().await;
        let (store, gc) = (self.store.clone(), self.gc.take());
        let close = move || {
            if let Some(gc) = gc {
                gc.stop();
            }
            store.close()
        };
        let closed = tokio::task::spawn_blocking(close).await;
        closed.map_err(|e| StartError::Store(e.to_string()))?.map_err(StartError::Store)
    }
}

fn bytes(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// The largest request that is read at all. Far above what any command takes, so that what is merely too large is
/// refused by its command, with a reason; and far below what a lying length could make the server reserve.
const REQUEST_BYTES_MAX: usize = 256 << 20;

/// Requests may be compressed; replies are compressed only when this is configured, because
/// clients of the field offer it always and rarely gain from it.
fn kv_server(service: KvService, compression: Compression) -> TikvServer<KvService> {
    let server = TikvServer::new(service)
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip);
    match compression {
        Compression::None => server,
        Compression::Gzip => server.send_compressed(CompressionEncoding::Gzip),
    }
}

async fn serve_http(listener: TcpListener, router: axum::Router, stop: CancellationToken) {
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the status listener failed");
    }
}
