//! Batch rollback: ends a transaction on some keys without a trace but its rollback records.
//!
//! The record stays even where there was no lock: a prewrite that arrives late finds it and fails.

use bytes::Bytes;

use super::{Changes, Command, Cx, Done};
use crate::txn::error::{TxnError, TxnResult};
use crate::txn::mvcc::{CommitRecord, Key};

/// See the file's head.
#[derive(Clone, Debug)]
pub struct Rollback {
    pub start_ts: u64,
    /// Wire keys.
    pub keys: Vec<Bytes>,
}

impl Command for Rollback {
    type Answer = ();

    fn keys(&self) -> Vec<Bytes> {
        self.keys.clone()
    }

    fn newest_ts(&self) -> u64 {
        self.start_ts
    }

    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<()>> {
        super::check_start_ts(self.start_ts)?;
        let bytes = self.keys.iter().map(|key| 2 * key.len() + 64).sum();
        let mut changes = Changes::with_capacity(bytes);
        for key in &self.keys {
            roll_back_key(cx, &mut Key::new(key.clone()), self.start_ts, &mut changes)?;
        }
        Ok(Done::with(changes, ()))
    }
}

/// Makes sure that the transaction of `start_ts` never commits on `key`, where it may hold a lock, have ended, or never
/// have been. [`TxnError::Committed`] when it is too late.
pub fn roll_back_key(cx: &mut Cx<'_>, key: &mut Key, start_ts: u64, changes: &mut Changes) -> TxnResult<()> {
    let lock = cx.reader.lock(key)?.filter(|lock| lock.start_ts == start_ts);
    if lock.is_none() {
        match cx.reader.commit_record(key, start_ts)? {
            CommitRecord::Committed { commit_ts, .. } => {
                return Err(TxnError::Committed { start_ts, commit_ts });
            }
            CommitRecord::RolledBack => return Ok(()),
            CommitRecord::None => {}
        }
    }
    Ok(changes.roll_back(&mut cx.reader, key, start_ts, lock.as_ref())?)
}
