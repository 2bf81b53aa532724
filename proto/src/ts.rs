//! Timestamps of the scheduler's oracle: milliseconds of wall time and a counter inside the millisecond, in one
//! number that sorts as they do.

use crate::pdpb;

/// Bits of a timestamp that count inside a millisecond.
pub const LOGICAL_BITS: u32 = 18;
/// The largest value of the counter.
pub const LOGICAL_MAX: u64 = (1 << LOGICAL_BITS) - 1;
/// The largest number of milliseconds.
pub const PHYSICAL_MAX: u64 = u64::MAX >> LOGICAL_BITS;

/// A point in the order of transactions: `physical ms << 18 | logical`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

/// A timestamp whose parts are out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timestamp out of range: physical {physical} ms, logical {logical}")]
pub struct TimestampError {
    /// Milliseconds since the Unix epoch.
    pub physical: i64,
    /// Counter inside the millisecond.
    pub logical: i64,
}

impl Timestamp {
    /// Before every timestamp that an oracle hands out.
    pub const ZERO: Timestamp = Timestamp(0);
    /// After every one: reads at it see the latest data.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// From the number that requests carry.
    pub const fn new(value: u64) -> Timestamp {
        Timestamp(value)
    }

    /// From milliseconds since the Unix epoch and the counter inside the millisecond; `None` when one of them
    /// is out of range.
    pub const fn compose(physical_ms: u64, logical: u64) -> Option<Timestamp> {
        if physical_ms > PHYSICAL_MAX || logical > LOGICAL_MAX {
            return None;
        }
        Some(Timestamp((physical_ms << LOGICAL_BITS) | logical))
    }

    /// The number that requests carry.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Milliseconds since the Unix epoch.
    pub const fn physical_ms(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// Counter inside the millisecond.
    pub const fn logical(self) -> u64 {
        self.0 & LOGICAL_MAX
    }

    /// The timestamp `count` steps later, or `None` past the end.
    pub const fn checked_add(self, count: u64) -> Option<Timestamp> {
        match self.0.checked_add(count) {
            Some(value) => Some(Timestamp(value)),
            None => None,
        }
    }

    /// The timestamp `count` steps earlier, or `None` before zero.
    pub const fn checked_sub(self, count: u64) -> Option<Timestamp> {
        match self.0.checked_sub(count) {
            Some(value) => Some(Timestamp(value)),
            None => None,
        }
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl From<u64> for Timestamp {
    fn from(value: u64) -> Timestamp {
        Timestamp(value)
    }
}

impl From<Timestamp> for u64 {
    fn from(ts: Timestamp) -> u64 {
        ts.0
    }
}

impl From<Timestamp> for pdpb::Timestamp {
    fn from(ts: Timestamp) -> pdpb::Timestamp {
        // Both parts have fewer than 63 bits.
        pdpb::Timestamp { physical: ts.physical_ms() as i64, logical: ts.logical() as i64, suffix_bits: 0 }
    }
}

impl TryFrom<&pdpb::Timestamp> for Timestamp {
    type Error = TimestampError;

    fn try_from(ts: &pdpb::Timestamp) -> Result<Timestamp, TimestampError> {
        let error = TimestampError { physical: ts.physical, logical: ts.logical };
        let physical = u64::try_from(ts.physical).map_err(|_| error)?;
        let logical = u64::try_from(ts.logical).map_err(|_| error)?;
        Timestamp::compose(physical, logical).ok_or(error)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_out_of_range_are_refused() {
        assert_eq!(Timestamp::compose(1, LOGICAL_MAX + 1), None);
        assert_eq!(Timestamp::compose(PHYSICAL_MAX + 1, 0), None);
        let negative = pdpb::Timestamp { physical: -1, logical: 0, suffix_bits: 0 };
        assert_eq!(Timestamp::try_from(&negative), Err(TimestampError { physical: -1, logical: 0 }));
    }

    proptest! {
        #[test]
        fn parts_and_message_convert_back(value: u64) {
            let ts = Timestamp::new(value);
            prop_assert_eq!(Timestamp::compose(ts.physical_ms(), ts.logical()), Some(ts));
            prop_assert_eq!(Timestamp::try_from(&pdpb::Timestamp::from(ts)), Ok(ts));
        }

        #[test]
        fn order_is_by_physical_then_logical(a in (0..=PHYSICAL_MAX, 0..=LOGICAL_MAX), b in (0..=PHYSICAL_MAX, 0..=LOGICAL_MAX)) {
            let left = Timestamp::compose(a.0, a.1).unwrap();
            let right = Timestamp::compose(b.0, b.1).unwrap();
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
        }
    }
}
