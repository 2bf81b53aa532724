//! The directory of a store's snapshots and everything that happens in it.
//!
//! Owns the files, how many snapshots may be in each state at once, the limit on bytes per second, and who
//! holds which snapshot. Methods that touch files block; they are called from background threads. Time comes in
//! as an argument.
//!
//! Invariants: a held snapshot is never removed; a snapshot is received by one stream at a time and not while it
//! is put in place; the engine is changed only after every file was verified, and the files stay until the
//! caller removes them, so that an interrupted [`SnapManager::apply`] can be done again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use kvproto::metapb;
use parking_lot::Mutex;

use super::rate_limit::RateLimit;
use super::snap::{self, FileCheck, Manifest, Side, SnapFile, TMP_SUFFIX};
use super::snap_builder::{self, READ_BYTES, sync_dir, tmp_path};
use super::snap_receiver::SnapReceiver;
use super::snap_sender::SnapSender;
use super::{CfRange, SnapCounts, SnapError, SnapKey, SnapState, io_error};
use crate::clock::Now;
use crate::engine::{Engine, Snapshot};
use crate::safe_points::SafePoints;

/// Limits on snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapConfig {
    /// Snapshots sent at once; further ones are [`SnapError::Busy`].
    pub sending_max: u32,
    /// Snapshots received at once; further ones are [`SnapError::Busy`].
    pub receiving_max: u32,
    /// Sent and received together; 0 is no limit.
    pub bytes_per_second: u64,
    /// The largest snapshot that is accepted.
    pub snapshot_bytes_max: u64,
}

impl Default for SnapConfig {
    fn default() -> SnapConfig {
        SnapConfig {
            sending_max: 4,
            receiving_max: 4,
            bytes_per_second: 100 << 20,
            snapshot_bytes_max: 16 << 30,
        }
    }
}

/// What to do with a snapshot that another store offers.
pub enum Receive {
    /// It arrived before; no bytes are needed.
    Complete(Manifest),
    /// Feed the stream to this.
    Into(SnapReceiver),
}

/// The snapshots of a store. Clones share them.
#[derive(Clone)]
pub struct SnapManager {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    config: SnapConfig,
    safe_points: Arc<SafePoints>,
    rate: Mutex<RateLimit>,
    holds: Mutex<Holds>,
}

#[derive(Default)]
struct Holds {
    counts: SnapCounts,
    held: BTreeMap<(Side, SnapKey), Use>,
}

/// What a held snapshot is held for.
enum Use {
    /// By so many senders.
    Sending(u32),
    /// By somebody who wants it alone.
    Alone,
}

/// Keeps a snapshot's files and its place in a quota until dropped.
pub(super) struct Hold {
    inner: Arc<Inner>,
    side: Side,
    key: SnapKey,
    /// None while it is being removed, which no quota counts.
    state: Option<SnapState>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = self.inner.holds.lock();
        if let Some(state) = self.state {
            *count_of(&mut holds.counts, state) -= 1;
        }
        let id = (self.side, self.key.clone());
        match holds.held.get_mut(&id) {
            Some(Use::Sending(n)) if *n > 1 => *n -= 1,
            _ => {
                holds.held.remove(&id);
            }
        }
    }
}

fn count_of(counts: &mut SnapCounts, state: SnapState) -> &mut u32 {
    match state {
        SnapState::Generating => &mut counts.generating,
        SnapState::Sending => &mut counts.sending,
        SnapState::Receiving => &mut counts.receiving,
        SnapState::Applying => &mut counts.applying,
    }
}

impl SnapManager {
    /// Opens the directory, creating it, and removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(dir: &Path, config: SnapConfig) -> Result<SnapManager, SnapError> {
        SnapManager::open_with(dir, config, Arc::default())
    }

    /// The same for a store that collects garbage: what it may lack goes with every snapshot, and what a sender's data
    /// may lack it learns before it takes that in.
    ///
    /// # Errors
    /// The file system's.
    pub fn open_with(
        dir: &Path,
        config: SnapConfig,
        safe_points: Arc<SafePoints>,
    ) -> Result<SnapManager, SnapError> {
        std::fs::create_dir_all(dir).map_err(io_error(dir))?;
        for path in files(dir)? {
            if path.to_string_lossy().ends_with(TMP_SUFFIX) {
                std::fs::remove_file(&path).map_err(io_error(&path))?;
            }
        }
        let rate = Mutex::new(RateLimit::new(config.bytes_per_second));
        let dir = dir.to_path_buf();
        let inner = Inner { dir, config, safe_points, rate, holds: Mutex::default() };
        Ok(SnapManager { inner: Arc::new(inner) })
    }

    /// How many snapshots are in each state now.
    pub fn counts(&self) -> SnapCounts {
        self.inner.holds.lock().counts
    }

    /// Bytes of all snapshot files.
    ///
    /// # Errors
    /// The file system's.
    pub fn disk_bytes(&self) -> Result<u64, SnapError> {
        let files = files(&self.inner.dir)?;
        Ok(files.iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum())
    }

    /// How long to wait before moving the next `bytes` of any snapshot.
    pub fn throttle(&self, bytes: u64, now: Now) -> Duration {
        Duration::from_nanos(self.inner.rate.lock().take(bytes, now))
    }

    /// Writes the files of a snapshot, unless they are there already.
    ///
    /// # Errors
    /// [`SnapError::InUse`] while it is being built or sent, the engine's and the file system's.
    pub fn build(
        &self,
        engine: &dyn Engine,
        snapshot: &dyn Snapshot,
        key: &SnapKey,
        region: &metapb::Region,
        ranges: &[CfRange],
    ) -> Result<Manifest, SnapError> {
        let _hold = self.hold(Side::Generated, key, Some(SnapState::Generating))?;
        match self.manifest(Side::Generated, key) {
            Err(SnapError::Missing(_)) => {}
            Ok(manifest) if self.verify(Side::Generated, &manifest).is_ok() => return Ok(manifest),
            // Files that went bad are replaced.
            _ => self.remove_files(Side::Generated, key)?,
        }
        let (dir, safe_points) = (&self.inner.dir, &self.inner.safe_points);
        snap_builder::build(dir, engine, snapshot, key, region, ranges, safe_points)
    }

    /// Begins to send a snapshot that was built.
    ///
    /// # Errors
    /// [`SnapError::Busy`] at the quota, [`SnapError::Missing`], [`SnapError::InUse`] while it is being built.
    pub fn send(&self, key: &SnapKey) -> Result<SnapSender, SnapError> {
        let hold = self.hold(Side::Generated, key, Some(SnapState::Sending))?;
        let manifest = self.manifest(Side::Generated, key)?;
        Ok(SnapSender::new(self.inner.dir.clone(), manifest, hold))
    }

    /// Begins to receive the snapshot that `manifest`, as sent, announces.
    ///
    /// # Errors
    /// [`SnapError::Busy`] at the quota, [`SnapError::InUse`] while it is being received or put in place,
    /// [`SnapError::TooLarge`], [`SnapError::Corrupt`].
    pub fn receive(&self, manifest: &[u8]) -> Result<Receive, SnapError> {
        let manifest = Manifest::decode(manifest)?;
        let (bytes, limit) = (manifest.bytes(), self.inner.config.snapshot_bytes_max);
        if bytes > limit {
            return Err(SnapError::TooLarge { bytes, limit });
        }
        let hold = self.hold(Side::Received, &manifest.key, Some(SnapState::Receiving))?;
        match self.manifest(Side::Received, &manifest.key) {
            Ok(have) if have == manifest && self.verify(Side::Received, &have).is_ok() => {
                return Ok(Receive::Complete(have));
            }
            Err(SnapError::Missing(_)) => {}
            _ => self.remove_files(Side::Received, &manifest.key)?,
        }
        Ok(Receive::Into(SnapReceiver::new(self.inner.dir.clone(), manifest, hold)))
    }

    /// Replaces the data of `ranges` by a received snapshot; durable when it returns. After a crash, do it again.
    ///
    /// # Errors
    /// [`SnapError::Missing`] and [`SnapError::Corrupt`] before anything was changed, the engine's at any point.
    pub fn apply(&self, engine: &dyn Engine, key: &SnapKey, ranges: &[CfRange]) -> Result<(), SnapError> {
        let _hold = self.hold(Side::Received, key, Some(SnapState::Applying))?;
        let manifest = self.manifest(Side::Received, key)?;
        if let Some(file) = manifest.files.iter().find(|file| ranges.iter().all(|r| r.cf != file.cf)) {
            let text =
                format!("snapshot {key} has a file of {} and the region has no such data", file.cf.name());
            return Err(SnapError::Corrupt(text));
        }
        self.verify(Side::Received, &manifest)?;
        self.inner.safe_points.raise(0, manifest.gc_safe_point);
        for range in ranges {
            engine.clear_range(range.cf, &range.start, &range.end)?;
        }
        for file in &manifest.files {
            let path = self.path(Side::Received, key, file);
            let link = tmp_path(&path);
            second_name(&path, &link)?;
            engine.ingest(file.cf, &link)?;
        }
        Ok(())
    }

    /// Removes a snapshot's files, if there are any.
    ///
    /// # Errors
    /// [`SnapError::InUse`] while somebody holds them, the file system's.
    pub fn remove(&self, side: Side, key: &SnapKey) -> Result<(), SnapError> {
        let _hold = self.hold(side, key, None)?;
        self.remove_files(side, key)
    }

    /// Removes snapshots that nobody holds, whose files are `age_seconds` old or older, and that `keep` lets go
    /// (it keeps those that an interrupted apply still needs). Returns how many it removed.
    ///
    /// # Errors
    /// The file system's.
    pub fn sweep(
        &self,
        unix_seconds: u64,
        age_seconds: u64,
        keep: impl Fn(Side, &SnapKey) -> bool,
    ) -> Result<usize, SnapError> {
        let mut newest: BTreeMap<(Side, SnapKey), u64> = BTreeMap::new();
        for path in files(&self.inner.dir)? {
            let id = path.file_name().and_then(|name| snap::parse_name(name.to_str()?));
            // A file that goes away meanwhile needs no sweeping.
            let (Some(id), Ok(meta)) = (id, path.metadata()) else { continue };
            let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            let modified = modified.map_or(0, |age| age.as_secs());
            let newest = newest.entry(id).or_default();
            *newest = modified.max(*newest);
        }
        let mut removed = 0;
        for ((side, key), modified) in newest {
            if modified.saturating_add(age_seconds) > unix_seconds || keep(side, &key) {
                continue;
            }
            match self.remove(side, &key) {
                Ok(()) => removed += 1,
                Err(SnapError::InUse(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Takes hold of a snapshot: senders share it, everybody else has it alone.
    fn hold(&self, side: Side, key: &SnapKey, state: Option<SnapState>) -> Result<Hold, SnapError> {
        let mut guard = self.inner.holds.lock();
        let holds = &mut *guard;
        let id = (side, key.clone());
        let senders = match holds.held.get(&id) {
            None => 0,
            Some(Use::Sending(n)) if state == Some(SnapState::Sending) => *n,
            Some(_) => return Err(SnapError::InUse(key.clone())),
        };
        if let Some(state) = state {
            let limit = match state {
                SnapState::Sending => self.inner.config.sending_max,
                SnapState::Receiving => self.inner.config.receiving_max,
                SnapState::Generating | SnapState::Applying => u32::MAX,
            };
            let count = count_of(&mut holds.counts, state);
            if *count >= limit {
                return Err(SnapError::Busy { state, limit });
            }
            *count += 1;
        }
        let sending = state == Some(SnapState::Sending);
        holds.held.insert(id, if sending { Use::Sending(senders + 1) } else { Use::Alone });
        Ok(Hold { inner: self.inner.clone(), side, key: key.clone(), state })
    }

    /// The manifest of a snapshot that exists here.
    ///
    /// # Errors
    /// [`SnapError::Missing`], [`SnapError::Corrupt`], the file system's.
    pub fn manifest(&self, side: Side, key: &SnapKey) -> Result<Manifest, SnapError> {
        let path = self.inner.dir.join(snap::meta_name(side, key));
        let bytes = std::fs::read(&path).map_err(|cause| match cause.kind() {
            std::io::ErrorKind::NotFound => SnapError::Missing(key.clone()),
            _ => SnapError::Io { path: path.clone(), cause },
        })?;
        let manifest = Manifest::decode(&bytes)?;
        if manifest.key != *key {
            return Err(SnapError::Corrupt(format!("{} is of snapshot {}", path.display(), manifest.key)));
        }
        Ok(manifest)
    }

    /// Reads every file of a snapshot and compares it with the manifest.
    fn verify(&self, side: Side, manifest: &Manifest) -> Result<(), SnapError> {
        let mut buffer = vec![0; READ_BYTES];
        for expected in &manifest.files {
            let path = self.path(side, &manifest.key, expected);
            let mut file = File::open(&path).map_err(io_error(&path))?;
            let mut check = FileCheck::new(*expected);
            loop {
                let n = file.read(&mut buffer).map_err(io_error(&path))?;
                if n == 0 {
                    break;
                }
                check.update(&buffer[..n])?;
            }
            check.finish()?;
        }
        Ok(())
    }

    fn path(&self, side: Side, key: &SnapKey, file: &SnapFile) -> PathBuf {
        self.inner.dir.join(snap::file_name(side, key, file.cf))
    }

    /// Removes the manifest first: without it the snapshot does not exist, however far the removal gets.
    fn remove_files(&self, side: Side, key: &SnapKey) -> Result<(), SnapError> {
        let meta = self.inner.dir.join(snap::meta_name(side, key));
        let of_key = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.and_then(snap::parse_name).is_some_and(|id| id == (side, key.clone()))
        };
        let mut paths: Vec<PathBuf> = files(&self.inner.dir)?.into_iter().filter(of_key).collect();
        paths.sort_by_key(|path| *path != meta);
        for path in paths {
            std::fs::remove_file(&path).map_err(io_error(&path))?;
        }
        sync_dir(&self.inner.dir)
    }
}

/// The paths in a directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>, SnapError> {
    let entries = std::fs::read_dir(dir).map_err(io_error(dir))?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(io_error(dir))).collect()
}

/// Gives a file a second name that ingestion may take away; a copy where the file system has no hard links.
fn second_name(path: &Path, link: &Path) -> Result<(), SnapError> {
    if let Err(cause) = std::fs::remove_file(link)
        && cause.kind() != std::io::ErrorKind::NotFound
    {
        return Err(SnapError::Io { path: link.to_path_buf(), cause });
    }
    if std::fs::hard_link(path, link).is_ok() {
        return Ok(());
    }
    std::fs::copy(path, link).and_then(|_| File::open(link)?.sync_all()).map_err(io_error(link))
}
