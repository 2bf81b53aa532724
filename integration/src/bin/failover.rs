//! How long writes pause when the store of a leader is killed: kills it again and again on a real cluster under
//! load, and prints the distribution.
//!
//! A sample is the time from the kill until a write that began right after it is acknowledged. Two are taken from
//! each kill: of the first of several such writes, and of the last of them.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use integration::cluster::{ClusterOptions, Load, LoadOptions, ProcessCluster, wait_for};
use kvclient::RawClient;

/// Writes that are timed at each kill.
const PROBES: usize = 16;
/// A write that takes longer than this is an error of its own.
const PROBE_WITHIN: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(
    name = "failover",
    about = "Kills the leader of a cluster under load and measures how long writes pause."
)]
struct Args {
    /// How often it happens.
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Clients that write meanwhile.
    #[arg(long, default_value_t = 4)]
    writers: usize,
    /// What happens to the leader's store.
    #[arg(long, value_enum, default_value_t = How::Kill)]
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// It dies (SIGKILL).
    Kill,
    /// It stands still (SIGSTOP) and keeps its connections.
    Freeze,
    /// It is asked to stop (SIGTERM).
    Stop,
}

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("failover: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&Args::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failover: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<(), AnyError> {
    let mut cluster = ProcessCluster::start(ClusterOptions::default())?;
    let client = RawClient::connect([cluster.endpoint()]).await?;
    let load = LoadOptions { ledger_clients: args.writers, ..LoadOptions::default() };
    let load = Load::start(vec![cluster.endpoint()], load).await?;
    let (mut first, mut last) = (histogram()?, histogram()?);
    for kill in 1..=args.kills {
        load.wait_progress(200, SOON)?;
        let leader = wait_for("a leader", SOON, || cluster.leader())?;
        let process = &mut cluster.stores[leader].process;
        match args.how {
            How::Kill => process.kill(),
            How::Freeze => process.freeze(),
            How::Stop => process.ask_to_stop(),
        }
        let times = probe(&client).await?;
        let (soonest, latest) = (times[0], times[times.len() - 1]);
        println!(
            "{:?} {kill:3}: first write after {soonest:4} ms, all {PROBES} after {latest:4} ms",
            args.how
        );
        first.record(soonest)?;
        last.record(latest)?;
        let store = &mut cluster.stores[leader];
        match args.how {
            How::Freeze => store.process.thaw(),
            How::Stop => drop(store.process.wait_exit(SOON)?),
            How::Kill => {}
        }
        if args.how != How::Freeze {
            store.restart()?;
        }
        cluster.wait_caught_up(leader)?;
    }
    let report = load.finish().await?;
    print("first write", &first);
    print("last write", &last);
    report.errors.iter().for_each(|error| println!("{error}"));
    println!(
        "{} register operations are linearizable, {} acknowledged keys are there; {} writes of unknown outcome, {} failures",
        report.operations, report.ledger, report.unknown, report.failed
    );
    Ok(())
}

/// Milliseconds until each of several writes that begin now is acknowledged, ascending.
async fn probe(client: &RawClient) -> Result<Vec<u64>, AnyError> {
    let began = Instant::now();
    let writes = (0..PROBES).map(|n| {
        let client = client.clone();
        async move {
            while client.put(format!("probe-{n}"), "x").await.is_err() {
                if began.elapsed() > PROBE_WITHIN {
                    return Err("no write got through");
                }
            }
            Ok(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX))
        }
    });
    let mut times = futures::future::try_join_all(writes).await?;
    times.sort_unstable();
    Ok(times)
}

fn histogram() -> Result<Histogram<u64>, AnyError> {
    Ok(Histogram::new_with_bounds(1, PROBE_WITHIN.as_millis() as u64 * 2, 3)?)
}

fn print(what: &str, times: &Histogram<u64>) {
    let at = |q| times.value_at_quantile(q);
    println!("{what}: p50 {} ms, p90 {} ms, p99 {} ms, max {} ms", at(0.5), at(0.9), at(0.99), times.max());
}
