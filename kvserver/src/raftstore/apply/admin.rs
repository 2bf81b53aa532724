//! Applying what changes regions: membership, one replica at a time, and splits.
//!
//! What changes is in `op/conf_change.rs` and `op/split.rs`, next to the propose side; here the outcome is made durable.

use std::sync::Arc;

use kvproto::key::BoundaryForm;
use protobuf::Message as _;
use raft::eraftpb;

use super::{AdminOutcome, Applied, Delegate};
use crate::engine::{Cf, WriteBatch};
use crate::error::RegionError;
use crate::raftstore::bootstrap;
use crate::raftstore::meta::keys;
use crate::raftstore::meta::values::{self, PeerState, RegionState};
use crate::raftstore::op::conf_change;
use crate::raftstore::op::split::{self, Child, SplitCommand};
use crate::raftstore::util::region;

impl Delegate {
    pub(super) fn apply_split(
        &mut self,
        form: BoundaryForm,
        index: u64,
        command: &SplitCommand,
        skip: &[u64],
        batch: &mut WriteBatch,
        out: &mut Applied,
    ) -> Result<(), String> {
        let division = match split::divide(&self.region.region, command) {
            Ok(division) => division,
            Err(why) => {
                out.refused.push((index, RegionError::ServerIsBusy { reason: why.to_string() }));
                return Ok(());
            }
        };
        let meta = |region| region::meta(region, form).map(Arc::new).map_err(|e| e.to_string());
        let derived = meta(division.derived)?;
        let mut children = Vec::with_capacity(division.children.len());
        for region in division.children {
            let Some(peer) = region::peer_on_store(&region, self.peer.store_id).copied() else { continue };
            let skipped = skip.contains(&region.id);
            children.push(Child { meta: meta(region)?, peer, skipped });
        }
        for child in children.iter().filter(|c| !c.skipped) {
            bootstrap::born(&child.meta.region, &child.peer, batch);
        }
        let state = RegionState::new(PeerState::Normal, &derived.region, &self.peer);
        batch.put(Cf::Meta, keys::region_state(derived.region.id), values::encode(&state));
        self.region = derived.clone();
        out.admin.push(AdminOutcome::Split { index, derived, children });
        Ok(())
    }

    pub(super) fn apply_conf_change(
        &mut self,
        form: BoundaryForm,
        entry: &eraftpb::Entry,
        batch: &mut WriteBatch,
        out: &mut Applied,
    ) -> Result<(), String> {
        let mut change = eraftpb::ConfChange::default();
        change.merge_from_bytes(&entry.data).map_err(|e| e.to_string())?;
        let next = match conf_change::decide(&self.region.region, &change)? {
            Ok(next) => next,
            Err(why) => {
                out.refused.push((entry.index, RegionError::ServerIsBusy { reason: why.to_string() }));
                return Ok(());
            }
        };
        let meta = Arc::new(region::meta(next, form).map_err(|e| e.to_string())?);
        // A peer that removes itself keeps its record until the shard has destroyed it.
        if let Some(peer) = region::peer_by_id(&meta.region, self.peer.id) {
            self.peer = *peer;
        }
        let state = RegionState::new(PeerState::Normal, &meta.region, &self.peer);
        batch.put(Cf::Meta, keys::region_state(meta.region.id), values::encode(&state));
        self.region = meta.clone();
        out.admin.push(AdminOutcome::ChangePeer { change, region: meta });
        Ok(())
    }
}
