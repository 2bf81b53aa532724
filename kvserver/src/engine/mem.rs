//! The engine in memory, for tests and the deterministic simulator.
//!
//! Owns one persistent map per column family, so that a snapshot is a handful of reference counts, and the
//! states a crash may fall back to: the durable one and one for every write since. It mimics a real engine's
//! promises, not its timing: reads never miss the cache and writes never stall.
//!
//! Invariants: a crash leaves a prefix of the writes that includes everything synced; sorted files, once
//! written, survive crashes until ingested; ingestion and range clearing are durable when they return.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::log_store::UNSYNCED_MAX;
use super::mem_tree::Tree;
use super::{
    Cf, Engine, EngineError, EngineStats, Iter, IterOptions, Op, RangeEstimate, ReadTier, Result, Snapshot,
    SortedFile, WriteBatch, WriteOptions,
};

type Families = [Tree; Cf::ALL.len()];

/// The content of a sorted file, in key order.
pub type SortedContent = Arc<Vec<(Bytes, Bytes)>>;

/// The engine in memory. Clones share the data.
#[derive(Clone, Default)]
pub struct MemEngine {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    now: Families,
    durable: Families,
    /// The data after each write that is not durable yet, oldest first; the last equals `now`.
    unsynced: VecDeque<Families>,
    files: BTreeMap<PathBuf, SortedContent>,
    /// How often files were taken in.
    ingested: u64,
}

impl MemEngine {
    /// An empty engine.
    pub fn new() -> MemEngine {
        MemEngine::default()
    }

    /// Loses power: everything synced stays, and of the writes after it the first `keep_unsynced`. Snapshots
    /// taken before keep what they saw.
    pub fn crash(&self, keep_unsynced: usize) {
        let mut state = self.state.lock();
        state.unsynced.truncate(keep_unsynced);
        if let Some(kept) = state.unsynced.pop_back() {
            state.durable = kept;
        }
        state.unsynced.clear();
        state.now = state.durable.clone();
    }

    /// Writes that a crash might lose.
    pub fn unsynced(&self) -> usize {
        self.state.lock().unsynced.len()
    }

    /// A sorted file this engine holds, to be carried to another one as a snapshot transfer would.
    pub fn sorted_file(&self, path: &Path) -> Option<SortedContent> {
        self.state.lock().files.get(path).cloned()
    }

    /// Stores a sorted file that came from another engine.
    pub fn put_sorted_file(&self, path: &Path, content: SortedContent) {
        self.state.lock().files.insert(path.to_path_buf(), content);
    }
}

impl State {
    fn written(&mut self, sync: bool) {
        if sync {
            return self.sync();
        }
        self.unsynced.push_back(self.now.clone());
        if self.unsynced.len() > UNSYNCED_MAX
            && let Some(oldest) = self.unsynced.pop_front()
        {
            self.durable = oldest;
        }
    }

    fn sync(&mut self) {
        self.unsynced.clear();
        self.durable = self.now.clone();
    }
}

impl Engine for MemEngine {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(MemSnapshot { families: self.state.lock().now.clone() })
    }

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.state.lock().now[cf as usize].get(key).cloned())
    }

    fn write(&self, batch: &WriteBatch, options: WriteOptions) -> Result<()> {
        let mut state = self.state.lock();
        for op in batch.ops() {
            match op {
                Op::Put { cf, key, value } => state.now[*cf as usize].insert(key.clone(), value.clone()),
                Op::Delete { cf, key } => state.now[*cf as usize].remove(key),
                Op::DeleteRange { cf, start, end } => state.now[*cf as usize].remove_range(start, end),
            }
        }
        if !batch.is_empty() || options.sync {
            state.written(options.sync);
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.state.lock().sync();
        Ok(())
    }

    fn write_sorted_file(&self, iter: &mut dyn Iter, path: &Path) -> Result<Option<SortedFile>> {
        let mut content = Vec::new();
        let mut bytes = 0;
        while iter.valid() {
            bytes += (iter.key().len() + iter.value().len()) as u64;
            content.push((Bytes::copy_from_slice(iter.key()), Bytes::copy_from_slice(iter.value())));
            iter.next();
        }
        iter.status()?;
        if content.is_empty() {
            return Ok(None);
        }
        let keys = content.len() as u64;
        self.put_sorted_file(path, Arc::new(content));
        Ok(Some(SortedFile { bytes, keys }))
    }

    fn ingest(&self, cf: Cf, path: &Path) -> Result<()> {
        let mut state = self.state.lock();
        state.ingested += 1;
        let Some(content) = state.files.remove(path) else {
            return Err(EngineError::Io(format!("{}: no such sorted file", path.display())));
        };
        for (key, value) in content.iter() {
            state.now[cf as usize].insert(key.clone(), value.clone());
        }
        state.sync();
        Ok(())
    }

    fn ingested(&self) -> u64 {
        self.state.lock().ingested
    }

    fn write_unless_ingested(&self, batch: &WriteBatch, since: u64) -> Result<bool> {
        // Nothing is taken in between: this engine has one user at a time, the simulator.
        if self.ingested() != since {
            return Ok(false);
        }
        self.write(batch, WriteOptions::default())?;
        Ok(true)
    }

    fn clear_range(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        state.now[cf as usize].remove_range(start, end);
        state.sync();
        Ok(())
    }

    fn estimate(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<RangeEstimate> {
        let tree = self.state.lock().now[cf as usize].clone();
        let range = tree.range(start, end);
        Ok(RangeEstimate { bytes: range.bytes(), keys: range.len(), ..RangeEstimate::default() })
    }

    fn stalled(&self) -> bool {
        false
    }

    fn stats(&self) -> EngineStats {
        let state = self.state.lock();
        let bytes = state.now.iter().map(Tree::bytes).sum();
        let keys = state.now.each_ref().map(Tree::len);
        EngineStats { disk_bytes: bytes, memtable_bytes: bytes, block_cache_bytes: 0, keys }
    }

    fn close(&self) -> Result<()> {
        self.sync()
    }
}

struct MemSnapshot {
    families: Families,
}

impl Snapshot for MemSnapshot {
    fn get(&self, cf: Cf, key: &[u8], _tier: ReadTier) -> Result<Option<Bytes>> {
        Ok(self.families[cf as usize].get(key).cloned())
    }

    fn iter(&self, cf: Cf, options: IterOptions) -> Result<Box<dyn Iter>> {
        let tree = self.families[cf as usize].clone();
        Ok(Box::new(MemIter { tree, lower: options.lower, upper: options.upper, at: None }))
    }
}

/// A cursor over one map; each move is a search from the root.
struct MemIter {
    tree: Tree,
    lower: Bytes,
    upper: Bytes,
    at: Option<(Bytes, Bytes)>,
}

impl MemIter {
    /// Takes the position, or ends when it is out of bounds.
    fn place(&self, found: Option<(&Bytes, &Bytes)>) -> Option<(Bytes, Bytes)> {
        found
            .filter(|(key, _)| **key >= self.lower && (self.upper.is_empty() || **key < self.upper))
            .map(|(key, value)| (key.clone(), value.clone()))
    }
}

impl Iter for MemIter {
    fn seek(&mut self, key: &[u8]) {
        self.at = self.place(self.tree.at_or_after(key.max(&self.lower[..])));
    }

    fn seek_for_prev(&mut self, key: &[u8]) {
        let beyond = !self.upper.is_empty() && *key >= self.upper[..];
        let found = if beyond { self.tree.before(&self.upper) } else { self.tree.at_or_before(key) };
        self.at = self.place(found);
    }

    fn seek_to_first(&mut self) {
        self.at = self.place(self.tree.at_or_after(&self.lower));
    }

    fn seek_to_last(&mut self) {
        let open = self.upper.is_empty();
        self.at = self.place(if open { self.tree.last() } else { self.tree.before(&self.upper) });
    }

    fn next(&mut self) {
        if let Some((key, _)) = self.at.take() {
            self.at = self.place(self.tree.after(&key));
        }
    }

    fn prev(&mut self) {
        if let Some((key, _)) = self.at.take() {
            self.at = self.place(self.tree.before(&key));
        }
    }

    fn valid(&self) -> bool {
        self.at.is_some()
    }

    fn key(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |(key, _)| key)
    }

    fn value(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |(_, value)| value)
    }

    fn status(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(engine: &MemEngine, key: &'static str, sync: bool) {
        let mut batch = WriteBatch::new();
        batch.put(Cf::Raw, key, key);
        engine.write(&batch, WriteOptions { sync, no_slowdown: false }).unwrap();
    }

    fn has(engine: &MemEngine, key: &str) -> bool {
        engine.get(Cf::Raw, key.as_bytes()).unwrap().is_some()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let engine = MemEngine::new();
        put(&engine, "a", false);
        put(&engine, "b", true);
        put(&engine, "c", false);
        put(&engine, "d", false);
        let snapshot = engine.snapshot();
        assert_eq!(engine.unsynced(), 2);
        engine.crash(1);
        assert_eq!(["a", "b", "c", "d"].map(|k| has(&engine, k)), [true, true, true, false]);
        assert!(snapshot.get(Cf::Raw, b"d", ReadTier::All).unwrap().is_some());
        put(&engine, "e", false);
        engine.crash(0);
        assert_eq!(["c", "e"].map(|k| has(&engine, k)), [true, false]);
    }

    #[test]
    fn sorted_files_survive_a_crash_and_are_gone_once_ingested() {
        let (engine, other) = (MemEngine::new(), MemEngine::new());
        put(&engine, "a", false);
        let path = Path::new("gen.sst");
        let mut iter = engine.snapshot().iter(Cf::Raw, IterOptions::default()).unwrap();
        iter.seek_to_first();
        let file = engine.write_sorted_file(&mut *iter, path).unwrap();
        assert_eq!(file, Some(SortedFile { bytes: 2, keys: 1 }));
        engine.crash(0);
        assert!(!has(&engine, "a"));
        other.put_sorted_file(path, engine.sorted_file(path).unwrap());
        for engine in [engine, other] {
            engine.ingest(Cf::Raw, path).unwrap();
            assert!(engine.ingest(Cf::Raw, path).is_err());
            engine.crash(0);
            assert!(has(&engine, "a"));
        }
    }

    #[test]
    fn writes_that_nobody_syncs_become_durable_in_the_end() {
        let engine = MemEngine::new();
        put(&engine, "oldest", false);
        for _ in 0..UNSYNCED_MAX {
            put(&engine, "later", false);
        }
        engine.crash(0);
        assert_eq!((has(&engine, "oldest"), has(&engine, "later")), (true, false));
    }
}
