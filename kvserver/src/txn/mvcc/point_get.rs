//! Reads of single keys: look for a lock, then for the newest version at or before the read's timestamp.
//!
//! A get opens one cursor and copies nothing but the record that holds the value. Many keys share the cursor.

use bytes::Bytes;

use super::rules::{ReadRules, Sight};
use super::{Key, Lock, LockKind, Reader, WriteKind};
use crate::engine::EngineError;
use crate::txn::error::{LockInfo, TxnError, TxnResult};
use crate::txn::pairs::REPLY_BYTES_MAX;

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub value: Bytes,
    /// When the version committed; 0 when it was read from a lock that the client knows to be committed.
    pub commit_ts: u64,
}

/// A key of a batch that exists or is locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchEntry {
    pub key: Bytes,
    pub found: Result<Found, Box<LockInfo>>,
}

/// The value of a key, `None` when it has none. [`TxnError::Locked`] when a lock is in the way.
pub fn point_get(reader: &mut Reader<'_>, key: Bytes, rules: &ReadRules) -> TxnResult<Option<Found>> {
    match get(reader, key, rules)? {
        Ok(found) => Ok(found),
        Err(info) => Err(TxnError::Locked(vec![*info])),
    }
}

/// Those of `keys` that exist or are locked, in their order.
pub fn batch_get(reader: &mut Reader<'_>, keys: &[Bytes], rules: &ReadRules) -> TxnResult<Vec<BatchEntry>> {
    let mut entries = Vec::with_capacity(keys.len());
    let mut bytes = 0;
    for key in keys {
        let found = match get(reader, key.clone(), rules)? {
            Ok(None) => continue,
            Ok(Some(found)) => Ok(found),
            Err(info) => Err(info),
        };
        bytes += key.len() + found.as_ref().map_or(0, |found| found.value.len());
        if bytes > REPLY_BYTES_MAX && !entries.is_empty() {
            return Err(TxnError::ReplyTooLarge { max: REPLY_BYTES_MAX });
        }
        entries.push(BatchEntry { key: key.clone(), found });
    }
    Ok(entries)
}

type Answer = Result<Option<Found>, Box<LockInfo>>;

fn get(reader: &mut Reader<'_>, key: Bytes, rules: &ReadRules) -> Result<Answer, EngineError> {
    let mut key = Key::new(key);
    if rules.isolation == super::Isolation::Snapshot
        && let Some(lock) = reader.lock(&key)?
    {
        match rules.sight(key.user(), &lock) {
            Sight::Free => {}
            Sight::Blocked => return Ok(Err(Box::new(LockInfo { key: key.user().clone(), lock }))),
            Sight::Through => return Ok(Ok(value_of(reader, &mut key, lock)?)),
        }
    }
    let Some(version) = reader.version(&mut key, rules.ts)? else { return Ok(Ok(None)) };
    if version.write.kind != WriteKind::Put {
        return Ok(Ok(None));
    }
    let value = reader.value(&mut key, &version.write)?;
    Ok(Ok(Some(Found { value, commit_ts: version.commit_ts })))
}

/// What a lock will leave behind.
fn value_of(reader: &Reader<'_>, key: &mut Key, lock: Lock) -> Result<Option<Found>, EngineError> {
    if lock.kind != LockKind::Put {
        return Ok(None);
    }
    let value = match lock.short_value {
        Some(value) => value,
        None => reader.long_value(key, lock.start_ts)?,
    };
    Ok(Some(Found { value, commit_ts: 0 }))
}
