//! How metadata looks on disk: the keys, and the encoding of every value.
//!
//! A value is one format byte followed by the payload (a protobuf message or eight big-endian bytes). A value
//! with another format byte was written by a newer scheduler and stops the start with a message; it is never
//! guessed at or skipped. Ids in keys are big-endian, so that ranges come back in id order.

use bytes::{BufMut, Bytes, BytesMut};
use kvproto::{keyspacepb, metapb, mvccpb, pdpb};
use prost::Message;

use super::Op;

const FORMAT: u8 = 1;

/// Key of the cluster id.
pub const CLUSTER_ID: Bytes = Bytes::from_static(b"cluster_id");
/// Key of the end of the durable id window: every id handed out is below it.
pub const ID_END: Bytes = Bytes::from_static(b"id_end");
/// Key of the end of the durable timestamp window, milliseconds: every physical part handed out is below it.
pub const TSO_END: Bytes = Bytes::from_static(b"tso_end");

const TRAITS: &[u8] = b"m/traits";
const STORE: &[u8] = b"m/store/";
const REGION: &[u8] = b"m/region/";
const KEYSPACE: &[u8] = b"m/keyspace/";
const CLIENT_KEY: &[u8] = b"m/client/";
const SCHEDULER: &[u8] = b"m/scheduler/";
const SETTING: &[u8] = b"m/setting/";
const GC_SAFE_POINTS: &[u8] = b"m/gc/safe_points";
const GC_BARRIER: &[u8] = b"m/gc/barrier/";
const GC_GLOBAL_BARRIER: &[u8] = b"m/gc/global_barrier/";

/// First key of the records that make up a cluster's state.
pub const RECORDS_START: &[u8] = b"m/";
/// End (exclusive) of these records.
pub const RECORDS_END: &[u8] = b"m0";

/// Why a stored record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("metadata record {0:?} has format {1}: it was written by a newer scheduler; start that version")]
    NewerFormat(String, u8),
    #[error("metadata record {0:?} cannot be decoded ({1}): restore the data directory from a backup")]
    Corrupt(String, String),
    #[error("metadata record {0:?} is not known to this version: start the scheduler that wrote it")]
    UnknownKey(String),
}

/// One change of the cluster's durable state, as data.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaWrite {
    /// The cluster exists, with what every store of it must agree on.
    Bootstrapped(pdpb::ClusterTraits),
    Store(metapb::Store),
    /// A cache of what heartbeats said: it lets a restarted scheduler answer at once.
    Region(metapb::Region),
    RegionGone(u64),
    Keyspace(keyspacepb::KeyspaceMeta),
    /// A key that clients keep here.
    ClientKey(mvccpb::KeyValue),
    Scheduler(SchedulerRecord),
    Setting(SettingRecord),
    GcSafePoints(GcSafePointsRecord),
    GcBarrier(GcBarrierRecord),
    /// Named by its record; its timestamp does not matter.
    GcBarrierGone(GcBarrierRecord),
}

/// How far garbage is collected.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct GcSafePointsRecord {
    #[prost(uint64, tag = "1")]
    pub txn_safe_point: u64,
    #[prost(uint64, tag = "2")]
    pub gc_safe_point: u64,
}

/// What holds garbage collection back.
#[derive(Clone, PartialEq, Message)]
pub struct GcBarrierRecord {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bool, tag = "2")]
    pub is_global: bool,
    #[prost(uint64, tag = "3")]
    pub ts: u64,
    /// Unix milliseconds; the largest number for never.
    #[prost(uint64, tag = "4")]
    pub expires_ms: u64,
}

/// A setting as people changed it.
#[derive(Clone, PartialEq, Message)]
pub struct SettingRecord {
    #[prost(string, tag = "1")]
    pub key: String,
    /// A whole number, `true` or `false`.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A scheduler as people left it.
#[derive(Clone, PartialEq, Message)]
pub struct SchedulerRecord {
    #[prost(string, tag = "1")]
    pub name: String,
    /// It was taken out, though it is there from the start.
    #[prost(bool, tag = "2")]
    pub is_removed: bool,
    /// Unix milliseconds.
    #[prost(uint64, tag = "3")]
    pub paused_until_ms: u64,
    /// The stores it works on, where it works on some only.
    #[prost(uint64, repeated, tag = "4")]
    pub stores: Vec<u64>,
}

impl MetaWrite {
    /// Whether the write may be lost in a power cut because heartbeats bring it back.
    pub fn is_rebuildable(&self) -> bool {
        matches!(self, MetaWrite::Region(_) | MetaWrite::RegionGone(_))
    }

    /// The change as an operation of a txn.
    pub fn to_op(&self) -> Op {
        match self {
            MetaWrite::Bootstrapped(traits) => Op::Put(Bytes::from_static(TRAITS), encode(traits)),
            MetaWrite::Store(store) => Op::Put(key(STORE, store.id), encode(store)),
            MetaWrite::Region(region) => Op::Put(key(REGION, region.id), encode(region)),
            MetaWrite::RegionGone(id) => Op::Delete(key(REGION, *id)),
            MetaWrite::Setting(record) => {
                Op::Put([SETTING, record.key.as_bytes()].concat().into(), encode(record))
            }
            MetaWrite::Scheduler(record) => {
                Op::Put([SCHEDULER, record.name.as_bytes()].concat().into(), encode(record))
            }
            MetaWrite::Keyspace(meta) => {
                Op::Put(key(KEYSPACE, u64::from(crate::keyspace::id_of(meta))), encode(meta))
            }
            MetaWrite::GcSafePoints(record) => Op::Put(Bytes::from_static(GC_SAFE_POINTS), encode(record)),
            MetaWrite::GcBarrier(record) => Op::Put(barrier_key(record), encode(record)),
            MetaWrite::GcBarrierGone(record) => Op::Delete(barrier_key(record)),
            MetaWrite::ClientKey(kept) => Op::Put([CLIENT_KEY, &kept.key[..]].concat().into(), encode(kept)),
        }
    }

    /// Reads back what `to_op` has written.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<MetaWrite, RecordError> {
        if key == TRAITS {
            return Ok(MetaWrite::Bootstrapped(message(key, value)?));
        }
        if key.starts_with(STORE) {
            return Ok(MetaWrite::Store(message(key, value)?));
        }
        if key.starts_with(REGION) {
            return Ok(MetaWrite::Region(message(key, value)?));
        }
        if key.starts_with(KEYSPACE) {
            return Ok(MetaWrite::Keyspace(message(key, value)?));
        }
        if key.starts_with(CLIENT_KEY) {
            return Ok(MetaWrite::ClientKey(message(key, value)?));
        }
        if key.starts_with(SETTING) {
            return Ok(MetaWrite::Setting(message(key, value)?));
        }
        if key.starts_with(SCHEDULER) {
            return Ok(MetaWrite::Scheduler(message(key, value)?));
        }
        if key == GC_SAFE_POINTS {
            return Ok(MetaWrite::GcSafePoints(message(key, value)?));
        }
        if key.starts_with(GC_BARRIER) || key.starts_with(GC_GLOBAL_BARRIER) {
            return Ok(MetaWrite::GcBarrier(message(key, value)?));
        }
        Err(RecordError::UnknownKey(printable(key)))
    }
}

/// Encodes a number as a record value.
pub fn encode_number(number: u64) -> Bytes {
    let mut value = BytesMut::with_capacity(9);
    value.put_u8(FORMAT);
    value.put_u64(number);
    value.freeze()
}

/// Decodes a number record.
pub fn decode_number(key: &[u8], value: &[u8]) -> Result<u64, RecordError> {
    let payload = payload(key, value)?;
    let bytes: [u8; 8] = payload
        .try_into()
        .map_err(|_| RecordError::Corrupt(printable(key), format!("{} bytes, want 8", payload.len())))?;
    Ok(u64::from_be_bytes(bytes))
}

fn key(prefix: &[u8], id: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(prefix.len() + 8);
    key.put_slice(prefix);
    key.put_u64(id);
    key.freeze()
}

fn barrier_key(record: &GcBarrierRecord) -> Bytes {
    let prefix = if record.is_global { GC_GLOBAL_BARRIER } else { GC_BARRIER };
    [prefix, record.name.as_bytes()].concat().into()
}

/// Encodes a message as a record value.
pub fn encode<M: Message>(message: &M) -> Bytes {
    let mut value = BytesMut::with_capacity(1 + message.encoded_len());
    value.put_u8(FORMAT);
    message.encode_raw(&mut value);
    value.freeze()
}

/// Decodes a message record.
pub fn message<M: Message + Default>(key: &[u8], value: &[u8]) -> Result<M, RecordError> {
    M::decode(payload(key, value)?).map_err(|e| RecordError::Corrupt(printable(key), e.to_string()))
}

fn payload<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], RecordError> {
    match value.split_first() {
        Some((&FORMAT, payload)) => Ok(payload),
        Some((&other, _)) => Err(RecordError::NewerFormat(printable(key), other)),
        None => Err(RecordError::Corrupt(printable(key), "empty value".into())),
    }
}

fn printable(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(write: MetaWrite) {
        let Op::Put(key, value) = write.to_op() else { panic!("{write:?} is not a put") };
        assert!(key.as_ref() >= RECORDS_START && key.as_ref() < RECORDS_END);
        assert_eq!(MetaWrite::decode(&key, &value), Ok(write));
    }

    #[test]
    fn records_survive_encoding() {
        round_trip(MetaWrite::Bootstrapped(pdpb::ClusterTraits { raft_tick_ms: 50, ..Default::default() }));
        round_trip(MetaWrite::Store(metapb::Store { id: 7, address: "a:1".into(), ..Default::default() }));
        round_trip(MetaWrite::Region(metapb::Region { id: 8, start_key: "k".into(), ..Default::default() }));
        let record = SchedulerRecord { name: "s".into(), stores: vec![1, 2], ..Default::default() };
        round_trip(MetaWrite::Scheduler(record));
        round_trip(MetaWrite::Setting(SettingRecord { key: "k".into(), value: "7".into() }));
        round_trip(MetaWrite::GcSafePoints(GcSafePointsRecord { txn_safe_point: 9, gc_safe_point: 8 }));
        for is_global in [false, true] {
            let name = "backup".into();
            round_trip(MetaWrite::GcBarrier(GcBarrierRecord {
                name,
                is_global,
                ts: 7,
                expires_ms: u64::MAX,
            }));
        }
        round_trip(MetaWrite::Keyspace(crate::keyspace::default_keyspace(3)));
        round_trip(MetaWrite::ClientKey(mvccpb::KeyValue { key: "/a/b".into(), ..Default::default() }));
        assert_eq!(decode_number(b"id_end", &encode_number(77)), Ok(77));
    }

    #[test]
    fn unknown_formats_and_keys_are_refused_by_name() {
        let newer = [FORMAT + 1, 0];
        let error = decode_number(b"id_end", &newer).unwrap_err();
        assert_eq!(error, RecordError::NewerFormat("id_end".into(), FORMAT + 1));
        assert!(matches!(decode_number(b"id_end", &[FORMAT, 1]), Err(RecordError::Corrupt(..))));
        assert!(matches!(MetaWrite::decode(b"m/later/1", &[FORMAT]), Err(RecordError::UnknownKey(_))));
        assert!(matches!(MetaWrite::decode(TRAITS, &[]), Err(RecordError::Corrupt(..))));
    }
}
