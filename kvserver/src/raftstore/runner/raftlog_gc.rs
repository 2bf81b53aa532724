//! Removes old Raft log entries in the background.
//!
//! Owns nothing but the order: the engine is synced first, then the log shortened (INV-DURABLE), so that after a
//! power loss the log still has every entry whose effects the engine may have lost. One sync serves all regions
//! that wait.

use std::sync::Arc;

use super::patience::Patience;
use crate::engine::log_store::LogStore;
use crate::engine::{Engine, EngineError};
use crate::raftstore::message::Input;
use crate::raftstore::router::Router;

/// Log entries `[from, to)` of a region that nobody needs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compact {
    pub region_id: u64,
    pub from: u64,
    pub to: u64,
}

/// Stands for all regions at once.
const NO_REGION: u64 = 0;

/// Removes log entries.
pub struct LogGc {
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn LogStore>,
    pub router: Router,
    pub(super) patience: Patience,
}

impl LogGc {
    /// Removes what all of `compacts` name; gives back those that could not be done.
    pub fn run(&self, compacts: Vec<Compact>) -> Vec<Compact> {
        if let Err(error) = self.engine.sync() {
            tracing::error!(%error, "the log is not shortened: the engine could not be synced");
            self.patience.failed(NO_REGION, || format!("the engine cannot be synced: {error}"));
            return compacts;
        }
        self.patience.succeeded(NO_REGION);
        compacts.into_iter().filter(|c| self.compact(c).is_err()).collect()
    }

    fn compact(&self, c: &Compact) -> Result<(), EngineError> {
        self.log.compact(c.region_id, c.from, c.to).inspect_err(|error| {
            tracing::error!(region = c.region_id, to = c.to, %error, "the log could not be shortened");
            self.patience.failed(c.region_id, || format!("the Raft log cannot be shortened: {error}"));
        })?;
        self.patience.succeeded(c.region_id);
        self.router.complete(Input::LogCompacted { region_id: c.region_id, first_index: c.to });
        Ok(())
    }
}
