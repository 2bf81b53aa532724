//! Committed entries never change, and every store applies them without a gap (state machine safety).
//!
//! The first store to apply an index of a region fixes what is there; all others must apply the same. Between two
//! lives or snapshots a store goes on exactly where it stood.

use std::collections::BTreeMap;

use super::{Verdict, broken};

const NAME: &str = "commit";

/// See the file's head.
#[derive(Debug, Default)]
pub struct CommitChecker {
    /// Hash of the entry by region and index.
    committed: BTreeMap<(u64, u64), u64>,
    /// Last index handed to the applier, by store and region.
    reached: BTreeMap<(usize, u64), u64>,
    /// The highest term of an entry that was applied anywhere, by region.
    newest_term: BTreeMap<u64, u64>,
}

impl CommitChecker {
    /// A store begins to apply a region after `index`: it starts, or took a snapshot.
    pub fn on_registered(&mut self, store: usize, region_id: u64, index: u64) {
        self.reached.insert((store, region_id), index);
    }

    /// The highest term of a region's entry that is known to be committed; 0 for none.
    pub fn newest_term(&self, region_id: u64) -> u64 {
        self.newest_term.get(&region_id).copied().unwrap_or(0)
    }

    /// A store is about to apply the entry at `(index, term)`.
    pub fn on_entry(
        &mut self,
        store: usize,
        region_id: u64,
        (index, term): (u64, u64),
        hash: u64,
    ) -> Verdict {
        let newest = self.newest_term.entry(region_id).or_default();
        *newest = term.max(*newest);
        let reached = self.reached.entry((store, region_id)).or_default();
        if index != *reached + 1 {
            let what = format!("store {store} region {region_id}: index {index} is applied after {reached}");
            return broken(NAME, what);
        }
        *reached = index;
        let first = *self.committed.entry((region_id, index)).or_insert(hash);
        if first != hash {
            let what =
                format!("store {store} region {region_id}: another entry was committed at index {index}");
            return broken(NAME, what);
        }
        Ok(())
    }

    /// Number of entries seen.
    pub fn len(&self) -> usize {
        self.committed.len()
    }

    /// True before the first entry.
    pub fn is_empty(&self) -> bool {
        self.committed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_and_a_changed_entry_are_noticed() {
        let mut c = CommitChecker::default();
        c.on_registered(0, 1, 5);
        c.on_registered(1, 1, 5);
        assert_eq!(c.on_entry(0, 1, (6, 2), 77), Ok(()));
        assert!(c.on_entry(0, 1, (8, 2), 99).is_err(), "7 is missing");
        assert!(c.on_entry(1, 1, (6, 2), 78).is_err(), "6 is another one");
        c.on_registered(1, 1, 9);
        assert_eq!(c.on_entry(1, 1, (10, 3), 1), Ok(()), "a snapshot may jump");
        assert_eq!(c.newest_term(1), 3);
    }
}
