//! Sends what [`Committer`] asks for. The user is answered as soon as the outcome is decided; the rest goes on
//! in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvproto::kvrpcpb::{BatchRollbackResponse, CheckTxnStatusRequest, CommitResponse, LockInfo};
use kvproto::ts::Timestamp;

use super::client::Shared;
use super::committer::{Action, Committer, Plan, Write};
use super::keep_alive::{BEATS_PER_LIFE, Pulse, whole_ms};
use super::key_error::Refusal;
use super::snapshot::LockWaits;
use crate::error::{Error, Result};
use crate::request::plan::{At, Call};
use crate::request::retry::Access;
use crate::request::shard::Items;

/// A transaction that has locked some of its keys waits this long for the others. It may be in a circle with
/// pessimistic transactions, which wait for its locks, and no store knows that it waits.
const HOLD_AND_WAIT: Duration = Duration::from_millis(500);
/// The younger of two gives way to the older one, which may be waiting for it: of any circle one member does so at once.
/// It loses little, since what the older one commits would be a conflict.
const GIVE_WAY: Duration = Duration::from_millis(10);

/// The commit of one transaction on its way.
struct Drive {
    shared: Arc<Shared>,
    committer: Committer,
    start_ts: Timestamp,
    /// When the start timestamp was handed out.
    began: Instant,
    /// Bounds the wait for locks of others.
    waiting: Call,
    waits: LockWaits,
    /// When it first waited for locks of others while it held some itself.
    holding_since: Option<Instant>,
}

/// Cleans up when the application stops waiting for a commit in the middle.
struct Guard(Option<Drive>);

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(mut drive) = self.0.take() else { return };
        drive.committer.on_abandoned();
        tracing::warn!(txn = %drive.start_ts, "a commit was abandoned half-way; its outcome is not known");
        let next = drive.committer.next_action();
        drive.shared.clone().in_background(drive.finish(next));
    }
}

/// Commits `writes` as planned; `began` is when the start timestamp was handed out. The caller keeps pessimistic locks
/// alive meanwhile.
pub(super) async fn commit(
    shared: &Arc<Shared>,
    plan: Plan,
    writes: Vec<Write>,
    began: Instant,
) -> Result<Option<Timestamp>> {
    let (start_ts, is_kept_alive) = (plan.start_ts, plan.primary.is_some());
    let drive = Drive {
        shared: shared.clone(),
        committer: Committer::new(plan, writes),
        start_ts,
        began,
        waiting: shared.executor.call(Access::Write),
        waits: LockWaits::new(),
        holding_since: None,
    };
    let (primary, ttl) =
        (drive.committer.primary().clone(), Duration::from_millis(drive.committer.lock_ttl_ms()));
    let mut guard = Guard(None);
    let drive = guard.0.insert(drive);
    let outcome = {
        let beats = async {
            // The heart beats of pessimistic locks go on by themselves.
            if !is_kept_alive {
                tokio::time::sleep(ttl / BEATS_PER_LIFE).await;
                Pulse { shared: shared.clone(), start_ts, primary, began, ttl }.beat().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            outcome = drive.decide() => outcome,
            () = beats => Err(Error::Protocol("heart beats never end a commit".to_string())),
        }
    };
    if let Some(mut drive) = guard.0.take() {
        let next = drive.committer.next_action();
        if let (Ok(Some(commit_ts)), Action::Commit(_)) = (&outcome, &next) {
            shared.resolver.remember(start_ts, *commit_ts);
        }
        match next {
            Action::Finished => {}
            next => shared.in_background(drive.finish(next)),
        }
    }
    outcome
}

impl Drive {
    /// Runs until the outcome is known.
    async fn decide(&mut self) -> Result<Option<Timestamp>> {
        loop {
            match self.committer.next_action() {
                Action::Prewrite(writes) => self.prewrite(writes).await,
                Action::Resolve(locks) => self.resolve(locks).await,
                Action::Timestamp => {
                    let ts = self.shared.executor.scheduler().get_timestamp(1).await;
                    self.committer.on_timestamp(ts);
                }
                Action::CommitPrimary => self.commit_primary().await,
                Action::Seal(keys) => self.seal(keys).await,
                Action::Decided(outcome) => return outcome,
                Action::Commit(_) | Action::Rollback(_) | Action::Finished => {
                    return Err(Error::Protocol("the commit went on before its outcome".to_string()));
                }
            }
        }
    }

    async fn prewrite(&mut self, writes: Vec<Write>) {
        let call = self.shared.executor.call(Access::Write);
        let mut answers = Vec::new();
        let committer = &self.committer;
        let began = self.began;
        let build = |piece: &Vec<Write>| committer.prewrite(piece, whole_ms(began.elapsed()));
        let add = |answer| answers.push(answer);
        let sent = self.shared.executor.run_pieces(call, Items::new(writes), build, add).await;
        for answer in answers {
            if answer.has_late_copy {
                self.committer.on_late_copy();
            }
            self.committer.on_prewrite(&answer.piece, answer.reply);
        }
        self.committer.on_prewritten(sent);
    }

    async fn resolve(&mut self, locks: Vec<LockInfo>) {
        let first = locks.first().cloned();
        let (met, wait) = match self.shared.resolver.wait(locks, &self.waiting).await {
            Ok(resolved) => (resolved.alive.into_iter().min(), resolved.wait),
            Err(error) => {
                tracing::debug!(txn = %self.start_ts, %error, "locks in the way stay");
                (None, Some(Duration::MAX))
            }
        };
        let left = self.patience(met);
        let go_on = match wait {
            None => !self.waiting.left().is_zero(),
            Some(wait) => self.waits.pause(wait, left).await,
        };
        match go_on {
            true => self.committer.on_resolved(),
            false => self.committer.on_stuck(first.as_ref()),
        }
    }

    /// How much longer to wait for locks of others; the oldest of them is `met`.
    fn patience(&mut self, met: Option<Timestamp>) -> Duration {
        if !self.committer.holds_locks() {
            return self.waiting.left();
        }
        let since = *self.holding_since.get_or_insert_with(Instant::now);
        let most = match met {
            Some(met) if met < self.start_ts => GIVE_WAY,
            _ => HOLD_AND_WAIT,
        };
        most.saturating_sub(since.elapsed()).min(self.waiting.left())
    }

    async fn commit_primary(&mut self) {
        let call = self.shared.executor.call(Access::Write);
        let committer = &self.committer;
        let build =
            |region: &crate::region_cache::Region| committer.commit_primary(|key| region.contains(key));
        let sent = self.shared.executor.run(call, At::Key(committer.primary()), build).await;
        let (keys, reply) = match sent {
            Ok((region, reply)) => (committer.commit_primary(|key| region.contains(key)).keys, Ok(reply)),
            Err(error) => (Vec::new(), Err(error)),
        };
        self.committer.on_primary_committed(&keys, reply);
    }

    async fn seal(&mut self, keys: Vec<Bytes>) {
        let sealed = self.rollback(keys).await;
        if let Err(Error::Server(_)) = &sealed
            && let Some(commit_ts) = self.found_committed().await
        {
            return self.committer.on_found_committed(commit_ts);
        }
        self.committer.on_sealed(sealed);
    }

    /// When the transaction was committed, as far as its primary key tells.
    async fn found_committed(&self) -> Option<Timestamp> {
        let call = self.shared.executor.call(Access::Read);
        let primary = self.committer.primary();
        let build = |_: &_| CheckTxnStatusRequest {
            primary_key: primary.clone(),
            lock_ts: self.start_ts.get(),
            ..CheckTxnStatusRequest::default()
        };
        let (_, reply) = self.shared.executor.run(call, At::Key(primary), build).await.ok()?;
        (reply.commit_version != 0).then(|| Timestamp::new(reply.commit_version))
    }

    async fn rollback(&self, keys: Vec<Bytes>) -> Result<()> {
        let call = self.shared.executor.call(Access::Write);
        let mut refused = None;
        let build = |keys: &Vec<Bytes>| self.committer.rollback(keys);
        let check = |_, reply: BatchRollbackResponse| refused = refused.take().or(reply.error);
        self.shared.executor.run_all(call, Items::new(keys), build, check).await?;
        match refused {
            None => Ok(()),
            Some(error) => Err(Refusal::new(error, self.start_ts).into_error(self.start_ts)),
        }
    }

    /// Does what is left after the outcome; whoever meets the locks would do the same.
    async fn finish(mut self, mut next: Action) {
        loop {
            let done = match next {
                Action::Commit(keys) => self.commit_rest(keys).await,
                Action::Rollback(keys) => self.rollback(keys).await,
                _ => return,
            };
            if let Err(error) = done {
                tracing::debug!(txn = %self.start_ts, %error, "locks are left to the next who meets them");
            }
            next = self.committer.next_action();
        }
    }

    async fn commit_rest(&self, keys: Vec<Bytes>) -> Result<()> {
        let call = self.shared.executor.call(Access::Write);
        let mut refused = None;
        let build = |keys: &Vec<Bytes>| self.committer.commit(keys);
        let check = |_, reply: CommitResponse| refused = refused.take().or(reply.error);
        self.shared.executor.run_all(call, Items::new(keys), build, check).await?;
        match refused {
            None => Ok(()),
            Some(error) => Err(Refusal::new(error, self.start_ts).into_error(self.start_ts)),
        }
    }
}
