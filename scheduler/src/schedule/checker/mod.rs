//! Checkers look at one region and say what it needs.

pub mod replica_checker;

use super::operator::Operator;

/// What a checker thinks of a region.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Healthy,
    /// Something is wrong that cannot be mended now; look again when the cluster changes.
    Blocked(String),
    /// Run this.
    Mend(Operator),
}
