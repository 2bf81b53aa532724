//! One seed from beginning to end: faults and load, healing, rest, and the verdict.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::breakage::Breakage;
use super::check::Broken;
use super::plan::{MS, Plan};
use super::scenario::Scenario;
use super::world::World;

/// Virtual time in which a healed cluster must come to rest.
const REST_NS: u64 = 120_000 * MS;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    pub seed: u64,
    /// Events of the first phase.
    pub events: u64,
    /// `None` is the plan that the seed alone stands for.
    pub scenario: Option<&'static Scenario>,
    pub breakage: Breakage,
    /// Print every event.
    pub trace: bool,
}

impl RunOptions {
    /// A seed without anything special.
    pub fn seed(seed: u64, events: u64) -> RunOptions {
        RunOptions { seed, events, scenario: None, breakage: Breakage::None, trace: false }
    }

    /// A seed of a scenario, with as many events as that wants.
    pub fn scenario(scenario: &'static Scenario, seed: u64) -> RunOptions {
        RunOptions { scenario: Some(scenario), ..RunOptions::seed(seed, scenario.events) }
    }
}

/// What went wrong, by the exit code of the program that reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The code under test panicked.
    Crash = 127,
    /// The healed cluster did not come to rest.
    Liveness = 128,
    /// A promise was broken.
    Safety = 129,
}

/// A seed that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub seed: u64,
    pub events: u64,
    /// The scenario's name.
    pub scenario: Option<&'static str>,
    pub class: Class,
    pub checker: String,
    pub what: String,
    /// The event at which it was noticed, and its time.
    pub at_event: u64,
    pub at_ms: u64,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Failure { seed, events, scenario, class, checker, what, at_event, at_ms } = self;
        writeln!(f, "seed {seed}: {class:?} [{checker}] at event {at_event} ({at_ms} ms): {what}")?;
        let command = scenario.map_or("run".to_string(), |name| format!("scenario {name}"));
        write!(f, "replay: cargo run -p integration --bin sim -- {command} --seed {seed} --events {events}")
    }
}

/// What a seed that passed did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub events: u64,
    pub virtual_ms: u64,
    pub entries: u64,
    pub operations: u64,
    pub refused: u64,
    pub unknown: u64,
    pub crashes: u64,
    pub partitions: u64,
    pub regions: u64,
    pub splits: u64,
    pub elections: u64,
    pub conf_changes: u64,
    pub returns: u64,
    pub scheduler_changes: u64,
    pub snapshots: u64,
    pub orders: u64,
    /// Transactions that committed, those that failed, and those whose client never learned which.
    pub committed: u64,
    pub aborted: u64,
    pub unsettled: u64,
    /// Transactional clients that died.
    pub client_crashes: u64,
    /// Equal for equal runs.
    pub trace_hash: u64,
}

/// Runs a seed.
pub fn run(options: RunOptions) -> Result<Summary, Failure> {
    let mut at = (0, 0);
    let outcome = catch_unwind(AssertUnwindSafe(|| run_world(options, &mut at)));
    let (class, broken) = match outcome {
        Ok(Ok(summary)) => return Ok(summary),
        Ok(Err((class, broken))) => (class, broken),
        Err(panic) => (Class::Crash, Broken { checker: "panic", what: panic_message(&*panic) }),
    };
    Err(Failure {
        seed: options.seed,
        events: options.events,
        scenario: options.scenario.map(|s| s.name),
        class,
        checker: broken.checker.to_string(),
        what: broken.what,
        at_event: at.0,
        at_ms: at.1 / MS,
    })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}

fn run_world(options: RunOptions, at: &mut (u64, u64)) -> Result<Summary, (Class, Broken)> {
    let safety = |broken| (Class::Safety, broken);
    let plan = options.scenario.map_or_else(|| Plan::draw(options.seed), |s| s.plan(options.seed));
    let mut world = World::new(plan, options.breakage, options.trace)
        .map_err(|what| safety(Broken { checker: "start", what }))?;
    let step = |world: &mut World, at: &mut (u64, u64)| {
        *at = (world.events, world.now_ns);
        world.step().map_err(safety)
    };
    while world.events < options.events {
        step(&mut world, at)?;
    }
    world.heal();
    let healed_ns = world.now_ns;
    let mut look_ns = healed_ns;
    loop {
        step(&mut world, at)?;
        if world.now_ns < look_ns {
            continue;
        }
        look_ns = world.now_ns + 100 * MS;
        let Some(why) = world.unsettled() else { break };
        if world.now_ns > healed_ns + REST_NS {
            // What broke while looking counts for more.
            step(&mut world, at)?;
            return Err((Class::Liveness, Broken { checker: "settled", what: why }));
        }
    }
    step(&mut world, at)?;
    world.clients.check_histories().map_err(safety)?;
    let summary = summary(&world);
    world.judge_transactions().map_err(safety)?;
    Ok(summary)
}

fn summary(world: &World) -> Summary {
    let [operations, refused, unknown] = world.clients.counts;
    let notes = world.txn.notes.lock();
    let [committed, aborted, unsettled] = notes.counts();
    Summary {
        events: world.events,
        virtual_ms: world.now_ns / MS,
        entries: world.checks.commit.len() as u64,
        operations,
        refused,
        unknown,
        crashes: world.crashes,
        partitions: world.partitions,
        regions: world.regions().len() as u64,
        splits: world.checks.epoch.regions() as u64 - world.plan.regions,
        elections: world.checks.coverage.elections(),
        conf_changes: world.conf_changes,
        returns: world.returns,
        scheduler_changes: world.placement.changes,
        snapshots: world.snapshots_applied,
        orders: world.placement.orders,
        committed,
        aborted,
        unsettled,
        client_crashes: notes.crashes,
        trace_hash: world.trace_hash,
    }
}
