//! Writes a region's data, as an engine snapshot shows it, to files.
//!
//! Owns the order that makes the result trustworthy after a crash: each data file is written as `.tmp`, synced
//! and renamed; then the directory is synced; then the manifest goes the same way. Whoever finds a manifest
//! finds complete files.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use kvproto::metapb;

use super::snap::{self, Manifest, Side, SnapFile, TMP_SUFFIX};
use super::{CfRange, SnapError, SnapKey, io_error};
use crate::engine::{Engine, IterOptions, Snapshot};
use crate::safe_points::SafePoints;

/// Bytes read at a time when a file is checked or sent.
pub(super) const READ_BYTES: usize = 256 << 10;

/// Writes the files of `ranges` and the manifest into `dir`. Blocks for as long as reading the region takes.
///
/// # Errors
/// The engine's and the file system's; then the files written so far are removed.
pub(super) fn build(
    dir: &Path,
    engine: &dyn Engine,
    snapshot: &dyn Snapshot,
    key: &SnapKey,
    region: &metapb::Region,
    ranges: &[CfRange],
    safe_points: &SafePoints,
) -> Result<Manifest, SnapError> {
    let mut ranges: Vec<&CfRange> = ranges.iter().collect();
    ranges.sort_by_key(|range| range.cf);
    let written = ranges.iter().filter_map(|range| build_file(dir, engine, snapshot, key, range).transpose());
    let built = written.collect::<Result<Vec<_>, _>>().and_then(|files| {
        // Compactions do not spare what an engine snapshot shows: this is what they dropped at most until now.
        let gc_safe_point = safe_points.gc();
        let manifest = Manifest { key: key.clone(), region: region.clone(), gc_safe_point, files };
        write_manifest(dir, Side::Generated, &manifest)?;
        Ok(manifest)
    });
    if built.is_err() {
        for range in ranges {
            let path = dir.join(snap::file_name(Side::Generated, key, range.cf));
            // The failure is the news; what stays is swept later.
            let _ = std::fs::remove_file(tmp_path(&path));
            let _ = std::fs::remove_file(path);
        }
    }
    built
}

fn build_file(
    dir: &Path,
    engine: &dyn Engine,
    snapshot: &dyn Snapshot,
    key: &SnapKey,
    range: &CfRange,
) -> Result<Option<SnapFile>, SnapError> {
    let options = IterOptions {
        lower: range.start.clone(),
        upper: range.end.clone(),
        // A bulk read must not push the working set out of the cache.
        no_fill_cache: true,
        ..IterOptions::default()
    };
    let mut iter = snapshot.iter(range.cf, options)?;
    iter.seek_to_first();
    let path = dir.join(snap::file_name(Side::Generated, key, range.cf));
    let tmp = tmp_path(&path);
    let Some(sorted) = engine.write_sorted_file(&mut *iter, &tmp)? else { return Ok(None) };
    let (bytes, crc32c) = checksum(&tmp)?;
    std::fs::rename(&tmp, &path).map_err(io_error(&path))?;
    Ok(Some(SnapFile { cf: range.cf, bytes, keys: sorted.keys, crc32c }))
}

/// Size and checksum of a file, which is on disk when this returns.
fn checksum(path: &Path) -> Result<(u64, u32), SnapError> {
    let mut file = File::open(path).map_err(io_error(path))?;
    let mut buffer = vec![0; READ_BYTES];
    let (mut bytes, mut crc) = (0, 0);
    loop {
        let n = file.read(&mut buffer).map_err(io_error(path))?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        crc = crc32c::crc32c_append(crc, &buffer[..n]);
    }
    file.sync_all().map_err(io_error(path))?;
    Ok((bytes, crc))
}

/// Makes the snapshot exist: its files are in place, now its manifest is.
pub(super) fn write_manifest(dir: &Path, side: Side, manifest: &Manifest) -> Result<(), SnapError> {
    sync_dir(dir)?;
    let path = dir.join(snap::meta_name(side, &manifest.key));
    let tmp = tmp_path(&path);
    let write = |tmp: &Path| {
        let mut file = File::create(tmp)?;
        file.write_all(&manifest.encode())?;
        file.sync_all()
    };
    write(&tmp).map_err(io_error(&tmp))?;
    std::fs::rename(&tmp, &path).map_err(io_error(&path))?;
    sync_dir(dir)
}

/// Makes creations, renames and removals in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), SnapError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error(dir))
}

/// The name of a file that is not complete.
pub(super) fn tmp_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TMP_SUFFIX);
    PathBuf::from(name)
}
