//! `kvctl bench`: throughput and latency of one client under a named workload.
//!
//! Keys are written first when the workload reads them. Then as many workers as operations should be in flight run
//! a closed loop: what cannot be answered is not asked, so latencies are those at the throughput that was reached.

pub mod report;
pub mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use kvclient::RawClient;

use crate::cli::{Bench, Global, Workload};
use crate::error::{Error, Result};
use crate::{connect, progress};
use report::{Measured, Report, Setup, latencies};
use worker::{KEY_PREFIX, Plan, Random, Worker, key};

const LOAD_BATCH: u64 = 512;
const LOAD_BATCH_BYTES: u64 = 1 << 20;
const LOAD_CONCURRENCY: usize = 16;
/// Progress of writing the keys.
const LOAD_BAR: &str = "writing keys {bar:30} {human_pos} of {human_len}  {per_sec}";

/// Runs the workload and prints the report.
pub async fn run(global: &Global, args: Bench) -> Result<()> {
    let client = connect::raw(global).await?;
    let value = random_value(args.value_size as usize);
    let reads = args.workload != Workload::RawPut;
    if reads {
        load(&client, args.keys, &value).await?;
    }
    let begin = Instant::now() + Duration::from_secs(args.warmup);
    let end = begin + Duration::from_secs(args.duration);
    let plan = Arc::new(Plan {
        workload: args.workload,
        keys: args.keys,
        batch: args.batch,
        scan_length: args.scan_length,
        reads: args.reads,
        value,
        begin,
        end,
    });
    let measured = work(&client, &plan, args.concurrency).await?;
    if args.clean {
        clean(&client).await?;
    }
    let setup = Setup {
        workload: args.workload,
        concurrency: args.concurrency,
        value_size: args.value_size,
        keys: args.keys,
        batch: args.batch,
        scan_length: (args.workload == Workload::RawScan).then_some(args.scan_length),
        reads_percent: (args.workload == Workload::RawMixed).then_some(args.reads),
    };
    let report = Report::new(setup, measured, end - begin);
    global.output.print(&report, Report::table)?;
    match (&report.first_error, report.operations) {
        (Some(error), 0) => Err(Error::Failed(format!("no operation succeeded: {error}"))),
        _ => Ok(()),
    }
}

/// Bytes that do not compress, the same in every run.
fn random_value(len: usize) -> Bytes {
    let mut random = Random::new(len as u64);
    let mut value = BytesMut::with_capacity(len + 8);
    while value.len() < len {
        value.put_u64(random.draw());
    }
    value.truncate(len);
    value.freeze()
}

/// Writes every key once.
async fn load(client: &RawClient, keys: u64, value: &Bytes) -> Result<()> {
    let bar = progress::bar(Some(keys), LOAD_BAR);
    let pair_bytes = (value.len() + key(0).len()) as u64;
    let batch = (LOAD_BATCH_BYTES / pair_bytes).clamp(1, LOAD_BATCH);
    let firsts = (0..keys).step_by(batch as usize);
    let stores = futures::stream::iter(firsts)
        .map(|first| {
            let (bar, value) = (bar.clone(), value.clone());
            async move {
                let last = (first + batch).min(keys);
                let pairs: Vec<_> = (first..last).map(|number| (key(number), value.clone())).collect();
                client.batch_put(pairs).await?;
                bar.inc(last - first);
                Ok::<(), kvclient::Error>(())
            }
        })
        .buffer_unordered(LOAD_CONCURRENCY)
        .try_collect::<()>()
        .await;
    bar.finish_and_clear();
    Ok(stores?)
}

/// Runs the workers and puts together what they measured.
async fn work(client: &RawClient, plan: &Arc<Plan>, concurrency: u32) -> Result<Measured> {
    let workers: Vec<_> = (0..concurrency)
        .map(|index| {
            let worker = Worker::new(client.clone(), Arc::clone(plan), u64::from(index) + 1);
            tokio::spawn(worker.run())
        })
        .collect();
    let mut all = Measured { reads: latencies(), writes: latencies(), keys: 0, errors: 0, first_error: None };
    for worker in workers {
        let done = worker.await.map_err(|error| Error::Failed(format!("a worker stopped: {error}")))?;
        // Histograms of the same precision always add up.
        let _ = all.reads.add(&done.reads);
        let _ = all.writes.add(&done.writes);
        all.keys += done.keys;
        all.errors += done.errors;
        all.first_error = all.first_error.or(done.first_error);
    }
    Ok(all)
}

/// Deletes every benchmark key.
async fn clean(client: &RawClient) -> Result<()> {
    let start = Bytes::from_static(KEY_PREFIX);
    // The digits that follow the prefix are all below this byte.
    let end = Bytes::from([KEY_PREFIX, b"\xff"].concat());
    Ok(client.delete_range(start..end).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_size_asked_for() {
        for len in [0, 1, 7, 8, 256, 1001] {
            assert_eq!(random_value(len).len(), len);
        }
    }
}
