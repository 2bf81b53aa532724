//! A peer's log and snapshots as the consensus library sees them.
//!
//! Owns the bounds of the log, the entry cache, the hard state handed out last, and the snapshot being built.
//! The library forgets entries once it has handed them out, before they are durable; from then on this answers
//! for them. Invariant: it answers for every index in `(truncated, last]`, durable or not, and never defers.

use std::cell::RefCell;
use std::sync::Arc;

use raft::eraftpb::{ConfState, Entry, EntryType, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use super::entry_cache::{EntryCache, payload};
use super::message::input::BuiltSnapshot;
use super::meta::region_view::RegionMeta;
use super::meta::values::ApplyState;
use super::op::snapshot;
use super::util::region;
use crate::engine::EngineError;
use crate::engine::log_store::{HardState, LogEntry, LogStore, LoggedState, RegionLogWrite};

/// The index and term that the first region's log is said to begin after.
pub const INITIAL_INDEX: u64 = 5;
pub const INITIAL_TERM: u64 = 5;

/// Where the building of a snapshot stands.
#[derive(Debug, Default)]
pub enum SnapshotState {
    #[default]
    None,
    /// The library wants one that contains at least this index; not asked for yet.
    Wanted(u64),
    Building,
    Built(Box<BuiltSnapshot>),
}

/// See the file's head.
pub struct PeerStorage {
    pub(super) region: Arc<RegionMeta>,
    log: Arc<dyn LogStore>,
    cache: EntryCache,
    hard_state: HardState,
    truncated: (u64, u64),
    last: (u64, u64),
    /// Last index that is in the log store for sure.
    persisted: u64,
    applied: u64,
    pub(super) snapshot: RefCell<SnapshotState>,
}

impl PeerStorage {
    /// A storage over what was found on disk. `logged` is `None` for a peer that has no log yet.
    pub fn load(
        region: Arc<RegionMeta>,
        log: Arc<dyn LogStore>,
        logged: Option<LoggedState>,
        apply: &ApplyState,
    ) -> Result<PeerStorage, EngineError> {
        let id = region.region.id;
        let logged = logged.unwrap_or_default();
        let truncated = (apply.truncated_index, apply.truncated_term);
        let mut last = truncated;
        if logged.last_index > truncated.0 {
            let term = log.term(id, logged.last_index)?;
            last = (logged.last_index, term.ok_or_else(|| corrupt(id, "its last entry is missing"))?);
            // Entries at or below the truncated index may linger; a hole above it may not.
            if logged.first_index > truncated.0 + 1 {
                return Err(corrupt(
                    id,
                    "entries between the truncated index and the first stored one are missing",
                ));
            }
        }
        if apply.applied_index > last.0 {
            return Err(corrupt(id, "the log ends before the applied index"));
        }
        let mut hard_state = logged.hard_state;
        // The commit index is not synced on its own; what was applied was certainly committed.
        hard_state.commit = hard_state.commit.max(apply.applied_index);
        hard_state.term = hard_state.term.max(last.1);
        Ok(PeerStorage {
            region,
            log,
            cache: EntryCache::default(),
            hard_state,
            truncated,
            last,
            persisted: last.0,
            applied: apply.applied_index,
            snapshot: RefCell::default(),
        })
    }

    /// True once the peer knows its region: from the start, or from its first snapshot.
    pub fn initialized(&self) -> bool {
        !self.region.region.peers.is_empty()
    }

    pub fn first(&self) -> u64 {
        self.truncated.0 + 1
    }

    pub fn truncated(&self) -> (u64, u64) {
        self.truncated
    }

    pub fn last(&self) -> u64 {
        self.last.0
    }

    pub fn persisted(&self) -> u64 {
        self.persisted
    }

    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Bytes of entries in memory.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Takes in what the library handed out and gives the write that makes it durable.
    pub fn append(&mut self, entries: Vec<Entry>, hard_state: Option<HardState>) -> RegionLogWrite {
        let mut write = RegionLogWrite { region_id: self.region.region.id, ..Default::default() };
        if let Some(last) = entries.last() {
            let first = entries[0].index;
            assert!(first <= self.last.0 + 1, "the library skipped entries");
            assert!(first > self.applied, "the library replaced an applied entry");
            if last.index < self.last.0 {
                write.old_last_index = self.last.0;
            }
            self.persisted = self.persisted.min(first - 1);
            self.last = (last.index, last.term);
            self.cache.append(&entries);
            write.entries = entries.into_iter().map(to_log).collect();
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state;
            write.hard_state = Some(hard_state);
        }
        write
    }

    /// Notes that the log is durable up to `index`.
    pub fn on_persisted(&mut self, index: u64) {
        self.persisted = self.persisted.max(index.min(self.last.0));
    }

    /// Notes that the log was applied up to `index`, and drops entries nobody will ask for: those that are durable,
    /// applied and, within `cache_bytes_max`, known to every follower up to `wanted`.
    pub fn on_applied(&mut self, index: u64, wanted: u64, cache_bytes_max: usize) {
        assert!(index >= self.applied, "INV-APPLY: the applied index went back");
        self.applied = index;
        let droppable = self.applied.min(self.persisted);
        let keep_for_followers = self.cache.bytes() <= cache_bytes_max;
        self.cache.evict_to(if keep_for_followers { droppable.min(wanted) } else { droppable });
    }

    /// Moves the log's beginning after a compaction was applied.
    pub fn truncate(&mut self, index: u64, term: u64) {
        assert!(index <= self.applied, "INV-DURABLE: only applied entries are dropped");
        if index > self.truncated.0 {
            self.truncated = (index, term);
            self.cache.evict_to(index.min(self.persisted));
        }
    }

    /// Replaces the log by a snapshot that ends at `index`, and gives the write that does so on disk.
    pub fn replace(
        &mut self,
        region: Arc<RegionMeta>,
        index: u64,
        term: u64,
        entries: Vec<Entry>,
        hard_state: Option<HardState>,
    ) -> RegionLogWrite {
        self.region = region;
        self.cache.clear();
        self.truncated = (index, term);
        self.last = (index, term);
        (self.persisted, self.applied) = (index, index);
        self.snapshot.replace(SnapshotState::None);
        let mut hard_state = hard_state.unwrap_or(self.hard_state);
        hard_state.commit = hard_state.commit.max(index);
        let mut write = self.append(entries, Some(hard_state));
        write.reset = true;
        write
    }

    fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, EngineError> {
        let mut out = Vec::new();
        let cached = self.cache.first_index().unwrap_or(u64::MAX);
        if low < cached {
            let stored = self.log.entries(self.region.region.id, low, high.min(cached), max_bytes)?;
            let whole = stored.len() as u64 == high.min(cached) - low;
            out.extend(stored.into_iter().map(from_log));
            if !whole || high <= cached || out.iter().map(payload).sum::<u64>() >= max_bytes {
                return Ok(out);
            }
        }
        self.cache.read(low.max(cached), high, max_bytes, &mut out);
        Ok(out)
    }
}

fn corrupt(region_id: u64, why: &str) -> EngineError {
    EngineError::Corrupt(format!("the log of region {region_id} cannot be used: {why}"))
}

fn other(error: EngineError) -> Error {
    Error::Store(StorageError::Other(Box::new(error)))
}

/// The stored form of an entry; the payload is shared.
pub fn to_log(e: Entry) -> LogEntry {
    LogEntry { index: e.index, term: e.term, kind: e.entry_type as u8, data: e.data, context: e.context }
}

/// The library's form of a stored entry.
pub fn from_log(e: LogEntry) -> Entry {
    let entry_type = match e.kind {
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => EntryType::EntryNormal,
    };
    Entry { entry_type, index: e.index, term: e.term, data: e.data, context: e.context, ..Default::default() }
}

impl Storage for PeerStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hs = raft::eraftpb::HardState::default();
        (hs.term, hs.vote, hs.commit) = (self.hard_state.term, self.hard_state.vote, self.hard_state.commit);
        let members =
            if self.initialized() { region::conf_state(&self.region.region) } else { ConfState::default() };
        Ok(RaftState::new(hs, members))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last.0 + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        if low >= high {
            return Ok(Vec::new());
        }
        self.read(low, high, max_size.into().unwrap_or(u64::MAX)).map_err(other)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0 {
            return Ok(self.truncated.1);
        }
        if index < self.truncated.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index == self.last.0 {
            return Ok(self.last.1);
        }
        if index > self.last.0 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        if let Some(term) = self.cache.term(index) {
            return Ok(term);
        }
        let term = self.log.term(self.region.region.id, index).map_err(other)?;
        term.ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let mut state = self.snapshot.borrow_mut();
        if let SnapshotState::Built(built) = &*state {
            if built.key.index >= request_index.max(self.truncated.0) {
                return Ok(snapshot::raft_snapshot(built));
            }
            *state = SnapshotState::None;
        }
        if matches!(*state, SnapshotState::None) {
            *state = SnapshotState::Wanted(request_index);
        }
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::engine::log_store::LogWrite;
    use crate::engine::log_store::MemLogStore;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![index as u8; 10].into(), ..Default::default() }
    }

    fn meta() -> Arc<RegionMeta> {
        let peers = vec![kvproto::metapb::Peer { id: 1, store_id: 1, ..Default::default() }];
        let region = kvproto::metapb::Region { id: 7, peers, ..Default::default() };
        Arc::new(RegionMeta { region, start: Bytes::new(), end: Bytes::new() })
    }

    fn storage(log: Arc<MemLogStore>) -> PeerStorage {
        let apply = ApplyState { applied_index: 5, applied_term: 5, truncated_index: 5, truncated_term: 5 };
        let logged = log.load(7).unwrap();
        PeerStorage::load(meta(), log, logged, &apply).unwrap()
    }

    fn indexes(s: &PeerStorage, low: u64, high: u64, max: u64) -> Vec<u64> {
        let ctx = GetEntriesContext::empty(false);
        s.entries(low, high, max, ctx).unwrap().iter().map(|e| e.index).collect()
    }

    #[test]
    fn entries_are_answered_before_and_after_they_are_durable_and_evicted() {
        let log = Arc::new(MemLogStore::default());
        let mut s = storage(log.clone());
        let write = s.append((6..=12).map(|i| entry(i, 6)).collect(), None);
        assert_eq!(indexes(&s, 6, 13, u64::MAX), (6..=12).collect::<Vec<_>>());
        assert_eq!(s.persisted(), 5);
        let _durable = log.append(&LogWrite { regions: vec![write] }, true).unwrap();
        s.on_persisted(12);
        s.on_applied(9, 12, 1 << 20);
        assert_eq!(s.cache.first_index(), Some(10));
        assert_eq!(indexes(&s, 6, 13, u64::MAX), (6..=12).collect::<Vec<_>>(), "half stored, half in memory");
        assert_eq!(indexes(&s, 6, 13, 30), [6]);
        assert_eq!((s.term(7).unwrap(), s.term(5).unwrap()), (6, 5));
    }

    #[test]
    fn what_is_not_durable_stays_in_memory() {
        let mut s = storage(Arc::new(MemLogStore::default()));
        s.append((6..=8).map(|i| entry(i, 6)).collect(), None);
        s.on_applied(5, 8, 0);
        assert_eq!(s.cache.first_index(), Some(6));
    }

    #[test]
    fn a_shorter_log_of_a_new_leader_asks_for_the_tail_to_be_removed() {
        let mut s = storage(Arc::new(MemLogStore::default()));
        s.append((6..=12).map(|i| entry(i, 6)).collect(), None);
        s.on_persisted(12);
        let write = s.append(vec![entry(8, 7)], None);
        assert_eq!((write.old_last_index, s.last(), s.persisted()), (12, 8, 7));
    }

    #[test]
    fn compacted_entries_are_reported_as_such() {
        let mut s = storage(Arc::new(MemLogStore::default()));
        s.append((6..=12).map(|i| entry(i, 6)).collect(), None);
        s.on_persisted(12);
        s.on_applied(12, 12, 0);
        s.truncate(9, 6);
        assert!(matches!(s.term(8), Err(Error::Store(StorageError::Compacted))));
        assert_eq!((s.term(9).unwrap(), s.first()), (6, 10));
        let compacted = s.entries(9, 12, None, GetEntriesContext::empty(false));
        assert!(matches!(compacted, Err(Error::Store(StorageError::Compacted))));
    }

    #[test]
    fn a_log_that_ends_before_what_was_applied_is_refused() {
        let log: Arc<dyn LogStore> = Arc::new(MemLogStore::default());
        let apply = ApplyState { applied_index: 9, applied_term: 6, truncated_index: 5, truncated_term: 5 };
        let error = PeerStorage::load(meta(), log, None, &apply).err().unwrap().to_string();
        assert!(error.contains("region 7") && error.contains("before the applied index"), "{error}");
    }
}
