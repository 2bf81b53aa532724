//! Reads of raw data in one snapshot of one region.
//!
//! Synchronous and without I/O when asked for [`ReadTier::Cache`]. Expired values are absent everywhere. A get
//! allocates nothing but the value; a scan puts all its pairs into one buffer.

use bytes::Bytes;

use super::checksum::Checksum;
use super::{RawError, value};
use crate::engine::{Cf, Iter, IterOptions, ReadTier};
use crate::storage::RegionSnapshot;
use crate::txn::pairs::{Fit, LongReply, Pairs, REPLY_BYTES_MAX};
use crate::txn::range::{Scan, in_region};

/// Reads at one instant.
pub struct Reader<'a> {
    pub at: &'a RegionSnapshot,
    /// Seconds since 1970 that expiry is judged by.
    pub now: u64,
    pub tier: ReadTier,
}

impl Reader<'_> {
    fn stored(&self, key: &[u8]) -> Result<Option<Bytes>, RawError> {
        in_region(&self.at.region, key)?;
        Ok(self.at.snapshot.get(Cf::Raw, key, self.tier)?)
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RawError> {
        match self.stored(key)? {
            Some(stored) => Ok(value::payload(stored, self.now)?),
            None => Ok(None),
        }
    }

    /// The seconds a key has left: 0 when it does not expire, `None` when it is absent.
    pub fn get_ttl(&self, key: &[u8]) -> Result<Option<u64>, RawError> {
        match self.stored(key)? {
            Some(stored) => Ok(value::live(&stored, self.now)?.map(|l| l.ttl.unwrap_or(0))),
            None => Ok(None),
        }
    }

    /// The pairs of those keys that exist, in the order of the request.
    pub fn batch_get(&self, keys: &[Bytes]) -> Result<Vec<(Bytes, Bytes)>, RawError> {
        let mut pairs = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(value) = self.get(key)? {
                pairs.push((key.clone(), value));
            }
        }
        Ok(pairs)
    }

    /// Adds the pairs of a range to `pairs`, and says whether the reply was cut.
    pub fn scan(&self, scan: &Scan, long: LongReply, pairs: &mut Pairs) -> Result<bool, RawError> {
        let end = pairs.len().saturating_add(scan.limit);
        let Some(mut iter) = self.open(scan)? else { return Ok(false) };
        while pairs.len() < end && iter.valid() {
            let (key, stored) = (iter.key(), iter.value());
            if let Some(live) = value::live(stored, self.now)? {
                let value = if scan.key_only { &[][..] } else { &stored[live.payload_at..] };
                match pairs.fit(key.len() + value.len(), 0, long) {
                    Fit::Fits => pairs.push(key, value),
                    Fit::Cut => return Ok(true),
                    Fit::TooLarge => return Err(RawError::ReplyTooLarge { max: REPLY_BYTES_MAX }),
                }
            }
            if scan.reverse { iter.prev() } else { iter.next() }
        }
        if !iter.valid() {
            iter.status()?;
        }
        Ok(false)
    }

    /// Sums over a range.
    pub fn checksum(&self, lower: &Bytes, upper: &Bytes, sum: &mut Checksum) -> Result<(), RawError> {
        let (lower, upper) = (lower.clone(), upper.clone());
        let scan = Scan { lower, upper, reverse: false, key_only: false, limit: usize::MAX };
        let Some(mut iter) = self.open(&scan)? else { return Ok(()) };
        while iter.valid() {
            if let Some(live) = value::live(iter.value(), self.now)? {
                sum.add(iter.key(), &iter.value()[live.payload_at..]);
            }
            iter.next();
        }
        Ok(iter.status()?)
    }

    /// A cursor on the first key of the part of the range that lies in the region; `None` for an empty range.
    fn open(&self, scan: &Scan) -> Result<Option<Box<dyn Iter>>, RawError> {
        let Some((lower, upper)) = scan.within(&self.at.region)? else { return Ok(None) };
        let options = IterOptions { lower, upper, tier: self.tier, ..IterOptions::default() };
        let mut iter = self.at.snapshot.iter(Cf::Raw, options)?;
        if scan.reverse {
            iter.seek_to_last()
        } else {
            iter.seek_to_first()
        }
        Ok(Some(iter))
    }
}
