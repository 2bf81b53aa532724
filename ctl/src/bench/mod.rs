//! `kvctl bench`: throughput and latency of one client under a named workload.
//!
//! Keys are written first when the workload reads them. Then as many workers as operations should be in flight run
//! a closed loop: what cannot be answered is not asked, so latencies are those at the throughput that was reached.

pub mod chooser;
pub mod payment;
pub mod report;
pub mod target;
pub mod worker;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::cli::{Bench, Global, Workload};
use crate::error::{Error, Result};
use crate::txn::flush;
use crate::{connect, progress};
use chooser::Random;
use payment::Rows;
use report::{Measured, Report, Setup};
use target::{Target, options};
use worker::{Growth, KEY_PREFIX, Plan, Worker, key};

const LOAD_BATCH: u64 = 512;
const LOAD_BATCH_BYTES: u64 = 1 << 20;
const LOAD_CONCURRENCY: usize = 16;
/// Progress of writing the keys.
const LOAD_BAR: &str = "writing keys {bar:30} {human_pos} of {human_len}  {per_sec}";

/// Runs the workload and prints the report.
pub async fn run(global: &Global, args: Bench) -> Result<()> {
    let transactional = args.txn || args.workload.needs_transactions();
    if transactional && !args.workload.takes_transactions() {
        return Err(Error::Usage("--txn is for ycsb workloads; raw ones have no transactions".into()));
    }
    let target = match transactional {
        true => Target::Txn(connect::transactions(global).await?, options(args.commit, args.pessimistic)),
        false => Target::Raw(connect::raw(global).await?),
    };
    let value = random_value(args.value_size as usize);
    let rows = Rows { warehouses: args.warehouses.into(), row_bytes: args.value_size as usize };
    match args.workload {
        Workload::RawPut => {}
        Workload::TpccPayment => fill(&target, rows.count(), rows.keys(), &rows.row(0)).await?,
        _ => fill(&target, args.keys, (0..args.keys).map(key), &value).await?,
    }
    let begin = Instant::now() + Duration::from_secs(args.warmup);
    let end = begin + Duration::from_secs(args.duration);
    let plan = Arc::new(Plan {
        workload: args.workload,
        keys: args.keys,
        batch: args.batch,
        scan_length: args.scan_length,
        reads: (args.workload == Workload::RawMixed).then_some(args.reads),
        value,
        rows,
        growth: Growth::after(args.keys),
        run: random_run(),
        begin,
        end,
    });
    let measured = work(&target, &plan, args.concurrency).await?;
    if let Target::Txn(client, _) = &target {
        flush(client).await;
    }
    if args.clean {
        clean(&target).await?;
    }
    let report = Report::new(setup(&args, transactional), measured, end - begin);
    global.output.print(&report, Report::table)?;
    match (&report.first_error, report.operations) {
        (Some(error), 0) => Err(Error::Failed(format!("no operation succeeded: {error}"))),
        _ => Ok(()),
    }
}

fn setup(args: &Bench, transactional: bool) -> Setup {
    let scans = matches!(args.workload, Workload::RawScan | Workload::YcsbE);
    let is_payment = args.workload == Workload::TpccPayment;
    let rows = Rows { warehouses: args.warehouses.into(), row_bytes: args.value_size as usize };
    Setup {
        workload: args.workload,
        concurrency: args.concurrency,
        value_size: args.value_size,
        keys: if is_payment { rows.count() } else { args.keys },
        batch: args.batch,
        scan_length: scans.then_some(args.scan_length),
        reads_percent: (args.workload == Workload::RawMixed).then_some(args.reads),
        commit: transactional.then_some(args.commit),
        pessimistic: transactional.then_some(args.pessimistic),
    }
}

/// The number of a run, by the process's own randomness: runs that begin in the same second differ.
fn random_run() -> u64 {
    RandomState::new().hash_one(0_u8)
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

/// Writes each of these keys.
async fn fill(target: &Target, count: u64, keys: impl Iterator<Item = Bytes>, value: &Bytes) -> Result<()> {
    let bar = progress::bar(Some(count), LOAD_BAR);
    let pair_bytes = (value.len() + key(0).len()) as u64;
    let batch = (LOAD_BATCH_BYTES / pair_bytes).clamp(1, LOAD_BATCH) as usize;
    let filled = futures::stream::iter(keys)
        .chunks(batch)
        .map(|keys| {
            let bar = bar.clone();
            async move {
                let written = keys.len() as u64;
                target.put(keys, value).await?;
                bar.inc(written);
                Ok::<(), worker::Failure>(())
            }
        })
        .buffer_unordered(LOAD_CONCURRENCY)
        .try_collect::<()>()
        .await;
    bar.finish_and_clear();
    filled.map_err(|failure| match failure {
        worker::Failure::Client(error) => error.into(),
        worker::Failure::Wrong(text) => Error::Failed(text),
    })
}

/// Runs the workers and puts together what they measured.
async fn work(target: &Target, plan: &Arc<Plan>, concurrency: u32) -> Result<Measured> {
    let workers: Vec<_> = (0..concurrency)
        .map(|index| tokio::spawn(Worker::new(target.clone(), Arc::clone(plan), index.into()).run()))
        .collect();
    let mut all = Measured::default();
    for worker in workers {
        all.add(worker.await.map_err(|error| Error::Failed(format!("a worker stopped: {error}")))?);
    }
    Ok(all)
}

/// Deletes every benchmark key.
async fn clean(target: &Target) -> Result<()> {
    let start = Bytes::from_static(KEY_PREFIX);
    // What follows the prefix is below this byte.
    let end = Bytes::from([KEY_PREFIX, b"\xff"].concat());
    match target {
        Target::Raw(client) => client.delete_range(start..end).await?,
        Target::Txn(client, _) => client.delete_range(start..end).await?,
    }
    Ok(())
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
