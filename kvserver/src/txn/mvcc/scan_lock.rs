//! Walks over the locks of a region: for clients that clean up, and for commands that look for their keys.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::key;
use super::scan::encoded_bounds;
use super::{Lock, LockKind};
use crate::engine::{Cf, EngineError, IterOptions, ReadTier};
use crate::storage::RegionSnapshot;
use crate::txn::error::{LockInfo, TxnError, TxnResult};
use crate::txn::pairs::REPLY_BYTES_MAX;
use crate::txn::range::clamp;

/// The locks in the part of `[start, end)` that lies in the region whose transactions began at or before `max_ts`, in
/// key order, up to `limit`. An empty `end` is open.
pub fn scan_lock(
    at: &RegionSnapshot,
    tier: ReadTier,
    (start, end): (&Bytes, &Bytes),
    max_ts: u64,
    limit: usize,
) -> TxnResult<Vec<LockInfo>> {
    let mut locks = Vec::new();
    let mut bytes = 0;
    if limit == 0 {
        return Ok(locks);
    }
    walk(at, tier, (start, end), |encoded, stored, (_, start_ts)| {
        if start_ts <= max_ts {
            bytes += encoded.len() + stored.len();
            if bytes > REPLY_BYTES_MAX && !locks.is_empty() {
                return Err(TxnError::ReplyTooLarge { max: REPLY_BYTES_MAX });
            }
            let lock = Lock::decode(Bytes::copy_from_slice(stored))?;
            locks.push(LockInfo { key: user_key(encoded)?, lock });
        }
        Ok(if locks.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(locks)
}

/// Keys of locks, and where to look for more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockKeys {
    /// Wire keys, ascending.
    pub keys: Vec<Bytes>,
    /// Where the next page begins; `None` when there is none.
    pub next: Option<Bytes>,
}

/// Up to `limit` keys of the region at or after `from` whose locks are wanted, by kind and start timestamp.
pub fn lock_keys(
    at: &RegionSnapshot,
    tier: ReadTier,
    from: &Bytes,
    limit: usize,
    wants: impl Fn(LockKind, u64) -> bool,
) -> TxnResult<LockKeys> {
    let mut page = LockKeys::default();
    walk(at, tier, (from, &Bytes::new()), |encoded, _, (kind, start_ts)| {
        if !wants(kind, start_ts) {
            return Ok(ControlFlow::Continue(()));
        }
        if page.keys.len() == limit {
            page.next = Some(user_key(encoded)?);
            return Ok(ControlFlow::Break(()));
        }
        page.keys.push(user_key(encoded)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(page)
}

/// Shows each lock of a range to `visit`: encoded key, stored lock, kind and start timestamp.
fn walk(
    at: &RegionSnapshot,
    tier: ReadTier,
    (start, end): (&Bytes, &Bytes),
    mut visit: impl FnMut(&[u8], &[u8], (LockKind, u64)) -> TxnResult<ControlFlow<()>>,
) -> TxnResult<()> {
    let Some((lower, upper)) = clamp(&at.region, start, end) else { return Ok(()) };
    let (lower, upper) = encoded_bounds(&lower, &upper);
    let mut iter = at.snapshot.iter(Cf::Lock, IterOptions { lower, upper, tier, ..Default::default() })?;
    iter.seek_to_first();
    while iter.valid() {
        let stored = iter.value();
        let head = match Lock::peek(stored) {
            Some(head) => head,
            None => {
                // Says what is wrong with it.
                let lock = Lock::decode(Bytes::copy_from_slice(stored))?;
                (lock.kind, lock.start_ts)
            }
        };
        if visit(iter.key(), stored, head)?.is_break() {
            return Ok(());
        }
        iter.next();
    }
    Ok(iter.status()?)
}

fn user_key(encoded: &[u8]) -> Result<Bytes, EngineError> {
    key::user_key(encoded).map_err(|cause| EngineError::Corrupt(format!("the key of a lock: {cause}")))
}
