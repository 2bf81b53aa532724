//! Pessimistic rollback: gives claims back. Leaves no record, for nothing was written under them.
//!
//! Without keys all claims of the transaction in the region are meant: the runner looks for them
//! ([`PessimisticRollback::wants`] says which) and runs one command for each page of keys.

use bytes::Bytes;

use super::{Changes, Command, Cx, Done, newest};
use crate::txn::error::TxnResult;
use crate::txn::mvcc::{Key, LockKind};

/// See the file's head.
#[derive(Clone, Debug)]
pub struct PessimisticRollback {
    pub start_ts: u64,
    /// Claims for a later for-update timestamp stay: they were taken after this was sent.
    pub for_update_ts: u64,
    /// Wire keys.
    pub keys: Vec<Bytes>,
}

impl PessimisticRollback {
    /// Whether a lock of this kind and start timestamp may be meant.
    pub fn wants(&self, kind: LockKind, start_ts: u64) -> bool {
        kind == LockKind::Pessimistic && start_ts == self.start_ts
    }
}

impl Command for PessimisticRollback {
    type Answer = ();

    fn keys(&self) -> Vec<Bytes> {
        self.keys.clone()
    }

    fn newest_ts(&self) -> u64 {
        newest([self.start_ts, self.for_update_ts])
    }

    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<()>> {
        let mut changes = Changes::with_capacity(self.keys.iter().map(|key| 2 * key.len()).sum());
        for key in &self.keys {
            let key = Key::new(key.clone());
            if let Some(lock) = cx.reader.lock(&key)?
                && self.wants(lock.kind, lock.start_ts)
                && lock.for_update_ts <= self.for_update_ts
            {
                changes.remove_lock(&key, &lock, 0);
            }
        }
        Ok(Done::with(changes, ()))
    }
}
