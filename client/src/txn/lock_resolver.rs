//! Sends what [`Resolution`] asks for: finds out what became of transactions whose locks are in the way, and
//! finishes the locks.
//!
//! Owns the verdicts that were final, so that many locks of one transaction cost one question. Works on wire keys, of any
//! keyspace when made by [`LockResolver::over`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use kvproto::key::{BoundaryForm, Mode, split_wire_key};
use kvproto::kvrpcpb::{ApiVersion, LockInfo};
use kvproto::ts::Timestamp;
use parking_lot::Mutex;

use super::resolution::{Caller, Resolution, Step, Verdict};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::request::plan::{At, Call, Executor};
use crate::request::retry::Access;
use crate::request::shard::Items;
use crate::scheduler_client::SchedulerClient;

/// Verdicts that are remembered.
const KNOWN_MAX: usize = 2048;

/// What became of the transactions whose locks were to be resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Start and commit timestamps of those that were committed.
    pub committed: Vec<(Timestamp, Timestamp)>,
    /// Those that were rolled back.
    pub rolled_back: Vec<Timestamp>,
    /// Those that will be committed after the caller's timestamp, if at all.
    pub pushed: Vec<Timestamp>,
    /// Those that may still be committed.
    pub alive: Vec<Timestamp>,
    /// After this time the locks of one that is alive expire; `None` when none is alive.
    pub wait: Option<Duration>,
}

/// Resolves locks. Cheap to clone.
#[derive(Clone)]
pub struct LockResolver {
    pub(super) executor: Arc<Executor>,
    known: Arc<Mutex<Known>>,
    /// The locks may be of clients in any API.
    any_api: bool,
}

/// Final verdicts; the oldest go first.
#[derive(Default)]
struct Known {
    verdicts: BTreeMap<Timestamp, Verdict>,
    order: VecDeque<Timestamp>,
    /// What is being finished in the background: keys of transactions; for large transactions, whose locks go region
    /// by region, the empty key.
    busy: BTreeSet<(Timestamp, Bytes)>,
}

impl LockResolver {
    pub(crate) fn new(executor: Arc<Executor>) -> LockResolver {
        LockResolver { executor, known: Arc::default(), any_api: false }
    }

    /// A resolver of locks of all keyspaces and of clients without one, for cleaning.
    pub fn over(scheduler: SchedulerClient, config: Config) -> LockResolver {
        let executor = Executor::new(scheduler, BoundaryForm::Encoded, ApiVersion::V2, config);
        LockResolver { any_api: true, ..LockResolver::new(Arc::new(executor)) }
    }

    /// Finds out what became of the transactions that hold `locks`, and finishes the locks of those that have ended,
    /// or whose locks have expired, before it returns. Fails when a store does not answer by
    /// [`Config::timeout`]; the locks of other transactions are finished nevertheless.
    pub async fn resolve(&self, locks: Vec<LockInfo>, caller: Caller) -> Result<Resolved> {
        // Its requests may be repeated, and nobody asks which of them counted.
        let call = self.executor.call(Access::Read);
        self.resolve_all(locks, caller, &call, false).await
    }

    /// Tells it that a transaction was committed, so that who meets its locks need not ask.
    pub(crate) fn remember(&self, start_ts: Timestamp, commit_ts: Timestamp) {
        self.known.lock().insert(start_ts, Verdict::Committed(commit_ts));
    }

    /// Like [`resolve`](Self::resolve), for a reader: returns as soon as it knows the verdicts, and finishes locks in
    /// the background.
    pub(crate) async fn look(&self, locks: Vec<LockInfo>, at: Timestamp, call: &Call) -> Result<Resolved> {
        self.resolve_all(locks, Caller::Read(at), call, true).await
    }

    /// Like [`resolve`](Self::resolve) as a part of another call.
    pub(crate) async fn wait(&self, locks: Vec<LockInfo>, call: &Call) -> Result<Resolved> {
        self.resolve_all(locks, Caller::Wait, call, false).await
    }

    async fn resolve_all(
        &self,
        locks: Vec<LockInfo>,
        caller: Caller,
        call: &Call,
        in_background: bool,
    ) -> Result<Resolved> {
        let mut by_txn: BTreeMap<Timestamp, Vec<LockInfo>> = BTreeMap::new();
        for lock in locks {
            by_txn.entry(Timestamp::new(lock.lock_version)).or_default().push(lock);
        }
        let mut resolved = Resolved::default();
        let with_verdict = |(start_ts, locks)| (self.known.lock().verdicts.get(&start_ts).copied(), locks);
        let by_txn: Vec<(Option<Verdict>, Vec<LockInfo>)> = by_txn.into_iter().map(with_verdict).collect();
        // Whether locks have expired matters only to questions.
        let now = match by_txn.iter().all(|(known, _)| known.is_some()) {
            true => Timestamp::ZERO,
            false => self.executor.scheduler().with_timeout(call.left()).get_timestamp(1).await?,
        };
        let resolve_one = |(known, locks): (Option<Verdict>, Vec<LockInfo>)| async move {
            let resolution = Resolution::new(&locks, caller, now, known);
            let start_ts = resolution.start_ts();
            let verdict = self.resolve_one(resolution, &locks, call, in_background).await?;
            Ok::<_, Error>((start_ts, verdict))
        };
        let concurrency = self.executor.config().concurrency.max(1);
        let pending: Vec<_> = by_txn.into_iter().map(resolve_one).collect();
        let mut verdicts = stream::iter(pending).buffer_unordered(concurrency);
        let mut failure = None;
        while let Some(verdict) = verdicts.next().await {
            match verdict {
                Ok((start_ts, verdict)) => resolved.add(start_ts, verdict),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        failure.map_or(Ok(resolved), Err)
    }

    /// Resolves locks of one transaction.
    async fn resolve_one(
        &self,
        mut resolution: Resolution,
        locks: &[LockInfo],
        call: &Call,
        in_background: bool,
    ) -> Result<Verdict> {
        let (start_ts, api) = (resolution.start_ts(), self.api_of(locks));
        let part = || call.part().in_api(api);
        let verdict = loop {
            match resolution.next_step() {
                Step::Status(request) => {
                    let key = request.primary_key.clone();
                    let build = |_: &_| (*request).clone();
                    let (_, reply) = self.executor.run(part(), At::Key(&key), build).await?;
                    resolution.on_status(reply)?;
                }
                Step::Secondaries(keys) => {
                    let mut replies = Vec::new();
                    let build = |keys: &Vec<_>| resolution.check_secondaries(keys);
                    let add = |keys, reply| replies.push((keys, reply));
                    self.executor.run_all(part(), Items::new(keys), build, add).await?;
                    for (keys, reply) in replies {
                        resolution.on_secondaries(&keys, reply)?;
                    }
                    resolution.on_secondaries_checked();
                }
                Step::Decided(verdict) => break verdict,
                Step::Resolve(_) | Step::Unlock(_) | Step::Finished => {
                    return Err(Error::Protocol("locks are to be finished before the verdict".to_string()));
                }
            }
        };
        if let Some(verdict) = resolution.last_word() {
            self.known.lock().insert(start_ts, verdict);
        }
        tracing::debug!(txn = %start_ts, ?verdict, "met locks");
        match in_background {
            true => self.finish_in_background(resolution, locks, api),
            false => self.finish(resolution, part()).await?,
        }
        Ok(verdict)
    }

    /// Many readers meet the same locks: one of them has them finished at a time.
    fn finish_in_background(&self, resolution: Resolution, locks: &[LockInfo], api: ApiVersion) {
        let start_ts = resolution.start_ts();
        let claimed = self.known.lock().claim(start_ts, resolution.is_lite(), locks);
        if claimed.is_empty() {
            return;
        }
        let (resolver, call) = (self.clone(), self.executor.call(Access::Read).in_api(api));
        tokio::spawn(async move {
            if let Err(error) = resolver.finish(resolution, call).await {
                tracing::debug!(txn = %start_ts, %error, "locks are left to the next who meets them");
            }
            resolver.known.lock().release(&claimed);
        });
    }

    /// Commits or removes the locks after the verdict.
    async fn finish(&self, mut resolution: Resolution, call: Call) -> Result<()> {
        let start_ts = resolution.start_ts();
        let mut refused = None;
        loop {
            match resolution.next_step() {
                Step::Resolve(keys) => {
                    let build = |keys: &Vec<_>| resolution.resolve(keys);
                    let check = |_, reply: kvproto::kvrpcpb::ResolveLockResponse| {
                        refused = refused.take().or(reply.error);
                    };
                    self.executor.run_all(call.part(), Items::new(keys), build, check).await?;
                }
                Step::Unlock(keys) => {
                    let build = |keys: &Vec<_>| resolution.unlock(keys);
                    let check = |_, reply: kvproto::kvrpcpb::PessimisticRollbackResponse| {
                        refused = refused.take().or(reply.errors.into_iter().next());
                    };
                    self.executor.run_all(call.part(), Items::new(keys), build, check).await?;
                }
                _ => break,
            }
        }
        match refused {
            None => Ok(()),
            Some(error) => Err(super::key_error::Refusal::new(error, start_ts).into_error(start_ts)),
        }
    }

    /// The API that the client of these locks spoke.
    fn api_of(&self, locks: &[LockInfo]) -> ApiVersion {
        let primary = locks.first().map(|lock| &lock.primary_lock[..]).unwrap_or_default();
        match split_wire_key(primary) {
            _ if !self.any_api => self.executor.api(),
            Some((Mode::Txn, ..)) => ApiVersion::V2,
            _ => ApiVersion::V1,
        }
    }
}

impl Known {
    /// Marks what nobody is finishing yet, and returns it.
    fn claim(&mut self, start_ts: Timestamp, is_lite: bool, locks: &[LockInfo]) -> Vec<(Timestamp, Bytes)> {
        let wanted = match is_lite {
            true => locks.iter().map(|lock| lock.key.clone()).collect(),
            false => vec![Bytes::new()],
        };
        let claims = wanted.into_iter().map(|key| (start_ts, key));
        claims.filter(|claim| self.busy.insert(claim.clone())).collect()
    }

    fn release(&mut self, claimed: &[(Timestamp, Bytes)]) {
        for claim in claimed {
            self.busy.remove(claim);
        }
    }

    fn insert(&mut self, start_ts: Timestamp, verdict: Verdict) {
        if self.verdicts.insert(start_ts, verdict).is_none() {
            self.order.push_back(start_ts);
        }
        if self.order.len() > KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.verdicts.remove(&oldest);
        }
    }
}

impl Resolved {
    fn add(&mut self, start_ts: Timestamp, verdict: Verdict) {
        match verdict {
            Verdict::Committed(commit_ts) => self.committed.push((start_ts, commit_ts)),
            Verdict::RolledBack => self.rolled_back.push(start_ts),
            Verdict::Pushed => self.pushed.push(start_ts),
            Verdict::Alive(ms) => {
                let left = Duration::from_millis(ms);
                self.alive.push(start_ts);
                self.wait = Some(self.wait.map_or(left, |wait| wait.min(left)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_finished_by_one_reader_at_a_time() {
        let mut known = Known::default();
        let lock = |key: &'static str| LockInfo { key: key.into(), ..LockInfo::default() };
        let ts = Timestamp::new(7);
        let first = known.claim(ts, true, &[lock("a"), lock("b")]);
        assert_eq!(first.len(), 2);
        assert_eq!(known.claim(ts, true, &[lock("a")]), []);
        assert_eq!(known.claim(ts, true, &[lock("b"), lock("c")]), [(ts, "c".into())]);
        assert_eq!(known.claim(Timestamp::new(8), true, &[lock("a")]).len(), 1, "another transaction");
        let large = known.claim(ts, false, &[lock("a"), lock("b")]);
        assert_eq!(large.len(), 1);
        assert_eq!(known.claim(ts, false, &[lock("x")]), []);
        known.release(&large);
        known.release(&first);
        assert_eq!(known.claim(ts, false, &[lock("x")]).len(), 1);
        assert_eq!(known.claim(ts, true, &[lock("a")]).len(), 1);
    }
}
