//! Whether this process leads at this moment: a handle for everything that answers for the leader.
//!
//! Owns the deadline and the clock it is compared with. The clock is CLOCK_BOOTTIME, which also counts the time a
//! machine was suspended. A leadership that was given up never comes back: the next one is another handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Milliseconds since boot, suspended time included. Never goes back.
pub fn boot_ms() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec for the call to fill in; the clock id exists on every Linux since 2.6.39.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut t) };
    assert_eq!(rc, 0, "CLOCK_BOOTTIME must be readable");
    t.tv_sec as u64 * 1000 + t.tv_nsec as u64 / 1_000_000
}

/// When a lease ends, kept up to date by whoever renews it.
#[derive(Debug, Default)]
pub struct Deadline(AtomicU64);

impl Deadline {
    /// Takes note of a later end, in `boot_ms`.
    pub fn extend_to(&self, deadline_ms: u64) {
        self.0.fetch_max(deadline_ms, Ordering::SeqCst);
    }

    /// Milliseconds left.
    pub fn left_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst).saturating_sub(boot_ms())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Leadership {
    /// None: there is nobody else who could lead.
    deadline: Option<Arc<Deadline>>,
    given_up: AtomicBool,
}

impl Leadership {
    /// The leadership of a scheduler that is alone.
    pub fn unlimited() -> Leadership {
        Leadership { deadline: None, given_up: AtomicBool::new(false) }
    }

    /// A leadership that lasts as long as the lease.
    pub fn until(deadline: Arc<Deadline>) -> Leadership {
        Leadership { deadline: Some(deadline), given_up: AtomicBool::new(false) }
    }

    /// Whether this process leads now. What was done before a call that returns true was done as the leader.
    pub fn is_valid(&self) -> bool {
        !self.given_up.load(Ordering::SeqCst) && self.deadline.as_ref().is_none_or(|d| d.left_ms() > 0)
    }

    /// Stops leading.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leadership_ends_with_its_lease_or_when_it_is_given_up() {
        let deadline = Arc::new(Deadline::default());
        let leadership = Leadership::until(deadline.clone());
        assert!(!leadership.is_valid(), "no lease yet");
        deadline.extend_to(boot_ms() + 60_000);
        assert!(leadership.is_valid());
        leadership.give_up();
        deadline.extend_to(boot_ms() + 120_000);
        assert!(!leadership.is_valid(), "a renewal does not bring it back");
        assert!(Leadership::unlimited().is_valid());
    }
}
