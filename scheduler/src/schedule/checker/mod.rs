//! Checkers look at one region and say what it needs.

pub mod replica_checker;

use super::operator::Operator;

/// Why a region that needs something has to wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// No leader has reported since the scheduler's start.
    NoLeader,
    /// A joint membership change is under way.
    Joint,
    /// A learner has not caught up.
    LearnerLags,
    /// No store can take a new peer.
    NoStore,
    /// The id window is used up until the next one is saved.
    NoId,
    /// Enough operators are running.
    TooManyOperators,
    /// Stores have gained or lost as many replicas as they may for now.
    StoreLimit,
    /// The region has an operator that is as urgent.
    HasOperator,
    /// Removing the surplus peer would leave no healthy majority.
    NoHealthyMajority,
    /// The leader's peer must go, and no healthy voter can take over.
    NoNewLeader,
}

impl Obstacle {
    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Obstacle::NoLeader => "no-leader",
            Obstacle::Joint => "joint",
            Obstacle::LearnerLags => "learner-lags",
            Obstacle::NoStore => "no-store",
            Obstacle::NoId => "no-id",
            Obstacle::TooManyOperators => "too-many-operators",
            Obstacle::StoreLimit => "store-limit",
            Obstacle::HasOperator => "has-operator",
            Obstacle::NoHealthyMajority => "no-healthy-majority",
            Obstacle::NoNewLeader => "no-new-leader",
        }
    }

    /// Every obstacle, in the order above.
    pub const ALL: [Obstacle; 10] = [
        Obstacle::NoLeader,
        Obstacle::Joint,
        Obstacle::LearnerLags,
        Obstacle::NoStore,
        Obstacle::NoId,
        Obstacle::TooManyOperators,
        Obstacle::StoreLimit,
        Obstacle::HasOperator,
        Obstacle::NoHealthyMajority,
        Obstacle::NoNewLeader,
    ];
}

/// What a checker thinks of a region.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Healthy,
    /// Something is wrong that cannot be mended now; look again when the cluster changes.
    Blocked(Obstacle),
    /// Run this.
    Mend(Operator),
}
