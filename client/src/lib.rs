//! The Rust SDK of Kvasir, a distributed key-value store.
//!
//! # Quick start
//!
//! With a cluster running (`kvctl playground` starts one in a second), connect to its scheduler and go:
//!
//! ```no_run
//! use futures::StreamExt;
//! use kvclient::{RawClient, Result};
//!
//! #[tokio::main]
//! async fn main() -> Result<()> {
//!     let client = RawClient::connect(["127.0.0.1:2379"]).await?;
//!
//!     client.put("fruit/apple", "red").await?;
//!     client.batch_put([("fruit/banana", "yellow"), ("fruit/plum", "blue")]).await?;
//!     assert_eq!(client.get("fruit/apple").await?.as_deref(), Some(&b"red"[..]));
//!
//!     let mut fruits = client.scan(kvclient::prefix("fruit/")).stream();
//!     while let Some(pair) = fruits.next().await {
//!         let pair = pair?;
//!         println!("{:?} is {:?}", pair.key, pair.value);
//!     }
//!     client.delete_range("fruit/".."fruit0").await
//! }
//! ```
//!
//! With transactions, many keys change together or not at all:
//!
//! ```no_run
//! use kvclient::{Result, TransactionClient};
//!
//! #[tokio::main]
//! async fn main() -> Result<()> {
//!     let client = TransactionClient::connect(["127.0.0.1:2379"]).await?;
//!
//!     let mut txn = client.begin_optimistic().await?;
//!     if txn.get("seat/12a").await?.is_none() {
//!         txn.put("seat/12a", "alice").await?;
//!         txn.put("passenger/alice", "12a").await?;
//!     }
//!     txn.commit().await?;
//!
//!     // `run` commits, and runs the closure again when somebody else was faster.
//!     client
//!         .run(async |txn| {
//!             let count = txn.get("counter").await?.map_or(0, |value| value[0]);
//!             txn.put("counter", vec![count + 1]).await
//!         })
//!         .await
//! }
//! ```
//!
//! # What to know
//!
//! - [`RawClient`] has all operations on raw pairs, [`TransactionClient`] has transactions. The two see different keys.
//!   Both are cheap to clone; share one per process, since requests that are made at the same time travel together.
//! - Every call ends by [`Config::timeout`] and tries again until then when a region moves or a store fails. A typed
//!   [`Error`] says what to do; [`Error::is_retryable`] whether the same call may succeed later.
//! - A write that may or may not have happened fails with [`Error::Undetermined`]: read before you write again.
//! - A transaction reads from a snapshot of the moment when it began. It is *optimistic*: conflicts show at commit; or
//!   *pessimistic*: it locks what it writes at once and waits for others. What a pessimistic transaction bases writes on it
//!   should read with [`Transaction::get_for_update`].
//! - Two transactions that overlap and write the same key do not both commit, as long as a pessimistic one does not
//!   write what it has only seen in a scan. That each reads what the other writes is not noticed:
//!   [`Transaction::lock_keys`] or [`Transaction::get_for_update`] makes a read count like a write.
//! - A commit is answered when it is decided, and goes on in the background: before a program exits it calls
//!   [`TransactionClient::flush`], or others wait for the locks that are left.
//! - The client speaks the API that the cluster was bootstrapped with. With API V2, keys live in a keyspace
//!   ([`Config::keyspace`], `DEFAULT` by default) and other keyspaces do not see them.
//! - [`SchedulerClient`] tells about the cluster: its members, stores and regions.
//!
//! # Errors of transactions
//!
//! | error | what happened | what to do |
//! |---|---|---|
//! | [`Error::WriteConflict`] | somebody else changed a key first; nothing was written | run the transaction again; [`TransactionClient::run`] does |
//! | [`Error::Deadlock`] | transactions waited for each other in a circle | roll back and run it again; lock in the same order everywhere |
//! | [`Error::TxnAborted`] | its locks ran out and somebody rolled it back | run it again; keep it shorter |
//! | [`Error::KeyLocked`] | somebody held a lock for as long as this call could wait | try later, or allow more time |
//! | [`Error::AlreadyExists`] | an insert met an existing key; nothing was written | decide |
//! | [`Error::TooOld`] | it began before the oldest moment that the cluster keeps | begin again; keep garbage longer |
//! | [`Error::Undetermined`] | the answer to the decisive request was lost | read what it did before anything else |
//! | [`Error::TxnEnded`] | it was committed or rolled back before | begin another one |

mod backoff;
mod bounds;
mod channel;
mod config;
mod connect;
mod error;
mod lane;
mod leader_search;
mod leader_watch;
mod members;
mod raw;
pub mod region_cache;
mod region_heartbeats;
pub mod request;
mod scheduler_client;
mod scheduler_conn;
mod scheduler_gc;
mod scheduler_placement;
mod store_pool;
mod tso_batcher;
pub mod txn;

pub use backoff::{Backoff, Jitter};
pub use bounds::{IntoKeyRange, prefix};
pub use bytes::Bytes;
pub use config::{Api, Config};
pub use error::{ConflictReason, Error, Result, WaitFor};
pub use kvproto::ts::Timestamp;
pub use members::{MemberStatus, member_statuses};
pub use raw::{Cas, Checksum, RawClient, Scan, ScanStream, Ttl};
pub use region_heartbeats::{RegionHeartbeatSender, RegionHeartbeats};
pub use scheduler_client::{ClusterConfig, RegionInfo, SchedulerClient, SchedulerOptions};
pub use scheduler_gc::{AdvancedSafePoint, GcBarrier, GcState};
pub use txn::{
    CONFLICT_PAUSES, Snapshot, Transaction, TransactionClient, TxnOptions, TxnScan, TxnScanStream,
};

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KvPair {
    /// The key, without any keyspace prefix.
    pub key: Bytes,
    /// The value; empty in scans of keys only.
    pub value: Bytes,
}
