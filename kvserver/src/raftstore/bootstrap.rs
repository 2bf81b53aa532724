//! The first regions of a cluster, and what a store finds of its regions at start.
//!
//! Pure but for reads through the engine and log traits. Invariants: the first regions tile the key space; their
//! records are written in one batch before the store takes part in anything.

use std::sync::Arc;

use bytes::Bytes;
use kvproto::key::{BoundaryForm, KeyspaceId, Mode};
use kvproto::kvrpcpb::ApiVersion;
use kvproto::metapb::{Peer, PeerRole, Region, RegionEpoch};

use super::meta::keys;
use super::meta::region_view::RegionMeta;
use super::meta::values::{self, ApplyState, INITIAL_STATE, PeerState, RegionState, StoreIdent};
use super::peer_storage::{INITIAL_INDEX, INITIAL_TERM};
use super::util::region;
use crate::engine::log_store::{HardState, LogWrite, RegionLogWrite};
use crate::engine::{Cf, Engine, EngineError, IterOptions, Result, WriteBatch};

/// The region that covers all keys, with one peer on `store_id`.
pub fn first_region(region_id: u64, peer_id: u64, store_id: u64) -> Region {
    Region {
        id: region_id,
        region_epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
        peers: vec![Peer { id: peer_id, store_id, role: PeerRole::Voter as i32, ..Default::default() }],
        ..Default::default()
    }
}

/// Where the key space is cut from the start. Clients of API V2 end a scan only at a region that ends where their
/// keyspace does, so the bounds of the DEFAULT keyspace are region bounds.
fn first_cuts(api: ApiVersion) -> Vec<Bytes> {
    match BoundaryForm::of_raw(api) {
        BoundaryForm::Plain => Vec::new(),
        form @ BoundaryForm::Encoded => {
            let keyspace = KeyspaceId::DEFAULT;
            let ends = |mode| [keyspace.prefix(mode), keyspace.prefix_end(mode)];
            let keys = [Mode::Raw, Mode::Txn].into_iter().flat_map(ends);
            keys.map(|key| form.boundary(Bytes::copy_from_slice(&key))).collect()
        }
    }
}

/// How many regions a cluster of this API starts with.
pub fn first_region_count(api: ApiVersion) -> usize {
    first_cuts(api).len() + 1
}

/// The regions that a cluster starts with, in key order, each with one peer on `store_id`. They take two ids each,
/// from `first_id` on.
pub fn first_regions(api: ApiVersion, first_id: u64, store_id: u64) -> Vec<Region> {
    let cuts = first_cuts(api);
    let starts = std::iter::once(Bytes::new()).chain(cuts.iter().cloned());
    let ends = cuts.iter().cloned().chain(std::iter::once(Bytes::new()));
    let ids = (first_id..).step_by(2);
    ids.zip(starts.zip(ends))
        .map(|(id, (start_key, end_key))| Region { start_key, end_key, ..first_region(id, id + 1, store_id) })
        .collect()
}

/// The writes that create a region out of nothing: records for the engine, a hard state for the log. Every first
/// peer of the region must be created with the same call.
pub fn region_records(region: &Region, peer: &Peer) -> (WriteBatch, LogWrite) {
    let mut batch = WriteBatch::new();
    born(region, peer, &mut batch);
    let hard_state = Some(HardState { term: INITIAL_TERM, vote: 0, commit: INITIAL_INDEX });
    let log = RegionLogWrite { region_id: region.id, hard_state, ..Default::default() };
    (batch, LogWrite { regions: vec![log] })
}

/// Adds the records of a region that comes into being with its data in place and its log empty.
pub fn born(region: &Region, peer: &Peer, batch: &mut WriteBatch) {
    let state = RegionState::new(PeerState::Normal, region, peer);
    batch.put(Cf::Meta, keys::region_state(region.id), values::encode(&state));
    batch.put(Cf::Meta, keys::apply_state(region.id), values::encode(&INITIAL_STATE));
}

/// A region record found on disk.
#[derive(Clone, Debug)]
pub struct Found {
    pub meta: Arc<RegionMeta>,
    pub peer: Peer,
    pub state: RegionState,
    pub apply: ApplyState,
}

/// The store's identity, if it has one.
pub fn load_ident(engine: &dyn Engine) -> Result<Option<StoreIdent>> {
    values::load(engine, keys::STORE_IDENT, "store identity")
}

/// The change that gives the store its identity.
pub fn ident_record(ident: &StoreIdent) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.put(Cf::Meta, keys::STORE_IDENT, values::encode(ident));
    batch
}

/// Every region record on disk, tombstones included, by region id.
pub fn load_regions(engine: &dyn Engine, form: BoundaryForm) -> Result<Vec<Found>> {
    let options = IterOptions {
        lower: keys::REGIONS_START.into(),
        upper: keys::REGIONS_END.into(),
        ..Default::default()
    };
    let snapshot = engine.snapshot();
    let mut iter = snapshot.iter(Cf::Meta, options)?;
    let mut found = Vec::new();
    iter.seek_to_first();
    while iter.valid() {
        if let Some(region_id) = keys::region_of_state(iter.key()) {
            let state: RegionState = values::decode(iter.value(), &format!("state of region {region_id}"))?;
            found.push(load_region(engine, form, region_id, state)?);
        }
        iter.next();
    }
    iter.status()?;
    Ok(found)
}

fn load_region(engine: &dyn Engine, form: BoundaryForm, region_id: u64, state: RegionState) -> Result<Found> {
    let lacks =
        |what: &str| EngineError::Corrupt(format!("the record of region {region_id} lacks its {what}"));
    let region = state.region.clone().ok_or_else(|| lacks("region"))?;
    let peer = state.peer.ok_or_else(|| lacks("peer"))?;
    let meta = region::meta(region, form)
        .map_err(|e| EngineError::Corrupt(format!("a boundary of region {region_id} is damaged: {e}")))?;
    let apply =
        values::load(engine, &keys::apply_state(region_id), &format!("apply state of region {region_id}"))?;
    let apply = match (apply, state.state()) {
        (Some(apply), _) => apply,
        (None, PeerState::Tombstone) => ApplyState::default(),
        (None, PeerState::Normal | PeerState::Applying) => return Err(lacks("apply state")),
    };
    Ok(Found { meta: Arc::new(meta), peer, state, apply })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_regions_tile_the_key_space_at_valid_boundaries() {
        for (api, count) in [(ApiVersion::V1, 1), (ApiVersion::V2, 5)] {
            let regions = first_regions(api, 10, 7);
            assert_eq!((regions.len(), first_region_count(api)), (count, count));
            assert!(regions[0].start_key.is_empty() && regions[count - 1].end_key.is_empty());
            for pair in regions.windows(2) {
                assert_eq!(pair[0].end_key, pair[1].start_key);
                assert!(pair[0].start_key < pair[0].end_key);
            }
            for (n, region) in (0..).zip(&regions) {
                assert_eq!(
                    (region.id, region.peers[0].id, region.peers[0].store_id),
                    (10 + 2 * n, 11 + 2 * n, 7)
                );
                assert!(region::meta(region.clone(), BoundaryForm::of_raw(api)).is_ok());
            }
        }
    }

    #[test]
    fn the_default_keyspace_has_regions_of_its_own() {
        let meta = |n: usize| {
            let region = first_regions(ApiVersion::V2, 10, 7).remove(n);
            region::meta(region, BoundaryForm::Encoded).unwrap()
        };
        assert_eq!((&meta(1).start[..], &meta(1).end[..]), (&b"r\0\0\0"[..], &b"r\0\0\x01"[..]));
        assert_eq!((&meta(3).start[..], &meta(3).end[..]), (&b"x\0\0\0"[..], &b"x\0\0\x01"[..]));
    }
}
