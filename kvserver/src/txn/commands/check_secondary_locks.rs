//! Check secondary locks: whether a transaction with async commit holds its locks on these keys, or has lost them.
//!
//! It is committed once all its keys are locked. Who finds its primary lock expired asks for the others; a key that is
//! not locked yet is rolled back here, so that the answer stays true.

use bytes::Bytes;

use super::{Changes, Command, Cx, Done};
use crate::txn::error::{LockInfo, TxnResult};
use crate::txn::mvcc::{CommitRecord, Key};

/// See the file's head.
#[derive(Clone, Debug)]
pub struct CheckSecondaryLocks {
    pub start_ts: u64,
    /// Wire keys.
    pub keys: Vec<Bytes>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecondaryLocks {
    /// Over 0 when the transaction has committed on one of the keys.
    pub commit_ts: u64,
    /// The locks, in the order of the keys. Fewer than keys, and no commit timestamp, when it is rolled back.
    pub locks: Vec<LockInfo>,
}

impl Command for CheckSecondaryLocks {
    type Answer = SecondaryLocks;

    fn keys(&self) -> Vec<Bytes> {
        self.keys.clone()
    }

    fn newest_ts(&self) -> u64 {
        self.start_ts
    }

    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<SecondaryLocks>> {
        let start_ts = self.start_ts;
        super::check_start_ts(start_ts)?;
        let mut changes = Changes::with_capacity(self.keys.iter().map(|key| 2 * key.len() + 64).sum());
        let mut locks = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            let mut key = Key::new(key.clone());
            let lock = cx.reader.lock(&key)?.filter(|lock| lock.start_ts == start_ts);
            match lock {
                // A claim: the key was not prewritten.
                Some(lock) if lock.is_pessimistic() => {
                    changes.roll_back(&mut cx.reader, &mut key, start_ts, Some(&lock))?;
                }
                Some(lock) => locks.push(LockInfo { key: key.user().clone(), lock }),
                None => match cx.reader.commit_record(&mut key, start_ts)? {
                    // Then all were locked: nothing is rolled back.
                    CommitRecord::Committed { commit_ts, .. } => {
                        return Ok(Done::answer(SecondaryLocks { commit_ts, locks: Vec::new() }));
                    }
                    CommitRecord::RolledBack => {}
                    CommitRecord::None => changes.roll_back(&mut cx.reader, &mut key, start_ts, None)?,
                },
            }
        }
        Ok(Done::with(changes, SecondaryLocks { commit_ts: 0, locks }))
    }
}
