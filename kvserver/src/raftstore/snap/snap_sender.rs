//! Reads a built snapshot in pieces for the network.
//!
//! Owns the position in the stream of files, which follow each other in the order of the manifest, and a hold
//! on the snapshot's files. Checks what it reads: a file that rotted on disk is not sent to its end.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use bytes::Bytes;

use super::snap::{self, FileCheck, Manifest, Side};
use super::snap_manager::Hold;
use super::{SnapError, io_error};

/// A snapshot on its way out. Dropping it lets go of the files.
pub struct SnapSender {
    dir: PathBuf,
    manifest: Manifest,
    /// Files begun so far.
    begun: usize,
    current: Option<(PathBuf, File, FileCheck)>,
    _hold: Hold,
}

impl SnapSender {
    pub(super) fn new(dir: PathBuf, manifest: Manifest, hold: Hold) -> SnapSender {
        SnapSender { dir, manifest, begun: 0, current: None, _hold: hold }
    }

    /// What is being sent.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The next bytes, at most `bytes_max` of them; `None` at the end. Reads a file: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`SnapError::Corrupt`] when a file does not match the manifest: remove the snapshot and build a new one.
    pub fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, SnapError> {
        let Some((path, mut file, mut check)) =
            self.current.take().map_or_else(|| self.open_next(), |c| Ok(Some(c)))?
        else {
            return Ok(None);
        };
        let len = check.remaining().min(bytes_max.max(1) as u64) as usize;
        let mut chunk = vec![0; len];
        file.read_exact(&mut chunk).map_err(|cause| match cause.kind() {
            std::io::ErrorKind::UnexpectedEof => SnapError::Corrupt(format!("{} is cut off", path.display())),
            _ => SnapError::Io { path: path.clone(), cause },
        })?;
        check.update(&chunk)?;
        if check.remaining() == 0 {
            check.finish()?;
        } else {
            self.current = Some((path, file, check));
        }
        Ok(Some(chunk.into()))
    }

    fn open_next(&mut self) -> Result<Option<(PathBuf, File, FileCheck)>, SnapError> {
        let Some(expected) = self.manifest.files.get(self.begun) else { return Ok(None) };
        self.begun += 1;
        let path = self.dir.join(snap::file_name(Side::Generated, &self.manifest.key, expected.cf));
        let file = File::open(&path).map_err(io_error(&path))?;
        Ok(Some((path, file, FileCheck::new(*expected))))
    }
}
