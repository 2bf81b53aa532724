//! A transaction's client: claims, prewrites, commits, gives up or crashes, as clients do.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvserver::txn::commands::{
    AcquirePessimisticLock, Acquired, Claim, Commit, Mutation, MutationOp, PessimisticAction,
    PessimisticRollback, Prewrite, Prewritten, Rollback, TxnHeartBeat,
};
use kvserver::txn::error::{ConflictReason, TxnError, TxnResult};

use crate::Sim;
use crate::net::{Answer, Request, Sender};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    TwoPhase,
    Async,
    OnePhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Claiming,
    Prewriting,
    Committing,
    Ended,
}

/// One transaction and what its client knows.
#[derive(Clone, Debug)]
pub struct Txn {
    pub start_ts: u64,
    pub mode: Mode,
    pub pessimistic: bool,
    pub primary: Bytes,
    /// Key, operation, value.
    pub changes: Vec<(Bytes, MutationOp, Bytes)>,
    /// For-update timestamps of claims that were acknowledged.
    pub claimed: BTreeMap<Bytes, u64>,
    pub phase: Phase,
    pub for_update_ts: u64,
    /// Prewrites that were not answered yet.
    pending: usize,
    min_commit_ts: u64,
    /// A prewrite was answered with ordinary locks.
    fell_back: bool,
    pub crashed: bool,
    /// What the client told its application.
    pub told: Option<Told>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Committed(u64),
    Aborted,
}

impl Sim {
    pub fn begin(&mut self, key_count: u64) {
        let start_ts = self.tso();
        let mut changes = Vec::new();
        for key in 0..key_count {
            if !changes.is_empty() && self.rng.chance(60) {
                continue;
            }
            let op = match self.rng.below(10) {
                0..=4 => MutationOp::Put,
                5..=6 => MutationOp::Delete,
                7..=8 => MutationOp::Lock,
                _ => MutationOp::Insert,
            };
            let len = if self.rng.chance(20) { 300 } else { 3 };
            let value = format!("{:0len$}", start_ts);
            changes.push((Bytes::from(format!("k{key}")), op, Bytes::from(value)));
        }
        let primary = changes[self.rng.below(changes.len() as u64) as usize].0.clone();
        let mode = [Mode::TwoPhase, Mode::Async, Mode::OnePhase][self.rng.below(3) as usize];
        let pessimistic = self.rng.chance(40);
        let phase = if pessimistic { Phase::Claiming } else { Phase::Prewriting };
        let txn = self.txns.len();
        self.txns.push(Txn {
            start_ts,
            mode,
            pessimistic,
            primary,
            changes,
            claimed: BTreeMap::new(),
            phase,
            for_update_ts: 0,
            pending: 0,
            min_commit_ts: 0,
            fell_back: false,
            crashed: false,
            told: None,
        });
        if pessimistic { self.claim_next(txn) } else { self.prewrite_all(txn) }
    }

    fn claim_next(&mut self, txn: usize) {
        let now = self.tso();
        let force = self.rng.chance(40);
        let t = &mut self.txns[txn];
        // The primary first: the other locks point to it.
        let next = std::iter::once(&t.primary).chain(t.changes.iter().map(|(key, ..)| key));
        let Some(key) = next.clone().find(|key| !t.claimed.contains_key(*key)).cloned() else {
            t.phase = Phase::Prewriting;
            return self.prewrite_all(txn);
        };
        let for_update_ts = now;
        t.for_update_ts = t.for_update_ts.max(for_update_ts);
        let claim = AcquirePessimisticLock {
            claims: vec![Claim { key, must_not_exist: false }],
            primary: t.primary.clone(),
            start_ts: t.start_ts,
            ttl: 1,
            for_update_ts,
            min_commit_ts: 0,
            is_first_lock: t.claimed.is_empty(),
            return_values: true,
            check_existence: false,
            lock_only_if_exists: false,
            lock_with_conflict: force,
        };
        self.send(Request::Claim(claim), Sender::Txn(txn));
    }

    fn on_claim(&mut self, txn: usize, request: AcquirePessimisticLock, answer: TxnResult<Acquired>) {
        let start_ts = self.txns[txn].start_ts;
        match answer {
            Ok(acquired) => {
                let seen = request.for_update_ts.max(acquired.keys[0].locked_with_conflict_ts);
                let t = &mut self.txns[txn];
                t.for_update_ts = t.for_update_ts.max(seen);
                t.claimed.insert(request.claims[0].key.clone(), seen);
                self.claim_next(txn);
            }
            Err(TxnError::Locked(locks)) => {
                self.help(&locks[0], start_ts);
                if self.rng.chance(50) { self.claim_next(txn) } else { self.abort(txn) }
            }
            Err(TxnError::Conflict(c)) if c.reason == ConflictReason::PessimisticRetry => {
                self.claim_next(txn)
            }
            Err(TxnError::Conflict(_)) => self.abort(txn),
            Err(error) => panic!("{error}"),
        }
    }

    fn prewrite_all(&mut self, txn: usize) {
        let chunk_count = if self.txns[txn].mode == Mode::OnePhase { 1 } else { 1 + self.rng.below(3) };
        // Sometimes the client wants its commit soon, and sometimes it lets readers push it.
        let max_commit_ts = if self.rng.chance(20) { self.now() + self.rng.below(3) } else { 0 };
        let promises = self.rng.chance(50);
        let t = &self.txns[txn];
        let mut chunks = vec![Vec::new(); chunk_count as usize];
        for (at, (key, op, value)) in t.changes.iter().enumerate() {
            let pessimistic = if t.pessimistic { PessimisticAction::Check } else { PessimisticAction::Skip };
            let (op, key, value) = (*op, key.clone(), value.clone());
            // A claim does not tell whether the key exists: an insert of a pessimistic transaction is a put here.
            let op = if t.pessimistic && op == MutationOp::Insert { MutationOp::Put } else { op };
            // A claim by force may be taken again by a copy of its request, over changes that nobody has heard of.
            let expected_for_update_ts = t.claimed.get(&key).copied();
            let mutation = Mutation { op, key, value, pessimistic, expected_for_update_ts, assertion: None };
            chunks[at % chunk_count as usize].push(mutation);
        }
        chunks.retain(|chunk| !chunk.is_empty());
        let others: Vec<Bytes> =
            t.changes.iter().map(|(key, ..)| key.clone()).filter(|key| *key != t.primary).collect();
        let for_update_ts = if t.pessimistic { t.for_update_ts } else { 0 };
        let mut letters = Vec::new();
        for mutations in chunks {
            let has_primary = mutations.iter().any(|m| m.key == t.primary);
            let named = if has_primary { others.clone() } else { Vec::new() };
            letters.push(Prewrite {
                mutations,
                primary: t.primary.clone(),
                start_ts: t.start_ts,
                ttl: 1,
                txn_size: t.changes.len() as u64,
                for_update_ts,
                min_commit_ts: if promises { t.start_ts.max(for_update_ts) + 1 } else { 0 },
                max_commit_ts,
                skip_constraint_check: false,
                secondaries: (t.mode == Mode::Async).then_some(named),
                try_one_pc: t.mode == Mode::OnePhase,
            });
        }
        self.txns[txn].pending = letters.len();
        for prewrite in letters {
            self.send(Request::Prewrite(prewrite), Sender::Txn(txn));
        }
    }

    fn on_prewrite(&mut self, txn: usize, request: Prewrite, answer: TxnResult<Prewritten>) {
        let start_ts = self.txns[txn].start_ts;
        let answer = match answer {
            Ok(answer) => answer,
            Err(TxnError::Locked(locks)) => {
                for info in &locks {
                    self.help(info, start_ts);
                }
                return match self.rng.chance(70) {
                    true => self.send(Request::Prewrite(request), Sender::Txn(txn)),
                    false => self.abort(txn),
                };
            }
            Err(_) => return self.abort(txn),
        };
        let t = &mut self.txns[txn];
        t.pending -= 1;
        if answer.one_pc_commit_ts > 0 {
            return self.committed(txn, answer.one_pc_commit_ts);
        }
        t.fell_back |= answer.min_commit_ts == 0;
        t.min_commit_ts = t.min_commit_ts.max(answer.min_commit_ts);
        if t.pending > 0 {
            return;
        }
        if t.mode == Mode::Async && !t.fell_back {
            let commit_ts = t.min_commit_ts;
            self.committed(txn, commit_ts);
            return self.commit_rest(txn, commit_ts, true);
        }
        t.phase = Phase::Committing;
        self.commit_primary(txn);
    }

    fn commit_primary(&mut self, txn: usize) {
        let commit_ts = self.tso();
        let t = &self.txns[txn];
        let commit = Commit { start_ts: t.start_ts, commit_ts, keys: vec![t.primary.clone()] };
        self.send(Request::Commit(commit), Sender::Txn(txn));
    }

    fn on_commit(&mut self, txn: usize, request: Commit, answer: TxnResult<u64>) {
        match answer {
            Ok(_) => {
                self.committed(txn, request.commit_ts);
                self.commit_rest(txn, request.commit_ts, false);
            }
            Err(TxnError::CommitTsExpired { .. }) => self.commit_primary(txn),
            Err(TxnError::LockNotFound { .. }) => self.abort(txn),
            Err(error) => panic!("{error}"),
        }
    }

    fn commit_rest(&mut self, txn: usize, commit_ts: u64, with_primary: bool) {
        let t = &self.txns[txn];
        let keys: Vec<Bytes> = t.changes.iter().map(|(key, ..)| key.clone()).collect();
        let (start_ts, primary) = (t.start_ts, t.primary.clone());
        for key in keys.into_iter().filter(|key| with_primary || *key != primary) {
            let commit = Commit { start_ts, commit_ts, keys: vec![key] };
            self.send(Request::Commit(commit), Sender::Nobody);
        }
    }

    fn committed(&mut self, txn: usize, commit_ts: u64) {
        let t = &mut self.txns[txn];
        t.phase = Phase::Ended;
        t.told = Some(Told::Committed(commit_ts));
    }

    pub fn abort(&mut self, txn: usize) {
        let t = &mut self.txns[txn];
        let claiming = t.phase == Phase::Claiming;
        t.phase = Phase::Ended;
        t.told = Some(Told::Aborted);
        let (start_ts, for_update_ts) = (t.start_ts, t.for_update_ts);
        let keys: Vec<Bytes> = t.changes.iter().map(|(key, ..)| key.clone()).collect();
        for key in keys {
            let keys = vec![key];
            self.send(
                match claiming {
                    true => Request::Unclaim(PessimisticRollback { start_ts, for_update_ts, keys }),
                    false => Request::Rollback(Rollback { start_ts, keys }),
                },
                Sender::Nobody,
            );
        }
    }

    pub fn beat(&mut self, txn: usize) {
        let min_commit_ts = if self.rng.chance(30) { self.now() } else { 0 };
        let t = &self.txns[txn];
        let (primary, start_ts) = (t.primary.clone(), t.start_ts);
        let beat = TxnHeartBeat { primary, start_ts, advise_ttl: 5, min_commit_ts };
        self.send(Request::Beat(beat), Sender::Nobody);
    }

    pub fn txn_hears(&mut self, txn: usize, request: Request, answer: Answer) {
        let t = &self.txns[txn];
        if t.crashed || t.phase == Phase::Ended {
            return;
        }
        match (request, answer) {
            (Request::Claim(request), Answer::Claim(answer)) => self.on_claim(txn, request, answer),
            (Request::Prewrite(request), Answer::Prewrite(answer)) => self.on_prewrite(txn, request, answer),
            (Request::Commit(request), Answer::Commit(answer)) => self.on_commit(txn, request, answer),
            (request, answer) => panic!("{request:?} was answered with {answer:?}"),
        }
    }
}
