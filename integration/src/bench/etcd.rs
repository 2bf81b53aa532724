//! Three etcd members on loopback, for comparison: the same number of replicas, each put durable on a quorum,
//! each get linearizable.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::Client;

use super::load::{self, Load, Measured};
use super::{BenchError, Plan};
use crate::cluster::{Launch, Process, free_address, get, wait_until};

const MEMBERS: usize = 3;
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Keys in one transaction while loading: etcd's own limit.
const LOAD_BATCH: u64 = 128;

/// A running etcd.
pub struct Etcd {
    client: Client,
    _members: Vec<Process>,
}

/// Where etcd is, if it is installed.
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|candidate| candidate.is_file())
}

impl Etcd {
    /// Starts the members and waits until all are healthy.
    pub async fn start(program: &Path, dir: &Path) -> Result<Self, BenchError> {
        let clients: Vec<_> = (0..MEMBERS).map(|_| free_address()).collect();
        let peers: Vec<_> = (0..MEMBERS).map(|_| format!("http://{}", free_address())).collect();
        let all =
            peers.iter().enumerate().map(|(n, url)| format!("m{n}={url}")).collect::<Vec<_>>().join(",");
        let mut members = Vec::new();
        for n in 0..MEMBERS {
            let client = format!("http://{}", clients[n]);
            let flags = [
                ("--name", format!("m{n}")),
                ("--data-dir", dir.join(format!("etcd-{n}")).display().to_string()),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peers[n].clone()),
                ("--initial-advertise-peer-urls", peers[n].clone()),
                ("--initial-cluster", all.clone()),
                ("--initial-cluster-state", "new".to_string()),
                ("--log-level", "warn".to_string()),
            ];
            let args = flags.into_iter().flat_map(|(flag, value)| [flag.to_string(), value]).collect();
            let (name, log) = (format!("etcd-{n}"), dir.join(format!("etcd-{n}.log")));
            members.push(Process::start(Launch { name, program: program.to_path_buf(), args, log })?);
        }
        let healthy =
            |address| get(address, "/health", Duration::from_secs(1)).is_ok_and(|reply| reply.is_ok());
        wait_until("three healthy etcd members", READY_WITHIN, || {
            clients.iter().all(|address| healthy(*address))
        })?;
        let endpoints: Vec<String> = clients.iter().map(ToString::to_string).collect();
        let client = Client::connect(endpoints, None).await.map_err(|e| BenchError::client("etcd", e))?;
        Ok(Self { client, _members: members })
    }

    /// Writes all keys.
    pub async fn fill(&self, plan: &Plan) -> Result<(), BenchError> {
        let mut kv = self.client.kv_client();
        let value = vec![b'v'; plan.value_bytes];
        for first in (0..plan.keys).step_by(LOAD_BATCH as usize) {
            let put = |n| etcd_client::TxnOp::put(key(n), value.clone(), None);
            let puts: Vec<_> = (first..plan.keys.min(first + LOAD_BATCH)).map(put).collect();
            kv.txn(etcd_client::Txn::new().and_then(puts))
                .await
                .map_err(|e| BenchError::client("etcd", e))?;
        }
        Ok(())
    }

    pub async fn gets(&self, plan: &Plan, load: Load) -> Measured {
        let (kv, keys) = (self.client.kv_client(), plan.keys);
        load::run(load, move |numbers| {
            let (mut kv, key) = (kv.clone(), key(numbers.below(keys)));
            async move { kv.get(key, None).await.map(drop) }
        })
        .await
    }

    pub async fn puts(&self, plan: &Plan, load: Load) -> Measured {
        let (kv, keys, value) = (self.client.kv_client(), plan.keys, vec![b'v'; plan.value_bytes]);
        load::run(load, move |numbers| {
            let (mut kv, key, value) = (kv.clone(), key(numbers.below(keys)), value.clone());
            async move { kv.put(key, value, None).await.map(drop) }
        })
        .await
    }
}

fn key(n: u64) -> String {
    format!("bench/{n:012}")
}
