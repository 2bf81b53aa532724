//! How a transaction commits, as a state machine: two-phase, asynchronous or one-phase, with the ways back from the
//! faster to the slower. Pure: requests and timestamps go out as [`Action`]s, replies come back through the `on_…`
//! methods; who drives it cuts keys by region, sends, and tries again.
//!
//! Owns what the replies of one transaction's prewrites and commit add up to. Invariants:
//! - the user is answered ([`Action::Decided`]) once, and only when no later event can change the outcome;
//! - a prewrite that may be committed by others (asynchronous, one-phase) and whose fate is unknown is never rolled
//!   back: the answer is [`Error::Undetermined`];
//! - before such a transaction is called failed, something permanent stands in the way of late copies of its
//!   requests, if there may be any: a conflicting commit, or a rollback record ([`Action::Seal`]);
//! - a one-phase request carries every write of the transaction, or is not one.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use kvproto::kvrpcpb::prewrite_request::PessimisticAction;
use kvproto::kvrpcpb::*;
use kvproto::redact;
use kvproto::ts::{LOGICAL_BITS, Timestamp};

use super::key_error::{Refusal, key_locked};
use crate::error::{Error, Result};
use crate::request::shard::{Keyed, PIECE_ITEMS};

/// An asynchronous commit names all its keys in its primary lock, so they are few.
const ASYNC_KEYS_MAX: usize = 256;
/// And short: bytes of all keys.
const ASYNC_KEY_BYTES_MAX: usize = 4 << 10;
/// How far after now a commit timestamp that stores choose may lie, in ms.
const COMMIT_TS_WINDOW_MS: u64 = 2000;
/// Bounds of the life of a lock, in ms.
const LOCK_TTL_MS: (u64, u64) = (3000, 20_000);

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// What to do with which wire key.
    pub mutation: Mutation,
    /// The transaction holds a pessimistic lock on the key.
    pub locked: bool,
}

impl Keyed for Write {
    fn key(&self) -> &Bytes {
        &self.mutation.key
    }

    fn size(&self) -> usize {
        self.mutation.key.len() + self.mutation.value.len()
    }
}

/// How a transaction wants to be committed.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The transaction.
    pub start_ts: Timestamp,
    /// When its pessimistic locks were taken last; zero for an optimistic transaction.
    pub for_update_ts: Timestamp,
    /// The key that was locked first; needed exactly when the transaction holds pessimistic locks.
    pub primary: Option<Bytes>,
    /// Answer after the prewrite, when it is small enough.
    pub async_commit: bool,
    /// Prewrite and commit in one request, when one takes it all.
    pub one_phase: bool,
}

/// What to do next. Each is answered by the methods it names before [`Committer::next_action`] is called again.
#[derive(Debug, Clone)]
pub enum Action {
    /// Cut these writes by region and send [`Committer::prewrite`] of each piece. Every reply goes to
    /// [`on_prewrite`](Committer::on_prewrite), then the end to [`on_prewritten`](Committer::on_prewritten).
    Prewrite(Vec<Write>),
    /// Resolve these locks of other transactions or wait for them, then [`on_resolved`](Committer::on_resolved), or
    /// [`on_stuck`](Committer::on_stuck) when time is up.
    Resolve(Vec<LockInfo>),
    /// Fetch a timestamp: [`on_timestamp`](Committer::on_timestamp).
    Timestamp,
    /// Send [`Committer::commit_primary`] to the primary's region:
    /// [`on_primary_committed`](Committer::on_primary_committed).
    CommitPrimary,
    /// Cut these keys by region, send [`Committer::rollback`] of each piece, and tell
    /// [`on_sealed`](Committer::on_sealed) whether all succeeded, or [`on_found_committed`](Committer::on_found_committed)
    /// when it turns out to be too late.
    Seal(Vec<Bytes>),
    /// Answer the user. What follows goes on in the background and needs no `on_…`. `None` when the transaction wrote
    /// nothing.
    Decided(Result<Option<Timestamp>>),
    /// Cut these keys by region and send [`Committer::commit`] of each piece.
    Commit(Vec<Bytes>),
    /// Cut these keys by region and send [`Committer::rollback`] of each piece.
    Rollback(Vec<Bytes>),
    /// Nothing is left to do.
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Async,
    TwoPhase,
}

/// The commit of one transaction.
#[derive(Debug)]
pub struct Committer {
    plan: Plan,
    primary: Bytes,
    /// The keys that get a lock, in order.
    keys: Vec<Bytes>,
    /// Number of writes, those that only check included.
    total: usize,
    ttl_ms: u64,
    protocol: Protocol,
    one_phase: bool,
    /// The largest that a store has told.
    min_commit_ts: Timestamp,
    commit_ts: Timestamp,
    /// A store has committed everything.
    done_at: Option<Timestamp>,
    failure: Option<Error>,
    /// Keys that were refused, or not reached: nothing but a late copy of a request can lock them.
    refused: Vec<Bytes>,
    /// One request carried everything and was refused: nothing was written.
    untouched: bool,
    /// Copies of prewrites may still be executed: they were sent, not answered, and sent again.
    has_late_copies: bool,
    locks: Vec<LockInfo>,
    again: Vec<Write>,
    /// Some keys are prewritten.
    holds: bool,
    actions: VecDeque<Action>,
}

impl Committer {
    /// Commits `writes`, which are in key order, no key twice.
    pub fn new(plan: Plan, writes: Vec<Write>) -> Committer {
        let takes_lock = |write: &&Write| write.mutation.op() != Op::CheckNotExists;
        let keys: Vec<Bytes> = writes.iter().filter(takes_lock).map(|write| write.key().clone()).collect();
        let first = keys.first().or_else(|| writes.first().map(Keyed::key)).cloned();
        let primary = plan.primary.clone().or(first).unwrap_or_default();
        let key_bytes: usize = keys.iter().map(Bytes::len).sum();
        // Who finishes an asynchronous commit does not know of keys that were only checked.
        let all_lock = keys.len() == writes.len() && !keys.is_empty();
        let small = keys.len() <= ASYNC_KEYS_MAX && key_bytes <= ASYNC_KEY_BYTES_MAX;
        let is_async = plan.async_commit && all_lock && small;
        let bytes: usize = writes.iter().map(Keyed::size).sum();
        Committer {
            ttl_ms: lock_ttl_ms(bytes),
            primary,
            protocol: if is_async { Protocol::Async } else { Protocol::TwoPhase },
            one_phase: plan.one_phase && !keys.is_empty(),
            keys,
            total: writes.len(),
            min_commit_ts: Timestamp::ZERO,
            commit_ts: Timestamp::ZERO,
            done_at: None,
            failure: None,
            refused: Vec::new(),
            untouched: false,
            has_late_copies: false,
            locks: Vec::new(),
            again: Vec::new(),
            holds: false,
            actions: VecDeque::from([match writes.is_empty() {
                true => Action::Decided(Ok(None)),
                false => Action::Prewrite(writes),
            }]),
            plan,
        }
    }

    /// What to do now.
    pub fn next_action(&mut self) -> Action {
        self.actions.pop_front().unwrap_or(Action::Finished)
    }

    /// The key whose fate is the transaction's fate.
    pub fn primary(&self) -> &Bytes {
        &self.primary
    }

    /// How long its locks live after the prewrite or a heart beat, in ms.
    pub fn lock_ttl_ms(&self) -> u64 {
        self.ttl_ms
    }

    /// The request that prewrites `piece`, which lies in one region, `elapsed_ms` after the start timestamp was handed
    /// out: stores count the life of locks from then on, and copies and repetitions are made later.
    pub fn prewrite(&self, piece: &[Write], elapsed_ms: u64) -> PrewriteRequest {
        let pessimistic = self.plan.primary.is_some();
        let action = |write: &Write| match write.locked {
            true => PessimisticAction::DoPessimisticCheck.into(),
            false => PessimisticAction::DoConstraintCheck.into(),
        };
        let is_async = self.protocol == Protocol::Async;
        let has_primary = || piece.iter().any(|write| write.key() == &self.primary);
        let secondaries = match is_async && has_primary() {
            true => self.keys.iter().filter(|key| **key != self.primary).cloned().collect(),
            false => Vec::new(),
        };
        let start_ts = self.plan.start_ts;
        let now_ms = start_ts.physical_ms() + elapsed_ms;
        let after = start_ts.max(self.plan.for_update_ts);
        let asserts = piece.iter().any(|write| write.mutation.assertion() != Assertion::None);
        PrewriteRequest {
            mutations: piece.iter().map(|write| write.mutation.clone()).collect(),
            primary_lock: self.primary.clone(),
            start_version: start_ts.get(),
            lock_ttl: self.ttl_ms + elapsed_ms,
            pessimistic_actions: if pessimistic { piece.iter().map(action).collect() } else { Vec::new() },
            txn_size: piece.len() as u64,
            for_update_ts: self.plan.for_update_ts.get(),
            min_commit_ts: after.get().saturating_add(1),
            use_async_commit: is_async,
            secondaries,
            try_one_pc: self.is_one_phase(piece),
            assertion_level: if asserts { AssertionLevel::Strict } else { AssertionLevel::Off }.into(),
            max_commit_ts: (now_ms + COMMIT_TS_WINDOW_MS) << LOGICAL_BITS,
            ..PrewriteRequest::default()
        }
    }

    fn is_one_phase(&self, piece: &[Write]) -> bool {
        self.one_phase && piece.len() == self.total
    }

    /// The reply to [`prewrite`](Self::prewrite) of `piece`.
    pub fn on_prewrite(&mut self, piece: &[Write], reply: PrewriteResponse) {
        let mut locks = Vec::new();
        let mut failure = None;
        for error in reply.errors {
            match Refusal::new(error, self.plan.start_ts) {
                Refusal::Locked(found) => locks.extend(found),
                other => drop(failure.get_or_insert(other.into_error(self.plan.start_ts))),
            }
        }
        if let Some(failure) = failure {
            self.untouched |= piece.len() == self.total;
            self.refused.extend(piece.iter().map(|write| write.key().clone()));
            self.failure.get_or_insert(failure);
        } else if !locks.is_empty() {
            self.locks.extend(locks);
            self.again.extend_from_slice(piece);
        } else if self.is_one_phase(piece) && reply.one_pc_commit_ts != 0 {
            self.done_at = Some(Timestamp::new(reply.one_pc_commit_ts));
        } else {
            self.holds = true;
            if reply.min_commit_ts == 0 {
                // The store could not promise a timestamp in time and wrote plain locks.
                self.protocol = Protocol::TwoPhase;
                self.one_phase = false;
            }
            self.min_commit_ts = self.min_commit_ts.max(Timestamp::new(reply.min_commit_ts));
        }
    }

    /// A prewrite was sent more than once, and a copy without an answer may still be executed: now or much later,
    /// whatever the answer to the last copy says.
    pub fn on_late_copy(&mut self) {
        self.has_late_copies = true;
    }

    /// All pieces of [`Action::Prewrite`] are answered, or `result` is why one of them is not: anything but
    /// [`Error::Undetermined`] says that this one was certainly not executed in this round.
    pub fn on_prewritten(&mut self, result: Result<()>) {
        match result {
            // A refusal says more: whatever became of the others, this piece is not locked.
            _ if self.failure.is_some() => self.fail_refused(),
            Ok(()) if !self.locks.is_empty() => {
                self.actions.push_back(Action::Resolve(std::mem::take(&mut self.locks)));
            }
            Ok(()) => self.prewritten(),
            Err(error @ Error::Undetermined { .. }) if self.others_may_commit() => self.decide(Err(error)),
            Err(error) if self.needs_seal() => {
                // A rollback record at any one key is enough.
                self.refused = vec![self.primary.clone()];
                self.failure = Some(error);
                self.fail_refused();
            }
            Err(error) => self.fail(error),
        }
    }

    /// The locks of [`Action::Resolve`] are gone, or may be.
    pub fn on_resolved(&mut self) {
        self.actions.push_back(Action::Prewrite(std::mem::take(&mut self.again)));
    }

    /// Whether the transaction holds locks while it waits for those of [`Action::Resolve`]. Others may wait for it in
    /// turn, and nobody looks for a circle: it should not wait for long.
    pub fn holds_locks(&self) -> bool {
        self.holds
    }

    /// The locks of [`Action::Resolve`] stay: gives up because of `lock`.
    pub fn on_stuck(&mut self, lock: Option<&LockInfo>) {
        self.untouched = self.again.len() == self.total;
        self.refused = self.again.drain(..).map(|write| write.mutation.key).collect();
        self.failure = Some(match (key_locked(lock), self.holds) {
            (Error::KeyLocked { key, holder }, true) => {
                let cause =
                    format!("gave way to transaction {holder}, which holds key {}", redact::Key(&key));
                Error::TxnAborted { start_ts: self.plan.start_ts, cause }
            }
            (error, _) => error,
        });
        self.fail_refused();
    }

    /// The timestamp of [`Action::Timestamp`].
    pub fn on_timestamp(&mut self, ts: Result<Timestamp>) {
        match ts {
            Ok(ts) if ts < self.min_commit_ts => self.actions.push_back(Action::Timestamp),
            Ok(ts) => {
                self.commit_ts = ts;
                self.actions.push_back(Action::CommitPrimary);
            }
            Err(error) => self.fail(error),
        }
    }

    /// The request that decides the transaction; it takes along keys that `is_near`, in the primary's region.
    pub fn commit_primary(&self, is_near: impl Fn(&[u8]) -> bool) -> CommitRequest {
        let others = self.keys.iter().filter(|key| **key != self.primary && is_near(key));
        let keys: Vec<Bytes> =
            std::iter::once(&self.primary).chain(others).take(PIECE_ITEMS).cloned().collect();
        let mut request = self.commit(&keys);
        request.set_commit_role(CommitRole::Primary);
        request
    }

    /// The reply to [`commit_primary`](Self::commit_primary), which carried `keys`. Errors as in
    /// [`on_prewritten`](Self::on_prewritten).
    pub fn on_primary_committed(&mut self, keys: &[Bytes], reply: Result<CommitResponse>) {
        let mut reply = match reply {
            Ok(reply) => reply,
            Err(error @ Error::Undetermined { .. }) => return self.decide(Err(error)),
            Err(error) => return self.fail(error),
        };
        let start_ts = self.plan.start_ts;
        match reply.error.take().map(|error| Refusal::new(error, start_ts)) {
            None => {
                // A repeated request learns what the first one did.
                let at = if reply.commit_version == 0 { self.commit_ts.get() } else { reply.commit_version };
                let done: BTreeSet<&Bytes> = keys.iter().collect();
                let rest = self.keys.iter().filter(|key| !done.contains(key)).cloned().collect();
                self.committed(Timestamp::new(at), rest);
            }
            Some(Refusal::CommitTsExpired(min)) => {
                self.min_commit_ts = self.min_commit_ts.max(min);
                self.actions.push_back(Action::Timestamp);
            }
            Some(Refusal::Locked(_)) => {
                let cause = "its lock gave way to another transaction's".to_string();
                self.fail(Error::TxnAborted { start_ts, cause });
            }
            Some(Refusal::Final(error)) => self.fail(error),
        }
    }

    /// The request that commits `keys`, which lie in one region, after the transaction was decided.
    pub fn commit(&self, keys: &[Bytes]) -> CommitRequest {
        CommitRequest {
            start_version: self.plan.start_ts.get(),
            keys: keys.to_vec(),
            commit_version: self.commit_ts.get(),
            commit_role: CommitRole::Secondary.into(),
            primary_key: self.primary.clone(),
            use_async_commit: self.protocol == Protocol::Async,
            ..CommitRequest::default()
        }
    }

    /// The request that removes the transaction's locks on `keys`, which lie in one region, and makes late copies of
    /// its requests fail.
    pub fn rollback(&self, keys: &[Bytes]) -> BatchRollbackRequest {
        BatchRollbackRequest {
            start_version: self.plan.start_ts.get(),
            keys: keys.to_vec(),
            ..BatchRollbackRequest::default()
        }
    }

    /// Whether the rollback of [`Action::Seal`] succeeded.
    pub fn on_sealed(&mut self, result: Result<()>) {
        match (result, self.failure.take()) {
            (Ok(()), Some(failure)) => self.fail(failure),
            (Ok(()), None) => {}
            (Err(error @ Error::Undetermined { .. }), _) => self.decide(Err(error)),
            (Err(error), _) => self.decide(Err(Error::Undetermined { cause: Box::new(error) })),
        }
    }

    /// [`Action::Seal`] came too late: a late copy of a prewrite was executed, and others have committed the transaction.
    pub fn on_found_committed(&mut self, at: Timestamp) {
        self.failure = None;
        self.committed(at, self.keys.clone());
    }

    /// Nobody waits for the outcome any more, and an action may be half done: forgets what was to be done, and rolls back
    /// where that is still this client's to decide.
    pub fn on_abandoned(&mut self) {
        self.actions.clear();
        let undecided = self.commit_ts == Timestamp::ZERO;
        if undecided && !self.others_may_commit() {
            self.actions.push_back(Action::Rollback(self.keys.clone()));
        }
    }

    /// A late copy of a prewrite could make the transaction one that others commit.
    fn needs_seal(&self) -> bool {
        self.others_may_commit() && self.has_late_copies
    }

    fn others_may_commit(&self) -> bool {
        self.protocol == Protocol::Async || self.one_phase
    }

    /// Every write is locked, or committed already.
    fn prewritten(&mut self) {
        match (self.done_at, self.protocol) {
            (Some(ts), _) => self.committed(ts, Vec::new()),
            (None, _) if self.keys.is_empty() => self.decide(Ok(None)),
            (None, Protocol::Async) => self.committed(self.min_commit_ts, self.keys.clone()),
            (None, Protocol::TwoPhase) => self.actions.push_back(Action::Timestamp),
        }
    }

    fn committed(&mut self, at: Timestamp, rest: Vec<Bytes>) {
        self.commit_ts = at;
        self.decide(Ok(Some(at)));
        if !rest.is_empty() {
            self.actions.push_back(Action::Commit(rest));
        }
    }

    /// A piece was refused.
    fn fail_refused(&mut self) {
        // What was committed after this transaction began stays so for every copy of the request.
        let lasting = matches!(self.failure, Some(Error::WriteConflict { .. }));
        if self.needs_seal() && !lasting {
            self.actions.push_back(Action::Seal(std::mem::take(&mut self.refused)));
        } else if let Some(failure) = self.failure.take() {
            self.fail(failure);
        }
    }

    /// The transaction cannot be committed by anyone any more.
    fn fail(&mut self, error: Error) {
        let error = match error {
            // What is not known is only whether there are locks.
            Error::Undetermined { cause } => *cause,
            error => error,
        };
        self.decide(Err(error));
        // A refused request left nothing behind but the pessimistic locks it found.
        if !self.untouched || self.plan.primary.is_some() {
            self.actions.push_back(Action::Rollback(self.keys.clone()));
        }
    }

    fn decide(&mut self, outcome: Result<Option<Timestamp>>) {
        self.actions.push_back(Action::Decided(outcome));
    }
}

/// How long the locks of a transaction with so many bytes of keys and values live, in ms: larger ones take longer.
fn lock_ttl_ms(bytes: usize) -> u64 {
    // 6 s times the square root of the size in MiB.
    let ttl = 6000 * (bytes as u64).isqrt() / 1024;
    ttl.clamp(LOCK_TTL_MS.0, LOCK_TTL_MS.1)
}
