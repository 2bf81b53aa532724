//! Acquire pessimistic lock: claims keys for a transaction before it is known what will be written, and tells what they
//! hold now.
//!
//! All keys of one command are claimed or none is. A key that another transaction has locked is an error: the runner
//! waits for it and runs the command again. A key that was committed to after the for-update timestamp is a conflict,
//! unless the command takes the lock all the same and answers with what is newest.
//!
//! Repeated, it answers as before. After the transaction has ended on a key, it fails.

use bytes::Bytes;

use super::{Changes, Command, Cx, Done, newest};
use crate::txn::error::{Conflict, ConflictReason, TxnError, TxnResult};
use crate::txn::mvcc::{CommitRecord, Key, Lock, LockKind, Version, Write, WriteKind};

/// A key to claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Wire key.
    pub key: Bytes,
    /// Fail when the key has a value.
    pub must_not_exist: bool,
}

/// See the file's head.
#[derive(Clone, Debug)]
pub struct AcquirePessimisticLock {
    pub claims: Vec<Claim>,
    pub primary: Bytes,
    pub start_ts: u64,
    /// Milliseconds.
    pub ttl: u64,
    /// The data that the transaction has seen is at most this old.
    pub for_update_ts: u64,
    pub min_commit_ts: u64,
    /// The transaction holds no lock yet, so nobody waits for it.
    pub is_first_lock: bool,
    pub return_values: bool,
    pub check_existence: bool,
    /// Leave keys without a value unlocked.
    pub lock_only_if_exists: bool,
    /// Lock keys although they were committed to after the for-update timestamp.
    pub lock_with_conflict: bool,
}

/// What a claimed key holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimedKey {
    /// Known when values or existence were asked for, or with a conflict.
    pub exists: bool,
    /// When values were asked for, or with a conflict.
    pub value: Option<Bytes>,
    /// When another transaction committed on the key after the for-update timestamp; 0 without a conflict.
    pub locked_with_conflict_ts: u64,
}

/// What came of it: one entry for each claim, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acquired {
    pub keys: Vec<ClaimedKey>,
}

impl Command for AcquirePessimisticLock {
    type Answer = Acquired;

    fn keys(&self) -> Vec<Bytes> {
        self.claims.iter().map(|claim| claim.key.clone()).collect()
    }

    fn begins_at(&self) -> u64 {
        self.start_ts
    }

    fn check_named(&self, check: &dyn Fn(&[u8]) -> TxnResult<()>) -> TxnResult<()> {
        check(&self.primary)
    }

    fn newest_ts(&self) -> u64 {
        newest([self.start_ts, self.for_update_ts, self.min_commit_ts])
    }

    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<Acquired>> {
        super::check_start_ts(self.start_ts)?;
        super::check_binding_ts([self.for_update_ts, self.min_commit_ts])?;
        if self.for_update_ts < self.start_ts {
            let Self { start_ts, for_update_ts, .. } = self;
            let text =
                format!("for-update timestamp {for_update_ts} is before the start timestamp {start_ts}");
            return Err(TxnError::Invalid(text));
        }
        if self.lock_only_if_exists && !self.return_values && !self.check_existence {
            let text = "lock_only_if_exists needs return_values or check_existence: else nobody knows what is locked";
            return Err(TxnError::Invalid(text.into()));
        }
        let bytes = self.claims.iter().map(|claim| claim.key.len() + self.primary.len() + 80).sum();
        let mut changes = Changes::with_capacity(bytes);
        let mut keys = Vec::with_capacity(self.claims.len());
        for claim in &self.claims {
            let mut key = Key::new(claim.key.clone());
            keys.push(match cx.reader.lock(&key)? {
                Some(lock) if lock.start_ts != self.start_ts => {
                    return Err(TxnError::locked(claim.key.clone(), lock));
                }
                Some(lock) => self.again(cx, claim, &mut key, lock, &mut changes)?,
                None => self.take(cx, claim, &mut key, &mut changes)?,
            });
        }
        Ok(Done::with(changes, Acquired { keys }))
    }
}

impl AcquirePessimisticLock {
    /// A key that the transaction has locked already.
    fn again(
        &self,
        cx: &mut Cx<'_>,
        claim: &Claim,
        key: &mut Key,
        lock: Lock,
        changes: &mut Changes,
    ) -> TxnResult<ClaimedKey> {
        let with_conflict = self.lock_with_conflict && self.for_update_ts < lock.for_update_ts;
        // Nobody wrote since the key was locked, so what was there then is there now.
        let read_ts = match with_conflict || claim.must_not_exist {
            true => self.for_update_ts.max(lock.for_update_ts),
            false => self.for_update_ts,
        };
        let conflict_ts = if with_conflict { lock.for_update_ts } else { 0 };
        let current = match self.wants_data(claim, conflict_ts) {
            true => cx.reader.version(key, read_ts)?,
            false => None,
        };
        let claimed = self.claimed(cx, claim, key, current.as_ref(), conflict_ts)?;
        if lock.is_pessimistic() && self.for_update_ts > lock.for_update_ts {
            let renewed = Lock {
                primary: self.primary.clone(),
                // A heart beat has to count on, and so has a promise to readers.
                ttl: lock.ttl.max(self.ttl),
                min_commit_ts: lock.min_commit_ts.max(self.min_commit_ts),
                for_update_ts: self.for_update_ts,
                ..lock
            };
            changes.put_lock(key, &renewed);
        }
        Ok(claimed)
    }

    /// A key without a lock.
    fn take(
        &self,
        cx: &mut Cx<'_>,
        claim: &Claim,
        key: &mut Key,
        changes: &mut Changes,
    ) -> TxnResult<ClaimedKey> {
        let (newest_ts, newest) = cx.reader.seek_committed(key)?;
        if newest_ts >= self.start_ts {
            self.check_newer(cx, claim, key, newest.as_ref())?;
        }
        let conflict_ts = newest.as_ref().map_or(0, |newest| newest.commit_ts);
        let conflict_ts = if conflict_ts > self.for_update_ts { conflict_ts } else { 0 };
        let current = match &newest {
            _ if !self.wants_data(claim, conflict_ts) => None,
            Some(newest) if newest.write.kind.has_data() => Some(newest.clone()),
            None => None,
            Some(_) => cx.reader.version(key, u64::MAX)?,
        };
        let claimed = self.claimed(cx, claim, key, current.as_ref(), conflict_ts)?;
        if self.lock_only_if_exists && !claimed.exists {
            return Ok(claimed);
        }
        let data = current.or(newest);
        let lock = Lock {
            for_update_ts: self.for_update_ts.max(conflict_ts),
            min_commit_ts: self.min_commit_ts,
            last_change_ts: data.map_or(0, |version| version.data_ts()),
            ..Lock::new(LockKind::Pessimistic, self.start_ts, self.primary.clone(), self.ttl)
        };
        changes.put_lock(key, &lock);
        Ok(claimed)
    }

    /// Fails when another transaction was faster, or when this one has ended on the key. `newest` is the newest version.
    fn check_newer(
        &self,
        cx: &mut Cx<'_>,
        claim: &Claim,
        key: &mut Key,
        newest: Option<&Version>,
    ) -> TxnResult<()> {
        if let Some(newest) = newest
            && newest.commit_ts > self.for_update_ts
        {
            if !self.lock_with_conflict {
                return Err(self.conflict(claim, newest, ConflictReason::PessimisticRetry));
            }
            // An own commit is after every for-update timestamp: then this request was late.
            if let CommitRecord::Committed { commit_ts, .. } = cx.reader.commit_record(key, self.start_ts)? {
                return Err(TxnError::Committed { start_ts: self.start_ts, commit_ts });
            }
        }
        if cx.reader.is_rolled_back(key, self.start_ts)? {
            let own = Version { commit_ts: self.start_ts, write: Write::rollback(self.start_ts) };
            return Err(self.conflict(claim, &own, ConflictReason::SelfRolledBack));
        }
        Ok(())
    }

    /// Whether anybody wants to know what the key holds.
    fn wants_data(&self, claim: &Claim, conflict_ts: u64) -> bool {
        self.return_values || self.check_existence || claim.must_not_exist || conflict_ts > 0
    }

    /// The answer for a key whose newest data is `current`.
    fn claimed(
        &self,
        cx: &mut Cx<'_>,
        claim: &Claim,
        key: &mut Key,
        current: Option<&Version>,
        conflict_ts: u64,
    ) -> TxnResult<ClaimedKey> {
        let put = current.filter(|version| version.write.kind == WriteKind::Put);
        if claim.must_not_exist
            && let Some(put) = put
        {
            // Data that the transaction has not seen yet is no reason to fail for good.
            return Err(match put.commit_ts > self.for_update_ts {
                true => self.conflict(claim, put, ConflictReason::PessimisticRetry),
                false => TxnError::AlreadyExists { key: claim.key.clone() },
            });
        }
        let value = match put {
            Some(put) if self.return_values || conflict_ts > 0 => Some(cx.reader.value(key, &put.write)?),
            _ => None,
        };
        Ok(ClaimedKey { exists: put.is_some(), value, locked_with_conflict_ts: conflict_ts })
    }

    fn conflict(&self, claim: &Claim, with: &Version, reason: ConflictReason) -> TxnError {
        TxnError::Conflict(Box::new(Conflict {
            reason,
            start_ts: self.start_ts,
            conflict_ts: with.write.start_ts,
            conflict_commit_ts: with.commit_ts,
            key: claim.key.clone(),
            primary: self.primary.clone(),
        }))
    }
}
