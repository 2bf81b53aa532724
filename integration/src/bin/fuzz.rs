//! The fuzzer's command line: all decoders or one, for so many cases or so long, or one input again.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use integration::fuzz::{TARGETS, Target, target};

#[derive(Parser)]
#[command(name = "fuzz", about = "Feeds damaged input to every decoder and checks what it promises.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run cases until the time is over; ends with 1 at the first finding.
    Run {
        /// One decoder; without it all in turn.
        #[arg(long)]
        target: Option<String>,
        /// How long, in seconds, all together.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The first seed; each round takes the next one.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Cases of each decoder in a round.
        #[arg(long, default_value_t = 20_000)]
        cases: u64,
    },
    /// Check one input, given in hexadecimal.
    Replay { target: String, hex: String },
    /// List the decoders.
    Targets,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("fuzz: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn named(name: &str) -> Result<&'static Target, String> {
    target(name).ok_or_else(|| format!("there is no target {name:?}; see `fuzz targets`"))
}

fn run(command: Command) -> Result<String, String> {
    match command {
        Command::Targets => Ok(TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join("\n")),
        Command::Replay { target, hex } => {
            let digits: Option<Vec<u8>> =
                (0..hex.len() / 2).map(|n| u8::from_str_radix(hex.get(2 * n..2 * n + 2)?, 16).ok()).collect();
            let input =
                digits.filter(|_| hex.len().is_multiple_of(2)).ok_or("the input is not hexadecimal")?;
            match named(&target)?.holds(&input) {
                true => Ok("the promise holds".into()),
                false => Err("the promise is broken".into()),
            }
        }
        Command::Run { target, seconds, seed, cases } => {
            let chosen: Vec<&Target> = match &target {
                Some(name) => vec![named(name)?],
                None => TARGETS.iter().collect(),
            };
            let (deadline, mut rounds) = (Instant::now() + Duration::from_secs(seconds), 0);
            while Instant::now() < deadline {
                for target in &chosen {
                    target.run(seed + rounds, cases).map_err(|finding| finding.to_string())?;
                }
                rounds += 1;
            }
            Ok(format!("{} targets, {rounds} rounds of {cases} cases, nothing found", chosen.len()))
        }
    }
}
