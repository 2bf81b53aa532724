//! What a store does in the background for its regions, and the switch that hands each task to its thread.
//!
//! Owns four threads: one builds snapshots, one puts snapshots in place and removes peers (in order, since both
//! touch a region's data), one shortens logs, one looks at the sizes of regions. Reports and questions go to the scheduler task, snapshots to be sent to
//! the network. Handing over never blocks the raft thread. Each queue is bounded by what the core asks for: one
//! snapshot to build, one to put in place and one removal per region; one compaction and one look at its size per
//! region at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::message::{PeerMessage, Task};
use super::raft_worker::{Fatal, TaskSink};
use super::router::Router;
use super::snap::SnapKey;
use super::split_keys::SplitLimits;
use super::util::worker::Worker;

mod patience;
pub mod raftlog_gc;
pub mod ranges;
pub mod region_steps;
pub mod region_task;
pub mod scheduler_task;
pub mod split_checker;

use patience::Patience;
use raftlog_gc::{Compact, LogGc};
use region_task::{RegionRunner, RegionStore};
use scheduler_task::SchedulerTask;
use split_checker::{Check, SplitChecker};

/// Compactions that share one sync of the engine.
const COMPACT_BATCH_MAX: usize = 4_096;

/// Sends snapshots to other stores.
pub trait SnapshotSender: Send + Sync {
    /// Begins to send the snapshot and returns; `SnapshotSent` answers.
    fn send(&self, key: SnapKey, message: PeerMessage);
}

/// Work for the thread that changes regions.
enum RegionWork {
    Task(Task),
    Sweep,
}

/// See the file's head.
pub struct Runners {
    builder: Worker<Task>,
    regions: Worker<RegionWork>,
    log_gc: Worker<Compact>,
    scheduler: SchedulerTask,
    sender: Arc<dyn SnapshotSender>,
    sizes: Worker<Check>,
    stopping: Arc<AtomicBool>,
}

impl Runners {
    /// Starts the threads. `fatal` is told when a task keeps failing.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        store: RegionStore,
        router: Router,
        scheduler: SchedulerTask,
        sender: Arc<dyn SnapshotSender>,
        limits: SplitLimits,
        fatal: Fatal,
    ) -> std::io::Result<Runners> {
        let stopping = Arc::new(AtomicBool::new(false));
        let (engine, log) = (store.engine.clone(), store.log.clone());
        let mut checker = SplitChecker::new(engine.clone(), router.clone(), limits, stopping.clone());
        let gc = LogGc { engine, log, router: router.clone(), patience: Patience::new(fatal.clone()) };
        let builds = RegionRunner::new(store.clone(), router.clone(), fatal.clone());
        let changes = RegionRunner::new(store, router, fatal);
        let do_work = move |work| match work {
            RegionWork::Task(task) => changes.run(task).map(RegionWork::Task),
            RegionWork::Sweep => {
                changes.sweep();
                None
            }
        };
        Ok(Runners {
            builder: Worker::start("snap-builder", 1, move |tasks| {
                tasks.into_iter().filter_map(|task| builds.run(task)).collect()
            })?,
            regions: Worker::start("region-task", 1, move |works: Vec<RegionWork>| {
                works.into_iter().filter_map(&do_work).collect()
            })?,
            log_gc: Worker::start("raftlog-gc", COMPACT_BATCH_MAX, move |compacts| gc.run(merge(compacts)))?,
            sizes: Worker::start("split-checker", 1, move |checks: Vec<Check>| {
                checks.iter().for_each(|check| checker.run(check));
                Vec::new()
            })?,
            scheduler,
            sender,
            stopping,
        })
    }

    /// Removes snapshot files that nobody used for a long time, when there is time for it.
    pub fn sweep_snapshots(&self) {
        self.regions.push_unless(RegionWork::Sweep, |work| matches!(work, RegionWork::Sweep));
    }

    /// Finishes the tasks at work and ends the threads.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.sizes.stop();
        self.builder.stop();
        self.regions.stop();
        self.log_gc.stop();
    }

    fn hand_over(&self, task: Task) {
        match task {
            Task::BuildSnapshot { .. } => self.builder.push(task),
            Task::ApplySnapshot { .. } | Task::Destroy { .. } => self.regions.push(RegionWork::Task(task)),
            Task::CompactLog { region_id, from, to } => self.log_gc.push(Compact { region_id, from, to }),
            Task::SendSnapshot { key, message } => self.sender.send(key, message),
            Task::Report(report) => self.scheduler.report(*report),
            Task::AskMembership { region_id, peer_id } => self.scheduler.ask_membership(region_id, peer_id),
            Task::AskSplit { region, count } => self.scheduler.ask_split(&region, count),
            Task::ReportSplit { regions } => self.scheduler.report_split(regions),
            Task::CheckSplit { region, half } => self.sizes.push(Check { region, half }),
        }
    }
}

impl TaskSink for Runners {
    fn run(&self, tasks: &mut Vec<Task>) {
        tasks.drain(..).for_each(|task| self.hand_over(task));
    }
}

/// One compaction per region, over all that wait for it.
fn merge(compacts: Vec<Compact>) -> Vec<Compact> {
    let mut merged: BTreeMap<u64, Compact> = BTreeMap::new();
    for c in compacts {
        let all = merged.entry(c.region_id).or_insert(c);
        (all.from, all.to) = (all.from.min(c.from), all.to.max(c.to));
    }
    merged.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compactions_of_a_region_become_one() {
        let c = |region_id, from, to| Compact { region_id, from, to };
        let merged = merge(vec![c(1, 6, 50), c(2, 6, 9), c(1, 50, 90)]);
        assert_eq!(merged, vec![c(1, 6, 90), c(2, 6, 9)]);
    }
}
