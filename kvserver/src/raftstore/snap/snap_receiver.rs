//! Writes a snapshot that arrives in pieces to files.
//!
//! Owns the temporary files and checks each against the manifest as it fills. Only when all are complete, right
//! and on disk do they get their names and the manifest is written. A receiver dropped before that leaves nothing.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::snap::{self, FileCheck, Manifest, Side, SnapFile};
use super::snap_builder::{tmp_path, write_manifest};
use super::snap_manager::Hold;
use super::{SnapError, io_error};

/// A snapshot on its way in.
pub struct SnapReceiver {
    dir: PathBuf,
    manifest: Manifest,
    /// Files begun so far.
    begun: usize,
    current: Option<(PathBuf, File, FileCheck)>,
    _hold: Hold,
}

impl SnapReceiver {
    pub(super) fn new(dir: PathBuf, manifest: Manifest, hold: Hold) -> SnapReceiver {
        SnapReceiver { dir, manifest, begun: 0, current: None, _hold: hold }
    }

    /// The next bytes of the stream. Writes files: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`SnapError::Corrupt`] when the bytes are not those the manifest announced; the receiver is then of no more use.
    pub fn write(&mut self, mut data: &[u8]) -> Result<(), SnapError> {
        while !data.is_empty() {
            let (path, file, check) = match &mut self.current {
                Some(current) => current,
                None => {
                    let next = self.manifest.files.get(self.begun).copied();
                    let next = next
                        .ok_or_else(|| SnapError::Corrupt("more bytes than the manifest announced".into()))?;
                    self.begun += 1;
                    let current = create(&self.path(&next), next)?;
                    self.current.insert(current)
                }
            };
            let len = check.remaining().min(data.len() as u64) as usize;
            let (now, later) = data.split_at(len);
            check.update(now)?;
            file.write_all(now).map_err(io_error(path))?;
            if check.remaining() == 0 {
                check.finish()?;
                file.sync_all().map_err(io_error(path))?;
                self.current = None;
            }
            data = later;
        }
        Ok(())
    }

    /// The stream ended: makes the snapshot exist here.
    ///
    /// # Errors
    /// [`SnapError::Corrupt`] when something is missing; then nothing stays.
    pub fn finish(mut self) -> Result<Manifest, SnapError> {
        if self.current.is_some() || self.begun < self.manifest.files.len() {
            return Err(SnapError::Corrupt("fewer bytes than the manifest announced".into()));
        }
        for file in &self.manifest.files {
            let path = self.path(file);
            std::fs::rename(tmp_path(&path), &path).map_err(io_error(&path))?;
        }
        write_manifest(&self.dir, Side::Received, &self.manifest)?;
        // Nothing is left to clean up.
        self.begun = 0;
        Ok(self.manifest.clone())
    }

    fn path(&self, file: &SnapFile) -> PathBuf {
        self.dir.join(snap::file_name(Side::Received, &self.manifest.key, file.cf))
    }
}

impl Drop for SnapReceiver {
    fn drop(&mut self) {
        for file in &self.manifest.files[..self.begun] {
            let path = self.path(file);
            // What cannot be removed now is swept later.
            let _ = std::fs::remove_file(tmp_path(&path));
            let _ = std::fs::remove_file(path);
        }
    }
}

fn create(path: &Path, expected: SnapFile) -> Result<(PathBuf, File, FileCheck), SnapError> {
    let tmp = tmp_path(path);
    let file = File::create(&tmp).map_err(io_error(&tmp))?;
    Ok((tmp, file, FileCheck::new(expected)))
}
