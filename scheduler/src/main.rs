//! The `scheduler` program: flags, logging, and a clean stop on SIGTERM or Ctrl-C.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use scheduler::config::{Config, LogFormat};
use scheduler::{Error, Server};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Kvasir's scheduler (placement driver): tells clients where data is, and keeps it replicated.
///
/// Flags override the file given with --config, which overrides the defaults.
#[derive(Debug, Parser)]
#[command(name = "scheduler", version)]
struct Flags {
    /// Name of this scheduler; each of several has its own [default: scheduler]
    #[arg(long)]
    name: Option<String>,
    /// Directory of the metadata; one scheduler at a time can use it [default: ./scheduler-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the metadata is instead: etcd://HOST:PORT,HOST:PORT/PREFIX for several schedulers of which one leads at
    /// a time (clusters that share an etcd differ in PREFIX), or a directory [default: the --data-dir]
    #[arg(long, value_name = "URL")]
    metadata: Option<String>,
    /// URL to listen on for gRPC and HTTP; port 0 takes a free one [default: http://127.0.0.1:2379]
    #[arg(long, value_name = "URL")]
    client_urls: Option<String>,
    /// URLs that clients are told, comma-separated [default: the same as --client-urls]
    #[arg(long, value_name = "URLS")]
    advertise_client_urls: Option<String>,
    /// Configuration file (TOML) [default: none]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective configuration as TOML and exit [default: off]
    #[arg(long)]
    print_config: bool,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

impl Flags {
    fn into_config(self) -> Result<Config, Error> {
        let mut config = match &self.config {
            Some(path) => Config::from_file(path)?,
            None => Config::default(),
        };
        fn set<T>(value: Option<T>, target: &mut T) {
            if let Some(value) = value {
                *target = value;
            }
        }
        set(self.name, &mut config.name);
        set(self.data_dir, &mut config.data_dir);
        set(self.metadata, &mut config.metadata);
        set(self.client_urls, &mut config.client_urls);
        set(self.advertise_client_urls, &mut config.advertise_client_urls);
        set(self.log_level, &mut config.log.level);
        set(self.log_format, &mut config.log.format);
        config.validate()?;
        Ok(config)
    }
}

fn start_logging(config: &Config) -> Result<(), Error> {
    let level: tracing_subscriber::filter::LevelFilter = config.log.level.parse().map_err(|_| {
        let level = &config.log.level;
        Error::Config(format!("log.level = {level:?}: use error, warn, info, debug or trace"))
    })?;
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

async fn run(config: Config) -> Result<(), Error> {
    let signal_error = |e| Error::Config(format!("cannot listen for signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(signal_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signal_error)?;
    // A start waits for etcd, perhaps in vain.
    let server = tokio::select! {
        started = Server::start(config) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("interrupt: stopping"),
    }
    tokio::select! {
        () = server.shutdown() => {}
        _ = terminate.recv() => tracing::warn!("second SIGTERM: leaving at once"),
        _ = interrupt.recv() => tracing::warn!("second interrupt: leaving at once"),
    }
    Ok(())
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let print_config = flags.print_config;
    let outcome = flags.into_config().and_then(|config| {
        if print_config {
            print!("{}", config.to_toml()?);
            return Ok(());
        }
        start_logging(&config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("scheduler")
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        runtime.block_on(run(config))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scheduler: {error}");
            ExitCode::FAILURE
        }
    }
}
