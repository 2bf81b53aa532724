//! Operators as people and programs handle them: ask for one, look at them, cancel.

use super::{Cluster, Output, scene};
use crate::coordinator::Scene;
use crate::error::ClusterError;
use crate::id::IdSource;
use crate::schedule::checker::Obstacle;
use crate::schedule::operator::{Cancel, Operator};
use crate::schedule::operator_controller::OperatorRecord;
use crate::schedule::order::{self, Order};

impl Cluster {
    /// The running operators, by region id.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.coordinator.operators().running()
    }

    /// Operators that ended, the latest first. A bounded number of them is remembered, until a restart.
    pub fn operator_records(&self) -> impl Iterator<Item = &OperatorRecord> {
        self.coordinator.operators().records()
    }

    /// Starts an operator by order. It takes the place of one that a checker or scheduler began.
    pub fn order(
        &mut self,
        now_ms: u64,
        region_id: u64,
        order: Order,
        ids: &mut dyn IdSource,
    ) -> Result<Output, ClusterError> {
        self.require_bootstrapped()?;
        let refused = |reason: String| ClusterError::OperatorRefused { region_id, reason };
        let region = self.basic.regions().get(region_id).ok_or(ClusterError::UnknownRegion(region_id))?;
        let scene = scene!(self, now_ms);
        let operator = order::build(&self.coordinator.view(scene), region, order, ids).map_err(refused)?;
        let mut out = Output::default();
        match self.coordinator.start(scene, operator, &mut out) {
            Ok(()) => Ok(out),
            Err(Obstacle::HasOperator) => Err(refused("one that is as urgent runs: cancel it first".into())),
            Err(obstacle) => Err(refused(obstacle.name().to_string())),
        }
    }

    /// Spreads a region of a group; one that is well placed stays where it is.
    pub fn scatter(
        &mut self,
        now_ms: u64,
        region_id: u64,
        group: &str,
        ids: &mut dyn IdSource,
    ) -> Result<Output, ClusterError> {
        self.require_bootstrapped()?;
        let region = self.basic.regions().get(region_id).ok_or(ClusterError::UnknownRegion(region_id))?;
        let mut out = Output::default();
        let done = self.coordinator.scatter(scene!(self, now_ms), region, group, ids, &mut out);
        done.map_err(|reason| ClusterError::OperatorRefused { region_id, reason })?;
        Ok(out)
    }

    /// Gives up the region's operator. What its steps have done so far stays; checkers clean up behind it.
    pub fn cancel_operator(&mut self, now_ms: u64, region_id: u64) -> Result<Output, ClusterError> {
        let mut out = Output::default();
        match self.coordinator.cancel(now_ms, region_id, Cancel::ByAdmin, &mut out) {
            true => Ok(out),
            false => Err(ClusterError::NoOperator(region_id)),
        }
    }
}
