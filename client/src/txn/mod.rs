//! Transactions: snapshot isolation over many keys.
//!
//! [`committer`] is the commit protocol as a pure state machine.

pub mod committer;
#[cfg(test)]
mod committer_tests;
pub(crate) mod key_error;
