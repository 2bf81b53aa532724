//! The clock of one store: it shows the time since its machine started, at a rate of its own.
//!
//! It goes on while the process is gone or the machine is suspended, and begins anew when the machine loses power.
//! It never jumps while the machine runs: that is outside of what a lease can survive.

use kvserver::clock::Now;

/// See the file's head. The rate is in parts per million above that of true time.
#[derive(Clone, Copy, Debug)]
pub struct StoreClock {
    /// What it showed at the true time `since_ns`.
    shown_ns: u64,
    since_ns: u64,
    drift_ppm: i64,
}

const MILLION: i128 = 1_000_000;

impl StoreClock {
    /// A clock that shows `shown_ns` at the true time 0.
    pub fn new(shown_ns: u64, drift_ppm: i64) -> StoreClock {
        StoreClock { shown_ns, since_ns: 0, drift_ppm }
    }

    /// What the clock shows at the true time `at_ns`, which is not before its last change.
    pub fn read(&self, at_ns: u64) -> Now {
        let elapsed = i128::from(at_ns.saturating_sub(self.since_ns)) * self.rate() / MILLION;
        Now(self.shown_ns + elapsed as u64)
    }

    /// The first true time at which the clock shows at least `shown`.
    pub fn when(&self, shown: Now) -> u64 {
        let elapsed = i128::from(shown.0.saturating_sub(self.shown_ns));
        self.since_ns + ((elapsed * MILLION + self.rate() - 1) / self.rate()) as u64
    }

    /// From the true time `at_ns` on the clock runs at another rate.
    pub fn set_drift(&mut self, at_ns: u64, drift_ppm: i64) {
        *self = StoreClock { shown_ns: self.read(at_ns).0, since_ns: at_ns, drift_ppm };
    }

    /// The machine starts at the true time `at_ns`, and the clock shows `shown_ns` then.
    pub fn restart(&mut self, at_ns: u64, shown_ns: u64) {
        *self = StoreClock { shown_ns, since_ns: at_ns, ..*self };
    }

    fn rate(&self) -> i128 {
        MILLION + i128::from(self.drift_ppm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_shows_an_instant_exactly_when_it_says_so() {
        for drift_ppm in [-600_000, -10_000, 0, 10_000] {
            let clock = StoreClock::new(777, drift_ppm);
            for shown in [777, 778, 1_000_003, 123_456_789_012] {
                let at = clock.when(Now(shown));
                assert!(clock.read(at) >= Now(shown), "{drift_ppm} {shown}");
                assert!(at == 0 || clock.read(at - 1) < Now(shown), "{drift_ppm} {shown}");
            }
        }
    }

    #[test]
    fn a_new_rate_changes_nothing_that_was_shown_and_a_restart_does() {
        let mut clock = StoreClock::new(1_000, 0);
        clock.set_drift(500, 10_000);
        assert_eq!((clock.read(500), clock.read(1_500)), (Now(1_500), Now(2_510)));
        clock.restart(2_000, 7);
        assert_eq!((clock.read(2_000), clock.read(3_000)), (Now(7), Now(1_017)));
        assert_eq!(clock.when(Now(1_017)), 3_000);
    }
}
