//! Ranges: those of a store's live regions never overlap, and in each term of a region at most one peer leads.
//!
//! Whether the leaders together cover all keys is a matter of liveness and is looked at when all is calm.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvserver::raftstore::bootstrap::Found;
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

    /// The region records of a store.
    pub fn on_records(&self, store: usize, found: &[Found]) -> Verdict {
        let live = found.iter().filter(|f| f.state.state() != PeerState::Tombstone);
        let ranges = live.map(|f| (f.meta.start.clone(), f.meta.end.clone(), f.meta.region.id));
        match first_overlap(ranges.collect()) {
            Some((a, b)) => broken(NAME, format!("store {store}: live regions {a} and {b} overlap")),
            None => Ok(()),
        }
    }
}

/// Whether `ranges`, put together, leave no gap.
pub fn covers_all(mut ranges: Vec<(Bytes, Bytes)>) -> bool {
    ranges.sort();
    let mut reached = Some(Bytes::new());
    for (start, end) in ranges {
        match &reached {
            Some(key) if start <= *key => {
                reached = if end.is_empty() { None } else { Some(end.max(key.clone())) };
            }
            _ => break,
        }
    }
    reached.is_none()
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
        assert!(covers_all(vec![range("m", ""), range("", "m")]));
        assert!(!covers_all(vec![range("n", ""), range("", "m")]));
        assert!(!covers_all(vec![range("", "m")]));
        assert!(!covers_all(vec![]));
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
