//! Dividing a region: one becomes several, without moving data.
//!
//! Propose: the leader checks the keys, asks the scheduler for ids and proposes an entry that names the new
//! boundaries, regions and peers. From the proposal to the apply it serves no read under its lease, since the new
//! regions may elect leaders elsewhere as soon as others apply the split (INV-LEASE), and holds back writes, which
//! would be refused anyway. Commit: every replica looks, before it applies, whether a new region may come into being
//! on its store; a peer that was removed from it meanwhile must not. Apply: [`divide`] decides, a pure function of
//! region and entry; the records of all regions are one synced batch. After the apply the shard takes the new
//! regions in, and the one whose leader divided them campaigns.

use std::sync::Arc;

use bytes::Bytes;
use kvproto::metapb::{Peer, Region, RegionEpoch};
use raft::eraftpb;

use crate::engine::{Cf, WriteBatch};
use crate::error::RegionError;
use crate::raftstore::apply::Applied;
use crate::raftstore::message::input::{SplitIds, SplitRequest};
use crate::raftstore::message::{Callback, Output, RegionContext, Task, write_set};
use crate::raftstore::meta::keys;
use crate::raftstore::meta::region_map::Holder;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::raftstore::meta::values::{self, PeerState, RegionState};
use crate::raftstore::peer::{Peer as RaftPeer, StoreCtx};
use crate::raftstore::store_worker;
use crate::raftstore::util::region::epoch;

/// New regions that one command may make.
pub const PARTS_MAX: usize = 256;

/// The body of a split entry.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SplitCommand {
    /// The membership the peers were numbered for.
    #[prost(uint64, tag = "1")]
    pub conf_ver: u64,
    /// The stores of the region's peers, in the order in which parts number their peers.
    #[prost(uint64, repeated, tag = "2")]
    pub stores: Vec<u64>,
    /// In key order.
    #[prost(message, repeated, tag = "3")]
    pub parts: Vec<SplitPart>,
    /// The region that is divided keeps the last range instead of the first.
    #[prost(bool, tag = "4")]
    pub right_derive: bool,
}

/// One new region of a [`SplitCommand`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SplitPart {
    /// Where to cut, in boundary form.
    #[prost(bytes = "bytes", tag = "1")]
    pub boundary: Bytes,
    #[prost(uint64, tag = "2")]
    pub region_id: u64,
    #[prost(uint64, repeated, tag = "3")]
    pub peer_ids: Vec<u64>,
}

/// Why a committed split is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the region's membership has changed since the split was proposed")]
    StaleEpoch,
    #[error("the split's boundaries are not inside the region, in order")]
    Boundaries,
    #[error("the split's ids do not fit the region's peers")]
    Ids,
}

/// What a split makes of a region.
#[derive(Clone, Debug, PartialEq)]
pub struct Division {
    /// The region that was divided, with what it keeps.
    pub derived: Region,
    /// The new ones, in key order.
    pub children: Vec<Region>,
}

/// A new region with its peer on this store.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    pub meta: Arc<RegionMeta>,
    pub peer: Peer,
    /// Its peer may not come into being here: it was removed before it was born.
    pub skipped: bool,
}

/// A split of the region that is under way at its leader.
pub struct Splitting {
    version: u64,
    boundaries: Vec<Bytes>,
    done: Callback<Vec<Region>>,
    proposed: Option<u64>,
    /// Followers were told of the commit at once.
    told: bool,
}

/// What `command` makes of `region`, the same on every replica.
pub fn divide(region: &Region, command: &SplitCommand) -> Result<Division, Refusal> {
    let old = epoch(region);
    if old.conf_ver != command.conf_ver {
        return Err(Refusal::StaleEpoch);
    }
    let cuts: Vec<Bytes> = command.parts.iter().map(|p| p.boundary.clone()).collect();
    let starts: Vec<Bytes> = std::iter::once(region.start_key.clone()).chain(cuts.iter().cloned()).collect();
    let ascending = starts.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = |last: &Bytes| region.end_key.is_empty() || *last < region.end_key;
    if cuts.is_empty() || !ascending || !cuts.last().is_some_and(inside) {
        return Err(Refusal::Boundaries);
    }
    let region_epoch = Some(RegionEpoch { version: old.version + command.parts.len() as u64, ..old });
    let ends = cuts.into_iter().chain(std::iter::once(region.end_key.clone()));
    let mut pieces: Vec<Region> = starts
        .into_iter()
        .zip(ends)
        .map(|(start_key, end_key)| Region { start_key, end_key, region_epoch, ..region.clone() })
        .collect();
    let derived = if command.right_derive { pieces.pop() } else { Some(pieces.remove(0)) };
    for (piece, part) in pieces.iter_mut().zip(&command.parts) {
        piece.id = part.region_id;
        piece.peers = peers_of(region, command, part)?;
    }
    Ok(Division { derived: derived.ok_or(Refusal::Boundaries)?, children: pieces })
}

fn peers_of(region: &Region, command: &SplitCommand, part: &SplitPart) -> Result<Vec<Peer>, Refusal> {
    let stores_match = region.peers.iter().map(|p| p.store_id).eq(command.stores.iter().copied());
    if part.region_id == 0
        || part.region_id == region.id
        || !stores_match
        || part.peer_ids.len() != region.peers.len()
        || part.peer_ids.contains(&0)
    {
        return Err(Refusal::Ids);
    }
    Ok(region.peers.iter().zip(&part.peer_ids).map(|(p, id)| Peer { id: *id, ..*p }).collect())
}

/// The new regions of a committed entry that have a peer on `store_id`, with that peer's id; nothing for other
/// entries and for one that cannot be read, which stops the peer when it is applied.
fn announced(entry: &eraftpb::Entry, store_id: u64) -> Vec<(u64, u64)> {
    let Ok(write_set::Entry::Split { command, .. }) = write_set::decode(&entry.data) else {
        return Vec::new();
    };
    let Some(at) = command.stores.iter().position(|s| *s == store_id) else { return Vec::new() };
    let part = |p: &SplitPart| p.peer_ids.get(at).map(|peer_id| (p.region_id, *peer_id));
    command.parts.iter().filter_map(part).collect()
}

/// The data of a region that may not come into being here goes, unless a later peer of it is here or still leaving:
/// that one's snapshot, or the next start of this store, clears the range.
fn clean_unborn(child: &Child, ctx: &mut StoreCtx, out: &mut Output) {
    let region_id = child.meta.region.id;
    if ctx.leaving.contains(&region_id) || ctx.without_data.contains_key(&region_id) {
        return;
    }
    let key = keys::region_state(region_id);
    let tombstone: Result<Option<RegionState>, _> = values::load(&*ctx.engine, &key, "region state");
    let Ok(Some(tombstone)) = tombstone else { return };
    if tombstone.state() != PeerState::Tombstone {
        return;
    }
    if let Err(overlap) = ctx.map.take(&child.meta, Holder::Cleaning) {
        unreachable!("INV-RANGE: a region is divided within its own range: {overlap}");
    }
    ctx.leaving.insert(region_id);
    let record = |cleaning| {
        let mut batch = WriteBatch::new();
        batch.put(Cf::Meta, key.clone(), values::encode(&RegionState { cleaning, ..tombstone.clone() }));
        batch
    };
    let clear = Some(child.meta.clone());
    out.tasks.push(Task::Destroy { region_id, tombstone: record(true), clear, done: record(false) });
}

impl RaftPeer {
    /// Takes a wish to split in; goes on when the scheduler has given ids.
    pub(in crate::raftstore) fn split(&mut self, request: SplitRequest, ctx: &StoreCtx, out: &mut Output) {
        match self.check_split(&request, ctx) {
            Err(error) => request.done.call(Err(error)),
            Ok(boundaries) if boundaries.is_empty() => {
                // It is divided there already.
                request.done.call(Ok(vec![self.meta().region.clone()]));
            }
            Ok(boundaries) => {
                let (region, count) = (self.meta(), boundaries.len() as u32);
                let (version, done) = (region.version(), request.done);
                self.splitting = Some(Splitting { version, boundaries, done, proposed: None, told: false });
                out.tasks.push(Task::AskSplit { region, count });
            }
        }
    }

    /// The boundaries to cut at, ascending, without those that exist.
    fn check_split(&self, request: &SplitRequest, ctx: &StoreCtx) -> Result<Vec<Bytes>, RegionError> {
        self.check_target(&request.ctx)?;
        let meta = self.meta();
        if request.ctx.version != meta.version() {
            return Err(RegionError::EpochNotMatch { current: ctx.current_regions(&meta) });
        }
        if self.splitting.is_some() {
            return Err(RegionError::ServerIsBusy { reason: "the region is being split".into() });
        }
        if request.keys.len() > PARTS_MAX {
            let reason = format!("{} split keys at once; give at most {PARTS_MAX}", request.keys.len());
            return Err(RegionError::ServerIsBusy { reason });
        }
        if let Some(key) = request.keys.iter().find(|key| !meta.contains(key)) {
            return Err(RegionError::KeyNotInRegion {
                key: key.clone(),
                region_id: self.region_id,
                start_key: meta.start.clone(),
                end_key: meta.end.clone(),
            });
        }
        let inner = request.keys.iter().filter(|key| **key != meta.start);
        let mut cuts: Vec<Bytes> = inner.map(|key| ctx.form().boundary(key.clone())).collect();
        cuts.sort();
        cuts.dedup();
        Ok(cuts)
    }

    /// The scheduler gave ids, or could not: propose.
    pub(in crate::raftstore) fn on_split_ids(
        &mut self,
        version: u64,
        result: Result<Vec<SplitIds>, String>,
        ctx: &StoreCtx,
    ) {
        let waits = |s: &mut Splitting| s.proposed.is_none() && s.version == version;
        let Some(mut splitting) = self.splitting.take_if(waits) else { return };
        // Without ids the region is looked at again, ever more rarely: a look at a large region reads much of it.
        self.ticks.splits_refused = if result.is_ok() { 0 } else { self.ticks.splits_refused + 1 };
        let proposed = result
            .map_err(|reason| RegionError::ServerIsBusy { reason: format!("no ids for a split: {reason}") })
            .and_then(|ids| self.propose_split(&splitting, &ids, ctx));
        match proposed {
            Ok(index) => {
                splitting.proposed = Some(index);
                self.splitting = Some(splitting);
                self.lease.pause();
                self.publish_view();
            }
            Err(error) => {
                self.size = None;
                splitting.done.call(Err(error));
            }
        }
    }

    fn propose_split(
        &mut self,
        splitting: &Splitting,
        ids: &[SplitIds],
        ctx: &StoreCtx,
    ) -> Result<u64, RegionError> {
        let busy = |reason: &str| RegionError::ServerIsBusy { reason: reason.into() };
        let meta = self.meta();
        // Serving means that the lease of this term has begun: what pauses it now is not undone.
        if !self.serves() {
            return Err(self.not_leader());
        }
        if meta.version() != splitting.version {
            return Err(RegionError::EpochNotMatch { current: ctx.current_regions(&meta) });
        }
        if self.rn.raft.lead_transferee.is_some() || self.rn.raft.has_pending_conf() {
            return Err(busy("leadership or membership is changing"));
        }
        if ids.len() != splitting.boundaries.len() {
            return Err(busy("the scheduler gave a wrong number of ids"));
        }
        let part = |(boundary, ids): (&Bytes, &SplitIds)| SplitPart {
            boundary: boundary.clone(),
            region_id: ids.region_id,
            peer_ids: ids.peer_ids.clone(),
        };
        let command = SplitCommand {
            conf_ver: meta.conf_ver(),
            stores: meta.region.peers.iter().map(|p| p.store_id).collect(),
            parts: splitting.boundaries.iter().zip(ids).map(part).collect(),
            right_derive: ctx.config.right_derive_when_split,
        };
        divide(&meta.region, &command).map_err(|refusal| busy(&refusal.to_string()))?;
        let data = write_set::split(meta.version(), &command);
        if data.len() as u64 > ctx.config.entry_max_bytes {
            let bytes = data.len() as u64;
            return Err(RegionError::RaftEntryTooLarge { region_id: self.region_id, bytes });
        }
        self.rn.propose(Vec::new(), data.to_vec()).map_err(|_| busy("the proposal was not taken"))?;
        Ok(self.rn.raft.raft_log.last_index())
    }

    /// True while a split waits to be applied: writes would be refused.
    pub(in crate::raftstore) fn is_splitting(&self) -> bool {
        self.splitting.as_ref().is_some_and(|s| s.proposed.is_some())
    }

    /// Tells the followers of a committed split now, not with the next heartbeat: the new regions wait for them.
    pub(in crate::raftstore) fn spread_split(&mut self) {
        let committed = self.rn.raft.raft_log.committed;
        if let Some(s) = &mut self.splitting
            && !s.told
            && s.proposed.is_some_and(|index| index <= committed)
        {
            s.told = true;
            self.rn.ping();
        }
    }

    /// Committed entries are about to be applied: which of the new regions may not come into being here.
    pub(in crate::raftstore) fn foresee_splits(
        &mut self,
        entries: &[eraftpb::Entry],
        ctx: &mut StoreCtx,
    ) -> Vec<u64> {
        let mut skip = Vec::new();
        for entry in entries.iter().filter(|e| write_set::is_split(&e.data)) {
            let mut coming = Vec::new();
            for (region_id, peer_id) in announced(entry, ctx.store_id) {
                match store_worker::may_be_born(region_id, peer_id, ctx) {
                    true => coming.push(region_id),
                    false => skip.push(region_id),
                }
            }
            ctx.nursery.expect(&coming);
            self.coming.push_back((entry.index, coming));
        }
        skip
    }

    /// Splits up to the applied index are decided: nothing more is to be expected of them.
    pub(in crate::raftstore) fn forget_foreseen(&mut self, applied: &Applied, ctx: &mut StoreCtx) {
        let through = if applied.stopped.is_some() { u64::MAX } else { applied.index };
        while let Some((_, coming)) = self.coming.pop_front_if(|(index, _)| *index <= through) {
            ctx.nursery.forget(&coming);
        }
    }

    /// A split is applied: the ranges are as it says from now on.
    pub(in crate::raftstore) fn on_split(
        &mut self,
        index: u64,
        derived: Arc<RegionMeta>,
        children: Vec<Child>,
        ctx: &mut StoreCtx,
        out: &mut Output,
    ) {
        let take = |meta: &RegionMeta, holder, ctx: &mut StoreCtx| {
            if let Err(overlap) = ctx.map.take(meta, holder) {
                unreachable!("INV-RANGE: a region is divided within its own range: {overlap}");
            }
        };
        let leads = self.is_leader() && !self.doomed;
        let mut regions: Vec<Region> = children.iter().map(|c| c.meta.region.clone()).collect();
        regions.push(derived.region.clone());
        regions.sort_by(|a, b| a.start_key.cmp(&b.start_key));
        tracing::info!(region = self.region_id, into = regions.len(), "region divided");
        take(&derived, Holder::Live, ctx);
        for child in children {
            if child.skipped {
                clean_unborn(&child, ctx, out);
            } else {
                take(&child.meta, Holder::Live, ctx);
                ctx.nursery.bear(child, leads);
            }
        }
        self.set_region(derived);
        self.size = None;
        self.discard_snapshot();
        if self.doomed {
            return;
        }
        if let Some(splitting) = self.splitting.take_if(|s| s.proposed == Some(index)) {
            splitting.done.call(Ok(regions.clone()));
        }
        if !self.is_splitting() {
            self.lease.resume();
        }
        self.publish_view();
        if leads {
            out.tasks.push(Task::ReportSplit { regions });
            self.report_soon();
        }
    }

    /// Entries up to here are applied: a split among them that is still waited for was refused.
    pub(in crate::raftstore) fn end_refused_split(&mut self, applied: &Applied) {
        let decided = |s: &mut Splitting| s.proposed.is_some_and(|index| index <= applied.index);
        let Some(splitting) = self.splitting.take_if(decided) else { return };
        let refused = applied.refused.iter().find(|(index, _)| Some(*index) == splitting.proposed);
        let error = refused.map_or(RegionError::StaleCommand, |(_, error)| error.clone());
        splitting.done.call(Err(error));
        self.size = None;
        self.lease.resume();
        self.publish_view();
    }

    /// Leadership is lost: whoever waits for a split asks the next leader.
    pub(in crate::raftstore) fn abandon_split(&mut self) {
        if let Some(splitting) = self.splitting.take() {
            splitting.done.call(Err(self.not_leader()));
        }
    }

    /// Divides the region as a look at its data or the scheduler asks.
    pub(in crate::raftstore) fn split_unasked(&mut self, keys: Vec<Bytes>, ctx: &StoreCtx, out: &mut Output) {
        let version = self.meta().version();
        let context = RegionContext { region_id: self.region_id, version, ..Default::default() };
        let region = self.region_id;
        let done = Callback::new(move |result: Result<Vec<Region>, RegionError>| {
            if let Err(error) = result {
                tracing::info!(region, %error, "region not divided; it will be tried again");
            }
        });
        self.split(SplitRequest { ctx: context, keys, done }, ctx, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Region {
        let peer = |id, store_id| Peer { id, store_id, ..Default::default() };
        let region_epoch = Some(RegionEpoch { conf_ver: 3, version: 7 });
        let (start_key, end_key) = (Bytes::from("b"), Bytes::from("y"));
        Region {
            id: 1,
            start_key,
            end_key,
            region_epoch,
            peers: vec![peer(11, 1), peer(12, 2)],
            ..Default::default()
        }
    }

    fn command(cuts: &[&'static str], right_derive: bool) -> SplitCommand {
        let part = |(n, cut): (u64, &&'static str)| SplitPart {
            boundary: Bytes::from(*cut),
            region_id: n,
            peer_ids: vec![n * 10 + 1, n * 10 + 2],
        };
        let parts = (2..).zip(cuts).map(part).collect();
        SplitCommand { conf_ver: 3, stores: vec![1, 2], parts, right_derive }
    }

    fn shape(r: &Region) -> (u64, &[u8], &[u8], u64) {
        (r.id, &r.start_key, &r.end_key, epoch(r).version)
    }

    #[test]
    fn the_pieces_tile_the_region_and_share_its_new_version() {
        let right = divide(&region(), &command(&["f", "m"], true)).unwrap();
        assert_eq!(shape(&right.derived), (1, &b"m"[..], &b"y"[..], 9));
        let children: Vec<_> = right.children.iter().map(shape).collect();
        assert_eq!(children, [(2, &b"b"[..], &b"f"[..], 9), (3, &b"f"[..], &b"m"[..], 9)]);
        assert_eq!(
            right.children[1].peers.iter().map(|p| (p.id, p.store_id)).collect::<Vec<_>>(),
            [(31, 1), (32, 2)]
        );
        let left = divide(&region(), &command(&["f", "m"], false)).unwrap();
        assert_eq!(shape(&left.derived), (1, &b"b"[..], &b"f"[..], 9));
        let children: Vec<_> = left.children.iter().map(shape).collect();
        assert_eq!(children, [(2, &b"f"[..], &b"m"[..], 9), (3, &b"m"[..], &b"y"[..], 9)]);
    }

    #[test]
    fn boundaries_outside_or_out_of_order_are_refused() {
        for cuts in [&["b"][..], &["y"], &["a"], &["z"], &["m", "f"], &["f", "f"], &[]] {
            assert_eq!(divide(&region(), &command(cuts, true)), Err(Refusal::Boundaries), "{cuts:?}");
        }
    }

    #[test]
    fn a_changed_membership_and_ids_that_do_not_fit_are_refused() {
        let stale = SplitCommand { conf_ver: 2, ..command(&["f"], true) };
        assert_eq!(divide(&region(), &stale), Err(Refusal::StaleEpoch));
        let other_stores = SplitCommand { stores: vec![2, 1], ..command(&["f"], true) };
        assert_eq!(divide(&region(), &other_stores), Err(Refusal::Ids));
        let mut short = command(&["f"], true);
        short.parts[0].peer_ids.pop();
        assert_eq!(divide(&region(), &short), Err(Refusal::Ids));
        let mut itself = command(&["f"], true);
        itself.parts[0].region_id = 1;
        assert_eq!(divide(&region(), &itself), Err(Refusal::Ids));
    }
}
