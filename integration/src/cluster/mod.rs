//! Clusters of real processes: one scheduler and any number of stores, each with its own directory, ports and
//! log, all on loopback. Servers are waited for by condition with a deadline, killed, frozen and restarted by
//! process id, and gone when the cluster is dropped. After a failed test the ends of their logs are printed.

pub mod by_hand;
pub mod damage;
pub mod direct;
pub mod disk;
pub mod etcd;
pub mod faults;
pub mod group;
pub mod history;
mod http;
pub mod placement;
mod ports;
mod process;
pub mod proxy;
pub mod regions;
pub mod split;
pub mod timestamps;
pub mod txn_load;
pub mod workload;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvproto::key::{KeyspaceId, Mode};
use tempfile::TempDir;

pub use direct::Watch;
pub use etcd::Etcd;
pub use group::SchedulerGroup;
pub use http::{Reply, delete, get, send};
pub use ports::free_address;
pub use process::{Launch, Process};
pub use proxy::{End, Links};
pub use workload::{Load, LoadOptions, Report};

/// A server that is not ready after this long never will be, even on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// Replicas that a region should have where there are stores enough.
const REPLICAS: usize = 3;

/// Why a cluster is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("there is no {}: run `cargo build --workspace --bins` (with the same profile) first", .path.display())]
    NoBinary { path: PathBuf },
    #[error("{name} is not installed: {advice}")]
    NoProgram { name: &'static str, advice: &'static str },
    #[error("{name} could not be started: {source}")]
    Start { name: String, source: io::Error },
    #[error("{name} ended with {status}; its last lines:\n{tail}")]
    Died { name: String, status: String, tail: String },
    #[error("waited {within:?} in vain for {what}")]
    TimedOut { what: String, within: Duration },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Looks at a condition until it holds or the time is over.
pub fn wait_until(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<(), ClusterError> {
    wait_for(what, within, || condition().then_some(()))
}

/// Looks for a value until there is one or the time is over.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, ClusterError> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(ClusterError::TimedOut { what: what.to_string(), within });
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that polls: another process has no event to wait for"
        )]
        std::thread::sleep(POLL_EVERY);
    }
}

/// The directory of the built programs: where the running test or program itself was built.
pub fn binary_dir() -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().unwrap_or(Path::new("."));
    Ok(if dir.ends_with("deps") || dir.ends_with("examples") { dir.join("..") } else { dir.to_path_buf() })
}

/// A built program of this workspace.
pub fn binary(name: &str) -> Result<PathBuf, ClusterError> {
    let path = binary_dir()?.join(name);
    if path.is_file() { Ok(path.canonicalize()?) } else { Err(ClusterError::NoBinary { path }) }
}

/// What a cluster should be like.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    pub stores: usize,
    /// TOML for the scheduler; empty for its defaults.
    pub scheduler_config: String,
    /// TOML for every store; empty for the defaults.
    pub store_config: String,
    /// Where data and logs go; a temporary directory when absent.
    pub dir: Option<PathBuf>,
    /// Data directories of single stores, by their place; the others get one in `dir`.
    pub data_dirs: BTreeMap<usize, PathBuf>,
    /// Stores are reached through proxies, so that their connections can be cut.
    pub proxied: bool,
}

impl ClusterOptions {
    /// The same, but leaders stay where they are unless something happens to them: the scheduler does not even them out.
    /// For tests that talk to one leader.
    pub fn with_leaders_at_rest(self) -> Self {
        let scheduler_config = "[schedule]\nleader-schedule-limit = 0\n".into();
        Self { scheduler_config, ..self }
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            stores: 3,
            scheduler_config: String::new(),
            store_config: String::new(),
            dir: None,
            data_dirs: BTreeMap::new(),
            proxied: false,
        }
    }
}

/// One store process and where it answers.
#[derive(Debug)]
pub struct Store {
    pub process: Process,
    /// gRPC.
    pub address: SocketAddr,
    /// Where others reach it: a proxy, or `address` itself.
    pub advertised: SocketAddr,
    /// HTTP status server.
    pub status_address: SocketAddr,
    pub data_dir: PathBuf,
}

impl Store {
    /// Waits until the store says that it is ready to serve.
    pub fn wait_ready(&mut self) -> Result<(), ClusterError> {
        wait_answer(&mut self.process, self.status_address, "/ready")
    }

    /// What the store says of its replica of a region: `applied_index`, `first_index` and more.
    pub fn replica(&self, region: u64) -> Option<serde_json::Value> {
        let reply = get(self.status_address, &format!("/region/{region}"), Duration::from_secs(5)).ok()?;
        reply.json().ok().map(|described| described["raft"].clone()).filter(serde_json::Value::is_object)
    }

    /// The process has crashed and comes back: same directory, same ports.
    pub fn restart(&mut self) -> Result<(), ClusterError> {
        self.process.kill();
        self.process.start_again()?;
        self.wait_ready()
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct ProcessCluster {
    pub scheduler: Process,
    pub scheduler_address: SocketAddr,
    pub stores: Vec<Store>,
    /// The network between stores, when they are proxied.
    pub links: Option<Links>,
    dir: PathBuf,
    options: ClusterOptions,
    _temporary: Option<TempDir>,
}

impl ProcessCluster {
    /// Starts everything and waits until every region has its replicas and a leader.
    pub fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let temporary = if options.dir.is_none() {
            Some(tempfile::Builder::new().prefix("kvasir-").tempdir()?)
        } else {
            None
        };
        let dir = match (&options.dir, &temporary) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temporary)) => temporary.path().to_path_buf(),
            (None, None) => unreachable!("one of the two is set above"),
        };
        let scheduler_address = free_address();
        let scheduler = Process::start(scheduler_launch(&dir, scheduler_address, &options)?)?;
        let links = options.proxied.then(Links::new).transpose()?;
        let (stores, _temporary) = (Vec::new(), temporary);
        let mut cluster = Self { scheduler, scheduler_address, stores, links, dir, options, _temporary };
        cluster.wait_scheduler()?;
        for _ in 0..cluster.options.stores {
            cluster.spawn_store()?;
        }
        cluster.stores.iter_mut().try_for_each(Store::wait_ready)?;
        cluster.wait_replicated()?;
        Ok(cluster)
    }

    /// `host:port` of the scheduler, as clients want it.
    pub fn endpoint(&self) -> String {
        self.scheduler_address.to_string()
    }

    /// Adds a store and waits until it is ready.
    pub fn add_store(&mut self) -> Result<usize, ClusterError> {
        let index = self.spawn_store()?;
        self.stores[index].wait_ready()?;
        Ok(index)
    }

    fn spawn_store(&mut self) -> Result<usize, ClusterError> {
        let index = self.stores.len();
        let name = format!("store-{}", index + 1);
        let (address, status_address) = (free_address(), free_address());
        let data_dir = self.options.data_dirs.get(&index).cloned().unwrap_or_else(|| self.dir.join(&name));
        let pid = Arc::default();
        let advertised = match &self.links {
            Some(links) => links.add_store(address, Arc::clone(&pid))?,
            None => address,
        };
        let addresses = StoreAddresses { address, advertised, status_address };
        let launch = store_launch(&self.dir, &name, &data_dir, &addresses, self)?;
        let process = Process::start_watched(launch, pid)?;
        self.stores.push(Store { process, address, advertised, status_address, data_dir });
        Ok(index)
    }

    /// The network between stores.
    ///
    /// # Panics
    /// When the cluster was not started with `proxied`.
    pub fn links(&self) -> &Links {
        self.links.as_ref().expect("a cluster whose connections are to be cut is started with `proxied`")
    }

    /// Directory of everything that has no place of its own.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn wait_scheduler(&mut self) -> Result<(), ClusterError> {
        wait_answer(&mut self.scheduler, self.scheduler_address, "/pd/api/v1/health")
    }

    /// Kills the scheduler and starts it again on the same data.
    pub fn restart_scheduler(&mut self) -> Result<(), ClusterError> {
        self.scheduler.kill();
        self.scheduler.start_again()?;
        self.wait_scheduler()
    }

    /// Everything crashes at once and comes back.
    pub fn restart_all(&mut self) -> Result<(), ClusterError> {
        self.stores.iter_mut().for_each(|store| store.process.kill());
        self.restart_scheduler()?;
        for store in &mut self.stores {
            store.process.start_again()?;
        }
        self.stores.iter_mut().try_for_each(Store::wait_ready)
    }

    /// The scheduler's answer to `GET path`, as JSON.
    pub fn api(&self, path: &str) -> Result<serde_json::Value, ClusterError> {
        Ok(get(self.scheduler_address, path, Duration::from_secs(5))?.json()?)
    }

    /// Waits until every region has a leader and as many voters as it should, none of them behind.
    pub fn wait_replicated(&self) -> Result<(), ClusterError> {
        let want = REPLICAS.min(self.options.stores);
        wait_until(&format!("{want} replicas of every region"), READY_WITHIN, || {
            self.api("/pd/api/v1/regions").is_ok_and(|regions| is_replicated(&regions, want))
        })
    }

    /// Waits until a store has applied everything that is committed by now in any region.
    pub fn wait_caught_up(&self, index: usize) -> Result<(), ClusterError> {
        let regions = self.api("/pd/api/v1/regions")?;
        let ids =
            regions["regions"].as_array().into_iter().flatten().filter_map(|region| region["id"].as_u64());
        for id in ids {
            let committed = |store: &Store| store.replica(id)?["commit_index"].as_u64();
            let goal = self.stores.iter().filter_map(committed).max();
            let applied = || self.stores[index].replica(id)?["applied_index"].as_u64();
            wait_until(
                &format!("{} to apply {goal:?}", self.stores[index].process.name()),
                READY_WITHIN,
                || goal.is_some() && applied() >= goal,
            )?;
        }
        Ok(())
    }

    /// The region where the raw keys of keyspace DEFAULT begin, as far as the scheduler knows; in a v1 cluster, where
    /// all raw keys begin.
    fn data_region(&self) -> Option<serde_json::Value> {
        let keyspace = kvproto::key::encode(&KeyspaceId::DEFAULT.prefix(Mode::Raw));
        let keyspace: String = keyspace.iter().map(|byte| format!("{byte:02X}")).collect();
        let mut regions = self.api("/pd/api/v1/regions").ok()?;
        let regions = regions["regions"].as_array_mut()?;
        let starts_at = |start: &str| regions.iter().position(|region| region["start_key"] == start);
        let position = starts_at(&keyspace).or_else(|| starts_at(""))?;
        Some(regions.swap_remove(position))
    }

    /// Id of the region where raw keys go.
    pub fn data_region_id(&self) -> Option<u64> {
        self.data_region()?["id"].as_u64()
    }

    /// Index of the store that leads the region where raw keys go.
    pub fn leader(&self) -> Option<usize> {
        let leader = self.data_region()?["leader"]["store_id"].as_u64()?;
        let stores = self.api("/pd/api/v1/stores").ok()?;
        let store = stores["stores"]
            .as_array()?
            .iter()
            .find(|store| store["store"]["id"].as_u64() == Some(leader))?;
        let address: SocketAddr = store["store"]["address"].as_str()?.parse().ok()?;
        self.stores.iter().position(|store| store.advertised == address)
    }

    /// The number that the scheduler gave to a store.
    pub fn store_id(&self, index: usize) -> Result<u64, ClusterError> {
        let address = self.stores[index].advertised.to_string();
        let stores = self.api("/pd/api/v1/stores")?;
        let mut stores = stores["stores"].as_array().into_iter().flatten();
        let store = stores.find(|store| store["store"]["address"] == address.as_str());
        let id = store.and_then(|store| store["store"]["id"].as_u64());
        id.ok_or_else(|| io::Error::other(format!("the scheduler knows no store at {address}")).into())
    }

    /// Has the scheduler remove a store and waits until the others hold everything.
    pub fn remove_store(&self, index: usize) -> Result<(), ClusterError> {
        let id = self.store_id(index)?;
        let path = format!("/pd/api/v1/store/{id}");
        let reply = delete(self.scheduler_address, &path, Duration::from_secs(5))?;
        if !reply.is_ok() {
            return Err(io::Error::other(format!("store {id} not removed: {}", reply.body)).into());
        }
        let holds = |region: &serde_json::Value| {
            region["peers"].as_array().into_iter().flatten().any(|peer| peer["store_id"] == id)
        };
        wait_until(&format!("store {id} to hold no region"), READY_WITHIN, || {
            let regions = self.api("/pd/api/v1/regions");
            regions.is_ok_and(|r| !r["regions"].as_array().into_iter().flatten().any(holds))
        })?;
        self.wait_replicated()
    }

    /// The launch of a further process on the directory and the ports of a store: it must refuse to start.
    pub fn second_on(&self, index: usize) -> Result<Launch, ClusterError> {
        let store = &self.stores[index];
        let (address, status_address) = (free_address(), free_address());
        let addresses = StoreAddresses { address, advertised: address, status_address };
        store_launch(&self.dir, &format!("second-{}", index + 1), &store.data_dir, &addresses, self)
    }
}

/// A store without Raft that is its own scheduler, on a temporary directory.
#[derive(Debug)]
pub struct Standalone {
    pub store: Store,
    pub scheduler_address: SocketAddr,
    _dir: TempDir,
}

impl Standalone {
    /// Starts it with this configuration and waits until it is ready.
    pub fn start(config: &str) -> Result<Self, ClusterError> {
        let dir = tempfile::Builder::new().prefix("kvasir-").tempdir()?;
        let [address, status_address, scheduler_address] = [free_address(), free_address(), free_address()];
        let (name, data_dir) = ("standalone".to_string(), dir.path().join("data"));
        let mut args = vec!["standalone".to_string()];
        args.extend(flags(&[
            ("--addr", &address.to_string()),
            ("--status-addr", &status_address.to_string()),
            ("--pd-addr", &scheduler_address.to_string()),
            ("--data-dir", &data_dir.display().to_string()),
        ]));
        args.extend(config_flag(dir.path(), &name, config)?);
        let log = dir.path().join("standalone.log");
        let process = Process::start(Launch { name, program: binary("kvserver")?, args, log })?;
        let mut store = Store { process, address, advertised: address, status_address, data_dir };
        store.wait_ready()?;
        Ok(Self { store, scheduler_address, _dir: dir })
    }

    /// `host:port` of the scheduler service, as clients want it.
    pub fn endpoint(&self) -> String {
        self.scheduler_address.to_string()
    }
}

/// Every region in the scheduler's list has a leader, `want` voters, and nobody down or behind.
fn is_replicated(regions: &serde_json::Value, want: usize) -> bool {
    let none = |region: &serde_json::Value, key: &str| region[key].as_array().is_none_or(Vec::is_empty);
    let complete = |region: &serde_json::Value| {
        let peers = region["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_learner =
            |peer: &serde_json::Value| peer["is_learner"] == true || peer["role_name"] == "Learner";
        region["leader"]["store_id"].as_u64().is_some_and(|id| id != 0)
            && peers.len() == want
            && !peers.iter().any(is_learner)
            && none(region, "down_peers")
            && none(region, "pending_peers")
    };
    regions["regions"].as_array().is_some_and(|list| !list.is_empty() && list.iter().all(complete))
}

fn wait_answer(process: &mut Process, address: SocketAddr, path: &str) -> Result<(), ClusterError> {
    let mut dead = None;
    let waited = wait_until(&format!("{} to answer {path}", process.name()), READY_WITHIN, || {
        dead = process.died();
        dead.is_some() || get(address, path, Duration::from_secs(1)).is_ok_and(|reply| reply.is_ok())
    });
    match dead {
        Some(status) => {
            let name = process.name().to_string();
            Err(ClusterError::Died { name, status: status.to_string(), tail: process.log_tail() })
        }
        None => waited,
    }
}

fn scheduler_launch(
    dir: &Path,
    address: SocketAddr,
    options: &ClusterOptions,
) -> Result<Launch, ClusterError> {
    let name = "scheduler".to_string();
    let url = format!("http://{address}");
    let mut args = flags(&[
        ("--name", name.as_str()),
        ("--data-dir", &dir.join("scheduler").display().to_string()),
        ("--client-urls", &url),
        ("--advertise-client-urls", &url),
    ]);
    args.extend(config_flag(dir, &name, &options.scheduler_config)?);
    Ok(Launch { program: binary("scheduler")?, args, log: dir.join("scheduler.log"), name })
}

/// Where a store listens, and where it says it does.
struct StoreAddresses {
    address: SocketAddr,
    advertised: SocketAddr,
    status_address: SocketAddr,
}

fn store_launch(
    dir: &Path,
    name: &str,
    data_dir: &Path,
    addresses: &StoreAddresses,
    cluster: &ProcessCluster,
) -> Result<Launch, ClusterError> {
    let mut args = flags(&[
        ("--addr", &addresses.address.to_string()),
        ("--advertise-addr", &addresses.advertised.to_string()),
        ("--status-addr", &addresses.status_address.to_string()),
        ("--pd-endpoints", &cluster.endpoint()),
        ("--data-dir", &data_dir.display().to_string()),
    ]);
    args.extend(config_flag(dir, name, &cluster.options.store_config)?);
    Ok(Launch {
        program: binary("kvserver")?,
        args,
        log: dir.join(format!("{name}.log")),
        name: name.to_string(),
    })
}

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().flat_map(|(flag, value)| [flag.to_string(), value.to_string()]).collect()
}

fn config_flag(dir: &Path, name: &str, config: &str) -> Result<Vec<String>, ClusterError> {
    if config.is_empty() {
        return Ok(Vec::new());
    }
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, config)?;
    Ok(vec!["--config".to_string(), path.display().to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_is_an_error_that_names_it() {
        let error = wait_until("rain", Duration::from_millis(1), || false).unwrap_err();
        assert!(error.to_string().ends_with("in vain for rain"), "{error}");
    }

    #[test]
    fn a_region_counts_as_replicated_only_with_all_its_voters() {
        let region = |text: &str| serde_json::json!({ "regions": [serde_json::from_str::<serde_json::Value>(text).unwrap()] });
        let three = r#"{"leader":{"store_id":1},"peers":[{"id":1},{"id":2},{"id":3}]}"#;
        assert!(is_replicated(&region(three), 3));
        assert!(!is_replicated(&region(three), 2));
        assert!(!is_replicated(&region(&three.replace(r#"{"id":3}"#, r#"{"id":3,"is_learner":true}"#)), 3));
        assert!(!is_replicated(&region(&three.replace(r#""store_id":1"#, r#""store_id":0"#)), 3));
        assert!(!is_replicated(
            &region(&three.replace(r#""peers""#, r#""pending_peers":[{"id":3}],"peers""#)),
            3
        ));
        assert!(!is_replicated(&serde_json::json!({ "regions": [] }), 3));
    }
}
