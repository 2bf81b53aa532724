//! Ids for stores, peers and regions: one sequence, never reused.
//!
//! Ids come from a window whose end is durable before any id of it is handed out (INV: `next <= end`, and `end`
//! is at most what storage holds). After a restart the window starts at the saved end, so ids of the lost rest
//! are skipped. This file does the arithmetic; the server saves the window.

/// How many ids one durable write makes available.
pub const WINDOW: u64 = 1000;
/// The window is extended in the background when fewer ids than this are left.
pub const LOW_WATER: u64 = 500;
/// The most ids one request may ask for.
pub const COUNT_MAX: u32 = 100_000;

/// Where the pure core takes new ids from.
pub trait IdSource {
    /// A fresh id, or None when the durable window is used up for now.
    fn next_id(&mut self) -> Option<u64>;
}

/// The durable window of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdWindow {
    next: u64,
    end: u64,
}

impl IdWindow {
    /// A window that is empty until it is extended; `saved_end` is the durable end (0 in a new cluster).
    pub fn new(saved_end: u64) -> IdWindow {
        // Ids start at 1: 0 means "none" everywhere on the wire.
        let start = saved_end.max(1);
        IdWindow { next: start, end: start }
    }

    /// How many ids are left.
    pub fn left(&self) -> u64 {
        self.end - self.next
    }

    /// Whether this id may have been handed out, now or before a restart.
    pub fn is_issued(&self, id: u64) -> bool {
        (1..self.next).contains(&id)
    }

    /// The end to save so that at least `count` ids become available.
    pub fn extension(&self, count: u64) -> u64 {
        self.end.saturating_add(WINDOW.max(count))
    }

    /// Takes note that `end` is durable.
    pub fn extended_to(&mut self, end: u64) {
        assert!(end >= self.end, "the id window only grows: {} -> {end}", self.end);
        self.end = end;
    }

    /// Takes `count` consecutive ids and returns the last one, or None when fewer are left.
    pub fn take(&mut self, count: u64) -> Option<u64> {
        if count == 0 || self.left() < count {
            return None;
        }
        self.next += count;
        assert!(self.next <= self.end);
        Some(self.next - 1)
    }
}

impl IdSource for IdWindow {
    fn next_id(&mut self) -> Option<u64> {
        self.take(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_handed_out_before_the_window_is_saved() {
        let mut ids = IdWindow::new(0);
        assert_eq!(ids.next_id(), None);
        ids.extended_to(ids.extension(1));
        assert_eq!((ids.next_id(), ids.next_id()), (Some(1), Some(2)));
        assert_eq!([0, 1, 2, 3].map(|id| ids.is_issued(id)), [false, true, true, false]);
    }

    #[test]
    fn a_restart_skips_to_the_saved_end() {
        let mut ids = IdWindow::new(0);
        let saved = ids.extension(1);
        ids.extended_to(saved);
        let used: Vec<_> = std::iter::from_fn(|| ids.next_id()).collect();
        assert_eq!(used.len() as u64, WINDOW);
        let mut again = IdWindow::new(saved);
        again.extended_to(again.extension(1));
        assert!(again.next_id() > used.last().copied());
    }

    #[test]
    fn a_batch_is_consecutive_and_all_or_nothing() {
        let mut ids = IdWindow::new(0);
        ids.extended_to(ids.extension(5000));
        assert_eq!(ids.take(5000), Some(5000));
        assert_eq!(ids.take(1), None);
        assert_eq!(ids.take(0), None);
    }
}
