//! Resolve locks: ends transactions on some keys as they have ended on their primary keys.
//!
//! For a whole region the runner looks for the locks ([`Fates::wants`] says which) and runs one command for each page
//! of keys, which looks at them again: a lock that has gone meanwhile is none of its business.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Changes, Command, Cx, Done};
use crate::txn::error::{TxnError, TxnResult};
use crate::txn::mvcc::{Key, Lock};

/// Keys that one command resolves, when the keys are looked for.
pub const RESOLVE_KEYS_MAX: usize = 256;

/// How transactions ended, by start timestamp: the commit timestamp, 0 for a rollback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fates(Arc<BTreeMap<u64, u64>>);

impl Fates {
    /// Refuses timestamps that are none.
    pub fn new(fates: impl IntoIterator<Item = (u64, u64)>) -> TxnResult<Fates> {
        let fates: BTreeMap<u64, u64> = fates.into_iter().collect();
        for (&start_ts, &commit_ts) in &fates {
            super::check_start_ts(start_ts)?;
            if commit_ts > 0 {
                super::check_commit_ts(start_ts, commit_ts)?;
            }
        }
        Ok(Fates(Arc::new(fates)))
    }

    /// True when the locks of this transaction are meant.
    pub fn wants(&self, start_ts: u64) -> bool {
        self.0.contains_key(&start_ts)
    }
}

/// See the file's head.
#[derive(Clone, Debug)]
pub struct ResolveLock {
    pub fates: Fates,
    /// Wire keys.
    pub keys: Vec<Bytes>,
}

impl Command for ResolveLock {
    /// How many locks it resolved.
    type Answer = usize;

    fn keys(&self) -> Vec<Bytes> {
        self.keys.clone()
    }

    fn newest_ts(&self) -> u64 {
        self.fates.0.iter().map(|(start_ts, commit_ts)| *start_ts.max(commit_ts)).max().unwrap_or(0)
    }

    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<usize>> {
        let mut changes = Changes::with_capacity(self.keys.iter().map(|key| 2 * key.len() + 64).sum());
        let mut resolved = 0;
        for key in &self.keys {
            let mut key = Key::new(key.clone());
            let Some(lock) = cx.reader.lock(&key)? else { continue };
            let Some(&commit_ts) = self.fates.0.get(&lock.start_ts) else { continue };
            resolved += 1;
            if commit_ts == 0 {
                let start_ts = lock.start_ts;
                changes.roll_back(&mut cx.reader, &mut key, start_ts, Some(&lock))?;
                continue;
            }
            check_promise(&key, &lock, commit_ts)?;
            changes.commit(&mut cx.reader, &mut key, lock, commit_ts)?;
        }
        Ok(Done::with(changes, resolved))
    }
}

/// Readers have passed this lock, for it promised to commit after them.
fn check_promise(key: &Key, lock: &Lock, commit_ts: u64) -> TxnResult<()> {
    if lock.is_pessimistic() || lock.min_commit_ts <= commit_ts {
        return Ok(());
    }
    let Lock { start_ts, min_commit_ts, .. } = *lock;
    Err(TxnError::CommitTsExpired { start_ts, commit_ts, key: key.user().clone(), min_commit_ts })
}
