//! Clusters with several schedulers that share an etcd, and any number of stores.
//!
//! Owns all their processes. Every store and client is told of all schedulers, so any of them may die.

use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;

use super::etcd::Etcd;
use super::{
    ClusterError, Launch, Process, READY_WITHIN, REPLICAS, Store, binary, flags, free_address, get,
    is_replicated, wait_answer, wait_for, wait_until,
};

/// A process that is frozen must not hold up the question to the others for long.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// What the keys of a group's cluster begin with in etcd, after `/kvasir/`.
pub const PREFIX: &str = "test";

/// One scheduler.
#[derive(Debug)]
pub struct Scheduler {
    pub process: Process,
    pub address: SocketAddr,
    pub name: String,
}

impl Scheduler {
    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let page = get(self.address, "/metrics", ANSWER_WITHIN).ok()?;
        let line = page.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.trim().parse().ok()
    }

    /// Whether it says that it leads.
    pub fn leads(&self) -> bool {
        self.metric("scheduler_is_leader") == Some(1.0)
    }

    /// Freezes it, and waits until none of its threads runs any more.
    pub fn freeze(&self) -> Result<(), ClusterError> {
        self.process.freeze();
        let tasks = format!("/proc/{}/task", self.process.pid().unwrap_or_default());
        wait_until("a frozen process", READY_WITHIN, || {
            let Ok(mut threads) = std::fs::read_dir(&tasks) else { return false };
            threads.all(|thread| {
                let stat = thread.and_then(|thread| std::fs::read_to_string(thread.path().join("stat")));
                stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
            })
        })
    }

    /// Waits until it answers.
    pub fn wait_serving(&mut self) -> Result<(), ClusterError> {
        wait_answer(&mut self.process, self.address, "/ping")
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct SchedulerGroup {
    pub schedulers: Vec<Scheduler>,
    pub stores: Vec<Store>,
    pub etcd: Etcd,
    dir: TempDir,
}

impl SchedulerGroup {
    /// Starts everything, and waits until a scheduler leads and every region has its replicas.
    pub fn start(etcd_members: usize, schedulers: usize, stores: usize) -> Result<Self, ClusterError> {
        let dir = tempfile::Builder::new().prefix("kvasir-").tempdir()?;
        let etcd = Etcd::start(dir.path(), etcd_members)?;
        let mut group = Self { schedulers: Vec::new(), stores: Vec::new(), etcd, dir };
        for n in 1..=schedulers {
            group.add_scheduler(&format!("s{n}"))?;
        }
        group.schedulers.iter_mut().try_for_each(Scheduler::wait_serving)?;
        group.wait_leader()?;
        for n in 1..=stores {
            group.add_store(&format!("store-{n}"))?;
        }
        group.stores.iter_mut().try_for_each(Store::wait_ready)?;
        if stores > 0 {
            group.wait_replicated()?;
        }
        Ok(group)
    }

    /// How a scheduler with that name is started, of the cluster with that prefix.
    pub fn scheduler_launch(
        &self,
        name: &str,
        prefix: &str,
        address: SocketAddr,
    ) -> Result<Launch, ClusterError> {
        let args = flags(&[
            ("--name", name),
            ("--metadata", &self.etcd.metadata_url(prefix)),
            ("--client-urls", &format!("http://{address}")),
        ]);
        let log = self.dir.path().join(format!("{name}-{}.log", address.port()));
        Ok(Launch { name: name.into(), program: binary("scheduler")?, args, log })
    }

    fn add_scheduler(&mut self, name: &str) -> Result<(), ClusterError> {
        let address = free_address();
        let process = Process::start(self.scheduler_launch(name, PREFIX, address)?)?;
        self.schedulers.push(Scheduler { process, address, name: name.into() });
        Ok(())
    }

    fn add_store(&mut self, name: &str) -> Result<(), ClusterError> {
        let (address, status_address) = (free_address(), free_address());
        let data_dir = self.dir.path().join(name);
        let args = flags(&[
            ("--addr", &address.to_string()),
            ("--status-addr", &status_address.to_string()),
            ("--pd-endpoints", &self.endpoints().join(",")),
            ("--data-dir", &data_dir.display().to_string()),
        ]);
        let log = self.dir.path().join(format!("{name}.log"));
        let process = Process::start(Launch { name: name.into(), program: binary("kvserver")?, args, log })?;
        self.stores.push(Store { process, address, advertised: address, status_address, data_dir });
        Ok(())
    }

    /// `host:port` of every scheduler.
    pub fn endpoints(&self) -> Vec<String> {
        self.schedulers.iter().map(|scheduler| scheduler.address.to_string()).collect()
    }

    /// Which scheduler says that it leads.
    pub fn leader(&self) -> Option<usize> {
        self.schedulers.iter().position(Scheduler::leads)
    }

    /// Waits until a scheduler leads.
    pub fn wait_leader(&self) -> Result<usize, ClusterError> {
        wait_for("a leading scheduler", READY_WITHIN, || self.leader())
    }

    /// Waits until a scheduler leads that is not this one.
    pub fn wait_other_leader(&self, than: usize) -> Result<usize, ClusterError> {
        wait_for("another leading scheduler", READY_WITHIN, || {
            let others = self.schedulers.iter().enumerate().filter(|(n, _)| *n != than);
            others.into_iter().find(|(_, scheduler)| scheduler.leads()).map(|(n, _)| n)
        })
    }

    /// Waits until the leader has heard of every region: a leader, all voters, nobody behind.
    pub fn wait_replicated(&self) -> Result<(), ClusterError> {
        let want = REPLICAS.min(self.stores.len());
        wait_until("reports of every region at the leading scheduler", READY_WITHIN, || {
            let regions = self.leader().and_then(|leader| {
                get(self.schedulers[leader].address, "/pd/api/v1/regions", ANSWER_WITHIN).ok()?.json().ok()
            });
            regions.is_some_and(|regions| is_replicated(&regions, want))
        })
    }
}
