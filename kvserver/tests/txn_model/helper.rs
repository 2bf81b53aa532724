//! Whoever meets a lock: asks its primary key what became of the transaction, finishes it if nobody else does, and
//! resolves its locks.

use bytes::Bytes;
use kvserver::txn::commands::{
    CheckSecondaryLocks, CheckTxnStatus, CheckedTxn, PessimisticRollback, SecondaryLocks, StatusAction,
    TxnStatus,
};
use kvserver::txn::error::{LockInfo, TxnError, TxnResult};
use kvserver::txn::mvcc::ReadRules;

use crate::Sim;
use crate::net::{Answer, Request, Sender};

/// One errand.
#[derive(Clone, Debug)]
pub struct Helper {
    met: LockInfo,
    /// The reader or transaction that was stopped.
    caller: u64,
    /// The lock counts as expired.
    expired: bool,
    /// Secondary keys that have not answered yet.
    pending: usize,
    commit_ts: u64,
    missing: bool,
    /// A secondary lock is an ordinary one: then all are, and the client commits.
    ordinary: bool,
    pub done: bool,
}

impl Sim {
    /// Sends a helper to a lock.
    pub fn help(&mut self, met: &LockInfo, caller: u64) {
        let expired = self.settling || self.rng.chance(50);
        let helper = self.helpers.len();
        self.helpers.push(Helper {
            met: met.clone(),
            caller,
            expired,
            pending: 0,
            commit_ts: 0,
            missing: false,
            ordinary: false,
            done: false,
        });
        self.check(helper, false);
    }

    fn check(&mut self, helper: usize, force_sync_commit: bool) {
        let now = self.now();
        let h = &self.helpers[helper];
        let check = CheckTxnStatus {
            primary: h.met.lock.primary.clone(),
            start_ts: h.met.lock.start_ts,
            caller_start_ts: h.caller,
            current_ts: if h.expired { u64::MAX } else { now },
            rollback_if_not_exist: h.expired,
            force_sync_commit,
            resolving_pessimistic_lock: h.met.lock.is_pessimistic(),
            verify_is_primary: true,
        };
        self.send(Request::Check(check), Sender::Helper(helper));
    }

    fn on_check(&mut self, helper: usize, request: CheckTxnStatus, answer: TxnResult<CheckedTxn>) {
        let checked = match answer {
            Ok(checked) => checked,
            Err(TxnError::TxnNotFound { .. }) => {
                self.helpers[helper].done = true;
                return;
            }
            Err(error) => panic!("{error}"),
        };
        // Without a record a claim that went, or was never there, may come back.
        let lasts = !matches!(checked.action, StatusAction::LeftMissing | StatusAction::RemovedExpiredClaim);
        match checked.status {
            TxnStatus::Committed { commit_ts } => {
                self.decide(request.start_ts, commit_ts);
                self.resolve(helper, commit_ts)
            }
            TxnStatus::RolledBack => {
                if lasts {
                    self.decide(request.start_ts, 0);
                }
                self.resolve(helper, 0)
            }
            TxnStatus::Locked(lock) => {
                let h = &self.helpers[helper];
                let (caller, key, start_ts) = (h.caller, h.met.key.clone(), lock.start_ts);
                if checked.action == StatusAction::PushedMinCommitTs && caller != u64::MAX {
                    // It commits after the caller: a read may pass all its locks.
                    let rules = ReadRules::at(caller).knowing(vec![start_ts], vec![]);
                    self.read_with(key, &rules);
                }
                if !lock.is_async_commit() || !self.helpers[helper].expired || request.force_sync_commit {
                    self.helpers[helper].done = true;
                    return;
                }
                let secondaries = lock.secondaries.unwrap_or_default();
                let h = &mut self.helpers[helper];
                (h.commit_ts, h.pending) = (lock.min_commit_ts, secondaries.len());
                self.ask_secondaries(helper, start_ts, secondaries);
            }
        }
    }

    /// Notes an answer that must never change.
    pub fn decide(&mut self, start_ts: u64, commit_ts: u64) {
        let before = self.decided.insert(start_ts, commit_ts);
        assert!(before.is_none_or(|before| before == commit_ts), "{start_ts}: {before:?}, then {commit_ts}");
    }

    fn ask_secondaries(&mut self, helper: usize, start_ts: u64, secondaries: Vec<Bytes>) {
        if secondaries.is_empty() {
            let commit_ts = self.helpers[helper].commit_ts;
            return self.resolve(helper, commit_ts);
        }
        for key in secondaries {
            let check = CheckSecondaryLocks { start_ts, keys: vec![key] };
            self.send(Request::Secondaries(check), Sender::Helper(helper));
        }
    }

    fn on_secondaries(&mut self, helper: usize, answer: SecondaryLocks) {
        let h = &mut self.helpers[helper];
        h.pending = h.pending.saturating_sub(1);
        if answer.commit_ts > 0 {
            let (commit_ts, start_ts) = (answer.commit_ts, h.met.lock.start_ts);
            self.decide(start_ts, commit_ts);
            return self.resolve(helper, commit_ts);
        }
        match answer.locks.first() {
            _ if h.ordinary => return,
            None => {
                h.missing = true;
                let start_ts = h.met.lock.start_ts;
                self.decide(start_ts, 0);
            }
            Some(info) if !info.lock.is_async_commit() => {
                h.ordinary = true;
                return self.check(helper, true);
            }
            Some(info) => h.commit_ts = h.commit_ts.max(info.lock.min_commit_ts),
        }
        let h = &self.helpers[helper];
        if h.pending == 0 {
            let commit_ts = if h.missing { 0 } else { h.commit_ts };
            self.resolve(helper, commit_ts);
        }
    }

    /// The fate is known.
    fn resolve(&mut self, helper: usize, commit_ts: u64) {
        let h = &mut self.helpers[helper];
        h.done = true;
        let (met, caller) = (h.met.clone(), h.caller);
        let start_ts = met.lock.start_ts;
        if met.lock.is_pessimistic() {
            let for_update_ts = met.lock.for_update_ts;
            let keys = vec![met.key.clone()];
            let unclaim = PessimisticRollback { start_ts, for_update_ts, keys };
            return self.send(Request::Unclaim(unclaim), Sender::Nobody);
        }
        if commit_ts > 0 && commit_ts <= caller {
            // The lock's change is what the caller sees.
            let rules = ReadRules::at(caller).knowing(vec![], vec![start_ts]);
            self.read_with(met.key, &rules);
        }
        self.send(Request::Resolve { start_ts, commit_ts }, Sender::Nobody);
    }

    pub fn helper_hears(&mut self, helper: usize, request: Request, answer: Answer) {
        if self.helpers[helper].done {
            return;
        }
        match (request, answer) {
            (Request::Check(request), Answer::Check(answer)) => self.on_check(helper, request, answer),
            (_, Answer::Secondaries(Ok(answer))) => self.on_secondaries(helper, answer),
            (request, answer) => panic!("{request:?} was answered with {answer:?}"),
        }
    }
}
