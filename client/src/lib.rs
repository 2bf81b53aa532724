//! Kvasir's client: the SDK for applications, and the scheduler connection that stores use themselves.

pub mod backoff;
mod channel;
mod error;
mod leader_search;
mod region_heartbeats;
mod scheduler_client;
mod tso_batcher;

pub use error::{Error, Result};
pub use region_heartbeats::{RegionHeartbeatSender, RegionHeartbeats};
pub use scheduler_client::{ClusterConfig, RegionInfo, SchedulerClient, SchedulerOptions};
