//! Metadata in memory: an ordered map behind a mutex.
//!
//! Nothing survives the process, so it is right only where the whole cluster is as short-lived as its scheduler:
//! tests, the simulator, and temporary clusters. Stores with durable data must not be used with it, because
//! after a restart the cluster id, the ids and the timestamps would start anew.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Kv, KvError, Op, Pair, Txn};

/// An ordered map behind [`Kv`].
#[derive(Default)]
pub struct MemKv {
    map: Mutex<BTreeMap<Bytes, Bytes>>,
}

impl Kv for MemKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.map.lock().get(key).cloned())
    }

    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let map = self.map.lock();
        let bounds = Bytes::copy_from_slice(start)..Bytes::copy_from_slice(end);
        Ok(map.range(bounds).take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&self, txn: &Txn) -> Result<(), KvError> {
        let mut map = self.map.lock();
        for condition in &txn.conditions {
            if !condition.holds(map.get(condition.key()).map(Bytes::as_ref)) {
                return Err(KvError::Conflict { key: String::from_utf8_lossy(condition.key()).into_owned() });
            }
        }
        for op in &txn.ops {
            match op {
                Op::Put(key, value) => map.insert(key.clone(), value.clone()),
                Op::Delete(key) => map.remove(key),
            };
        }
        Ok(())
    }
}
