//! Transactions: snapshot isolation over many keys.
//!
//! [`committer`] is the commit protocol as a pure state machine, [`resolution`] is how locks of crashed or slow
//! transactions are dealt with.

pub mod committer;
#[cfg(test)]
mod committer_tests;
pub(crate) mod key_error;
pub mod resolution;
#[cfg(test)]
mod resolution_tests;
