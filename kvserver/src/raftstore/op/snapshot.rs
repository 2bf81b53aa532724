//! Snapshots in the life of a peer: asked for, built, sent, received, applied.
//!
//! Ask: when a follower needs entries that are gone, the library wants a snapshot; it is built off this thread from
//! an engine snapshot and offered again at the follower's next answer. Accept: a received one is refused when its
//! range overlaps another live, pending or cleaning region. Apply: in this order, each durable before the next:
//! the state `Applying` in the engine, the log reset, the data replaced, the state `Normal`. A crash in between
//! finds `Applying` and goes on from the files, which stay until the end.

use std::sync::Arc;

use bytes::Bytes;
use kvproto::metapb;
use raft::eraftpb::{self, Snapshot};
use raft::{Ready, SnapshotStatus};

use super::super::apply::ApplyTask;
use super::super::message::input::BuiltSnapshot;
use super::super::message::{Output, PeerMessage, Task};
use super::super::meta::keys;
use super::super::meta::region_map::Holder;
use super::super::meta::region_view::RegionMeta;
use super::super::meta::values::{self, ApplyState, PeerState, RegionState};
use super::super::peer::{Peer, StoreCtx};
use super::super::peer_storage::SnapshotState;
use super::super::snap::SnapKey;
use super::super::util::region::{self, conf_state, peer_by_id};
use crate::engine::log_store::HardState;
use crate::engine::{Cf, EngineError, WriteBatch};

/// What travels in the data of a Raft snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotBody {
    #[prost(message, optional, tag = "1")]
    pub region: Option<metapb::Region>,
    /// The files, their sizes and checksums.
    #[prost(bytes = "bytes", tag = "2")]
    pub manifest: Bytes,
}

/// A snapshot on its way into the engine.
pub struct ApplyingSnapshot {
    key: SnapKey,
    number: u64,
    held: Vec<PeerMessage>,
}

/// The library's form of a built snapshot.
pub fn raft_snapshot(built: &BuiltSnapshot) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let body = SnapshotBody { region: Some(built.region.clone()), manifest: built.manifest.clone() };
    snapshot.data = values::encode(&body);
    let meta = snapshot.mut_metadata();
    (meta.index, meta.term) = (built.key.index, built.key.term);
    meta.set_conf_state(conf_state(&built.region));
    snapshot
}

/// Reads a snapshot's data.
pub fn body(snapshot: &Snapshot) -> Result<SnapshotBody, EngineError> {
    values::decode(&snapshot.data, "snapshot")
}

/// The name of a region's snapshot.
pub fn key_of(region_id: u64, snapshot: &Snapshot) -> SnapKey {
    let meta = snapshot.get_metadata();
    SnapKey { region_id, term: meta.term, index: meta.index }
}

/// The manifest and key of a message that announces a snapshot; `None` when it announces none.
pub fn announced(m: &PeerMessage) -> Option<(SnapKey, Bytes)> {
    let raft = m.raft()?;
    let body = body(raft.get_snapshot()).ok()?;
    Some((key_of(m.region_id, raft.get_snapshot()), body.manifest))
}

impl Peer {
    /// Asks for a snapshot to be built when the library wants one.
    pub(in crate::raftstore) fn want_snapshot(&mut self, out: &mut Output) {
        let region = self.meta();
        let state = self.rn.mut_store().snapshot.get_mut();
        if matches!(state, SnapshotState::Wanted(_)) {
            *state = SnapshotState::Building;
            out.tasks.push(Task::BuildSnapshot { region_id: self.region_id, region });
        }
    }

    /// A snapshot was built, or could not be: the library will ask again.
    pub(in crate::raftstore) fn on_snapshot_built(&mut self, result: Result<BuiltSnapshot, String>) {
        let current = region::epoch(&self.meta().region);
        let state = self.rn.mut_store().snapshot.get_mut();
        if !matches!(state, SnapshotState::Building) {
            return;
        }
        *state = match result {
            // Built before the newest membership: the replica it is for may be missing in it.
            Ok(built) if region::epoch(&built.region) != current => SnapshotState::None,
            Ok(built) => SnapshotState::Built(Box::new(built)),
            Err(error) => {
                tracing::warn!(region = self.region_id, error, "snapshot not built");
                SnapshotState::None
            }
        };
        if self.is_leader() {
            // Offer it now instead of at the next heartbeat.
            self.rn.ping();
        }
    }

    /// A snapshot arrived at a follower, or was lost on the way.
    pub(in crate::raftstore) fn on_snapshot_sent(&mut self, to_peer: u64, ok: bool) {
        let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        if !ok {
            self.discard_snapshot();
        }
        self.rn.report_snapshot(to_peer, status);
    }

    /// Forgets a built snapshot: its files may be gone, or the region is no longer as in it.
    pub(in crate::raftstore) fn discard_snapshot(&mut self) {
        let state = self.rn.mut_store().snapshot.get_mut();
        if matches!(state, SnapshotState::Built(_)) {
            *state = SnapshotState::None;
        }
    }

    /// Whether a received snapshot may come in. Takes its range for a peer that has none yet.
    pub(in crate::raftstore) fn accept_snapshot(&mut self, m: &eraftpb::Message, ctx: &mut StoreCtx) -> bool {
        let refuse = |why: String| {
            tracing::info!(region = m.to, why, "snapshot refused");
            false
        };
        let meta = match self.snapshot_region(m.get_snapshot(), ctx) {
            Ok(meta) => meta,
            Err(error) => return refuse(error.to_string()),
        };
        if peer_by_id(&meta.region, self.peer.id).is_none() {
            return refuse("this peer is not in its region".into());
        }
        // The library takes the members from here, and panics on what makes no sense.
        if m.get_snapshot().get_metadata().get_conf_state() != &conf_state(&meta.region) {
            return refuse("its members are not those of its region".into());
        }
        if self.applying.is_some() {
            return refuse("another one is being applied".into());
        }
        if self.rn.store().initialized() {
            return match ctx.map.overlap(&meta) {
                Some(overlap) => refuse(overlap.to_string()),
                None => true,
            };
        }
        match ctx.map.take(&meta, Holder::Pending) {
            Ok(()) => true,
            Err(overlap) => refuse(overlap.to_string()),
        }
    }

    /// Gives a range back that was taken for a snapshot the library then did not want.
    pub(in crate::raftstore) fn release_unused_range(&mut self, ctx: &mut StoreCtx) {
        if !self.rn.store().initialized() && self.rn.snap().is_none() && self.applying.is_none() {
            ctx.map.release(self.region_id);
        }
    }

    fn snapshot_region(&self, snapshot: &Snapshot, ctx: &StoreCtx) -> Result<Arc<RegionMeta>, EngineError> {
        let bad = |why: String| EngineError::Corrupt(format!("snapshot of region {}: {why}", self.region_id));
        let region = body(snapshot)?.region.ok_or_else(|| bad("it names no region".into()))?;
        if region.id != self.region_id {
            return Err(bad(format!("it is of region {}", region.id)));
        }
        region::meta(region, ctx.form()).map(Arc::new).map_err(|e| bad(e.to_string()))
    }

    /// Starts putting an accepted snapshot in place.
    pub(in crate::raftstore) fn begin_apply_snapshot(
        &mut self,
        mut ready: Ready,
        held: Vec<eraftpb::Message>,
        ctx: &mut StoreCtx,
        out: &mut Output,
    ) {
        assert!(!self.is_busy(), "INV-LOG: nothing of the old log is under way");
        let snapshot = ready.snapshot().clone();
        let key = key_of(self.region_id, &snapshot);
        // `accept_snapshot` has read it already.
        let meta = match self.snapshot_region(&snapshot, ctx) {
            Ok(meta) => meta,
            Err(error) => return self.stop(error.to_string(), ctx, out),
        };
        let old = self.meta();
        let clear = if self.rn.store().initialized() && covers(&old, &meta) { old } else { meta.clone() };
        // What this peer held beyond its new range stays its own until it is cleared.
        let kept = RegionMeta { region: meta.region.clone(), ..RegionMeta::clone(&clear) };
        if let Err(overlap) = ctx.map.take(&kept, Holder::Live) {
            return self.stop(format!("the snapshot's range is taken: {overlap}"), ctx, out);
        }
        ctx.without_data.remove(&self.region_id);
        if let Some(peer) = peer_by_id(&meta.region, self.peer.id) {
            self.peer = *peer;
        }
        let (intent, done, apply) = snapshot_states(&meta, &self.peer, &key);
        let hard_state = ready.hs().map(|h| HardState { term: h.term, vote: h.vote, commit: h.commit });
        let entries = ready.take_entries();
        let log = self.rn.mut_store().replace(meta.clone(), key.index, key.term, entries, hard_state);
        let held = self.wrap(held);
        self.applying = Some(ApplyingSnapshot { key: key.clone(), number: ready.number(), held });
        self.rn.advance_append_async(ready);
        // Readers must not see half of it.
        self.publish_view();
        out.apply.push(ApplyTask::Register { region: meta.clone(), peer: self.peer, state: apply });
        out.tasks.push(Task::ApplySnapshot { key, region: meta, clear, intent, log, done });
    }

    /// The snapshot is in place: go on from it.
    pub(in crate::raftstore) fn on_snapshot_applied(
        &mut self,
        key: &SnapKey,
        ctx: &mut StoreCtx,
        out: &mut Output,
    ) {
        let Some(applying) = self.applying.take_if(|a| a.key == *key) else { return };
        let last = self.rn.store().last();
        self.rn.mut_store().on_persisted(last);
        self.rn.on_persist_ready(applying.number);
        self.rn.advance_apply_to(key.index);
        self.applied = (key.index, key.term);
        self.sent_to_apply = key.index;
        out.log.hold(applying.held);
        if let Err(overlap) = ctx.map.take(&self.meta(), Holder::Live) {
            unreachable!(
                "INV-RANGE: the range held while a snapshot was put in place was given away: {overlap}"
            );
        }
        self.publish_view();
    }
}

/// Whether all of `b` lies inside `a`.
fn covers(a: &RegionMeta, b: &RegionMeta) -> bool {
    a.start <= b.start && (a.end.is_empty() || (!b.end.is_empty() && b.end <= a.end))
}

/// The engine changes before and after the data is replaced, and the apply state that results.
pub fn snapshot_states(
    meta: &RegionMeta,
    peer: &metapb::Peer,
    key: &SnapKey,
) -> (WriteBatch, WriteBatch, ApplyState) {
    let id = meta.region.id;
    let mut applying = RegionState::new(PeerState::Applying, &meta.region, peer);
    (applying.snapshot_index, applying.snapshot_term) = (key.index, key.term);
    let apply = ApplyState {
        applied_index: key.index,
        applied_term: key.term,
        truncated_index: key.index,
        truncated_term: key.term,
    };
    let mut intent = WriteBatch::new();
    intent.put(Cf::Meta, keys::region_state(id), values::encode(&applying));
    intent.put(Cf::Meta, keys::apply_state(id), values::encode(&apply));
    let mut done = WriteBatch::new();
    let normal = RegionState::new(PeerState::Normal, &meta.region, peer);
    done.put(Cf::Meta, keys::region_state(id), values::encode(&normal));
    (intent, done, apply)
}
