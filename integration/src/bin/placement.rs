//! How long it takes to split, to even out, to empty a store and to fill a new one: takes many regions of a real
//! cluster through all of it, and prints the times.

use std::process::ExitCode;

use clap::Parser;
use integration::cluster::placement::{Failure, Placement};

#[derive(Parser)]
#[command(name = "placement", about = "Measures splits and the balance of leaders and replicas.")]
struct Args {
    /// Regions besides those that a cluster starts with.
    #[arg(long, default_value_t = 195)]
    regions: usize,
}

fn main() -> ExitCode {
    let done = tokio::runtime::Runtime::new().map_err(Failure::from).and_then(|runtime| {
        runtime.block_on(async {
            let args = Args::parse();
            for (what, time) in Placement::start().await?.journey(args.regions).await? {
                println!("{what:32} {:8.2} s", time.as_secs_f64());
            }
            Ok(())
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("placement: {error}");
            ExitCode::FAILURE
        }
    }
}
