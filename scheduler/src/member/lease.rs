//! How long a leader may lead: the arithmetic of its lease. Pure; time is an argument.
//!
//! etcd counts a lease from the moment it hears of it, which is after the request was sent. So a leader that counts
//! from the sending stops before etcd gives the lead away. A hundredth is left for clocks that differ in speed.
//!
//! INV-TSO rests on this: a timestamp that was taken while the lease held was taken before any other scheduler
//! could lead.

/// One part of so many is left for clocks that differ in speed.
const DRIFT: u64 = 100;

/// A lease in milliseconds of a clock that never goes back and counts suspended time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    ttl_ms: u64,
    deadline_ms: u64,
}

impl Lease {
    /// A lease that was asked for at `sent_at_ms` and granted for `ttl_ms`.
    pub fn granted(sent_at_ms: u64, ttl_ms: u64) -> Lease {
        Lease { ttl_ms, deadline_ms: sent_at_ms + ttl_ms.saturating_sub(ttl_ms / DRIFT + 1) }
    }

    /// The lease after a renewal that was sent at `sent_at_ms` and confirmed. A late confirmation of an early
    /// renewal takes nothing away.
    pub fn renewed(self, sent_at_ms: u64) -> Lease {
        let renewed = Lease::granted(sent_at_ms, self.ttl_ms);
        Lease { deadline_ms: self.deadline_ms.max(renewed.deadline_ms), ..self }
    }

    /// The first instant at which it does not hold any more.
    pub fn deadline_ms(self) -> u64 {
        self.deadline_ms
    }

    /// Milliseconds for which it still holds.
    pub fn left_ms(self, now_ms: u64) -> u64 {
        self.deadline_ms.saturating_sub(now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lease_counts_from_the_sending_and_ends_early() {
        let lease = Lease::granted(10_000, 2000);
        assert_eq!(lease.deadline_ms(), 10_000 + 2000 - 21);
        assert_eq!((lease.left_ms(10_000), lease.left_ms(11_978), lease.left_ms(11_979)), (1979, 1, 0));
        assert_eq!(lease.left_ms(u64::MAX), 0);
    }

    #[test]
    fn renewals_count_from_their_own_sending() {
        let lease = Lease::granted(10_000, 2000).renewed(10_500);
        assert_eq!(lease.deadline_ms(), 10_500 + 1979);
        assert_eq!(lease.renewed(10_100), lease, "an earlier one that is confirmed late");
    }

    #[test]
    fn a_lease_of_nothing_never_holds() {
        for ttl in [0, 1] {
            assert_eq!(Lease::granted(5, ttl).left_ms(5), 0, "{ttl}");
        }
    }

    proptest! {
        /// However long messages travel, and with a local clock that is up to one per cent slow, the holder stops
        /// before the granter gives the lease to somebody else.
        #[test]
        fn the_holder_stops_before_the_granter_lets_go(
            ttl in 100u64..60_000,
            renewals in prop::collection::vec((0u64..500, 0u64..3000), 0..20),
            slowness in 0u64..=99,
        ) {
            // In microseconds of true time; the local clock shows (10_000 - slowness) / 10_000 of it.
            let local_ms = |true_us: u64| true_us * (10_000 - slowness) / 10_000 / 1000;
            let mut sent_us = 1_000_000;
            let mut lease = Lease::granted(local_ms(sent_us), ttl);
            // The granter hears at once, which is the worst case.
            let mut let_go_us = sent_us + ttl * 1000;
            for (pause_ms, travel_ms) in renewals {
                sent_us += pause_ms * 1000;
                if sent_us >= let_go_us {
                    break;
                }
                let_go_us = sent_us + ttl * 1000;
                lease = lease.renewed(local_ms(sent_us));
                sent_us += travel_ms * 1000;
            }
            prop_assert_eq!(lease.left_ms(local_ms(let_go_us)), 0);
        }
    }
}
