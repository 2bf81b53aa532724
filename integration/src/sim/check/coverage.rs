//! Ranges: those of a store's live regions never overlap, and in each term of a region at most one peer leads.
//!
//! Whether the leaders together cover all keys is a matter of liveness and is looked at when all is calm.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvserver::raftstore::bootstrap::Found;
use kvserver::raftstore::meta::region_view::RegionMeta;
use kvserver::raftstore::meta::values::PeerState;

use super::{Verdict, broken};

const NAME: &str = "coverage";

/// See the file's head.
#[derive(Debug, Default)]
pub struct CoverageChecker {
    /// The peer that led a region in a term.
    leaders: BTreeMap<(u64, u64), u64>,
}

impl CoverageChecker {
    /// A peer says that it leads.
    pub fn on_leader(&mut self, region_id: u64, term: u64, peer_id: u64) -> Verdict {
        let first = *self.leaders.entry((region_id, term)).or_insert(peer_id);
        if first != peer_id {
            let what = format!("region {region_id}: peers {first} and {peer_id} both lead in term {term}");
            return broken(NAME, what);
        }
        Ok(())
    }

    /// How many times a region got a leader.
    pub fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// The region records of a store.
    pub fn on_records(&self, store: usize, found: &[Found]) -> Verdict {
        let live = found.iter().filter(|f| f.state.state() != PeerState::Tombstone);
        self.on_live(store, live.map(|f| &*f.meta))
    }

    /// The regions with data that a store has at this instant.
    pub fn on_live<'a>(&self, store: usize, live: impl Iterator<Item = &'a RegionMeta>) -> Verdict {
        let ranges = live.map(|meta| (meta.start.clone(), meta.end.clone(), meta.region.id));
        match first_overlap(ranges.collect()) {
            Some((a, b)) => broken(NAME, format!("store {store}: live regions {a} and {b} overlap")),
            None => Ok(()),
        }
    }
}

/// Whether `ranges` cover all keys, each once.
pub fn tiles(mut ranges: Vec<(Bytes, Bytes)>) -> bool {
    ranges.sort();
    let fits = |pair: &[(Bytes, Bytes)]| !pair[0].1.is_empty() && pair[0].1 == pair[1].0;
    ranges.first().is_some_and(|(start, _)| start.is_empty())
        && ranges.last().is_some_and(|(_, end)| end.is_empty())
        && ranges.windows(2).all(fits)
}

fn first_overlap(mut ranges: Vec<(Bytes, Bytes, u64)>) -> Option<(u64, u64)> {
    ranges.sort();
    let pair = ranges.windows(2).find(|w| w[0].1.is_empty() || w[0].1 > w[1].0)?;
    Some((pair[0].2, pair[1].2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> (Bytes, Bytes) {
        (start.into(), end.into())
    }

    #[test]
    fn gaps_and_overlaps_are_found() {
        assert!(tiles(vec![range("m", ""), range("", "m")]));
        assert!(!tiles(vec![range("n", ""), range("", "m")]));
        assert!(!tiles(vec![range("l", ""), range("", "m")]));
        assert!(!tiles(vec![range("", ""), range("", "")]));
        assert!(!tiles(vec![range("", "m")]));
        assert!(!tiles(vec![]));
        let with = |a: &'static str, b: &'static str, id| (a.into(), b.into(), id);
        assert_eq!(first_overlap(vec![with("", "b", 1), with("b", "", 2)]), None);
        assert_eq!(first_overlap(vec![with("a", "", 1), with("b", "c", 2)]), Some((1, 2)));
    }

    #[test]
    fn two_leaders_of_one_term_are_noticed() {
        let mut c = CoverageChecker::default();
        assert_eq!(c.on_leader(1, 6, 11), Ok(()));
        assert_eq!(c.on_leader(1, 6, 11), Ok(()));
        assert_eq!(c.on_leader(1, 7, 12), Ok(()));
        assert!(c.on_leader(1, 6, 12).is_err());
    }
}
