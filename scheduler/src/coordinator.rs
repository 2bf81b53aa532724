//! Decides when regions are looked at: at their heartbeats, when a store becomes usable, and on patrol.
//!
//! Owns the operators, the set of regions that need something that is not possible yet, and the position of the
//! patrol. The work of one call is bounded: a tick looks at so many regions that a whole patrol takes about
//! `PATROL_TICKS` ticks, and at most `WAITING_BATCH` of those that wait.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::cluster::Output;
use crate::core::basic_cluster::BasicCluster;
use crate::id::IdSource;
use crate::schedule::checker::{Obstacle, Verdict, replica_checker};
use crate::schedule::operator::Cancel;
use crate::schedule::operator_controller::{self, OperatorController, OperatorEvent};
use crate::schedule::{ScheduleConfig, View};

/// How many ticks a patrol over all regions takes.
const PATROL_TICKS: usize = 600;
/// The fewest regions a patrol looks at in one tick.
const PATROL_BATCH_MIN: usize = 64;
/// The most waiting regions looked at in one call.
const WAITING_BATCH: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub struct Coordinator {
    operators: OperatorController,
    waiting: BTreeMap<u64, Obstacle>,
    waiting_by_obstacle: BTreeMap<Obstacle, usize>,
    waiting_cursor: u64,
    patrol_cursor: u64,
}

impl Coordinator {
    /// The running operators.
    pub fn operators(&self) -> &OperatorController {
        &self.operators
    }

    /// How many regions wait because of this obstacle.
    pub fn waiting_for(&self, obstacle: Obstacle) -> usize {
        self.waiting_by_obstacle.get(&obstacle).copied().unwrap_or(0)
    }

    /// Takes note of what the region waits for, if anything.
    fn set_waiting(&mut self, region_id: u64, obstacle: Option<Obstacle>) {
        let former = match obstacle {
            Some(obstacle) => self.waiting.insert(region_id, obstacle),
            None => self.waiting.remove(&region_id),
        };
        if former == obstacle {
            return;
        }
        if let Some(count) = former.and_then(|former| self.waiting_by_obstacle.get_mut(&former)) {
            *count -= 1;
        }
        if let Some(obstacle) = obstacle {
            *self.waiting_by_obstacle.entry(obstacle).or_default() += 1;
        }
    }

    /// A region has disappeared.
    pub fn region_gone(&mut self, region_id: u64, out: &mut Output) {
        self.set_waiting(region_id, None);
        if let Some(operator) = self.operators.take(region_id) {
            let (name, cause) = (operator.name(), Cancel::RegionGone);
            out.events.push(OperatorEvent::Cancelled { region_id, name, cause });
        }
    }

    /// Moves the region's operator on, or checks whether it needs one.
    pub fn drive(
        &mut self,
        region_id: u64,
        basic: &BasicCluster,
        config: &ScheduleConfig,
        now_ms: u64,
        ids: &mut dyn IdSource,
        out: &mut Output,
    ) {
        if !self.advance(region_id, basic, config, now_ms, out) {
            self.check(region_id, basic, config, now_ms, ids, out);
        }
    }

    /// Judges the region's operator. Returns whether one still runs.
    fn advance(
        &mut self,
        region_id: u64,
        basic: &BasicCluster,
        config: &ScheduleConfig,
        now_ms: u64,
        out: &mut Output,
    ) -> bool {
        let Some(operator) = self.operators.take(region_id) else { return false };
        let view = View { cluster: basic, operators: &self.operators, config, now_ms };
        let region = basic.regions().get(region_id);
        let (operator, event, command) = operator_controller::judge(operator, region, &view);
        out.events.extend(event);
        out.commands.extend(command);
        let runs = operator.is_some();
        if let Some(operator) = operator {
            self.operators.put_back(operator);
        }
        runs
    }

    /// Starts an operator for a region that has none and needs one.
    fn check(
        &mut self,
        region_id: u64,
        basic: &BasicCluster,
        config: &ScheduleConfig,
        now_ms: u64,
        ids: &mut dyn IdSource,
        out: &mut Output,
    ) {
        let Some(region) = basic.regions().get(region_id) else {
            self.set_waiting(region_id, None);
            return;
        };
        if config.halt_scheduling {
            return;
        }
        let view = View { cluster: basic, operators: &self.operators, config, now_ms };
        match replica_checker::check(&view, region, ids) {
            Verdict::Healthy => self.set_waiting(region_id, None),
            Verdict::Blocked(obstacle) => self.set_waiting(region_id, Some(obstacle)),
            Verdict::Mend(operator) => {
                self.set_waiting(region_id, None);
                let (event, command) = self.operators.start(operator, region, config, now_ms);
                out.events.push(event);
                out.commands.extend(command);
            }
        }
    }

    /// Looks at regions that wait, from where the last call stopped.
    pub fn check_waiting(
        &mut self,
        basic: &BasicCluster,
        config: &ScheduleConfig,
        now_ms: u64,
        ids: &mut dyn IdSource,
        out: &mut Output,
    ) {
        if self.operators.is_full(config) {
            return;
        }
        let after = self.waiting.range((Bound::Excluded(self.waiting_cursor), Bound::Unbounded));
        let batch: Vec<u64> = after
            .chain(self.waiting.range(..=self.waiting_cursor))
            .map(|(id, _)| *id)
            .take(WAITING_BATCH)
            .collect();
        for region_id in batch {
            self.waiting_cursor = region_id;
            if self.operators.get(region_id).is_none() {
                self.check(region_id, basic, config, now_ms, ids, out);
            }
        }
    }

    /// Judges every operator, then looks at waiting regions and at the next part of the patrol.
    pub fn tick(
        &mut self,
        basic: &BasicCluster,
        config: &ScheduleConfig,
        now_ms: u64,
        ids: &mut dyn IdSource,
        out: &mut Output,
    ) {
        let running: Vec<u64> = self.operators.running().map(|operator| operator.region_id()).collect();
        for region_id in running {
            self.drive(region_id, basic, config, now_ms, ids, out);
        }
        self.check_waiting(basic, config, now_ms, ids, out);
        let batch = PATROL_BATCH_MIN.max(basic.regions().len() / PATROL_TICKS);
        let patrol = basic.regions().ids_after(self.patrol_cursor, batch);
        // At the end of the regions the patrol starts again.
        self.patrol_cursor = if patrol.len() < batch { 0 } else { patrol.last().copied().unwrap_or(0) };
        for region_id in patrol {
            if self.operators.get(region_id).is_none() {
                self.check(region_id, basic, config, now_ms, ids, out);
            }
        }
    }
}
