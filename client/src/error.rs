//! What can go wrong, as one typed enum. Every variant says what to do next; [`Error::is_retryable`] tells
//! whether the same call may succeed later.

use std::time::Duration;

use bytes::Bytes;
use kvproto::key::{KeyCodec, KeyError};
use kvproto::pdpb;
use kvproto::redact;
use kvproto::ts::Timestamp;

/// Result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a transaction's write met another transaction.
pub use kvproto::kvrpcpb::write_conflict::Reason as ConflictReason;

/// One edge of a deadlock: a transaction, named by its start timestamp, waits for another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitFor {
    /// Who waits.
    pub txn: Timestamp,
    /// For whom.
    pub waits_for: Timestamp,
    /// For which key.
    pub key: Bytes,
}

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
    /// The cluster keeps raw keys only.
    #[error(
        "the cluster was bootstrapped with [storage] api = \"v1\" and keeps raw keys only; bootstrap one with api = \"v2\""
    )]
    NoTransactions,
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
    /// Another transaction changed a key after this one began. Nothing was written; run the transaction again.
    #[error(
        "key {} was changed at {commit_ts} by transaction {conflict_ts}, after transaction {start_ts} began ({reason:?}); run the transaction again",
        redact::Key(key)
    )]
    WriteConflict {
        /// This transaction.
        start_ts: Timestamp,
        /// The other one.
        conflict_ts: Timestamp,
        /// When the other one was committed; zero when it is not.
        commit_ts: Timestamp,
        /// The key both wrote.
        key: Bytes,
        /// Which check failed.
        reason: ConflictReason,
    },
    /// Transactions wait for each other in a circle. Roll this one back and run it again.
    #[error(
        "waiting for key {} would be a deadlock of {} transactions; roll back and run the transaction again",
        redact::Key(key),
        chain.len()
    )]
    Deadlock {
        /// The key this transaction wanted to lock.
        key: Bytes,
        /// Who waits for whom, as the detector saw it; empty when it does not tell.
        chain: Vec<WaitFor>,
    },
    /// An insert met a key that exists. Nothing was written.
    #[error("key {} already exists", redact::Key(key))]
    AlreadyExists {
        /// The key.
        key: Bytes,
    },
    /// Another transaction held a lock on the key for as long as this call could wait.
    #[error(
        "key {} is locked by transaction {holder}; run the transaction again or wait longer",
        redact::Key(key)
    )]
    KeyLocked {
        /// The key.
        key: Bytes,
        /// Start timestamp of the transaction that holds the lock; zero when the store does not tell.
        holder: Timestamp,
    },
    /// The transaction was rolled back: it was silent for longer than its locks live, or gave way to another one.
    /// Nothing was written; run it again.
    #[error("transaction {start_ts} was rolled back: {cause}; run it again")]
    TxnAborted {
        /// The transaction.
        start_ts: Timestamp,
        /// The store's words.
        cause: String,
    },
    /// The transaction was committed or rolled back before.
    #[error("transaction {0} has ended; begin another one")]
    TxnEnded(Timestamp),
    /// The snapshot is older than what the cluster keeps.
    #[error("timestamp {ts} is too old: {cause}; read at a newer one, or have garbage kept longer")]
    TooOld {
        /// The timestamp that was read at.
        ts: Timestamp,
        /// The store's words.
        cause: String,
    },
    /// A reply that breaks the protocol.
    #[error("unexpected reply: {0}; client and server versions may not fit")]
    Protocol(String),
}

impl Error {
    /// True when the same call, or the same transaction from its beginning, may succeed later without a change by the
    /// caller. An [`Error::Undetermined`] write is not: what it did must be read first.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::SchedulerUnavailable { .. }
            | Error::NotBootstrapped
            | Error::Timeout { .. }
            | Error::StoreUnavailable { .. }
            | Error::Region { .. }
            | Error::RegionMissing { .. }
            | Error::WriteConflict { .. }
            | Error::Deadlock { .. }
            | Error::KeyLocked { .. }
            | Error::TxnAborted { .. } => true,
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
            | Error::NoTransactions
            | Error::AlreadyExists { .. }
            | Error::TxnEnded(_)
            | Error::TooOld { .. }
            | Error::Protocol(_) => false,
        }
    }

    /// True when the transaction met another one and wrote nothing: the same work may succeed in a new transaction at
    /// once.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::WriteConflict { .. } | Error::Deadlock { .. } | Error::TxnAborted { .. })
    }

    /// The same error with the keys as the application knows them, without a keyspace prefix.
    pub(crate) fn in_user_keys(mut self, codec: KeyCodec) -> Error {
        // A key of another keyspace, which no request of this client names, stays as it is.
        let user = |key: &mut Bytes| {
            if let Ok(user) = codec.user_key(key.clone()) {
                *key = user;
            }
        };
        match &mut self {
            Error::WriteConflict { key, .. }
            | Error::AlreadyExists { key }
            | Error::KeyLocked { key, .. } => user(key),
            Error::Deadlock { key, chain } => {
                user(key);
                chain.iter_mut().for_each(|edge| user(&mut edge.key));
            }
            Error::Timeout { last: Some(cause), .. } | Error::Undetermined { cause } => {
                **cause = cause.as_ref().clone().in_user_keys(codec);
            }
            _ => {}
        }
        self
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Error {
        Error::Protocol(error.to_string())
    }
}
