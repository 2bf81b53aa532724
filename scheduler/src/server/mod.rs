//! A running scheduler: opens the metadata, serves gRPC and HTTP on one port, and leads when it is its turn.
//!
//! Owns start-up and shut-down. At start: bind the port, open the metadata, read or choose the cluster id. A scheduler
//! with metadata of its own then leads at once and for good; one of several serves as a member and stands for
//! election. At the end: the lead is given back, streams end, connections finish, the last writes reach the disk.

mod config_api;
pub(crate) mod dispatch;
pub(crate) mod etcd_api;
mod forward;
mod gc_api;
mod gc_service;
pub(crate) mod grpc_service;
mod heartbeat_streams;
mod http_api;
mod http_json;
mod keyspace_service;
mod listener;
mod member_api;
mod member_service;
pub(crate) mod meta_writer;
pub(crate) mod metrics;
pub(crate) mod node;
mod operator_api;
mod placement_service;
mod region_scan;
mod scheduler_api;
mod split_service;
pub(crate) mod state;
mod timestamp_service;

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::kv::embedded_kv::EmbeddedKv;
use crate::kv::etcd_kv::Keys;
use crate::kv::etcd_pool::EtcdPool;
use crate::kv::location::Location;
use crate::kv::mem_kv::MemKv;
use crate::kv::records;
use crate::kv::{Kv, KvError};
use crate::member::directory::Directory;
use crate::member::election::{self, Elector};
use crate::member::leadership::Leadership;
use crate::member::{Member, id_of};
use metrics::Metrics;
use node::{Node, read_number};
use state::{Clock, number_txn};

/// How often time-outs and the patrol run.
const TICK: Duration = Duration::from_millis(100);
/// How many records are read at once at start.
const LOAD_CHUNK: usize = 4096;
/// Wishes for another leader that may wait.
const TRANSFERS_MAX: usize = 16;
/// Pause before etcd is asked again at start.
const START_RETRY: Duration = Duration::from_millis(500);

/// A running scheduler. Dropping it stops it without waiting; `shutdown` waits.
pub struct Server {
    node: Arc<Node>,
    addr: SocketAddr,
    stopping: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts a scheduler and returns when it serves: as the leader with metadata of its own, otherwise as a member.
    /// Waits for etcd. Needs a tokio runtime.
    pub async fn start(config: Config) -> Result<Server, Error> {
        config.validate()?;
        let (host, port) = config.listen_host_port()?;
        let listen = |cause| Error::Listen { addr: config.client_urls.clone(), cause };
        let listener = TcpListener::bind((host.as_str(), port)).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let client_urls = config.advertised_urls(addr.port())?;
        match config.location()? {
            Location::Directory(dir) => Server::start_alone(&config, dir, listener, addr, client_urls).await,
            Location::Etcd { endpoints, root } => {
                let (pool, keys) = (EtcdPool::new(&endpoints).await, Keys::new(&root));
                let pool = Arc::new(pool.map_err(KvError::from)?);
                Server::start_member(&config, pool, keys, listener, addr, client_urls).await
            }
        }
    }

    async fn start_alone(
        config: &Config,
        dir: PathBuf,
        listener: TcpListener,
        addr: SocketAddr,
        client_urls: Vec<String>,
    ) -> Result<Server, Error> {
        let clock = Clock::start();
        let (in_memory, dir, now_ms) = (config.in_memory, dir.join("meta"), clock.now_ms());
        let opening = tokio::task::spawn_blocking(move || open(in_memory, &dir, now_ms));
        let (kv, cluster_id) = opening.await.map_err(|e| KvError::Storage(format!("opening: {e}")))??;
        let me = Member { name: config.name.clone(), id: cluster_id, client_urls };
        let node = Arc::new(Node {
            directory: Arc::new(Directory::alone(me.clone())),
            me,
            cluster_id,
            config: config.to_core(),
            metrics: new_metrics(false)?,
            clock: Arc::new(clock),
            etcd: None,
            transfers: mpsc::channel(1).0,
            term: ArcSwapOption::empty(),
        });
        let stopping = CancellationToken::new();
        let leadership = Arc::new(Leadership::unlimited());
        let term = node.start_term(kv, leadership, stopping.clone()).await?;
        let (leader, ending) = (node.clone(), stopping.clone());
        let leading = tokio::spawn(async move {
            if let Err(error) = term.tick().await {
                // Final: requests are refused with the same reason until a restart.
                tracing::error!(%error, "the scheduler cannot save its metadata and stops scheduling");
            }
            ending.cancelled().await;
            leader.end_term(&term).await;
        });
        Ok(Server::serve(node, listener, addr, stopping, vec![leading]))
    }

    async fn start_member(
        config: &Config,
        pool: Arc<EtcdPool>,
        keys: Keys,
        listener: TcpListener,
        addr: SocketAddr,
        client_urls: Vec<String>,
    ) -> Result<Server, Error> {
        let clock = Clock::start();
        let me = Member { id: id_of(&config.name), name: config.name.clone(), client_urls };
        let (directory, proposed) = (Arc::new(Directory::default()), choose_cluster_id(clock.now_ms()));
        let (cluster_id, lease) = loop {
            match join(&pool, &keys, &me, &directory, proposed).await {
                Err(Error::Kv(error @ KvError::Unreachable(_))) => {
                    tracing::warn!(%error, "waiting for etcd");
                    tokio::time::sleep(START_RETRY).await;
                }
                other => break other?,
            }
        };
        let (sender, transfers) = mpsc::channel(TRANSFERS_MAX);
        let node = Arc::new(Node {
            directory: directory.clone(),
            me: me.clone(),
            cluster_id,
            config: config.to_core(),
            metrics: new_metrics(true)?,
            clock: Arc::new(clock),
            etcd: Some(pool.clone()),
            transfers: sender,
            term: ArcSwapOption::empty(),
        });
        let stopping = CancellationToken::new();
        let elector = Elector {
            pool: pool.clone(),
            keys: keys.clone(),
            me: me.clone(),
            directory: directory.clone(),
            transfers,
        };
        let leader = Arc::new(node.clone());
        let electing = tokio::spawn(elector.run(leader, stopping.clone()));
        let follow = directory.follow(pool.clone(), keys.clone());
        let following = until_stop(&stopping, follow);
        let registered = until_stop(&stopping, election::stay_registered(pool, keys, me, lease));
        Ok(Server::serve(node, listener, addr, stopping, vec![electing, following, registered]))
    }

    fn serve(
        node: Arc<Node>,
        listener: TcpListener,
        addr: SocketAddr,
        stopping: CancellationToken,
        mut tasks: Vec<JoinHandle<()>>,
    ) -> Server {
        let service = dispatch::service(node.clone());
        tasks.push(tokio::spawn(listener::serve(listener, service, stopping.clone())));
        let urls = node.me.client_urls.join(",");
        tracing::info!(%addr, urls, cluster_id = node.cluster_id, "scheduler serves");
        Server { node, addr, stopping, tasks }
    }

    /// The address in use.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The first URL clients are told.
    pub fn client_url(&self) -> String {
        self.node.me.url().to_string()
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.node.cluster_id
    }

    /// Stops serving, and returns when the lead is given back, everything is on the disk and the data directory is
    /// free.
    pub async fn shutdown(mut self) {
        self.stopping.cancel();
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the scheduler ended badly");
            }
        }
        tracing::info!("scheduler stopped");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

fn until_stop(
    stopping: &CancellationToken,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let stopping = stopping.clone();
    tokio::spawn(async move { stopping.run_until_cancelled_owned(task).await.unwrap_or_default() })
}

fn new_metrics(uses_etcd: bool) -> Result<Arc<Metrics>, Error> {
    let metrics = Metrics::new(uses_etcd).map_err(|e| Error::Config(format!("metrics: {e}")))?;
    Ok(Arc::new(metrics))
}

/// Takes a place among the schedulers of the cluster: returns the cluster's id, and the lease of the place.
async fn join(
    pool: &EtcdPool,
    keys: &Keys,
    me: &Member,
    directory: &Directory,
    proposed: u64,
) -> Result<(u64, i64), Error> {
    let cluster_id = election::agree_on_cluster_id(pool, keys, proposed).await?;
    directory.refresh(pool, keys).await.map_err(KvError::from)?;
    refuse_namesake(directory, me, cluster_id).await?;
    let lease = election::register(pool, keys, me).await.map_err(KvError::from)?;
    Ok((cluster_id, lease))
}

/// Two schedulers with one name would take each other's place in the list of members.
async fn refuse_namesake(directory: &Directory, me: &Member, cluster_id: u64) -> Result<(), Error> {
    let members = directory.view().members;
    let Some(namesake) = members.into_iter().find(|member| member.name == me.name) else { return Ok(()) };
    if namesake.client_urls == me.client_urls {
        return Ok(());
    }
    let url = namesake.url().to_string();
    match member_service::name_at(&url, cluster_id).await.as_deref() {
        Some(name) if name == me.name => Err(Error::Config(format!(
            "a scheduler with the name {name:?} runs at {url}: choose another --name, or stop that one first"
        ))),
        // It moved, and its old place is empty.
        _ => Ok(()),
    }
}

fn open(in_memory: bool, dir: &std::path::Path, now_ms: u64) -> Result<(Arc<dyn Kv>, u64), Error> {
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
    Ok((kv, cluster_id))
}

/// Unix seconds in the upper half, random bits in the lower one: never 0, and different for every cluster.
fn choose_cluster_id(now_ms: u64) -> u64 {
    // The standard hasher is seeded from the operating system's randomness.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    ((now_ms / 1000) << 32 | (random & 0xffff_ffff)).max(1)
}
