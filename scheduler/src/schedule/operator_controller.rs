//! Runs operators: at most one for a region, a bounded number of each kind.
//!
//! Owns the running operators, what they will change on each store, the stores' limits, and a record of those
//! that ended. It never decides what a region needs; it only carries an operator through, or gives it up and says
//! why. Invariant: `influence` is the sum over the running operators of what their regions do not show yet.

use std::collections::{BTreeMap, VecDeque};

use super::checker::Obstacle;
use super::operator::step::Influence;
use super::operator::{Cancel, Operator, OperatorKind, Progress};
use super::store_limit::StoreLimits;
use super::{RegionCommand, ScheduleConfig, View};
use crate::core::region::{IDLE_WEIGHT, RegionInfo};

/// How many ended operators are remembered.
const RECORDS_MAX: usize = 1024;
/// The most operators by order, and the most that empty stores of leaders, at once.
const ADMIN_MAX: usize = 4096;
const EVICT_MAX: usize = 64;

/// What happened to an operator: for logs, metrics and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorEvent {
    Created { region_id: u64, name: &'static str, description: String },
    Finished { region_id: u64, name: &'static str },
    Cancelled { region_id: u64, name: &'static str, cause: Cancel },
}

/// How an operator ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    Cancelled(Cancel),
}

/// An operator that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorRecord {
    pub region_id: u64,
    pub name: &'static str,
    pub kind: OperatorKind,
    pub description: String,
    /// Milliseconds of the core's clock.
    pub created_ms: u64,
    /// Milliseconds of the core's clock.
    pub ended_ms: u64,
    pub outcome: Outcome,
}

/// See the module.
#[derive(Debug, Default)]
pub struct OperatorController {
    running: BTreeMap<u64, Operator>,
    by_kind: BTreeMap<OperatorKind, usize>,
    influence: BTreeMap<u64, Influence>,
    limits: StoreLimits,
    records: VecDeque<OperatorRecord>,
}

impl OperatorController {
    /// The operator of a region.
    pub fn get(&self, region_id: u64) -> Option<&Operator> {
        self.running.get(&region_id)
    }

    /// Running operators, by region id.
    pub fn running(&self) -> impl Iterator<Item = &Operator> {
        self.running.values()
    }

    /// How many operators of a kind run.
    pub fn count(&self, kind: OperatorKind) -> usize {
        self.by_kind.get(&kind).copied().unwrap_or(0)
    }

    /// Whether no further operator of the kind may start.
    pub fn is_full(&self, kind: OperatorKind, config: &ScheduleConfig) -> bool {
        let max = match kind {
            OperatorKind::Leader => config.leader_operators_max,
            OperatorKind::Region => config.region_operators_max,
            OperatorKind::Replica => config.operators_max,
            OperatorKind::Evict => EVICT_MAX,
            OperatorKind::Admin => ADMIN_MAX,
        };
        self.count(kind) >= max
    }

    /// What the running operators will change on a store.
    pub fn influence_on(&self, store_id: u64) -> Influence {
        self.influence.get(&store_id).copied().unwrap_or_default()
    }

    /// The stores' limits.
    pub fn limits(&self) -> &StoreLimits {
        &self.limits
    }

    /// Operators that ended, the latest first.
    pub fn records(&self) -> impl Iterator<Item = &OperatorRecord> {
        self.records.iter().rev()
    }

    /// Whether the operator may start now: there is room for its kind, its stores may change, and its region has
    /// no operator that is as urgent.
    pub fn admit(&self, operator: &Operator, config: &ScheduleConfig, now_ms: u64) -> Result<(), Obstacle> {
        let running = self.get(operator.region_id());
        if running.is_some_and(|running| running.kind().priority() >= operator.kind().priority()) {
            return Err(Obstacle::HasOperator);
        }
        if self.is_full(operator.kind(), config) {
            return Err(Obstacle::TooManyOperators);
        }
        match self.limits.admits(operator, config.store_limit, now_ms) {
            true => Ok(()),
            false => Err(Obstacle::StoreLimit),
        }
    }

    /// Starts an operator that was admitted, in the place of a less urgent one if there is any. Returns what
    /// happened, and the first command.
    pub fn start(
        &mut self,
        mut operator: Operator,
        region: &RegionInfo,
        config: &ScheduleConfig,
        now_ms: u64,
    ) -> (Vec<OperatorEvent>, Option<RegionCommand>) {
        assert_eq!(operator.region_id(), region.id());
        let mut events = Vec::new();
        if let Some(former) = self.take(region.id()) {
            assert!(former.kind().priority() < operator.kind().priority());
            let outcome = Outcome::Cancelled(Cancel::Replaced { by: operator.name() });
            events.push(self.end(former, outcome, now_ms));
        }
        events.push(OperatorEvent::Created {
            region_id: region.id(),
            name: operator.name(),
            description: operator.describe(),
        });
        self.limits.charge(&operator, config.store_limit, now_ms);
        let command = operator.command(region, config, now_ms);
        self.put_back(operator);
        (events, command)
    }

    /// Takes an operator out, to be judged with a view of the rest.
    pub fn take(&mut self, region_id: u64) -> Option<Operator> {
        let operator = self.running.remove(&region_id)?;
        if let Some(count) = self.by_kind.get_mut(&operator.kind()) {
            *count -= 1;
        }
        self.add_influence(&operator, -1);
        Some(operator)
    }

    /// Puts back an operator that goes on.
    pub fn put_back(&mut self, operator: Operator) {
        self.add_influence(&operator, 1);
        *self.by_kind.entry(operator.kind()).or_default() += 1;
        let region_id = operator.region_id();
        let former = self.running.insert(region_id, operator);
        assert!(former.is_none(), "region {region_id} has an operator already");
    }

    /// Takes note of how an operator ended that was taken out.
    pub fn end(&mut self, operator: Operator, outcome: Outcome, now_ms: u64) -> OperatorEvent {
        let (region_id, name) = (operator.region_id(), operator.name());
        if self.records.len() == RECORDS_MAX {
            self.records.pop_front();
        }
        let event = match &outcome {
            Outcome::Finished => OperatorEvent::Finished { region_id, name },
            Outcome::Cancelled(cause) => OperatorEvent::Cancelled { region_id, name, cause: cause.clone() },
        };
        self.records.push_back(OperatorRecord {
            region_id,
            name,
            kind: operator.kind(),
            description: operator.describe(),
            created_ms: operator.created_ms(),
            ended_ms: now_ms,
            outcome,
        });
        event
    }

    fn add_influence(&mut self, operator: &Operator, sign: i64) {
        let weight = operator.region_mib().saturating_add(IDLE_WEIGHT) as i64;
        for (store_id, change) in operator.influences(weight) {
            let sum = self.influence.entry(store_id).or_default();
            sum.peers += sign * change.peers;
            sum.leaders += sign * change.leaders;
            sum.weight += sign * change.weight;
            if *sum == Influence::default() {
                self.influence.remove(&store_id);
            }
        }
    }
}

/// What a look at an operator brings: whether it goes on with a command to send, or how it ended.
#[derive(Debug)]
pub enum Judgement {
    GoesOn(Option<Box<RegionCommand>>),
    Ended(Outcome),
}

/// Judges an operator by the region as it is now.
pub fn judge(operator: &mut Operator, region: Option<&RegionInfo>, view: &View<'_>) -> Judgement {
    let Some(region) = region else { return Judgement::Ended(Outcome::Cancelled(Cancel::RegionGone)) };
    match operator.advance(region, view) {
        Progress::Running => {
            Judgement::GoesOn(operator.command(region, view.config, view.now_ms).map(Box::new))
        }
        Progress::Finished => Judgement::Ended(Outcome::Finished),
        Progress::Cancelled(cause) => Judgement::Ended(Outcome::Cancelled(cause)),
    }
}
