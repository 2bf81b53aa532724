//! The timestamp oracle: a hybrid clock of milliseconds and an 18-bit counter.
//!
//! Owns the last timestamp handed out and the durable bound. INV-TSO: a timestamp is handed out once, is greater
//! than every earlier one, and its physical part is below the durable bound. So after a restart the clock starts
//! at the saved bound, and nothing repeats. It reads no clock: wall and monotonic time are arguments.
//!
//! When the counter is full the physical part moves on by itself, at most once for each millisecond that really
//! passes, so a burst never carries the clock away from wall time.

use kvproto::pdpb;

/// Width of the counter.
pub const LOGICAL_BITS: u32 = 18;
/// The most timestamps one physical millisecond holds, and so the most one request may ask for.
pub const COUNT_MAX: u32 = 1 << LOGICAL_BITS;
/// How far ahead of the clock the durable bound is saved.
pub const WINDOW_MS: u64 = 5000;

/// The instants an allocation looks at, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// Unix time; may jump.
    pub wall_ms: u64,
    /// Never goes back.
    pub monotonic_ms: u64,
}

/// Why no timestamp can be handed out at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// Save this bound, tell the oracle with [`Oracle::saved`], then ask again.
    Save { bound_ms: u64 },
    /// The counter is full: ask again in a millisecond.
    Wait,
}

/// See the module.
#[derive(Debug)]
pub struct Oracle {
    physical_ms: u64,
    /// The next counter value.
    logical: u32,
    /// Exclusive bound of physical parts, durable.
    bound_ms: u64,
    /// When the physical part last moved on because the counter was full.
    moved_at_ms: u64,
    /// Whether anything was handed out since the bound was saved.
    is_used: bool,
}

impl Oracle {
    /// An oracle that continues above `saved_bound_ms` (0 in a new cluster).
    pub fn new(saved_bound_ms: u64) -> Oracle {
        Oracle {
            physical_ms: saved_bound_ms,
            logical: 0,
            bound_ms: saved_bound_ms,
            moved_at_ms: 0,
            is_used: false,
        }
    }

    /// Takes `count` (1 ..= `COUNT_MAX`) consecutive timestamps and returns the last one.
    pub fn allocate(&mut self, clocks: Clocks, count: u32) -> Result<pdpb::Timestamp, Blocked> {
        assert!((1..=COUNT_MAX).contains(&count), "count {count}");
        if clocks.wall_ms > self.physical_ms {
            (self.physical_ms, self.logical) = (clocks.wall_ms, 0);
        }
        let (mut physical_ms, mut logical) = (self.physical_ms, self.logical);
        let is_full = COUNT_MAX - logical < count;
        if is_full {
            if clocks.monotonic_ms <= self.moved_at_ms {
                return Err(Blocked::Wait);
            }
            (physical_ms, logical) = (physical_ms + 1, 0);
        }
        if physical_ms >= self.bound_ms {
            return Err(Blocked::Save { bound_ms: physical_ms + WINDOW_MS });
        }
        if is_full {
            self.moved_at_ms = clocks.monotonic_ms;
        }
        (self.physical_ms, self.logical) = (physical_ms, logical + count);
        self.is_used = true;
        assert!(self.physical_ms < self.bound_ms && self.logical <= COUNT_MAX);
        let (physical, logical) = (physical_ms as i64, i64::from(self.logical - 1));
        Ok(pdpb::Timestamp { physical, logical, suffix_bits: 0 })
    }

    /// The bound to save ahead of time, when half of the window is used up and the oracle is in use. An idle
    /// scheduler writes nothing.
    pub fn save_ahead(&self, wall_ms: u64) -> Option<u64> {
        let now_ms = wall_ms.max(self.physical_ms);
        let is_due = self.is_used && now_ms + WINDOW_MS / 2 >= self.bound_ms;
        is_due.then_some(now_ms + WINDOW_MS)
    }

    /// The durable bound.
    pub fn bound_ms(&self) -> u64 {
        self.bound_ms
    }

    /// Takes note that `bound_ms` is durable.
    pub fn saved(&mut self, bound_ms: u64) {
        assert!(bound_ms >= self.bound_ms, "the bound only grows: {} -> {bound_ms}", self.bound_ms);
        self.bound_ms = bound_ms;
        self.is_used = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Clocks {
        Clocks { wall_ms: ms, monotonic_ms: ms }
    }

    fn saved(bound_ms: u64) -> Oracle {
        let mut oracle = Oracle::new(0);
        oracle.saved(bound_ms);
        oracle
    }

    fn pair(ts: Result<pdpb::Timestamp, Blocked>) -> (i64, i64) {
        let ts = ts.unwrap();
        (ts.physical, ts.logical)
    }

    #[test]
    fn nothing_is_handed_out_before_a_bound_is_saved() {
        let mut oracle = Oracle::new(0);
        assert_eq!(oracle.allocate(at(100), 1), Err(Blocked::Save { bound_ms: 100 + WINDOW_MS }));
        oracle.saved(101);
        assert_eq!(pair(oracle.allocate(at(100), 1)), (100, 0));
        assert_eq!(oracle.allocate(at(101), 1), Err(Blocked::Save { bound_ms: 101 + WINDOW_MS }));
    }

    #[test]
    fn a_batch_is_answered_with_its_largest_counter() {
        let mut oracle = saved(1000);
        assert_eq!(pair(oracle.allocate(at(100), 10)), (100, 9));
        assert_eq!(pair(oracle.allocate(at(100), 5)), (100, 14));
        assert_eq!(pair(oracle.allocate(at(101), 1)), (101, 0));
    }

    #[test]
    fn a_clock_that_goes_back_is_not_followed() {
        let mut oracle = saved(1000);
        assert_eq!(pair(oracle.allocate(at(500), 1)), (500, 0));
        let back = Clocks { wall_ms: 100, monotonic_ms: 501 };
        assert_eq!(pair(oracle.allocate(back, 1)), (500, 1));
    }

    #[test]
    fn a_restart_continues_above_everything_handed_out() {
        let mut oracle = saved(1000);
        let last = pair(oracle.allocate(at(999), COUNT_MAX));
        let mut next = Oracle::new(oracle.bound_ms());
        assert!(matches!(next.allocate(at(500), 1), Err(Blocked::Save { .. })));
        next.saved(6000);
        assert!(pair(next.allocate(at(500), 1)) > last);
    }

    #[test]
    fn a_full_counter_moves_physical_once_a_real_millisecond() {
        let mut oracle = saved(1000);
        assert_eq!(pair(oracle.allocate(at(100), COUNT_MAX)), (100, i64::from(COUNT_MAX) - 1));
        assert_eq!(pair(oracle.allocate(at(100), COUNT_MAX)), (101, i64::from(COUNT_MAX) - 1));
        assert_eq!(oracle.allocate(at(100), 1), Err(Blocked::Wait));
        assert_eq!(pair(oracle.allocate(at(101), 1)), (102, 0));
    }

    #[test]
    fn only_a_used_oracle_saves_ahead() {
        let mut oracle = saved(1000);
        assert_eq!(oracle.save_ahead(900), None);
        oracle.allocate(at(900), 1).unwrap();
        assert_eq!(oracle.save_ahead(900), Some(900 + WINDOW_MS));
        oracle.saved(900 + WINDOW_MS);
        oracle.allocate(at(901), 1).unwrap();
        assert_eq!(oracle.save_ahead(901), None, "half of the window is left");
    }

    proptest! {
        /// Under jumping clocks, saves that come late and restarts, timestamps only grow and stay below the bound.
        #[test]
        fn timestamps_only_grow(steps in prop::collection::vec((0u64..9000, 0u64..3, 1u32..=COUNT_MAX, 0u8..10), 1..200)) {
            let (mut oracle, mut monotonic_ms) = (Oracle::new(0), 0);
            let (mut last, mut durable) = ((-1, -1), 0);
            for (wall_ms, passed, count, what) in steps {
                monotonic_ms += passed;
                if what == 0 {
                    oracle = Oracle::new(durable);
                }
                match oracle.allocate(Clocks { wall_ms, monotonic_ms }, count) {
                    Ok(ts) => {
                        let first = (ts.physical, ts.logical - i64::from(count) + 1);
                        prop_assert!(first > last && first.1 >= 0);
                        prop_assert!((ts.physical as u64) < durable);
                        last = (ts.physical, ts.logical);
                    }
                    Err(Blocked::Save { bound_ms }) => {
                        durable = bound_ms;
                        oracle.saved(bound_ms);
                    }
                    Err(Blocked::Wait) => {}
                }
            }
        }
    }
}
