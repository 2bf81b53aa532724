//! Who is told when a disk fails under a database that is open.
//!
//! A request that meets a damaged block fails and goes away; the store would go on leading over data that it cannot
//! read. So each database reports what RocksDB calls corrupt or what the system refused, whoever was reading, to
//! one watcher for the life of the process. Owns that watcher and nothing else.

use std::sync::OnceLock;

use super::EngineError;

/// Told of a failure that is the disk's and no request's. Called from any thread, perhaps often.
pub type Watcher = Box<dyn Fn(&EngineError) + Send + Sync>;

/// See the file's head.
#[derive(Default)]
pub(super) struct Watch(OnceLock<Watcher>);

impl Watch {
    /// Sets the watcher; later ones are ignored.
    pub(super) fn set(&self, watcher: Watcher) {
        if self.0.set(watcher).is_err() {
            tracing::error!("a database has a watcher already");
        }
    }

    /// Passes an error on, telling the watcher first when the disk is to blame.
    pub(super) fn saw(&self, error: EngineError) -> EngineError {
        if let (EngineError::Corrupt(_) | EngineError::Io(_), Some(watcher)) = (&error, self.0.get()) {
            watcher(&error);
        }
        error
    }

    /// The same for a failed write: the writer knows about a full disk itself, but not about damage that a
    /// compaction came across.
    pub(super) fn saw_in_write(&self, error: EngineError) -> EngineError {
        if matches!(error, EngineError::Corrupt(_)) { self.saw(error) } else { error }
    }
}
