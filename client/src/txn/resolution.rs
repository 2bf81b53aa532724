//! What becomes of a transaction whose locks are in somebody's way, as a state machine: ask its primary key, ask the
//! other keys when it committed asynchronously, then finish the locks. Pure: requests go out as [`Step`]s, replies
//! come back through the `on_…` methods.
//!
//! Owns what is known about one transaction. Invariants:
//! - a transaction whose locks have not expired is never rolled back, unless the caller forces it;
//! - an asynchronous commit is finished as its keys say: committed when all are locked, rolled back once one can
//!   never be locked any more;
//! - locks are committed or removed only after the verdict is final for everyone.

use std::collections::VecDeque;

use bytes::Bytes;
use kvproto::kvrpcpb::*;
use kvproto::ts::Timestamp;

use super::key_error::Refusal;
use crate::error::{Error, Result};

/// Locks of larger transactions are resolved by region, not by key.
const LITE_KEYS_MAX: u64 = 16;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A read at this timestamp. It may go on beside a lock that will be committed later than that.
    Read(Timestamp),
    /// A write, or a cleaner: waits for locks that live.
    Wait,
    /// Ends transactions however alive they are: what reads their locks is about to go.
    Force,
}

/// What is known about a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was committed at this timestamp.
    Committed(Timestamp),
    /// It was rolled back; or its pessimistic locks are worth nothing.
    RolledBack,
    /// It will not be committed at or below the caller's timestamp.
    Pushed,
    /// It may still be committed. Its locks live for so many ms.
    Alive(u64),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Send this to the region of its primary key: [`Resolution::on_status`].
    Status(Box<CheckTxnStatusRequest>),
    /// Cut these keys by region and send [`Resolution::check_secondaries`] of each piece. Every reply goes to
    /// [`on_secondaries`](Resolution::on_secondaries), then the end to
    /// [`on_secondaries_checked`](Resolution::on_secondaries_checked).
    Secondaries(Vec<Bytes>),
    /// Tell the caller, who need not wait for what follows unless it needs the locks gone. What follows needs no
    /// `on_…`.
    Decided(Verdict),
    /// Cut these keys by region and send [`Resolution::resolve`] of each piece.
    Resolve(Vec<Bytes>),
    /// Cut these keys by region and send [`Resolution::unlock`] of each piece.
    Unlock(Vec<Bytes>),
    /// Nothing is left to do.
    Finished,
}

/// The resolution of one transaction's locks.
#[derive(Debug)]
pub struct Resolution {
    start_ts: Timestamp,
    primary: Bytes,
    caller: Caller,
    now: Timestamp,
    /// Keys of the locks that were met.
    keys: Vec<Bytes>,
    pessimistic_keys: Vec<Bytes>,
    /// When its pessimistic locks were taken.
    for_update_ts: u64,
    lite: bool,
    rollback_if_not_exist: bool,
    force_sync_commit: bool,
    /// How long the locks that were met live, in ms since `start_ts`.
    ttl_ms: u64,
    /// The asynchronous commit that is being finished: its lock at the primary.
    recovery: Option<Recovery>,
    commit_ts: Timestamp,
    /// The verdict holds for good, not just for the locks that were met.
    last_word: Option<Verdict>,
    steps: VecDeque<Step>,
}

/// What the keys of an asynchronous commit have told so far.
#[derive(Debug)]
struct Recovery {
    secondaries: Vec<Bytes>,
    /// The largest that a lock promises.
    min_commit_ts: u64,
    committed_at: Option<u64>,
    /// A key is not locked and never will be.
    missing: bool,
    /// A key is locked as for two phases.
    plain: bool,
}

impl Resolution {
    /// Resolves `locks`, at least one and all of one transaction. `now` is a fresh timestamp. `known` is what an
    /// earlier resolution said in [`last_word`](Self::last_word).
    pub fn new(locks: &[LockInfo], caller: Caller, now: Timestamp, known: Option<Verdict>) -> Resolution {
        let first = locks.first().cloned().unwrap_or_default();
        let is_pessimistic = |lock: &&LockInfo| lock.lock_type() == Op::PessimisticLock;
        let (pessimistic, prewritten): (Vec<_>, Vec<_>) = locks.iter().partition(is_pessimistic);
        let keys_of = |locks: &[&LockInfo]| locks.iter().map(|lock| lock.key.clone()).collect::<Vec<_>>();
        let ttl_ms = locks.iter().map(|lock| lock.lock_ttl).max().unwrap_or(0);
        let start_ts = Timestamp::new(first.lock_version);
        let mut resolution = Resolution {
            start_ts,
            primary: first.primary_lock,
            caller,
            now,
            keys: keys_of(&prewritten),
            pessimistic_keys: keys_of(&pessimistic),
            for_update_ts: pessimistic.iter().map(|lock| lock.lock_for_update_ts).max().unwrap_or(0),
            lite: locks.iter().all(|lock| lock.txn_size <= LITE_KEYS_MAX),
            rollback_if_not_exist: caller == Caller::Force || is_expired(start_ts, ttl_ms, now),
            force_sync_commit: false,
            ttl_ms,
            recovery: None,
            commit_ts: Timestamp::ZERO,
            last_word: None,
            steps: VecDeque::new(),
        };
        match known {
            Some(verdict) => resolution.decided_before(verdict),
            None => resolution.ask_primary(),
        }
        resolution
    }

    /// What to do now.
    pub fn next_step(&mut self) -> Step {
        self.steps.pop_front().unwrap_or(Step::Finished)
    }

    /// The transaction.
    pub fn start_ts(&self) -> Timestamp {
        self.start_ts
    }

    /// Whether its locks are finished one by one, rather than region by region.
    pub fn is_lite(&self) -> bool {
        self.lite
    }

    /// The verdict, when it will be the same for everyone who ever asks.
    pub fn last_word(&self) -> Option<Verdict> {
        self.last_word
    }

    /// The reply to [`Step::Status`].
    pub fn on_status(&mut self, reply: CheckTxnStatusResponse) -> Result<()> {
        if let Some(error) = reply.error {
            return self.on_refused(error);
        }
        let action = reply.action();
        match (reply.commit_version, reply.lock_ttl) {
            (0, 0) => {
                // Without a record the transaction may still prewrite, only not under these pessimistic locks.
                let for_good =
                    !matches!(action, Action::TtlExpirePessimisticRollback | Action::LockNotExistDoNothing);
                self.finish(Verdict::RolledBack, for_good);
            }
            (0, ttl_ms) => self.on_locked(reply.lock_info.unwrap_or_default(), ttl_ms, action),
            (commit_ts, _) => self.finish(Verdict::Committed(Timestamp::new(commit_ts)), true),
        }
        Ok(())
    }

    /// The primary key is still locked.
    fn on_locked(&mut self, lock: LockInfo, ttl_ms: u64, action: Action) {
        let over = self.caller == Caller::Force || is_expired(self.start_ts, ttl_ms, self.now);
        let pushed = match self.caller {
            Caller::Read(ts) if ts != Timestamp::MAX && lock.lock_type() != Op::PessimisticLock => {
                action == Action::MinCommitTsPushed || lock.min_commit_ts > ts.get()
            }
            _ => false,
        };
        if over && lock.use_async_commit && !self.force_sync_commit {
            let recovery = Recovery {
                secondaries: lock.secondaries,
                min_commit_ts: lock.min_commit_ts,
                committed_at: None,
                missing: false,
                plain: false,
            };
            let secondaries = recovery.secondaries.clone();
            self.recovery = Some(recovery);
            match secondaries.is_empty() {
                true => self.on_secondaries_checked(),
                false => self.steps.push_back(Step::Secondaries(secondaries)),
            }
        } else if pushed {
            self.steps.push_back(Step::Decided(Verdict::Pushed));
        } else {
            self.stays_alive(ttl_ms);
        }
    }

    fn on_refused(&mut self, error: KeyError) -> Result<()> {
        if error.txn_not_found.is_some() && !self.rollback_if_not_exist {
            // Its primary may be locked any moment now.
            self.stays_alive(self.ttl_ms);
            return Ok(());
        }
        if error.primary_mismatch.is_some() && self.keys.is_empty() {
            // The transaction has chosen another primary since: these pessimistic locks are left over.
            self.finish(Verdict::RolledBack, false);
            return Ok(());
        }
        Err(match error.primary_mismatch {
            Some(_) => Error::Protocol(format!("transaction {} has two primary keys", self.start_ts)),
            None => Refusal::new(error, self.start_ts).into_error(self.start_ts),
        })
    }

    /// The request about `keys`, which lie in one region.
    pub fn check_secondaries(&self, keys: &[Bytes]) -> CheckSecondaryLocksRequest {
        CheckSecondaryLocksRequest {
            keys: keys.to_vec(),
            start_version: self.start_ts.get(),
            ..CheckSecondaryLocksRequest::default()
        }
    }

    /// The reply to [`check_secondaries`](Self::check_secondaries) of `keys`.
    pub fn on_secondaries(&mut self, keys: &[Bytes], reply: CheckSecondaryLocksResponse) -> Result<()> {
        if let Some(error) = reply.error {
            return Err(Refusal::new(error, self.start_ts).into_error(self.start_ts));
        }
        let Some(recovery) = &mut self.recovery else { return Ok(()) };
        if reply.commit_ts != 0 {
            recovery.committed_at = Some(reply.commit_ts);
        } else if reply.locks.len() < keys.len() {
            recovery.missing = true;
        }
        for lock in reply.locks {
            recovery.plain |= !lock.use_async_commit;
            recovery.min_commit_ts = recovery.min_commit_ts.max(lock.min_commit_ts);
        }
        Ok(())
    }

    /// All pieces of [`Step::Secondaries`] are answered.
    pub fn on_secondaries_checked(&mut self) {
        let Some(recovery) = &self.recovery else { return };
        let verdict = match (recovery.committed_at, recovery.missing, recovery.plain) {
            (Some(ts), ..) => Verdict::Committed(Timestamp::new(ts)),
            (None, true, _) => Verdict::RolledBack,
            (None, false, true) => {
                // It fell back to two phases, so the primary alone decides.
                self.force_sync_commit = true;
                self.recovery = None;
                return self.ask_primary();
            }
            (None, false, false) => Verdict::Committed(Timestamp::new(recovery.min_commit_ts)),
        };
        self.finish(verdict, true);
    }

    /// The request that finishes the locks on `keys`, which lie in one region.
    pub fn resolve(&self, keys: &[Bytes]) -> ResolveLockRequest {
        ResolveLockRequest {
            start_version: self.start_ts.get(),
            commit_version: self.commit_ts.get(),
            keys: if self.lite { keys.to_vec() } else { Vec::new() },
            ..ResolveLockRequest::default()
        }
    }

    /// The request that removes the pessimistic locks on `keys`, which lie in one region.
    pub fn unlock(&self, keys: &[Bytes]) -> PessimisticRollbackRequest {
        PessimisticRollbackRequest {
            start_version: self.start_ts.get(),
            for_update_ts: if self.for_update_ts == 0 { u64::MAX } else { self.for_update_ts },
            keys: keys.to_vec(),
            ..PessimisticRollbackRequest::default()
        }
    }

    fn ask_primary(&mut self) {
        // A lock without a life time is a left-over.
        let at_once = self.caller == Caller::Force || self.ttl_ms == 0;
        let caller_start_ts = match self.caller {
            Caller::Read(ts) => ts.get(),
            Caller::Wait | Caller::Force => 0,
        };
        self.steps.push_back(Step::Status(Box::new(CheckTxnStatusRequest {
            primary_key: self.primary.clone(),
            lock_ts: self.start_ts.get(),
            caller_start_ts,
            current_ts: if at_once { u64::MAX } else { self.now.get() },
            rollback_if_not_exist: self.rollback_if_not_exist,
            force_sync_commit: self.force_sync_commit,
            resolving_pessimistic_lock: self.keys.is_empty(),
            verify_is_primary: true,
            ..CheckTxnStatusRequest::default()
        })));
    }

    fn stays_alive(&mut self, ttl_ms: u64) {
        let end_ms = self.start_ts.physical_ms().saturating_add(ttl_ms);
        let left_ms = end_ms.saturating_sub(self.now.physical_ms()) + 1;
        self.steps.push_back(Step::Decided(Verdict::Alive(left_ms)));
    }

    /// An earlier resolution knows the verdict; its requests may not have reached these locks.
    fn decided_before(&mut self, verdict: Verdict) {
        let keys = std::mem::take(&mut self.keys);
        self.conclude(verdict, true, keys);
    }

    /// The transaction is over: finishes its locks.
    fn finish(&mut self, verdict: Verdict, for_good: bool) {
        let mut keys = std::mem::take(&mut self.keys);
        match self.recovery.take() {
            // The rest of the transaction waits for somebody, too.
            Some(recovery) => {
                self.lite = true;
                keys.extend(recovery.secondaries);
                keys.push(self.primary.clone());
            }
            // Asking the primary has finished its lock.
            None => keys.retain(|key| *key != self.primary),
        }
        self.conclude(verdict, for_good, keys);
    }

    fn conclude(&mut self, verdict: Verdict, for_good: bool, mut keys: Vec<Bytes>) {
        if for_good {
            self.last_word = Some(verdict);
        }
        if let Verdict::Committed(ts) = verdict {
            self.commit_ts = ts;
        }
        self.steps.push_back(Step::Decided(verdict));
        keys.sort_unstable();
        keys.dedup();
        if !keys.is_empty() {
            self.steps.push_back(Step::Resolve(keys));
        }
        if !self.pessimistic_keys.is_empty() {
            self.steps.push_back(Step::Unlock(std::mem::take(&mut self.pessimistic_keys)));
        }
    }
}

/// Whether locks of `start_ts` that live for `ttl_ms` have expired at `now`.
fn is_expired(start_ts: Timestamp, ttl_ms: u64, now: Timestamp) -> bool {
    start_ts.physical_ms().saturating_add(ttl_ms) < now.physical_ms()
}
