//! Pessimistic locks: taken region by region, again after conflicts, all of one call or none.
//!
//! Invariant: when a call fails, the locks it took are gone, or the transaction is marked as broken and its end
//! removes them. So it does with those of a call that was dropped half-way.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kvproto::kvrpcpb::*;
use kvproto::ts::Timestamp;

use super::client::Shared;
use super::keep_alive::whole_ms;
use super::key_error::{Refusal, key_locked};
use super::snapshot::LockWaits;
use crate::error::{ConflictReason, Error, Result};
use crate::request::plan::Call;
use crate::request::retry::Access;
use crate::request::shard::{Items, Keyed};

/// A store answers a request that waits for a lock so long before the client gives up on the answer.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);

/// One key to lock.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) key: Bytes,
    /// Fail when it exists.
    pub(super) must_not_exist: bool,
}

impl Keyed for Target {
    fn key(&self) -> &Bytes {
        &self.key
    }

    fn size(&self) -> usize {
        self.key.len()
    }
}

/// What is to be locked, and for whom.
pub(super) struct Locking<'a> {
    pub(super) shared: &'a Shared,
    pub(super) start_ts: Timestamp,
    pub(super) primary: Bytes,
    /// The transaction holds no lock yet and this call takes one.
    pub(super) is_first: bool,
    /// The newest version that this call may lock.
    pub(super) for_update_ts: Timestamp,
    /// Raised to the newest that any call of the transaction was made at: whoever gives up, even in the middle of
    /// [`run`](Self::run), removes locks up to it.
    pub(super) newest: &'a mut Timestamp,
    /// Conflicts are errors: the transaction has read the keys at its start.
    pub(super) strict: bool,
    /// When the start timestamp was handed out: stores count the life of locks from then on.
    pub(super) began: Instant,
    /// How long a lock lives after the request that takes it.
    pub(super) ttl: Duration,
    /// Longest wait for locks of others.
    pub(super) wait: Duration,
    pub(super) return_values: bool,
}

/// What was locked.
#[derive(Debug, Default)]
pub(super) struct Locked {
    /// Keys with their values, when they were asked for; `None` for keys that do not exist.
    pub(super) values: Vec<(Bytes, Option<Bytes>)>,
}

/// What one round of requests met.
#[derive(Default)]
struct Round {
    locks: Vec<LockInfo>,
    conflict: Option<Error>,
    failure: Option<Error>,
    again: Vec<Target>,
}

impl Locking<'_> {
    /// Locks all `targets` or none.
    pub(super) async fn run(&mut self, targets: Vec<Target>) -> Result<Locked> {
        let mut locked = Locked::default();
        // Waiting for locks has its own bound; an attempt has that of every call.
        let waiting = self.shared.executor.call(Access::Write).with_timeout(self.wait);
        // Others who are always faster do not keep it busy forever, however short the wait for locks.
        let working = self.shared.executor.call(Access::Write);
        let mut waits = LockWaits::new();
        let mut left = targets;
        loop {
            let round = self.round(left, &waiting, &mut locked).await?;
            if let Some(failure) = round.failure {
                return Err(failure);
            }
            if round.again.is_empty() {
                return Ok(locked);
            }
            if let Some(conflict) = round.conflict {
                let is_over = waiting.left().is_zero() && working.left().is_zero();
                if self.strict || is_over {
                    return Err(conflict);
                }
                self.for_update_ts = self.shared.executor.scheduler().get_timestamp(1).await?;
                *self.newest = self.for_update_ts.max(*self.newest);
            }
            if !round.locks.is_empty() {
                let first = round.locks.first().cloned();
                let call = self.shared.executor.call(Access::Read);
                let resolved = self.shared.resolver.wait(round.locks, &call).await?;
                // The next request waits in the store again, so a short pause will do.
                if let Some(pause) = resolved.wait
                    && !waits.pause(pause, waiting.left()).await
                {
                    return Err(key_locked(first.as_ref()));
                }
            }
            left = round.again;
        }
    }

    async fn round(&self, targets: Vec<Target>, waiting: &Call, locked: &mut Locked) -> Result<Round> {
        let call = self.shared.executor.call(Access::Write);
        let wait_ms = self.wait_ms(waiting.left());
        let mut round = Round::default();
        let build = |piece: &Vec<Target>| self.request(piece, wait_ms);
        let take = |piece, reply| self.take(piece, reply, &mut round, locked);
        let sent = self.shared.executor.run_all(call, Items::new(targets), build, take).await;
        match (sent, &round.failure) {
            // What was refused for good says more than silence.
            (Ok(()), _) | (Err(_), Some(_)) => Ok(round),
            // A lock more or less decides nothing.
            (Err(Error::Undetermined { cause }), None) => Err(*cause),
            (Err(error), None) => Err(error),
        }
    }

    /// The time that a request lets the store wait, in ms; negative for none.
    fn wait_ms(&self, left: Duration) -> i64 {
        let patience = self.shared.executor.config().attempt_timeout;
        // A lock that is taken after the wait has lived so long already.
        let most = patience.saturating_sub(ANSWER_MARGIN).max(patience / 2).min(self.ttl / 2);
        match left.min(most).as_millis() {
            0 => -1,
            ms => i64::try_from(ms).unwrap_or(i64::MAX),
        }
    }

    fn request(&self, piece: &[Target], wait_timeout: i64) -> PessimisticLockRequest {
        let mutation = |target: &Target| Mutation {
            op: Op::PessimisticLock.into(),
            key: target.key.clone(),
            assertion: match target.must_not_exist {
                true => Assertion::NotExist.into(),
                false => Assertion::None.into(),
            },
            ..Mutation::default()
        };
        PessimisticLockRequest {
            mutations: piece.iter().map(mutation).collect(),
            primary_lock: self.primary.clone(),
            start_version: self.start_ts.get(),
            lock_ttl: whole_ms(self.began.elapsed() + self.ttl),
            for_update_ts: self.for_update_ts.get(),
            is_first_lock: self.is_first,
            wait_timeout,
            return_values: self.return_values,
            min_commit_ts: self.for_update_ts.get().saturating_add(1),
            ..PessimisticLockRequest::default()
        }
    }

    /// Sorts the reply for `piece`.
    fn take(
        &self,
        piece: Vec<Target>,
        reply: PessimisticLockResponse,
        round: &mut Round,
        locked: &mut Locked,
    ) {
        if reply.errors.is_empty() {
            if self.return_values {
                let values = reply.values.into_iter().zip(reply.not_founds);
                let value = |(target, (value, not_found)): (Target, (Bytes, bool))| {
                    (target.key, (!not_found).then_some(value))
                };
                locked.values.extend(piece.into_iter().zip(values).map(value));
            }
            return;
        }
        for error in reply.errors {
            match Refusal::new(error, self.start_ts) {
                Refusal::Locked(locks) => round.locks.extend(locks),
                refusal => match refusal.into_error(self.start_ts) {
                    conflict @ Error::WriteConflict { reason: ConflictReason::PessimisticRetry, .. } => {
                        round.conflict = Some(conflict);
                    }
                    failure => drop(round.failure.get_or_insert(failure)),
                },
            }
        }
        round.again.extend(piece);
    }

    /// Removes the locks of this call from `keys`.
    pub(super) async fn undo(&self, keys: Vec<Bytes>) -> Result<()> {
        unlock(self.shared, self.start_ts, *self.newest, keys).await
    }
}

/// Removes the pessimistic locks on `keys` that were taken at `for_update_ts` or before.
pub(super) async fn unlock(
    shared: &Shared,
    start_ts: Timestamp,
    for_update_ts: Timestamp,
    keys: Vec<Bytes>,
) -> Result<()> {
    let mut refused = None;
    let build = |keys: &Vec<Bytes>| PessimisticRollbackRequest {
        start_version: start_ts.get(),
        for_update_ts: for_update_ts.get(),
        keys: keys.clone(),
        ..PessimisticRollbackRequest::default()
    };
    let check = |_, reply: PessimisticRollbackResponse| {
        refused = refused.take().or(reply.errors.into_iter().next());
    };
    let call = shared.executor.call(Access::Write);
    shared.executor.run_all(call, Items::new(keys), build, check).await?;
    match refused {
        None => Ok(()),
        Some(error) => Err(Refusal::new(error, start_ts).into_error(start_ts)),
    }
}
