//! Tests that need more than one crate: clusters of real processes, what drives them, and the benchmark
//! beside other systems. Sees every crate of the
//! workspace; no crate sees it.

pub mod bench;
pub mod cluster;
pub mod sim;
