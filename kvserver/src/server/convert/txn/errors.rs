//! Why a transactional request failed, as messages: each error with all fields that any client looks at.
//!
//! Older clients know some errors only as text, `retryable` when they may begin again by themselves and `abort` when
//! they may not; those fields are set beside the typed ones.

use bytes::Bytes;
use kvproto::{errorpb, kvrpcpb as pb};

use crate::engine::EngineError;
use crate::error::RegionError;
use crate::server::convert::wait::deadlock_to_client;
use crate::server::convert::{Failure, region_error};
use crate::txn::error::{Conflict, ConflictReason, LockInfo, TxnError};
use crate::txn::mvcc::LockKind;

impl From<TxnError> for Failure {
    fn from(error: TxnError) -> Failure {
        let text = error.to_string();
        match error {
            TxnError::Region(error) => Failure::Region(Box::new(region_error(error))),
            TxnError::Engine(EngineError::Stalled) => {
                busy("the storage engine is behind with compacting".into())
            }
            TxnError::Engine(error) => {
                tracing::error!(%error, "a transactional request failed in the storage engine");
                // Not the request's fault but this store's: another leader may do better.
                elsewhere(text)
            }
            TxnError::Stopping => elsewhere(text),
            TxnError::ReplyTooLarge { .. } => busy(text),
            TxnError::Locked(locks) => {
                let locked = |info| pb::KeyError { locked: Some(lock_info(info)), ..Default::default() };
                Failure::Keys(locks.into_iter().map(locked).collect())
            }
            error => Failure::Keys(vec![key_error(error, text)]),
        }
    }
}

fn busy(reason: String) -> Failure {
    Failure::Region(Box::new(region_error(RegionError::ServerIsBusy { reason })))
}

fn elsewhere(message: String) -> Failure {
    Failure::Region(Box::new(errorpb::Error { message, ..Default::default() }))
}

/// An error about one key; `text` is what it says.
fn key_error(error: TxnError, text: String) -> pb::KeyError {
    let mut message = pb::KeyError::default();
    match error {
        TxnError::Conflict(conflict) => {
            message.conflict = Some(write_conflict(*conflict));
            message.retryable = text;
        }
        TxnError::AlreadyExists { key } => message.already_exist = Some(pb::AlreadyExist { key }),
        TxnError::Deadlock(deadlock) => message.deadlock = Some(deadlock_to_client(*deadlock)),
        TxnError::CommitTsExpired { start_ts, commit_ts, key, min_commit_ts } => {
            let attempted_commit_ts = commit_ts;
            message.commit_ts_expired =
                Some(pb::CommitTsExpired { start_ts, attempted_commit_ts, key, min_commit_ts });
        }
        TxnError::TxnNotFound { start_ts, primary } => {
            message.txn_not_found = Some(pb::TxnNotFound { start_ts, primary_key: primary });
        }
        TxnError::LockNotFound { key, .. } => {
            message.txn_lock_not_found = Some(pb::TxnLockNotFound { key });
            message.retryable = text;
        }
        TxnError::PrimaryMismatch(info) => {
            message.primary_mismatch = Some(pb::PrimaryMismatch { lock_info: Some(lock_info(*info)) });
        }
        TxnError::CommitTsTooLarge { commit_ts } => {
            message.commit_ts_too_large = Some(pb::CommitTsTooLarge { commit_ts });
        }
        TxnError::Assertion { start_ts, key, must_exist, existing_start_ts, existing_commit_ts } => {
            let assertion = if must_exist { pb::Assertion::Exist } else { pb::Assertion::NotExist } as i32;
            let failed =
                pb::AssertionFailed { start_ts, key, assertion, existing_start_ts, existing_commit_ts };
            message.assertion_failed = Some(failed);
        }
        _ => message.abort = text,
    }
    message
}

fn write_conflict(conflict: Conflict) -> pb::WriteConflict {
    use pb::write_conflict::Reason;
    let reason = match conflict.reason {
        ConflictReason::Optimistic => Reason::Optimistic,
        ConflictReason::PessimisticRetry => Reason::PessimisticRetry,
        ConflictReason::SelfRolledBack => Reason::SelfRolledBack,
        ConflictReason::NotLockedKey => Reason::NotLockedKeyConflict,
    };
    pb::WriteConflict {
        start_ts: conflict.start_ts,
        conflict_ts: conflict.conflict_ts,
        key: conflict.key,
        primary: conflict.primary,
        conflict_commit_ts: conflict.conflict_commit_ts,
        reason: reason as i32,
    }
}

/// What kind of lock it is, in the protocol's terms.
pub fn lock_op(kind: LockKind) -> pb::Op {
    match kind {
        LockKind::Put => pb::Op::Put,
        LockKind::Delete => pb::Op::Del,
        LockKind::Lock => pb::Op::Lock,
        LockKind::Pessimistic => pb::Op::PessimisticLock,
    }
}

/// A lock as clients see it.
pub fn lock_info(info: LockInfo) -> pb::LockInfo {
    let LockInfo { key, lock } = info;
    pb::LockInfo {
        lock_version: lock.start_ts,
        key,
        lock_ttl: lock.ttl,
        txn_size: lock.txn_size,
        lock_type: lock_op(lock.kind) as i32,
        lock_for_update_ts: lock.for_update_ts,
        use_async_commit: lock.is_async_commit(),
        min_commit_ts: lock.min_commit_ts,
        primary_lock: lock.primary,
        secondaries: lock.secondaries.unwrap_or_default(),
        ..Default::default()
    }
}

/// The pair that stands for a key that is locked.
pub fn locked_pair(info: LockInfo) -> pb::KvPair {
    let key: Bytes = info.key.clone();
    let error = Some(pb::KeyError { locked: Some(lock_info(info)), ..Default::default() });
    pb::KvPair { error, key, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::error::{Deadlock, WaitEntry};
    use crate::txn::mvcc::Lock;

    fn keys(error: TxnError) -> Vec<pb::KeyError> {
        match Failure::from(error) {
            Failure::Keys(errors) => errors,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_lock_in_the_way_is_told_in_full() {
        let lock = Lock {
            txn_size: 3,
            for_update_ts: 11,
            min_commit_ts: 12,
            secondaries: Some(vec!["s".into()]),
            ..Lock::new(LockKind::Delete, 10, "p".into(), 3_000)
        };
        let info = |key: &'static str| LockInfo { key: key.into(), lock: lock.clone() };
        let errors = keys(TxnError::Locked(vec![info("a"), info("b")]));
        let told = pb::LockInfo {
            primary_lock: "p".into(),
            lock_version: 10,
            key: "b".into(),
            lock_ttl: 3_000,
            txn_size: 3,
            lock_type: pb::Op::Del as i32,
            lock_for_update_ts: 11,
            use_async_commit: true,
            min_commit_ts: 12,
            secondaries: vec!["s".into()],
            ..Default::default()
        };
        assert_eq!((errors.len(), errors[1].locked.as_ref()), (2, Some(&told)));
    }

    #[test]
    fn old_clients_get_a_text_beside_what_they_do_not_know() {
        let conflict = Conflict {
            reason: ConflictReason::PessimisticRetry,
            start_ts: 1,
            conflict_ts: 2,
            conflict_commit_ts: 3,
            key: "k".into(),
            primary: "p".into(),
        };
        let error = &keys(TxnError::Conflict(Box::new(conflict)))[0];
        let told = error.conflict.as_ref().unwrap();
        assert_eq!((told.start_ts, told.conflict_ts, told.conflict_commit_ts), (1, 2, 3));
        assert_eq!(told.reason(), pb::write_conflict::Reason::PessimisticRetry);
        assert!(!error.retryable.is_empty());
        let error = &keys(TxnError::LockNotFound { start_ts: 1, key: "k".into() })[0];
        assert!(error.txn_lock_not_found.is_some() && !error.retryable.is_empty());
        let error = &keys(TxnError::PessimisticLockNotFound { start_ts: 1, key: "k".into() })[0];
        assert!(error.abort.contains("pessimistic"), "{error:?}");
    }

    #[test]
    fn a_deadlock_names_the_circle() {
        let edge = |txn, wait_for| WaitEntry { txn, wait_for, key: "k".into() };
        let deadlock = Deadlock { lock_ts: 2, key: "k".into(), chain: vec![edge(2, 1), edge(1, 2)] };
        let error = &keys(TxnError::Deadlock(Box::new(deadlock)))[0];
        let told = error.deadlock.as_ref().unwrap();
        assert_eq!((told.lock_ts, told.wait_chain.len()), (2, 2));
    }

    #[test]
    fn what_the_store_is_to_blame_for_sends_the_client_elsewhere() {
        let Failure::Region(error) = TxnError::Stopping.into() else { panic!("blamed on the request") };
        assert!(error.message.contains("stopping"));
        let Failure::Region(error) = TxnError::Engine(EngineError::Stalled).into() else { panic!() };
        assert!(error.server_is_busy.is_some());
    }
}
