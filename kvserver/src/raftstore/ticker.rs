//! A timer wheel: which peers are due for a tick, without looking at those that are not.
//!
//! Owns the next tick of every peer. Invariant: a peer is due at most once a turn, and its next tick is a full
//! interval after the turn in which it was due; ticks that were missed are never made up. Election time may
//! stretch, it never shrinks.

use crate::clock::Now;

const SLOTS: usize = 64;

/// A wheel of [`SLOTS`] slots that cover a little more than one tick interval.
#[derive(Debug)]
pub struct Ticker {
    interval_ns: u64,
    slot_ns: u64,
    /// The slot that was served last, counted from time 0.
    served: u64,
    slots: Vec<Vec<(u64, Now)>>,
    len: usize,
}

impl Ticker {
    /// A wheel for ticks every `interval_ns` nanoseconds.
    pub fn new(interval_ns: u64, now: Now) -> Ticker {
        let slot_ns = (interval_ns / (SLOTS as u64 - 2)).max(1);
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Ticker { interval_ns, slot_ns, served: now.0 / slot_ns, slots, len: 0 }
    }

    /// Schedules the first tick of a peer; peers are spread over the interval by their region's id.
    pub fn add(&mut self, region_id: u64, now: Now) {
        let spread = region_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.schedule(region_id, Now(now.0 + self.interval_ns / 2 + spread % (self.interval_ns / 2).max(1)));
    }

    fn schedule(&mut self, region_id: u64, at: Now) {
        let slot = (at.0 / self.slot_ns).max(self.served + 1);
        self.slots[slot as usize % SLOTS].push((region_id, at));
        self.len += 1;
    }

    /// Moves the peers that are due into `due` and schedules each one's next tick.
    pub fn advance_to(&mut self, now: Now, due: &mut Vec<u64>) {
        let target = now.0 / self.slot_ns;
        if target <= self.served {
            return;
        }
        let from = due.len();
        let turns = (target - self.served).min(SLOTS as u64);
        for slot in target - turns + 1..=target {
            let slot = &mut self.slots[slot as usize % SLOTS];
            self.len -= slot.len();
            due.extend(slot.drain(..).map(|(region_id, _)| region_id));
        }
        self.served = target;
        for region_id in &due[from..] {
            self.schedule(*region_id, Now(now.0 + self.interval_ns));
        }
    }

    /// Forgets a peer.
    pub fn remove(&mut self, region_id: u64) {
        for slot in &mut self.slots {
            let before = slot.len();
            slot.retain(|(id, _)| *id != region_id);
            self.len -= before - slot.len();
        }
    }

    /// The instant at which the next peer is due at the latest; `None` without peers.
    pub fn next_deadline(&self) -> Option<Now> {
        if self.len == 0 {
            return None;
        }
        let next = (self.served + 1..=self.served + SLOTS as u64)
            .find(|slot| !self.slots[*slot as usize % SLOTS].is_empty())?;
        Some(Now((next + 1) * self.slot_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(t: &mut Ticker, now: u64) -> Vec<u64> {
        let mut out = Vec::new();
        t.advance_to(Now(now), &mut out);
        out.sort();
        out
    }

    #[test]
    fn every_peer_is_due_once_an_interval() {
        let mut t = Ticker::new(50_000, Now(0));
        (1..=20).for_each(|id| t.add(id, Now(0)));
        let mut seen = [0; 21];
        for now in (0..=1_000_000).step_by(500) {
            due(&mut t, now).into_iter().for_each(|id| seen[id as usize] += 1);
        }
        for (id, ticks) in seen.iter().enumerate().skip(1) {
            assert!((19..=20).contains(ticks), "peer {id}: {ticks} ticks in 20 intervals");
        }
    }

    #[test]
    fn missed_ticks_are_dropped_and_the_next_is_a_full_interval_away() {
        let mut t = Ticker::new(50_000, Now(0));
        t.add(7, Now(0));
        assert_eq!(due(&mut t, 1_000_000), [7]);
        assert_eq!(due(&mut t, 1_049_000), [0u64; 0]);
        assert_eq!(due(&mut t, 1_051_700), [7]);
    }

    #[test]
    fn the_deadline_is_never_after_a_due_tick_by_more_than_a_slot() {
        let mut t = Ticker::new(50_000, Now(0));
        assert_eq!(t.next_deadline(), None);
        t.add(7, Now(0));
        let deadline = t.next_deadline().unwrap();
        assert_eq!(due(&mut t, deadline.0), [7]);
        t.remove(7);
        assert_eq!(t.next_deadline(), None);
    }
}
