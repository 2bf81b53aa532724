//! Snapshots as files: what they are called, what they contain, who may touch them.
//!
//! A snapshot is the data of one region at one log position, as one sorted file per column family and a
//! manifest with sizes and checksums. `snap` knows names and manifests, `snap_builder` writes the files from an
//! engine snapshot, `snap_manager` owns the directory: quotas, sending, receiving, putting in place, sweeping.
//!
//! Invariants: a snapshot exists once its `.meta` file does, and then all its files are complete and on disk;
//! files in use are never removed; a received file reaches the engine only after its checksum was verified.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::engine::{Cf, EngineError};

mod rate_limit;
#[expect(clippy::module_inception, reason = "the file of names and manifests carries the subsystem's name")]
pub mod snap;
pub mod snap_builder;
pub mod snap_manager;
mod snap_receiver;
mod snap_sender;
#[cfg(test)]
mod tests;

pub use snap::{FileCheck, Manifest, Side, SnapFile};
pub use snap_manager::{Receive, SnapConfig, SnapManager};
pub use snap_receiver::SnapReceiver;
pub use snap_sender::SnapSender;

/// Which snapshot: the region and the log position whose effects it contains.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapKey {
    pub region_id: u64,
    pub term: u64,
    pub index: u64,
}

impl std::fmt::Display for SnapKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}_{}", self.region_id, self.term, self.index)
    }
}

/// Where a snapshot is in its life on this store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapState {
    Generating,
    Sending,
    Receiving,
    Applying,
}

/// How many snapshots are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapCounts {
    pub generating: u32,
    pub sending: u32,
    pub receiving: u32,
    pub applying: u32,
}

/// The keys of one column family that belong to a snapshot: `[start, end)`, in the form they have in the engine.
/// An empty `end` is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CfRange {
    pub cf: Cf,
    pub start: Bytes,
    pub end: Bytes,
}

/// Why a snapshot could not be built, moved or put in place.
#[derive(Debug, thiserror::Error)]
pub enum SnapError {
    /// A manifest or a file is not what it should be. Throw the snapshot away and make a new one.
    #[error("corrupt snapshot: {0}")]
    Corrupt(String),
    /// So many snapshots are in this state already. Try again later.
    #[error("{limit} snapshots are {state:?} already; try again later")]
    Busy { state: SnapState, limit: u32 },
    /// This very snapshot is being worked on.
    #[error("snapshot {0} is in use; try again later")]
    InUse(SnapKey),
    /// There is no such snapshot here, or it was swept. Ask for a new one.
    #[error("there is no snapshot {0} here")]
    Missing(SnapKey),
    /// The sender announced more than this store takes.
    #[error("a snapshot of {bytes} bytes is over the limit of {limit}; split the region or raise the limit")]
    TooLarge { bytes: u64, limit: u64 },
    /// The file system said no.
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: std::io::Error },
    /// The engine said no.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Names the file in an I/O error.
fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> SnapError + '_ {
    move |cause| SnapError::Io { path: path.to_path_buf(), cause }
}
