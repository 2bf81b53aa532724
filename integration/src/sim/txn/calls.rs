//! A client's requests: from keys to regions, from regions to stores, and again until there is an answer, with the SDK's
//! own region cache and its own decision about what follows a failure.

use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{Either, select};
use kvclient::Error;
use kvclient::region_cache::{Region, RegionCache};
use kvclient::request::retry::{Access, Attempt, Decision, Failure, Next, decide};
use kvproto::kvrpcpb as pb;
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use kvproto::{errorpb, metapb};

use super::port::{Effect, Heard, Port};
use crate::sim::plan::MS;
use crate::sim::rng::Rng;

/// A request gives up after so many times the patience for one attempt.
const ATTEMPTS: u64 = 10;
/// Before the scheduler is asked again, nanoseconds.
const ASK_AGAIN_NS: u64 = 50 * MS;

/// A request to one region, as all of them are sent.
pub trait Ask: Clone + Send {
    type Reply: Send;

    fn into_cmd(self, context: pb::Context) -> Cmd;

    /// The reply, unless it is of another kind.
    fn reply(answer: Answer) -> Option<Self::Reply>;

    fn region_error(reply: &mut Self::Reply) -> Option<errorpb::Error>;
}

macro_rules! asks {
    ($($variant:ident: $request:ident => $reply:ident),* $(,)?) => {
        $(impl Ask for pb::$request {
            type Reply = pb::$reply;

            fn into_cmd(mut self, context: pb::Context) -> Cmd {
                // What the request says about locks stays.
                let own = self.context.take().unwrap_or_default();
                let (resolved_locks, committed_locks) = (own.resolved_locks, own.committed_locks);
                self.context = Some(pb::Context { resolved_locks, committed_locks, ..context });
                Cmd::$variant(self)
            }

            fn reply(answer: Answer) -> Option<pb::$reply> {
                match answer {
                    Answer::$variant(reply) => Some(reply),
                    _ => None,
                }
            }

            fn region_error(reply: &mut pb::$reply) -> Option<errorpb::Error> {
                reply.region_error.take()
            }
        })*
    };
}

asks! {
    Get: GetRequest => GetResponse,
    BatchGet: BatchGetRequest => BatchGetResponse,
    Prewrite: PrewriteRequest => PrewriteResponse,
    Commit: CommitRequest => CommitResponse,
    BatchRollback: BatchRollbackRequest => BatchRollbackResponse,
    PessimisticLock: PessimisticLockRequest => PessimisticLockResponse,
    PessimisticRollback: PessimisticRollbackRequest => PessimisticRollbackResponse,
    CheckTxnStatus: CheckTxnStatusRequest => CheckTxnStatusResponse,
    CheckSecondaryLocks: CheckSecondaryLocksRequest => CheckSecondaryLocksResponse,
    ResolveLock: ResolveLockRequest => ResolveLockResponse,
    ScanLock: ScanLockRequest => ScanLockResponse,
    TxnHeartBeat: TxnHeartBeatRequest => TxnHeartBeatResponse,
}

/// How an attempt ended without an answer.
enum Failed {
    Region(Box<errorpb::Error>),
    NotSent,
    Broken,
    Silent,
}

/// Locks that a read may pass, by start timestamp of their transactions.
#[derive(Clone, Debug, Default)]
pub struct Passes {
    /// They are rolled back, or commit later than the read.
    pub over: Vec<u64>,
    /// They are committed before the read.
    pub committed: Vec<u64>,
}

/// One item that a request is about.
struct Item<T> {
    item: T,
    key: Bytes,
    /// An attempt of it may have been carried out.
    unknown: bool,
}

/// How one client sends requests.
pub struct Caller {
    pub port: Port,
    pub rng: Rng,
    pub cache: RegionCache,
    pub patience_ns: u64,
    pub stores: usize,
    /// Requests that were refused or lost.
    pub refused: u64,
    /// A request was answered of which another copy may still be carried out.
    pub has_late_copies: bool,
}

impl Caller {
    /// A fresh timestamp; asks until there is one.
    pub async fn timestamp(&mut self) -> u64 {
        loop {
            match self.port.timestamp().await {
                Some(ts) => return ts,
                None => self.port.sleep(ASK_AGAIN_NS).await,
            }
        }
    }

    /// The region of a key; asks until somebody knows.
    pub async fn region_of(&mut self, key: &Bytes) -> std::sync::Arc<Region> {
        loop {
            if let Some(view) = self.cache.lookup(key) {
                return view;
            }
            let (tx, rx) = oneshot::channel();
            self.port.leave(Effect::Locate(key.clone(), tx));
            match rx.await.ok().flatten() {
                Some(region) => drop(self.cache.insert(region)),
                None => self.port.sleep(ASK_AGAIN_NS).await,
            }
        }
    }

    /// Sends a request about each of `items`, those of one region together, until all are answered. `make` words the
    /// request about some of them, `on` takes the reply. An error says that the rest was not answered in time.
    pub async fn each<T: Clone, A: Ask, M>(
        &mut self,
        machine: &mut M,
        items: Vec<(Bytes, T)>,
        access: Access,
        make: impl Fn(&M, &[T]) -> A,
        mut on: impl FnMut(&mut M, &[T], A::Reply),
    ) -> Result<(), Error> {
        let deadline_ns = self.port.now().0 + ATTEMPTS * self.patience_ns;
        let fresh = |(key, item)| Item { item, key, unknown: false };
        let mut open: Vec<Item<T>> = items.into_iter().map(fresh).collect();
        let mut failures = 0;
        while !open.is_empty() {
            let first = self.rng.index(open.len());
            let view = self.region_of(&open[first].key.clone()).await;
            let (mut piece, rest): (Vec<_>, Vec<_>) =
                open.into_iter().partition(|item| view.contains(&item.key));
            open = rest;
            let of_piece: Vec<T> = piece.iter().map(|item| item.item.clone()).collect();
            let failed = match self.attempt(&view, make(machine, &of_piece)).await {
                Ok(reply) => {
                    self.has_late_copies |= piece.iter().any(|item| item.unknown);
                    on(machine, &of_piece, reply);
                    continue;
                }
                Err(failed) => failed,
            };
            let decision = self.after(&view, failed, access, failures, deadline_ns)?;
            failures += 1;
            piece.iter_mut().for_each(|item| item.unknown |= decision.unknown);
            open.append(&mut piece);
            match decision.next {
                Next::Now => self.port.sleep(MS / 10).await,
                Next::After(pause) => self.port.sleep(pause.as_nanos() as u64).await,
                Next::Undetermined | Next::Deadline | Next::Refused(_) => {
                    let unknown = open.iter().any(|item| item.unknown);
                    return Err(gives_up(unknown));
                }
            }
        }
        Ok(())
    }

    /// Sends a request about one key until it is answered.
    pub async fn one<A: Ask>(&mut self, key: Bytes, access: Access, ask: A) -> Result<A::Reply, Error> {
        let mut answer = None;
        let make = |_: &Option<A::Reply>, _: &[()]| ask.clone();
        self.each(&mut answer, vec![(key, ())], access, make, |answer, _, reply| *answer = Some(reply))
            .await?;
        answer.ok_or_else(|| Error::Protocol("no answer to what was answered".into()))
    }

    /// One attempt at one region.
    async fn attempt<A: Ask>(&mut self, view: &Region, ask: A) -> Result<A::Reply, Failed> {
        let astray = self.rng.chance(0.05);
        let target = view.target().filter(|_| !astray);
        let store = match target {
            Some(peer) => peer.store_id as usize - 1,
            None => self.rng.index(self.stores),
        };
        let region_epoch = Some(view.epoch);
        let context = pb::Context { region_id: view.id, region_epoch, peer: target, ..Default::default() };
        let (tx, rx) = oneshot::channel();
        let cmd = Box::new(ask.into_cmd(context));
        self.port.leave(Effect::Send { store, cmd, heard: tx });
        let silence = std::pin::pin!(self.port.sleep(self.patience_ns));
        let heard = match select(rx, silence).await {
            Either::Left((Ok(heard), _)) => heard,
            Either::Left((Err(_), silence)) => {
                silence.await;
                return Err(Failed::Silent);
            }
            Either::Right(_) => return Err(Failed::Silent),
        };
        match heard {
            Heard::NotSent => Err(Failed::NotSent),
            Heard::Broken | Heard::Answer(None) => Err(Failed::Broken),
            Heard::Answer(Some(answer)) => {
                // An answer of another kind is as good as none.
                let Some(mut reply) = A::reply(*answer) else { return Err(Failed::Broken) };
                match A::region_error(&mut reply) {
                    Some(error) => Err(Failed::Region(Box::new(error))),
                    None => Ok(reply),
                }
            }
        }
    }

    fn after(
        &mut self,
        view: &std::sync::Arc<Region>,
        failed: Failed,
        access: Access,
        number: u32,
        deadline_ns: u64,
    ) -> Result<Decision, Error> {
        let failure = match &failed {
            Failed::Region(error) => Failure::Region(error),
            Failed::NotSent => Failure::NotSent,
            Failed::Broken => Failure::Broken,
            Failed::Silent => Failure::Silent,
        };
        let left = Duration::from_nanos(deadline_ns.saturating_sub(self.port.now().0));
        let (epoch, jitter): (metapb::RegionEpoch, _) = (view.epoch, self.rng.draw() as u32);
        let decision = decide(failure, &Attempt { access, number, region_id: view.id, epoch, left, jitter });
        self.refused += 1;
        self.cache.update(view, decision.update.clone())?;
        Ok(decision)
    }
}

fn gives_up(unknown: bool) -> Error {
    let timeout = Error::Timeout { after: Duration::ZERO, last: None };
    if unknown { Error::Undetermined { cause: Box::new(timeout) } } else { timeout }
}
