//! The newest entries of a peer's log, in memory.
//!
//! Owns every entry from the moment the consensus library hands it out. Invariants: entries are contiguous and
//! end at the log's last index; what is not durable yet, or not applied yet, is never evicted, because the log
//! store cannot answer for it or would have to be read on the hot path.

use std::collections::VecDeque;

use raft::eraftpb::Entry;

/// A contiguous tail of a log.
#[derive(Debug, Default)]
pub struct EntryCache {
    entries: VecDeque<Entry>,
    bytes: usize,
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + std::mem::size_of::<Entry>()
}

impl EntryCache {
    /// Index of the first entry in memory.
    pub fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|e| e.index)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends entries; those they replace are dropped.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        if let Some(cached) = self.first_index() {
            if first.index <= cached {
                self.clear();
            } else {
                self.truncate_from(first.index);
                let next = cached + self.entries.len() as u64;
                assert_eq!(first.index, next, "entries handed out must follow the log's end");
            }
        }
        self.bytes += entries.iter().map(size).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    fn truncate_from(&mut self, index: u64) {
        while self.entries.back().is_some_and(|e| e.index >= index) {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
        }
    }

    /// The term of an entry in memory.
    pub fn term(&self, index: u64) -> Option<u64> {
        let first = self.first_index()?;
        let at = index.checked_sub(first)?;
        self.entries.get(at as usize).map(|e| e.term)
    }

    /// Entries `[low, high)` pushed to `out`, at least one, until their payload exceeds `max_bytes`. The caller has
    /// checked that `low` is in memory.
    pub fn read(&self, low: u64, high: u64, max_bytes: u64, out: &mut Vec<Entry>) {
        let Some(first) = self.first_index() else { return };
        let mut bytes: u64 = out.iter().map(payload).sum();
        for entry in self.entries.range((low - first) as usize..).take((high - low) as usize) {
            bytes += payload(entry);
            if bytes > max_bytes && !out.is_empty() {
                return;
            }
            out.push(entry.clone());
        }
    }

    /// Drops entries up to and including `index`, which must be durable and applied.
    pub fn evict_to(&mut self, index: u64) {
        while self.entries.front().is_some_and(|e| e.index <= index) {
            self.bytes -= self.entries.pop_front().as_ref().map_or(0, size);
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(64);
        }
    }

    /// Forgets everything: a snapshot replaced the log.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

/// Bytes that count for a message's limit.
pub fn payload(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + 16) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 100].into(), ..Default::default() }
    }

    fn cache(range: std::ops::RangeInclusive<u64>) -> EntryCache {
        let mut cache = EntryCache::default();
        cache.append(&range.map(|i| entry(i, 1)).collect::<Vec<_>>());
        cache
    }

    #[test]
    fn a_new_leaders_entries_replace_the_old_tail() {
        let mut c = cache(5..=9);
        c.append(&[entry(7, 2), entry(8, 2)]);
        assert_eq!((c.term(6), c.term(7), c.term(8), c.term(9)), (Some(1), Some(2), Some(2), None));
        c.append(&[entry(3, 3)]);
        assert_eq!((c.first_index(), c.term(4)), (Some(3), None));
        assert_eq!(c.bytes(), size(&entry(3, 3)));
    }

    #[test]
    fn reading_gives_at_least_one_and_stops_at_the_limit() {
        let c = cache(5..=9);
        let read = |low, high, max| {
            let mut out = Vec::new();
            c.read(low, high, max, &mut out);
            out.iter().map(|e| e.index).collect::<Vec<_>>()
        };
        assert_eq!(read(5, 10, u64::MAX), [5, 6, 7, 8, 9]);
        assert_eq!(read(6, 8, u64::MAX), [6, 7]);
        assert_eq!(read(6, 10, 1), [6]);
        assert_eq!(read(6, 10, 232), [6, 7]);
    }

    #[test]
    fn eviction_returns_the_memory() {
        let mut c = cache(5..=9);
        c.evict_to(7);
        assert_eq!((c.first_index(), c.bytes()), (Some(8), 2 * size(&entry(8, 1))));
        c.evict_to(100);
        assert_eq!((c.first_index(), c.bytes()), (None, 0));
    }

    #[test]
    #[should_panic(expected = "must follow")]
    fn a_gap_is_refused() {
        cache(5..=6).append(&[entry(9, 1)]);
    }
}
