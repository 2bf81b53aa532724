//! What committed entries do to the engine, seen through the batch and the outcome.

use bytes::Bytes;
use protobuf::Message as _;

use super::*;
use crate::engine::Op;
use crate::raftstore::bootstrap::first_region;
use crate::raftstore::message::input::ChangePeerKind;
use crate::raftstore::message::write_set::{self, WriteSet};
use crate::raftstore::op::conf_change;
use crate::raftstore::op::split::{SplitCommand, SplitPart};

fn applier() -> Applier {
    let mut applier = Applier::new(BoundaryForm::Encoded);
    let region = first_region(1, 11, 1);
    let peer = region.peers[0];
    let region = Arc::new(RegionMeta { region, start: Bytes::new(), end: Bytes::new() });
    let state = ApplyState { applied_index: 5, applied_term: 5, truncated_index: 5, truncated_term: 5 };
    assert!(applier.apply(ApplyTask::Register { region, peer, state }, &mut WriteBatch::new()).is_none());
    applier
}

fn entry(index: u64, term: u64, data: Bytes) -> eraftpb::Entry {
    eraftpb::Entry { index, term, data, ..Default::default() }
}

fn put(version: u64, key: &str) -> Bytes {
    let mut w = WriteSet::default();
    w.put(Cf::Raw, key.as_bytes(), &[b"v"]);
    w.seal(version)
}

fn apply(applier: &mut Applier, entries: Vec<eraftpb::Entry>) -> (Applied, WriteBatch) {
    let mut batch = WriteBatch::new();
    let applied =
        applier.apply(ApplyTask::Entries { region_id: 1, entries, skip: vec![9] }, &mut batch).unwrap();
    (applied, batch)
}

fn state_in(batch: &WriteBatch) -> ApplyState {
    let key = keys::apply_state(1);
    let states = batch.ops().iter().filter_map(|op| match op {
        Op::Put { cf: Cf::Meta, key: k, value } if *k == key => Some(value),
        _ => None,
    });
    values::decode(states.last().expect("INV-APPLY: the applied index is in the batch"), "state").unwrap()
}

#[test]
fn effects_and_the_applied_index_are_in_one_batch() {
    let entries = vec![entry(6, 6, Bytes::new()), entry(7, 6, put(1, "a")), entry(8, 7, put(1, "b"))];
    let (applied, batch) = apply(&mut applier(), entries);
    assert_eq!((applied.index, applied.term, applied.keys_written), (8, 7, 2));
    assert_eq!(applied.terms, [(7, 6), (8, 7)]);
    assert_eq!(batch.ops().len(), 3);
    assert_eq!((state_in(&batch).applied_index, state_in(&batch).applied_term), (8, 7));
    assert!(!applied.must_sync());
}

#[test]
fn a_command_from_before_a_split_is_refused_and_counts_as_applied() {
    let (applied, batch) = apply(&mut applier(), vec![entry(6, 6, put(9, "a"))]);
    assert!(matches!(applied.refused[..], [(6, RegionError::EpochNotMatch { .. })]));
    assert_eq!((batch.ops().len(), state_in(&batch).applied_index), (1, 6));
}

#[test]
fn an_entry_that_cannot_be_read_stops_the_peer_before_it() {
    let mut damaged = put(1, "b").to_vec();
    damaged[12] ^= 1;
    let mut applier = applier();
    let entries = vec![entry(6, 6, put(1, "a")), entry(7, 6, damaged.into()), entry(8, 6, put(1, "c"))];
    let (applied, batch) = apply(&mut applier, entries);
    assert_eq!((applied.index, batch.ops().len()), (6, 2));
    assert!(applied.stopped.unwrap().contains("entry 7"));
    let (later, batch) = apply(&mut applier, vec![entry(7, 6, put(1, "b"))]);
    assert!(later.stopped.is_some() && later.index == 6 && batch.is_empty());
}

#[test]
fn the_truncated_index_moves_once_and_never_back() {
    let mut applier = applier();
    let entries = vec![entry(6, 6, put(1, "a")), entry(7, 6, write_set::compact_log(1, 6, 6))];
    let (applied, batch) = apply(&mut applier, entries);
    assert_eq!(applied.admin, [AdminOutcome::CompactLog { index: 6, term: 6 }]);
    assert_eq!((state_in(&batch).truncated_index, state_in(&batch).truncated_term), (6, 6));
    let late =
        vec![entry(8, 6, write_set::compact_log(1, 5, 5)), entry(9, 6, write_set::compact_log(1, 100, 6))];
    let (applied, batch) = apply(&mut applier, late);
    assert!(applied.admin.is_empty());
    assert_eq!(state_in(&batch).truncated_index, 6);
}

#[test]
fn a_membership_change_is_recorded_synced_and_refused_when_repeated() {
    let mut applier = applier();
    let region = first_region(1, 11, 1);
    let meta = RegionMeta { region, start: Bytes::new(), end: Bytes::new() };
    let learner = metapb::Peer { id: 12, store_id: 2, role: 1, ..Default::default() };
    let change = conf_change::entry(&meta, ChangePeerKind::AddLearner, &learner);
    let mut e = entry(6, 6, change.write_to_bytes().unwrap().into());
    e.set_entry_type(eraftpb::EntryType::EntryConfChange);
    let mut again = e.clone();
    again.index = 7;
    let (applied, batch) = apply(&mut applier, vec![e, again]);
    assert!(applied.must_sync());
    let [AdminOutcome::ChangePeer { region, .. }] = &applied.admin[..] else { panic!("{:?}", applied.admin) };
    assert_eq!(region.region.peers[1], learner);
    assert_eq!(applied.refused.len(), 1);
    let record = keys::region_state(1);
    assert!(batch.ops().iter().any(|op| matches!(op, Op::Put { key, .. } if *key == record)));
}

fn split_at(cuts: &[(&'static str, u64)], conf_ver: u64) -> Bytes {
    let part = |(cut, id): &(&'static str, u64)| SplitPart {
        boundary: BoundaryForm::Encoded.boundary(Bytes::from(*cut)),
        region_id: *id,
        peer_ids: vec![id * 10],
    };
    let parts = cuts.iter().map(part).collect();
    write_set::split(1, &SplitCommand { conf_ver, stores: vec![1], parts, right_derive: true })
}

#[test]
fn a_split_writes_the_records_of_all_its_regions_in_one_synced_batch_but_not_of_those_it_must_skip() {
    let mut applier = applier();
    // The applier was told to leave region 9 alone.
    let entries = vec![
        entry(6, 6, split_at(&[("f", 8), ("m", 9)], 1)),
        entry(7, 6, put(1, "a")),
        entry(8, 6, put(3, "z")),
    ];
    let (applied, batch) = apply(&mut applier, entries);
    assert!(applied.must_sync());
    let [AdminOutcome::Split { index: 6, derived, children }] = &applied.admin[..] else {
        panic!("{:?}", applied.admin)
    };
    assert_eq!((derived.version(), &derived.start[..]), (3, &b"m"[..]));
    let born: Vec<_> = children.iter().map(|c| (c.meta.region.id, c.peer.id, c.skipped)).collect();
    assert_eq!(born, [(8, 80, false), (9, 90, true)]);
    let has = |key: Bytes| batch.ops().iter().any(|op| matches!(op, Op::Put { key: k, .. } if *k == key));
    assert!(has(keys::region_state(8)) && has(keys::apply_state(8)) && has(keys::region_state(1)));
    assert!(!has(keys::region_state(9)) && !has(keys::apply_state(9)));
    assert!(matches!(applied.refused[..], [(7, RegionError::EpochNotMatch { .. })]), "written for version 1");
}

#[test]
fn a_split_of_another_membership_is_refused_and_changes_nothing() {
    let (applied, batch) = apply(&mut applier(), vec![entry(6, 6, split_at(&[("f", 8)], 4))]);
    assert!(matches!(applied.refused[..], [(6, RegionError::ServerIsBusy { .. })]));
    assert!(applied.admin.is_empty() && !applied.must_sync());
    assert_eq!(batch.ops().len(), 1, "only the applied index moves");
}
