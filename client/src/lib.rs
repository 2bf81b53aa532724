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
//! # What to know
//!
//! - [`RawClient`] has all operations on raw pairs. It is cheap to clone; share one per process, since requests that
//!   are made at the same time travel together.
//! - Every call ends by [`Config::timeout`] and tries again until then when a region moves or a store fails. A typed
//!   [`Error`] says what to do; [`Error::is_retryable`] whether the same call may succeed later.
//! - A write that may or may not have happened fails with [`Error::Undetermined`]: read before you write again.
//! - The client speaks the API that the cluster was bootstrapped with. With API V2, keys live in a keyspace
//!   ([`Config::keyspace`], `DEFAULT` by default) and other keyspaces do not see them.
//! - [`SchedulerClient`] tells about the cluster: its members, stores and regions.

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
pub use txn::{Snapshot, Transaction, TransactionClient, TxnOptions, TxnScan, TxnScanStream};

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KvPair {
    /// The key, without any keyspace prefix.
    pub key: Bytes,
    /// The value; empty in scans of keys only.
    pub value: Bytes,
}
