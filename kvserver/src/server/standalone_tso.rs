//! Timestamps of a standalone server.
//!
//! Invariant (INV-TSO): a timestamp is handed out once and is larger than all before it, across restarts too: it
//! lies below a bound that was made durable first, and a start goes on at the bound.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use kvproto::ts::{LOGICAL_MAX, Timestamp};
use tokio::sync::Mutex;

use crate::clock;
use crate::engine::{Cf, Engine, EngineError, WriteBatch, WriteOptions};
use crate::txn::edge::Oracle;

/// Where the bound is kept in [`Cf::Meta`]: a format version byte and milliseconds (u64, big-endian).
const BOUND_KEY: &[u8] = b"tso";
const FORMAT: u8 = 1;
/// How far ahead of the clock the bound is set, in milliseconds.
const WINDOW_MS: u64 = 5_000;
/// A new bound is saved when the old one is this close.
const MARGIN_MS: u64 = 1_000;

/// Why there is no timestamp.
#[derive(Debug, thiserror::Error)]
pub enum TsoError {
    #[error("{0} timestamps cannot be asked for at once: 1 to {LOGICAL_MAX} can")]
    Count(u32),
    #[error("the bound of timestamps cannot be saved: {0}")]
    Save(String),
}

/// The counter alone, without clock and disk.
#[derive(Debug)]
struct Counter {
    physical: u64,
    logical: u64,
    /// Durable; every timestamp lies below it.
    bound: u64,
}

impl Counter {
    /// Goes on where an earlier life must have ended.
    fn new(bound: u64) -> Counter {
        Counter { physical: bound, logical: 0, bound }
    }

    /// Takes the time and makes room for `count`; the bound to save first, if one is needed.
    fn prepare(&mut self, now_ms: u64, count: u64) -> Option<u64> {
        if now_ms > self.physical {
            (self.physical, self.logical) = (now_ms, 0);
        }
        if self.logical + count > LOGICAL_MAX {
            (self.physical, self.logical) = (self.physical + 1, 0);
        }
        (self.physical + MARGIN_MS >= self.bound).then_some(self.physical + WINDOW_MS)
    }

    /// The last of `count` timestamps. `prepare` was called and the bound it asked for is durable.
    fn take(&mut self, count: u64) -> Timestamp {
        assert!(self.physical < self.bound, "INV-TSO: the bound must be durable first");
        self.logical += count;
        Timestamp::compose(self.physical, self.logical).expect("the clock is before the year 4000")
    }
}

/// Hands out timestamps.
pub struct Tso {
    engine: Arc<dyn Engine>,
    counter: Mutex<Counter>,
}

impl Tso {
    /// Goes on after the bound that `engine` holds.
    pub fn load(engine: Arc<dyn Engine>) -> Result<Tso, EngineError> {
        let bound = match engine.get(Cf::Meta, BOUND_KEY)? {
            None => 0,
            Some(bytes) => match bytes.split_first() {
                Some((&FORMAT, bound)) if bound.len() == 8 => {
                    bound.iter().fold(0, |n, b| n << 8 | u64::from(*b))
                }
                _ => return Err(EngineError::Corrupt("the timestamp bound has an unknown format".into())),
            },
        };
        Ok(Tso { engine, counter: Mutex::new(Counter::new(bound)) })
    }

    /// The last of `count` new timestamps.
    pub async fn take(&self, count: u32) -> Result<Timestamp, TsoError> {
        if count == 0 || u64::from(count) > LOGICAL_MAX {
            return Err(TsoError::Count(count));
        }
        let mut counter = self.counter.lock().await;
        if let Some(bound) = counter.prepare(clock::unix_millis(), count.into()) {
            self.save(bound).await?;
            counter.bound = bound;
        }
        Ok(counter.take(count.into()))
    }

    async fn save(&self, bound: u64) -> Result<(), TsoError> {
        let engine = self.engine.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let mut batch = WriteBatch::new();
            let value = [&[FORMAT][..], &bound.to_be_bytes()].concat();
            batch.put(Cf::Meta, BOUND_KEY, value);
            engine.write(&batch, WriteOptions { sync: true, no_slowdown: false })
        });
        match saved.await {
            Ok(result) => result.map_err(|e| TsoError::Save(e.to_string())),
            Err(error) => Err(TsoError::Save(error.to_string())),
        }
    }
}

impl Oracle for Arc<Tso> {
    fn timestamp(&self) -> BoxFuture<'static, Result<u64, String>> {
        let tso = self.clone();
        async move { tso.take(1).await.map(Timestamp::get).map_err(|error| error.to_string()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::mem::MemEngine;

    fn take(counter: &mut Counter, now_ms: u64, count: u64) -> Timestamp {
        if let Some(bound) = counter.prepare(now_ms, count) {
            counter.bound = bound;
        }
        counter.take(count)
    }

    #[test]
    fn timestamps_grow_when_the_clock_stands_still_or_goes_back() {
        let mut counter = Counter::new(0);
        let a = take(&mut counter, 1_000, 5);
        assert_eq!((a.physical_ms(), a.logical()), (1_000, 5));
        let b = take(&mut counter, 900, 1);
        assert_eq!((b.physical_ms(), b.logical()), (1_000, 6));
        let c = take(&mut counter, 1_000, LOGICAL_MAX);
        assert_eq!((c.physical_ms(), c.logical()), (1_001, LOGICAL_MAX));
    }

    #[test]
    fn a_bound_is_asked_for_before_it_is_reached() {
        let mut counter = Counter::new(0);
        assert_eq!(counter.prepare(10_000, 1), Some(15_000));
        counter.bound = 15_000;
        assert_eq!(counter.prepare(13_999, 1), None);
        assert_eq!(counter.prepare(14_000, 1), Some(19_000));
    }

    #[tokio::test]
    async fn a_restart_goes_on_above_everything_handed_out() {
        let engine = Arc::new(MemEngine::new());
        let before = Tso::load(engine.clone()).unwrap().take(10).await.unwrap();
        engine.crash(0);
        let after = Tso::load(engine).unwrap().take(1).await.unwrap();
        assert!(after.physical_ms() > before.physical_ms(), "{before} {after}");
    }

    #[tokio::test]
    async fn none_and_too_many_are_refused() {
        let tso = Tso::load(Arc::new(MemEngine::new())).unwrap();
        assert!(tso.take(0).await.is_err() && tso.take(u32::MAX).await.is_err());
    }
}
