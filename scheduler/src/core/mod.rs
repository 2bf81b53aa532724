//! What the scheduler knows about a cluster: stores, regions, and the indexes between them. Pure data.

pub mod basic_cluster;
pub mod client_keys;
pub mod region;
pub mod region_tree;
pub mod store;
