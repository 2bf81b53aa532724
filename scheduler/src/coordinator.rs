//! Decides when regions are looked at: at their heartbeats, when a store becomes usable, and on patrol; and when
//! schedulers may look at the whole.
//!
//! Owns the operators, the schedulers, the set of regions that need something that is not possible yet, and the
//! position of the patrol. The work of one call is bounded: a tick looks at so many regions that a whole patrol takes
//! about `PATROL_TICKS` ticks, at most at `WAITING_BATCH` of those that wait, and starts at most `SCHEDULER_BATCH`
//! operators for a scheduler. A scheduler that finds nothing is asked less and less often.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::cluster::Output;
use crate::core::basic_cluster::BasicCluster;
use crate::core::region::RegionInfo;
use crate::id::IdSource;
use crate::schedule::checker::{Obstacle, Verdict, replica_checker};
use crate::schedule::operator::{Cancel, Operator, OperatorKind};
use crate::schedule::operator_controller::{self, Judgement, OperatorController, Outcome};
use crate::schedule::{ScheduleConfig, View, scatter};
use crate::schedulers::{SchedulerName, Schedulers};

/// How many ticks a patrol over all regions takes.
const PATROL_TICKS: usize = 600;
/// The fewest regions a patrol looks at in one tick.
const PATROL_BATCH_MIN: usize = 64;
/// The most waiting regions looked at in one call.
const WAITING_BATCH: usize = 256;
/// The most operators a scheduler starts in one tick.
const SCHEDULER_BATCH: usize = 64;
/// How long a scheduler that found nothing is left alone, at first and at most.
const IDLE_MIN_MS: u64 = 100;
const IDLE_MAX_MS: u64 = 1_000;
/// Balancing begins when so many per cent of the regions have reported after a start, or when so much time has
/// passed: the others may never report.
const REPORTED_PERCENT: usize = 80;
const REPORTED_WAIT_MS: u64 = 5 * 60_000;

/// What every decision looks at.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub basic: &'a BasicCluster,
    pub config: &'a ScheduleConfig,
    pub now_ms: u64,
}

/// When a scheduler is asked next.
#[derive(Debug, Default)]
struct Turn {
    due_ms: u64,
    idle_ms: u64,
    cursor: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Coordinator {
    operators: OperatorController,
    schedulers: Schedulers,
    scatter_groups: scatter::Groups,
    turns: BTreeMap<SchedulerName, Turn>,
    /// Kinds of operators of which some ended since their schedulers were asked.
    ended: BTreeSet<OperatorKind>,
    started_ms: Option<u64>,
    has_heard_enough: bool,
    waiting: BTreeMap<u64, Obstacle>,
    waiting_by_obstacle: BTreeMap<Obstacle, usize>,
    waiting_cursor: u64,
    patrol_cursor: u64,
}

impl Coordinator {
    /// The running operators, and those that ended.
    pub fn operators(&self) -> &OperatorController {
        &self.operators
    }

    /// The schedulers.
    pub fn schedulers(&self) -> &Schedulers {
        &self.schedulers
    }

    /// The schedulers, to change them. Every one is asked again at the next tick.
    pub fn schedulers_mut(&mut self) -> &mut Schedulers {
        self.turns.values_mut().for_each(|turn| turn.due_ms = 0);
        &mut self.schedulers
    }

    /// What decisions look at.
    pub fn view<'a>(&'a self, scene: Scene<'a>) -> View<'a> {
        let Scene { basic, config, now_ms } = scene;
        View { cluster: basic, operators: &self.operators, schedulers: &self.schedulers, config, now_ms }
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
    pub fn region_gone(&mut self, now_ms: u64, region_id: u64, out: &mut Output) {
        self.set_waiting(region_id, None);
        self.cancel(now_ms, region_id, Cancel::RegionGone, out);
    }

    /// Gives up the region's operator; false when it has none.
    pub fn cancel(&mut self, now_ms: u64, region_id: u64, cause: Cancel, out: &mut Output) -> bool {
        let Some(operator) = self.operators.take(region_id) else { return false };
        out.events.push(self.operators.end(operator, Outcome::Cancelled(cause), now_ms));
        true
    }

    /// Starts an operator, or says what is in its way.
    pub fn start(&mut self, scene: Scene<'_>, operator: Operator, out: &mut Output) -> Result<(), Obstacle> {
        let region = scene.basic.regions().get(operator.region_id()).ok_or(Obstacle::NoLeader)?;
        self.operators.admit(&operator, scene.config, scene.now_ms)?;
        let (events, command) = self.operators.start(operator, region, scene.config, scene.now_ms);
        out.events.extend(events);
        out.commands.extend(command);
        Ok(())
    }

    /// Moves a region of a group to where the group has the fewest replicas and leaders. A region that is well placed
    /// stays.
    pub fn scatter(
        &mut self,
        scene: Scene<'_>,
        region: &RegionInfo,
        group: &str,
        ids: &mut dyn IdSource,
        out: &mut Output,
    ) -> Result<(), String> {
        let mut plan = self.scatter_groups.plan(&self.view(scene), region, group, ids)?;
        if let Some(operator) = plan.operator.take() {
            self.start(scene, operator, out).map_err(|obstacle| obstacle.name().to_string())?;
        }
        self.scatter_groups.count(&plan, scene.now_ms);
        Ok(())
    }

    /// Moves the region's operator on, or checks whether it needs one.
    pub fn drive(&mut self, scene: Scene<'_>, region_id: u64, ids: &mut dyn IdSource, out: &mut Output) {
        if !self.advance(scene, region_id, out) {
            self.check(scene, region_id, ids, out);
        }
    }

    /// Judges the region's operator. Returns whether one still runs.
    fn advance(&mut self, scene: Scene<'_>, region_id: u64, out: &mut Output) -> bool {
        let Some(mut operator) = self.operators.take(region_id) else { return false };
        let region = scene.basic.regions().get(region_id);
        match operator_controller::judge(&mut operator, region, &self.view(scene)) {
            Judgement::GoesOn(command) => {
                self.operators.put_back(operator);
                out.commands.extend(command.map(|command| *command));
                true
            }
            Judgement::Ended(outcome) => {
                self.ended.insert(operator.kind());
                out.events.push(self.operators.end(operator, outcome, scene.now_ms));
                false
            }
        }
    }

    /// Starts an operator for a region that has none and needs one.
    fn check(&mut self, scene: Scene<'_>, region_id: u64, ids: &mut dyn IdSource, out: &mut Output) {
        let Some(region) = scene.basic.regions().get(region_id) else {
            self.set_waiting(region_id, None);
            return;
        };
        if scene.config.halt_scheduling {
            return;
        }
        let obstacle = match replica_checker::check(&self.view(scene), region, ids) {
            Verdict::Healthy => None,
            Verdict::Blocked(obstacle) => Some(obstacle),
            Verdict::Mend(operator) => self.start(scene, operator, out).err(),
        };
        self.set_waiting(region_id, obstacle);
    }

    /// Looks at regions that wait, from where the last call stopped.
    pub fn check_waiting(&mut self, scene: Scene<'_>, ids: &mut dyn IdSource, out: &mut Output) {
        let after = self.waiting.range((Bound::Excluded(self.waiting_cursor), Bound::Unbounded));
        let batch: Vec<u64> = after
            .chain(self.waiting.range(..=self.waiting_cursor))
            .map(|(id, _)| *id)
            .take(WAITING_BATCH)
            .collect();
        for region_id in batch {
            self.waiting_cursor = region_id;
            if self.operators.get(region_id).is_none() {
                self.check(scene, region_id, ids, out);
            }
        }
    }

    /// Judges every operator, looks at waiting regions and at the next part of the patrol, and asks the schedulers.
    pub fn tick(&mut self, scene: Scene<'_>, ids: &mut dyn IdSource, out: &mut Output) {
        let running: Vec<u64> = self.operators.running().map(Operator::region_id).collect();
        for region_id in running {
            self.drive(scene, region_id, ids, out);
        }
        self.check_waiting(scene, ids, out);
        let regions = scene.basic.regions();
        let batch = PATROL_BATCH_MIN.max(regions.len() / PATROL_TICKS);
        let patrol = regions.ids_after(self.patrol_cursor, batch);
        // At the end of the regions the patrol starts again.
        self.patrol_cursor = if patrol.len() < batch { 0 } else { patrol.last().copied().unwrap_or(0) };
        for region_id in patrol {
            if self.operators.get(region_id).is_none() {
                self.check(scene, region_id, ids, out);
            }
        }
        self.ended.extend(OperatorKind::ALL);
        self.ask_schedulers(scene, ids, out);
    }

    /// Asks the schedulers of whose operators some have ended: others may take their place at once.
    pub fn ask_schedulers(&mut self, scene: Scene<'_>, ids: &mut dyn IdSource, out: &mut Output) {
        let ended = std::mem::take(&mut self.ended);
        if ended.is_empty() || scene.config.halt_scheduling || !self.hears_enough(scene) {
            return;
        }
        for name in SchedulerName::ALL.into_iter().filter(|name| ended.contains(&name.kind())) {
            self.ask_scheduler(scene, name, ids, out);
        }
    }

    /// Whether enough regions have reported since the start to judge the balance.
    fn hears_enough(&mut self, scene: Scene<'_>) -> bool {
        let started_ms = *self.started_ms.get_or_insert(scene.now_ms);
        let (all, led) = (scene.basic.regions().len(), scene.basic.led_count());
        self.has_heard_enough |= led * 100 >= all * REPORTED_PERCENT
            || scene.now_ms.saturating_sub(started_ms) >= REPORTED_WAIT_MS;
        self.has_heard_enough
    }

    fn ask_scheduler(
        &mut self,
        scene: Scene<'_>,
        name: SchedulerName,
        ids: &mut dyn IdSource,
        out: &mut Output,
    ) {
        let mut turn = self.turns.remove(&name).unwrap_or_default();
        if scene.now_ms >= turn.due_ms && self.schedulers.is_active(name, scene.now_ms) {
            let mut started = 0;
            while started < SCHEDULER_BATCH && !self.operators.is_full(name.kind(), scene.config) {
                let Some(operator) = name.next(&self.view(scene), &mut turn.cursor, ids) else { break };
                if self.start(scene, operator, out).is_err() {
                    break;
                }
                started += 1;
            }
            let has_work = started > 0 || self.operators.count(name.kind()) > 0;
            turn.idle_ms = if has_work { 0 } else { (turn.idle_ms * 2).clamp(IDLE_MIN_MS, IDLE_MAX_MS) };
            turn.due_ms = scene.now_ms + turn.idle_ms;
        }
        self.turns.insert(name, turn);
    }

    /// A store has changed: every scheduler is asked at the next tick.
    pub fn store_changed(&mut self) {
        self.turns.values_mut().for_each(|turn| turn.due_ms = 0);
    }
}
