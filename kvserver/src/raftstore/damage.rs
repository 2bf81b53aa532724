//! What a store does about data that its disk has damaged: it stops, says what it found, and stays stopped.
//!
//! A damaged block is met again after every restart, by whichever request or compaction comes across it, and until
//! then the store would lead and answer. So the finding is written to the file `DAMAGED` in the data directory, and
//! a store that has one does not start. Failures that may pass, a full disk or a read error of the device, end
//! the process as well but leave no file.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::raft_worker::Fatal;
use crate::engine::EngineError;
use crate::engine::watch::Watcher;

const NAME: &str = "DAMAGED";
/// Findings longer than this are cut, bytes.
const FINDING_BYTES_MAX: usize = 4096;

/// A store found damage in an earlier life.
#[derive(Debug, thiserror::Error)]
#[error(
    "this store found its data damaged: {finding}. Its replicas are safe elsewhere: remove the store from the cluster \
     and start it with an empty data directory. To start it all the same, delete {}", .file.display()
)]
pub struct Damaged {
    pub file: PathBuf,
    pub finding: String,
}

/// Refuses a directory whose data was found damaged.
///
/// # Errors
/// The finding.
pub fn check(dir: &Path) -> Result<(), Damaged> {
    let file = dir.join(NAME);
    match std::fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(finding) => Err(Damaged { file, finding: String::from_utf8_lossy(&finding).trim().to_string() }),
        // Something is there, but not readable.
        Err(error) => Err(Damaged { file, finding: error.to_string() }),
    }
}

/// A watcher that ends the store at the first failure of its disk.
pub fn watcher(dir: &Path, fatal: Fatal) -> Arc<dyn Fn(&EngineError) + Send + Sync> {
    let (dir, told) = (dir.to_path_buf(), AtomicBool::new(false));
    Arc::new(move |error| {
        if told.swap(true, Ordering::Relaxed) {
            return;
        }
        if let EngineError::Corrupt(finding) = error
            && let Err(error) = note(&dir, finding)
        {
            tracing::error!(%error, "the finding cannot be written down; the store will start again");
        }
        fatal(error.to_string());
    })
}

/// One watcher for several databases.
pub fn share(watcher: &Arc<dyn Fn(&EngineError) + Send + Sync>) -> Watcher {
    let watcher = watcher.clone();
    Box::new(move |error| watcher(error))
}

fn note(dir: &Path, finding: &str) -> io::Result<()> {
    let mut file = File::create(dir.join(NAME))?;
    file.write_all(&finding.as_bytes()[..finding.len().min(FINDING_BYTES_MAX)])?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn told(dir: &Path, errors: &[EngineError]) -> Vec<String> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let fatal: Fatal = {
            let told = told.clone();
            Arc::new(move |reason| told.lock().push(reason))
        };
        let watcher = watcher(dir, fatal);
        errors.iter().for_each(|error| watcher(error));
        told.lock().clone()
    }

    #[test]
    fn damage_ends_the_store_once_and_keeps_it_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path()).unwrap();
        let errors = ["block 7", "block 8"].map(|what| EngineError::Corrupt(what.into()));
        assert_eq!(told(dir.path(), &errors), ["corrupt data: block 7"]);
        let refused = check(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("block 7") && refused.contains("empty data directory"), "{refused}");
    }

    #[test]
    fn a_failure_that_may_pass_ends_the_store_and_lets_it_start_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(told(dir.path(), &[EngineError::Io("no space".into())]).len(), 1);
        check(dir.path()).unwrap();
    }
}
