//! Damage to the files of a store that is not running: a bit flipped, an end cut off.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The files in `dir` with this extension, by name.
pub fn files(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    let mut found: Vec<PathBuf> =
        entries.into_iter().filter(|path| path.extension().is_some_and(|x| x == extension)).collect();
    found.sort();
    Ok(found)
}

/// The write-ahead log file that was written last in a database.
pub fn newest_log(database: &Path) -> io::Result<PathBuf> {
    // Files kept for reuse are older by their names.
    files(database, "log")?.pop().ok_or_else(|| io::Error::other(format!("no log in {}", database.display())))
}

/// The largest sorted file of a database.
pub fn largest_sst(database: &Path) -> io::Result<PathBuf> {
    let sized =
        files(database, "sst")?.into_iter().filter_map(|path| Some((path.metadata().ok()?.len(), path)));
    let largest = sized.max().map(|(_, path)| path);
    largest.ok_or_else(|| io::Error::other(format!("no sorted file in {}", database.display())))
}

/// Where the written part of a file ends: what follows is zeros.
pub fn written_end(path: &Path) -> io::Result<u64> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1))
}

/// Flips one bit of the byte at `offset`.
pub fn flip(path: &Path, offset: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 0x10], offset)
}

/// Cuts a file off at `length`.
pub fn truncate(path: &Path, length: u64) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.set_len(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_done_where_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000007.log");
        std::fs::write(dir.path().join("000006.log"), b"old").unwrap();
        std::fs::write(&path, b"abc\0\0").unwrap();
        assert_eq!(newest_log(dir.path()).unwrap(), path);
        assert_eq!(written_end(&path).unwrap(), 3);
        flip(&path, 1).unwrap();
        truncate(&path, 4).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [b'a', b'b' ^ 0x10, b'c', 0]);
        assert!(largest_sst(dir.path()).is_err());
    }
}
