//! Tests that need more than one crate: clusters of real processes, and what drives them. Sees every crate of the
//! workspace; no crate sees it.

pub mod cluster;
