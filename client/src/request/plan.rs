//! Sending requests to the regions they belong to, and again after failures, until they succeed or their deadline
//! passes.
//!
//! Owns the region cache and the store pool. What to do after a failure is decided by [`retry`]; this file
//! carries it out. Concurrent look-ups of one unknown key ask the scheduler once.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::Either;
use futures::stream::FuturesUnordered;
use kvproto::key::BoundaryForm;
use kvproto::kvrpcpb::{ApiVersion, Context};
use kvproto::limits::CUT_AWARE_SOURCE;
use kvproto::redact;
use parking_lot::RwLock;
use tokio::sync::Mutex;

use super::command::{SendError, StoreReply, StoreRequest};
use super::retry::{self, Access, Failure, Next};
use super::shard::Work;
use crate::backoff::{Backoff, Jitter};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::region_cache::{Region, RegionCache};
use crate::scheduler_client::{RegionInfo, SchedulerClient};
use crate::store_pool::{Store, StorePool};

/// Regions that are remembered; about 64 MiB at worst.
const CACHED_REGIONS: usize = 200_000;
/// Look-ups of different keys that may run at once.
const LOOKUPS: usize = 16;
/// Waits while the scheduler knows no region for a key: at start, or in the middle of a split.
const MISSING: Backoff = Backoff::from_millis(10, 200);
/// Waits while a store cannot be reached that nobody can stand in for.
const STORE: Backoff = Backoff::from_millis(20, 500);

/// Which region a request goes to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At<'a> {
    /// The one that holds this key.
    Key(&'a [u8]),
    /// The one that holds the keys right before this one; the last region for an empty key.
    Before(&'a [u8]),
}

impl<'a> At<'a> {
    fn key(self) -> &'a [u8] {
        match self {
            At::Key(key) | At::Before(key) => key,
        }
    }

    fn is_in(self, region: &Region) -> bool {
        match self {
            At::Key(key) => region.contains(key),
            At::Before(key) => region.contains_before(key),
        }
    }
}

/// One call of the user: what it does, how long it may take, and what it met so far.
#[derive(Debug)]
pub(crate) struct Call {
    access: Access,
    api: ApiVersion,
    started: Instant,
    timeout: Duration,
    /// Longest wait for one answer.
    patience: Duration,
    attempt: u32,
    /// An attempt may have been executed though it failed.
    unknown: bool,
    last: Option<Error>,
    jitter: Option<Jitter>,
}

impl Call {
    fn deadline(&self) -> Instant {
        self.started + self.timeout
    }

    pub(crate) fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed())
    }

    fn draw(&mut self) -> u32 {
        self.jitter.get_or_insert_with(Jitter::from_process).draw()
    }

    /// The call ends without success.
    fn give_up(&mut self) -> Error {
        let last = self.last.take().map(Box::new);
        let timeout = Error::Timeout { after: self.started.elapsed(), last };
        self.final_error(timeout)
    }

    /// What the caller learns of `error`: an attempt before it may have been executed.
    fn final_error(&self, error: Error) -> Error {
        match error {
            Error::Undetermined { .. } => error,
            error if self.unknown => Error::Undetermined { cause: Box::new(error) },
            error => error,
        }
    }

    /// A call for a part of the same work, with the same deadline.
    pub(crate) fn part(&self) -> Call {
        Call { unknown: false, ..self.rest() }
    }

    /// A call for the rest of a piece that was sent before and has to be cut again.
    fn rest(&self) -> Call {
        Call { attempt: 0, last: None, jitter: None, ..*self }
    }

    /// The same call with another deadline, counted from its start.
    pub(crate) fn with_timeout(self, timeout: Duration) -> Call {
        Call { timeout, ..self }
    }

    /// The same call in another API than the client's own.
    pub(crate) fn in_api(self, api: ApiVersion) -> Call {
        Call { api, ..self }
    }
}

/// Sends requests to regions.
pub(crate) struct Executor {
    scheduler: SchedulerClient,
    pool: StorePool,
    cache: RwLock<RegionCache>,
    lookups: [Mutex<()>; LOOKUPS],
    hasher: RandomState,
    form: BoundaryForm,
    api: ApiVersion,
    config: Config,
}

/// What became of a piece of work.
enum Outcome<W: Work, R> {
    /// The rest of the work, and the region that its next piece goes to.
    Found(W, Call, Arc<Region>),
    Done(Answer<W::Piece, R>),
    Again(W::Piece, Call),
}

/// A piece of work with its reply.
pub(crate) struct Answer<P, R> {
    pub(crate) piece: P,
    pub(crate) reply: R,
    /// It was sent before, and that copy of the request may still be executed.
    pub(crate) has_late_copy: bool,
}

impl Executor {
    pub(crate) fn new(
        scheduler: SchedulerClient,
        form: BoundaryForm,
        api: ApiVersion,
        config: Config,
    ) -> Executor {
        Executor {
            pool: StorePool::new(scheduler.clone(), config.connect_timeout, config.max_in_flight),
            scheduler,
            cache: RwLock::new(RegionCache::new(form, CACHED_REGIONS)),
            lookups: std::array::from_fn(|_| Mutex::new(())),
            hasher: RandomState::new(),
            form,
            api,
            config,
        }
    }

    pub(crate) fn scheduler(&self) -> &SchedulerClient {
        &self.scheduler
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The API that requests are made in.
    pub(crate) fn api(&self) -> ApiVersion {
        self.api
    }

    /// A call that starts now.
    pub(crate) fn call(&self, access: Access) -> Call {
        let (timeout, patience) = (self.config.timeout, self.config.attempt_timeout);
        let started = Instant::now();
        let (api, unknown) = (self.api, false);
        Call { access, api, started, timeout, patience, attempt: 0, unknown, last: None, jitter: None }
    }

    /// A call whose requests may each take until the deadline.
    pub(crate) fn patient_call(&self, access: Access) -> Call {
        Call { patience: self.config.timeout, ..self.call(access) }
    }

    /// Sends the request that `build` makes for the region at `at`, and again until it succeeds.
    pub(crate) async fn run<Q: StoreRequest>(
        &self,
        mut call: Call,
        at: At<'_>,
        build: impl Fn(&Region) -> Q + Send,
    ) -> Result<(Arc<Region>, Q::Reply)> {
        loop {
            let region = match self.cached(at) {
                Some(region) => region,
                None => Box::pin(self.locate(at, &mut call)).await?,
            };
            let sent = self.attempt(&mut call, &region, build(&region)).await;
            if let Some(reply) = sent.map_err(|error| call.final_error(error))? {
                return Ok((region, reply));
            }
        }
    }

    /// Cuts `work` by region and sends the pieces, several at a time. Ends at the first error; other pieces
    /// may have been executed then.
    pub(crate) async fn run_all<W: Work, Q: StoreRequest>(
        &self,
        call: Call,
        work: W,
        build: impl Fn(&W::Piece) -> Q + Send + Sync,
        mut on_reply: impl FnMut(W::Piece, Q::Reply) + Send,
    ) -> Result<()> {
        self.run_pieces(call, work, build, |answer| on_reply(answer.piece, answer.reply)).await
    }

    /// Like [`run_all`](Self::run_all), and tells of copies of requests that may still be on their way.
    pub(crate) async fn run_pieces<W: Work, Q: StoreRequest>(
        &self,
        call: Call,
        work: W,
        build: impl Fn(&W::Piece) -> Q + Send + Sync,
        mut on_answer: impl FnMut(Answer<W::Piece, Q::Reply>) + Send,
    ) -> Result<()> {
        let mut running = FuturesUnordered::new();
        let mut waiting = VecDeque::from([(work, call.part(), None)]);
        loop {
            while running.len() < self.config.concurrency.max(1) {
                let Some((mut work, part, found)) = waiting.pop_front() else { break };
                let Some(key) = work.first() else { continue };
                // Nothing is awaited here: pieces on their way may hold what a look-up waits for.
                let step = match found.or_else(|| self.cached(At::Key(key))) {
                    None => Either::Left(self.find(work, part)),
                    Some(region) => {
                        let piece = work.cut(&region);
                        if work.first().is_some() {
                            waiting.push_front((work, part.rest(), None));
                        }
                        Either::Right(self.run_piece(part, region, piece, &build))
                    }
                };
                running.push(step);
            }
            match running.next().await {
                None => return Ok(()),
                Some(Ok(Outcome::Found(work, part, region))) => {
                    waiting.push_front((work, part, Some(region)))
                }
                Some(Ok(Outcome::Done(answer))) => on_answer(answer),
                Some(Ok(Outcome::Again(piece, part))) => waiting.push_back((W::again(piece), part, None)),
                Some(Err(error)) => return Err(error),
            }
        }
    }

    /// Finds the region that the next piece of `work` goes to.
    async fn find<W: Work, R>(&self, work: W, mut call: Call) -> Result<Outcome<W, R>> {
        let key = work.first().cloned().unwrap_or_default();
        let region = Box::pin(self.locate(At::Key(&key), &mut call)).await?;
        Ok(Outcome::Found(work, call, region))
    }

    async fn run_piece<W: Work, Q: StoreRequest>(
        &self,
        mut call: Call,
        region: Arc<Region>,
        piece: W::Piece,
        build: &(impl Fn(&W::Piece) -> Q + Sync),
    ) -> Result<Outcome<W, Q::Reply>> {
        let request = build(&piece);
        match self.attempt(&mut call, &region, request).await {
            Ok(Some(reply)) => Ok(Outcome::Done(Answer { piece, reply, has_late_copy: call.unknown })),
            Ok(None) => Ok(Outcome::Again(piece, call)),
            Err(error) => Err(call.final_error(error)),
        }
    }

    /// Sends `request`, which is for a store rather than a region, until that store has answered.
    pub(crate) async fn on_store<Q: StoreRequest + Clone>(
        &self,
        call: &Call,
        store_id: u64,
        request: Q,
    ) -> Result<Q::Reply> {
        let mut jitter = Jitter::from_process();
        for attempt in 0.. {
            let store = self.pool.get(store_id, call.deadline()).await?;
            let error = match request.clone().send(&store, call.deadline()).await {
                Ok(mut reply) => match (reply.server_error(), reply.region_error()) {
                    (None, None) => return Ok(reply),
                    (Some(message), _) => return Err(Error::Server(message)),
                    // One of its regions has moved: the store looks again.
                    (None, Some(error)) => Error::Region { region_id: 0, message: describe(&error) },
                },
                Err(SendError::Refused(message)) => return Err(Error::Server(message)),
                Err(error) => {
                    self.pool.forget(&store);
                    let cause = format!("{error:?}");
                    Error::StoreUnavailable { store_id, address: store.address.clone(), cause }
                }
            };
            let pause = STORE.delay(attempt, jitter.draw());
            if pause >= call.left() {
                return Err(Error::Timeout { after: call.started.elapsed(), last: Some(Box::new(error)) });
            }
            tokio::time::sleep(pause).await;
        }
        unreachable!("the loop ends by returning")
    }

    fn cached(&self, at: At<'_>) -> Option<Arc<Region>> {
        let cache = self.cache.read();
        match at {
            At::Key(key) => cache.lookup(key),
            At::Before(key) => cache.lookup_before(key),
        }
    }

    /// One attempt. `None` when it failed and the next one may follow at once: the pause has been made.
    async fn attempt<Q: StoreRequest>(
        &self,
        call: &mut Call,
        region: &Arc<Region>,
        mut request: Q,
    ) -> Result<Option<Q::Reply>> {
        let Some(peer) = region.target() else {
            return Err(Error::Protocol(format!("region {} has no replica", region.id)));
        };
        let store = match self.pool.known(peer.store_id) {
            Some(store) => store,
            None => match Box::pin(self.pool.get(peer.store_id, call.deadline())).await {
                Ok(store) => store,
                Err(error) => return Box::pin(self.no_store(call, region, error)).await.map(|()| None),
            },
        };
        request.set_context(Context {
            region_id: region.id,
            region_epoch: Some(region.epoch),
            peer: Some(peer),
            api_version: call.api.into(),
            request_source: if Q::CUT_AWARE { CUT_AWARE_SOURCE.to_string() } else { String::new() },
            ..Context::default()
        });
        let now = Instant::now();
        let deadline = call.deadline().min(now + call.patience);
        let error = match request.send(&store, deadline).await {
            Ok(mut reply) => match (reply.region_error(), reply.server_error()) {
                (None, None) => return Ok(Some(reply)),
                (Some(error), _) => {
                    let failure = Failure::Region(&error);
                    let cause = Error::Region { region_id: region.id, message: describe(&error) };
                    return Box::pin(self.settle(call, region, Some(&store), failure, cause))
                        .await
                        .map(|()| None);
                }
                (None, Some(message)) => return Err(Error::Server(message)),
            },
            Err(error) => error,
        };
        Box::pin(self.send_failed(call, region, &store, error)).await.map(|()| None)
    }

    async fn send_failed(
        &self,
        call: &mut Call,
        region: &Arc<Region>,
        store: &Arc<Store>,
        error: SendError,
    ) -> Result<()> {
        let unavailable = |cause: String| Error::StoreUnavailable {
            store_id: store.id,
            address: store.address.clone(),
            cause,
        };
        let (failure, cause) = match error {
            SendError::Refused(message) => return Err(Error::Server(message)),
            SendError::Mismatch => {
                return Err(Error::Protocol("the answer does not fit the question".to_string()));
            }
            SendError::NotSent(cause) => (Failure::NotSent, unavailable(cause)),
            SendError::Broken(cause) => (Failure::Broken, unavailable(cause)),
            SendError::Silent { sent: true } => {
                (Failure::Silent, unavailable("no answer in time".to_string()))
            }
            SendError::Silent { sent: false } => {
                // Too many requests wait for this store; another replica does not lead.
                call.last = Some(unavailable("too many requests wait for it".to_string()));
                return if call.left().is_zero() { Err(call.give_up()) } else { Ok(()) };
            }
        };
        self.settle(call, region, Some(store), failure, cause).await
    }

    /// The scheduler does not know the store of the replica: it left, and the region has changed.
    async fn no_store(&self, call: &mut Call, region: &Arc<Region>, error: Error) -> Result<()> {
        match error {
            Error::StoreNotFound(_) => self.settle(call, region, None, Failure::NotSent, error).await,
            error if error.is_retryable() => {
                call.last = Some(error);
                Err(call.give_up())
            }
            error => Err(error),
        }
    }

    /// Learns from a failure and makes the pause before the next attempt, or ends the call.
    async fn settle(
        &self,
        call: &mut Call,
        region: &Arc<Region>,
        store: Option<&Arc<Store>>,
        failure: Failure<'_>,
        cause: Error,
    ) -> Result<()> {
        let attempt = retry::Attempt {
            access: call.access,
            number: call.attempt,
            region_id: region.id,
            epoch: region.epoch,
            left: call.left(),
            jitter: call.draw(),
        };
        let decision = retry::decide(failure, &attempt);
        tracing::debug!(region = region.id, attempt = call.attempt, %cause, next = ?decision.next, "attempt failed");
        self.cache.write().update(region, decision.update)?;
        if let (true, Some(store)) = (decision.reconnect, store) {
            self.pool.forget(store);
        }
        call.attempt += 1;
        call.unknown |= decision.unknown;
        match decision.next {
            Next::Now => call.last = Some(cause),
            Next::After(pause) => {
                call.last = Some(cause);
                tokio::time::sleep(pause).await;
            }
            Next::Undetermined => return Err(Error::Undetermined { cause: Box::new(cause) }),
            Next::Refused(size) => return Err(Error::WriteTooLarge { size }),
            Next::Deadline => {
                call.last = Some(cause);
                return Err(call.give_up());
            }
        }
        Ok(())
    }

    /// Asks the scheduler for a region that is not in the cache.
    async fn locate(&self, at: At<'_>, call: &mut Call) -> Result<Arc<Region>> {
        let found = self.ask(at, call).await;
        found.map_err(|error| call.final_error(error))
    }

    async fn ask(&self, at: At<'_>, call: &mut Call) -> Result<Arc<Region>> {
        let lookup = self.hasher.hash_one(at.key()) as usize % LOOKUPS;
        for attempt in 0.. {
            {
                let one_at_a_time = tokio::time::timeout(call.left(), self.lookups[lookup].lock()).await;
                let Ok(_one_at_a_time) = one_at_a_time else { break };
                if let Some(region) = self.cached(at) {
                    return Ok(region);
                }
                let found = match at {
                    At::Key(key) => self.region_of(key, call.left()).await,
                    At::Before(key) => self.region_before(key, call.left()).await,
                };
                match found {
                    Ok(Some(info)) => {
                        let region = Region::new(info.region, info.leader.as_ref(), None, self.form)?;
                        let region = self.cache.write().insert(region);
                        if at.is_in(&region) {
                            return Ok(region);
                        }
                        // The scheduler has not heard of a split that this client knows of.
                        call.last = Some(missing(at));
                    }
                    Ok(None) => call.last = Some(missing(at)),
                    Err(error) if error.is_retryable() => call.last = Some(error),
                    Err(error) => return Err(error),
                }
            }
            let pause = MISSING.delay(attempt, call.draw());
            if pause >= call.left() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Err(call.give_up())
    }

    async fn region_of(&self, key: &[u8], left: Duration) -> Result<Option<RegionInfo>> {
        let boundary = self.form.boundary(Bytes::copy_from_slice(key));
        self.scheduler.with_timeout(left).get_region(boundary).await
    }

    async fn region_before(&self, key: &[u8], left: Duration) -> Result<Option<RegionInfo>> {
        let scheduler = self.scheduler.with_timeout(left);
        if key.is_empty() {
            // The region of a key that sorts after all but the strangest, and from there to the end.
            let mut at = Bytes::from_static(&[0xff; 32]);
            loop {
                let found = scheduler.get_region(at).await?;
                match found {
                    Some(info) if !info.region.end_key.is_empty() => at = info.region.end_key,
                    found => return Ok(found),
                }
            }
        }
        let boundary = self.form.boundary(Bytes::copy_from_slice(key));
        match scheduler.get_region(boundary.clone()).await? {
            Some(info) if info.region.start_key < boundary => Ok(Some(info)),
            _ => scheduler.get_prev_region(boundary).await,
        }
    }
}

fn missing(at: At<'_>) -> Error {
    Error::RegionMissing { key: redact::Key(at.key()).to_string() }
}

/// The store's words about a region error, or its kind when it has none: the rest of it may show keys.
fn describe(error: &kvproto::errorpb::Error) -> String {
    let kinds = [
        (error.not_leader.is_some(), "another replica leads"),
        (error.region_not_found.is_some(), "it is not there"),
        (error.key_not_in_region.is_some(), "a key lies outside"),
        (error.epoch_not_match.is_some(), "it has changed"),
        (error.server_is_busy.is_some(), "the store is busy"),
        (error.stale_command.is_some(), "the leader has changed"),
        (error.store_not_match.is_some(), "another store answers at this address"),
        (error.raft_entry_too_large.is_some(), "the write is too large"),
        (error.max_timestamp_not_synced.is_some(), "the leader is new and not ready"),
        (error.undetermined_result.is_some(), "the outcome is not known"),
        (error.disk_full.is_some(), "the disk is full"),
    ];
    match kinds.iter().find(|(is_set, _)| *is_set) {
        _ if !error.message.is_empty() => error.message.clone(),
        Some((_, kind)) => kind.to_string(),
        None => "it cannot serve the request".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use kvproto::{errorpb, metapb};

    use super::*;

    #[test]
    fn what_is_told_of_region_errors_shows_no_keys() {
        let key = Bytes::from("secret");
        let outside = errorpb::KeyNotInRegion { key: key.clone(), ..Default::default() };
        let current_regions = vec![metapb::Region { start_key: key, ..Default::default() }];
        let changed = errorpb::EpochNotMatch { current_regions };
        let outside = errorpb::Error { key_not_in_region: Some(outside), ..Default::default() };
        let changed = errorpb::Error { epoch_not_match: Some(changed), ..Default::default() };
        assert_eq!(describe(&outside), "a key lies outside");
        assert_eq!(describe(&changed), "it has changed");
        let worded = errorpb::Error { message: "peer 3 is gone".to_string(), ..outside };
        assert_eq!(describe(&worded), "peer 3 is gone");
    }
}
