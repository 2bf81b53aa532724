//! Our cluster of three stores as separate processes, measured through the official client of the field and,
//! in a process of its own, through our SDK (`kvctl bench`).

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tikv_client::{Config, Key, KvPair, RawClient};

use super::load::{self, Load, Measured};
use super::usage::{self, Usage};
use super::{BenchError, Plan};
use crate::cluster::{ClusterOptions, ProcessCluster, binary};

/// Pairs in one batch put while loading.
const LOAD_BATCH: u64 = 500;

/// A running cluster, filled.
pub struct Kvasir {
    cluster: ProcessCluster,
    /// From the first process started until every region had its replicas.
    pub ready_after: Duration,
}

impl Kvasir {
    pub fn start(dir: &Path) -> Result<Self, BenchError> {
        let begin = std::time::Instant::now();
        let options = ClusterOptions { dir: Some(dir.to_path_buf()), ..ClusterOptions::default() };
        let cluster = ProcessCluster::start(options)?;
        Ok(Self { cluster, ready_after: begin.elapsed() })
    }

    /// The scheduler's address.
    pub fn endpoint(&self) -> String {
        self.cluster.endpoint()
    }

    /// The official client, in API V2.
    pub async fn official(&self) -> Result<RawClient, BenchError> {
        let config = Config::default().with_default_keyspace();
        let client = RawClient::new_with_config(vec![self.cluster.endpoint()], config).await;
        client.map_err(|error| BenchError::client("tikv-client", error))
    }

    /// One `kvctl bench` run of this workload, with further options.
    pub async fn sdk(
        &self,
        plan: &Plan,
        load: Load,
        workload: &str,
        options: &[&str],
    ) -> Result<Measured, BenchError> {
        let seconds = |duration: Duration| duration.as_secs().max(1).to_string();
        let mut command = Command::new(binary("kvctl")?);
        command
            .args([
                "--scheduler",
                &self.cluster.endpoint(),
                "--output",
                "json",
                "bench",
                "--workload",
                workload,
            ])
            .args(["--concurrency", &load.clients.to_string(), "--value-size", &plan.value_bytes.to_string()])
            .args(["--keys", &plan.keys.to_string(), "--duration", &seconds(load.duration)])
            .args(["--warmup", &seconds(load.warm_up)])
            .args(options)
            .stdin(Stdio::null());
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.expect("waiting does not panic")?;
        let failed = |message: String| BenchError::Client { subject: "kvctl bench", message };
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let report = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
        parse_report(&report).ok_or_else(|| failed(format!("a report in another form: {report}")))
    }

    /// Memory and threads of each store.
    pub fn usage(&self) -> Result<Vec<Usage>, BenchError> {
        let pids = self.cluster.stores.iter().filter_map(|store| store.process.pid());
        pids.map(|pid| Ok(usage::of(pid)?)).collect()
    }
}

/// Reads what `kvctl bench --output json` prints.
fn parse_report(report: &serde_json::Value) -> Option<Measured> {
    let latency = |name: &str| report["latency_us"][name].as_u64();
    Some(Measured {
        operations_per_second: report["operations_per_second"].as_f64()?,
        p50_us: latency("p50")?,
        p99_us: latency("p99")?,
        p999_us: latency("p999")?,
        errors: report["errors"].as_u64()?,
        first_error: report["first_error"].as_str().map(String::from),
    })
}

/// Writes all keys through the official client.
pub async fn fill(client: &RawClient, plan: &Plan) -> Result<(), BenchError> {
    let value = vec![b'v'; plan.value_bytes];
    for first in (0..plan.keys).step_by(LOAD_BATCH as usize) {
        let pairs = (first..plan.keys.min(first + LOAD_BATCH)).map(|n| KvPair::new(key(n), value.clone()));
        client.batch_put(pairs).await.map_err(|error| BenchError::client("tikv-client", error))?;
    }
    Ok(())
}

pub async fn official_gets(client: RawClient, plan: &Plan, load: Load) -> Measured {
    let keys = plan.keys;
    load::run(load, move |numbers| {
        let (client, key) = (client.clone(), key(numbers.below(keys)));
        async move {
            match client.get(key).await {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err("a key that was written is absent".to_string()),
                Err(error) => Err(error.to_string()),
            }
        }
    })
    .await
}

pub async fn official_puts(client: RawClient, plan: &Plan, load: Load) -> Measured {
    let (keys, value) = (plan.keys, vec![b'v'; plan.value_bytes]);
    load::run(load, move |numbers| {
        let (client, key, value) = (client.clone(), key(numbers.below(keys)), value.clone());
        async move { client.put(key, value).await }
    })
    .await
}

fn key(n: u64) -> Key {
    format!("bench/{n:012}").into_bytes().into()
}
