//! How long to wait before an attempt: exponential growth between two bounds, with jitter handed in by the
//! caller, so that the rule itself is a pure function.

use std::time::Duration;

/// Bounds of an exponential backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay, before jitter.
    pub base: Duration,
    /// The largest delay, before jitter.
    pub cap: Duration,
}

impl Backoff {
    /// A backoff between two numbers of milliseconds.
    pub const fn from_millis(base: u64, cap: u64) -> Backoff {
        Backoff { base: Duration::from_millis(base), cap: Duration::from_millis(cap) }
    }

    /// The delay before attempt `attempt + 1` (0 after the first failure): doubled with every attempt, and
    /// between one half and the whole of that depending on `jitter`.
    pub fn delay(&self, attempt: u32, jitter: u32) -> Duration {
        let full = self.base.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(self.cap);
        let nanos = u64::try_from(full.as_nanos()).unwrap_or(u64::MAX);
        let part = (u128::from(nanos / 2) * u128::from(jitter)) >> 32;
        Duration::from_nanos(nanos / 2 + part as u64)
    }
}

/// A cheap source of jitter (xorshift). Not for anything that must be hard to guess.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// A source that yields the same values for the same seed.
    pub fn new(seed: u64) -> Jitter {
        // Zero is the one state that xorshift never leaves.
        Jitter(seed | 1)
    }

    /// A source seeded by the process's own randomness.
    pub fn from_process() -> Jitter {
        use std::hash::BuildHasher;
        Jitter::new(std::hash::RandomState::new().hash_one(0u8))
    }

    /// The next value, uniform over all of `u32`.
    pub fn draw(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_jitter_halves_at_most() {
        let backoff = Backoff::from_millis(2, 100);
        let most: Vec<u128> = (0..8).map(|n| backoff.delay(n, u32::MAX).as_micros()).collect();
        assert_eq!(most, [1999, 3999, 7999, 15999, 31999, 63999, 99999, 99999]);
        assert_eq!(backoff.delay(0, 0), Duration::from_millis(1));
        assert_eq!(backoff.delay(1000, 0), Duration::from_millis(50));
    }

    #[test]
    fn jitter_is_reproducible_and_spread() {
        let (mut a, mut b) = (Jitter::new(7), Jitter::new(7));
        let values: Vec<u32> = (0..64).map(|_| a.draw()).collect();
        assert!(values.iter().all(|v| *v == b.draw()));
        assert!(values.iter().any(|v| *v < u32::MAX / 4) && values.iter().any(|v| *v > u32::MAX / 4 * 3));
    }
}
