//! How far the oracle has got: a timestamp beyond it was not handed out by it.
//!
//! One that comes from the future would do harm: a read at it would push transactions that choose their own commit
//! timestamp into the future, where readers with fresh timestamps do not see them. So the runner asks the oracle before
//! it trusts such a timestamp. Asking for every request would cost a hop, so the horizon moves on by the clock between
//! two answers, and some slack is allowed: an error of the oracle's clock is not the client's fault.

use std::sync::atomic::{AtomicU64, Ordering};

use kvproto::ts::Timestamp;

use super::edge::{Oracle, Timer};
use super::error::{TxnError, TxnResult};

/// How much later than expected a timestamp may be before the oracle is asked, milliseconds.
const SLACK_MS: u64 = 500;
/// The longest time that the horizon moves by the clock alone, milliseconds: the oracle's clock may stand still.
const ALONE_MS: u64 = 10_000;

/// See the file's head.
#[derive(Debug, Default)]
pub struct Horizon {
    /// The newest timestamp that the oracle gave us; 0 before the first.
    known: AtomicU64,
    /// Until when the clock is trusted, and what it is to be read as: milliseconds of the oracle's wall clock less those
    /// of [`Timer::now`]. Both are from one answer, and either is as good with the other of an earlier one.
    alone_until_ms: AtomicU64,
    ahead_ms: AtomicU64,
}

fn clock_ms(timer: &dyn Timer) -> u64 {
    timer.now().0 / 1_000_000
}

impl Horizon {
    /// Notes an answer of the oracle.
    pub fn note(&self, ts: u64, timer: &dyn Timer) {
        let now_ms = clock_ms(timer);
        let ahead_ms = Timestamp::new(ts).physical_ms().wrapping_sub(now_ms);
        // In this order: nobody trusts the clock before it is known how it is to be read.
        self.ahead_ms.store(ahead_ms, Ordering::SeqCst);
        self.alone_until_ms.fetch_max(now_ms + ALONE_MS, Ordering::SeqCst);
        self.known.fetch_max(ts, Ordering::SeqCst);
    }

    /// What the oracle's wall clock should show now, milliseconds; 0 when it was not asked lately.
    pub fn physical_ms(&self, timer: &dyn Timer) -> u64 {
        let now_ms = clock_ms(timer);
        if now_ms >= self.alone_until_ms.load(Ordering::SeqCst) {
            return 0;
        }
        now_ms.wrapping_add(self.ahead_ms.load(Ordering::SeqCst))
    }

    /// True when the oracle need not be asked about a timestamp.
    pub fn covers(&self, ts: u64, timer: &dyn Timer) -> bool {
        if ts == u64::MAX || ts <= self.known.load(Ordering::SeqCst) {
            return true;
        }
        let seen = self.physical_ms(timer);
        seen > 0 && Timestamp::new(ts).physical_ms() <= seen + SLACK_MS
    }

    /// Refuses a timestamp that the oracle has not handed out. [`u64::MAX`] means "the latest" and always passes.
    pub async fn check(&self, ts: u64, oracle: &dyn Oracle, timer: &dyn Timer) -> TxnResult<()> {
        if self.covers(ts, timer) {
            return Ok(());
        }
        let now = oracle.timestamp().await.map_err(|cause| {
            TxnError::Region(crate::error::RegionError::ServerIsBusy {
                reason: format!("no timestamp to compare with: {cause}"),
            })
        })?;
        self.note(now, timer);
        if ts > now {
            return Err(TxnError::FromTheFuture { ts, now });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;
    use crate::clock::Now;

    /// An oracle at a fixed timestamp, and a clock that stands still.
    struct At(u64, u64);

    impl Oracle for At {
        fn timestamp(&self) -> BoxFuture<'static, Result<u64, String>> {
            let answer = if self.0 == 0 { Err("nobody leads".into()) } else { Ok(self.0) };
            async move { answer }.boxed()
        }
    }

    impl Timer for At {
        fn now(&self) -> Now {
            Now(self.1 * 1_000_000)
        }

        fn sleep(&self, _ms: u64) -> BoxFuture<'static, ()> {
            std::future::ready(()).boxed()
        }
    }

    fn ts(ms: u64) -> u64 {
        Timestamp::compose(ms, 0).unwrap().get()
    }

    fn check(horizon: &Horizon, at: u64, edge: &At) -> TxnResult<()> {
        horizon.check(at, edge, edge).now_or_never().unwrap()
    }

    #[test]
    fn a_timestamp_beyond_the_oracle_is_refused_and_the_end_of_time_is_not() {
        let horizon = Horizon::default();
        let edge = At(ts(10_000), 1);
        assert!(check(&horizon, ts(9_999), &edge).is_ok());
        assert!(check(&horizon, u64::MAX, &edge).is_ok());
        let refused = check(&horizon, ts(60_000), &edge);
        assert!(
            matches!(refused, Err(TxnError::FromTheFuture { now, .. }) if now == ts(10_000)),
            "{refused:?}"
        );
    }

    #[test]
    fn the_horizon_moves_with_the_clock_so_that_the_oracle_is_rarely_asked() {
        let horizon = Horizon::default();
        horizon.note(ts(10_000), &At(0, 1));
        let silent = At(0, 5_001);
        assert_eq!(horizon.physical_ms(&silent), 15_000);
        assert!(check(&horizon, ts(15_400), &silent).is_ok());
        assert!(matches!(check(&horizon, ts(15_600), &silent), Err(TxnError::Region(_))));
        let later = At(0, 10_001);
        assert!(matches!(check(&horizon, ts(15_400), &later), Err(TxnError::Region(_))), "too long alone");
        assert!(check(&horizon, ts(10_000), &later).is_ok());
    }
}
