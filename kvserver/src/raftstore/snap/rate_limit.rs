//! A limit on bytes per second that reads no clock.
//!
//! Owns one instant: when everything taken so far would have been moved at the permitted rate. Taking bytes
//! moves it on; how far it lies ahead of now is how long the caller has to wait.

use crate::clock::Now;

const SECOND_NS: u64 = 1_000_000_000;
/// Unused time that is not lost: after a pause, bytes for this long may go at once.
const BURST_NS: u64 = SECOND_NS / 10;

/// Bytes per second, shared by all who take from it.
#[derive(Debug)]
pub(super) struct RateLimit {
    /// 0 is no limit.
    bytes_per_second: u64,
    paid_until: u64,
}

impl RateLimit {
    pub(super) fn new(bytes_per_second: u64) -> RateLimit {
        RateLimit { bytes_per_second, paid_until: 0 }
    }

    /// Takes `bytes`; returns the nanoseconds to wait before moving them.
    pub(super) fn take(&mut self, bytes: u64, now: Now) -> u64 {
        if self.bytes_per_second == 0 {
            return 0;
        }
        let cost = u128::from(bytes) * u128::from(SECOND_NS) / u128::from(self.bytes_per_second);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        let from = self.paid_until.max(now.0.saturating_sub(BURST_NS));
        self.paid_until = from.saturating_add(cost);
        self.paid_until.saturating_sub(now.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_time_whatever_the_pieces() {
        for piece in [1, 1000, 64_000] {
            let mut limit = RateLimit::new(1_000_000);
            let mut now = Now(5 * SECOND_NS);
            let mut moved = 0;
            while moved < 3_000_000 {
                now.0 += limit.take(piece, now);
                moved += piece;
            }
            let seconds = (now.0 - 5 * SECOND_NS) as f64 / SECOND_NS as f64;
            // The burst at the start is free.
            let expected = moved as f64 / 1e6 - 0.1;
            assert!((seconds - expected).abs() < 0.01, "{piece}: {seconds} s, not {expected} s");
        }
    }

    #[test]
    fn a_pause_saves_no_more_than_the_burst() {
        let mut limit = RateLimit::new(1000);
        assert_eq!(limit.take(100, Now(SECOND_NS)), 0);
        assert_eq!(limit.take(100, Now(100 * SECOND_NS)), 0);
        assert_eq!(limit.take(1000, Now(100 * SECOND_NS)), SECOND_NS);
    }

    #[test]
    fn zero_is_no_limit() {
        assert_eq!(RateLimit::new(0).take(u64::MAX, Now(0)), 0);
    }
}
