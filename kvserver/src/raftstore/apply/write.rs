//! Applying commands: data changes and log compaction.

use raft::eraftpb;

use super::{AdminOutcome, Applied, Delegate};
use crate::engine::{Op, WriteBatch};
use crate::error::RegionError;
use crate::raftstore::message::write_set::{self, Entry, EntryError};

impl Delegate {
    pub(super) fn apply_command(
        &mut self,
        entry: &eraftpb::Entry,
        batch: &mut WriteBatch,
        out: &mut Applied,
    ) -> Result<(), EntryError> {
        match write_set::decode(&entry.data)? {
            Entry::Write { region_version, ops } => {
                if region_version != self.region.version() {
                    let current = vec![self.region.region.clone()];
                    out.refused.push((entry.index, RegionError::EpochNotMatch { current }));
                    return Ok(());
                }
                // All of the entry or nothing: read it whole before the batch is touched.
                let ops: Vec<Op> = ops.collect::<Result<_, _>>()?;
                out.keys_written += ops.len() as u64;
                let before = batch.bytes();
                ops.into_iter().for_each(|op| batch.push(op));
                out.bytes_written += (batch.bytes() - before) as u64;
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
