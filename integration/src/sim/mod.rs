//! The deterministic simulator: a whole cluster, its network, disks, clocks and clients in one thread and one seed.
//!
//! The stores run the real cores (`Shard`, `Applier`, the scheduler's `Cluster`) over the memory engine; the driver
//! here keeps the contract of the real one. A run has two phases: faults with load, then everything heals and the
//! cluster must come to rest with every operation finished and all replicas equal. Checkers (`check/`) see outputs
//! only. Running a seed twice gives the same trace; a failing seed prints the line that replays it.
//!
//! `plan` draws everything from the seed, `scenario` has named plans; `world` is the loop; `driver` steps a store,
//! `background` does its slow tasks, `recovery` starts it after a crash, `serve` answers its requests; `client` with
//! `route`, `nemesis` and `placement` are the others in the world; `txn` has transactions, stores and clients both;
//! `breakage` names the deliberate mistakes that the checkers must catch.
//!
//! Absent, on purpose: operating system time, threads, unordered maps, files, sockets.

pub mod background;
pub mod breakage;
pub mod check;
pub mod client;
pub mod clock;
pub mod disk;
pub mod driver;
pub mod event;
pub mod nemesis;
pub mod network;
pub mod placement;
pub mod plan;
pub mod recovery;
pub mod rng;
pub mod route;
pub mod run;
pub mod scenario;
pub mod serve;
pub mod settled;
pub mod store;
pub mod txn;
pub mod world;

pub use breakage::Breakage;
pub use run::{Class, Failure, RunOptions, Summary, run};
pub use scenario::{SCENARIOS, Scenario};
