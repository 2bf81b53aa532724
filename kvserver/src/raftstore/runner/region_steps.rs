//! The steps by which a region's data is built, replaced and removed, one at a time.
//!
//! Pure but for the engine, the log and the snapshot files behind their traits. Owns the order: each step is durable
//! before the next, so that a crash between any two leaves a state from which `recovery` goes on, and every step may be
//! done twice. The runner does them in one go; the simulator puts crashes between them.

use std::sync::Arc;

use bytes::Bytes;
use kvproto::key::BoundaryForm;
use kvproto::metapb;

use super::ranges;
use crate::engine::log_store::{LogStore, LogWrite, RegionLogWrite};
use crate::engine::{Cf, Engine, EngineError, ReadTier, Snapshot, WriteBatch, WriteOptions};
use crate::raftstore::message::input::BuiltSnapshot;
use crate::raftstore::meta::keys;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::raftstore::meta::values::{self, ApplyState, PeerState, RegionState};
use crate::raftstore::snap::{CfRange, SnapError, SnapKey};
use crate::raftstore::util::region;

/// A write that is on the disk when it returns.
pub const SYNCED: WriteOptions = WriteOptions { sync: true, no_slowdown: false };

/// The files of snapshots.
pub trait SnapFiles: Send + Sync {
    /// Writes the files of `ranges`, and gives their manifest in its encoded form.
    fn build(
        &self,
        engine: &dyn Engine,
        snapshot: &dyn Snapshot,
        key: &SnapKey,
        region: &metapb::Region,
        ranges: &[CfRange],
    ) -> Result<Bytes, SnapError>;

    /// Replaces the data of `ranges` by a received snapshot, whose files stay; durable when it returns.
    fn apply(&self, engine: &dyn Engine, key: &SnapKey, ranges: &[CfRange]) -> Result<(), SnapError>;

    /// Removes the files of a received snapshot; what cannot be removed now is swept later.
    fn remove_received(&self, key: &SnapKey);
}

/// What the steps work on.
#[derive(Clone)]
pub struct RegionSteps {
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn LogStore>,
    pub files: Arc<dyn SnapFiles>,
    /// The form of boundaries in this cluster.
    pub form: BoundaryForm,
}

/// A received snapshot that is to be put in place.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotJob<'a> {
    pub key: &'a SnapKey,
    /// What is cleared first.
    pub clear: &'a RegionMeta,
    pub intent: &'a WriteBatch,
    pub log: &'a RegionLogWrite,
    pub done: &'a WriteBatch,
}

/// What comes next of a snapshot job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStep {
    Intent,
    Log,
    Data,
    Done,
}

/// A destroyed peer whose rest is to be removed.
#[derive(Clone, Copy, Debug)]
pub struct RemovalJob<'a> {
    pub region_id: u64,
    pub tombstone: &'a WriteBatch,
    pub clear: Option<&'a RegionMeta>,
    pub done: &'a WriteBatch,
}

/// What comes next of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalStep {
    Tombstone,
    Log,
    Data,
    Done,
}

impl RegionSteps {
    /// Writes the region's data to files, as one engine snapshot shows data, applied index and membership.
    pub fn build_snapshot(&self, region_id: u64) -> Result<BuiltSnapshot, SnapError> {
        let corrupt = |what: String| EngineError::Corrupt(format!("region {region_id}: {what}"));
        let snapshot = self.engine.snapshot();
        let read = |key: &[u8]| snapshot.get(Cf::Meta, key, ReadTier::All);
        let missing = || corrupt("there is no record of it".into());
        let state = read(&keys::region_state(region_id))?.ok_or_else(missing)?;
        let state: RegionState = values::decode(&state, "region state")?;
        let apply = read(&keys::apply_state(region_id))?.ok_or_else(missing)?;
        let apply: ApplyState = values::decode(&apply, "apply state")?;
        if state.state() != PeerState::Normal {
            return Err(corrupt(format!("it is {:?}", state.state())).into());
        }
        let described = state.region.ok_or_else(missing)?;
        let meta = region::meta(described.clone(), self.form).map_err(|e| corrupt(e.to_string()))?;
        let key = SnapKey { region_id, term: apply.applied_term, index: apply.applied_index };
        let ranges = ranges::of_region(&meta);
        let manifest = self.files.build(&*self.engine, &*snapshot, &key, &described, &ranges)?;
        Ok(BuiltSnapshot { key, region: described, manifest })
    }

    /// Does one step of putting a snapshot in place; gives the next one, `None` after the last.
    pub fn snapshot_step(
        &self,
        job: &SnapshotJob<'_>,
        step: SnapshotStep,
    ) -> Result<Option<SnapshotStep>, SnapError> {
        Ok(match step {
            SnapshotStep::Intent => {
                self.engine.write(job.intent, SYNCED)?;
                Some(SnapshotStep::Log)
            }
            SnapshotStep::Log => {
                let _durable = self.log.append(&LogWrite { regions: vec![job.log.clone()] }, true)?;
                Some(SnapshotStep::Data)
            }
            SnapshotStep::Data => {
                self.files.apply(&*self.engine, job.key, &ranges::of_region(job.clear))?;
                Some(SnapshotStep::Done)
            }
            SnapshotStep::Done => {
                self.engine.write(job.done, SYNCED)?;
                None
            }
        })
    }

    /// Replaces the region's log and the data in the range of `clear` by a received snapshot; its files stay.
    pub fn apply_snapshot(&self, job: &SnapshotJob<'_>) -> Result<(), SnapError> {
        let mut next = Some(SnapshotStep::Intent);
        while let Some(step) = next {
            next = self.snapshot_step(job, step)?;
        }
        Ok(())
    }

    /// Does one step of removing a peer; gives the next one, `None` after the last.
    pub fn removal_step(
        &self,
        job: &RemovalJob<'_>,
        step: RemovalStep,
    ) -> Result<Option<RemovalStep>, EngineError> {
        Ok(match step {
            RemovalStep::Tombstone => {
                self.engine.write(job.tombstone, SYNCED)?;
                Some(RemovalStep::Log)
            }
            RemovalStep::Log => {
                self.log.remove(job.region_id)?;
                Some(RemovalStep::Data)
            }
            RemovalStep::Data => {
                for range in job.clear.into_iter().flat_map(ranges::of_region) {
                    self.engine.clear_range(range.cf, &range.start, &range.end)?;
                }
                Some(RemovalStep::Done)
            }
            RemovalStep::Done => {
                self.engine.write(job.done, SYNCED)?;
                None
            }
        })
    }

    /// Removes what is left of a destroyed peer.
    pub fn destroy(&self, job: &RemovalJob<'_>) -> Result<(), EngineError> {
        let mut next = Some(RemovalStep::Tombstone);
        while let Some(step) = next {
            next = self.removal_step(job, step)?;
        }
        Ok(())
    }
}
