//! Raw key-value operations: no transactions, each key on its own.

mod client;
mod scan;

pub use client::{Cas, Checksum, RawClient, Ttl};
pub use scan::{Scan, ScanStream};
