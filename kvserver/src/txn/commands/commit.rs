//! Commit: turns a transaction's locks into versions. The second phase of two.
//!
//! The primary key is committed first, by its client; that decides. All keys of one command succeed or none does.

use bytes::Bytes;

use super::{Changes, Command, Cx, Done};
use crate::txn::error::{TxnError, TxnResult};
use crate::txn::mvcc::{CommitRecord, Key};

/// See the file's head.
#[derive(Clone, Debug)]
pub struct Commit {
    pub start_ts: u64,
    pub commit_ts: u64,
    /// Wire keys.
    pub keys: Vec<Bytes>,
}

impl Command for Commit {
    /// The timestamp that it is committed at, by whomever.
    type Answer = u64;

    fn keys(&self) -> Vec<Bytes> {
        self.keys.clone()
    }

    fn newest_ts(&self) -> u64 {
        self.commit_ts
    }

    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<u64>> {
        let Commit { start_ts, commit_ts, .. } = *self;
        super::check_start_ts(start_ts)?;
        super::check_commit_ts(start_ts, commit_ts)?;
        let bytes = self.keys.iter().map(|key| 2 * key.len() + 64).sum();
        let mut changes = Changes::with_capacity(bytes);
        let mut committed_at = commit_ts;
        for key in &self.keys {
            let mut key = Key::new(key.clone());
            match cx.reader.lock(&key)?.filter(|lock| lock.start_ts == start_ts) {
                Some(lock) if lock.min_commit_ts > commit_ts && !lock.is_pessimistic() => {
                    return Err(TxnError::CommitTsExpired {
                        start_ts,
                        commit_ts,
                        key: key.user().clone(),
                        min_commit_ts: lock.min_commit_ts,
                    });
                }
                Some(lock) => changes.commit(&mut cx.reader, &mut key, lock, commit_ts)?,
                None => match cx.reader.commit_record(&mut key, start_ts)? {
                    // Somebody else may have finished it, at a timestamp that its locks named.
                    CommitRecord::Committed { commit_ts, .. } => committed_at = commit_ts,
                    CommitRecord::RolledBack | CommitRecord::None => {
                        return Err(TxnError::LockNotFound { start_ts, key: key.user().clone() });
                    }
                },
            }
        }
        Ok(Done::with(changes, committed_at))
    }
}
