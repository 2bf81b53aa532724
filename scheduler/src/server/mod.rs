//! A running scheduler: opens the metadata, serves gRPC and HTTP on one port, and drives the clock.
//!
//! Owns start-up and shut-down. At start: bind the port, open the metadata, read or choose the cluster id, load
//! the state, make an id window and a timestamp window durable, and only then serve. At the end: streams end,
//! connections finish, the last writes reach the disk.

mod etcd_api;
pub(crate) mod grpc_service;
mod heartbeat_streams;
mod http_api;
mod http_json;
mod keyspace_service;
mod listener;
pub(crate) mod meta_writer;
mod metrics;
mod operator_api;
mod placement_service;
mod scheduler_api;
mod split_service;
pub(crate) mod state;
mod timestamp_service;

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;

use crate::cluster::Cluster;
use crate::config::Config;
use crate::error::Error;
use crate::id::WINDOW;
use crate::kv::embedded_kv::EmbeddedKv;
use crate::kv::mem_kv::MemKv;
use crate::kv::records::{self, MetaWrite};
use crate::kv::{Kv, KvError};
use crate::member::Member;
use crate::schedule::ScheduleConfig;
use crate::tso::service::{SAVE_INTERVAL, TsoService};
use grpc_service::GrpcService;
use meta_writer::MetaWriter;
use metrics::Metrics;
use state::{Clock, Parts, State, number_txn};

/// How often time-outs and the patrol run.
const TICK: Duration = Duration::from_millis(100);
/// How many records are read at once at start.
const LOAD_CHUNK: usize = 4096;

/// A running scheduler. Dropping it stops it without waiting; `shutdown` waits.
pub struct Server {
    state: Arc<State>,
    addr: SocketAddr,
    serving: JoinHandle<()>,
    ticking: JoinHandle<()>,
}

impl Server {
    /// Starts a scheduler and returns when it serves. Needs a tokio runtime.
    pub async fn start(config: Config) -> Result<Server, Error> {
        config.validate()?;
        let (host, port) = config.listen_host_port()?;
        let listen = |cause| Error::Listen { addr: config.client_urls.clone(), cause };
        let listener = TcpListener::bind((host.as_str(), port)).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;

        let clock = Clock::start();
        let (core_config, now_ms) = (config.to_core(), clock.now_ms());
        let (in_memory, dir) = (config.in_memory, config.data_dir.join("meta"));
        let opening = tokio::task::spawn_blocking(move || open(in_memory, &dir, core_config, now_ms));
        let opened = opening.await.map_err(|e| KvError::Storage(format!("opening: {e}")))??;

        let writer = Arc::new(MetaWriter::start(opened.kv).map_err(Error::Thread)?);
        let member = Member {
            name: config.name.clone(),
            id: opened.cluster.id(),
            client_urls: config.advertised_urls(addr.port())?,
        };
        let state = Arc::new(State::new(Parts {
            cluster: opened.cluster,
            id_end: opened.id_end,
            tso: TsoService::new(opened.tso_end_ms, writer.clone()),
            writer,
            metrics: Metrics::new().map_err(|e| Error::Config(format!("metrics: {e}")))?,
            member,
            clock,
            stopping: CancellationToken::new(),
        }));
        state.extend_ids(WINDOW).await?;
        state.tso.allocate(1).await?;

        let service = listener::join(grpc_routes(&state), http_api::routes(state.clone()));
        let serving = tokio::spawn(listener::serve(listener, service, state.stopping.clone()));
        let ticking = tokio::spawn(tick(state.clone()));
        let urls = state.member.client_urls.join(",");
        tracing::info!(%addr, urls, cluster_id = state.cluster_id(), "scheduler serves");
        Ok(Server { state, addr, serving, ticking })
    }

    /// The address in use.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The first URL clients are told.
    pub fn client_url(&self) -> String {
        self.state.member.client_urls.first().cloned().unwrap_or_default()
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.state.cluster_id()
    }

    /// Stops serving, and returns when everything is on the disk and the data directory is free.
    pub async fn shutdown(mut self) {
        self.state.stopping.cancel();
        for task in [&mut self.serving, &mut self.ticking] {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the scheduler ended badly");
            }
        }
        self.state.writer.stop().await;
        tracing::info!("scheduler stopped");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stopping.cancel();
    }
}

fn grpc_routes(state: &Arc<State>) -> axum::Router {
    use kvproto::etcdserverpb::cluster_server::ClusterServer;
    use kvproto::etcdserverpb::kv_server::KvServer;
    use kvproto::health::health_server::HealthServer;
    use kvproto::keyspacepb::keyspace_server::KeyspaceServer;
    use kvproto::pdpb::pd_server::PdServer;
    let service = GrpcService::new(state.clone());
    tonic::service::Routes::new(PdServer::new(service.clone()).accept_compressed(CompressionEncoding::Gzip))
        .add_service(KeyspaceServer::new(service.clone()).accept_compressed(CompressionEncoding::Gzip))
        .add_service(KvServer::new(service.clone()).accept_compressed(CompressionEncoding::Gzip))
        .add_service(ClusterServer::new(service.clone()).accept_compressed(CompressionEncoding::Gzip))
        .add_service(HealthServer::new(service).accept_compressed(CompressionEncoding::Gzip))
        .into_axum_router()
}

async fn tick(state: Arc<State>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut saves = tokio::time::interval(SAVE_INTERVAL);
    saves.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let outcome = tokio::select! {
            () = state.stopping.cancelled() => return,
            _ = ticks.tick() => {
                state.change(|cluster, ids, now_ms| Ok(((), cluster.tick(now_ms, ids)))).await
                    .map_err(|e| e.to_string())
            }
            _ = saves.tick() => state.tso.save_ahead().await.map_err(|e| e.to_string()),
        };
        if let Err(error) = outcome {
            // Final: requests are refused with the same reason until a restart.
            tracing::error!(error, "the scheduler cannot save its metadata and stops scheduling");
            return;
        }
    }
}

struct Opened {
    kv: Arc<dyn Kv>,
    cluster: Cluster,
    id_end: u64,
    tso_end_ms: u64,
}

fn open(
    in_memory: bool,
    dir: &std::path::Path,
    config: ScheduleConfig,
    now_ms: u64,
) -> Result<Opened, Error> {
    let kv: Arc<dyn Kv> = match in_memory {
        true => Arc::new(MemKv::default()),
        false => Arc::new(EmbeddedKv::open(dir)?),
    };
    let cluster_id = match read_number(kv.as_ref(), records::CLUSTER_ID)? {
        0 => {
            let id = choose_cluster_id(now_ms);
            kv.commit(&number_txn(records::CLUSTER_ID, 0, id))?;
            id
        }
        id => id,
    };
    let mut cluster = Cluster::new(cluster_id, config);
    let mut start = Bytes::from_static(records::RECORDS_START);
    loop {
        let chunk = kv.range(&start, records::RECORDS_END, LOAD_CHUNK)?;
        let Some((last, _)) = chunk.last() else { break };
        start = [last.as_ref(), &[0]].concat().into();
        for (key, value) in chunk {
            cluster.restore(MetaWrite::decode(&key, &value)?, now_ms)?;
        }
    }
    let id_end = read_number(kv.as_ref(), records::ID_END)?;
    let tso_end_ms = read_number(kv.as_ref(), records::TSO_END)?;
    Ok(Opened { kv, cluster, id_end, tso_end_ms })
}

fn read_number(kv: &dyn Kv, key: Bytes) -> Result<u64, Error> {
    match kv.get(&key)? {
        Some(value) => Ok(records::decode_number(&key, &value)?),
        None => Ok(0),
    }
}

/// Unix seconds in the upper half, random bits in the lower one: never 0, and different for every cluster.
fn choose_cluster_id(now_ms: u64) -> u64 {
    // The standard hasher is seeded from the operating system's randomness.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    ((now_ms / 1000) << 32 | (random & 0xffff_ffff)).max(1)
}
