//! Runs transactional commands and reads: takes latches, a snapshot, lets the command decide, replicates what it wrote,
//! and wakes those who waited for its locks.
//!
//! Asynchronous over traits ([`Storage`], [`Oracle`], [`Timer`], [`Offload`]) and bound to no runtime: the simulator
//! drives the same code. A command that reads only what is in memory is decided in the caller's task; the rest goes
//! to the read pool.
//!
//! Invariants: latches are held from before the snapshot until the write is visible or has failed (INV-LATCH); they
//! travel with the write's callback, so that a client that hangs up changes nothing. A write is good in the term of
//! its snapshot only. A read raises the largest timestamp first, then looks for memory locks, then takes its snapshot
//! (INV-MAXTS, see `max_ts`).

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{Either, select};
use kvproto::kvrpcpb::ApiVersion;
use kvproto::ts::Timestamp;

use super::commands::{Command, Cx, Done};
use super::deadlock::Detector;
use super::edge::{Oracle, Timer};
use super::error::{LockInfo, TxnError, TxnResult, WaitEntry};
use super::horizon::Horizon;
use super::key_check::TxnKeyCheck;
use super::latches::{Guard, Latches};
use super::lock_waits::{LockWait, LockWaitCounts, LockWaitOptions, LockWaits, Turn, Wait, Wake};
use super::max_ts::MaxTs;
use super::mvcc::Reader;
use super::range::in_region;
use super::raw::Offload;
use crate::clock::Now;
use crate::engine::{EngineError, ReadTier};
use crate::error::RegionError;
use crate::raftstore::message::Callback;
use crate::safe_points::SafePoints;
use crate::storage::{self, RegionContext, RegionSnapshot, Storage};

/// Slots of the latch table.
const LATCH_SLOTS: usize = 4096;
/// Up to so many keys a command is decided in the caller's task if all it needs is in memory.
const INLINE_KEYS: usize = 256;
/// The number of keys of a walk: it may pass by any number before it finds one, so it is done in the read pool.
pub(super) const UNBOUNDED: usize = usize::MAX;
/// Pause before the oracle is asked again, and how long a prewrite waits for it, milliseconds.
const ORACLE_PAUSE_MS: u64 = 50;
const ORACLE_PATIENCE_MS: u64 = 1_500;

/// What every transactional request says about itself.
#[derive(Clone, Copy, Debug)]
pub struct TxnCall {
    pub ctx: RegionContext,
    /// The API version the client speaks.
    pub api: ApiVersion,
}

/// What the runner stands on.
pub struct TxnParts {
    pub storage: Arc<dyn Storage>,
    pub pool: Arc<dyn Offload>,
    pub oracle: Arc<dyn Oracle>,
    pub timer: Arc<dyn Timer>,
    pub detector: Arc<dyn Detector>,
    /// How those who wait for locks are woken.
    pub waits: LockWaitOptions,
    /// Below which nobody may read or begin to write.
    pub safe_points: Arc<SafePoints>,
    /// Bytes that one write may have.
    pub write_bytes_max: usize,
}

/// A request that may wait for locks.
struct Patience {
    start_ts: u64,
    since: Now,
    deadline: Now,
    /// It was woken for a key, and has to see to it that the next one is when it cannot use that.
    turn: Option<Turn>,
}

impl Patience {
    fn settle(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.settled();
        }
    }
}

/// What the detector knows of one wait; it is told when the wait ends, however it does.
struct Edge<'a> {
    detector: &'a dyn Detector,
    entry: WaitEntry,
}

impl Drop for Edge<'_> {
    fn drop(&mut self) {
        self.detector.done(self.entry.clone());
    }
}

/// Transactions of one store. See the file's head.
pub struct Txn {
    pub(super) storage: Arc<dyn Storage>,
    pool: Arc<dyn Offload>,
    pub(super) oracle: Arc<dyn Oracle>,
    pub(super) timer: Arc<dyn Timer>,
    latches: Arc<Latches>,
    pub(super) max_ts: Arc<MaxTs>,
    pub(super) horizon: Horizon,
    pub(super) detector: Arc<dyn Detector>,
    pub(super) waits: Arc<LockWaits>,
    safe_points: Arc<SafePoints>,
    keys: TxnKeyCheck,
    write_bytes_max: usize,
}

impl Txn {
    pub fn new(parts: TxnParts) -> Txn {
        let TxnParts { storage, pool, oracle, timer, detector, waits, safe_points, write_bytes_max } = parts;
        let waits = LockWaits::new(waits);
        let keys = TxnKeyCheck { cluster: storage.api() };
        let (latches, max_ts) = (Latches::new(LATCH_SLOTS), Arc::default());
        let horizon = Horizon::default();
        Txn {
            storage,
            pool,
            oracle,
            timer,
            latches,
            max_ts,
            horizon,
            detector,
            waits,
            safe_points,
            keys,
            write_bytes_max,
        }
    }

    /// The rules for keys of this cluster.
    pub fn keys(&self) -> TxnKeyCheck {
        self.keys
    }

    /// What readers have seen.
    pub fn max_ts(&self) -> &Arc<MaxTs> {
        &self.max_ts
    }

    /// Carries a command out.
    pub async fn run<C: Command>(&self, call: &TxnCall, command: C) -> TxnResult<C::Answer> {
        let keys = self.check(call, &command).await?;
        self.execute(call, command, keys).await
    }

    /// Carries out a command on keys that were found in the region: whose they are is not asked.
    pub(super) async fn run_found<C: Command>(&self, call: &TxnCall, command: C) -> TxnResult<C::Answer> {
        self.horizon.check(command.newest_ts(), &*self.oracle, &*self.timer).await?;
        let keys = command.keys();
        self.execute(call, command, keys).await
    }

    async fn execute<C: Command>(
        &self,
        call: &TxnCall,
        command: C,
        keys: Vec<Bytes>,
    ) -> TxnResult<C::Answer> {
        let guard = self.latches.acquire(keys.iter().map(|key| &key[..])).await;
        let command = Arc::new(command);
        let (guard, decided) = self.decide(call, &keys, &command, guard).await;
        let (at, done) = decided?;
        self.write(call, &at, done, guard).await
    }

    /// What can be said about a command before anything is read. Gives its keys.
    pub(super) async fn check<C: Command>(&self, call: &TxnCall, command: &C) -> TxnResult<Vec<Bytes>> {
        self.keys.api(call.api)?;
        let keys = command.keys();
        for key in &keys {
            self.keys.key(call.api, key)?;
        }
        command.check_named(&|key| Ok(self.keys.key(call.api, key)?))?;
        self.safe_points.check(command.begins_at())?;
        self.horizon.check(command.newest_ts(), &*self.oracle, &*self.timer).await?;
        Ok(keys)
    }

    /// Takes a snapshot and lets the command decide. `guard` has its latches; they stay with the decision wherever that
    /// is made, even when the client hangs up meanwhile, and come back with it. `None` when nothing was decided.
    pub(super) async fn decide<C: Command>(
        &self,
        call: &TxnCall,
        keys: &[Bytes],
        command: &Arc<C>,
        guard: Guard,
    ) -> (Option<Guard>, TxnResult<(RegionSnapshot, Done<C::Answer>)>) {
        let at = match self.snapshot_for(call, keys, &**command).await {
            Ok(at) => at,
            Err(error) => return (Some(guard), Err(error)),
        };
        let begins_at = command.begins_at();
        let (max_ts, command) = (self.max_ts.clone(), command.clone());
        let process = move |at: &RegionSnapshot, tier| {
            let mut cx = Cx { reader: Reader::new(&at.snapshot, tier), max_ts: &max_ts };
            command.process(&mut cx)
        };
        let (guard, done) = self.read_holding(at.clone(), keys.len(), guard, process).await;
        let done = self.unless_too_old(begins_at, done).and_then(|done| match done.write.bytes() {
            bytes if bytes > self.write_bytes_max => {
                let (region_id, bytes) = (call.ctx.region_id, bytes as u64);
                Err(RegionError::RaftEntryTooLarge { region_id, bytes }.into())
            }
            _ => Ok((at, done)),
        });
        (guard, done)
    }

    /// The snapshot that a command decides on.
    async fn snapshot_for<C: Command>(
        &self,
        call: &TxnCall,
        keys: &[Bytes],
        command: &C,
    ) -> TxnResult<RegionSnapshot> {
        let at = storage::snapshot(&*self.storage, &call.ctx).await?;
        for key in keys {
            in_region(&at.region, key)?;
        }
        if command.needs_synced_max_ts() {
            self.sync_max_ts(&at).await?;
        }
        Ok(at)
    }

    /// Replicates what a command decided, and answers when it is visible.
    pub(super) async fn write<A>(
        &self,
        call: &TxnCall,
        at: &RegionSnapshot,
        done: Done<A>,
        guard: Option<Guard>,
    ) -> TxnResult<A> {
        let Done { write, answer, released, memory } = done;
        if write.is_empty() {
            return Ok(answer);
        }
        let (told, outcome) = storage::callback();
        let (waits, timer) = (self.waits.clone(), self.timer.clone());
        let callback = Callback::new(move |result| {
            if let Err(RegionError::Undetermined(reason)) = &result {
                // Another leader may have it. The next snapshot here needs a leader that has applied everything earlier
                // terms could commit, so it sees the write or its absence.
                tracing::info!(reason, "a transactional write ended without a known outcome");
            }
            drop(memory);
            drop(guard);
            // Waiters look again whatever became of the write: they find out themselves.
            waits.released(&released, timer.now());
            told.call(result);
        });
        let ctx = RegionContext { term: at.term, ..call.ctx };
        self.storage.write(&ctx, write, callback);
        outcome.await?;
        Ok(answer)
    }

    /// Carries out a command of transaction `start_ts` that waits up to `wait_ms` milliseconds when it finds a key
    /// locked. Then the error names the lock.
    pub async fn run_waiting<C: Command>(
        &self,
        call: &TxnCall,
        command: C,
        start_ts: u64,
        wait_ms: u64,
    ) -> TxnResult<C::Answer> {
        let keys = self.check(call, &command).await?;
        let command = Arc::new(command);
        let since = self.timer.now();
        let mut patience = Patience { start_ts, since, deadline: since.plus_ms(wait_ms), turn: None };
        loop {
            let guard = self.latches.acquire(keys.iter().map(|key| &key[..])).await;
            let (guard, decided) = self.decide(call, &keys, &command, guard).await;
            let error = match decided {
                Ok((at, done)) => {
                    let answer = self.write(call, &at, done, guard).await?;
                    patience.settle();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let locked = match error {
                TxnError::Locked(locked) => locked,
                TxnError::Conflict(_) => {
                    patience.settle();
                    return Err(error);
                }
                _ => return Err(error),
            };
            if !self.wait_for(&locked, &mut patience, guard).await? {
                return Err(TxnError::Locked(locked));
            }
        }
    }

    /// Waits until it is worth looking again; false when it is not any more. `guard` has the latches under which the
    /// lock was found.
    async fn wait_for(
        &self,
        locked: &[LockInfo],
        patience: &mut Patience,
        guard: Option<Guard>,
    ) -> TxnResult<bool> {
        let now = self.timer.now();
        let Some(info) = locked.first().filter(|_| now < patience.deadline) else { return Ok(false) };
        let dies_ms = Timestamp::new(info.lock.start_ts).physical_ms().saturating_add(info.lock.ttl);
        if dies_ms < self.horizon.physical_ms(&*self.timer) {
            // Nobody will release it: the client has to clean up first.
            return Ok(false);
        }
        let (key, start_ts, lock_ts) = (info.key.clone(), patience.start_ts, info.lock.start_ts);
        let (since, deadline) = (patience.since, patience.deadline);
        let wait = Wait { key: key.clone(), start_ts, lock_ts, since, deadline };
        let waiting = self.waits.wait(wait, now);
        drop(guard);
        if patience.turn.as_ref().is_some_and(|turn| turn.is_for(&key)) {
            patience.settle();
        }
        patience.turn = None;
        let Some(waiting) = waiting else { return Ok(false) };
        let edge =
            Edge { detector: &*self.detector, entry: WaitEntry { txn: start_ts, wait_for: lock_ts, key } };
        let asked = self.detector.detect(edge.entry.clone()).then(|found| async move {
            match found {
                Some(deadlock) => deadlock,
                None => std::future::pending().await,
            }
        });
        match select(waiting, std::pin::pin!(asked)).await {
            Either::Left((woken, _)) => {
                patience.turn = Some(woken.turn);
                Ok(woken.why != Wake::TimedOut)
            }
            Either::Right((deadlock, _)) => Err(TxnError::Deadlock(Box::new(deadlock))),
        }
    }

    /// Wakes waiters when their time has come. Runs until it is dropped; whoever starts the runner runs this beside it.
    pub async fn drive_waits(&self) {
        loop {
            let due = self.waits.next_due();
            let sleep = async {
                match due {
                    Some(at) => {
                        let ms = at.since(self.timer.now()).div_ceil(1_000_000);
                        self.timer.sleep(ms).await
                    }
                    None => std::future::pending().await,
                }
            };
            select(std::pin::pin!(sleep), std::pin::pin!(self.waits.due_before(due))).await;
            self.waits.tick(self.timer.now());
        }
    }

    /// Requests that wait for locks here.
    pub fn waiting(&self) -> Vec<LockWait> {
        self.waits.waiting(self.timer.now())
    }

    /// How many requests wait for locks here, and what became of waits so far.
    pub fn wait_counts(&self) -> (usize, LockWaitCounts) {
        (self.waits.len(), self.waits.counts())
    }

    /// The store stops: nobody waits any longer. Requests that did are answered as if their time was up.
    pub fn end_waits(&self) {
        self.waits.close();
    }

    /// Waits until the largest timestamp covers what earlier leaders of the region have read.
    async fn sync_max_ts(&self, at: &RegionSnapshot) -> TxnResult<()> {
        let (region_id, version) = (at.region.region.id, at.region.version());
        if self.max_ts.is_synced(region_id, at.term, version) {
            return Ok(());
        }
        let deadline = self.timer.now().plus_ms(ORACLE_PATIENCE_MS);
        loop {
            match self.oracle.timestamp().await {
                Ok(ts) => {
                    self.horizon.note(ts, &*self.timer);
                    self.max_ts.note_synced(region_id, at.term, version, ts);
                    return Ok(());
                }
                Err(reason) if self.timer.now() >= deadline => {
                    return Err(RegionError::MaxTimestampNotSynced { region_id, reason }.into());
                }
                Err(_) => self.timer.sleep(ORACLE_PAUSE_MS).await,
            }
        }
    }

    /// What was read at `ts`, unless versions that count at `ts` may have been dropped meanwhile.
    pub(super) fn unless_too_old<T>(&self, ts: u64, read: TxnResult<T>) -> TxnResult<T> {
        self.safe_points.check(ts)?;
        read
    }

    /// What a read at `ts` of `keys` has to do before its snapshot: after this no transaction commits below `ts` on them
    /// without its lock being visible.
    pub(super) async fn before_read(&self, keys: &[Bytes], ts: u64) -> TxnResult<()> {
        self.horizon.check(ts, &*self.oracle, &*self.timer).await?;
        self.max_ts.raise(ts);
        for key in keys {
            while let Some(lock) = self.max_ts.blocking(key, ts) {
                lock.gone().await;
            }
        }
        Ok(())
    }

    /// The same for a range; an empty `end` is open.
    pub(super) async fn before_scan(&self, start: &[u8], end: &[u8], ts: u64) -> TxnResult<()> {
        self.horizon.check(ts, &*self.oracle, &*self.timer).await?;
        self.max_ts.raise(ts);
        while let Some(lock) = self.max_ts.blocking_in(start, end, ts) {
            lock.gone().await;
        }
        Ok(())
    }

    /// Runs `f` on a fresh snapshot; see [`Txn::read_at`].
    pub(super) async fn read<T, F>(&self, ctx: &RegionContext, keys: usize, f: F) -> TxnResult<T>
    where
        T: Send + 'static,
        F: Fn(&RegionSnapshot, ReadTier) -> TxnResult<T> + Send + 'static,
    {
        let at = storage::snapshot(&*self.storage, ctx).await?;
        self.read_at(at, keys, f).await
    }

    /// Runs `f` on a snapshot: here and from memory when it is about few keys and they are cached, else in the read
    /// pool.
    pub(super) async fn read_at<T, F>(&self, at: RegionSnapshot, keys: usize, f: F) -> TxnResult<T>
    where
        T: Send + 'static,
        F: Fn(&RegionSnapshot, ReadTier) -> TxnResult<T> + Send + 'static,
    {
        self.read_holding(at, keys, (), f).await.1
    }

    /// The same, with something that is held until `f` has ended, wherever that runs and whether or not anybody waits for
    /// it. It comes back with the result, unless there is none.
    async fn read_holding<T, F, G>(
        &self,
        at: RegionSnapshot,
        keys: usize,
        held: G,
        f: F,
    ) -> (Option<G>, TxnResult<T>)
    where
        T: Send + 'static,
        F: Fn(&RegionSnapshot, ReadTier) -> TxnResult<T> + Send + 'static,
        G: Send + 'static,
    {
        if keys <= INLINE_KEYS {
            match f(&at, ReadTier::Cache) {
                Err(TxnError::Engine(EngineError::NotCached)) => {}
                done => return (Some(held), done),
            }
        }
        let (tx, rx) = oneshot::channel();
        let accepted = self.pool.offload(Box::new(move || {
            // Nobody listens when the client hung up. What was decided goes before what is held for it.
            if !tx.is_canceled() {
                drop(tx.send((f(&at, ReadTier::All), held)));
            }
        }));
        if !accepted {
            let reason = "too many reads wait for the disk".into();
            return (None, Err(RegionError::ServerIsBusy { reason }.into()));
        }
        match rx.await {
            Ok((done, held)) => (Some(held), done),
            Err(_) => (None, Err(TxnError::Stopping)),
        }
    }
}

#[cfg(test)]
mod tests;
