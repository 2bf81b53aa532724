//! Transactional commands, one file each: what they check, and what they write.
//!
//! A command is a pure function of a snapshot: [`Command::process`] reads and gives a [`Done`]. The runner
//! (`txn/scheduler.rs`) takes latches before the snapshot, replicates the write, and wakes those who waited. All
//! commands give the same answer when they are repeated, and none undoes what a later one did.

use bytes::Bytes;

use super::error::{TxnError, TxnResult};
use super::max_ts::{MaxTs, MemoryGuard};
use super::mvcc::Reader;
use crate::raftstore::message::WriteSet;
use std::sync::Arc;

pub mod acquire_pessimistic_lock;
pub mod changes;
pub mod check_secondary_locks;
pub mod check_txn_status;
pub mod cleanup;
pub mod commit;
pub mod delete_range;
pub mod pessimistic_rollback;
pub mod prewrite;
pub mod resolve_lock;
pub mod rollback;
pub mod txn_heart_beat;

pub use acquire_pessimistic_lock::{AcquirePessimisticLock, Acquired, Claim, ClaimedKey};
pub use changes::Changes;
pub use check_secondary_locks::{CheckSecondaryLocks, SecondaryLocks};
pub use check_txn_status::{CheckTxnStatus, CheckedTxn, StatusAction, TxnStatus};
pub use cleanup::Cleanup;
pub use commit::Commit;
pub use delete_range::delete_range;
pub use pessimistic_rollback::PessimisticRollback;
pub use prewrite::{Mutation, MutationOp, PessimisticAction, Prewrite, Prewritten};
pub use resolve_lock::{Fates, RESOLVE_KEYS_MAX, ResolveLock};
pub use rollback::Rollback;
pub use txn_heart_beat::TxnHeartBeat;

/// What a command has at hand.
pub struct Cx<'a> {
    /// Reads the region's data.
    pub reader: Reader<'a>,
    /// What readers have seen; memory locks go in here.
    pub max_ts: &'a Arc<MaxTs>,
}

/// A lock that goes with the command's write; who waits for it is woken when the write is visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Wire key of the lock.
    pub key: Bytes,
    /// Whose lock it was.
    pub start_ts: u64,
    /// When its transaction committed on the key; 0 when it did not.
    pub commit_ts: u64,
}

/// What a command decided.
#[derive(Debug)]
pub struct Done<A> {
    /// What to write; empty when nothing is to be done.
    pub write: WriteSet,
    /// The answer once that is written.
    pub answer: A,
    pub released: Vec<Released>,
    /// Memory locks that must stay until the write is visible or has failed.
    pub memory: Option<MemoryGuard>,
}

impl<A> Done<A> {
    /// An answer without a write.
    pub fn answer(answer: A) -> Done<A> {
        Done { write: WriteSet::with_capacity(0), answer, released: Vec::new(), memory: None }
    }

    /// An answer that stands once `changes` are written.
    pub fn with(changes: Changes, answer: A) -> Done<A> {
        Done { write: changes.write, answer, released: changes.released, memory: None }
    }
}

/// Refuses a start timestamp that the oracle never hands out: a record under the last one would be newer than everything.
pub fn check_start_ts(start_ts: u64) -> TxnResult<()> {
    match start_ts {
        0 | u64::MAX => {
            Err(TxnError::Invalid(format!("{start_ts} is no start timestamp; take it from the scheduler")))
        }
        _ => Ok(()),
    }
}

/// Refuses [`u64::MAX`] where a timestamp binds the transaction: nothing commits at the end of time.
pub fn check_binding_ts<const N: usize>(timestamps: [u64; N]) -> TxnResult<()> {
    if timestamps.contains(&u64::MAX) {
        return Err(TxnError::Invalid(
            "no transaction commits at the end of time, or locks keys for it".into(),
        ));
    }
    Ok(())
}

/// Refuses a commit timestamp that is none for a transaction of `start_ts`.
pub fn check_commit_ts(start_ts: u64, commit_ts: u64) -> TxnResult<()> {
    if start_ts < commit_ts && commit_ts < u64::MAX {
        return Ok(());
    }
    let text = format!("{commit_ts} is no commit timestamp after the start timestamp {start_ts}");
    Err(TxnError::Invalid(text))
}

/// The largest of some timestamps, apart from [`u64::MAX`], which has a meaning of its own.
fn newest<const N: usize>(timestamps: [u64; N]) -> u64 {
    timestamps.into_iter().filter(|ts| *ts != u64::MAX).max().unwrap_or(0)
}

/// See the file's head.
pub trait Command: Send + Sync + 'static {
    type Answer: Send + 'static;

    /// Wire keys that it reads and then writes: their latches are held, and all must lie in the region.
    fn keys(&self) -> Vec<Bytes>;

    /// Shows other wire keys that its locks will name: they must be keys that can be looked up later.
    ///
    /// # Errors
    /// What `check` says about one of them.
    fn check_named(&self, _check: &dyn Fn(&[u8]) -> TxnResult<()>) -> TxnResult<()> {
        Ok(())
    }

    /// True when it chooses a commit timestamp by what readers have seen: then the largest timestamp must cover what
    /// earlier leaders of the region have read.
    fn needs_synced_max_ts(&self) -> bool {
        false
    }

    /// The largest timestamp that it names, apart from [`u64::MAX`]: one that the oracle has not handed out is refused.
    fn newest_ts(&self) -> u64 {
        0
    }

    /// The start timestamp of a transaction that wants to take locks: one that began before the safe point may not. For
    /// what ends transactions, which is always allowed, [`u64::MAX`].
    fn begins_at(&self) -> u64 {
        u64::MAX
    }

    /// Reads and decides. May run again on the same snapshot when what it needs was not in memory.
    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<Self::Answer>>;
}
