//! What a store tells a client that it cannot do now, and why: the region errors of the protocol as our own types.
//!
//! The core answers with these; `server/convert.rs` turns them into messages. Each carries the truth the store
//! has (who leads, which regions exist), so that the client's next try can succeed.

use bytes::Bytes;
use kvproto::metapb;

/// The request did not run here; the client mends its region cache and tries again.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RegionError {
    #[error("peer of region {region_id} is not the leader")]
    NotLeader { region_id: u64, leader: Option<metapb::Peer> },
    #[error("region {region_id} is not on this store")]
    RegionNotFound { region_id: u64 },
    #[error("region {region_id} has no data here yet")]
    RegionNotInitialized { region_id: u64 },
    #[error("the key is not in region {region_id}")]
    KeyNotInRegion { key: Bytes, region_id: u64, start_key: Bytes, end_key: Bytes },
    #[error("the region has changed")]
    EpochNotMatch { current: Vec<metapb::Region> },
    #[error("the command was proposed in an earlier term")]
    StaleCommand,
    #[error("the request is for store {requested}, this is store {actual}")]
    StoreNotMatch { requested: u64, actual: u64 },
    #[error("the request is for peer {requested}, this is peer {actual}")]
    MismatchPeerId { requested: u64, actual: u64 },
    #[error("the server is busy: {reason}")]
    ServerIsBusy { reason: String },
    #[error("entry of {bytes} bytes for region {region_id} is over the limit")]
    RaftEntryTooLarge { region_id: u64, bytes: u64 },
    #[error("cannot confirm leadership of region {region_id}: {reason}")]
    ReadIndexNotReady { region_id: u64, reason: String },
    #[error("peer {peer_id} of region {region_id} cannot answer stale reads; read from the leader")]
    DataIsNotReady { region_id: u64, peer_id: u64 },
    #[error("store {store_id} takes no new data: {reason}")]
    DiskFull { store_id: u64, reason: String },
    #[error("no timestamp since region {region_id} is led here: {reason}")]
    MaxTimestampNotSynced { region_id: u64, reason: String },
    /// Leadership was lost with the write in flight: it may or may not take effect.
    #[error("the outcome is unknown: {0}")]
    Undetermined(String),
    /// The peer found data it must not touch and stopped; an operator has to look.
    #[error("region {region_id} is stopped: {reason}")]
    Stopped { region_id: u64, reason: String },
}

/// The result of a write or of asking for permission to read.
pub type RegionResult<T> = std::result::Result<T, RegionError>;
