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
use super::runner::region_task::RegionStore;
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
pub fn recover(store: &RegionStore) -> Result<Vec<Found>, RecoveryError> {
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

fn finish_snapshot(store: &RegionStore, found: &Found) -> Result<(), RecoveryError> {
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
    store
        .apply_snapshot(&key, &found.meta, &intent, &log, &done)
        .map_err(|cause| RecoveryError::Snapshot { region_id, cause })?;
    store.remove_received(&key);
    Ok(())
}

fn finish_removal(store: &RegionStore, found: &Found) -> Result<(), EngineError> {
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
    store.destroy(region_id, &record(true), clear, &record(false))
}

fn clear_gaps(store: &RegionStore, found: &[Found]) -> Result<(), EngineError> {
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
