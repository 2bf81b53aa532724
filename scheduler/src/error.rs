//! The errors of the scheduler: those a request can meet, and those that stop a start.

use kvproto::pdpb;

use crate::core::client_keys::ClientKeyError;
use crate::core::region::InvalidRegion;
use crate::core::region_tree::Stale;
use crate::gc::GcError;
use crate::kv::KvError;
use crate::kv::records::RecordError;

/// Why the pure core refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    #[error("cluster is not bootstrapped: start a store first")]
    NotBootstrapped,
    #[error("cluster is already bootstrapped")]
    AlreadyBootstrapped,
    #[error("invalid bootstrap request: {0}")]
    InvalidBootstrap(String),
    #[error("store {0} is not found: it has to register with PutStore first")]
    UnknownStore(u64),
    #[error("store {0} was removed from the cluster; start the server with an empty data directory")]
    StoreTombstone(u64),
    #[error("id {0} was not handed out by this scheduler: ask for one with AllocID")]
    ForeignId(u64),
    #[error("invalid store: {0}")]
    InvalidStore(&'static str),
    #[error(
        "store {id} has the address {address} of store {owner}: choose another --advertise-addr, or remove the old store first"
    )]
    DuplicateAddress { id: u64, owner: u64, address: String },
    #[error(
        "store {id} differs from the cluster in {what} (store {store}, cluster {cluster}): start it with the cluster's setting"
    )]
    TraitsDiffer { id: u64, what: &'static str, store: String, cluster: String },
    #[error(
        "store {id} cannot be removed: {left} stores would stay up and every region needs {needed}; add a store first"
    )]
    TooFewStores { id: u64, left: usize, needed: usize },
    #[error(transparent)]
    InvalidRegion(#[from] InvalidRegion),
    #[error(transparent)]
    Stale(#[from] Stale),
    #[error("region {0} is not known: ask again when its leader has reported")]
    UnknownRegion(u64),
    #[error("region {region_id} cannot be split now: {reason}")]
    SplitRefused { region_id: u64, reason: String },
    #[error("no operator for region {region_id}: {reason}")]
    OperatorRefused { region_id: u64, reason: String },
    #[error("region {0} has no operator")]
    NoOperator(u64),
    #[error("scheduler {0} is not there; add it first")]
    UnknownScheduler(String),
    #[error("invalid setting: {0}")]
    InvalidSetting(String),
    #[error("invalid scheduler: {0}")]
    InvalidScheduler(String),
    #[error("invalid report of a split: {0}")]
    InvalidSplit(String),
    #[error("regions do not cover the whole of the requested key range")]
    RangeHasGaps,
    #[error("keyspace {0} does not exist")]
    UnknownKeyspace(String),
    #[error("timestamp {0}")]
    InvalidTimestamp(String),
    #[error(transparent)]
    ClientKey(#[from] ClientKeyError),
    #[error(transparent)]
    Gc(#[from] GcError),
}

impl ClusterError {
    /// The class that the wire knows.
    pub fn wire_type(&self) -> pdpb::ErrorType {
        use pdpb::ErrorType;
        match self {
            ClusterError::NotBootstrapped => ErrorType::NotBootstrapped,
            ClusterError::AlreadyBootstrapped => ErrorType::AlreadyBootstrapped,
            ClusterError::StoreTombstone(_) => ErrorType::StoreTombstone,
            ClusterError::DuplicateAddress { .. } => ErrorType::DuplicatedEntry,
            ClusterError::TraitsDiffer { .. } => ErrorType::IncompatibleVersion,
            ClusterError::UnknownKeyspace(_) => ErrorType::EntryNotFound,
            ClusterError::UnknownRegion(_) => ErrorType::RegionNotFound,
            ClusterError::NoOperator(_) | ClusterError::UnknownScheduler(_) => ErrorType::EntryNotFound,
            ClusterError::RangeHasGaps => ErrorType::RegionsNotContainAllKeyRange,
            ClusterError::InvalidBootstrap(_)
            | ClusterError::InvalidStore(_)
            | ClusterError::ForeignId(_)
            | ClusterError::InvalidSplit(_)
            | ClusterError::InvalidTimestamp(_)
            | ClusterError::ClientKey(_)
            | ClusterError::Gc(_)
            | ClusterError::InvalidScheduler(_)
            | ClusterError::InvalidSetting(_)
            | ClusterError::InvalidRegion(_) => ErrorType::InvalidValue,
            ClusterError::UnknownStore(_)
            | ClusterError::TooFewStores { .. }
            | ClusterError::SplitRefused { .. }
            | ClusterError::OperatorRefused { .. }
            | ClusterError::Stale(_) => ErrorType::Unknown,
        }
    }

    /// The error as it travels in a response header.
    pub fn to_wire(&self) -> pdpb::Error {
        pdpb::Error { r#type: self.wire_type() as i32, message: self.to_string() }
    }
}

/// Why a server does not start or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("configuration: {0}")]
    Config(String),
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("stored region is malformed ({0}): restore the data directory from a backup")]
    StoredRegion(InvalidRegion),
    #[error("cannot listen on {addr}: {cause}; choose another --client-urls or stop what uses the port")]
    Listen { addr: String, cause: std::io::Error },
    #[error("cannot start the metadata writer: {0}")]
    Thread(std::io::Error),
}
