//! The simulator's command line: one seed again, many seeds, or those that once found something.
//!
//! Exit codes: 0 all well, 127 a crash, 128 no liveness, 129 a broken promise, 2 a run that did not repeat.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use integration::sim::{Breakage, Failure, RunOptions, Summary, run};

#[derive(Parser)]
#[command(name = "sim", about = "Runs simulated clusters under seeded faults and checks what they promise.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one seed.
    Run {
        #[arg(long)]
        seed: u64,
        /// Events before everything heals.
        #[arg(long, default_value_t = 20_000)]
        events: u64,
        /// Print every event.
        #[arg(long)]
        trace: bool,
        /// Make a deliberate mistake, which a checker should notice.
        #[arg(long, value_enum, default_value_t)]
        breakage: Breakage,
    },
    /// Run many seeds.
    Swarm {
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        start: u64,
        #[arg(long, default_value_t = 20_000)]
        events: u64,
        /// Run this many of them twice and compare.
        #[arg(long, default_value_t = 5)]
        twice: u64,
        /// Go on after a failure and count them.
        #[arg(long)]
        keep_going: bool,
        /// Make a deliberate mistake, which a checker should notice.
        #[arg(long, value_enum, default_value_t)]
        breakage: Breakage,
    },
    /// Run the seeds that once found a mistake.
    Regressions,
}

/// Seed and events per line; `#` begins a comment that says what the seed once found.
const REGRESSIONS: &str = include_str!("../../seeds/regressions.txt");

const NOT_REPEATED: u8 = 2;

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run { seed, events, trace, breakage } => one(RunOptions { seed, events, breakage, trace }),
        Command::Swarm { seeds, start, events, twice, keep_going, breakage } => {
            let first = RunOptions { seed: start, events, breakage, trace: false };
            swarm(first, seeds, twice, keep_going)
        }
        Command::Regressions => regressions(),
    }
}

fn report(failure: &Failure) -> ExitCode {
    eprintln!("{failure}");
    ExitCode::from(failure.class as u8)
}

fn one(options: RunOptions) -> ExitCode {
    match run(options) {
        Ok(summary) => {
            println!("seed {}: {summary:?}", options.seed);
            ExitCode::SUCCESS
        }
        Err(failure) => report(&failure),
    }
}

fn swarm(first: RunOptions, seeds: u64, twice: u64, keep_going: bool) -> ExitCode {
    let mut total = Summary::default();
    let mut failures: Vec<Failure> = Vec::new();
    for seed in first.seed..first.seed + seeds {
        let options = RunOptions { seed, ..first };
        let summary = match run(options) {
            Ok(summary) => summary,
            Err(failure) if keep_going => {
                eprintln!("{failure}");
                failures.push(failure);
                continue;
            }
            Err(failure) => return report(&failure),
        };
        if seed - first.seed < twice && run(options) != Ok(summary) {
            eprintln!("seed {seed} ran differently the second time: the world is not deterministic");
            return ExitCode::from(NOT_REPEATED);
        }
        add(&mut total, &summary);
    }
    println!(
        "{seeds} seeds, {} failed; {} events, {} s of virtual time, {} entries, {} operations ({} refused, {} unknown), \
         {} crashes, {} snapshots, {} orders of the scheduler",
        failures.len(),
        total.events,
        total.virtual_ms / 1000,
        total.entries,
        total.operations,
        total.refused,
        total.unknown,
        total.crashes,
        total.snapshots,
        total.orders,
    );
    failures.first().map_or(ExitCode::SUCCESS, |first| ExitCode::from(first.class as u8))
}

fn add(total: &mut Summary, one: &Summary) {
    total.events += one.events;
    total.virtual_ms += one.virtual_ms;
    total.entries += one.entries;
    total.operations += one.operations;
    total.refused += one.refused;
    total.unknown += one.unknown;
    total.crashes += one.crashes;
    total.snapshots += one.snapshots;
    total.orders += one.orders;
}

fn regressions() -> ExitCode {
    let lines = REGRESSIONS.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    for line in lines.filter(|line| !line.is_empty()) {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(seed)), Some(Ok(events))) = (numbers.next(), numbers.next()) else {
            eprintln!("regressions.txt: not `SEED EVENTS`: {line}");
            return ExitCode::FAILURE;
        };
        let options = RunOptions { seed, events, breakage: Breakage::None, trace: false };
        if let Err(failure) = run(options) {
            return report(&failure);
        }
        println!("seed {seed}: ok");
    }
    ExitCode::SUCCESS
}
