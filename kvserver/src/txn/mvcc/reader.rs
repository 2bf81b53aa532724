//! Reads of lock records and versions in one snapshot of one region: what all commands and reads stand on.
//!
//! One cursor over `write` serves all keys of a command. Synchronous; without I/O when asked for
//! [`ReadTier::Cache`]: then [`EngineError::NotCached`] says to ask again with [`ReadTier::All`].

use std::sync::Arc;

use bytes::Bytes;

use super::key::{self, Key};
use super::lock::Lock;
use super::value::{self, Record};
use super::write::{Write, WriteKind, WriteRef};
use crate::engine::{Cf, EngineError, Iter, IterOptions, ReadTier, Snapshot};

/// A committed version of a key, or the trace of a transaction that changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub commit_ts: u64,
    pub write: Write,
}

impl Version {
    /// Where the newest data at or below this record is: the commit timestamp of a put or a delete; 0 when it is not
    /// known.
    pub fn data_ts(&self) -> u64 {
        match self.write.kind {
            WriteKind::Put | WriteKind::Delete => self.commit_ts,
            WriteKind::Lock => self.write.last_change_ts,
            WriteKind::Rollback => 0,
        }
    }
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

    /// The timestamp of the newest record of a key, 0 without any, and the newest one that is no rollback: those change
    /// nothing.
    pub fn seek_committed(&mut self, key: &mut Key) -> Result<(u64, Option<Version>), EngineError> {
        let writes = self.writes()?;
        writes.seek(key.at(u64::MAX));
        let mut newest_ts = 0;
        while let Some(ts) = commit_ts_here(&**writes, key)? {
            newest_ts = newest_ts.max(ts);
            if WriteRef::parse(writes.value())?.kind != WriteKind::Rollback {
                return Ok((newest_ts, here(&**writes, key)?));
            }
            writes.next();
        }
        Ok((newest_ts, None))
    }

    /// The newest version with data at or before `ts`: a put or a delete. Copies no record but that one.
    pub fn version(&mut self, key: &mut Key, ts: u64) -> Result<Option<Version>, EngineError> {
        let writes = self.writes()?;
        writes.seek(key.at(ts));
        while let Some(commit_ts) = commit_ts_here(&**writes, key)? {
            let write = WriteRef::parse(writes.value())?;
            match write.kind {
                WriteKind::Put | WriteKind::Delete => {
                    let write = Write::decode(Bytes::copy_from_slice(writes.value()))?;
                    return Ok(Some(Version { commit_ts, write }));
                }
                WriteKind::Lock if write.last_change_ts > 0 => {
                    let data_ts = write.last_change_ts;
                    writes.seek(key.at(data_ts));
                }
                WriteKind::Lock | WriteKind::Rollback => writes.next(),
            }
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

    /// How the transaction of `start_ts` ended on this key. Walks over everything newer, without copying it.
    pub fn commit_record(&mut self, key: &mut Key, start_ts: u64) -> Result<CommitRecord, EngineError> {
        let writes = self.writes()?;
        writes.seek(key.at(u64::MAX));
        while let Some(commit_ts) = commit_ts_here(&**writes, key)? {
            if commit_ts < start_ts {
                break;
            }
            let write = WriteRef::parse(writes.value())?;
            if write.start_ts == start_ts {
                return Ok(match write.kind {
                    WriteKind::Rollback => CommitRecord::RolledBack,
                    kind => CommitRecord::Committed { commit_ts, kind },
                });
            }
            if commit_ts == start_ts {
                return self.rollback_note(key, start_ts);
            }
            writes.next();
        }
        Ok(CommitRecord::None)
    }

    /// True when the transaction of `start_ts` was rolled back on this key. Looks at that timestamp alone.
    pub fn is_rolled_back(&mut self, key: &mut Key, start_ts: u64) -> Result<bool, EngineError> {
        match self.seek_write(key, start_ts)? {
            Some(Version { commit_ts, write }) if commit_ts == start_ts => {
                let own = write.kind == WriteKind::Rollback && write.start_ts == start_ts;
                Ok(own || self.rollback_note(key, start_ts)? == CommitRecord::RolledBack)
            }
            _ => Ok(false),
        }
    }

    /// Whether there is a note in `default` that the transaction of `start_ts` was rolled back: the place of its record
    /// is taken by another transaction that committed at this very timestamp.
    fn rollback_note(&self, key: &mut Key, start_ts: u64) -> Result<CommitRecord, EngineError> {
        let stored = self.snapshot.get(Cf::Default, key.at(start_ts), self.tier)?;
        Ok(match stored.map(value::decode).transpose()? {
            Some(Record::RolledBack) => CommitRecord::RolledBack,
            _ => CommitRecord::None,
        })
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
    let Some(commit_ts) = commit_ts_here(writes, key)? else { return Ok(None) };
    let write = Write::decode(Bytes::copy_from_slice(writes.value()))?;
    Ok(Some(Version { commit_ts, write }))
}

/// The timestamp of the record under the cursor, if it is one of `key`.
fn commit_ts_here(writes: &dyn Iter, key: &Key) -> Result<Option<u64>, EngineError> {
    if !writes.valid() {
        writes.status()?;
        return Ok(None);
    }
    match key::split(writes.key()) {
        Some((encoded, commit_ts)) if encoded == key.encoded() => Ok(Some(commit_ts)),
        _ => Ok(None),
    }
}
