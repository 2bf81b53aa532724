//! At any instant of true time at most one store would serve a read of a key under a lease (INV-LEASE). While it
//! would, nobody else commits.
//!
//! A lease begins only in a turn of its store and ends by itself, so it is enough to look after every turn.

use bytes::Bytes;
use kvserver::raftstore::meta::region_view::RegionMeta;

use super::{Verdict, broken};

/// What a store would do with reads of a range at this instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub store: usize,
    pub region_id: u64,
    pub term: u64,
    pub start: Bytes,
    pub end: Bytes,
}

impl Claim {
    /// A store would serve reads of the region in this term.
    pub fn new(store: usize, term: u64, region: &RegionMeta) -> Claim {
        let (start, end) = (region.start.clone(), region.end.clone());
        Claim { store, region_id: region.region.id, term, start, end }
    }
}

/// Looks at all that stores would serve under leases now.
pub fn check(mut claims: Vec<Claim>) -> Verdict {
    claims.sort_by(|a, b| a.start.cmp(&b.start));
    let both = |pair: &&[Claim]| pair[0].end.is_empty() || pair[0].end > pair[1].start;
    match claims.windows(2).find(both) {
        Some(pair) => {
            let what = format!("two leases cover a key at once: {:?} and {:?}", pair[0], pair[1]);
            broken("lease", what)
        }
        None => Ok(()),
    }
}

/// A store serves a read of the region under the lease of `claim`, while entries up to `newest_term` are known to be
/// committed: a later term would have made the lease void.
pub fn check_read(claim: &Claim, newest_term: u64) -> Verdict {
    if claim.term >= newest_term {
        return Ok(());
    }
    broken("lease", format!("a read under {claim:?} after a commit in term {newest_term}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(store: usize, start: &'static str, end: &'static str) -> Claim {
        Claim { store, region_id: 1, term: 6, start: start.into(), end: end.into() }
    }

    #[test]
    fn a_key_under_two_leases_is_noticed() {
        assert_eq!(check(vec![]), Ok(()));
        assert_eq!(check(vec![claim(0, "", "m"), claim(1, "m", "")]), Ok(()));
        assert!(check(vec![claim(0, "m", ""), claim(1, "a", "n")]).is_err());
        assert!(check(vec![claim(0, "", ""), claim(2, "", "")]).is_err());
        assert!(check(vec![claim(0, "a", ""), claim(2, "b", "c")]).is_err());
    }

    #[test]
    fn a_read_in_an_older_term_than_a_commit_is_noticed() {
        assert_eq!(check_read(&claim(0, "", ""), 6), Ok(()));
        assert!(check_read(&claim(0, "", ""), 7).is_err());
    }
}
