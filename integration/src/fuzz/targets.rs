//! The decoders under test, each with valid inputs and the promise that it keeps for all others.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use kvproto::key::{self, BoundaryForm};
use kvproto::{keyspacepb, kvrpcpb, metapb, mvccpb, pdpb, raft_serverpb};
use kvserver::config::{Config, ReadableDuration, ReadableSize};
use kvserver::engine::Cf;
use kvserver::raftstore::message::peer_message::{Payload, PeerMessage};
use kvserver::raftstore::message::write_set::{self, Entry, WriteSet};
use kvserver::raftstore::meta::values::{self, ApplyState, PeerState, RegionState, StoreIdent};
use kvserver::raftstore::op::split::{SplitCommand, SplitPart};
use kvserver::raftstore::snap::{FileCheck, Manifest, SnapFile, SnapKey};
use kvserver::server::convert::txn::requests;
use kvserver::txn::commands::Command;
use kvserver::txn::mvcc::{self, Lock, LockKind, Write, WriteKind};
use kvserver::txn::raw::value;
use prost::Message;
use raft::eraftpb;
use scheduler::kv::Op;
use scheduler::kv::records::{self, MetaWrite};

use super::Target;

/// Everything that is fuzzed.
pub const TARGETS: [Target; 16] = [
    Target { name: "raft-entry", corpus: entries, reseal: Some(reseal_be), check: check_entry },
    Target { name: "peer-message", corpus: messages, reseal: None, check: check_message },
    Target { name: "manifest", corpus: manifests, reseal: Some(reseal_le), check: check_manifest },
    Target { name: "snapshot-body", corpus: bodies, reseal: None, check: check_body },
    Target { name: "meta-value", corpus: meta_values, reseal: None, check: check_meta_value },
    Target { name: "raw-value", corpus: raw_values, reseal: None, check: check_raw_value },
    Target { name: "lock", corpus: locks, reseal: None, check: check_lock },
    Target { name: "version", corpus: versions, reseal: None, check: check_version },
    Target { name: "long-value", corpus: long_values, reseal: None, check: check_long_value },
    Target { name: "txn-request", corpus: txn_requests, reseal: None, check: check_txn_request },
    Target { name: "key", corpus: keys, reseal: None, check: check_key },
    Target { name: "boundary", corpus: keys, reseal: None, check: check_boundary },
    Target { name: "config", corpus: configs, reseal: None, check: check_config },
    Target { name: "unit", corpus: units, reseal: None, check: check_unit },
    Target { name: "record", corpus: stored_records, reseal: None, check: check_record },
    Target { name: "number", corpus: numbers, reseal: None, check: check_number },
];

fn region() -> metapb::Region {
    metapb::Region {
        id: 7,
        start_key: key::encode(b"r\0\0\0a").into(),
        end_key: key::encode(b"r\0\0\0z").into(),
        region_epoch: Some(metapb::RegionEpoch { conf_ver: 3, version: 5 }),
        peers: vec![peer(11, 1), peer(12, 2)],
        ..Default::default()
    }
}

fn peer(id: u64, store_id: u64) -> metapb::Peer {
    metapb::Peer { id, store_id, ..Default::default() }
}

fn with_crc(input: &mut Vec<u8>, bytes: impl Fn(u32) -> [u8; 4]) {
    let body = input.len().saturating_sub(4);
    let crc = bytes(crc32c::crc32c(&input[..body]));
    input.truncate(body);
    input.extend(crc);
}

fn reseal_be(input: &mut Vec<u8>) {
    with_crc(input, u32::to_be_bytes);
}

fn reseal_le(input: &mut Vec<u8>) {
    with_crc(input, u32::to_le_bytes);
}

fn entries() -> Vec<Vec<u8>> {
    let mut write = WriteSet::with_capacity(100);
    write.put(Cf::Raw, b"r\0\0\0key", &[&b"\0value"[..]]);
    write.put(Cf::Write, b"", &[&b""[..], &b"two"[..]]);
    write.delete(Cf::Lock, b"key");
    write.delete_range(Cf::Default, b"a", b"");
    let parts = vec![SplitPart { boundary: "m".into(), region_id: 9, peer_ids: vec![10, 13] }];
    let split = SplitCommand { conf_ver: 3, stores: vec![1, 2], parts, right_derive: true };
    [
        write.seal(5),
        WriteSet::with_capacity(0).seal(1),
        write_set::compact_log(5, 90, 6),
        write_set::split(5, &split),
    ]
    .map(Vec::from)
    .to_vec()
}

fn check_entry(input: &[u8]) {
    let data = Bytes::copy_from_slice(input);
    match write_set::decode(&data) {
        Ok(Entry::Write { region_version, ops }) => {
            let ops: Vec<_> = ops.collect();
            // What comes after something unreadable is not looked at.
            assert!(ops.iter().rev().skip(1).all(Result::is_ok));
            let _ = region_version;
        }
        Ok(Entry::CompactLog { region_version, index, term }) => {
            assert_eq!(write_set::compact_log(region_version, index, term), data);
        }
        Ok(Entry::Split { region_version, command }) => {
            let again = write_set::decode(&write_set::split(region_version, &command));
            assert!(matches!(again, Ok(Entry::Split { command: same, .. }) if same == command));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // Looked at before the entry is decoded.
    write_set::is_split(&data);
}

fn messages() -> Vec<Vec<u8>> {
    let raft = |kind, entries: u64| {
        let mut m = eraftpb::Message::default();
        m.set_msg_type(kind);
        (m.from, m.to, m.term, m.index, m.commit) = (11, 12, 6, 40, 39);
        for n in 1..=entries {
            let mut entry = eraftpb::Entry::default();
            (entry.index, entry.term, entry.data) = (40 + n, 6, Bytes::from_static(b"data"));
            m.entries.push(entry);
        }
        Payload::Raft(Box::new(m))
    };
    use eraftpb::MessageType::{MsgAppend, MsgHeartbeat, MsgRequestPreVote};
    [
        raft(MsgAppend, 3),
        raft(MsgHeartbeat, 0),
        raft(MsgRequestPreVote, 0),
        Payload::Tombstone,
        Payload::CheckStale,
    ]
    .map(|payload| {
        let epoch = metapb::RegionEpoch { conf_ver: 3, version: 5 };
        let range = Some((Bytes::from_static(b"a"), Bytes::from_static(b"z")));
        let message = PeerMessage { region_id: 7, from: peer(11, 1), to: peer(12, 2), epoch, range, payload };
        message.into_wire().encode_to_vec()
    })
    .to_vec()
}

fn check_message(input: &[u8]) {
    let Ok(wire) = raft_serverpb::RaftMessage::decode(input) else { return };
    let Ok(message) = PeerMessage::from_wire(wire) else { return };
    if let Some(raft) = message.raft() {
        // What the consensus library adds to must leave room for it.
        assert!(raft.term < u64::MAX / 2 && raft.index < u64::MAX / 2 && raft.commit < u64::MAX / 2);
    }
    assert_eq!(PeerMessage::from_wire(message.clone().into_wire()), Ok(message));
}

fn manifests() -> Vec<Vec<u8>> {
    let file = |cf| SnapFile { cf, bytes: 1_000, keys: 9, crc32c: 77 };
    let key = SnapKey { region_id: 7, term: 6, index: 40 };
    let of =
        |files| Manifest { key: key.clone(), region: region(), gc_safe_point: 5, files }.encode().to_vec();
    vec![of(vec![]), of(vec![file(Cf::Raw)]), of(vec![file(Cf::Default), file(Cf::Write), file(Cf::Raw)])]
}

fn check_manifest(input: &[u8]) {
    if let Ok(manifest) = Manifest::decode(input) {
        let again = Manifest::decode(&manifest.encode()).expect("what was accepted is accepted again");
        assert_eq!(again, manifest);
        assert!(manifest.bytes() >= manifest.files.iter().map(|f| f.bytes).max().unwrap_or(0));
    }
}

const BODY: &[u8] = b"the bytes of a sorted file, as the manifest announced them";

fn bodies() -> Vec<Vec<u8>> {
    vec![BODY.to_vec()]
}

/// Bytes pass only when they are those that were announced.
fn check_body(input: &[u8]) {
    let announced = SnapFile { cf: Cf::Raw, bytes: BODY.len() as u64, keys: 1, crc32c: crc32c::crc32c(BODY) };
    let mut check = FileCheck::new(announced);
    let passed = input.chunks(7).try_for_each(|chunk| check.update(chunk)).and_then(|()| check.finish());
    assert_eq!(passed.is_ok(), input == BODY);
}

fn meta_values() -> Vec<Vec<u8>> {
    let ident = StoreIdent { cluster_id: 1 << 60, store_id: 3, api: 2 };
    let apply = ApplyState { applied_index: 40, applied_term: 6, truncated_index: 5, truncated_term: 5 };
    let state = RegionState::new(PeerState::Normal, &region(), &peer(11, 1));
    vec![values::encode(&ident).into(), values::encode(&apply).into(), values::encode(&state).into()]
}

fn check_meta_value(input: &[u8]) {
    fn check<T: Message + Default + PartialEq + std::fmt::Debug>(input: &[u8]) {
        if let Ok(value) = values::decode::<T>(input, "a value") {
            assert_eq!(values::decode::<T>(&values::encode(&value), "a value").expect("again"), value);
        }
    }
    check::<StoreIdent>(input);
    check::<ApplyState>(input);
    check::<RegionState>(input);
}

fn raw_values() -> Vec<Vec<u8>> {
    let of = |ttl| [value::Header::new(ttl, 1_000).as_slice(), b"payload"].concat();
    vec![of(0), of(60), of(u64::MAX)]
}

fn check_raw_value(input: &[u8]) {
    for now in [0, 1_000, u64::MAX] {
        if let Ok(Some(live)) = value::live(input, now) {
            assert!(live.payload_at <= input.len() && live.ttl != Some(0));
        }
        let _payload_or_error = value::payload(Bytes::copy_from_slice(input), now);
    }
}

fn locks() -> Vec<Vec<u8>> {
    let bare = Lock::new(LockKind::Pessimistic, 5, Bytes::from_static(b"primary"), 3_000);
    let full = Lock {
        kind: LockKind::Put,
        txn_size: u64::MAX,
        min_commit_ts: 1 << 60,
        short_value: Some("value".into()),
        secondaries: Some(vec!["a".into(), "b".into()]),
        ..bare.clone()
    };
    [bare, full].iter().map(Lock::encode).collect()
}

fn check_lock(input: &[u8]) {
    let peeked = Lock::peek(input);
    if let Ok(lock) = Lock::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(peeked, Some((lock.kind, lock.start_ts)), "a look at the head sees the same");
        assert_eq!(Lock::decode(lock.encode().into()).expect("what was read is read again"), lock);
        let _either = lock.is_expired(1 << 60);
    }
}

fn versions() -> Vec<Vec<u8>> {
    let put = Write { kind: WriteKind::Put, start_ts: 5, last_change_ts: 0, short_value: Some("v".into()) };
    let long = Write { short_value: None, ..put.clone() };
    let lock = Write { kind: WriteKind::Lock, last_change_ts: 1 << 60, short_value: None, ..put.clone() };
    [put, long, lock, Write::rollback(u64::MAX)].iter().map(Write::encode).collect()
}

fn check_version(input: &[u8]) {
    let peeked = Write::peek(input);
    if let Ok(write) = Write::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(peeked, Some((write.kind, write.start_ts)), "a look at the head sees the same");
        assert_eq!(Write::decode(write.encode().into()).expect("what was read is read again"), write);
    }
}

fn long_values() -> Vec<Vec<u8>> {
    vec![[&[mvcc::value::VALUE][..], b"a long value"].concat(), vec![mvcc::value::ROLLED_BACK]]
}

fn check_long_value(input: &[u8]) {
    match mvcc::value::decode(Bytes::copy_from_slice(input)) {
        Ok(mvcc::value::Record::Value(value)) => assert_eq!(value[..], input[1..]),
        Ok(mvcc::value::Record::RolledBack) => assert_eq!(input, [mvcc::value::ROLLED_BACK]),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn txn_requests() -> Vec<Vec<u8>> {
    let mutation = kvrpcpb::Mutation { key: "k".into(), value: "v".into(), ..Default::default() };
    let prewrite = kvrpcpb::PrewriteRequest {
        mutations: vec![mutation.clone()],
        primary_lock: "k".into(),
        start_version: 5,
        pessimistic_actions: vec![1],
        for_update_ts: 6,
        for_update_ts_constraints: vec![Default::default()],
        ..Default::default()
    };
    let op = kvrpcpb::Op::PessimisticLock as i32;
    let claim = kvrpcpb::PessimisticLockRequest {
        mutations: vec![kvrpcpb::Mutation { op, ..mutation }],
        primary_lock: "k".into(),
        start_version: 5,
        for_update_ts: 6,
        wait_timeout: -1,
        ..Default::default()
    };
    vec![prewrite.encode_to_vec(), claim.encode_to_vec()]
}

/// What becomes a command names each key once and has a start timestamp; the rest is refused with a reason.
fn check_txn_request(input: &[u8]) {
    fn check(keys: Vec<Bytes>, start_ts: u64) {
        assert!(!keys.is_empty() && start_ts > 0 && start_ts < u64::MAX);
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
    }
    if let Ok(request) = kvrpcpb::PrewriteRequest::decode(input) {
        match requests::prewrite(request) {
            Ok(command) => check(command.keys(), command.start_ts),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    if let Ok(request) = kvrpcpb::PessimisticLockRequest::decode(input) {
        match requests::pessimistic_lock(request, 1_000) {
            Ok((command, wait_ms)) => {
                check(command.keys(), command.start_ts);
                assert!(wait_ms <= 3_600_000);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn keys() -> Vec<Vec<u8>> {
    [&b""[..], b"r\0\0\0key", b"12345678", &[0xff; 17]].map(key::encode).to_vec()
}

fn check_key(input: &[u8]) {
    let mut out = Vec::new();
    if let Ok(rest) = key::decode_into(input, &mut out) {
        let used = input.len() - rest.len();
        assert_eq!(key::encode(&out), input[..used], "only what encoding writes is decoded");
    }
    if let Some((mode, keyspace, user)) = key::split_wire_key(input) {
        assert_eq!([&keyspace.prefix(mode)[..], user].concat(), input);
    }
}

fn check_boundary(input: &[u8]) {
    for form in [BoundaryForm::Plain, BoundaryForm::Encoded] {
        let boundary = Bytes::copy_from_slice(input);
        if let Ok(wire) = form.wire_key(boundary.clone())
            // The encoding of the empty key is no boundary that this program writes.
            && (!wire.is_empty() || boundary.is_empty())
        {
            assert_eq!(form.boundary(wire), boundary);
        }
    }
}

fn configs() -> Vec<Vec<u8>> {
    let whole = Config::default().to_toml().unwrap_or_default();
    let small = "memory-limit = \"1GiB\"\n[coprocessor]\nregion-split-size = \"1MiB\"\n[server]\nlabels = { zone = \"a\" }\n";
    vec![whole.into_bytes(), small.as_bytes().to_vec()]
}

fn check_config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match Config::parse(&text, Path::new("kv.toml")) {
        Ok(mut config) => {
            let printed = config.to_toml().expect("what was read can be printed");
            assert_eq!(Config::parse(&printed, Path::new("kv.toml")).expect("and read again"), config);
            config.resolve(1 << 30, 2);
            if config.validate().is_ok() {
                config.raft(1);
                config.engine();
            }
        }
        Err(error) => assert!(error.to_string().starts_with("kv.toml:"), "{error}"),
    }
}

fn units() -> Vec<Vec<u8>> {
    ["64MiB", "1 gb", "7", "18446744073709551615", "50ms", "2m", "1h"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

fn check_unit(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(size) = text.parse::<ReadableSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(span) = text.parse::<ReadableDuration>() {
        assert_eq!(span.to_string().parse(), Ok(span));
    }
}

/// A key and a value in one input: the length of the key comes first.
fn stored_records() -> Vec<Vec<u8>> {
    let keyspace = keyspacepb::KeyspaceMeta { name: "DEFAULT".into(), ..Default::default() };
    let store = metapb::Store { id: 3, address: "127.0.0.1:20160".into(), ..Default::default() };
    let kept =
        mvccpb::KeyValue { key: "/a".into(), value: "1".into(), mod_revision: 4, ..Default::default() };
    let writes = [
        MetaWrite::Bootstrapped(pdpb::ClusterTraits { raft_tick_ms: 50, ..Default::default() }),
        MetaWrite::Store(store),
        MetaWrite::Region(region()),
        MetaWrite::Keyspace(keyspace),
        MetaWrite::ClientKey(kept),
    ];
    let input = |write: &MetaWrite| match write.to_op() {
        Op::Put(key, value) => Some([&[key.len() as u8][..], &key, &value].concat()),
        Op::Delete(_) => None,
    };
    writes.iter().filter_map(input).collect()
}

fn check_record(input: &[u8]) {
    let Some((len, rest)) = input.split_first() else { return };
    let (key, value) = rest.split_at(usize::from(*len).min(rest.len()));
    match MetaWrite::decode(key, value) {
        Ok(write) => assert!(matches!(write.to_op(), Op::Put(..))),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn numbers() -> Vec<Vec<u8>> {
    vec![records::encode_number(0).into(), records::encode_number(u64::MAX).into()]
}

fn check_number(input: &[u8]) {
    if let Ok(number) = records::decode_number(b"id_end", input) {
        assert_eq!(records::encode_number(number), input);
    }
}
