//! The side-by-side benchmark as a program: starts every subject as processes of its own, one after the other,
//! measures them and prints a table with the ratios. `scripts/bench.sh` builds what it needs and runs it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use clap::{Parser, Subcommand, ValueEnum};
use integration::bench::load::{self, Load, Measured};
use integration::bench::report::{ECHO_BATCHED, ECHO_UNARY, ETCD, OFFICIAL, Report, SDK, TXN_GET, UPDATE};
use integration::bench::transactions::Commit;
use integration::bench::{BenchError, Plan, echo, etcd, kvasir, regions, transactions};
use integration::cluster::{Etcd, Launch, Process, free_address, wait_until};

/// Measures echo, our cluster and etcd side by side.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Serve as the echo subject until killed.
    EchoServer {
        #[arg(long)]
        addr: SocketAddr,
        #[arg(long)]
        value_size: usize,
    },
}

#[derive(Parser)]
struct Options {
    /// Clients, each with one operation in flight.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Clients of the second round of puts and gets.
    #[arg(long, default_value_t = 256)]
    many_clients: usize,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Different keys.
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    duration: u64,
    /// Seconds before each measurement.
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Subject::Echo, Subject::Kvasir, Subject::Transactions, Subject::Etcd])]
    subjects: Vec<Subject>,
    /// Numbers of regions for the subject `regions`, ascending.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50, 200, 500])]
    regions: Vec<usize>,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    Echo,
    Kvasir,
    /// Transactional gets and two-key updates, on a cluster of our own.
    Transactions,
    Etcd,
    /// The same load on one region, then on more and more.
    Regions,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    match cli.command {
        Some(Command::EchoServer { addr, value_size }) => {
            Ok(runtime.block_on(echo::serve(addr, value_size))?)
        }
        None => {
            let report = runtime.block_on(measure(&cli.options))?;
            match cli.options.output {
                Output::Table => print!("{}", report.table()),
                Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
            }
            Ok(())
        }
    }
}

async fn measure(options: &Options) -> Result<Report, BenchError> {
    let plan = Plan {
        keys: options.keys,
        value_bytes: options.value_size,
        clients: options.clients,
        many_clients: options.many_clients,
        duration: Duration::from_secs(options.duration),
        warm_up: Duration::from_secs(options.warmup),
    };
    let dir = tempfile::Builder::new().prefix("kvasir-bench-").tempdir()?;
    let mut report = Report::default();
    if options.subjects.contains(&Subject::Echo) {
        measure_echo(&plan, dir.path(), &mut report).await?;
    }
    if options.subjects.contains(&Subject::Kvasir) {
        measure_kvasir(&plan, dir.path(), &mut report).await?;
    }
    if options.subjects.contains(&Subject::Transactions) {
        measure_transactions(&plan, &dir.path().join("transactions"), &mut report).await?;
    }
    if options.subjects.contains(&Subject::Etcd) {
        match Etcd::program() {
            Some(_) => measure_etcd(&plan, dir.path(), &mut report).await?,
            None => eprintln!("etcd is not installed: left out"),
        }
    }
    if options.subjects.contains(&Subject::Regions) {
        let load = load(&plan, plan.clients);
        regions::measure(&plan, load, &options.regions, dir.path(), &mut report).await?;
        report.compute_region_marks(&options.regions, plan.clients);
        return Ok(report);
    }
    report.compute_marks(plan.clients, plan.many_clients);
    Ok(report)
}

fn load(plan: &Plan, clients: usize) -> Load {
    Load { clients, warm_up: plan.warm_up, duration: plan.duration }
}

/// Notes a row, and says so on the way: a run takes minutes.
fn add(
    report: &mut Report,
    subject: &'static str,
    operation: &'static str,
    clients: usize,
    measured: Measured,
) {
    eprintln!("{subject}, {operation}, {clients} clients: {:.0}/s", measured.operations_per_second);
    report.add(subject, operation, clients, measured);
}

async fn measure_echo(plan: &Plan, dir: &std::path::Path, report: &mut Report) -> Result<(), BenchError> {
    let address = free_address();
    let args = ["echo-server", "--addr", &address.to_string(), "--value-size", &plan.value_bytes.to_string()];
    let args = args.map(String::from).to_vec();
    let program = std::env::current_exe()?;
    let _server = Process::start(Launch { name: "echo".into(), program, args, log: dir.join("echo.log") })?;
    wait_until("the echo server", Duration::from_secs(10), || std::net::TcpStream::connect(address).is_ok())?;
    let client = echo::connect(address).await?;
    let key = |n: u64| Bytes::from(format!("bench/{n:012}"));
    let keys = plan.keys;
    let unary = client.clone();
    let unary = move |numbers: &mut load::Numbers| echo::unary(unary.clone(), key(numbers.below(keys)));
    add(report, ECHO_UNARY, "get", plan.clients, load::run(load(plan, plan.clients), unary).await);
    let batched = echo::Batched::start(client).await?;
    for clients in [plan.clients, plan.many_clients] {
        let batched = batched.clone();
        let operation = move |numbers: &mut load::Numbers| {
            let (batched, key) = (batched.clone(), key(numbers.below(keys)));
            async move { batched.call(key).await }
        };
        add(report, ECHO_BATCHED, "get", clients, load::run(load(plan, clients), operation).await);
    }
    Ok(())
}

async fn measure_kvasir(plan: &Plan, dir: &std::path::Path, report: &mut Report) -> Result<(), BenchError> {
    let kvasir = kvasir::Kvasir::start(dir)?;
    report.ready_after_ms = kvasir.ready_after.as_millis() as u64;
    let official = kvasir.official().await?;
    kvasir::fill(&official, plan).await?;
    report.stores = kvasir.usage()?;
    let few = load(plan, plan.clients);
    add(report, OFFICIAL, "get", plan.clients, kvasir::official_gets(official.clone(), plan, few).await);
    add(report, OFFICIAL, "put", plan.clients, kvasir::official_puts(official, plan, few).await);
    for clients in [plan.clients, plan.many_clients] {
        let load = load(plan, clients);
        add(report, SDK, "get", clients, kvasir.sdk(plan, load, "raw-get", &[]).await?);
        add(report, SDK, "put", clients, kvasir.sdk(plan, load, "raw-put", &[]).await?);
    }
    Ok(())
}

async fn measure_transactions(
    plan: &Plan,
    dir: &std::path::Path,
    report: &mut Report,
) -> Result<(), BenchError> {
    std::fs::create_dir_all(dir)?;
    let kvasir = kvasir::Kvasir::start(dir)?;
    let official = transactions::connect(&kvasir).await?;
    transactions::fill(&official, plan).await?;
    let load = load(plan, plan.clients);
    add(report, OFFICIAL, TXN_GET, plan.clients, transactions::gets(official.clone(), plan, load).await);
    for commit in Commit::ALL {
        let measured = transactions::updates(official.clone(), plan, load, commit).await;
        add(report, OFFICIAL, commit.operation(), plan.clients, measured);
    }
    add(report, SDK, TXN_GET, plan.clients, kvasir.sdk(plan, load, "txn-get", &[]).await?);
    for commit in Commit::ALL {
        let measured = kvasir.sdk(plan, load, "txn-update", &["--commit", commit.name()]).await?;
        add(report, SDK, commit.operation(), plan.clients, measured);
    }
    Ok(())
}

async fn measure_etcd(plan: &Plan, dir: &std::path::Path, report: &mut Report) -> Result<(), BenchError> {
    let etcd = etcd::Etcd::start(dir).await?;
    etcd.fill(plan).await?;
    add(report, ETCD, "get", plan.clients, etcd.gets(plan, load(plan, plan.clients)).await);
    for clients in [plan.clients, plan.many_clients] {
        add(report, ETCD, "put", clients, etcd.puts(plan, load(plan, clients)).await);
    }
    add(report, ETCD, UPDATE, plan.clients, etcd.updates(plan, load(plan, plan.clients)).await);
    Ok(())
}
