//! Heart beat: a transaction says on its primary key that it is still alive.

use bytes::Bytes;

use super::{Changes, Command, Cx, Done, newest};
use crate::txn::error::{TxnError, TxnResult};
use crate::txn::mvcc::Key;

/// See the file's head.
#[derive(Clone, Debug)]
pub struct TxnHeartBeat {
    /// Wire key.
    pub primary: Bytes,
    pub start_ts: u64,
    /// The time to live that the lock shall have at least, milliseconds.
    pub advise_ttl: u64,
    /// The transaction promises to commit at this timestamp or later; 0 promises nothing.
    pub min_commit_ts: u64,
}

impl Command for TxnHeartBeat {
    /// The lock's time to live, milliseconds.
    type Answer = u64;

    fn keys(&self) -> Vec<Bytes> {
        vec![self.primary.clone()]
    }

    fn newest_ts(&self) -> u64 {
        newest([self.start_ts, self.min_commit_ts])
    }

    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<u64>> {
        if self.min_commit_ts == u64::MAX {
            return Err(TxnError::Invalid("no transaction commits at the end of time".into()));
        }
        let key = Key::new(self.primary.clone());
        let Some(mut lock) = cx.reader.lock(&key)?.filter(|lock| lock.start_ts == self.start_ts) else {
            let (start_ts, primary) = (self.start_ts, self.primary.clone());
            return Err(TxnError::TxnNotFound { start_ts, primary });
        };
        let before = (lock.ttl, lock.min_commit_ts);
        lock.ttl = lock.ttl.max(self.advise_ttl);
        // The timestamp of an async commit is chosen already.
        if !lock.is_async_commit() {
            lock.min_commit_ts = lock.min_commit_ts.max(self.min_commit_ts);
        }
        if before == (lock.ttl, lock.min_commit_ts) {
            return Ok(Done::answer(lock.ttl));
        }
        let mut changes = Changes::with_capacity(self.primary.len() + lock.primary.len() + 128);
        changes.renew_lock(&key, &lock);
        Ok(Done::with(changes, lock.ttl))
    }
}
