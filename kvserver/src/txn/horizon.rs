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

/// See the file's head.
#[derive(Debug, Default)]
pub struct Horizon {
    /// The newest timestamp that the oracle gave us.
    known: AtomicU64,
    /// When that was: nanoseconds of the clock that [`Timer::now`] reads.
    at_ns: AtomicU64,
}

impl Horizon {
    /// Notes an answer of the oracle.
    pub fn note(&self, ts: u64, timer: &dyn Timer) {
        if self.known.fetch_max(ts, Ordering::AcqRel) < ts {
            self.at_ns.store(timer.now().0, Ordering::Release);
        }
    }

    /// What the oracle's wall clock should show now, milliseconds; 0 when it was never asked.
    pub fn physical_ms(&self, timer: &dyn Timer) -> u64 {
        let known = self.known.load(Ordering::Acquire);
        if known == 0 {
            return 0;
        }
        let passed = timer.now().0.saturating_sub(self.at_ns.load(Ordering::Acquire));
        Timestamp::new(known).physical_ms() + passed / 1_000_000
    }

    /// True when the oracle need not be asked about a timestamp.
    pub fn covers(&self, ts: u64, timer: &dyn Timer) -> bool {
        if ts == u64::MAX || ts <= self.known.load(Ordering::Acquire) {
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
    }
}
