//! Ranges of user keys and the region that serves them.

use bytes::Bytes;

use crate::error::RegionError;
use crate::raftstore::meta::region_view::RegionMeta;

/// One range to scan. Bounds are ascending in both directions.
#[derive(Clone, Debug)]
pub struct Scan {
    pub lower: Bytes,
    /// First key that does not belong; empty for none.
    pub upper: Bytes,
    /// From the upper bound down.
    pub reverse: bool,
    pub key_only: bool,
    /// Pairs at most.
    pub limit: usize,
}

impl Scan {
    /// The bounds of the part that lies in the region; an empty upper bound is the end of all keys. `None` for an
    /// empty range.
    pub fn within(&self, region: &RegionMeta) -> Result<Option<(Bytes, Bytes)>, RegionError> {
        if !self.upper.is_empty() && self.lower >= self.upper {
            return Ok(None);
        }
        // A scan upwards goes on from region to region by its lower bound, so that one has to be here.
        if !self.reverse {
            in_region(region, &self.lower)?;
        }
        match clamp(region, &self.lower, &self.upper) {
            None => Err(not_in_region(region, &self.lower)),
            bounds => Ok(bounds),
        }
    }
}

/// The part of `[lower, upper)` that lies in the region; an empty `upper` is open, before and after. `None` when there
/// is none.
pub fn clamp(region: &RegionMeta, lower: &Bytes, upper: &Bytes) -> Option<(Bytes, Bytes)> {
    let lower = lower.clone().max(region.start.clone());
    let upper = match (upper.is_empty(), region.end.is_empty()) {
        (true, _) => region.end.clone(),
        (false, true) => upper.clone(),
        (false, false) => upper.clone().min(region.end.clone()),
    };
    (upper.is_empty() || lower < upper).then_some((lower, upper))
}

/// Refuses a key outside the region.
pub fn in_region(region: &RegionMeta, key: &[u8]) -> Result<(), RegionError> {
    if region.contains(key) { Ok(()) } else { Err(not_in_region(region, key)) }
}

/// The refusal of a key outside the region.
pub fn not_in_region(region: &RegionMeta, key: &[u8]) -> RegionError {
    RegionError::KeyNotInRegion {
        key: Bytes::copy_from_slice(key),
        region_id: region.region.id,
        start_key: region.region.start_key.clone(),
        end_key: region.region.end_key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: &'static str, end: &'static str) -> RegionMeta {
        RegionMeta { region: Default::default(), start: start.into(), end: end.into() }
    }

    #[test]
    fn a_range_is_clamped_to_the_region() {
        let clamped = |lower: &'static str, upper: &'static str, region: &RegionMeta| {
            clamp(region, &lower.into(), &upper.into())
        };
        let (middle, all) = (region("f", "m"), region("", ""));
        assert_eq!(clamped("a", "", &middle), Some(("f".into(), "m".into())));
        assert_eq!(clamped("g", "h", &middle), Some(("g".into(), "h".into())));
        assert_eq!(clamped("", "", &all), Some(("".into(), "".into())));
        assert_eq!(clamped("a", "f", &middle), None);
        assert_eq!(clamped("m", "", &middle), None);
        assert_eq!(clamped("b", "a", &all), None);
    }

    #[test]
    fn a_scan_upwards_begins_in_the_region_and_one_downwards_need_not() {
        let middle = region("f", "m");
        let scan = |lower: &'static str, upper: &'static str, reverse| {
            let scan = Scan { lower: lower.into(), upper: upper.into(), reverse, key_only: false, limit: 1 };
            scan.within(&middle)
        };
        assert!(matches!(scan("a", "z", false), Err(RegionError::KeyNotInRegion { .. })));
        assert!(matches!(scan("a", "z", true), Ok(Some(_))));
        assert!(matches!(scan("a", "c", true), Err(RegionError::KeyNotInRegion { .. })));
        assert!(matches!(scan("h", "g", false), Ok(None)));
    }
}
