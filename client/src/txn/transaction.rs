//! A transaction: reads from its snapshot and its own changes, buffered writes, locks, and its end.
//!
//! Owns the buffer and the pessimistic locks. Invariants: after its end nothing is read or written; locks that are
//! held go away with the transaction, however it ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kvproto::ts::Timestamp;
use parking_lot::Mutex;

use super::buffer::Buffer;
use super::client::Shared;
use super::commit;
use super::committer::Plan;
use super::keep_alive::{KeepAlive, Pulse};
use super::locking::{self, Locked, Locking, Target};
use super::options::TxnOptions;
use super::scanner::TxnScan;
use super::snapshot::Snapshot;
use crate::KvPair;
use crate::bounds::{IntoKeyRange, span};
use crate::error::{Error, Result};

/// A running transaction. End it with [`commit`](Self::commit) or [`rollback`](Self::rollback): one that is dropped
/// is rolled back, and the log says so when it held locks.
pub struct Transaction {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    options: TxnOptions,
    buffer: Buffer,
    /// When the start timestamp was handed out, by this process's clock.
    began: Instant,
    ended: bool,
    /// Why the transaction can only be rolled back.
    broken: Option<String>,
    /// The newest version that its pessimistic locks stand on.
    for_update_ts: Timestamp,
    /// The key that was locked first.
    primary: Option<Bytes>,
    /// Keys that may be locked though their call failed, or has not ended yet.
    stray: BTreeSet<Bytes>,
    /// Keys that a pessimistic transaction has read without locking them.
    read: Mutex<BTreeSet<Bytes>>,
    keep_alive: Option<KeepAlive>,
}

impl Transaction {
    pub(super) fn new(
        shared: Arc<Shared>,
        start_ts: Timestamp,
        began: Instant,
        options: TxnOptions,
    ) -> Transaction {
        Transaction {
            snapshot: Snapshot::new(shared.clone(), start_ts),
            shared,
            options,
            buffer: Buffer::default(),
            began,
            ended: false,
            broken: None,
            for_update_ts: start_ts,
            primary: None,
            stray: BTreeSet::new(),
            read: Mutex::default(),
            keep_alive: None,
        }
    }

    /// The timestamp of its snapshot, which names the transaction.
    pub fn start_timestamp(&self) -> Timestamp {
        self.snapshot.timestamp()
    }

    /// Whether it locks the keys that it writes at once.
    pub fn is_pessimistic(&self) -> bool {
        self.options.is_pessimistic
    }

    /// True after [`commit`](Self::commit) or [`rollback`](Self::rollback).
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The value of `key` as the transaction sees it, or `None` when it does not exist.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        self.check_running()?;
        let key = self.shared.wire_key(key.into())?;
        if let Some(own) = self.buffer.get(&key) {
            return Ok(own);
        }
        self.remember_read(&key);
        self.snapshot.get_wire(&key).await.map_err(|error| self.shared.user_error(error))
    }

    /// The pairs of those `keys` that exist, in key order, as the transaction sees them.
    pub async fn batch_get<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<KvPair>> {
        self.check_running()?;
        let mut found = Vec::new();
        let mut stored = Vec::new();
        for key in self.shared.wire_keys(keys)? {
            match self.buffer.get(&key) {
                Some(own) => found.extend(own.map(|value| (key, value))),
                None => stored.push(key),
            }
        }
        stored.iter().for_each(|key| self.remember_read(key));
        if !stored.is_empty() {
            let read = self.snapshot.batch_get_wire(stored).await;
            found.extend(read.map_err(|error| self.shared.user_error(error))?);
        }
        self.user_pairs(found)
    }

    /// The value of `key`, which nobody else will have changed when this transaction commits. A pessimistic transaction
    /// locks the key and reads its newest value; an optimistic one reads its snapshot and fails at commit when the key
    /// was changed.
    pub async fn get_for_update(&mut self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let found = self.batch_get_for_update([key.into()]).await?;
        Ok(found.into_iter().next().map(|pair| pair.value))
    }

    /// Like [`get_for_update`](Self::get_for_update) for several keys: the pairs that exist, in key order.
    pub async fn batch_get_for_update<K: Into<Bytes>>(
        &mut self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<KvPair>> {
        self.check_running()?;
        let keys = self.shared.wire_keys(keys)?;
        let mut found = Vec::new();
        if self.options.is_pessimistic {
            let targets = keys.into_iter().map(|key| Target { key, must_not_exist: false }).collect();
            for (key, stored) in self.lock(targets, true).await?.values {
                let value = self.buffer.get(&key).unwrap_or(stored);
                found.extend(value.map(|value| (key, value)));
            }
        } else {
            let mut stored = Vec::new();
            for key in keys {
                match self.buffer.get(&key) {
                    Some(own) => found.extend(own.map(|value| (key.clone(), value))),
                    None => stored.push(key.clone()),
                }
                self.buffer.lock(key);
            }
            let read = self.snapshot.batch_get_wire(stored).await;
            found.extend(read.map_err(|error| self.shared.user_error(error))?);
        }
        self.user_pairs(found)
    }

    /// Reads the pairs in `range` in key order, across regions, as the transaction sees them now.
    ///
    /// ```no_run
    /// # async fn run(txn: kvclient::Transaction) -> kvclient::Result<()> {
    /// let last_ten = txn.scan(kvclient::prefix("log/")).reverse().limit(10).collect().await?;
    /// # Ok(()) }
    /// ```
    pub fn scan(&self, range: impl IntoKeyRange) -> TxnScan {
        let span = span(range, self.shared.codec);
        let changes = self.buffer.range(&span);
        TxnScan::new(self.snapshot.clone(), span, changes).checked(self.check_running())
    }

    /// Sets `key` to `value`.
    pub async fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<()> {
        let key = self.prepare(key.into(), false).await?;
        self.buffer.put(key, value.into());
        Ok(())
    }

    /// Sets `key` to `value`, if it does not exist: else the error is [`Error::AlreadyExists`], now in a pessimistic
    /// transaction, at commit in an optimistic one.
    pub async fn insert(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<()> {
        let key = self.prepare(key.into(), true).await?;
        self.buffer.insert(key, value.into()).map_err(|error| self.shared.user_error(error))
    }

    /// Removes `key`; no error when it does not exist.
    pub async fn delete(&mut self, key: impl Into<Bytes>) -> Result<()> {
        let key = self.prepare(key.into(), false).await?;
        self.buffer.delete(key);
        Ok(())
    }

    /// Makes the commit depend on `keys`: nobody else will have changed them. A pessimistic transaction locks them now.
    pub async fn lock_keys<K: Into<Bytes>>(&mut self, keys: impl IntoIterator<Item = K>) -> Result<()> {
        self.check_running()?;
        let keys = self.shared.wire_keys(keys)?;
        if !self.options.is_pessimistic {
            keys.into_iter().for_each(|key| self.buffer.lock(key));
            return Ok(());
        }
        let unlocked = keys.into_iter().filter(|key| !self.buffer.is_locked(key));
        let targets = unlocked.map(|key| Target { key, must_not_exist: false }).collect();
        self.lock(targets, false).await.map(drop)
    }

    /// Commits, and returns the commit timestamp; `None` when there was nothing to write. After an error nothing was
    /// written, unless it is [`Error::Undetermined`]. The same holds for a caller that stops waiting for this: it does not
    /// know what came of it.
    pub async fn commit(&mut self) -> Result<Option<Timestamp>> {
        self.check_running()?;
        if let Some(cause) = self.broken.clone() {
            self.end_in_background();
            return Err(Error::TxnAborted { start_ts: self.start_timestamp(), cause });
        }
        if !self.buffer.has_changes() && self.options.is_pessimistic {
            // What was only locked stays as it was.
            self.end_in_background();
            return Ok(None);
        }
        self.ended = true;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let _keep_alive = self.keep_alive.take();
        let stray = std::mem::take(&mut self.stray).into_iter().collect();
        let is_pessimistic = self.primary.is_some();
        let plan = Plan {
            start_ts: self.start_timestamp(),
            for_update_ts: if is_pessimistic { self.for_update_ts } else { Timestamp::ZERO },
            primary: self.primary.take(),
            async_commit: self.options.async_commit,
            one_phase: self.options.one_phase,
        };
        let writes = std::mem::take(&mut self.buffer).into_writes();
        let outcome = commit::commit(&self.shared, plan, writes, self.began).await;
        self.unlock_in_background(stray);
        outcome.map_err(|error| self.shared.user_error(error))
    }

    /// Ends the transaction without a trace. Its locks, if any, are gone when this returns without an error; after an
    /// error others remove them.
    pub async fn rollback(&mut self) -> Result<()> {
        self.check_running()?;
        self.ended = true;
        self.keep_alive = None;
        let mut keys = self.buffer.locked_keys();
        keys.extend(std::mem::take(&mut self.stray));
        if keys.is_empty() {
            return Ok(());
        }
        let unlocked = locking::unlock(&self.shared, self.start_timestamp(), self.for_update_ts, keys).await;
        unlocked.map_err(|error| self.shared.user_error(error))
    }

    fn check_running(&self) -> Result<()> {
        if self.ended { Err(Error::TxnEnded(self.start_timestamp())) } else { Ok(()) }
    }

    fn user_pairs(&self, mut found: Vec<(Bytes, Bytes)>) -> Result<Vec<KvPair>> {
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        found.dedup_by(|a, b| a.0 == b.0);
        let user = |(key, value)| Ok(KvPair { key: self.shared.codec.user_key(key)?, value });
        found.into_iter().map(user).collect()
    }

    /// Checks a key that is to be written, and locks it in a pessimistic transaction.
    async fn prepare(&mut self, key: Bytes, must_not_exist: bool) -> Result<Bytes> {
        self.check_running()?;
        if key.is_empty() && self.shared.codec.prefix_len() == 0 {
            return Err(Error::InvalidArgument("an empty key cannot be written".to_string()));
        }
        let key = self.shared.wire_key(key)?;
        // What the transaction itself has made of the key tells whether it exists.
        let must_not_exist = must_not_exist && self.buffer.get(&key).is_none();
        if self.options.is_pessimistic && (must_not_exist || !self.buffer.is_locked(&key)) {
            self.lock(vec![Target { key: key.clone(), must_not_exist }], false).await?;
        }
        Ok(key)
    }

    /// A pessimistic transaction that writes what it has only read must not overwrite what came in between.
    fn remember_read(&self, key: &Bytes) {
        if self.options.is_pessimistic && !self.buffer.is_locked(key) {
            self.read.lock().insert(key.clone());
        }
    }

    /// Takes pessimistic locks, all or none.
    async fn lock(&mut self, targets: Vec<Target>, return_values: bool) -> Result<Locked> {
        let keys: Vec<Bytes> = targets.iter().map(|target| target.key.clone()).collect();
        let Some(first) = keys.iter().min().cloned() else { return Ok(Locked::default()) };
        if let Some(cause) = self.broken.clone() {
            return Err(Error::TxnAborted { start_ts: self.start_timestamp(), cause });
        }
        let strict = !return_values && {
            let read = self.read.lock();
            // What is locked already nobody has changed since.
            keys.iter().any(|key| !self.buffer.is_locked(key) && read.contains(key))
        };
        let primary = self.primary.clone().unwrap_or(first);
        let shared = self.shared.clone();
        // The call may take its first lock long before its last.
        let fresh_pulse = self.primary.is_none().then(|| self.start_pulse(primary.clone()));
        let start_ts = self.start_timestamp();
        let mut fresh: Vec<Bytes> = keys.iter().filter(|key| !self.buffer.is_locked(key)).cloned().collect();
        fresh.sort_unstable();
        self.stray.extend(fresh.iter().cloned());
        let mut locking = Locking {
            shared: &shared,
            start_ts,
            primary: primary.clone(),
            is_first: self.primary.is_none() && keys.len() == 1,
            for_update_ts: if strict { start_ts } else { self.for_update_ts },
            newest: &mut self.for_update_ts,
            strict,
            began: self.began,
            ttl: self.options.lock_ttl,
            wait: self.options.lock_wait.unwrap_or(shared.executor.config().timeout),
            return_values,
        };
        match locking.run(targets).await {
            Ok(locked) => {
                self.stray.retain(|key| fresh.binary_search(key).is_err());
                keys.into_iter().for_each(|key| self.buffer.set_locked(key));
                // The first lock is held: the transaction lives as long as it does.
                self.primary = Some(primary);
                self.keep_alive = self.keep_alive.take().or(fresh_pulse);
                Ok(locked)
            }
            Err(error) => {
                match locking.undo(fresh.clone()).await {
                    Ok(()) => self.stray.retain(|key| fresh.binary_search(key).is_err()),
                    Err(left) => {
                        self.broken = Some(format!("locks of a failed call may be left over: {left}"));
                    }
                }
                Err(shared.user_error(error))
            }
        }
    }

    fn start_pulse(&self, primary: Bytes) -> KeepAlive {
        KeepAlive::start(Pulse {
            shared: self.shared.clone(),
            start_ts: self.start_timestamp(),
            primary,
            began: self.began,
            ttl: self.options.lock_ttl,
        })
    }

    /// Ends the transaction without a commit; its locks go in the background.
    fn end_in_background(&mut self) {
        self.ended = true;
        self.keep_alive = None;
        let mut keys = self.buffer.locked_keys();
        keys.extend(std::mem::take(&mut self.stray));
        self.unlock_in_background(keys);
    }

    fn unlock_in_background(&self, keys: Vec<Bytes>) {
        if keys.is_empty() {
            return;
        }
        let (shared, start_ts, at) = (self.shared.clone(), self.start_timestamp(), self.for_update_ts);
        self.shared.in_background(async move {
            if let Err(error) = locking::unlock(&shared, start_ts, at, keys).await {
                tracing::debug!(txn = %start_ts, %error, "locks are left to the next who meets them");
            }
        });
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if self.primary.is_some() || !self.stray.is_empty() || self.buffer.has_changes() {
            tracing::warn!(
                txn = %self.start_timestamp(),
                "a transaction was dropped without commit or rollback; it is rolled back"
            );
        }
        self.end_in_background();
    }
}
