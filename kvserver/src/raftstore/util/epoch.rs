//! Comparing region epochs. A split or merge raises `version`, a membership change `conf_ver`; both only grow.

use kvproto::metapb::RegionEpoch;

/// True when `a` knows less than `b` in at least one of its parts.
pub fn is_older(a: &RegionEpoch, b: &RegionEpoch) -> bool {
    a.version < b.version || a.conf_ver < b.conf_ver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_part_makes_an_epoch_older() {
        let e = |conf_ver, version| RegionEpoch { conf_ver, version };
        assert!(is_older(&e(1, 5), &e(2, 5)) && is_older(&e(2, 4), &e(1, 5)));
        assert!(!is_older(&e(2, 5), &e(2, 5)) && !is_older(&e(3, 5), &e(2, 5)));
    }
}
