//! Prewrite: puts a transaction's changes under locks, after checking that nobody else was faster. The first phase of
//! two, or of async commit, or the whole of a one-phase commit.
//!
//! With async commit the transaction is committed as soon as all its keys are locked, at the largest `min_commit_ts` of
//! its locks. With one phase there are no locks at all. Both choose a timestamp above everything that was read of the
//! keys: see `txn/max_ts.rs` for how that is kept true while the write is on its way.
//!
//! Repeated, it answers as before: own locks and own versions are found and taken for what they are.

use bytes::Bytes;

use super::{Changes, Command, Cx, Done};
use crate::txn::error::{Conflict, ConflictReason, LockInfo, TxnError, TxnResult};
use crate::txn::max_ts::MemoryGuard;
use crate::txn::mvcc::{
    CommitRecord, Key, Lock, LockKind, ONE_PHASE_VALUE_MAX, SHORT_VALUE_MAX, Version, Write, WriteKind,
};

/// What a mutation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MutationOp {
    Put,
    Delete,
    Lock,
    /// A put of a key that must not exist.
    Insert,
    /// Checks that the key does not exist, and leaves no lock.
    CheckNotExists,
}

/// How a pessimistic transaction's prewrite looks at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PessimisticAction {
    /// The key was not locked; no check for newer versions.
    Skip,
    /// The key must carry the transaction's pessimistic lock.
    Check,
    /// The key was not locked; newer versions are conflicts.
    Constraint,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Mutation {
    pub op: MutationOp,
    /// Wire key.
    pub key: Bytes,
    /// For puts and inserts.
    pub value: Bytes,
    pub pessimistic: PessimisticAction,
    /// The for-update timestamp that the key's pessimistic lock must have.
    pub expected_for_update_ts: Option<u64>,
    /// `Some(exists)`: the client says that the key exists or not, and wants to know when it errs.
    pub assertion: Option<bool>,
}

/// See the file's head.
#[derive(Clone, Debug)]
pub struct Prewrite {
    pub mutations: Vec<Mutation>,
    pub primary: Bytes,
    pub start_ts: u64,
    /// Milliseconds.
    pub ttl: u64,
    pub txn_size: u64,
    /// Over 0 for a pessimistic transaction.
    pub for_update_ts: u64,
    pub min_commit_ts: u64,
    /// No commit above this; 0 is no limit.
    pub max_commit_ts: u64,
    pub skip_constraint_check: bool,
    /// `Some` asks for async commit; the primary's lock names these.
    pub secondaries: Option<Vec<Bytes>>,
    pub try_one_pc: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prewritten {
    /// With async commit, the least commit timestamp; 0 when these are ordinary locks.
    pub min_commit_ts: u64,
    /// Over 0 when the transaction is committed already.
    pub one_pc_commit_ts: u64,
}

/// A mutation that passed its checks.
struct Passed<'a> {
    mutation: &'a Mutation,
    key: Key,
    /// The transaction's pessimistic lock, which is replaced.
    claim: Option<Lock>,
    /// Where the newest data below the lock is; 0 when it is not known.
    last_change_ts: u64,
}

/// What the checks of all mutations add up to.
#[derive(Default)]
struct Checked<'a> {
    passed: Vec<Passed<'a>>,
    locked: Vec<LockInfo>,
    /// Own locks that an earlier attempt left, all of them with async commit: the largest of their timestamps.
    locked_before: Option<u64>,
    ordinary_before: bool,
    /// An earlier attempt has committed.
    committed_ts: u64,
    /// Above every version that was met.
    floor: u64,
}

impl Checked<'_> {
    /// Everything was written by an earlier attempt.
    fn is_repeat(&self) -> bool {
        let before = self.ordinary_before || self.locked_before.is_some() || self.committed_ts > 0;
        before && self.passed.is_empty() && self.locked.is_empty()
    }
}

impl Prewrite {
    fn is_pessimistic(&self) -> bool {
        self.for_update_ts > 0
    }

    fn check<'a>(&self, cx: &mut Cx<'_>, m: &'a Mutation, out: &mut Checked<'a>) -> TxnResult<()> {
        let mut key = Key::new(m.key.clone());
        let must_own = self.is_pessimistic() && m.pessimistic == PessimisticAction::Check;
        let claim = match cx.reader.lock(&key)? {
            Some(lock) if lock.start_ts != self.start_ts => {
                // That lock may have come after an earlier attempt got through.
                if self.has_ended(cx, m, &mut key, out)? {
                    return Ok(());
                }
                if must_own {
                    return Err(self.claim_lost(m));
                }
                out.locked.push(LockInfo { key: m.key.clone(), lock });
                return Ok(());
            }
            Some(lock) if !lock.is_pessimistic() => {
                match lock.is_async_commit() {
                    true => {
                        let before = out.locked_before.unwrap_or(0);
                        out.locked_before = Some(before.max(lock.min_commit_ts));
                    }
                    false => out.ordinary_before = true,
                }
                return Ok(());
            }
            claim => claim,
        };
        if let (Some(claim), Some(expected)) = (&claim, m.expected_for_update_ts)
            && claim.for_update_ts != expected
        {
            return Err(self.claim_lost(m));
        }
        let last_change_ts = match &claim {
            Some(claim) => {
                // Nobody has written since the claim, which may be newer than the request knows.
                out.floor = out.floor.max(claim.for_update_ts.saturating_add(1)).max(claim.min_commit_ts);
                claim.last_change_ts
            }
            None => match self.check_versions(cx, m, &mut key, must_own, out)? {
                Some(last_change_ts) => last_change_ts,
                None => return Ok(()),
            },
        };
        self.check_existence(cx, m, &mut key)?;
        if m.op != MutationOp::CheckNotExists {
            out.passed.push(Passed { mutation: m, key, claim, last_change_ts });
        }
        Ok(())
    }

    /// True when an earlier attempt has committed the key; an error when the transaction was rolled back on it.
    fn has_ended(
        &self,
        cx: &mut Cx<'_>,
        m: &Mutation,
        key: &mut Key,
        out: &mut Checked<'_>,
    ) -> TxnResult<bool> {
        match cx.reader.commit_record(key, self.start_ts)? {
            CommitRecord::Committed { commit_ts, .. } => {
                out.committed_ts = commit_ts;
                Ok(true)
            }
            CommitRecord::RolledBack => {
                let own = Version { commit_ts: self.start_ts, write: Write::rollback(self.start_ts) };
                Err(self.conflict(m, &own, ConflictReason::SelfRolledBack))
            }
            CommitRecord::None => Ok(false),
        }
    }

    /// Looks at versions of a key on which the transaction has no lock. `None` when an earlier attempt has committed it
    /// already, else where its newest data is.
    fn check_versions(
        &self,
        cx: &mut Cx<'_>,
        m: &Mutation,
        key: &mut Key,
        must_own: bool,
        out: &mut Checked<'_>,
    ) -> TxnResult<Option<u64>> {
        let newest = cx.reader.seek_write(key, u64::MAX)?;
        if let Some(newest) = &newest
            && newest.commit_ts >= self.start_ts
            && self.has_ended(cx, m, key, out)?
        {
            return Ok(None);
        }
        if must_own {
            return Err(self.claim_lost(m));
        }
        let Some(newest) = newest else { return Ok(Some(0)) };
        out.floor = out.floor.max(newest.commit_ts.saturating_add(1));
        let newest = match newest.write.kind {
            WriteKind::Rollback => cx.reader.seek_committed(key)?.1,
            _ => Some(newest),
        };
        let Some(newest) = newest else { return Ok(Some(0)) };
        let free = match self.is_pessimistic() {
            true => m.pessimistic == PessimisticAction::Skip,
            false => self.skip_constraint_check,
        };
        if newest.commit_ts > self.start_ts && !free {
            let reason = match self.is_pessimistic() {
                true => ConflictReason::NotLockedKey,
                false => ConflictReason::Optimistic,
            };
            return Err(self.conflict(m, &newest, reason));
        }
        Ok(Some(newest.data_ts()))
    }

    fn check_existence(&self, cx: &mut Cx<'_>, m: &Mutation, key: &mut Key) -> TxnResult<()> {
        let must_not = matches!(m.op, MutationOp::Insert | MutationOp::CheckNotExists);
        if !must_not && m.assertion.is_none() {
            return Ok(());
        }
        let found = cx.reader.version(key, u64::MAX)?;
        let found = found.filter(|version| version.write.kind == WriteKind::Put);
        if must_not && found.is_some() {
            return Err(TxnError::AlreadyExists { key: m.key.clone() });
        }
        match m.assertion {
            Some(must_exist) if must_exist != found.is_some() => Err(TxnError::Assertion {
                start_ts: self.start_ts,
                key: m.key.clone(),
                must_exist,
                existing_start_ts: found.as_ref().map_or(0, |version| version.write.start_ts),
                existing_commit_ts: found.as_ref().map_or(0, |version| version.commit_ts),
            }),
            _ => Ok(()),
        }
    }

    fn claim_lost(&self, m: &Mutation) -> TxnError {
        TxnError::PessimisticLockNotFound { start_ts: self.start_ts, key: m.key.clone() }
    }

    fn conflict(&self, m: &Mutation, with: &Version, reason: ConflictReason) -> TxnError {
        TxnError::Conflict(Box::new(Conflict {
            reason,
            start_ts: self.start_ts,
            conflict_ts: with.write.start_ts,
            conflict_commit_ts: with.commit_ts,
            key: m.key.clone(),
            primary: self.primary.clone(),
        }))
    }

    /// The lock of a mutation, with its value where it belongs.
    fn lock(&self, passed: &mut Passed<'_>, changes: &mut Changes, short: usize) -> Lock {
        let m = passed.mutation;
        let kind = match m.op {
            MutationOp::Put | MutationOp::Insert => LockKind::Put,
            MutationOp::Delete => LockKind::Delete,
            MutationOp::Lock | MutationOp::CheckNotExists => LockKind::Lock,
        };
        let short_value = match kind {
            LockKind::Put => changes.keep_value(&mut passed.key, self.start_ts, m.value.clone(), short),
            _ => None,
        };
        // What the claim has promised counts on: a heart beat, and to commit after readers that went on because of it.
        let (ttl, promised) = passed.claim.as_ref().map_or((0, 0), |claim| (claim.ttl, claim.min_commit_ts));
        Lock {
            txn_size: self.txn_size,
            for_update_ts: self.for_update_ts,
            min_commit_ts: self.min_commit_ts.max(promised),
            last_change_ts: if kind == LockKind::Lock { passed.last_change_ts } else { 0 },
            short_value,
            ..Lock::new(kind, self.start_ts, self.primary.clone(), self.ttl.max(ttl))
        }
    }

    /// Puts memory locks and chooses the timestamp. `None` when it would be over the limit.
    fn choose(&self, cx: &Cx<'_>, checked: &Checked<'_>) -> Option<(u64, MemoryGuard)> {
        let bare = |passed: &Passed<'_>| {
            let kind =
                if passed.mutation.op == MutationOp::Delete { LockKind::Delete } else { LockKind::Put };
            let lock = Lock::new(kind, self.start_ts, self.primary.clone(), self.ttl);
            (passed.mutation.key.clone(), lock)
        };
        let guard = cx.max_ts.lock(checked.passed.iter().map(bare));
        let least = cx.max_ts.get().max(self.start_ts).max(self.for_update_ts).saturating_add(1);
        let ts = least.max(self.min_commit_ts).max(checked.floor).max(checked.locked_before.unwrap_or(0));
        if ts == u64::MAX || (self.max_commit_ts > 0 && ts > self.max_commit_ts) {
            return None;
        }
        guard.set_min_commit_ts(ts);
        Some((ts, guard))
    }

    /// Commits at once.
    fn one_phase(
        &self,
        cx: &mut Cx<'_>,
        checked: Checked<'_>,
        ts: u64,
        changes: &mut Changes,
    ) -> TxnResult<()> {
        for mut passed in checked.passed {
            let lock = self.lock(&mut passed, changes, ONE_PHASE_VALUE_MAX);
            let Some(kind) = lock.kind.committed() else { continue };
            if let Some(claim) = &passed.claim {
                // Without a claim the newest record was looked at, and `ts` lies above it.
                changes.keep_rollback(&mut cx.reader, &mut passed.key, ts)?;
                changes.remove_lock(&passed.key, claim, ts);
            }
            let write = Write {
                kind,
                start_ts: self.start_ts,
                last_change_ts: lock.last_change_ts,
                short_value: lock.short_value,
            };
            changes.put_write(&mut passed.key, ts, &write);
        }
        Ok(())
    }

    /// Puts locks; with `Some(ts)` those of async commit.
    fn two_phase(&self, checked: Checked<'_>, async_ts: Option<u64>, changes: &mut Changes) {
        for mut passed in checked.passed {
            let mut lock = self.lock(&mut passed, changes, SHORT_VALUE_MAX);
            if let Some(ts) = async_ts {
                lock.min_commit_ts = ts;
                let is_primary = passed.mutation.key == self.primary;
                let named = if is_primary { self.secondaries.clone() } else { None };
                lock.secondaries = Some(named.unwrap_or_default());
            }
            changes.put_lock(&passed.key, &lock);
        }
    }
}

impl Command for Prewrite {
    type Answer = Prewritten;

    fn keys(&self) -> Vec<Bytes> {
        self.mutations.iter().map(|m| m.key.clone()).collect()
    }

    fn check_named(&self, check: &dyn Fn(&[u8]) -> TxnResult<()>) -> TxnResult<()> {
        check(&self.primary)?;
        self.secondaries.iter().flatten().try_for_each(|key| check(key))
    }

    fn needs_synced_max_ts(&self) -> bool {
        self.secondaries.is_some() || self.try_one_pc
    }

    fn begins_at(&self) -> u64 {
        self.start_ts
    }

    fn newest_ts(&self) -> u64 {
        self.start_ts.max(self.for_update_ts).max(self.min_commit_ts)
    }

    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<Prewritten>> {
        super::check_start_ts(self.start_ts)?;
        super::check_binding_ts([self.for_update_ts, self.min_commit_ts])?;
        let mut checked = Checked::default();
        let is_write = |m: &&Mutation| m.op != MutationOp::CheckNotExists;
        for m in self.mutations.iter().filter(is_write) {
            self.check(cx, m, &mut checked)?;
        }
        // What an earlier attempt has written, it has checked: keys that leave no lock may exist by now.
        if !checked.is_repeat() {
            for m in self.mutations.iter().filter(|m| !is_write(m)) {
                self.check(cx, m, &mut checked)?;
            }
        }
        if !checked.locked.is_empty() {
            return Err(TxnError::Locked(checked.locked));
        }
        let committed = checked.committed_ts;
        if committed > 0 && checked.passed.is_empty() {
            // An earlier attempt got through. Only one phase commits without its client.
            let one_pc_commit_ts = if self.try_one_pc { committed } else { 0 };
            let min_commit_ts = if self.try_one_pc { 0 } else { committed };
            return Ok(Done::answer(Prewritten { min_commit_ts, one_pc_commit_ts }));
        }
        let bytes = |m: &Mutation| 2 * (m.key.len() + 16) + m.value.len() + self.primary.len() + 80;
        let mut changes = Changes::with_capacity(self.mutations.iter().map(bytes).sum());
        let repeated = checked.ordinary_before || checked.locked_before.is_some();
        let one_pc = self.try_one_pc && !repeated && committed == 0;
        // A one-phase commit that cannot be becomes an ordinary one: clients count on that.
        let asynchronous = self.secondaries.is_some() && !self.try_one_pc && !checked.ordinary_before;
        if let (Some(before), true, true) = (checked.locked_before, asynchronous, checked.passed.is_empty()) {
            // Whoever resolves these locks reads the timestamp from them: it must be the same one.
            return Ok(Done::answer(Prewritten { min_commit_ts: before, one_pc_commit_ts: 0 }));
        }
        let chosen = if one_pc || asynchronous { self.choose(cx, &checked) } else { None };
        let Some((ts, guard)) = chosen else {
            self.two_phase(checked, None, &mut changes);
            return Ok(Done::with(changes, Prewritten::default()));
        };
        let answer = if one_pc {
            self.one_phase(cx, checked, ts, &mut changes)?;
            Prewritten { min_commit_ts: 0, one_pc_commit_ts: ts }
        } else {
            self.two_phase(checked, Some(ts), &mut changes);
            Prewritten { min_commit_ts: ts, one_pc_commit_ts: 0 }
        };
        Ok(Done { memory: Some(guard), ..Done::with(changes, answer) })
    }
}
