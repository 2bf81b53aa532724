//! Where Raft logs live, behind a trait: entries and hard states of all regions of a store.
//!
//! Owns the record types and [`Durable`], the proof that a write reached the disk: only this module can make
//! one, and messages that must wait for durability can only be taken out with it. `rocks_log` keeps logs in a
//! RocksDB of their own with recycled log files, [`MemLogStore`] in memory for tests and the simulator.
//!
//! Invariants: after an append of `[a..b]` the region's log ends at `b` (a longer old tail is gone); indexes of
//! a region are contiguous; a synced append is durable together with everything appended before it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{EngineError, Result};

/// One log entry as stored. `kind` is the consensus library's entry type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    pub index: u64,
    pub term: u64,
    pub kind: u8,
    pub data: Bytes,
    pub context: Bytes,
}

impl LogEntry {
    /// Bytes of payload, for limits.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.context.len() + 32
    }
}

/// What a Raft peer must not forget besides its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// Changes of one region's log within a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionLogWrite {
    pub region_id: u64,
    /// Forget the whole old log before anything else (a snapshot replaced it).
    pub reset: bool,
    /// Contiguous, ascending.
    pub entries: Vec<LogEntry>,
    /// When the old log ended beyond the new entries: its last index. Everything between is removed.
    pub old_last_index: u64,
    pub hard_state: Option<HardState>,
}

/// One atomic write to the log store, for any number of regions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogWrite {
    pub regions: Vec<RegionLogWrite>,
}

impl RegionLogWrite {
    /// Refuses entries that are not contiguous and ascending.
    pub(super) fn check(&self) -> Result<()> {
        match self.entries.windows(2).find(|pair| pair[0].index.checked_add(1) != Some(pair[1].index)) {
            None => Ok(()),
            Some(pair) => Err(EngineError::Corrupt(format!(
                "raft log of region {}: entry {} cannot follow entry {}",
                self.region_id, pair[1].index, pair[0].index
            ))),
        }
    }
}

impl LogWrite {
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Bytes of payload.
    pub fn bytes(&self) -> usize {
        self.regions.iter().flat_map(|r| &r.entries).map(LogEntry::bytes).sum()
    }
}

/// What a region's log looks like at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoggedState {
    pub hard_state: HardState,
    /// First index that is stored; 0 when there are no entries.
    pub first_index: u64,
    /// Last index that is stored; 0 when there are no entries.
    pub last_index: u64,
}

/// Proof that an append is durable. Made only by log stores.
#[derive(Debug)]
pub struct Durable(());

impl Durable {
    pub(in crate::engine) fn new() -> Durable {
        Durable(())
    }
}

/// The Raft logs of one store.
pub trait LogStore: Send + Sync {
    /// Regions that have a log or a hard state, ascending.
    fn regions(&self) -> Result<Vec<u64>>;
    /// The bounds and hard state of a region's log; `None` when nothing is known.
    fn load(&self, region_id: u64) -> Result<Option<LoggedState>>;
    /// Writes all of `write` atomically; with `sync` it is on disk when this returns. Without `sync` the caller
    /// states that nothing in it needs to be (a changed commit index).
    fn append(&self, write: &LogWrite, sync: bool) -> Result<Durable>;
    /// Entries `[low, high)`, at least one, stopping once `max_bytes` are exceeded. Missing indexes are
    /// [`EngineError::Corrupt`].
    fn entries(&self, region_id: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>>;
    /// The term of one entry; `None` when it is not stored.
    fn term(&self, region_id: u64, index: u64) -> Result<Option<u64>>;
    /// Removes entries below `to`. `from` is where the caller knows the log to begin.
    fn compact(&self, region_id: u64, from: u64, to: u64) -> Result<()>;
    /// Forgets everything about a region, durably.
    fn remove(&self, region_id: u64) -> Result<()>;
    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;
    /// Flushes, for a clean stop.
    fn close(&self) -> Result<()>;
}

/// Writes that [`MemLogStore`] and the memory engine may hold back at most. Beyond it the oldest becomes
/// durable, as it would when a real engine flushes in the background.
pub(super) const UNSYNCED_MAX: usize = 4096;

/// Logs in memory, with a durable prefix: what a crash keeps is what was synced and the first few writes after.
#[derive(Default)]
pub struct MemLogStore {
    state: Mutex<MemState>,
}

#[derive(Default)]
struct MemState {
    now: MemRegions,
    durable: MemRegions,
    /// What `now` has and `durable` has not, in order.
    unsynced: VecDeque<Change>,
}

type MemRegions = BTreeMap<u64, MemRegion>;

#[derive(Clone, Default)]
struct MemRegion {
    hard_state: Option<HardState>,
    entries: BTreeMap<u64, LogEntry>,
}

#[derive(Clone)]
enum Change {
    Append(LogWrite),
    Compact { region_id: u64, from: u64, to: u64 },
    Remove(u64),
}

impl MemLogStore {
    /// An empty store.
    pub fn new() -> MemLogStore {
        MemLogStore::default()
    }

    /// Loses power: everything synced stays, and of the writes after it the first `keep_unsynced`.
    pub fn crash(&self, keep_unsynced: usize) {
        let mut state = self.state.lock();
        state.unsynced.truncate(keep_unsynced);
        state.sync();
        state.now = state.durable.clone();
    }

    /// Writes that a crash might lose.
    pub fn unsynced(&self) -> usize {
        self.state.lock().unsynced.len()
    }
}

impl MemState {
    fn write(&mut self, change: Change, sync: bool) {
        change.apply(&mut self.now);
        self.unsynced.push_back(change);
        if sync {
            self.sync();
        } else if self.unsynced.len() > UNSYNCED_MAX
            && let Some(oldest) = self.unsynced.pop_front()
        {
            oldest.apply(&mut self.durable);
        }
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.durable);
        }
    }
}

impl Change {
    fn apply(&self, regions: &mut MemRegions) {
        match self {
            Change::Append(write) => {
                for write in &write.regions {
                    apply_region(regions, write);
                }
            }
            Change::Compact { region_id, from, to } => {
                if let Some(region) = regions.get_mut(region_id) {
                    region.entries.retain(|index, _| index < from || index >= to);
                }
            }
            Change::Remove(region_id) => {
                regions.remove(region_id);
            }
        }
    }
}

fn apply_region(regions: &mut MemRegions, write: &RegionLogWrite) {
    let region = regions.entry(write.region_id).or_default();
    if write.reset {
        region.entries.clear();
    }
    if let Some(last) = write.entries.last() {
        for entry in &write.entries {
            region.entries.insert(entry.index, entry.clone());
        }
        if write.old_last_index > last.index {
            let mut tail = region.entries.split_off(&(last.index + 1));
            tail.retain(|index, _| *index > write.old_last_index);
            region.entries.append(&mut tail);
        }
    }
    if write.hard_state.is_some() {
        region.hard_state = write.hard_state;
    }
}

impl MemRegion {
    fn is_known(&self) -> bool {
        self.hard_state.is_some() || !self.entries.is_empty()
    }
}

impl LogStore for MemLogStore {
    fn regions(&self) -> Result<Vec<u64>> {
        let state = self.state.lock();
        Ok(state.now.iter().filter(|(_, region)| region.is_known()).map(|(id, _)| *id).collect())
    }

    fn load(&self, region_id: u64) -> Result<Option<LoggedState>> {
        let state = self.state.lock();
        let region = state.now.get(&region_id).filter(|region| region.is_known());
        Ok(region.map(|region| LoggedState {
            hard_state: region.hard_state.unwrap_or_default(),
            first_index: region.entries.first_key_value().map_or(0, |(index, _)| *index),
            last_index: region.entries.last_key_value().map_or(0, |(index, _)| *index),
        }))
    }

    fn append(&self, write: &LogWrite, sync: bool) -> Result<Durable> {
        write.regions.iter().try_for_each(RegionLogWrite::check)?;
        self.state.lock().write(Change::Append(write.clone()), sync);
        Ok(Durable::new())
    }

    fn entries(&self, region_id: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>> {
        let state = self.state.lock();
        let mut found = Vec::new();
        let mut bytes = 0u64;
        for index in low..high {
            let entry = state.now.get(&region_id).and_then(|region| region.entries.get(&index));
            let entry = entry.ok_or_else(|| missing_entry(region_id, index))?;
            bytes = bytes.saturating_add(entry.bytes() as u64);
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, region_id: u64, index: u64) -> Result<Option<u64>> {
        let state = self.state.lock();
        let entry = state.now.get(&region_id).and_then(|region| region.entries.get(&index));
        Ok(entry.map(|entry| entry.term))
    }

    fn compact(&self, region_id: u64, from: u64, to: u64) -> Result<()> {
        if from < to {
            self.state.lock().write(Change::Compact { region_id, from, to }, false);
        }
        Ok(())
    }

    fn remove(&self, region_id: u64) -> Result<()> {
        self.state.lock().write(Change::Remove(region_id), true);
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        let state = self.state.lock();
        let entries = state.now.values().flat_map(|region| region.entries.values());
        entries.map(|entry| entry.bytes() as u64).sum()
    }

    fn close(&self) -> Result<()> {
        self.state.lock().sync();
        Ok(())
    }
}

/// A region's log has a hole where `index` should be.
pub(super) fn missing_entry(region_id: u64, index: u64) -> EngineError {
    EngineError::Corrupt(format!("raft log of region {region_id}: entry {index} is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(index: u64, term: u64) -> LogWrite {
        let entry = LogEntry { index, term, kind: 0, data: Bytes::new(), context: Bytes::new() };
        let hard_state = Some(HardState { term, vote: 1, commit: 0 });
        let region = RegionLogWrite { region_id: 3, entries: vec![entry], hard_state, ..Default::default() };
        LogWrite { regions: vec![region] }
    }

    fn last(log: &MemLogStore) -> u64 {
        log.load(3).unwrap().unwrap_or_default().last_index
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let log = MemLogStore::new();
        for index in 1..6 {
            log.append(&write(index, 1), index == 2).unwrap();
        }
        assert_eq!(log.unsynced(), 3);
        log.crash(1);
        assert_eq!((last(&log), log.unsynced()), (3, 0));
        log.append(&write(4, 2), false).unwrap();
        log.crash(0);
        assert_eq!(last(&log), 3);
    }

    #[test]
    fn removal_is_durable_and_covers_writes_before_it() {
        let log = MemLogStore::new();
        log.append(&write(1, 1), false).unwrap();
        log.remove(3).unwrap();
        log.crash(0);
        assert_eq!(log.load(3).unwrap(), None);
    }

    #[test]
    fn writes_that_nobody_syncs_become_durable_in_the_end() {
        let log = MemLogStore::new();
        for index in 1..UNSYNCED_MAX as u64 + 11 {
            log.append(&write(index, 1), false).unwrap();
        }
        log.crash(0);
        assert_eq!(last(&log), 10);
    }

    #[test]
    fn entries_with_a_hole_are_refused() {
        let mut hole = write(1, 1);
        let second = write(3, 1).regions.remove(0).entries.remove(0);
        hole.regions[0].entries.push(second);
        let error = MemLogStore::new().append(&hole, true).unwrap_err();
        assert!(error.to_string().contains("entry 3 cannot follow entry 1"), "{error}");
    }
}
