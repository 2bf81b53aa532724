//! Tests that need more than one crate: clusters of real processes, what drives them, the simulator, the
//! fuzzer, and the benchmark beside other systems. Sees every crate of the workspace; no crate sees it.

pub mod bench;
pub mod check_txn;
pub mod cluster;
pub mod fuzz;
pub mod sim;
