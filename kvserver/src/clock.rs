//! The one place that reads clocks. Everything else is given the time.
//!
//! Leases and ticks use CLOCK_BOOTTIME, which also counts the time a machine was suspended: a leader that
//! wakes from sleep must know that its lease has passed. Expiry of raw values uses the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since boot, suspended time included. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

impl Now {
    /// This instant plus `ms` milliseconds.
    pub fn plus_ms(self, ms: u64) -> Now {
        Now(self.0 + ms * 1_000_000)
    }

    /// Nanoseconds from `earlier` to this instant; 0 when `earlier` is later.
    pub fn since(self, earlier: Now) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Reads CLOCK_BOOTTIME.
pub fn now() -> Now {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec for the call to fill in; the clock id exists on every Linux since 2.6.39.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut t) };
    assert_eq!(rc, 0, "CLOCK_BOOTTIME must be readable");
    Now(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// Seconds of the wall clock since 1970, for expiry of raw values and heartbeats.
pub fn unix_seconds() -> u64 {
    unix_millis() / 1_000
}

/// Milliseconds of the wall clock since 1970.
pub fn unix_millis() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "this file is the clock")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).map(|d| d.as_millis() as u64).unwrap_or(0)
}
