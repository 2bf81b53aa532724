//! `kvctl playground`: a real cluster in this process, through the same entries that the server programs use.
//!
//! Start: the scheduler, the first store (which bootstraps the cluster), the others at once, then wait until every
//! region is whole. End: the stores together, then the scheduler, then a temporary directory. A signal at any moment
//! goes the same way; a second one ends the process at once.

pub mod layout;
pub mod ready;

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use futures::future::join_all;
use kvserver::{Server, StartError};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Api, Global, Playground};
use crate::error::{Error, Result};
use crate::table;
use layout::{Layout, SavedStore};

const HOST: &str = "127.0.0.1";
/// Every region has a replica on so many stores, when there are as many.
const REPLICAS_MAX: usize = 3;
/// What one store of a playground may use; it shares the machine with the others and with the user's programs.
const STORE_MEMORY_BYTES: u64 = 512 << 20;

/// What a playground tells when it is ready.
#[derive(Debug, Serialize)]
struct Started {
    /// `HOST:PORT` for clients.
    scheduler: String,
    api: Api,
    stores: Vec<StartedStore>,
    data_dir: String,
    /// The data goes away at the end.
    temporary: bool,
    ready_seconds: f64,
}

#[derive(Debug, Serialize)]
struct StartedStore {
    id: u64,
    address: String,
    status_address: String,
}

/// Starts the cluster, tells how to use it, and stops it at a signal.
pub async fn run(global: &Global, args: Playground) -> Result<()> {
    let mut signals = Signals::new()?;
    let started = Instant::now();
    let any_port = args.port == 0;
    let mut layout = Layout::open(args.data_dir.as_deref(), args.stores, args.api, any_port)?;
    let mut cluster = Cluster::default();
    let outcome = match bring_up(&mut cluster, &mut layout, args.port, &mut signals).await {
        Ok(()) => {
            let ready = describe(&cluster, &layout, started.elapsed());
            let told = ready.and_then(|ready| global.output.print(&ready, guide));
            if told.is_ok() {
                signals.next().await;
                eprintln!("stopping; once more to stop at once");
            }
            told
        }
        Err(error) => Err(error),
    };
    tokio::select! {
        () = cluster.stop() => {}
        () = signals.next() => return Err(Error::Failed("stopped at once, data may need recovery".to_owned())),
    }
    layout.close()?;
    outcome
}

/// Ctrl-C and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let listen =
            |kind| signal(kind).map_err(|error| Error::Failed(format!("cannot catch signals: {error}")));
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The servers that run. Whatever part of a start was done, `stop` undoes it.
#[derive(Default)]
struct Cluster {
    scheduler: Option<scheduler::Server>,
    stores: Vec<Server>,
}

impl Cluster {
    /// Leaders stay until the end: every store that could take over stops as well.
    async fn stop(&mut self) {
        for stopped in join_all(self.stores.drain(..).map(|store| store.shutdown(true))).await {
            if let Err(error) = stopped {
                eprintln!("a store did not stop cleanly and will recover at its next start: {error}");
            }
        }
        if let Some(scheduler) = self.scheduler.take() {
            scheduler.shutdown().await;
        }
    }
}

/// Starts all servers and waits until the cluster is whole. A signal ends the wait, but not the start of a server in
/// the middle of opening its files; a second signal ends that as well.
async fn bring_up(
    cluster: &mut Cluster,
    layout: &mut Layout,
    port: u16,
    signals: &mut Signals,
) -> Result<()> {
    let stopped = || Error::Failed("stopped before the cluster was ready".to_owned());
    let stores = layout.saved.stores.len();
    let endpoint = {
        let mut starting = std::pin::pin!(start(cluster, layout, port));
        tokio::select! {
            endpoint = &mut starting => endpoint?,
            () = signals.next() => {
                tokio::select! {
                    _ = starting => {}
                    () = signals.next() => {}
                }
                return Err(stopped());
            }
        }
    };
    tokio::select! {
        ready = ready::wait(&endpoint, stores, stores.min(REPLICAS_MAX)) => ready,
        () = signals.next() => Err(stopped()),
    }
}

/// Starts all servers and returns the scheduler's address.
async fn start(cluster: &mut Cluster, layout: &mut Layout, port: u16) -> Result<String> {
    let stores = layout.saved.stores.len();
    let scheduler = start_scheduler(layout, port, stores.min(REPLICAS_MAX)).await?;
    let endpoint = scheduler.addr().to_string();
    cluster.scheduler = Some(scheduler);
    cluster.stores.push(start_store(layout, 0, &endpoint).await?);
    let others = (1..stores).map(|index| start_store(layout, index, &endpoint));
    let mut failed = None;
    // Those that started are kept also when another one failed: they have to be stopped.
    for other in join_all(others).await {
        match other {
            Ok(server) => cluster.stores.push(server),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    for (saved, server) in layout.saved.stores.iter_mut().zip(&cluster.stores) {
        let status_port = server.status_addr().map_or(0, |addr| addr.port());
        *saved = SavedStore { port: server.addr().port(), status_port };
    }
    layout.save()?;
    Ok(endpoint)
}

async fn start_scheduler(layout: &Layout, port: u16, replicas: usize) -> Result<scheduler::Server> {
    let mut config = scheduler::Config {
        name: "playground".to_owned(),
        data_dir: layout.scheduler_dir(),
        client_urls: format!("http://{HOST}:{port}"),
        in_memory: layout.is_temporary(),
        ..scheduler::Config::default()
    };
    config.replication.max_replicas = replicas;
    scheduler::Server::start(config).await.map_err(|error| match error {
        scheduler::Error::Listen { cause, .. } => Error::Failed(format!(
            "port {port} cannot be used: {cause}; choose another with --port, or 0 for any free one"
        )),
        other => Error::Failed(format!("scheduler: {other}")),
    })
}

async fn start_store(layout: &Layout, index: usize, endpoint: &str) -> Result<Server> {
    let saved = layout.saved.stores[index];
    let mut config = kvserver::config::Config::default();
    config.server.addr = address(saved.port);
    config.server.status_addr = address(saved.status_port);
    config.pd.endpoints = vec![endpoint.to_owned()];
    config.storage.data_dir = layout.store_dir(index);
    config.storage.api = match layout.saved.api {
        Api::V1 => kvserver::config::Api::V1,
        Api::V2 => kvserver::config::Api::V2,
    };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    config.resolve(STORE_MEMORY_BYTES, cores);
    let failed = |error: StartError| Error::Failed(format!("store {}: {error}", index + 1));
    Server::start(config).await.map_err(failed)
}

/// The wanted port, or any free one when something else has it: the store then registers its new address.
fn address(port: u16) -> String {
    let free = TcpListener::bind((HOST, port)).is_ok();
    format!("{HOST}:{}", if free { port } else { 0 })
}

fn describe(cluster: &Cluster, layout: &Layout, took: Duration) -> Result<Started> {
    let scheduler = cluster.scheduler.as_ref().map(scheduler::Server::addr);
    let scheduler = scheduler.ok_or_else(|| Error::Failed("the scheduler does not run".to_owned()))?;
    let store = |server: &Server| StartedStore {
        id: server.store_id(),
        address: server.addr().to_string(),
        status_address: server.status_addr().map(|addr| addr.to_string()).unwrap_or_default(),
    };
    let mut stores: Vec<StartedStore> = cluster.stores.iter().map(store).collect();
    stores.sort_by_key(|store| store.id);
    Ok(Started {
        scheduler: scheduler.to_string(),
        api: layout.saved.api,
        stores,
        data_dir: layout.root().display().to_string(),
        temporary: layout.is_temporary(),
        ready_seconds: took.as_secs_f64(),
    })
}

/// Endpoints and what to type next.
fn guide(started: &Started) -> String {
    let scheduler = &started.scheduler;
    let mut lines =
        vec![("scheduler".to_owned(), format!("{scheduler}  http://{scheduler}/pd/api/v1/stores"))];
    for store in &started.stores {
        let place = format!("{}  http://{}/status", store.address, store.status_address);
        lines.push((format!("store {}", store.id), place));
    }
    let kept = if started.temporary { "removed at the end; --data-dir DIR keeps it" } else { "kept" };
    lines.push(("data".to_owned(), format!("{} ({kept})", started.data_dir)));
    let facts = table::facts(lines.iter().map(|(name, fact)| (name.as_str(), fact.clone())));
    let flag = match scheduler.parse::<SocketAddr>() {
        Ok(address) if address.port() == 2379 => String::new(),
        _ => format!(" --scheduler {scheduler}"),
    };
    let api = match started.api {
        Api::V1 => "v1",
        Api::V2 => "v2",
    };
    format!(
        "{} stores, API {api}, ready in {:.2} s\n\n{facts}\n\n\
         Try in another terminal:\n  \
         kvctl raw put hello world{flag}\n  \
         kvctl raw scan{flag}\n  \
         kvctl cluster{flag}\n\n\
         Ctrl-C stops the cluster.",
        started.stores.len(),
        started.ready_seconds,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_replaced_by_any() {
        let taken = TcpListener::bind((HOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_eq!(address(port), "127.0.0.1:0");
        drop(taken);
        assert_eq!(address(port), format!("127.0.0.1:{port}"));
    }

    #[test]
    fn the_commands_to_try_reach_this_cluster() {
        let started = |scheduler: &str| Started {
            scheduler: scheduler.to_owned(),
            api: Api::V2,
            stores: Vec::new(),
            data_dir: "/d".to_owned(),
            temporary: false,
            ready_seconds: 1.0,
        };
        assert!(guide(&started("127.0.0.1:2379")).contains("kvctl cluster\n"));
        assert!(guide(&started("127.0.0.1:4000")).contains("kvctl cluster --scheduler 127.0.0.1:4000\n"));
    }
}
