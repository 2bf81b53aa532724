//! Cleanup: rolls one key of a transaction back, unless the transaction may still be alive.

use bytes::Bytes;

use super::rollback::roll_back_key;
use super::{Changes, Command, Cx, Done, newest};
use crate::txn::error::{TxnError, TxnResult};
use crate::txn::mvcc::Key;

/// See the file's head.
#[derive(Clone, Debug)]
pub struct Cleanup {
    /// Wire key, the primary of the transaction.
    pub key: Bytes,
    pub start_ts: u64,
    /// What the oracle says now; a lock that has not expired by then is left alone. 0 leaves none alone.
    pub current_ts: u64,
}

impl Command for Cleanup {
    type Answer = ();

    fn keys(&self) -> Vec<Bytes> {
        vec![self.key.clone()]
    }

    fn newest_ts(&self) -> u64 {
        newest([self.start_ts, self.current_ts])
    }

    /// [`TxnError::Locked`] when the transaction may be alive, [`TxnError::Committed`] when it has committed.
    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<()>> {
        super::check_start_ts(self.start_ts)?;
        let mut key = Key::new(self.key.clone());
        let alive = |start_ts: u64| start_ts == self.start_ts && self.current_ts > 0;
        if let Some(lock) = cx.reader.lock(&key)?
            && alive(lock.start_ts)
            && !lock.is_expired(self.current_ts)
        {
            return Err(TxnError::locked(self.key.clone(), lock));
        }
        let mut changes = Changes::with_capacity(2 * self.key.len() + 64);
        roll_back_key(cx, &mut key, self.start_ts, &mut changes)?;
        Ok(Done::with(changes, ()))
    }
}
