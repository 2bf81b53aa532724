//! Room on the disk: below a reserve the store takes no new data from clients, while there is still room to go on.
//!
//! A log that cannot be written ends a store, and a full disk cannot even be cleaned up. So the store stops early: it
//! refuses what adds data ([`RegionError::DiskFull`]), still takes deletions, hands its leaders to others, and goes on
//! by itself when there is room again. What other leaders replicate to it is taken as long as there is any room.
//! Owns the last look at the file system; the watching task is the store's.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::RegionError;
use crate::raftstore::message::WriteSet;

/// How often the file system is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// See the file's head.
pub struct Space {
    store_id: u64,
    /// Bytes below which the store is low on space.
    reserve: u64,
    /// Bytes that were free at the last look.
    available: AtomicU64,
}

impl Space {
    /// Enough room, until somebody looks.
    pub fn new(store_id: u64, reserve: u64) -> Space {
        Space { store_id, reserve, available: AtomicU64::new(u64::MAX) }
    }

    /// Notes what a look has found; says whether the store has just become low on space.
    pub fn note(&self, available: u64) -> bool {
        let before = self.available.swap(available, Ordering::Relaxed);
        match (before < self.reserve, available < self.reserve) {
            (false, true) => {
                tracing::warn!(
                    available,
                    reserve = self.reserve,
                    "the disk is nearly full: no new data is taken"
                );
                true
            }
            (true, false) => {
                tracing::info!(available, "there is room again");
                false
            }
            _ => false,
        }
    }

    /// Why the store takes no new data, when it does not.
    pub fn shortage(&self) -> Option<String> {
        let available = self.available.load(Ordering::Relaxed);
        let low = available < self.reserve;
        low.then(|| {
            format!(
                "the disk has {available} bytes left, fewer than storage.reserve-space ({})",
                self.reserve
            )
        })
    }

    /// Refuses a write that the disk has no room for.
    pub fn check(&self, write: &WriteSet) -> Result<(), RegionError> {
        match self.shortage() {
            Some(reason) if write.adds_data() => {
                Err(RegionError::DiskFull { store_id: self.store_id, reason })
            }
            _ => Ok(()),
        }
    }
}

/// Bytes of the file system that holds `path`: all, and those still free for this process.
pub(super) fn disk_space(path: &Path) -> std::io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut figures = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a terminated string, and `figures` is large enough for what the call fills in.
    let rc = unsafe { libc::statvfs(path.as_ptr(), figures.as_mut_ptr()) };
    if rc != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and so has filled it in.
    let figures = unsafe { figures.assume_init() };
    let block = figures.f_frsize;
    Ok((figures.f_blocks * block, figures.f_bavail * block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cf;

    #[test]
    fn the_file_system_tells_its_size_and_a_missing_path_is_an_error() {
        let (capacity, available) = disk_space(Path::new("/")).unwrap();
        assert!(capacity > 0 && available <= capacity);
        assert!(disk_space(Path::new("/no/such/directory")).is_err());
    }

    #[test]
    fn a_store_that_is_low_on_space_refuses_new_data_and_takes_deletions() {
        let (mut put, mut delete) = (WriteSet::default(), WriteSet::default());
        put.put(Cf::Raw, b"k", &[b"v"]);
        delete.delete(Cf::Raw, b"k");
        let space = Space::new(3, 100);
        space.check(&put).unwrap();
        assert!(space.note(99), "it has just become low");
        assert!(!space.note(98));
        assert!(matches!(space.check(&put), Err(RegionError::DiskFull { store_id: 3, .. })));
        space.check(&delete).unwrap();
        assert!(!space.note(100));
        space.check(&put).unwrap();
        assert!(space.shortage().is_none());
    }
}
