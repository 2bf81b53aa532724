//! From committed entries to engine changes: pure, the same on every replica.
//!
//! [`Applier`] owns, for each peer of a shard, the region as the applied log has made it and how far that log
//! was applied. It turns entries into changes of one [`WriteBatch`] and an [`Applied`] for the shard. The driver
//! writes the batch, with a sync when the outcome asks for it, and only then steps the outcome into the shard.
//!
//! Invariants: the applied index is in the same batch as its effects (INV-APPLY); state after an index is a
//! function of the log up to it; a command's region version is checked again here (INV-EPOCH); an entry that
//! cannot be read stops the peer at the entry before it, and nothing of it is applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvproto::key::BoundaryForm;
use kvproto::metapb;
use raft::eraftpb;

use super::meta::keys;
use super::meta::region_view::RegionMeta;
use super::meta::values::{self, ApplyState};
use super::op::split::Child;
use crate::engine::{Cf, WriteBatch};
use crate::error::RegionError;

mod admin;
mod write;

/// Work for the applier, in order.
#[derive(Debug)]
pub enum ApplyTask {
    /// A peer appeared, or its data was replaced by a snapshot.
    Register { region: Arc<RegionMeta>, peer: metapb::Peer, state: ApplyState },
    /// Committed entries, contiguous with those before.
    /// `skip` names new regions among them that may not come into being here.
    Entries { region_id: u64, entries: Vec<eraftpb::Entry>, skip: Vec<u64> },
    /// A peer is gone.
    Remove { region_id: u64 },
}

/// What an entry did besides changing data.
#[derive(Clone, Debug, PartialEq)]
pub enum AdminOutcome {
    /// Membership changed: tell the consensus library, publish the region.
    ChangePeer { change: eraftpb::ConfChange, region: Arc<RegionMeta> },
    /// The log up to `index` is no longer needed.
    CompactLog { index: u64, term: u64 },
    /// The region was divided: what is left of it, and the new regions with a peer on this store.
    Split { index: u64, derived: Arc<RegionMeta>, children: Vec<Child> },
}

/// The outcome of a task of entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    pub region_id: u64,
    /// Last index applied, and its term.
    pub index: u64,
    pub term: u64,
    /// Runs of equal terms: last index of the run and its term. Tells which proposals were really theirs.
    pub terms: Vec<(u64, u64)>,
    /// Commands that were refused at apply, by index.
    pub refused: Vec<(u64, RegionError)>,
    pub admin: Vec<AdminOutcome>,
    pub bytes_written: u64,
    pub keys_written: u64,
    /// The peer cannot go on; it stays at `index`.
    pub stopped: Option<String>,
}

impl Applied {
    /// True when the batch must be on disk before anything that follows from it leaves this store.
    pub fn must_sync(&self) -> bool {
        self.admin.iter().any(|a| !matches!(a, AdminOutcome::CompactLog { .. }))
    }
}

struct Delegate {
    region: Arc<RegionMeta>,
    peer: metapb::Peer,
    state: ApplyState,
    stopped: Option<String>,
}

/// Applies the entries of a shard's peers.
pub struct Applier {
    form: BoundaryForm,
    regions: BTreeMap<u64, Delegate>,
}

impl Applier {
    /// An applier for a cluster whose boundaries have this form.
    pub fn new(form: BoundaryForm) -> Applier {
        Applier { form, regions: BTreeMap::new() }
    }

    /// Adds the effects of `task` to `batch`. `None` when there is nothing to tell the shard.
    pub fn apply(&mut self, task: ApplyTask, batch: &mut WriteBatch) -> Option<Applied> {
        match task {
            ApplyTask::Register { region, peer, state } => {
                let id = region.region.id;
                self.regions.insert(id, Delegate { region, peer, state, stopped: None });
                None
            }
            ApplyTask::Remove { region_id } => {
                self.regions.remove(&region_id);
                None
            }
            ApplyTask::Entries { region_id, entries, skip } => {
                // A peer that was destroyed meanwhile has no use for its entries.
                let delegate = self.regions.get_mut(&region_id)?;
                Some(delegate.apply(self.form, &entries, &skip, batch))
            }
        }
    }
}

impl Delegate {
    fn apply(
        &mut self,
        form: BoundaryForm,
        entries: &[eraftpb::Entry],
        skip: &[u64],
        batch: &mut WriteBatch,
    ) -> Applied {
        let region_id = self.region.region.id;
        let mut out = Applied { region_id, ..Default::default() };
        let before = self.state.clone();
        for entry in entries {
            if self.stopped.is_some() {
                break;
            }
            assert_eq!(
                entry.index,
                self.state.applied_index + 1,
                "INV-APPLY: region {region_id} skips entries"
            );
            if let Err(error) = self.apply_entry(form, entry, skip, batch, &mut out) {
                self.stopped = Some(format!("entry {}: {error}", entry.index));
                break;
            }
            self.state.applied_index = entry.index;
            self.state.applied_term = entry.term;
            match out.terms.last_mut() {
                Some((last, term)) if *term == entry.term => *last = entry.index,
                _ => out.terms.push((entry.index, entry.term)),
            }
        }
        if self.state != before {
            batch.put(Cf::Meta, keys::apply_state(region_id), values::encode(&self.state));
        }
        (out.index, out.term) = (self.state.applied_index, self.state.applied_term);
        out.stopped = self.stopped.clone();
        out
    }

    fn apply_entry(
        &mut self,
        form: BoundaryForm,
        entry: &eraftpb::Entry,
        skip: &[u64],
        batch: &mut WriteBatch,
        out: &mut Applied,
    ) -> Result<(), String> {
        match entry.entry_type {
            // A new leader's empty entry.
            eraftpb::EntryType::EntryNormal if entry.data.is_empty() => Ok(()),
            eraftpb::EntryType::EntryNormal => self.apply_command(form, entry, skip, batch, out),
            eraftpb::EntryType::EntryConfChange => self.apply_conf_change(form, entry, batch, out),
            eraftpb::EntryType::EntryConfChangeV2 => {
                Err("joint membership changes are newer than this build; upgrade this store".into())
            }
        }
    }
}

#[cfg(test)]
mod tests;
