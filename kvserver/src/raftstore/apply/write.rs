//! Applying commands: data changes, log compaction, and the way to splits.

use kvproto::key::BoundaryForm;
use raft::eraftpb;

use super::{AdminOutcome, Applied, Delegate};
use crate::engine::{Op, WriteBatch};
use crate::error::RegionError;
use crate::raftstore::message::write_set::{self, Entry, EntryError};

impl Delegate {
    pub(super) fn apply_command(
        &mut self,
        form: BoundaryForm,
        entry: &eraftpb::Entry,
        skip: &[u64],
        batch: &mut WriteBatch,
        out: &mut Applied,
    ) -> Result<(), String> {
        let unreadable = |error: EntryError| error.to_string();
        match write_set::decode(&entry.data).map_err(unreadable)? {
            Entry::Write { region_version, ops } => {
                if region_version != self.region.version() {
                    let current = vec![self.region.region.clone()];
                    out.refused.push((entry.index, RegionError::EpochNotMatch { current }));
                    return Ok(());
                }
                // All of the entry or nothing: read it whole before the batch is touched.
                let ops: Vec<Op> = ops.collect::<Result<_, _>>().map_err(unreadable)?;
                out.keys_written += ops.len() as u64;
                let before = batch.bytes();
                ops.into_iter().for_each(|op| batch.push(op));
                out.bytes_written += (batch.bytes() - before) as u64;
            }
            Entry::Split { region_version, command } => {
                if region_version != self.region.version() {
                    let current = vec![self.region.region.clone()];
                    out.refused.push((entry.index, RegionError::EpochNotMatch { current }));
                    return Ok(());
                }
                self.apply_split(form, entry.index, &command, skip, batch, out)?;
            }
            Entry::CompactLog { index, term, .. } => {
                // A late or repeated command finds the log already shorter: nothing to do, on every replica alike.
                if index > self.state.truncated_index && index <= self.state.applied_index {
                    (self.state.truncated_index, self.state.truncated_term) = (index, term);
                    out.admin.push(AdminOutcome::CompactLog { index, term });
                }
            }
        }
        Ok(())
    }
}
