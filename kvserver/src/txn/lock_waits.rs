//! Who waits for which lock: requests of pessimistic transactions that found a key locked, until it is released.
//!
//! The waiters of a key stand in a line, the oldest transaction first. A release wakes the first of them. The others
//! stay until the next release, or for a short delay: then they all look again, since the one that was woken has
//! usually taken the lock and they now wait for somebody else, which the deadlock detector has to know. Whoever was
//! woken and ends without the lock lets the next one try at once ([`Turn`]); one that merely lost a race against a newer
//! version does not: its client comes back with a newer timestamp before the delay is over.
//!
//! Invariants: a waiter is in line, or woken, never both; a wake-up that nobody uses is passed on, also when the waiter's
//! future is dropped because its client hung up. No release is missed as long as the one who waits calls
//! [`LockWaits::wait`] while it still holds the latches under which it found the lock, because whoever releases a lock
//! holds them too, and calls [`LockWaits::released`] once the release is visible.
//!
//! Reads no clock: [`LockWaits::tick`] is told the time, at the latest at [`LockWaits::next_due`].

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::commands::Released;
use super::error::WaitEntry;
use crate::clock::Now;

#[cfg(test)]
mod tests;

/// A waiter looks again after so many milliseconds even if nobody woke it: its region may be led elsewhere by now.
pub const RECHECK_MS: u64 = 1_000;

impl Default for LockWaitOptions {
    fn default() -> LockWaitOptions {
        LockWaitOptions { wake_up_delay_ms: 20, waiters_max: 1 << 16 }
    }
}

/// Settings.
#[derive(Clone, Copy, Debug)]
pub struct LockWaitOptions {
    /// How long those behind the first stay in line after a release, in milliseconds.
    pub wake_up_delay_ms: u64,
    /// How many requests may wait.
    pub waiters_max: usize,
}

/// A wish to wait.
#[derive(Clone, Debug)]
pub struct Wait {
    /// Wire key that is locked.
    pub key: Bytes,
    /// Start timestamp of the transaction that waits.
    pub start_ts: u64,
    /// Start timestamp of the one that holds the lock.
    pub lock_ts: u64,
    /// When the request began to wait, here or for an earlier holder.
    pub since: Now,
    /// When it gives up.
    pub deadline: Now,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The lock was released, and it is this waiter's turn.
    Released,
    /// The lock may have passed to another transaction, or may be led elsewhere.
    Recheck,
    /// The deadline has passed.
    TimedOut,
}

/// A wait that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockWait {
    pub entry: WaitEntry,
    /// In milliseconds.
    pub waited_ms: u64,
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockWaitCounts {
    /// Waits that began.
    pub begun: u64,
    /// Wake-ups by a release.
    pub released: u64,
    /// Waits that passed their deadline.
    pub timed_out: u64,
}

/// See the file's head.
#[derive(Debug)]
pub struct LockWaits {
    options: LockWaitOptions,
    table: Mutex<Table>,
    /// Whoever calls [`LockWaits::tick`]: woken when that is due earlier than it knew.
    driver: AtomicWaker,
}

#[derive(Debug, Default)]
struct Table {
    last_ticket: u64,
    waiters: BTreeMap<u64, Waiter>,
    keys: BTreeMap<Bytes, Line>,
    due: BTreeSet<(Now, Due)>,
    counts: LockWaitCounts,
    /// Nobody may wait any more.
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    wait: Wait,
    /// When it is woken by the clock.
    due: Now,
    woken: Option<Wake>,
    waker: Option<Waker>,
}

/// The waiters of one key by start timestamp and ticket.
#[derive(Debug, Default)]
struct Line {
    waiting: BTreeSet<(u64, u64)>,
    /// When those who were not woken by a release look again.
    rest_due: Option<Now>,
}

/// What happens at an instant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Waiter(u64),
    Rest(Bytes),
}

impl Table {
    /// Takes a waiter out of its line.
    fn leave_line(&mut self, ticket: u64) {
        let Some(waiter) = self.waiters.get(&ticket) else { return };
        self.due.remove(&(waiter.due, Due::Waiter(ticket)));
        let Some(line) = self.keys.get_mut(&waiter.wait.key) else { return };
        line.waiting.remove(&(waiter.wait.start_ts, ticket));
        if line.waiting.is_empty() {
            if let Some(rest_due) = line.rest_due {
                self.due.remove(&(rest_due, Due::Rest(waiter.wait.key.clone())));
            }
            self.keys.remove(&waiter.wait.key);
        }
    }

    fn wake(&mut self, ticket: u64, why: Wake) -> Option<Waker> {
        self.leave_line(ticket);
        match why {
            Wake::Released => self.counts.released += 1,
            Wake::TimedOut => self.counts.timed_out += 1,
            Wake::Recheck => {}
        }
        let waiter = self.waiters.get_mut(&ticket)?;
        waiter.woken = Some(why);
        waiter.waker.take()
    }

    /// Wakes the first in the line of a key.
    fn wake_first(&mut self, key: &Bytes) -> Option<Waker> {
        let (_, ticket) = *self.keys.get(key)?.waiting.first()?;
        self.wake(ticket, Wake::Released)
    }

    /// Wakes the first, and has the others look again at `rest_due`.
    fn release(&mut self, key: &Bytes, rest_due: Now) -> Option<Waker> {
        let waker = self.wake_first(key);
        if let Some(line) = self.keys.get_mut(key)
            && line.rest_due.is_none()
        {
            line.rest_due = Some(rest_due);
            self.due.insert((rest_due, Due::Rest(key.clone())));
        }
        waker
    }

    fn wake_rest(&mut self, key: &Bytes, wakers: &mut Vec<Waker>) {
        let waiting = self.keys.get(key).map(|line| line.waiting.clone()).unwrap_or_default();
        wakers.extend(waiting.into_iter().filter_map(|(_, ticket)| self.wake(ticket, Wake::Recheck)));
    }

    /// A waiter's future is gone. Another one may have to be woken in its place.
    fn abandon(&mut self, ticket: u64) -> Option<Waker> {
        self.leave_line(ticket);
        let waiter = self.waiters.remove(&ticket)?;
        match waiter.woken {
            Some(Wake::Released) => self.wake_first(&waiter.wait.key),
            _ => None,
        }
    }
}

impl LockWaits {
    /// A table in which nobody waits.
    pub fn new(options: LockWaitOptions) -> Arc<LockWaits> {
        Arc::new(LockWaits { options, table: Mutex::default(), driver: AtomicWaker::new() })
    }

    /// Gets in line. The caller holds the latches under which it found the lock, and lets go of them before it awaits
    /// the future. `None` when too many wait already, or nobody may: then the request ends like one that has waited in vain.
    pub fn wait(self: &Arc<Self>, wait: Wait, now: Now) -> Option<Waiting> {
        let mut table = self.table.lock();
        if table.closed || table.waiters.len() >= self.options.waiters_max {
            return None;
        }
        table.last_ticket += 1;
        table.counts.begun += 1;
        let ticket = table.last_ticket;
        let due = wait.deadline.min(now.plus_ms(RECHECK_MS));
        table.due.insert((due, Due::Waiter(ticket)));
        table.keys.entry(wait.key.clone()).or_default().waiting.insert((wait.start_ts, ticket));
        table.waiters.insert(ticket, Waiter { wait, due, woken: None, waker: None });
        drop(table);
        self.driver.wake();
        Some(Waiting { waits: self.clone(), ticket })
    }

    /// Wakes those whose turn it is now that these locks are gone.
    pub fn released(&self, released: &[Released], now: Now) {
        if released.is_empty() {
            return;
        }
        let mut table = self.table.lock();
        if table.keys.is_empty() {
            return;
        }
        let rest_due = now.plus_ms(self.options.wake_up_delay_ms);
        let wakers: Vec<Waker> = released.iter().filter_map(|r| table.release(&r.key, rest_due)).collect();
        drop(table);
        self.driver.wake();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes those whose time has come.
    pub fn tick(&self, now: Now) {
        let mut wakers = Vec::new();
        let mut table = self.table.lock();
        while let Some((at, due)) = table.due.first().cloned().filter(|(at, _)| *at <= now) {
            table.due.remove(&(at, due.clone()));
            match due {
                Due::Rest(key) => table.wake_rest(&key, &mut wakers),
                Due::Waiter(ticket) => {
                    let deadline = table.waiters.get(&ticket).map(|waiter| waiter.wait.deadline);
                    let in_time = deadline.is_some_and(|deadline| now < deadline);
                    let why = if in_time { Wake::Recheck } else { Wake::TimedOut };
                    wakers.extend(table.wake(ticket, why));
                }
            }
        }
        drop(table);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ends all waits as if their time was up, and lets nobody wait any more.
    pub fn close(&self) {
        self.table.lock().closed = true;
        self.tick(Now(u64::MAX));
    }

    /// When [`LockWaits::tick`] has something to do; `None` while nobody waits.
    pub fn next_due(&self) -> Option<Now> {
        self.table.lock().due.first().map(|(at, _)| *at)
    }

    /// Ready when [`LockWaits::tick`] is due before `known`. For the one who calls it.
    pub async fn due_before(&self, known: Option<Now>) {
        std::future::poll_fn(|cx| {
            self.driver.register(cx.waker());
            let earlier = match (self.next_due(), known) {
                (Some(due), Some(known)) => due < known,
                (due, None) => due.is_some(),
                (None, Some(_)) => false,
            };
            if earlier { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Everybody in line, by key and age.
    pub fn waiting(&self, now: Now) -> Vec<LockWait> {
        let table = self.table.lock();
        let lines = table.keys.values().flat_map(|line| &line.waiting);
        let describe = |waiter: &Waiter| {
            let Wait { key, start_ts, lock_ts, since, .. } = waiter.wait.clone();
            let entry = WaitEntry { txn: start_ts, wait_for: lock_ts, key };
            LockWait { entry, waited_ms: now.since(since) / 1_000_000 }
        };
        lines.filter_map(|(_, ticket)| table.waiters.get(ticket).map(describe)).collect()
    }

    /// Number of requests that wait or were just woken.
    pub fn len(&self) -> usize {
        self.table.lock().waiters.len()
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn counts(&self) -> LockWaitCounts {
        self.table.lock().counts
    }

    fn pass_on(&self, key: &Bytes) {
        let waker = self.table.lock().wake_first(key);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// A place in line; becomes [`Woken`]. Dropping it leaves the line.
#[derive(Debug)]
pub struct Waiting {
    waits: Arc<LockWaits>,
    ticket: u64,
}

impl Future for Waiting {
    type Output = Woken;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Woken> {
        let mut table = self.waits.table.lock();
        let Some(waiter) = table.waiters.get_mut(&self.ticket) else {
            // It has been woken before; there is nobody who could wake it again.
            return Poll::Pending;
        };
        let Some(why) = waiter.woken else {
            waiter.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let waiter = table.waiters.remove(&self.ticket);
        let key = waiter.map(|waiter| waiter.wait.key).filter(|_| why == Wake::Released);
        Poll::Ready(Woken { why, turn: Turn { waits: self.waits.clone(), key } })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waker = self.waits.table.lock().abandon(self.ticket);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// The end of a wait.
#[derive(Debug)]
pub struct Woken {
    pub why: Wake,
    /// To be kept until the request is answered or waits again.
    pub turn: Turn,
}

/// The duty of a woken waiter: dropped, it lets the next one try.
#[derive(Debug)]
pub struct Turn {
    waits: Arc<LockWaits>,
    key: Option<Bytes>,
}

impl Turn {
    /// Whether the waiter was woken because this key was released.
    pub fn is_for(&self, key: &Bytes) -> bool {
        self.key.as_ref() == Some(key)
    }

    /// Nobody else need be woken: the waiter has the lock, or waits for whoever has it, or its client comes back at
    /// once with a newer timestamp.
    pub fn settled(mut self) {
        self.key = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.waits.pass_on(&key);
        }
    }
}
