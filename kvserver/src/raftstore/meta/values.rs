//! Values of the `meta` column family, and what a peer looks like from outside.
//!
//! Every value is a format version byte and a protobuf message. Reading refuses a version this build does not
//! know, so that a downgraded store stops with a message instead of guessing.

use bytes::{BufMut, Bytes, BytesMut};
use kvproto::metapb;
use prost::Message;

use crate::engine::{Cf, Result};
use crate::engine::{Engine, EngineError};
use crate::raftstore::peer_storage::{INITIAL_INDEX, INITIAL_TERM};

const FORMAT: u8 = 1;

/// Who this store is. Written once, before anything else.
#[derive(Clone, PartialEq, Message)]
pub struct StoreIdent {
    #[prost(uint64, tag = "1")]
    pub cluster_id: u64,
    #[prost(uint64, tag = "2")]
    pub store_id: u64,
    /// The cluster's API version (1 or 2): the form of its keys.
    #[prost(uint32, tag = "3")]
    pub api: u32,
}

/// The stages of a peer's life on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PeerState {
    /// Serving, or waiting for its first snapshot.
    Normal = 0,
    /// A received snapshot is being put in place; the data of the range may be half old, half new.
    Applying = 1,
    /// Destroyed; remembered so that late messages do not bring it back.
    Tombstone = 2,
}

/// A region as one of its peers has it.
#[derive(Clone, PartialEq, Message)]
pub struct RegionState {
    #[prost(enumeration = "PeerState", tag = "1")]
    pub state: i32,
    #[prost(message, optional, tag = "2")]
    pub region: Option<metapb::Region>,
    /// This store's peer.
    #[prost(message, optional, tag = "3")]
    pub peer: Option<metapb::Peer>,
    /// While `Applying`: index and term of the snapshot.
    #[prost(uint64, tag = "4")]
    pub snapshot_index: u64,
    #[prost(uint64, tag = "5")]
    pub snapshot_term: u64,
    /// While `Tombstone`: whether log and data are still to be removed.
    #[prost(bool, tag = "6")]
    pub cleaning: bool,
}

impl RegionState {
    /// A state of `peer` in `region`.
    pub fn new(state: PeerState, region: &metapb::Region, peer: &metapb::Peer) -> RegionState {
        let (region, peer) = (Some(region.clone()), Some(*peer));
        RegionState { state: state as i32, region, peer, ..Default::default() }
    }
}

/// How far a peer has applied its log, and where its log begins.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ApplyState {
    #[prost(uint64, tag = "1")]
    pub applied_index: u64,
    #[prost(uint64, tag = "2")]
    pub applied_term: u64,
    /// Last index that is no longer in the log.
    #[prost(uint64, tag = "3")]
    pub truncated_index: u64,
    #[prost(uint64, tag = "4")]
    pub truncated_term: u64,
}

/// The apply state of a region that has just come into being, with its data and without a log.
pub const INITIAL_STATE: ApplyState = ApplyState {
    applied_index: INITIAL_INDEX,
    applied_term: INITIAL_TERM,
    truncated_index: INITIAL_INDEX,
    truncated_term: INITIAL_TERM,
};

/// The bytes of a value.
pub fn encode(value: &impl Message) -> Bytes {
    let mut buf = BytesMut::with_capacity(1 + value.encoded_len());
    buf.put_u8(FORMAT);
    value.encode_raw(&mut buf);
    buf.freeze()
}

/// Reads a value; `what` names it in the error.
pub fn decode<T: Message + Default>(bytes: &[u8], what: &str) -> Result<T> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => {
            T::decode(body).map_err(|e| EngineError::Corrupt(format!("{what} cannot be read: {e}")))
        }
        Some((version, _)) => Err(EngineError::Corrupt(format!(
            "{what} has format {version}, which this build does not know; use a newer kvserver"
        ))),
        None => Err(EngineError::Corrupt(format!("{what} is empty"))),
    }
}

/// Reads the value under `key`, if there is one.
pub fn load<T: Message + Default>(engine: &dyn Engine, key: &[u8], what: &str) -> Result<Option<T>> {
    engine.get(Cf::Meta, key)?.map(|bytes| decode(&bytes, what)).transpose()
}

/// A peer as it is now, for the status page, metrics and tests.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct RegionStatus {
    pub region_id: u64,
    pub peer_id: u64,
    pub leader_id: u64,
    pub role: &'static str,
    pub term: u64,
    pub vote: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub commit_index: u64,
    pub persisted_index: u64,
    pub applied_index: u64,
    pub applied_term: u64,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub conf_ver: u64,
    pub version: u64,
    pub applying_snapshot: bool,
    pub stopped: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_reads_back_and_an_unknown_format_is_refused() {
        let state = ApplyState { applied_index: 9, applied_term: 2, truncated_index: 5, truncated_term: 1 };
        let mut bytes = encode(&state).to_vec();
        assert_eq!(decode::<ApplyState>(&bytes, "apply state").unwrap(), state);
        bytes[0] = 9;
        let error = decode::<ApplyState>(&bytes, "apply state").unwrap_err().to_string();
        assert!(error.contains("format 9") && error.contains("newer"), "{error}");
        assert!(decode::<ApplyState>(b"", "apply state").is_err());
        assert!(decode::<RegionState>(b"\x01\xff\xff", "region state").is_err());
    }
}
