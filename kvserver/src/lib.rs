//! The store of Kvasir: Raft-replicated regions over RocksDB behind TiKV's gRPC protocol.
//!
//! Layers, each knowing only those before it: `engine` (ordered data), `raftstore` (replication), `storage`
//! (consistent snapshots and atomic writes), `txn` (commands), `server` (gRPC).

pub mod clock;
pub mod engine;
pub mod error;
pub mod raftstore;
pub mod storage;
