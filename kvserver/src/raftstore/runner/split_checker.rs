//! Looks whether regions have become too large, and where to cut them.
//!
//! A look is cheap as long as the engine's estimate says that the region cannot be too large; only then its data is
//! walked over, outside of the block cache, one region at a time. What a walk found is remembered together with the
//! estimate of that time: the region is walked over again only when the estimate has since grown by what was missing.
//! Small regions are always counted, since the estimate knows little of data that has not left memory.
//!
//! Invariant: every look is answered, but for a stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvproto::key;

use super::ranges;
use crate::engine::{Cf, Engine, EngineError, Iter, IterOptions, RangeEstimate};
use crate::raftstore::message::Input;
use crate::raftstore::message::input::SplitCheck;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::raftstore::router::Router;
use crate::raftstore::split_keys::{HalfWalk, Record, RecordKind, SizeWalk, SplitLimits};

/// Bytes in files below which a region's records are counted, and how many of them at most.
const COUNTED_BYTES_MAX: u64 = 1 << 20;
const COUNTED_RECORDS_MAX: usize = 4_096;
/// Walks that are remembered. With more of them all are forgotten: that costs walks, nothing else.
const REMEMBERED_MAX: usize = 4_096;
/// How often a walk looks whether the store stops, in records.
const STOP_EVERY: usize = 1_024;

/// One look.
#[derive(Clone, Debug)]
pub struct Check {
    pub region: Arc<RegionMeta>,
    /// Find the middle, whatever the size.
    pub half: bool,
}

/// A walk that found nothing to cut.
#[derive(Clone, Copy, Debug)]
struct Walked {
    version: u64,
    size: RangeEstimate,
    /// How much may come before the region has to be walked over again.
    room_bytes: u64,
    room_commits: u64,
    /// The least that was estimated then or since.
    bytes_max: u64,
    commits_max: u64,
}

/// An estimate of a region.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    data: RangeEstimate,
    /// The most committed versions of transactional keys.
    commits_max: u64,
    /// Raw pairs and committed versions.
    keys: u64,
}

/// A size that leaves nothing open.
fn counted(bytes: u64, keys: u64) -> RangeEstimate {
    RangeEstimate { bytes, keys, ..RangeEstimate::default() }
}

/// See the file's head.
pub struct SplitChecker {
    engine: Arc<dyn Engine>,
    router: Router,
    limits: SplitLimits,
    walked: BTreeMap<u64, Walked>,
    stopping: Arc<AtomicBool>,
}

impl SplitChecker {
    /// A checker of `engine`'s regions. A walk ends early once `stopping` is set.
    pub fn new(
        engine: Arc<dyn Engine>,
        router: Router,
        limits: SplitLimits,
        stopping: Arc<AtomicBool>,
    ) -> SplitChecker {
        SplitChecker { engine, router, limits, walked: BTreeMap::new(), stopping }
    }

    /// Looks, and answers.
    pub fn run(&mut self, check: &Check) {
        let meta = &check.region;
        let result = match self.check(meta, check.half) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => return,
            Err(error) => Err(error.to_string()),
        };
        let (region_id, version) = (meta.region.id, meta.version());
        self.router.complete(Input::SplitChecked { region_id, version, result });
    }

    /// `None` when the store stops.
    fn check(&mut self, meta: &RegionMeta, half: bool) -> Result<Option<SplitCheck>, EngineError> {
        if half {
            let mut walk = HalfWalk::new(meta);
            let ended = self.walk(meta, |record| {
                walk.add(record);
                true
            })?;
            return Ok((ended != Ended::Stopped).then(|| walk.finish()));
        }
        let estimate = self.estimate(meta)?;
        if let Some(size) = self.is_small_enough(meta, &estimate)? {
            return Ok(Some(SplitCheck { size, split_keys: Vec::new() }));
        }
        let mut walk = SizeWalk::new(meta, &self.limits);
        let ended = self.walk(meta, |record| walk.add(record))?;
        let commits = walk.commits();
        let mut found = walk.finish();
        match ended {
            Ended::Stopped => return Ok(None),
            // The rest was not looked at.
            Ended::Early => {
                found.size.bytes = found.size.bytes.max(estimate.data.bytes);
                found.size.keys = found.size.keys.max(estimate.keys);
            }
            Ended::AtEnd if found.split_keys.is_empty() => {
                self.remember(meta, &estimate, found.size, commits);
            }
            Ended::AtEnd => {}
        }
        Ok(Some(found))
    }

    /// The region's size, when it needs no walk to know that the region is small enough.
    fn is_small_enough(
        &mut self,
        meta: &RegionMeta,
        estimate: &Estimate,
    ) -> Result<Option<RangeEstimate>, EngineError> {
        let (id, limits) = (meta.region.id, &self.limits);
        if estimate.data.bytes_max() <= limits.max_bytes && estimate.commits_max <= limits.max_keys {
            self.walked.remove(&id);
            return self.small_size(meta, estimate).map(Some);
        }
        let Some(walked) = self.walked.get_mut(&id).filter(|walked| walked.version == meta.version()) else {
            return Ok(None);
        };
        // What compaction removed since must not hide what was written after it.
        walked.bytes_max = walked.bytes_max.min(estimate.data.bytes_max());
        walked.commits_max = walked.commits_max.min(estimate.commits_max);
        let grown = estimate.data.bytes_max() - walked.bytes_max;
        let more = estimate.commits_max - walked.commits_max;
        let fits = grown <= walked.room_bytes && more <= walked.room_commits;
        Ok(fits.then_some(counted(walked.size.bytes + grown, walked.size.keys + more)))
    }

    /// The size of a region that is not large: counted when it is small, else estimated.
    fn small_size(&self, meta: &RegionMeta, estimate: &Estimate) -> Result<RangeEstimate, EngineError> {
        let mut size = counted(estimate.data.bytes, estimate.keys);
        if estimate.data.bytes > COUNTED_BYTES_MAX || estimate.data.keys_max() == 0 {
            return Ok(size);
        }
        let (mut found, mut records) = (RangeEstimate::default(), 0);
        let ended = self.walk(meta, |record| {
            found.bytes += record.bytes;
            found.keys += u64::from(record.kind != RecordKind::Other);
            records += 1;
            records < COUNTED_RECORDS_MAX
        })?;
        if ended == Ended::AtEnd {
            return Ok(found);
        }
        size.bytes = size.bytes.max(found.bytes);
        size.keys = size.keys.max(found.keys);
        Ok(size)
    }

    fn estimate(&self, meta: &RegionMeta) -> Result<Estimate, EngineError> {
        let mut all = Estimate::default();
        for range in ranges::of_region(meta) {
            let one = self.engine.estimate(range.cf, &range.start, &range.end)?;
            all.data = all.data.plus(&one);
            match range.cf {
                Cf::Write => {
                    all.commits_max = one.keys_max();
                    all.keys += one.keys;
                }
                Cf::Raw => all.keys += one.keys,
                Cf::Default | Cf::Lock | Cf::Meta => {}
            }
        }
        Ok(all)
    }

    fn remember(&mut self, meta: &RegionMeta, estimate: &Estimate, size: RangeEstimate, commits: u64) {
        if self.walked.len() >= REMEMBERED_MAX {
            self.walked.clear();
        }
        let limits = &self.limits;
        let walked = Walked {
            version: meta.version(),
            size,
            // One that is too large and cannot be cut has to grow by a part before that may change.
            room_bytes: limits.max_bytes.checked_sub(size.bytes).unwrap_or(limits.split_bytes),
            room_commits: limits.max_keys.checked_sub(commits).unwrap_or(limits.split_keys),
            bytes_max: estimate.data.bytes_max(),
            commits_max: estimate.commits_max,
        };
        self.walked.insert(meta.region.id, walked);
    }

    /// Feeds the region's records to `take`, in the order of their user keys, until it says that this is enough.
    fn walk(
        &self,
        meta: &RegionMeta,
        mut take: impl FnMut(&Record<'_>) -> bool,
    ) -> Result<Ended, EngineError> {
        let snapshot = self.engine.snapshot();
        let mut cursors = Vec::new();
        for range in ranges::of_region(meta) {
            let options = IterOptions {
                lower: range.start,
                upper: range.end,
                no_fill_cache: true,
                ..IterOptions::default()
            };
            cursors.extend(Cursor::first(range.cf, snapshot.iter(range.cf, options)?)?);
        }
        let mut records = 0;
        while let Some(next) =
            (0..cursors.len()).min_by(|a, b| cursors[*a].user_key().cmp(cursors[*b].user_key()))
        {
            records += 1;
            if records % STOP_EVERY == 0 && self.stopping.load(Ordering::Relaxed) {
                return Ok(Ended::Stopped);
            }
            if !take(&cursors[next].record()) {
                return Ok(Ended::Early);
            }
            if !cursors[next].advance()? {
                cursors.remove(next);
            }
        }
        Ok(Ended::AtEnd)
    }
}

/// How a walk came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    AtEnd,
    Early,
    Stopped,
}

/// A place in one column family of a region.
struct Cursor {
    cf: Cf,
    iter: Box<dyn Iter>,
    /// The user key, where it is not the stored one.
    decoded: Vec<u8>,
}

impl Cursor {
    /// At the first record; `None` when there is none.
    fn first(cf: Cf, mut iter: Box<dyn Iter>) -> Result<Option<Cursor>, EngineError> {
        iter.seek_to_first();
        let mut cursor = Cursor { cf, iter, decoded: Vec::new() };
        Ok(cursor.settle()?.then_some(cursor))
    }

    fn advance(&mut self) -> Result<bool, EngineError> {
        self.iter.next();
        self.settle()
    }

    /// Whether there is a record here; decodes its key.
    fn settle(&mut self) -> Result<bool, EngineError> {
        if !self.iter.valid() {
            return self.iter.status().map(|()| false);
        }
        if self.cf != Cf::Raw {
            self.decoded.clear();
            // A timestamp may follow.
            key::decode_into(self.iter.key(), &mut self.decoded).map_err(|error| {
                EngineError::Corrupt(format!("a key of column family {}: {error}", self.cf.name()))
            })?;
        }
        Ok(true)
    }

    fn user_key(&self) -> &[u8] {
        if self.cf == Cf::Raw { self.iter.key() } else { &self.decoded }
    }

    fn record(&self) -> Record<'_> {
        let kind = match self.cf {
            Cf::Raw => RecordKind::Raw,
            Cf::Write => RecordKind::Commit,
            Cf::Default | Cf::Lock | Cf::Meta => RecordKind::Other,
        };
        let bytes = (self.iter.key().len() + self.iter.value().len()) as u64;
        Record { user_key: self.user_key(), bytes, kind }
    }
}

#[cfg(test)]
mod tests {
    use kvproto::metapb;

    use super::*;
    use crate::engine::mem::MemEngine;
    use crate::engine::rocks::RocksEngine;
    use crate::engine::{EngineConfig, WriteBatch, WriteOptions};

    const LIMITS: SplitLimits =
        SplitLimits { max_bytes: 60_000, split_bytes: 40_000, max_keys: 150, split_keys: 100, batch: 10 };

    fn meta(start: &'static str, end: &'static str) -> Arc<RegionMeta> {
        let region_epoch = Some(metapb::RegionEpoch { conf_ver: 1, version: 1 });
        let region = metapb::Region { id: 7, region_epoch, ..Default::default() };
        Arc::new(RegionMeta { region, start: start.into(), end: end.into() })
    }

    fn checker(engine: &Arc<dyn Engine>) -> SplitChecker {
        let (router, _inbox) = Router::new();
        SplitChecker::new(engine.clone(), router, LIMITS, Arc::default())
    }

    fn check(checker: &mut SplitChecker, meta: &RegionMeta) -> SplitCheck {
        checker.check(meta, false).unwrap().unwrap()
    }

    /// Both engines, one after the other.
    fn both(test: impl Fn(Arc<dyn Engine>)) {
        test(Arc::new(MemEngine::new()));
        let dir = tempfile::tempdir().unwrap();
        test(Arc::new(RocksEngine::open(dir.path(), &EngineConfig::default()).unwrap()));
    }

    fn put(engine: &dyn Engine, cf: Cf, key: Vec<u8>, bytes: usize) {
        let mut batch = WriteBatch::new();
        batch.put(cf, key, vec![b'v'; bytes]);
        engine.write(&batch, WriteOptions::default()).unwrap();
    }

    /// Raw pairs of 1000 bytes.
    fn put_raw(engine: &dyn Engine, numbers: std::ops::Range<u32>) {
        numbers.for_each(|n| put(engine, Cf::Raw, format!("k{n:03}").into_bytes(), 996));
    }

    #[test]
    fn raw_data_is_cut_by_its_size_inside_the_region() {
        both(|engine| {
            put_raw(&*engine, 0..300);
            let found = |start, end| check(&mut checker(&engine), &meta(start, end));
            let small = found("k100", "k160");
            assert_eq!((small.split_keys, small.size.bytes, small.size.keys), (vec![], 60_000, 60));
            let large = found("k100", "k200");
            assert_eq!((large.split_keys, large.size.keys), (vec!["k140".into()], 100));
            assert_eq!(found("", "").split_keys.len(), 6);
            let half = checker(&engine).check(&meta("k100", "k150"), true).unwrap().unwrap();
            assert_eq!(half.split_keys, ["k125"]);
        });
    }

    #[test]
    fn transactional_data_is_cut_by_committed_versions_and_never_inside_a_key() {
        both(|engine| {
            for n in 0..60 {
                for ts in 0..3u64 {
                    let mut stored = key::encode(format!("x{n:03}").as_bytes());
                    stored.extend_from_slice(&(!ts).to_be_bytes());
                    put(&*engine, Cf::Write, stored.clone(), 10);
                    put(&*engine, Cf::Default, stored, 100);
                }
            }
            put(&*engine, Cf::Lock, key::encode(b"x001"), 10);
            let found = check(&mut checker(&engine), &meta("", ""));
            assert_eq!(found.split_keys, ["x034"], "102 versions before it");
            assert_eq!(found.size.keys, 180);
        });
    }

    #[test]
    fn raw_and_transactional_data_of_one_region_are_walked_in_one_order() {
        both(|engine| {
            put_raw(&*engine, 0..20);
            for n in 0..20 {
                let mut stored = key::encode(format!("k{n:03}x").as_bytes());
                stored.extend_from_slice(&[0; 8]);
                put(&*engine, Cf::Default, stored, 2_000);
            }
            let found = check(&mut checker(&engine), &meta("", ""));
            assert_eq!(found.split_keys, ["k013x"], "13 pairs of both kinds and one raw one");
        });
    }

    #[test]
    fn what_was_walked_over_is_not_walked_over_again_until_it_may_be_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> =
            Arc::new(RocksEngine::open(dir.path(), &EngineConfig::default()).unwrap());
        let (mut checker, meta) = (checker(&engine), meta("", ""));
        put_raw(&*engine, 0..50);
        // Memory alone is estimated above the limit.
        assert_eq!(check(&mut checker, &meta).size, counted(50_000, 50));
        let walked = checker.walked[&7];
        let estimate = checker.estimate(&meta).unwrap();
        let known = checker.is_small_enough(&meta, &estimate).unwrap();
        assert_eq!(known, Some(walked.size), "nothing was written since");
        put_raw(&*engine, 50..4_000);
        assert!(!check(&mut checker, &meta).split_keys.is_empty());
        let other = RegionMeta {
            region: metapb::Region { region_epoch: None, ..meta.region.clone() },
            ..(*meta).clone()
        };
        let estimate = checker.estimate(&other).unwrap();
        assert_eq!(checker.is_small_enough(&other, &estimate).unwrap(), None, "another version");
    }

    #[test]
    fn a_stop_ends_a_walk_without_an_answer() {
        let engine: Arc<dyn Engine> = Arc::new(MemEngine::new());
        for n in 0..STOP_EVERY {
            put(&*engine, Cf::Raw, format!("k{n:05}").into_bytes(), 100);
        }
        let mut checker = checker(&engine);
        checker.stopping.store(true, Ordering::Relaxed);
        assert!(checker.check(&meta("", ""), false).unwrap().is_none());
    }
}
