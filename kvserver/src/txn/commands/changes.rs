//! What commands write, in the words of transactions: locks set and removed, versions committed, rollbacks noted.
//!
//! Invariants: a lock is removed in the same write that commits or rolls back its key; the value of a transaction that
//! was rolled back goes with its lock; the record of a rollback never takes the place of a committed version, nor the
//! other way round (see `mvcc/value.rs`).

use bytes::Bytes;

use super::Released;
use crate::engine::{Cf, EngineError};
use crate::raftstore::message::WriteSet;
use crate::txn::mvcc::{Key, Lock, LockKind, Reader, Write, WriteKind, value};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Changes {
    pub write: WriteSet,
    pub released: Vec<Released>,
}

impl Changes {
    /// With room for `bytes` of keys and values.
    pub fn with_capacity(bytes: usize) -> Changes {
        Changes { write: WriteSet::with_capacity(bytes), released: Vec::new() }
    }

    /// Sets or replaces a lock.
    pub fn put_lock(&mut self, key: &Key, lock: &Lock) {
        self.write.put(Cf::Lock, key.encoded(), &[&lock.encode()]);
    }

    /// Replaces a lock by one that is hardly larger, also on a store that is short of room.
    pub fn renew_lock(&mut self, key: &Key, lock: &Lock) {
        self.write.put_small(Cf::Lock, key.encoded(), &[&lock.encode()]);
    }

    /// Removes a lock. `commit_ts` is 0 when its transaction does not commit here.
    pub fn remove_lock(&mut self, key: &Key, lock: &Lock, commit_ts: u64) {
        self.write.delete(Cf::Lock, key.encoded());
        self.released.push(Released { key: key.user().clone(), start_ts: lock.start_ts, commit_ts });
    }

    /// Keeps a value for the lock or version of `start_ts`: up to `short` bytes are handed back to stand there, more go to
    /// `default`.
    pub fn keep_value(&mut self, key: &mut Key, start_ts: u64, value: Bytes, short: usize) -> Option<Bytes> {
        if value.len() <= short {
            return Some(value);
        }
        self.write.put(Cf::Default, key.at(start_ts), &[&[value::VALUE], &value]);
        None
    }

    /// Sets a record under a timestamp.
    pub fn put_write(&mut self, key: &mut Key, ts: u64, write: &Write) {
        self.write.put(Cf::Write, key.at(ts), &[&write.encode()]);
    }

    /// Turns a lock into a version. A pessimistic lock is only removed: nothing was written under it.
    pub fn commit(
        &mut self,
        reader: &mut Reader<'_>,
        key: &mut Key,
        lock: Lock,
        commit_ts: u64,
    ) -> Result<(), EngineError> {
        let Some(kind) = lock.kind.committed() else {
            self.remove_lock(key, &lock, 0);
            return Ok(());
        };
        if lock.is_async_commit() {
            self.keep_rollback(reader, key, commit_ts)?;
        }
        self.remove_lock(key, &lock, commit_ts);
        let last_change_ts = if kind == WriteKind::Lock { lock.last_change_ts } else { 0 };
        let write = Write { kind, start_ts: lock.start_ts, last_change_ts, short_value: lock.short_value };
        // A store that is short of room must still end what it has begun.
        self.write.put_small(Cf::Write, key.at(commit_ts), &[&write.encode()]);
        Ok(())
    }

    /// A timestamp that the oracle did not hand out for this commit may be the start timestamp of another transaction,
    /// which may have been rolled back here: its record would be overwritten, so it becomes a note.
    pub fn keep_rollback(
        &mut self,
        reader: &mut Reader<'_>,
        key: &mut Key,
        commit_ts: u64,
    ) -> Result<(), EngineError> {
        if let Some(version) = reader.seek_write(key, commit_ts)?
            && version.commit_ts == commit_ts
            && version.write.kind == WriteKind::Rollback
        {
            self.note_rollback(key, commit_ts);
        }
        Ok(())
    }

    fn note_rollback(&mut self, key: &mut Key, start_ts: u64) {
        self.write.put_small(Cf::Default, key.at(start_ts), &[&[value::ROLLED_BACK]]);
    }

    /// Makes sure that the transaction of `start_ts` never commits on this key. `lock` is its own lock, if it has one.
    /// The caller knows that it has not ended here yet.
    pub fn roll_back(
        &mut self,
        reader: &mut Reader<'_>,
        key: &mut Key,
        start_ts: u64,
        lock: Option<&Lock>,
    ) -> Result<(), EngineError> {
        if let Some(lock) = lock {
            debug_assert_eq!(lock.start_ts, start_ts);
            self.remove_lock(key, lock, 0);
            if lock.kind == LockKind::Put && lock.short_value.is_none() {
                self.write.delete(Cf::Default, key.at(start_ts));
            }
        }
        let taken = reader.seek_write(key, start_ts)?.is_some_and(|version| version.commit_ts == start_ts);
        if taken {
            self.note_rollback(key, start_ts);
        } else {
            self.write.put_small(Cf::Write, key.at(start_ts), &[&Write::rollback(start_ts).encode()]);
        }
        Ok(())
    }
}
