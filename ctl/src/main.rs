//! The kvctl program: parses the command line, sets up logging, and runs the command on a tokio runtime.

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = kvctl::cli::Cli::parse();
    let filter = EnvFilter::try_from_env("KVCTL_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start threads: {error}; raise the limits of processes and open files");
            return ExitCode::from(1);
        }
    };
    let code = runtime.block_on(kvctl::run(cli));
    // A read of standard input that nobody waits for must not hold up the end.
    runtime.shutdown_background();
    ExitCode::from(code)
}
