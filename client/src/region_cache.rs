//! Where keys live, as far as this client knows. Pure: errors and scheduler answers come in, look-ups go out.
//!
//! Owns the known regions, ordered by start key. Keys and ranges are wire keys; boundaries are decoded when a region
//! comes in. Invariants: cached regions do not overlap; a region is never replaced by one with an older epoch; an
//! update that was caused by a view that has been replaced meanwhile changes nothing, so that a hundred callers that
//! meet the same error act as one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use kvproto::key::{BoundaryForm, KeyError};
use kvproto::metapb;

/// A region as a client sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// Its number.
    pub id: u64,
    /// Its epoch; requests carry it.
    pub epoch: metapb::RegionEpoch,
    /// First wire key; empty from the beginning.
    pub start: Bytes,
    /// First wire key after it; empty without end.
    pub end: Bytes,
    /// Its replicas.
    pub peers: Vec<metapb::Peer>,
    /// The replica that requests go to: the leader, or the one to try next.
    target: usize,
    /// Replicas tried in a row without finding the leader.
    tried: usize,
}

impl Region {
    /// Takes over a region from the wire. Without a leader, requests first go to a replica on `store_hint`.
    pub fn new(
        region: metapb::Region,
        leader: Option<&metapb::Peer>,
        store_hint: Option<u64>,
        form: BoundaryForm,
    ) -> Result<Region, KeyError> {
        let by_leader = leader.and_then(|leader| region.peers.iter().position(|p| p.id == leader.id));
        let by_hint = || region.peers.iter().position(|p| Some(p.store_id) == store_hint);
        let voter = || region.peers.iter().position(|p| p.role() == metapb::PeerRole::Voter);
        let target = by_leader.or_else(by_hint).or_else(voter).unwrap_or(0);
        Ok(Region {
            id: region.id,
            epoch: region.region_epoch.unwrap_or_default(),
            start: form.wire_key(region.start_key)?,
            end: form.wire_key(region.end_key)?,
            peers: region.peers,
            target,
            tried: 0,
        })
    }

    /// The replica that requests go to; `None` for a region without replicas.
    pub fn target(&self) -> Option<metapb::Peer> {
        self.peers.get(self.target).copied()
    }

    /// Whether `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start <= key && self.is_before_end(key)
    }

    /// Whether the keys right before `end` lie inside; an empty `end` means the last keys of all.
    pub fn contains_before(&self, end: &[u8]) -> bool {
        match end {
            [] => self.end.is_empty(),
            end => self.start < end && (self.end.is_empty() || self.end >= end),
        }
    }

    /// Whether `key` lies before the end.
    pub fn is_before_end(&self, key: &[u8]) -> bool {
        self.end.is_empty() || key < self.end
    }

    fn overlaps(&self, other: &Region) -> bool {
        let starts_before_end = |a: &Region, b: &Region| b.end.is_empty() || a.start < b.end;
        starts_before_end(self, other) && starts_before_end(other, self)
    }

    fn is_older_than(&self, other: &Region) -> bool {
        epoch_order(&self.epoch) < epoch_order(&other.epoch)
    }
}

fn epoch_order(epoch: &metapb::RegionEpoch) -> (u64, u64) {
    (epoch.version, epoch.conf_ver)
}

/// What a failed request teaches about the region it was sent to.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// Nothing.
    Keep,
    /// This replica leads.
    Leader(metapb::Peer),
    /// The replica that was asked does not lead or does not answer: try another one.
    NextPeer,
    /// The region is not what it was: ask the scheduler.
    Forget,
    /// These regions cover the place now.
    Replace(Vec<metapb::Region>),
}

/// The regions a client knows.
#[derive(Debug)]
pub struct RegionCache {
    form: BoundaryForm,
    by_start: BTreeMap<Bytes, Arc<Region>>,
    starts: BTreeMap<u64, Bytes>,
    capacity: usize,
    /// Start key of the region that was evicted last; eviction goes round.
    hand: Bytes,
}

impl RegionCache {
    /// An empty cache for at most `capacity` regions whose boundaries come in `form`.
    pub fn new(form: BoundaryForm, capacity: usize) -> RegionCache {
        let (by_start, starts) = (BTreeMap::new(), BTreeMap::new());
        RegionCache { form, by_start, starts, capacity: capacity.max(1), hand: Bytes::new() }
    }

    /// The region that holds `key`.
    pub fn lookup(&self, key: &[u8]) -> Option<Arc<Region>> {
        let range = (Bound::Unbounded, Bound::Included(key));
        let (_, region) = self.by_start.range::<[u8], _>(range).next_back()?;
        region.is_before_end(key).then(|| region.clone())
    }

    /// The region that holds the keys right before `end`; an empty `end` means the last region.
    pub fn lookup_before(&self, end: &[u8]) -> Option<Arc<Region>> {
        let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        let (_, region) = self.by_start.range::<[u8], _>((Bound::Unbounded, upper)).next_back()?;
        region.contains_before(end).then(|| region.clone())
    }

    /// Takes over a region and returns the view to use for the request that asked. What is known already stays
    /// unless this is newer; so does a leader that was learned.
    pub fn insert(&mut self, region: Region) -> Arc<Region> {
        let known = self.starts.get(&region.id).and_then(|start| self.by_start.get(start));
        if let Some(known) = known
            && !known.is_older_than(&region)
        {
            return known.clone();
        }
        let region = Arc::new(region);
        let overlapping = self.overlapping(&region);
        let is_stale =
            |other: &Arc<Region>| other.id != region.id && other.epoch.version > region.epoch.version;
        if overlapping.iter().any(is_stale) {
            return region;
        }
        for other in overlapping {
            self.remove(&other);
        }
        if let Some(start) = self.starts.get(&region.id)
            && let Some(old) = self.by_start.get(start).cloned()
        {
            self.remove(&old);
        }
        if self.by_start.len() >= self.capacity {
            self.evict();
        }
        self.starts.insert(region.id, region.start.clone());
        self.by_start.insert(region.start.clone(), region.clone());
        region
    }

    /// Applies what a request learned that was sent with the view `seen`.
    pub fn update(&mut self, seen: &Arc<Region>, update: Update) -> Result<(), KeyError> {
        let current = self.by_start.get(&seen.start);
        if !current.is_some_and(|current| Arc::ptr_eq(current, seen)) {
            // Someone has acted on the same error, unless this brings regions.
            if let Update::Replace(regions) = update {
                self.replace(seen, regions)?;
            }
            return Ok(());
        }
        match update {
            Update::Keep => {}
            Update::Forget => self.remove(seen),
            Update::Leader(leader) => match seen.peers.iter().position(|peer| peer.id == leader.id) {
                Some(target) => self.retarget(seen, target, 0),
                None => self.remove(seen),
            },
            Update::NextPeer if seen.tried + 1 >= seen.peers.len() => self.remove(seen),
            Update::NextPeer => self.retarget(seen, (seen.target + 1) % seen.peers.len(), seen.tried + 1),
            Update::Replace(regions) => {
                self.remove(seen);
                self.replace(seen, regions)?;
            }
        }
        Ok(())
    }

    fn replace(&mut self, seen: &Region, regions: Vec<metapb::Region>) -> Result<(), KeyError> {
        // The store that reported a split leads its parts, most likely.
        let store = seen.target().map(|peer| peer.store_id);
        for region in regions {
            self.insert(Region::new(region, None, store, self.form)?);
        }
        Ok(())
    }

    fn retarget(&mut self, seen: &Region, target: usize, tried: usize) {
        let region = Region { target, tried, ..seen.clone() };
        self.by_start.insert(region.start.clone(), Arc::new(region));
    }

    fn overlapping(&self, region: &Region) -> Vec<Arc<Region>> {
        let from =
            self.lookup(&region.start).map_or_else(|| region.start.clone(), |first| first.start.clone());
        let candidates = self.by_start.range(from..).map(|(_, other)| other);
        candidates.take_while(|other| region.overlaps(other)).cloned().collect()
    }

    fn remove(&mut self, region: &Region) {
        self.by_start.remove(&region.start);
        self.starts.remove(&region.id);
    }

    fn evict(&mut self) {
        let after = (Bound::Excluded(self.hand.clone()), Bound::Unbounded);
        let victim = self.by_start.range(after).next().or_else(|| self.by_start.first_key_value());
        if let Some((start, region)) = victim {
            let (start, region) = (start.clone(), region.clone());
            self.remove(&region);
            self.hand = start;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::fmt::Write as _;

    use super::*;

    /// The language of `tests/scripts/region_cache`.
    #[derive(goldenscript::Command)]
    enum Command {
        /// Takes over a region with peers 1, 2 and 3 on stores 1, 2 and 3: insert 1 a m version=2 leader=1
        Insert {
            id: u64,
            start: String,
            end: String,
            #[arg(key)]
            version: u64,
            #[arg(key)]
            conf_ver: Option<u64>,
            #[arg(key)]
            leader: Option<u64>,
        },
        /// Finds the region of each key.
        Lookup(Vec<String>),
        /// Finds the region before each key.
        Before(Vec<String>),
        /// Remembers the view that a request at this key is sent with.
        View(String, String),
        /// The request with this view learned the leader's peer number.
        Leader(String, u64),
        /// The request with this view found no leader.
        NextPeer(String),
        /// The request with this view found that its region is gone.
        Forget(String),
        /// The request with this view got regions: replace v 1/a-f/2 4/f-m/2
        Replace(String, Vec<String>),
        /// Starts again with room for this many regions.
        Capacity(usize),
    }

    struct Runner {
        cache: RegionCache,
        views: BTreeMap<String, Arc<Region>>,
    }

    fn meta(id: u64, start: &str, end: &str, version: u64, conf_ver: u64) -> metapb::Region {
        let peers = (1..=3).map(|n| metapb::Peer { id: n, store_id: n, ..Default::default() }).collect();
        let (start_key, end_key) = (start.to_string().into(), end.to_string().into());
        let region_epoch = Some(metapb::RegionEpoch { version, conf_ver });
        metapb::Region { id, start_key, end_key, region_epoch, peers, ..Default::default() }
    }

    fn show(region: &Region) -> String {
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let (start, end, epoch) = (text(&region.start), text(&region.end), region.epoch);
        let target = region.target().map_or(0, |peer| peer.id);
        format!("{} [{start}, {end}) epoch {}.{} ask {target}", region.id, epoch.version, epoch.conf_ver)
    }

    impl Runner {
        fn view(&self, name: &str) -> Result<Arc<Region>, Box<dyn Error>> {
            Ok(self.views.get(name).ok_or("no such view")?.clone())
        }

        fn update(&mut self, view: &str, update: Update) -> Result<(), Box<dyn Error>> {
            let seen = self.view(view)?;
            Ok(self.cache.update(&seen, update)?)
        }

        fn check(&self) {
            let regions: Vec<_> = self.cache.by_start.values().collect();
            for pair in regions.windows(2) {
                assert!(!pair[0].overlaps(pair[1]), "{} overlaps {}", show(pair[0]), show(pair[1]));
            }
            assert_eq!(regions.len(), self.cache.starts.len());
            assert!(regions.iter().all(|region| self.cache.starts[&region.id] == region.start));
        }
    }

    impl goldenscript::Runner for Runner {
        type Command = Command;

        fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
            let mut out = String::new();
            match command {
                Command::Insert { id, start, end, version, conf_ver, leader } => {
                    let leader = leader.map(|id| metapb::Peer { id, store_id: id, ..Default::default() });
                    let meta = meta(*id, start, end, *version, conf_ver.unwrap_or(1));
                    let region = Region::new(meta, leader.as_ref(), None, BoundaryForm::Plain)?;
                    writeln!(out, "use {}", show(&self.cache.insert(region)))?;
                }
                Command::Lookup(keys) => {
                    for key in keys {
                        let found = self.cache.lookup(key.as_bytes());
                        writeln!(out, "{key}: {}", found.as_deref().map_or("unknown".into(), show))?;
                    }
                }
                Command::Before(keys) => {
                    for key in keys {
                        let found = self.cache.lookup_before(key.as_bytes());
                        writeln!(out, "{key}: {}", found.as_deref().map_or("unknown".into(), show))?;
                    }
                }
                Command::View(name, key) => {
                    let view = self.cache.lookup(key.as_bytes()).ok_or("unknown key")?;
                    self.views.insert(name.clone(), view);
                }
                Command::Leader(view, id) => {
                    let leader = metapb::Peer { id: *id, store_id: *id, ..Default::default() };
                    self.update(view, Update::Leader(leader))?;
                }
                Command::NextPeer(view) => self.update(view, Update::NextPeer)?,
                Command::Forget(view) => self.update(view, Update::Forget)?,
                Command::Replace(view, regions) => {
                    let parse = |text: &String| {
                        let parts: Vec<&str> = text.split(['/', '-']).collect();
                        let [id, start, end, version] = parts[..] else {
                            return Err("write id/start-end/version");
                        };
                        let number = |text: &str| text.parse().map_err(|_| "not a number");
                        Ok(meta(number(id)?, start, end, number(version)?, 1))
                    };
                    let regions = regions.iter().map(parse).collect::<Result<_, _>>()?;
                    self.update(view, Update::Replace(regions))?;
                }
                Command::Capacity(regions) => self.cache = RegionCache::new(BoundaryForm::Plain, *regions),
            }
            self.check();
            Ok(out)
        }

        fn end_block(&mut self, _: &goldenscript::Block) -> Result<String, Box<dyn Error>> {
            let regions: Vec<String> = self.cache.by_start.values().map(|region| show(region)).collect();
            Ok(format!("cache: {}\n", if regions.is_empty() { "empty".into() } else { regions.join(" | ") }))
        }
    }

    fn script(name: &str) {
        let mut runner = Runner { cache: RegionCache::new(BoundaryForm::Plain, 100), views: BTreeMap::new() };
        goldenscript::run(&mut runner, format!("tests/scripts/region_cache/{name}")).unwrap();
    }

    #[test]
    fn lookups() {
        script("lookups");
    }

    #[test]
    fn news_from_the_scheduler() {
        script("news_from_the_scheduler");
    }

    #[test]
    fn failures_teach() {
        script("failures_teach");
    }

    #[test]
    fn encoded_boundaries_are_decoded() {
        let mut region = meta(1, "", "", 1, 1);
        region.start_key = kvproto::key::encode(b"r\0\0\0a").into();
        let known = Region::new(region.clone(), None, None, BoundaryForm::Encoded).unwrap();
        assert_eq!(known.start, &b"r\0\0\0a"[..]);
        region.end_key = Bytes::from_static(b"plain");
        assert!(Region::new(region, None, None, BoundaryForm::Encoded).is_err());
    }
}
