//! At any instant of true time at most one store would serve a read of a region under its lease (INV-LEASE).
//! While it would, nobody else commits.
//!
//! A lease begins only in a turn of its store and ends by itself, so it is enough to look after every turn.

use super::{Verdict, broken};

/// What a store would do with a read of a region at this instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub store: usize,
    pub term: u64,
}

/// Looks at all stores that would serve a read of the region now.
pub fn check(region_id: u64, claims: impl IntoIterator<Item = Claim>) -> Verdict {
    let mut claims = claims.into_iter();
    match (claims.next(), claims.next()) {
        (Some(a), Some(b)) => {
            let what = format!("region {region_id}: two stores hold a lease at once: {a:?} and {b:?}");
            broken("lease", what)
        }
        _ => Ok(()),
    }
}

/// A store serves a read of the region under the lease of `claim`, while entries up to `newest_term` are known to be
/// committed: a later term would have made the lease void.
pub fn check_read(region_id: u64, claim: Claim, newest_term: u64) -> Verdict {
    if claim.term >= newest_term {
        return Ok(());
    }
    broken(
        "lease",
        format!("region {region_id}: a read under {claim:?} after a commit in term {newest_term}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leases_at_once_are_noticed() {
        let claim = |store, term| Claim { store, term };
        assert_eq!(check(1, []), Ok(()));
        assert_eq!(check(1, [claim(0, 6)]), Ok(()));
        assert!(check(1, [claim(0, 6), claim(2, 7)]).is_err());
        assert_eq!(check_read(1, claim(0, 6), 6), Ok(()));
        assert!(check_read(1, claim(0, 6), 7).is_err());
    }
}
