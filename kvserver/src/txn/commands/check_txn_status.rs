//! Check transaction status: what became of a transaction, by its primary key. Whoever meets one of its locks asks
//! this, and the answer decides for all its keys.
//!
//! A transaction that has not been heard of for its time to live is rolled back here. One that is alive may be made to
//! commit after the reader that asks, so that the reader need not wait. A transaction with async commit is never
//! expired here: it may be committed already, its other keys know.

use bytes::Bytes;

use super::{Changes, Command, Cx, Done, newest};
use crate::txn::error::{LockInfo, TxnError, TxnResult};
use crate::txn::mvcc::{CommitRecord, Key, Lock};

/// See the file's head.
#[derive(Clone, Debug)]
pub struct CheckTxnStatus {
    /// Wire key.
    pub primary: Bytes,
    /// The transaction that is asked about.
    pub start_ts: u64,
    /// The transaction that asks; 0 for none, [`u64::MAX`] for a read of the latest data.
    pub caller_start_ts: u64,
    /// What the oracle says now; [`u64::MAX`] expires every lock.
    pub current_ts: u64,
    /// A transaction without a trace is rolled back, so that it can never begin to commit.
    pub rollback_if_not_exist: bool,
    /// The caller knows that an async commit has not succeeded: treat it as an ordinary transaction.
    pub force_sync_commit: bool,
    /// The lock that the caller met is a pessimistic one: no need for a record when it is expired.
    pub resolving_pessimistic_lock: bool,
    /// Fail when the lock found is not the primary one.
    pub verify_is_primary: bool,
}

/// What became of the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnStatus {
    Committed {
        commit_ts: u64,
    },
    RolledBack,
    /// Neither yet. The lock as it is after this command.
    Locked(Box<Lock>),
}

/// What the command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusAction {
    Nothing,
    /// It had expired and was rolled back.
    RolledBackExpired,
    /// There was no trace of it, and it was rolled back.
    RolledBackMissing,
    /// It will commit after the caller's timestamp.
    PushedMinCommitTs,
    /// Its pessimistic lock had expired and was removed.
    RemovedExpiredClaim,
    /// There was no trace of it, and there still is none.
    LeftMissing,
}

/// Status and action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedTxn {
    pub status: TxnStatus,
    pub action: StatusAction,
}

type Checked = TxnResult<Done<CheckedTxn>>;

fn done(changes: Changes, status: TxnStatus, action: StatusAction) -> Checked {
    Ok(Done::with(changes, CheckedTxn { status, action }))
}

impl Command for CheckTxnStatus {
    type Answer = CheckedTxn;

    fn keys(&self) -> Vec<Bytes> {
        vec![self.primary.clone()]
    }

    fn newest_ts(&self) -> u64 {
        newest([self.start_ts, self.caller_start_ts, self.current_ts])
    }

    fn process(&self, cx: &mut Cx<'_>) -> Checked {
        super::check_start_ts(self.start_ts)?;
        let mut key = Key::new(self.primary.clone());
        let mut changes = Changes::with_capacity(2 * self.primary.len() + 128);
        let Some(lock) = cx.reader.lock(&key)?.filter(|lock| lock.start_ts == self.start_ts) else {
            return self.missing(cx, &mut key, changes);
        };
        if self.verify_is_primary && lock.primary != self.primary {
            if self.resolving_pessimistic_lock || !lock.is_pessimistic() {
                let info = LockInfo { key: self.primary.clone(), lock };
                return Err(TxnError::PrimaryMismatch(Box::new(info)));
            }
            // The lock that was met was prewritten and names this key: the claim here is left over from before.
            changes.remove_lock(&key, &lock, 0);
            return self.missing(cx, &mut key, changes);
        }
        if lock.is_async_commit() && !self.force_sync_commit {
            return done(changes, TxnStatus::Locked(Box::new(lock)), StatusAction::Nothing);
        }
        if lock.is_expired(self.current_ts) {
            if lock.is_pessimistic() && self.resolving_pessimistic_lock {
                changes.remove_lock(&key, &lock, 0);
                return done(changes, TxnStatus::RolledBack, StatusAction::RemovedExpiredClaim);
            }
            changes.roll_back(&mut cx.reader, &mut key, self.start_ts, Some(&lock))?;
            return done(changes, TxnStatus::RolledBack, StatusAction::RolledBackExpired);
        }
        self.push(&key, lock, changes)
    }
}

impl CheckTxnStatus {
    /// A transaction that is alive.
    fn push(&self, key: &Key, mut lock: Lock, mut changes: Changes) -> Checked {
        let caller = self.caller_start_ts;
        if lock.min_commit_ts > 0 && caller != u64::MAX && caller >= lock.min_commit_ts {
            lock.min_commit_ts = (caller + 1).max(self.current_ts);
            changes.renew_lock(key, &lock);
        }
        // A read of the latest data passes by itself once it knows that nothing is committed.
        let passes = caller == u64::MAX || (caller > 0 && lock.min_commit_ts > caller);
        let action = if passes { StatusAction::PushedMinCommitTs } else { StatusAction::Nothing };
        done(changes, TxnStatus::Locked(Box::new(lock)), action)
    }

    /// A transaction that has no lock here.
    fn missing(&self, cx: &mut Cx<'_>, key: &mut Key, mut changes: Changes) -> Checked {
        match cx.reader.commit_record(key, self.start_ts)? {
            CommitRecord::Committed { commit_ts, .. } => {
                return done(changes, TxnStatus::Committed { commit_ts }, StatusAction::Nothing);
            }
            CommitRecord::RolledBack => {
                return done(changes, TxnStatus::RolledBack, StatusAction::Nothing);
            }
            CommitRecord::None => {}
        }
        if !self.rollback_if_not_exist {
            let (start_ts, primary) = (self.start_ts, self.primary.clone());
            return Err(TxnError::TxnNotFound { start_ts, primary });
        }
        if self.resolving_pessimistic_lock {
            return done(changes, TxnStatus::RolledBack, StatusAction::LeftMissing);
        }
        changes.roll_back(&mut cx.reader, key, self.start_ts, None)?;
        done(changes, TxnStatus::RolledBack, StatusAction::RolledBackMissing)
    }
}
