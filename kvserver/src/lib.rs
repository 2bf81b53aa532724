//! A store of Kvasir: regions of key-value data, replicated through Raft or standing alone, served over gRPC.
//!
//! Layers, lowest first: `engine` keeps bytes, `raftstore` agrees on writes, `storage` offers both as snapshots
//! and writes of regions, `txn` carries out commands on that, `server` speaks the wire protocol. A layer names
//! only those below it.

pub mod clock;
pub mod config;
pub mod engine;
pub mod error;
pub mod metrics;
pub mod raftstore;
pub mod safe_points;
pub mod server;
pub mod storage;
pub mod txn;

pub use config::Config;
pub use server::{Server, StartError};
