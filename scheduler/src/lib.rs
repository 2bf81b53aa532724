//! Kvasir's scheduler: the placement driver of a cluster.
//!
//! It keeps the list of stores and regions, hands out ids and timestamps, tells clients where regions are, and
//! sends region leaders the steps that keep every region on the wanted number of stores.
//!
//! [`cluster::Cluster`] is the pure core: it decides, and does no I/O. [`Server`] runs it behind gRPC and HTTP
//! on one port, with its metadata in RocksDB. One process can hold several servers.

pub mod cluster;
pub mod config;
pub mod coordinator;
pub mod core;
pub mod error;
pub mod gc;
pub mod id;
pub mod keyspace;
pub mod kv;
pub mod member;
pub mod schedule;
pub mod schedulers;
pub mod server;
pub mod tso;

pub use config::Config;
pub use error::Error;
pub use server::Server;
