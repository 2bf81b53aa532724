//! An etcd of one or more members on loopback, for schedulers that share their metadata, and for comparison.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ClusterError, Launch, Process, flags, free_address, get, wait_until};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// Running members.
#[derive(Debug)]
pub struct Etcd {
    pub members: Vec<Process>,
    clients: Vec<SocketAddr>,
}

impl Etcd {
    /// Where the program is, if it is installed.
    pub fn program() -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|candidate| candidate.is_file())
    }

    /// Starts that many members with data and logs in `dir`, and waits until all are healthy.
    pub fn start(dir: &Path, count: usize) -> Result<Self, ClusterError> {
        let program = Self::program().ok_or(ClusterError::NoProgram {
            name: "etcd",
            advice: "run scripts/bootstrap.sh, which installs Debian's etcd-server",
        })?;
        let clients: Vec<_> = (0..count).map(|_| free_address()).collect();
        let peers: Vec<_> = (0..count).map(|_| format!("http://{}", free_address())).collect();
        let all: Vec<String> = peers.iter().enumerate().map(|(n, url)| format!("m{n}={url}")).collect();
        let mut members = Vec::new();
        for n in 0..count {
            let (name, client) = (format!("etcd-{n}"), format!("http://{}", clients[n]));
            let args = flags(&[
                ("--name", &format!("m{n}")),
                ("--data-dir", &dir.join(&name).display().to_string()),
                ("--listen-client-urls", &client),
                ("--advertise-client-urls", &client),
                ("--listen-peer-urls", &peers[n]),
                ("--initial-advertise-peer-urls", &peers[n]),
                ("--initial-cluster", &all.join(",")),
                ("--initial-cluster-state", "new"),
                ("--log-level", "warn"),
            ]);
            let log = dir.join(format!("{name}.log"));
            members.push(Process::start(Launch { name, program: program.clone(), args, log })?);
        }
        let etcd = Self { members, clients };
        let all: Vec<usize> = (0..count).collect();
        etcd.wait_healthy(&all)?;
        Ok(etcd)
    }

    /// Waits until these members say that they are healthy, which needs a leader among all.
    pub fn wait_healthy(&self, members: &[usize]) -> Result<(), ClusterError> {
        let healthy =
            |n: &usize| get(self.clients[*n], "/health", Duration::from_secs(1)).is_ok_and(|r| r.is_ok());
        wait_until("healthy etcd members", READY_WITHIN, || members.iter().all(healthy))
    }

    /// `host:port` of every member.
    pub fn endpoints(&self) -> Vec<String> {
        self.clients.iter().map(ToString::to_string).collect()
    }

    /// What schedulers are told as their metadata.
    pub fn metadata_url(&self, prefix: &str) -> String {
        format!("etcd://{}/{prefix}", self.endpoints().join(","))
    }
}
