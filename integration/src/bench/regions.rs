//! What more regions cost: the same cluster, keys and load with one region of data, then with more and more, and how
//! long it takes to divide them and to spread their leaders.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvclient::RawClient;
use kvproto::key::{KeyCodec, KeyspaceId, Mode};

use super::kvasir::Kvasir;
use super::load::Load;
use super::report::Report;
use super::{BenchError, Plan};
use crate::cluster::split::{leaders, regions, split_at};

/// Longest wait for regions to be divided, and for their leaders to be spread.
const WITHIN: Duration = Duration::from_secs(120);

/// How long it took to get from one number of regions to another.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Divided {
    pub regions: usize,
    /// Until every region had a leader that the scheduler knew.
    pub split_ms: u64,
    /// From then on until no store led many more than another; absent when that took too long.
    pub spread_ms: Option<u64>,
    /// Regions led by each store at the end.
    pub leaders: Vec<usize>,
}

/// The subject's name in the report.
pub fn subject(regions: usize) -> String {
    format!("kvasir, {regions} regions")
}

/// Measures gets and puts with each number of regions, ascending, beginning with the first.
pub async fn measure(
    plan: &Plan,
    load: Load,
    counts: &[usize],
    dir: &Path,
    report: &mut Report,
) -> Result<(), BenchError> {
    let kvasir = Kvasir::start(dir)?;
    let client = RawClient::connect([kvasir.endpoint()]).await;
    let client = client.map_err(|e| BenchError::client("kvclient", e))?;
    // The first round of puts also writes all keys.
    for count in counts {
        let divided = divide(&client, plan, *count).await.map_err(|e| BenchError::client("split", e))?;
        eprintln!("{divided:?}");
        report.divided.push(divided);
        for (operation, workload) in [("put", "raw-put"), ("get", "raw-get")] {
            let measured = kvasir.sdk(plan, load, workload, &[]).await?;
            eprintln!("{count} regions, {operation}: {:.0}/s", measured.operations_per_second);
            report.add(subject(*count), operation, load.clients, measured);
        }
    }
    report.stores = kvasir.usage()?;
    Ok(())
}

async fn divide(client: &RawClient, plan: &Plan, count: usize) -> Result<Divided, String> {
    let codec = KeyCodec::V2 { mode: Mode::Raw, keyspace: KeyspaceId::DEFAULT };
    let cut =
        |n: u64| codec.wire_key(Bytes::from(format!("kvctl-bench/{:016x}", plan.keys * n / count as u64)));
    let cuts: Vec<Bytes> = (1..count as u64).map(cut).collect();
    let begin = Instant::now();
    split_at(client.scheduler(), &cuts, WITHIN).await?;
    let split_ms = begin.elapsed().as_millis() as u64;
    let begin = Instant::now();
    let mut spread_ms = None;
    let mut led = Vec::new();
    while begin.elapsed() < WITHIN {
        led = leaders(&regions(client.scheduler()).await?).into_values().collect();
        let (most, least) = (led.iter().max().copied().unwrap_or(0), led.iter().min().copied().unwrap_or(0));
        // The schedulers leave small differences alone.
        if led.len() == 3 && most - least <= (most / 10).max(2) {
            spread_ms = Some(begin.elapsed().as_millis() as u64);
            break;
        }
        // Another process decides: there is nothing to wait for but its next answer.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Divided { regions: count, split_ms, spread_ms, leaders: led })
}
