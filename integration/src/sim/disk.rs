//! A store's log on its disk: the memory log store, and a note of what has truly reached the disk.
//!
//! The note is what the check of acknowledgements looks at. A disk can be made to lie: it claims durability and
//! keeps nothing that a crash could not take.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvserver::engine::Result;
use kvserver::engine::log_store::{
    Durable, HardState, LogEntry, LogStore, LogWrite, LoggedState, MemLogStore, RegionLogWrite,
};
use parking_lot::Mutex;

/// What of one region's log would survive now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnDisk {
    pub last_index: u64,
    pub hard_state: HardState,
}

/// See the file's head.
#[derive(Default)]
pub struct SimLog {
    inner: MemLogStore,
    lies: bool,
    on_disk: Mutex<BTreeMap<u64, OnDisk>>,
}

impl SimLog {
    /// An empty log; `lies` as in the file's head.
    pub fn new(lies: bool) -> Arc<SimLog> {
        Arc::new(SimLog { lies, ..Default::default() })
    }

    /// What of the region's log would survive now.
    pub fn on_disk(&self, region_id: u64) -> OnDisk {
        self.on_disk.lock().get(&region_id).copied().unwrap_or_default()
    }

    /// Writes that a crash might lose.
    pub fn unsynced(&self) -> usize {
        self.inner.unsynced()
    }

    /// Writes without waiting for the disk: a crash came before the write was acknowledged.
    pub fn write_unsynced(&self, write: &LogWrite) -> Result<()> {
        self.inner.append(write, false).map(drop)
    }

    /// Loses power but for what is durable and the first `keep_unsynced` writes after that.
    pub fn crash(&self, keep_unsynced: usize) -> Result<()> {
        self.inner.crash(keep_unsynced);
        let mut on_disk = self.on_disk.lock();
        on_disk.clear();
        for region_id in self.inner.regions()? {
            if let Some(logged) = self.inner.load(region_id)? {
                let known = OnDisk { last_index: logged.last_index, hard_state: logged.hard_state };
                on_disk.insert(region_id, known);
            }
        }
        Ok(())
    }

    fn note(&self, write: &RegionLogWrite) {
        let mut on_disk = self.on_disk.lock();
        let known = on_disk.entry(write.region_id).or_default();
        if write.reset {
            known.last_index = 0;
        }
        if let Some(last) = write.entries.last() {
            let shortened = write.old_last_index > last.index;
            known.last_index = if shortened { last.index } else { known.last_index.max(last.index) };
        }
        if let Some(hard_state) = write.hard_state {
            known.hard_state = hard_state;
        }
    }
}

impl LogStore for SimLog {
    fn regions(&self) -> Result<Vec<u64>> {
        self.inner.regions()
    }

    fn load(&self, region_id: u64) -> Result<Option<LoggedState>> {
        self.inner.load(region_id)
    }

    fn append(&self, write: &LogWrite, sync: bool) -> Result<Durable> {
        let durable = self.inner.append(write, sync && !self.lies)?;
        if sync && !self.lies {
            write.regions.iter().for_each(|region| self.note(region));
        }
        Ok(durable)
    }

    fn entries(&self, region_id: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>> {
        self.inner.entries(region_id, low, high, max_bytes)
    }

    fn term(&self, region_id: u64, index: u64) -> Result<Option<u64>> {
        self.inner.term(region_id, index)
    }

    fn compact(&self, region_id: u64, from: u64, to: u64) -> Result<()> {
        self.inner.compact(region_id, from, to)
    }

    fn remove(&self, region_id: u64) -> Result<()> {
        self.on_disk.lock().remove(&region_id);
        self.inner.remove(region_id)
    }

    fn disk_bytes(&self) -> u64 {
        self.inner.disk_bytes()
    }

    fn close(&self) -> Result<()> {
        self.inner.close()
    }
}
