//! What a store's refusal of a transactional request means to the client. Pure.

use bytes::Bytes;
use kvproto::kvrpcpb::{Assertion, KeyError, LockInfo};
use kvproto::ts::Timestamp;

use crate::error::{Error, WaitFor};

/// What stands in the text of a refusal to read or write below the safe point.
const TOO_OLD: &str = "below the garbage collector's safe point";
/// What stands in the text of a prewrite's refusal when somebody has removed the pessimistic lock that it needs.
const NOT_LOCKED: [&str; 2] = ["no pessimistic lock", "PessimisticLockNotFound"];

/// A refusal, sorted by what can be done about it.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    /// Locks of other transactions are in the way.
    Locked(Vec<LockInfo>),
    /// The transaction can only be committed at this timestamp or a later one.
    CommitTsExpired(Timestamp),
    /// Nothing can be done within this transaction.
    Final(Error),
}

impl Refusal {
    /// Sorts what a store answered to a request of transaction `start_ts`.
    pub(crate) fn new(error: KeyError, start_ts: Timestamp) -> Refusal {
        if let Some(mut lock) = error.locked {
            let shared = std::mem::take(&mut lock.shared_lock_infos);
            return Refusal::Locked(if shared.is_empty() { vec![lock] } else { shared });
        }
        if let Some(expired) = error.commit_ts_expired {
            return Refusal::CommitTsExpired(Timestamp::new(expired.min_commit_ts));
        }
        Refusal::Final(final_error(error, start_ts))
    }

    /// The same as an error, where locks cannot be waited for.
    pub(crate) fn into_error(self, start_ts: Timestamp) -> Error {
        match self {
            Refusal::Locked(locks) => key_locked(locks.first()),
            Refusal::CommitTsExpired(min) => {
                Error::Protocol(format!("transaction {start_ts} cannot be committed before {min}"))
            }
            Refusal::Final(error) => error,
        }
    }
}

/// The error of a call that could not wait for `lock` any longer.
pub(crate) fn key_locked(lock: Option<&LockInfo>) -> Error {
    let (key, holder) = lock.map(|lock| (lock.key.clone(), lock.lock_version)).unwrap_or_default();
    Error::KeyLocked { key, holder: Timestamp::new(holder) }
}

fn final_error(error: KeyError, start_ts: Timestamp) -> Error {
    if let Some(conflict) = error.conflict {
        return Error::WriteConflict {
            start_ts: Timestamp::new(conflict.start_ts),
            conflict_ts: Timestamp::new(conflict.conflict_ts),
            commit_ts: Timestamp::new(conflict.conflict_commit_ts),
            reason: conflict.reason(),
            key: conflict.key,
        };
    }
    if let Some(exists) = error.already_exist {
        return Error::AlreadyExists { key: exists.key };
    }
    if let Some(deadlock) = error.deadlock {
        let edge = |edge: kvproto::deadlock::WaitForEntry| WaitFor {
            txn: Timestamp::new(edge.txn),
            waits_for: Timestamp::new(edge.wait_for_txn),
            key: edge.key,
        };
        let chain = deadlock.wait_chain.into_iter().map(edge).collect();
        return Error::Deadlock { key: deadlock.lock_key, chain };
    }
    if let Some(lost) = error.txn_lock_not_found {
        return aborted(start_ts, "its lock is gone", &lost.key);
    }
    if let Some(lost) = error.txn_not_found {
        return aborted(start_ts, "its primary lock is gone", &lost.primary_key);
    }
    if let Some(failed) = error.assertion_failed {
        let key = kvproto::redact::Key(&failed.key).to_string();
        return match failed.assertion() {
            Assertion::NotExist => Error::AlreadyExists { key: failed.key },
            assertion => Error::Server(format!("assertion {assertion:?} of key {key} failed")),
        };
    }
    if let Some(too_large) = error.commit_ts_too_large {
        return Error::Server(format!("commit timestamp {} lies in the future", too_large.commit_ts));
    }
    if error.abort.is_empty() && !error.retryable.is_empty() {
        return Error::TxnAborted { start_ts, cause: error.retryable };
    }
    match error.abort {
        cause if cause.contains(TOO_OLD) => Error::TooOld { ts: start_ts, cause },
        cause if NOT_LOCKED.iter().any(|text| cause.contains(text)) => Error::TxnAborted { start_ts, cause },
        cause => Error::Server(cause),
    }
}

fn aborted(start_ts: Timestamp, what: &str, key: &Bytes) -> Error {
    Error::TxnAborted { start_ts, cause: format!("{what} at key {}", kvproto::redact::Key(key)) }
}

#[cfg(test)]
mod tests {
    use kvproto::kvrpcpb::{
        AssertionFailed, CommitTsExpired, TxnLockNotFound, WriteConflict, write_conflict::Reason,
    };

    use super::*;

    fn sort(error: KeyError) -> Refusal {
        Refusal::new(error, Timestamp::new(7))
    }

    #[test]
    fn typed_refusals_win_over_their_texts() {
        let text = "please retry".to_string();
        let lost = Some(TxnLockNotFound { key: "k".into() });
        let error = KeyError { txn_lock_not_found: lost, retryable: text.clone(), ..Default::default() };
        assert!(
            matches!(sort(error), Refusal::Final(Error::TxnAborted { cause, .. }) if cause.contains("lock is gone"))
        );
        let mut conflict =
            WriteConflict { start_ts: 7, conflict_ts: 5, conflict_commit_ts: 9, ..Default::default() };
        conflict.set_reason(Reason::SelfRolledBack);
        let error = KeyError { conflict: Some(conflict), retryable: text, ..Default::default() };
        let Refusal::Final(error) = sort(error) else { panic!("a conflict is final") };
        assert!(error.is_conflict() && error.is_retryable());
    }

    #[test]
    fn locks_and_expired_timestamps_can_be_helped() {
        let lock = LockInfo { lock_version: 3, key: "k".into(), ..Default::default() };
        let error = KeyError { locked: Some(lock), ..Default::default() };
        assert!(matches!(sort(error), Refusal::Locked(locks) if locks[0].lock_version == 3));
        let expired = CommitTsExpired { min_commit_ts: 12, ..Default::default() };
        let error = KeyError { commit_ts_expired: Some(expired), ..Default::default() };
        assert!(matches!(sort(error), Refusal::CommitTsExpired(ts) if ts.get() == 12));
    }

    #[test]
    fn failed_assertions_show_no_keys() {
        let failed = |assertion: Assertion| {
            let failed = AssertionFailed {
                key: "secret".into(),
                assertion: assertion.into(),
                ..AssertionFailed::default()
            };
            sort(KeyError { assertion_failed: Some(failed), ..Default::default() })
        };
        assert!(matches!(failed(Assertion::NotExist), Refusal::Final(Error::AlreadyExists { .. })));
        let Refusal::Final(error) = failed(Assertion::Exist) else { panic!("nothing can be done") };
        assert_eq!(error.to_string(), "server: assertion Exist of key 736563726574 failed");
    }

    #[test]
    fn a_snapshot_that_is_gone_is_no_abort() {
        let abort = format!("timestamp 7 lies {TOO_OLD} 9");
        let error = KeyError { abort, ..Default::default() };
        assert!(matches!(sort(error), Refusal::Final(Error::TooOld { .. })));
        let abort = "transaction 7 holds no pessimistic lock on key k".to_string();
        let error = KeyError { abort, ..Default::default() };
        assert!(matches!(sort(error), Refusal::Final(Error::TxnAborted { .. })));
        let error = KeyError { abort: "an empty key cannot be written".to_string(), ..Default::default() };
        let Refusal::Final(error) = sort(error) else { panic!("a bad request is final") };
        assert!(!error.is_retryable());
    }
}
