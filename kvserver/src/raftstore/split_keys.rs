//! Where to cut a region: the limits of a region, and the choice of keys while walking over its data.
//!
//! A walk is fed with the region's entries in the order of their user keys and keeps only what it needs to choose.
//! Bytes of all data count; of the number of keys only committed versions of transactional keys do, since raw data
//! is split by size alone.
//!
//! Invariants: a cut is a user key of the region, not its first one, never empty, no longer than a key may be, and
//! never between two records of one user key; cuts ascend; every part but the last has reached the size or the
//! number of keys at which regions are cut.

use bytes::Bytes;
use kvproto::{key, limits::MAX_KEY_BYTES};

use super::message::input::SplitCheck;
use super::meta::region_view::RegionMeta;
use crate::engine::RangeEstimate;

/// Longest key that becomes a boundary.
const CUT_BYTES_MAX: usize = MAX_KEY_BYTES + key::PREFIX_LEN;
/// Candidates that a search for the middle keeps; then every second one goes.
const SAMPLES_MAX: usize = 512;
/// Distance of the first candidates of such a search, bytes.
const SAMPLE_BYTES: u64 = 256;

/// When a region is too large, and how large its parts are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitLimits {
    /// A region with more bytes is cut.
    pub max_bytes: u64,
    /// Bytes of the parts.
    pub split_bytes: u64,
    /// A region with more committed versions of transactional keys is cut.
    pub max_keys: u64,
    /// Committed versions in the parts.
    pub split_keys: u64,
    /// The most cuts at once, at least 1.
    pub batch: usize,
}

impl Default for SplitLimits {
    fn default() -> SplitLimits {
        SplitLimits {
            max_bytes: 384 << 20,
            split_bytes: 256 << 20,
            max_keys: 3_840_000,
            split_keys: 2_560_000,
            batch: 10,
        }
    }
}

/// One record of the region's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// As clients write it.
    pub user_key: &'a [u8],
    /// Bytes of key and value.
    pub bytes: u64,
    pub kind: RecordKind,
}

/// What a record counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A raw pair.
    Raw,
    /// A committed version of a transactional key.
    Commit,
    /// A lock, or a value that belongs to a version.
    Other,
}

/// What lies before some point of the region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    bytes: u64,
    keys: u64,
    commits: u64,
}

impl Amount {
    fn add(&mut self, record: &Record<'_>) {
        self.bytes += record.bytes;
        self.keys += u64::from(record.kind != RecordKind::Other);
        self.commits += u64::from(record.kind == RecordKind::Commit);
    }

    fn size(&self) -> RangeEstimate {
        RangeEstimate { bytes: self.bytes, keys: self.keys, ..RangeEstimate::default() }
    }
}

/// Tells user keys apart, and says which of them may be a boundary.
struct Boundaries<'a> {
    region: &'a RegionMeta,
    last: Option<Vec<u8>>,
}

impl Boundaries<'_> {
    /// Whether the region may be cut before this record. Must be asked of every record, in order.
    fn may_cut(&mut self, user_key: &[u8]) -> bool {
        if self.last.as_deref() == Some(user_key) {
            return false;
        }
        let is_first = self.last.is_none();
        let last = self.last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(user_key);
        !is_first
            && !user_key.is_empty()
            && user_key.len() <= CUT_BYTES_MAX
            && user_key != &self.region.start[..]
            && self.region.contains(user_key)
    }
}

/// A walk that cuts a region that is too large.
pub struct SizeWalk<'a> {
    limits: &'a SplitLimits,
    boundaries: Boundaries<'a>,
    total: Amount,
    cuts: Vec<(Bytes, Amount)>,
    full: bool,
}

impl<'a> SizeWalk<'a> {
    /// A walk over `region`.
    pub fn new(region: &'a RegionMeta, limits: &'a SplitLimits) -> SizeWalk<'a> {
        let boundaries = Boundaries { region, last: None };
        SizeWalk { limits, boundaries, total: Amount::default(), cuts: Vec::new(), full: false }
    }

    fn since(&self, cut: Option<&(Bytes, Amount)>) -> Amount {
        let before = cut.map_or(Amount::default(), |(_, before)| *before);
        Amount {
            bytes: self.total.bytes - before.bytes,
            keys: self.total.keys - before.keys,
            commits: self.total.commits - before.commits,
        }
    }

    /// Takes a record in. False when all cuts of this time are found and the walk may end.
    pub fn add(&mut self, record: &Record<'_>) -> bool {
        if self.boundaries.may_cut(record.user_key) {
            let part = self.since(self.cuts.last());
            if part.bytes >= self.limits.split_bytes || part.commits >= self.limits.split_keys {
                if self.cuts.len() >= self.limits.batch {
                    self.full = true;
                    return false;
                }
                self.cuts.push((Bytes::copy_from_slice(record.user_key), self.total));
            }
        }
        self.total.add(record);
        true
    }

    /// Committed versions so far.
    pub fn commits(&self) -> u64 {
        self.total.commits
    }

    /// What was found. After a walk that ended early the size is of what was walked over.
    pub fn finish(mut self) -> SplitCheck {
        // A last part that would be small stays with the one before, if both together are a fair region.
        let before_last = self.cuts.len().checked_sub(2).map(|n| self.cuts[n].clone());
        let together = self.since(before_last.as_ref());
        let fair = together.bytes <= self.limits.max_bytes && together.commits <= self.limits.max_keys;
        if !self.full && fair {
            self.cuts.pop();
        }
        let split_keys = self.cuts.into_iter().map(|(key, _)| key).collect();
        SplitCheck { size: self.total.size(), split_keys }
    }
}

/// A walk that finds the middle of a region, by bytes.
pub struct HalfWalk<'a> {
    boundaries: Boundaries<'a>,
    total: Amount,
    /// Candidates with the bytes before them, at least `step` apart.
    samples: Vec<(Bytes, u64)>,
    step: u64,
}

impl<'a> HalfWalk<'a> {
    /// A walk over `region`.
    pub fn new(region: &'a RegionMeta) -> HalfWalk<'a> {
        let boundaries = Boundaries { region, last: None };
        HalfWalk { boundaries, total: Amount::default(), samples: Vec::new(), step: SAMPLE_BYTES }
    }

    /// Takes a record in.
    pub fn add(&mut self, record: &Record<'_>) {
        let sampled = self.samples.last().map_or(0, |(_, before)| *before);
        let far_enough = self.samples.is_empty() || self.total.bytes - sampled >= self.step;
        if self.boundaries.may_cut(record.user_key) && far_enough {
            if self.samples.len() == SAMPLES_MAX {
                let mut nth = 0;
                self.samples.retain(|_| {
                    nth += 1;
                    nth % 2 == 1
                });
                self.step *= 2;
            }
            self.samples.push((Bytes::copy_from_slice(record.user_key), self.total.bytes));
        }
        self.total.add(record);
    }

    /// The middle, if the region has two keys.
    pub fn finish(self) -> SplitCheck {
        let half = self.total.bytes / 2;
        let middle = self.samples.into_iter().min_by_key(|(_, before)| before.abs_diff(half));
        SplitCheck { size: self.total.size(), split_keys: middle.into_iter().map(|(key, _)| key).collect() }
    }
}

#[cfg(test)]
mod tests {
    use kvproto::metapb;

    use super::*;

    fn region(start: &'static str, end: &'static str) -> RegionMeta {
        RegionMeta { region: metapb::Region::default(), start: start.into(), end: end.into() }
    }

    fn limits(split_bytes: u64, max_bytes: u64, batch: usize) -> SplitLimits {
        SplitLimits { split_bytes, max_bytes, split_keys: 10, max_keys: 15, batch }
    }

    fn record(user_key: &str, bytes: u64, kind: RecordKind) -> Record<'_> {
        Record { user_key: user_key.as_bytes(), bytes, kind }
    }

    /// Walks over raw pairs `k00`, `k01`, … of these sizes.
    fn cut_raw(limits: &SplitLimits, sizes: &[u64]) -> SplitCheck {
        let region = region("", "");
        let mut walk = SizeWalk::new(&region, limits);
        for (n, bytes) in sizes.iter().enumerate() {
            if !walk.add(&record(&format!("k{n:02}"), *bytes, RecordKind::Raw)) {
                break;
            }
        }
        walk.finish()
    }

    #[test]
    fn a_region_within_its_limit_is_left_alone_and_measured() {
        let check = cut_raw(&limits(40, 60, 10), &[10; 6]);
        assert_eq!((check.size.bytes, check.size.keys, check.split_keys), (60, 6, vec![]));
    }

    #[test]
    fn a_larger_one_is_cut_where_a_part_is_full_and_the_rest_is_a_fair_region() {
        let keys = |n: usize| cut_raw(&limits(40, 60, 10), &vec![10; n]).split_keys;
        assert_eq!(keys(7), ["k04"], "40 and 30");
        assert_eq!(keys(10), ["k04"], "40 and 60");
        assert_eq!(keys(11), ["k04", "k08"], "40, 40 and 30");
        let uneven = cut_raw(&limits(40, 60, 10), &[1, 100, 1]);
        assert_eq!(uneven.split_keys, ["k02"], "a pair is never cut");
    }

    #[test]
    fn the_number_of_cuts_is_bounded_and_the_walk_ends_there() {
        let check = cut_raw(&limits(40, 60, 2), &[10; 90]);
        assert_eq!(check.split_keys, ["k04", "k08"]);
        assert_eq!(check.size.bytes, 120, "it went no further than the third part");
    }

    #[test]
    fn raw_pairs_are_not_counted_and_committed_versions_are() {
        let limits = limits(1_000, 1_500, 10);
        assert_eq!(cut_raw(&limits, &[1; 90]).split_keys, Vec::<Bytes>::new());
        let region = region("", "");
        let mut walk = SizeWalk::new(&region, &limits);
        for n in 0..20 {
            let key = format!("k{n:02}");
            walk.add(&record(&key, 1, RecordKind::Other));
            walk.add(&record(&key, 1, RecordKind::Commit));
        }
        let check = walk.finish();
        assert_eq!((check.split_keys, check.size.keys), (vec![Bytes::from("k10")], 20));
    }

    #[test]
    fn versions_of_one_key_stay_together() {
        let (region, limits) = (region("", ""), limits(40, 60, 10));
        let mut walk = SizeWalk::new(&region, &limits);
        walk.add(&record("a", 1, RecordKind::Commit));
        (0..20).for_each(|_| assert!(walk.add(&record("b", 10, RecordKind::Commit))));
        walk.add(&record("c", 1, RecordKind::Commit));
        assert_eq!(walk.finish().split_keys, ["c"]);
        let mut walk = SizeWalk::new(&region, &limits);
        (0..20).for_each(|_| assert!(walk.add(&record("b", 10, RecordKind::Commit))));
        assert_eq!(walk.finish().split_keys, Vec::<Bytes>::new(), "one key cannot be divided");
    }

    #[test]
    fn what_may_not_be_a_boundary_is_passed_over() {
        let long = "l".repeat(CUT_BYTES_MAX + 1);
        let (region, limits) = (region("b", "n"), limits(40, 60, 10));
        let mut walk = SizeWalk::new(&region, &limits);
        for key in ["b", &long, "m", "n"] {
            walk.add(&record(key, 50, RecordKind::Raw));
        }
        assert_eq!(walk.finish().split_keys, ["m"]);
        let mut boundaries = Boundaries { region: &region, last: Some(b"a".to_vec()) };
        assert!(!boundaries.may_cut(b"b") && !boundaries.may_cut(b"") && !boundaries.may_cut(b"n"));
        assert!(boundaries.may_cut(b"c") && !boundaries.may_cut(b"c"));
    }

    #[test]
    fn the_middle_is_found_however_many_keys_there_are() {
        let region = region("", "");
        for (count, bytes) in [(2, 1), (3, 1_000), (20_000, 100)] {
            let mut walk = HalfWalk::new(&region);
            for n in 0..count {
                walk.add(&record(&format!("k{n:05}"), bytes, RecordKind::Raw));
            }
            let check = walk.finish();
            assert_eq!((check.size.bytes, check.size.keys), (count * bytes, count));
            let key = std::str::from_utf8(&check.split_keys[0]).unwrap();
            let at: u64 = key[1..].parse().unwrap();
            assert!(at.abs_diff(count / 2) <= count / 100, "{key} of {count}");
        }
        let mut walk = HalfWalk::new(&region);
        walk.add(&record("only", 9, RecordKind::Raw));
        assert_eq!(walk.finish().split_keys, Vec::<Bytes>::new());
    }
}
