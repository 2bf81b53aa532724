//! What can go wrong, as one typed enum. Every variant says what to do next; [`Error::is_retryable`] tells
//! whether the same call may succeed later.

use std::time::Duration;

use kvproto::key::KeyError;
use kvproto::pdpb;

/// Result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key is too long for the cluster.
    #[error("key of {size} bytes is over the limit of {limit} bytes; use a shorter key")]
    KeyTooLarge {
        /// Length of the key in bytes.
        size: usize,
        /// Largest length in bytes.
        limit: usize,
    },
    /// The cluster takes no write of this size.
    #[error(
        "write of {size} bytes is over the cluster's limit; use smaller values or split them over several keys"
    )]
    WriteTooLarge {
        /// Size of the write in bytes, as the cluster counted it.
        size: u64,
    },
    /// An argument that no cluster would accept.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// No scheduler could be reached, or none of them leads.
    #[error(
        "no leading scheduler found at {endpoints}: {cause}; check the addresses and that the scheduler runs"
    )]
    SchedulerUnavailable {
        /// The addresses that were tried.
        endpoints: String,
        /// What the last one answered.
        cause: String,
    },
    /// The scheduler runs, but no store has joined yet.
    #[error("the cluster is not bootstrapped; start a store and try again")]
    NotBootstrapped,
    /// The scheduler at these endpoints belongs to another cluster than before.
    #[error("another cluster answers: {0}; check the endpoints")]
    ClusterMismatch(String),
    /// The scheduler refused a request.
    #[error("scheduler: {message} ({kind:?})")]
    Scheduler {
        /// The class of the error.
        kind: pdpb::ErrorType,
        /// The scheduler's words.
        message: String,
    },
    /// The scheduler knows no such store, or it left the cluster.
    #[error("store {0} is not in the cluster")]
    StoreNotFound(u64),
    /// No keyspace has this name.
    #[error("keyspace {0:?} does not exist; create it or use DEFAULT")]
    KeyspaceNotFound(String),
    /// The keyspace exists but serves no requests.
    #[error("keyspace {name:?} is {state}; only an ENABLED one serves requests")]
    KeyspaceNotEnabled {
        /// Its name.
        name: String,
        /// Its state.
        state: String,
    },
    /// The client was told to speak another API version than the cluster does.
    #[error(
        "the cluster speaks API {cluster}, the client was told to speak {wanted}; remove `api` from its Config"
    )]
    ApiMismatch {
        /// From the client's configuration.
        wanted: &'static str,
        /// From the cluster's configuration.
        cluster: &'static str,
    },
    /// The deadline of the call has passed. A read or a refused write: nothing was changed.
    #[error("no answer within {after:?}{}", .last.as_ref().map(|e| format!("; last: {e}")).unwrap_or_default())]
    Timeout {
        /// How long the call was tried.
        after: Duration,
        /// What the last attempt met.
        last: Option<Box<Error>>,
    },
    /// A write was sent and its outcome is not known: it may have happened, or happen shortly, or never.
    #[error("the outcome of the write is unknown: {cause}; read the key before writing again")]
    Undetermined {
        /// Why there was no answer.
        cause: Box<Error>,
    },
    /// A store cannot be reached or its connection broke.
    #[error("store {store_id} at {address}: {cause}")]
    StoreUnavailable {
        /// Number of the store.
        store_id: u64,
        /// Where it was tried.
        address: String,
        /// What the connection met.
        cause: String,
    },
    /// A region could not serve the request when it arrived; seen as the last cause of a timeout.
    #[error("region {region_id}: {message}")]
    Region {
        /// Number of the region.
        region_id: u64,
        /// The store's words.
        message: String,
    },
    /// No region covers the key (yet).
    #[error("the scheduler knows no region for key {key}")]
    RegionMissing {
        /// The wire key in hex, shortened.
        key: String,
    },
    /// A store executed the request and refused it.
    #[error("server: {0}")]
    Server(String),
    /// A reply that breaks the protocol.
    #[error("unexpected reply: {0}; client and server versions may not fit")]
    Protocol(String),
}

impl Error {
    /// True when the same call may succeed later without a change by the caller. An [`Error::Undetermined`]
    /// write is not: what it did must be read first.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::SchedulerUnavailable { .. }
            | Error::NotBootstrapped
            | Error::Timeout { .. }
            | Error::StoreUnavailable { .. }
            | Error::Region { .. }
            | Error::RegionMissing { .. } => true,
            Error::KeyTooLarge { .. }
            | Error::WriteTooLarge { .. }
            | Error::InvalidArgument(_)
            | Error::ClusterMismatch(_)
            | Error::Scheduler { .. }
            | Error::StoreNotFound(_)
            | Error::KeyspaceNotFound(_)
            | Error::KeyspaceNotEnabled { .. }
            | Error::ApiMismatch { .. }
            | Error::Undetermined { .. }
            | Error::Server(_)
            | Error::Protocol(_) => false,
        }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Error {
        Error::Protocol(error.to_string())
    }
}
