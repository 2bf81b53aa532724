//! Reads of raw data in one snapshot of one region.
//!
//! Synchronous and without I/O when asked for [`ReadTier::Cache`]. Expired values are absent everywhere. A get
//! allocates nothing but the value; a scan puts all its pairs into one buffer.

use bytes::{BufMut, Bytes, BytesMut};
use kvproto::limits::{MAX_REPLY_BYTES, SCAN_CUT_BYTES};

use super::checksum::Checksum;
use super::{RawError, value};
use crate::engine::{Cf, Iter, IterOptions, ReadTier};
use crate::error::RegionError;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::storage::RegionSnapshot;

/// What a pair costs in a reply besides its key and value, at most.
const PAIR_OVERHEAD: usize = 14;
/// Room for what a reply has besides its pairs.
const REPLY_OVERHEAD: usize = 64 << 10;
/// A reply that may not be cut is refused beyond this size.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// What happens when a scan's reply grows past what every client can decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongReply {
    /// Stop early. Only for clients that look at [`SCAN_CUT_BYTES`]: others take a short reply for the end of
    /// the region.
    Cut,
    /// Go on, within reason.
    Grow,
}

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

/// Pairs of a reply, in one allocation.
#[derive(Debug, Default)]
pub struct Pairs {
    data: BytesMut,
    lens: Vec<(u32, u32)>,
}

impl Pairs {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.data.put_slice(key);
        self.data.put_slice(value);
        self.lens.push((key.len() as u32, value.len() as u32));
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.lens.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// True when a pair of `bytes` more would make the reply too long and the client may be told to come back.
    fn full(&self, bytes: usize) -> bool {
        let reply = self.data.len() + bytes + (self.lens.len() + 1) * PAIR_OVERHEAD + REPLY_OVERHEAD;
        self.data.len() >= SCAN_CUT_BYTES && reply > MAX_REPLY_BYTES
    }
}

/// Key and value of each pair, sharing one buffer.
pub struct PairsIter {
    data: Bytes,
    lens: std::vec::IntoIter<(u32, u32)>,
}

impl Iterator for PairsIter {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        let (key, value) = self.lens.next()?;
        let key = self.data.split_to(key as usize);
        Some((key, self.data.split_to(value as usize)))
    }
}

impl IntoIterator for Pairs {
    type Item = (Bytes, Bytes);
    type IntoIter = PairsIter;

    fn into_iter(self) -> PairsIter {
        PairsIter { data: self.data.freeze(), lens: self.lens.into_iter() }
    }
}

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
                if long == LongReply::Cut && pairs.full(key.len() + value.len()) {
                    return Ok(true);
                }
                if pairs.data.len() + key.len() + value.len() > REPLY_BYTES_MAX && !pairs.is_empty() {
                    return Err(RawError::ReplyTooLarge { max: REPLY_BYTES_MAX });
                }
                pairs.push(key, value);
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
        if !scan.upper.is_empty() && scan.lower >= scan.upper {
            return Ok(None);
        }
        let region = &self.at.region;
        // A scan upwards goes on from region to region by its lower bound, so that one has to be here.
        if !scan.reverse {
            in_region(region, &scan.lower)?;
        }
        let lower = scan.lower.clone().max(region.start.clone());
        let upper = match (scan.upper.is_empty(), region.end.is_empty()) {
            (true, _) => region.end.clone(),
            (false, true) => scan.upper.clone(),
            (false, false) => scan.upper.clone().min(region.end.clone()),
        };
        if !upper.is_empty() && lower >= upper {
            return Err(not_in_region(region, &scan.lower).into());
        }
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
