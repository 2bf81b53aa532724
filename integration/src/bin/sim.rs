//! The simulator's command line: one seed again, many seeds, or those that once found something.
//!
//! Exit codes: 0 all well, 127 a crash, 128 no liveness, 129 a broken promise, 2 a run that did not repeat.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use integration::sim::{Breakage, Failure, RunOptions, SCENARIOS, Scenario, Summary, run};

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
    /// Run a named plan: which faults, which load, what sizes.
    Scenario {
        name: String,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Run this many seeds, from `--seed` on.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// Events before everything heals; by default as many as the plan says.
        #[arg(long)]
        events: Option<u64>,
        /// Print every event.
        #[arg(long)]
        trace: bool,
        /// Make a deliberate mistake, which a checker should notice.
        #[arg(long, value_enum, default_value_t)]
        breakage: Breakage,
    },
    /// List the named plans, or run so many seeds of each.
    Scenarios {
        #[arg(long, default_value_t = 0)]
        seeds: u64,
    },
    /// Run the seeds that once found a mistake.
    Regressions,
}

/// Seed, events and, if it has one, the scenario per line; `#` begins a comment that says what the seed once found.
const REGRESSIONS: &str = include_str!("../../seeds/regressions.txt");

const NOT_REPEATED: u8 = 2;

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run { seed, events, trace, breakage } => {
            one(RunOptions { breakage, trace, ..RunOptions::seed(seed, events) })
        }
        Command::Swarm { seeds, start, events, twice, keep_going, breakage } => {
            let first = RunOptions { breakage, ..RunOptions::seed(start, events) };
            swarm(first, seeds, twice, keep_going)
        }
        Command::Scenario { name, seed, seeds, events, trace, breakage } => match Scenario::named(&name) {
            Some(scenario) => {
                let plain = RunOptions::scenario(scenario, seed);
                let first = RunOptions { events: events.unwrap_or(plain.events), trace, breakage, ..plain };
                if seeds == 1 { one(first) } else { swarm(first, seeds, 0, false) }
            }
            None => {
                eprintln!("there is no scenario {name}; `sim scenarios` lists them");
                ExitCode::FAILURE
            }
        },
        Command::Scenarios { seeds: 0 } => {
            SCENARIOS.iter().for_each(|s| println!("{:40} {}", s.name, s.about));
            ExitCode::SUCCESS
        }
        Command::Scenarios { seeds } => every_scenario(seeds),
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
         {} crashes, {} partitions, {} elections, {} snapshots, {} membership changes, {} splits, {} returns, {} schedulers, {} orders, \
         {} transactions committed, {} failed, {} of unknown fate, {} clients died",
        failures.len(),
        total.events,
        total.virtual_ms / 1000,
        total.entries,
        total.operations,
        total.refused,
        total.unknown,
        total.crashes,
        total.partitions,
        total.elections,
        total.snapshots,
        total.conf_changes,
        total.splits,
        total.returns,
        total.scheduler_changes,
        total.orders,
        total.committed,
        total.aborted,
        total.unsettled,
        total.client_crashes,
    );
    failures.first().map_or(ExitCode::SUCCESS, |first| ExitCode::from(first.class as u8))
}

fn every_scenario(seeds: u64) -> ExitCode {
    for scenario in SCENARIOS {
        print!("{}: ", scenario.name);
        let ended = swarm(RunOptions::scenario(scenario, 1), seeds, 0, false);
        if ended != ExitCode::SUCCESS {
            return ended;
        }
    }
    ExitCode::SUCCESS
}

fn add(total: &mut Summary, one: &Summary) {
    total.events += one.events;
    total.virtual_ms += one.virtual_ms;
    total.entries += one.entries;
    total.operations += one.operations;
    total.refused += one.refused;
    total.unknown += one.unknown;
    total.crashes += one.crashes;
    total.partitions += one.partitions;
    total.elections += one.elections;
    total.conf_changes += one.conf_changes;
    total.splits += one.splits;
    total.returns += one.returns;
    total.scheduler_changes += one.scheduler_changes;
    total.snapshots += one.snapshots;
    total.orders += one.orders;
    total.committed += one.committed;
    total.aborted += one.aborted;
    total.unsettled += one.unsettled;
    total.client_crashes += one.client_crashes;
}

fn regressions() -> ExitCode {
    let lines = REGRESSIONS.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    for line in lines.filter(|line| !line.is_empty()) {
        let Some(options) = regression(line) else {
            eprintln!("regressions.txt: not `SEED EVENTS [SCENARIO]`: {line}");
            return ExitCode::FAILURE;
        };
        if let Err(failure) = run(options) {
            return report(&failure);
        }
        println!("{line}: ok");
    }
    ExitCode::SUCCESS
}

fn regression(line: &str) -> Option<RunOptions> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ([seed, events], name) = words.split_first_chunk()?;
    let plain = RunOptions::seed(seed.parse().ok()?, events.parse().ok()?);
    match name {
        [] => Some(plain),
        [name] => Some(RunOptions { scenario: Some(Scenario::named(name)?), ..plain }),
        _ => None,
    }
}
