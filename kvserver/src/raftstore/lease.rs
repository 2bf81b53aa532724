//! How long a leader may serve reads without asking anybody.
//!
//! Owns the propose times of entries on their way and the lease they buy. Invariants (INV-LEASE): the lease
//! counts from the moment before an entry of the leader's own term, now committed, was sent, or from the moment
//! before a ReadIndex round that a quorum answered; it is shorter than the time in which the quorum's members
//! refuse to elect anyone else; a leader that asked another to take over gets no more of it in that term.

use std::collections::VecDeque;

use crate::clock::Now;

/// The lease of one leader's term.
#[derive(Debug)]
pub struct Lease {
    length_ns: u64,
    suspended: bool,
    paused: bool,
    until: Now,
    /// Last index of a group of proposals and the time before it was sent; ascending.
    sent: VecDeque<(u64, Now)>,
}

/// The longest safe lease: the shortest election timeout less two ticks for rounding on both sides, less one
/// per cent for clocks that run at different speeds.
pub fn length_ns(tick_ms: u64, election_ticks: u64) -> u64 {
    (election_ticks.saturating_sub(2)) * tick_ms * 990_000
}

impl Lease {
    /// No lease yet; each one will last `length_ns` nanoseconds.
    pub fn new(length_ns: u64) -> Lease {
        Lease { length_ns, suspended: false, paused: false, until: Now(0), sent: VecDeque::new() }
    }

    /// A term of leadership begins, or ends: whatever was held is void.
    pub fn reset(&mut self) {
        *self = Lease::new(self.length_ns);
    }

    /// Gives the lease up for the rest of the term: leadership was offered to another peer.
    pub fn suspend(&mut self) {
        self.suspended = true;
        self.until = Now(0);
    }

    /// True when the lease may not be used: given up for the term, or paused.
    pub fn is_suspended(&self) -> bool {
        self.suspended || self.paused
    }

    /// Nobody may read under the lease until it is resumed: a part of the region is about to be led elsewhere. The
    /// quorum's promise goes on, and is renewed meanwhile.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// The lease counts again, as far as it lasts.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Proposals up to `last_index` are about to be sent.
    pub fn on_sent(&mut self, last_index: u64, now: Now) {
        self.sent.push_back((last_index, now));
    }

    /// Entries up to `index` are committed. Gives the new end of the lease when it moved.
    pub fn on_commit(&mut self, index: u64) -> Option<Now> {
        let mut newest = None;
        while self.sent.front().is_some_and(|(last, _)| *last <= index) {
            newest = self.sent.pop_front().map(|(_, at)| at);
        }
        self.renew(newest?)
    }

    /// A quorum confirmed this leader after `asked`. Gives the new end of the lease when it moved.
    pub fn renew(&mut self, asked: Now) -> Option<Now> {
        let until = Now(asked.0 + self.length_ns);
        if self.suspended || until <= self.until {
            return None;
        }
        self.until = until;
        Some(until)
    }

    /// The end of the lease; 0 when there is none.
    pub fn until(&self) -> Now {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_renews_from_the_time_before_the_newest_committed_group_was_sent() {
        let mut lease = Lease::new(100);
        lease.reset();
        lease.on_sent(6, Now(10));
        lease.on_sent(8, Now(20));
        lease.on_sent(9, Now(30));
        assert_eq!(lease.on_commit(5), None);
        assert_eq!(lease.on_commit(8), Some(Now(120)));
        assert_eq!(lease.on_commit(8), None);
        assert_eq!(lease.renew(Now(15)), None, "an older confirmation does not shorten it");
        assert_eq!(lease.until(), Now(120));
    }

    #[test]
    fn a_leader_that_offered_leadership_away_gets_no_lease_in_that_term() {
        let mut lease = Lease::new(100);
        lease.on_sent(6, Now(10));
        lease.suspend();
        assert_eq!((lease.on_commit(6), lease.renew(Now(50)), lease.until()), (None, None, Now(0)));
        lease.reset();
        assert_eq!(lease.renew(Now(50)), Some(Now(150)));
    }

    #[test]
    fn the_default_lease_is_under_400_ms() {
        assert_eq!(length_ns(50, 10), 396_000_000);
    }
}
