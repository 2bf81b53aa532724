//! What requests do to data: commands over [`crate::storage::Storage`]. Knows no Raft and no wire format.

pub mod latches;
pub mod raw;
