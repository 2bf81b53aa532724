//! Transactions: snapshot isolation over many keys.
//!
//! [`committer`] is the commit protocol as a pure state machine, [`resolution`] is how locks of crashed or slow
//! transactions are dealt with; the other files send what these two ask for.

mod admin;
mod buffer;
mod cleanup;
mod client;
mod commit;
pub mod committer;
#[cfg(test)]
mod committer_tests;
mod keep_alive;
pub(crate) mod key_error;
mod lock_resolver;
mod locking;
mod options;
pub mod resolution;
#[cfg(test)]
mod resolution_tests;
mod scanner;
mod snapshot;
mod transaction;

pub use client::{CONFLICT_PAUSES, TransactionClient};
pub use lock_resolver::{LockResolver, Resolved};
pub use options::TxnOptions;
pub use scanner::{TxnScan, TxnScanStream};
pub use snapshot::Snapshot;
pub use transaction::Transaction;
