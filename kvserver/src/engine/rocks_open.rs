//! What stands between a directory and an open database, and what RocksDB's errors mean.
//!
//! Owns the checks before a database is opened (is it ours, is it whole) and the mapping of RocksDB's errors to
//! [`EngineError`]. Nothing here is on the data path except the mapping.

use std::path::Path;

use rocksdb::{DB, ErrorKind, Options};

use super::{Cf, EngineError, Result};

/// A failure outside of reads and writes.
pub(super) fn engine_error(e: rocksdb::Error) -> EngineError {
    match e.kind() {
        ErrorKind::Corruption => EngineError::Corrupt(e.into_string()),
        _ => EngineError::Io(e.into_string()),
    }
}

/// A failed read: incomplete means that the cache did not have it.
pub(super) fn read_error(e: rocksdb::Error) -> EngineError {
    match e.kind() {
        ErrorKind::Incomplete => EngineError::NotCached,
        _ => engine_error(e),
    }
}

/// A failed write: incomplete means that it would have had to wait.
pub(super) fn write_error(e: rocksdb::Error) -> EngineError {
    match e.kind() {
        ErrorKind::Incomplete => EngineError::Stalled,
        _ => engine_error(e),
    }
}

/// A failed open. RocksDB tells a held lock only by naming the lock file.
pub(super) fn open_error(path: &Path, e: rocksdb::Error) -> EngineError {
    let text = e.to_string();
    if text.contains("lock hold by current process") || text.contains("While lock file") {
        return EngineError::InUse { path: path.to_path_buf(), cause: text };
    }
    match e.kind() {
        ErrorKind::Corruption => EngineError::Corrupt(format!("{}: {text}", path.display())),
        _ => EngineError::Io(format!("cannot open {}: {text}", path.display())),
    }
}

/// Options of one kind of write.
pub(super) fn write_options(sync: bool, no_slowdown: bool) -> rocksdb::WriteOptions {
    let mut options = rocksdb::WriteOptions::default();
    options.set_sync(sync);
    options.set_no_slowdown(no_slowdown);
    options
}

/// Looks at what is in `path` before opening it; says whether column families may be created.
///
/// They may in a fresh directory, and in one where the first start was cut short before anything was written.
pub(super) fn check_families(path: &Path, options: &Options) -> Result<bool> {
    if !path.join("CURRENT").exists() {
        let data = std::fs::read_dir(path).into_iter().flatten().flatten();
        if data.into_iter().any(|e| e.path().extension().is_some_and(|x| x == "sst")) {
            let text = format!("{} holds data files but no CURRENT file", path.display());
            return Err(EngineError::Corrupt(text));
        }
        return Ok(true);
    }
    let found = DB::list_cf(options, path).map_err(|e| open_error(path, e))?;
    let wrong = |cause| Err(EngineError::WrongFamilies { path: path.to_path_buf(), cause });
    let unknown: Vec<&str> =
        found.iter().map(String::as_str).filter(|name| Cf::from_name(name).is_none()).collect();
    if !unknown.is_empty() {
        return wrong(format!("unknown column families {}", unknown.join(", ")));
    }
    let missing: Vec<&str> =
        Cf::ALL.into_iter().map(Cf::name).filter(|name| !found.iter().any(|f| f == name)).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    let db = DB::open_cf_for_read_only(options, path, &found, false).map_err(|e| open_error(path, e))?;
    if db.latest_sequence_number() != 0 {
        return wrong(format!("no column families {}", missing.join(", ")));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::rocks::RocksEngine;
    use super::super::{Engine, EngineConfig, WriteBatch, WriteOptions};
    use super::*;

    fn open(path: &Path) -> Result<RocksEngine> {
        RocksEngine::open(path, &EngineConfig::default())
    }

    #[test]
    fn a_second_open_says_who_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let _engine = open(dir.path()).unwrap();
        let second = open(dir.path()).map(|_| ());
        assert!(matches!(second, Err(EngineError::InUse { path, .. }) if path == dir.path()));
    }

    #[test]
    fn another_kind_of_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        drop(DB::open_cf(&options, dir.path(), ["default", "meta", "strange"]).unwrap());
        let opened = || open(dir.path()).map(|_| ());
        let cause = |result| match result {
            Err(EngineError::WrongFamilies { cause, .. }) => cause,
            other => panic!("{other:?}"),
        };
        assert_eq!(cause(opened()), "unknown column families strange");
        let mut db = DB::open_cf(&options, dir.path(), ["default", "meta", "strange"]).unwrap();
        db.drop_cf("strange").unwrap();
        drop(db);
        // Nothing was ever written: a first start that was cut short.
        opened().unwrap();
        let mut db = DB::open_cf(&options, dir.path(), Cf::ALL.map(Cf::name)).unwrap();
        db.put(b"k", b"v").unwrap();
        db.drop_cf("lock").unwrap();
        drop(db);
        assert_eq!(cause(opened()), "no column families lock");
    }

    #[test]
    fn damaged_files_are_reported_as_corruption() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path()).unwrap();
        let mut batch = WriteBatch::new();
        batch.put(Cf::Raw, "key", vec![b'v'; 1000]);
        engine.write(&batch, WriteOptions::default()).unwrap();
        engine.flush_and_compact();
        drop(engine);
        for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|x| x == "sst") {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[..32].fill(0x55);
                std::fs::write(&path, bytes).unwrap();
            }
        }
        let engine = open(dir.path()).unwrap();
        assert!(matches!(engine.get(Cf::Raw, b"key"), Err(EngineError::Corrupt(_))));
        drop(engine);
        std::fs::remove_file(dir.path().join("CURRENT")).unwrap();
        let lost = open(dir.path()).map(|_| ());
        assert!(matches!(lost, Err(EngineError::Corrupt(_))), "{lost:?}");
    }
}
