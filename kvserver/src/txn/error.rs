//! Why a transactional request was not carried out: the key errors of the protocol as our own types.
//!
//! `server/convert` turns them into messages. Each carries what the client needs for its next step: the lock that is
//! in the way, the version that was newer, who waits for whom.

use bytes::Bytes;
use kvproto::redact;

use super::key_check::TxnKeyRefusal;
use super::mvcc::Lock;
use crate::engine::EngineError;
use crate::error::RegionError;
use crate::safe_points::TooOld;

/// A lock and the key it stands on, as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockInfo {
    pub key: Bytes,
    pub lock: Lock,
}

/// What kind of write stood in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictReason {
    /// Another transaction committed after this one began.
    Optimistic,
    /// Another transaction committed after the for-update timestamp: take a new one and lock again.
    PessimisticRetry,
    /// This transaction was rolled back by somebody else.
    SelfRolledBack,
    /// A pessimistic transaction did not lock this key, and another one has written it.
    NotLockedKey,
}

/// A newer version than the transaction may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub reason: ConflictReason,
    pub start_ts: u64,
    /// Start timestamp of the other transaction.
    pub conflict_ts: u64,
    /// When it committed.
    pub conflict_commit_ts: u64,
    pub key: Bytes,
    pub primary: Bytes,
}

/// One transaction that waits for another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitEntry {
    /// Start timestamp of the one that waits.
    pub txn: u64,
    /// Start timestamp of the one that it waits for.
    pub wait_for: u64,
    /// The key that it waits for.
    pub key: Bytes,
}

/// Transactions that would wait for each other for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// Holder of the lock that closed the circle.
    pub lock_ts: u64,
    /// The key that is locked.
    pub key: Bytes,
    /// Who waits for whom: the whole circle, beginning with the one that the failed transaction would have waited for,
    /// and ending with the wait that was refused.
    pub chain: Vec<WaitEntry>,
}

/// See the file's head.
#[derive(Debug, thiserror::Error)]
pub enum TxnError {
    #[error(transparent)]
    Region(#[from] RegionError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Key(#[from] TxnKeyRefusal),
    #[error("{} locked by other transactions", keys(.0))]
    Locked(Vec<LockInfo>),
    #[error("write conflict of transaction {} with {} that committed at {}", .0.start_ts, .0.conflict_ts, .0.conflict_commit_ts)]
    Conflict(Box<Conflict>),
    #[error("key {} exists already", redact::Key(.key))]
    AlreadyExists { key: Bytes },
    #[error("waiting for transaction {} would be a deadlock", .0.lock_ts)]
    Deadlock(Box<Deadlock>),
    #[error("commit timestamp {commit_ts} is below the least one allowed, {min_commit_ts}; take a new one")]
    CommitTsExpired { start_ts: u64, commit_ts: u64, key: Bytes, min_commit_ts: u64 },
    #[error("transaction {start_ts} has left no trace on its primary key")]
    TxnNotFound { start_ts: u64, primary: Bytes },
    #[error("transaction {start_ts} has no lock on key {} any more", redact::Key(.key))]
    LockNotFound { start_ts: u64, key: Bytes },
    #[error("transaction {start_ts} holds no pessimistic lock on key {}; begin again", redact::Key(.key))]
    PessimisticLockNotFound { start_ts: u64, key: Bytes },
    #[error("key {} is not the primary key of transaction {}", redact::Key(&.0.key), .0.lock.start_ts)]
    PrimaryMismatch(Box<LockInfo>),
    #[error("transaction {start_ts} committed at {commit_ts} and cannot be rolled back")]
    Committed { start_ts: u64, commit_ts: u64 },
    #[error("key {} {}", redact::Key(.key), if *.must_exist { "does not exist as asserted" } else { "exists against the assertion" })]
    Assertion { start_ts: u64, key: Bytes, must_exist: bool, existing_start_ts: u64, existing_commit_ts: u64 },
    #[error("commit timestamp {commit_ts} would be over the limit")]
    CommitTsTooLarge { commit_ts: u64 },
    #[error(
        "timestamp {ts} lies below the garbage collector's safe point {safe_point}; begin a new transaction"
    )]
    TooOld { ts: u64, safe_point: u64 },
    #[error("timestamp {ts} lies in the future: the oracle is at {now}; take timestamps from the scheduler")]
    FromTheFuture { ts: u64, now: u64 },
    #[error("{0}")]
    Invalid(String),
    #[error("the reply would be larger than {max} bytes: ask with a smaller limit")]
    ReplyTooLarge { max: usize },
    #[error("the server is stopping")]
    Stopping,
}

impl From<TooOld> for TxnError {
    fn from(TooOld { ts, safe_point }: TooOld) -> TxnError {
        TxnError::TooOld { ts, safe_point }
    }
}

impl TxnError {
    /// The answer takes a disk.
    pub fn is_not_cached(&self) -> bool {
        matches!(self, TxnError::Engine(EngineError::NotCached))
    }

    /// One lock is in the way.
    pub fn locked(key: Bytes, lock: Lock) -> TxnError {
        TxnError::Locked(vec![LockInfo { key, lock }])
    }
}

fn keys(locks: &[LockInfo]) -> String {
    let first = locks.first().map(|info| redact::Key(&info.key).to_string()).unwrap_or_default();
    match locks.len() {
        0 | 1 => format!("key {first} is"),
        n => format!("key {first} and {} more are", n - 1),
    }
}

/// The result of a transactional request.
pub type TxnResult<T> = Result<T, TxnError>;
