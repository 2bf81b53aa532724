//! Runs operators: at most one for a region, a bounded number in all.
//!
//! Owns the running operators and what became of the others. It never decides what a region needs; it only
//! carries an operator through, or gives it up and says why.

use std::collections::BTreeMap;

use super::operator::{Cancel, Operator, Progress};
use super::{RegionCommand, ScheduleConfig, View};
use crate::core::region::RegionInfo;

/// What happened to an operator: for logs, metrics and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorEvent {
    Created { region_id: u64, name: &'static str, description: String },
    Finished { region_id: u64, name: &'static str },
    Cancelled { region_id: u64, name: &'static str, cause: Cancel },
}

/// See the module.
#[derive(Debug, Default)]
pub struct OperatorController {
    running: BTreeMap<u64, Operator>,
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

    /// Whether no further operator may start.
    pub fn is_full(&self, config: &ScheduleConfig) -> bool {
        self.running.len() >= config.operators_max
    }

    /// How the running operators will change the number of peers on a store.
    pub fn influence_on(&self, store_id: u64) -> i64 {
        self.running
            .values()
            .flat_map(|operator| operator.steps_left())
            .map(|step| step.influence_on(store_id))
            .sum()
    }

    /// Starts an operator and returns its first command.
    pub fn start(
        &mut self,
        mut operator: Operator,
        region: &RegionInfo,
        config: &ScheduleConfig,
        now_ms: u64,
    ) -> (OperatorEvent, Option<RegionCommand>) {
        assert_eq!(operator.region_id(), region.id());
        let event = OperatorEvent::Created {
            region_id: region.id(),
            name: operator.name(),
            description: operator.describe(),
        };
        let command = operator.command(region, config, now_ms);
        let former = self.running.insert(region.id(), operator);
        assert!(former.is_none(), "region {} has an operator already", region.id());
        (event, command)
    }

    /// Takes an operator out, to be judged with a view of the rest.
    pub fn take(&mut self, region_id: u64) -> Option<Operator> {
        self.running.remove(&region_id)
    }

    /// Puts back an operator that goes on.
    pub fn put_back(&mut self, operator: Operator) {
        self.running.insert(operator.region_id(), operator);
    }
}

/// Judges an operator by the region as it is now. Returns it when it goes on, and what to send or to tell.
pub fn judge(
    mut operator: Operator,
    region: Option<&RegionInfo>,
    view: &View<'_>,
) -> (Option<Operator>, Option<OperatorEvent>, Option<RegionCommand>) {
    let (region_id, name) = (operator.region_id(), operator.name());
    let progress = match region {
        Some(region) => operator.advance(region, view),
        None => Progress::Cancelled(Cancel::RegionGone),
    };
    match progress {
        Progress::Running => {
            let command = region.and_then(|region| operator.command(region, view.config, view.now_ms));
            (Some(operator), None, command)
        }
        Progress::Finished => (None, Some(OperatorEvent::Finished { region_id, name }), None),
        Progress::Cancelled(cause) => (None, Some(OperatorEvent::Cancelled { region_id, name, cause }), None),
    }
}
