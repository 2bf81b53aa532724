//! The clock of one store: true time with an offset and a rate of its own. Machines stay up when a process
//! crashes, so the clock goes on across restarts of the store.

use kvserver::clock::Now;

/// See the file's head. The rate is constant, in parts per million above that of true time.
#[derive(Clone, Copy, Debug)]
pub struct StoreClock {
    pub offset_ns: u64,
    pub drift_ppm: i64,
}

const MILLION: i128 = 1_000_000;

impl StoreClock {
    /// What the clock shows at the true time `at_ns`.
    pub fn read(&self, at_ns: u64) -> Now {
        let elapsed = i128::from(at_ns) * (MILLION + i128::from(self.drift_ppm)) / MILLION;
        Now(self.offset_ns + elapsed as u64)
    }

    /// The first true time at which the clock shows at least `shown`.
    pub fn when(&self, shown: Now) -> u64 {
        let elapsed = i128::from(shown.0.saturating_sub(self.offset_ns));
        let rate = MILLION + i128::from(self.drift_ppm);
        ((elapsed * MILLION + rate - 1) / rate) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_shows_an_instant_exactly_when_it_says_so() {
        for drift_ppm in [-600_000, -10_000, 0, 10_000] {
            let clock = StoreClock { offset_ns: 777, drift_ppm };
            for shown in [777, 778, 1_000_003, 123_456_789_012] {
                let at = clock.when(Now(shown));
                assert!(clock.read(at) >= Now(shown), "{drift_ppm} {shown}");
                assert!(at == 0 || clock.read(at - 1) < Now(shown), "{drift_ppm} {shown}");
            }
        }
    }
}
