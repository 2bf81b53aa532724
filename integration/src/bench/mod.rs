//! The side-by-side benchmark: the same gets, puts and two-key updates against a bare echo server of the same gRPC stack, our
//! cluster through our SDK and through the official client, and etcd, each server a process of its own on one
//! machine. What counts are the ratios within one run; the numbers alone say more about the machine.

pub mod echo;
pub mod etcd;
pub mod kvasir;
pub mod load;
pub mod regions;
pub mod report;
pub mod transactions;
pub mod usage;

use std::time::Duration;

/// What all subjects are measured with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Different keys, all written before anything is measured.
    pub keys: u64,
    pub value_bytes: usize,
    pub clients: usize,
    /// The second number of clients, for what batching makes of more of them.
    pub many_clients: usize,
    pub duration: Duration,
    pub warm_up: Duration,
}

/// Why a subject could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Cluster(#[from] crate::cluster::ClusterError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A client library's error, as text: they have no type in common.
    #[error("{subject}: {message}")]
    Client { subject: &'static str, message: String },
}

impl BenchError {
    /// Names the subject that an error came from.
    pub fn client(subject: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Client { subject, message: error.to_string() }
    }
}
