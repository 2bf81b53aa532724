//! Finishing, at start, what a crash left half done.
//!
//! A region found `Applying` gets its snapshot put in place again from the files; a tombstone that still has to
//! clean goes on cleaning; data in ranges that no region holds is removed. Every step is the one the running
//! store would have taken, and may be interrupted and done again.

use std::sync::Arc;

use super::bootstrap::{self, Found};
use super::meta::keys;
use super::meta::region_map::{Holder, RegionMap};
use super::meta::values::{self, PeerState, RegionState};
use super::op::snapshot::snapshot_states;
use super::runner::ranges;
use super::runner::region_steps::{RegionSteps, RemovalJob, SnapshotJob};
use super::snap::{CfRange, SnapError, SnapKey};
use crate::engine::log_store::{HardState, RegionLogWrite};
use crate::engine::{Cf, EngineError, IterOptions, Snapshot, WriteBatch};

/// With more gaps than this between its regions a store leaves data in them alone: it is harmless, and looking
/// takes time.
const GAPS_MAX: usize = 1_024;

/// Why a store cannot go on from where it was.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The snapshot that was being put in place cannot be used any more.
    #[error(
        "region {region_id} was receiving a snapshot that cannot be completed: {cause}; this replica cannot be \
         mended: remove the store from the cluster and start it again with an empty data directory"
    )]
    Snapshot { region_id: u64, cause: SnapError },
}

/// Finishes what was under way and gives the regions that are here now.
pub fn recover(store: &RegionSteps) -> Result<Vec<Found>, RecoveryError> {
    for found in bootstrap::load_regions(&*store.engine, store.form)? {
        match found.state.state() {
            PeerState::Applying => finish_snapshot(store, &found)?,
            PeerState::Tombstone if found.state.cleaning => finish_removal(store, &found)?,
            PeerState::Tombstone | PeerState::Normal => {}
        }
    }
    let found = bootstrap::load_regions(&*store.engine, store.form)?;
    clear_gaps(store, &found)?;
    Ok(found)
}

fn finish_snapshot(store: &RegionSteps, found: &Found) -> Result<(), RecoveryError> {
    let region_id = found.meta.region.id;
    let key = SnapKey { region_id, term: found.state.snapshot_term, index: found.state.snapshot_index };
    tracing::info!(snapshot = %key, "putting a snapshot in place that was interrupted");
    // Nothing was promised since: the answers were held back until the end.
    let old = store.log.load(region_id)?.map(|l| l.hard_state).unwrap_or_default();
    let hard_state = HardState {
        term: old.term.max(key.term),
        vote: if old.term >= key.term { old.vote } else { 0 },
        commit: old.commit.max(key.index),
    };
    let log = RegionLogWrite { region_id, reset: true, hard_state: Some(hard_state), ..Default::default() };
    let (intent, done, _) = snapshot_states(&found.meta, &found.peer, &key);
    let job = SnapshotJob { key: &key, clear: &found.meta, intent: &intent, log: &log, done: &done };
    store.apply_snapshot(&job).map_err(|cause| RecoveryError::Snapshot { region_id, cause })?;
    store.files.remove_received(&key);
    Ok(())
}

fn finish_removal(store: &RegionSteps, found: &Found) -> Result<(), EngineError> {
    let region_id = found.meta.region.id;
    tracing::info!(region = region_id, "removing a peer whose removal was interrupted");
    let record = |cleaning| {
        let state = RegionState { cleaning, ..found.state.clone() };
        let mut batch = WriteBatch::new();
        batch.put(Cf::Meta, keys::region_state(region_id), values::encode(&state));
        batch
    };
    // A peer that never had data knows no members, and its range means nothing.
    let clear = (!found.meta.region.peers.is_empty()).then_some(&*found.meta);
    let job = RemovalJob { region_id, tombstone: &record(true), clear, done: &record(false) };
    store.destroy(&job)
}

fn clear_gaps(store: &RegionSteps, found: &[Found]) -> Result<(), EngineError> {
    let mut map = RegionMap::default();
    for found in found.iter().filter(|f| f.state.state() == PeerState::Normal) {
        map.take(&found.meta, Holder::Live).map_err(|overlap| {
            let id = found.meta.region.id;
            EngineError::Corrupt(format!("region {id} overlaps another region of this store: {overlap}"))
        })?;
    }
    let gaps = map.gaps();
    if gaps.len() > GAPS_MAX {
        return Ok(());
    }
    let snapshot = store.engine.snapshot();
    for range in gaps.iter().flat_map(|(start, end)| ranges::of_keys(start, end)) {
        if has_data(&snapshot, &range)? {
            tracing::warn!(cf = range.cf.name(), "removing data that belongs to no region of this store");
            store.engine.clear_range(range.cf, &range.start, &range.end)?;
        }
    }
    Ok(())
}

fn has_data(snapshot: &Arc<dyn Snapshot>, range: &CfRange) -> Result<bool, EngineError> {
    let options = IterOptions { lower: range.start.clone(), upper: range.end.clone(), ..Default::default() };
    let mut iter = snapshot.iter(range.cf, options)?;
    iter.seek_to_first();
    match iter.valid() {
        true => Ok(true),
        false => iter.status().map(|()| false),
    }
}

#[cfg(test)]
mod tests {
    use kvproto::key::BoundaryForm;
    use kvproto::metapb;

    use super::*;
    use crate::engine::log_store::{LogEntry, LogStore, LogWrite, MemLogStore};
    use crate::engine::rocks::RocksEngine;
    use crate::engine::{Engine, EngineConfig, WriteOptions};
    use crate::raftstore::runner::region_task::RegionStore;
    use crate::raftstore::snap::{Receive, Side, SnapConfig, SnapManager};

    /// A store whose files lie in a directory of their own.
    struct Store {
        engine: Arc<RocksEngine>,
        log: Arc<MemLogStore>,
        regions: RegionStore,
        _dir: tempfile::TempDir,
    }

    fn store() -> Store {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(RocksEngine::open(&dir.path().join("db"), &EngineConfig::default()).unwrap());
        let log = Arc::new(MemLogStore::new());
        let snaps = SnapManager::open(&dir.path().join("snap"), SnapConfig::default()).unwrap();
        let (form, e, l) = (BoundaryForm::Plain, engine.clone(), log.clone());
        Store { engine, log, regions: RegionStore { engine: e, log: l, snaps, form }, _dir: dir }
    }

    fn peer(id: u64) -> metapb::Peer {
        metapb::Peer { id, store_id: id, ..Default::default() }
    }

    fn region(start: &'static str, end: &'static str) -> metapb::Region {
        let peers = vec![peer(1), peer(2)];
        metapb::Region { id: 7, start_key: start.into(), end_key: end.into(), peers, ..Default::default() }
    }

    impl Store {
        fn put(&self, key: &'static str, value: &'static str) {
            let mut batch = WriteBatch::new();
            batch.put(Cf::Raw, key, value);
            self.engine.write(&batch, WriteOptions { sync: true, no_slowdown: false }).unwrap();
        }

        fn get(&self, key: &str) -> Option<bytes::Bytes> {
            self.engine.get(Cf::Raw, key.as_bytes()).unwrap()
        }

        fn write(&self, batch: &WriteBatch) {
            self.engine.write(batch, WriteOptions { sync: true, no_slowdown: false }).unwrap();
        }
    }

    /// Builds a snapshot of region 7 at one store and gives its files to another, as the network would.
    fn hand_over(from: &Store, to: &Store) -> SnapKey {
        let built = from.regions.steps().build_snapshot(7).unwrap();
        let Receive::Into(mut receiver) = to.regions.snaps.receive(&built.manifest).unwrap() else {
            panic!()
        };
        let mut sender = from.regions.snaps.send(&built.key).unwrap();
        while let Some(chunk) = sender.next_chunk(7).unwrap() {
            receiver.write(&chunk).unwrap();
        }
        receiver.finish().unwrap();
        built.key
    }

    fn leader_with_data() -> Store {
        let leader = store();
        let (batch, _) = bootstrap::region_records(&region("b", "d"), &peer(1));
        leader.write(&batch);
        leader.put("b1", "new");
        leader.put("d1", "of a neighbour");
        leader
    }

    /// A follower that crashed after the intent to put the snapshot in place was written.
    fn crashed_follower(key: &SnapKey, follower: &Store) {
        follower.put("b0", "old");
        let meta = crate::raftstore::util::region::meta(region("b", "d"), BoundaryForm::Plain).unwrap();
        let (intent, _, _) = snapshot_states(&meta, &peer(2), key);
        follower.write(&intent);
        let entry = LogEntry { index: 3, term: 1, kind: 0, data: "x".into(), context: Default::default() };
        let hard_state = Some(HardState { term: 9, vote: 2, commit: 3 });
        let write = RegionLogWrite { region_id: 7, entries: vec![entry], hard_state, ..Default::default() };
        let _durable = follower.log.append(&LogWrite { regions: vec![write] }, true).unwrap();
    }

    #[test]
    fn an_interrupted_snapshot_is_put_in_place_at_start() {
        let (leader, follower) = (leader_with_data(), store());
        let key = hand_over(&leader, &follower);
        crashed_follower(&key, &follower);
        let found = recover(&follower.regions.steps()).unwrap();
        assert_eq!((found.len(), found[0].state.state()), (1, PeerState::Normal));
        assert_eq!((found[0].apply.applied_index, found[0].peer.id), (key.index, 2));
        assert_eq!(
            (follower.get("b1"), follower.get("b0"), follower.get("d1")),
            (Some("new".into()), None, None)
        );
        let logged = follower.log.load(7).unwrap().unwrap();
        assert_eq!(
            (logged.last_index, logged.hard_state.term, logged.hard_state.vote),
            (0, 9, 2),
            "promises stay"
        );
        assert_eq!(logged.hard_state.commit, key.index);
        assert!(follower.regions.snaps.manifest(Side::Received, &key).is_err(), "the files are gone");
    }

    #[test]
    fn without_the_snapshots_files_the_start_is_refused_and_says_what_to_do() {
        let (leader, follower) = (leader_with_data(), store());
        let key = hand_over(&leader, &follower);
        crashed_follower(&key, &follower);
        follower.regions.snaps.remove(Side::Received, &key).unwrap();
        let error = recover(&follower.regions.steps()).unwrap_err().to_string();
        assert!(error.contains("region 7") && error.contains("empty data directory"), "{error}");
    }

    #[test]
    fn an_interrupted_removal_goes_on_and_keeps_the_tombstone() {
        let store = store();
        store.put("b1", "to go");
        store.put("e1", "to go as well, for no region holds it");
        let mut state = RegionState::new(PeerState::Tombstone, &region("b", "d"), &peer(2));
        state.cleaning = true;
        let mut batch = WriteBatch::new();
        batch.put(Cf::Meta, keys::region_state(7), values::encode(&state));
        store.write(&batch);
        let found = recover(&store.regions.steps()).unwrap();
        assert_eq!(found[0].state.state(), PeerState::Tombstone);
        assert!(!found[0].state.cleaning);
        assert_eq!((store.get("b1"), store.get("e1")), (None, None));
    }

    #[test]
    fn data_of_regions_stays() {
        let store = leader_with_data();
        recover(&store.regions.steps()).unwrap();
        assert_eq!((store.get("b1"), store.get("d1")), (Some("new".into()), None));
    }
}
