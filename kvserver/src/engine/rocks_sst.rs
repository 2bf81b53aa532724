//! Sorted files: written from an iterator, taken in whole by the data engine.
//!
//! Owns the writing of one RocksDB table file. Its content is synced to disk when writing returns; naming it
//! for good (rename, directory sync) is the caller's business. A failed write leaves no file behind.

use std::path::Path;

use rocksdb::SstFileWriter;

use super::rocks_open::engine_error;
use super::{Iter, Result, SortedFile, rocks_options};

/// Writes what `iter` yields from its position on to `path`; `None` and no file when that is nothing.
pub(super) fn write(iter: &mut dyn Iter, path: &Path) -> Result<Option<SortedFile>> {
    if !iter.valid() {
        iter.status()?;
        return Ok(None);
    }
    let written = write_keys(iter, path);
    if written.is_err() {
        // The failure is the news; a leftover is overwritten by the next attempt and swept as a stale file.
        let _ = std::fs::remove_file(path);
    }
    written.map(Some)
}

fn write_keys(iter: &mut dyn Iter, path: &Path) -> Result<SortedFile> {
    let options = rocks_options::sorted_file_options();
    let mut writer = SstFileWriter::create(&options);
    writer.open(path).map_err(engine_error)?;
    let mut keys = 0;
    while iter.valid() {
        writer.put(iter.key(), iter.value()).map_err(engine_error)?;
        keys += 1;
        iter.next();
    }
    iter.status()?;
    writer.finish().map_err(engine_error)?;
    Ok(SortedFile { bytes: writer.file_size(), keys })
}
