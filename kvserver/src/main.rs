//! The `kvserver` command: flags over a file, one server, signals.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use kvserver::config::{Config, LogFormat};
use kvserver::{Server, StartError};
use tokio::signal::unix::{SignalKind, signal};

mod machine;

/// Takes the allocations of RocksDB, too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Read by the allocator at start. Few arenas, because many hold on to many half-empty pages, and freed pages go
/// back to the system soon: a store that has had a busy minute should not look busy for ever.
#[unsafe(export_name = "malloc_conf")]
pub static ALLOCATOR_OPTIONS: &[u8] = b"narenas:4,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

/// How long tasks that are still at work may hold up the end of the process.
const LAST_TASKS: Duration = Duration::from_millis(200);

/// A store of a Kvasir cluster.
#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    mode: Option<Mode>,
}

#[derive(Subcommand)]
enum Mode {
    /// Serve from this directory alone: no replication, and a scheduler service in the same process.
    Standalone(Standalone),
}

#[derive(Args)]
struct Standalone {
    #[command(flatten)]
    flags: Flags,
    /// Where the scheduler service listens, HOST:PORT or http://HOST:PORT.
    #[arg(long, visible_alias = "client-urls", default_value = "127.0.0.1:2379")]
    pd_addr: String,
}

/// What can be set on the command line; it wins over the file.
#[derive(Args, Default)]
struct Flags {
    /// Where gRPC listens [default: 127.0.0.1:20160]
    #[arg(long, short = 'A', value_name = "HOST:PORT")]
    addr: Option<String>,
    /// How clients and other stores reach this one [default: the value of --addr]
    #[arg(long, value_name = "HOST:PORT")]
    advertise_addr: Option<String>,
    /// Where metrics and status pages listen; "" for nowhere [default: 127.0.0.1:20180]
    #[arg(long, value_name = "HOST:PORT")]
    status_addr: Option<String>,
    /// The schedulers of the cluster, separated by commas [default: 127.0.0.1:2379]
    #[arg(long, visible_aliases = ["scheduler", "pd"], value_delimiter = ',', value_name = "HOST:PORT,..")]
    pd_endpoints: Option<Vec<String>>,
    /// The store's directory; created when missing [no default]
    #[arg(long, short = 's', value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the store stands, for placement [default: none]
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE,..", value_parser = label)]
    labels: Option<Vec<(String, String)>>,
    /// Form of keys when a cluster is bootstrapped: v1 or v2 [default: v2]
    #[arg(long, value_name = "v1|v2", value_parser = api)]
    api: Option<kvserver::config::Api>,
    /// A TOML file with any of the settings [default: none]
    #[arg(long, short = 'C', value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective configuration and end
    #[arg(long)]
    print_config: bool,
    /// error, warn, info, debug, trace, or directives like info,kvserver::raftstore=debug [default: info]
    #[arg(long, short = 'L', value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.trim().into(), value.trim().into()))
}

fn api(text: &str) -> Result<kvserver::config::Api, String> {
    match text {
        "v1" => Ok(kvserver::config::Api::V1),
        "v2" => Ok(kvserver::config::Api::V2),
        other => Err(format!("{other:?} is neither v1 nor v2")),
    }
}

impl Flags {
    /// The file with the flags over it, and what is chosen for this machine.
    fn effective(self) -> Result<Config, StartError> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        };
        fn set<T>(slot: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *slot = value;
            }
        }
        set(&mut config.server.addr, self.addr);
        set(&mut config.server.advertise_addr, self.advertise_addr);
        set(&mut config.server.status_addr, self.status_addr);
        set(&mut config.pd.endpoints, self.pd_endpoints);
        set(&mut config.storage.data_dir, self.data_dir);
        set(&mut config.storage.api, self.api);
        set(&mut config.log.level, self.log_level);
        set(&mut config.log.format, self.log_format);
        config.server.labels.extend(self.labels.into_iter().flatten());
        config.resolve(machine::memory_bytes(), machine::cores());
        Ok(config)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvserver: {error}");
            // Threads of a store that failed are still at work, and the databases' own clean-up at the end of a process
            // would pull the ground from under them.
            // SAFETY: a plain system call that does not return.
            unsafe { libc::_exit(1) }
        }
    }
}

fn run(cli: Cli) -> Result<(), StartError> {
    let (flags, pd_addr) = match cli.mode {
        None => (cli.flags, None),
        Some(Mode::Standalone(mode)) => (mode.flags, Some(mode.pd_addr)),
    };
    let print = flags.print_config;
    let config = flags.effective()?;
    if print {
        print!("{}", config.to_toml()?);
        return Ok(());
    }
    config.validate()?;
    start_logging(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.server.grpc_concurrency)
        .max_blocking_threads(config.readpool.max_thread_count + 4)
        .thread_name("serve")
        .enable_all()
        .build()
        .map_err(|e| StartError::Store(format!("cannot start threads: {e}")))?;
    let served = runtime.block_on(serve(config, pd_addr));
    // Whatever still waits for a disk must not hold up the end: everything acknowledged is durable already.
    runtime.shutdown_timeout(LAST_TASKS);
    served
}

fn start_logging(config: &Config) -> Result<(), StartError> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.level).map_err(|e| {
        StartError::Config(kvserver::config::ConfigError::Invalid {
            key: "log.level",
            message: e.to_string(),
        })
    })?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match config.log.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

async fn serve(config: Config, pd_addr: Option<String>) -> Result<(), StartError> {
    let handler = |kind| signal(kind).map_err(|e| StartError::Store(format!("cannot handle signals: {e}")));
    let (mut term, mut int) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    let starting = async {
        match pd_addr {
            None => Server::start(config).await,
            Some(url) => {
                let addr = url.trim_start_matches("http://").trim_end_matches('/');
                Server::start_standalone(config, addr).await
            }
        }
    };
    // A store without its scheduler waits for it: that must be possible to stop.
    let server = tokio::select! {
        server = starting => server?,
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    };
    tokio::select! {
        reason = server.failed() => return Err(StartError::Store(reason)),
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping; once more stops at once");
    tokio::select! {
        stopped = server.shutdown(false) => stopped,
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    }
}
