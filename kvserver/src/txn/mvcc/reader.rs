//! Reads of lock records and versions in one snapshot of one region: what all commands and reads stand on.
//!
//! One cursor over `write` serves all keys of a command. Synchronous; without I/O when asked for
//! [`ReadTier::Cache`]: then [`EngineError::NotCached`] says to ask again with [`ReadTier::All`].

use std::sync::Arc;

use bytes::Bytes;

use super::key::{self, Key};
use super::lock::Lock;
use super::value::{self, Record};
use super::write::{Write, WriteKind};
use crate::engine::{Cf, EngineError, Iter, IterOptions, ReadTier, Snapshot};

/// A committed version of a key, or the trace of a transaction that changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub commit_ts: u64,
    pub write: Write,
}

/// What became of a transaction on one key, as far as `write` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitRecord {
    /// Nothing: it never ended here.
    None,
    Committed {
        commit_ts: u64,
        kind: WriteKind,
    },
    RolledBack,
}

/// Reads at one instant.
pub struct Reader<'a> {
    snapshot: &'a Arc<dyn Snapshot>,
    tier: ReadTier,
    writes: Option<Box<dyn Iter>>,
}

impl<'a> Reader<'a> {
    /// A reader of `snapshot`.
    pub fn new(snapshot: &'a Arc<dyn Snapshot>, tier: ReadTier) -> Reader<'a> {
        Reader { snapshot, tier, writes: None }
    }

    pub fn snapshot(&self) -> &'a Arc<dyn Snapshot> {
        self.snapshot
    }

    pub fn tier(&self) -> ReadTier {
        self.tier
    }

    /// The lock on a key.
    pub fn lock(&self, key: &Key) -> Result<Option<Lock>, EngineError> {
        self.snapshot.get(Cf::Lock, key.encoded(), self.tier)?.map(Lock::decode).transpose()
    }

    /// The newest record of a key at or before `ts`, of any kind.
    pub fn seek_write(&mut self, key: &mut Key, ts: u64) -> Result<Option<Version>, EngineError> {
        let writes = self.writes()?;
        writes.seek(key.at(ts));
        here(&**writes, key)
    }

    /// The next older record of the key that [`Reader::seek_write`] found.
    pub fn next_write(&mut self, key: &Key) -> Result<Option<Version>, EngineError> {
        let writes = self.writes()?;
        if !writes.valid() {
            return Ok(None);
        }
        writes.next();
        here(&**writes, key)
    }

    /// The newest version with data at or before `ts`: a put or a delete.
    pub fn version(&mut self, key: &mut Key, ts: u64) -> Result<Option<Version>, EngineError> {
        let mut found = self.seek_write(key, ts)?;
        while let Some(version) = found {
            found = match version.write.kind {
                WriteKind::Put | WriteKind::Delete => return Ok(Some(version)),
                WriteKind::Lock if version.write.last_change_ts > 0 => {
                    self.seek_write(key, version.write.last_change_ts)?
                }
                WriteKind::Lock | WriteKind::Rollback => self.next_write(key)?,
            };
        }
        Ok(None)
    }

    /// The value of a put.
    pub fn value(&self, key: &mut Key, write: &Write) -> Result<Bytes, EngineError> {
        match &write.short_value {
            Some(value) => Ok(value.clone()),
            None => self.long_value(key, write.start_ts),
        }
    }

    /// The value that the transaction of `start_ts` left in `default`.
    pub fn long_value(&self, key: &mut Key, start_ts: u64) -> Result<Bytes, EngineError> {
        let stored = self.snapshot.get(Cf::Default, key.at(start_ts), self.tier)?;
        match stored.map(value::decode).transpose()? {
            Some(Record::Value(value)) => Ok(value),
            found => {
                Err(EngineError::Corrupt(format!("a version of {start_ts} has no value, but {found:?}")))
            }
        }
    }

    /// How the transaction of `start_ts` ended on this key.
    pub fn commit_record(&mut self, key: &mut Key, start_ts: u64) -> Result<CommitRecord, EngineError> {
        let mut found = self.seek_write(key, u64::MAX)?;
        while let Some(Version { commit_ts, write }) = found {
            if commit_ts < start_ts {
                break;
            }
            if write.start_ts == start_ts {
                return Ok(match write.kind {
                    WriteKind::Rollback => CommitRecord::RolledBack,
                    kind => CommitRecord::Committed { commit_ts, kind },
                });
            }
            if commit_ts == start_ts && self.has_rollback_note(key, start_ts)? {
                return Ok(CommitRecord::RolledBack);
            }
            found = self.next_write(key)?;
        }
        Ok(CommitRecord::None)
    }

    /// True when the transaction of `start_ts` was rolled back on this key, and the place of the record is taken by
    /// another transaction that committed at this very timestamp.
    fn has_rollback_note(&self, key: &mut Key, start_ts: u64) -> Result<bool, EngineError> {
        let stored = self.snapshot.get(Cf::Default, key.at(start_ts), self.tier)?;
        Ok(matches!(stored.map(value::decode).transpose()?, Some(Record::RolledBack)))
    }

    fn writes(&mut self) -> Result<&mut Box<dyn Iter>, EngineError> {
        let iter = match self.writes.take() {
            Some(iter) => iter,
            None => self
                .snapshot
                .iter(Cf::Write, IterOptions { tier: self.tier, one_key: true, ..Default::default() })?,
        };
        Ok(self.writes.insert(iter))
    }
}

/// The record under the cursor, if it is one of `key`.
fn here(writes: &dyn Iter, key: &Key) -> Result<Option<Version>, EngineError> {
    if !writes.valid() {
        writes.status()?;
        return Ok(None);
    }
    match key::split(writes.key()) {
        Some((encoded, commit_ts)) if encoded == key.encoded() => {
            let write = Write::decode(Bytes::copy_from_slice(writes.value()))?;
            Ok(Some(Version { commit_ts, write }))
        }
        _ => Ok(None),
    }
}
