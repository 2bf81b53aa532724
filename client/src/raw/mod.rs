//! Raw key-value operations: no transactions, each key on its own.

mod client;
mod range;
mod scan;

pub use client::{Cas, Checksum, RawClient, Ttl};
pub use range::{IntoKeyRange, prefix};
pub use scan::{Scan, ScanStream};
