//! The fake store's transactions: locks and versions of one map, after the protocol's rules. Nothing waits: who meets a
//! lock is told at once.

#![allow(clippy::result_large_err)] // speed is no matter here

use std::collections::BTreeMap;

use bytes::Bytes;
use kvproto::kvrpcpb::*;

/// What was done to a key by one transaction.
#[derive(Clone, Debug)]
struct Version {
    start_ts: u64,
    op: Op,
    value: Bytes,
}

#[derive(Clone, Debug)]
struct Lock {
    start_ts: u64,
    primary: Bytes,
    op: Op,
    value: Bytes,
    ttl: u64,
    txn_size: u64,
    for_update_ts: u64,
    min_commit_ts: u64,
    is_async: bool,
    secondaries: Vec<Bytes>,
}

/// All keys.
#[derive(Default)]
pub struct Data {
    locks: BTreeMap<Bytes, Lock>,
    /// By key and commit timestamp; a rollback stands at its start timestamp.
    writes: BTreeMap<Bytes, BTreeMap<u64, Version>>,
    max_ts: u64,
    /// Answer asynchronous and one-phase prewrites with plain locks.
    pub plain_only: bool,
    /// A key always changes before it is locked.
    pub always_changes: bool,
    /// The lives that pessimistic lock requests asked for, in ms.
    pub asked_ttls: Vec<u64>,
}

enum Record {
    Committed(u64),
    RolledBack,
    None,
}

impl Data {
    /// Number of locks.
    pub fn locks(&self) -> usize {
        self.locks.len()
    }

    /// The least timestamp at which the lock of a key may be committed.
    pub fn min_commit_ts(&self, key: &[u8]) -> Option<u64> {
        self.locks.get(key).map(|lock| lock.min_commit_ts)
    }

    /// The commit timestamps of a key, rollbacks left out.
    pub fn commits(&self, key: &[u8]) -> Vec<u64> {
        let committed = |version: &&Version| version.op != Op::Rollback;
        let writes = self.writes.get(key).into_iter().flatten();
        writes.filter(|(_, version)| committed(version)).map(|(ts, _)| *ts).collect()
    }

    fn info(&self, key: &Bytes) -> Option<LockInfo> {
        let lock = self.locks.get(key)?;
        Some(LockInfo {
            primary_lock: lock.primary.clone(),
            lock_version: lock.start_ts,
            key: key.clone(),
            lock_ttl: lock.ttl,
            txn_size: lock.txn_size,
            lock_type: lock.op.into(),
            lock_for_update_ts: lock.for_update_ts,
            use_async_commit: lock.is_async,
            min_commit_ts: lock.min_commit_ts,
            secondaries: lock.secondaries.clone(),
            ..Default::default()
        })
    }

    fn locked(&self, key: &Bytes) -> KeyError {
        KeyError { locked: self.info(key), ..Default::default() }
    }

    fn record(&self, key: &[u8], start_ts: u64) -> Record {
        let found = self.writes.get(key).and_then(|w| w.iter().find(|(_, v)| v.start_ts == start_ts));
        match found {
            Some((_, version)) if version.op == Op::Rollback => Record::RolledBack,
            Some((ts, _)) => Record::Committed(*ts),
            None => Record::None,
        }
    }

    fn roll_back(&mut self, key: &Bytes, start_ts: u64) {
        if self.locks.get(key).is_some_and(|lock| lock.start_ts == start_ts) {
            self.locks.remove(key);
        }
        let version = Version { start_ts, op: Op::Rollback, value: Bytes::new() };
        self.writes.entry(key.clone()).or_default().entry(start_ts).or_insert(version);
    }

    /// The newest version at or before `ts`, with its commit timestamp.
    fn version(&self, key: &[u8], ts: u64) -> Option<(u64, &Version)> {
        let mut older = self.writes.get(key)?.range(..=ts).rev();
        older.find(|(_, v)| matches!(v.op, Op::Put | Op::Del)).map(|(ts, v)| (*ts, v))
    }

    fn read(&mut self, key: &Bytes, ts: u64, context: &Context) -> Result<Option<Bytes>, KeyError> {
        if ts != u64::MAX {
            self.max_ts = self.max_ts.max(ts);
        }
        if let Some(lock) = self.locks.get(key) {
            let passes = lock.start_ts > ts
                || matches!(lock.op, Op::Lock | Op::PessimisticLock)
                || lock.min_commit_ts > ts
                || context.resolved_locks.contains(&lock.start_ts);
            if !passes && context.committed_locks.contains(&lock.start_ts) {
                return Ok((lock.op == Op::Put).then(|| lock.value.clone()));
            }
            if !passes {
                return Err(self.locked(key));
            }
        }
        let found = self.version(key, ts).map(|(_, version)| version);
        Ok(found.filter(|version| version.op == Op::Put).map(|version| version.value.clone()))
    }

    pub fn get(&mut self, q: &GetRequest) -> GetResponse {
        let context = q.context.clone().unwrap_or_default();
        match self.read(&q.key, q.version, &context) {
            Ok(value) => GetResponse {
                not_found: value.is_none(),
                value: value.unwrap_or_default(),
                ..Default::default()
            },
            Err(error) => GetResponse { error: Some(error), ..Default::default() },
        }
    }

    fn pair(&mut self, key: &Bytes, ts: u64, context: &Context) -> Option<KvPair> {
        match self.read(key, ts, context) {
            Ok(value) => Some(KvPair { key: key.clone(), value: value?, ..Default::default() }),
            Err(error) => Some(KvPair { error: Some(error), ..Default::default() }),
        }
    }

    pub fn batch_get(&mut self, q: &BatchGetRequest) -> BatchGetResponse {
        let context = q.context.clone().unwrap_or_default();
        let pairs = q.keys.iter().filter_map(|key| self.pair(key, q.version, &context)).collect();
        BatchGetResponse { pairs, ..Default::default() }
    }

    pub fn scan(&mut self, q: &ScanRequest) -> ScanResponse {
        let context = q.context.clone().unwrap_or_default();
        let (lower, upper) = if q.reverse { (&q.end_key, &q.start_key) } else { (&q.start_key, &q.end_key) };
        let inside = |key: &&Bytes| *key >= lower && (upper.is_empty() || *key < upper);
        let mut keys: Vec<Bytes> =
            self.writes.keys().chain(self.locks.keys()).filter(inside).cloned().collect();
        keys.sort();
        keys.dedup();
        if q.reverse {
            keys.reverse();
        }
        let pairs = keys.iter().filter_map(|key| self.pair(key, q.version, &context));
        let mut pairs: Vec<KvPair> = pairs.take(q.limit as usize).collect();
        if q.key_only {
            pairs.iter_mut().for_each(|pair| pair.value = Bytes::new());
        }
        ScanResponse { pairs, ..Default::default() }
    }

    /// Why `mutation` cannot be prewritten; or the commit timestamp it already has.
    fn check_prewrite(&self, q: &PrewriteRequest, index: usize) -> Result<Option<u64>, KeyError> {
        let mutation = &q.mutations[index];
        let key = &mutation.key;
        let start_ts = q.start_version;
        let own = self.locks.get(key).is_some_and(|lock| lock.start_ts == start_ts);
        let conflict = |ts: u64, version: &Version, reason| {
            let conflict = WriteConflict {
                start_ts,
                conflict_ts: version.start_ts,
                conflict_commit_ts: ts,
                key: key.clone(),
                reason: i32::from(reason),
                ..Default::default()
            };
            KeyError { conflict: Some(conflict), ..Default::default() }
        };
        match self.record(key, start_ts) {
            Record::Committed(ts) => return Ok(Some(ts)),
            Record::RolledBack if !own => {
                let version = &self.writes[key][&start_ts];
                return Err(conflict(start_ts, version, write_conflict::Reason::SelfRolledBack));
            }
            _ => {}
        }
        if own {
            return Ok(None);
        }
        if self.locks.contains_key(key) {
            return Err(self.locked(key));
        }
        if q.pessimistic_actions.get(index) == Some(&1) {
            return Err(KeyError { abort: "pessimistic lock not found".to_string(), ..Default::default() });
        }
        let newest = self.writes.get(key).and_then(|w| w.iter().rfind(|(_, v)| v.op != Op::Rollback));
        if let Some((ts, version)) = newest.filter(|(ts, _)| **ts > start_ts) {
            return Err(conflict(*ts, version, write_conflict::Reason::Optimistic));
        }
        let exists = self.version(key, u64::MAX).is_some_and(|(_, version)| version.op == Op::Put);
        if mutation.assertion() == Assertion::NotExist && q.assertion_level() != AssertionLevel::Off && exists
        {
            let assertion = mutation.assertion;
            let assertion_failed =
                Some(AssertionFailed { key: key.clone(), assertion, ..Default::default() });
            return Err(KeyError { assertion_failed, ..Default::default() });
        }
        if matches!(mutation.op(), Op::Insert | Op::CheckNotExists) && exists {
            let already_exist = Some(AlreadyExist { key: key.clone() });
            return Err(KeyError { already_exist, ..Default::default() });
        }
        Ok(None)
    }

    pub fn prewrite(&mut self, q: &PrewriteRequest) -> PrewriteResponse {
        let mut reply = PrewriteResponse::default();
        let mut committed_at = None;
        for index in 0..q.mutations.len() {
            match self.check_prewrite(q, index) {
                Ok(at) => committed_at = committed_at.or(at),
                Err(error) => reply.errors.push(error),
            }
        }
        if !reply.errors.is_empty() {
            return reply;
        }
        if let Some(at) = committed_at {
            let one_phase = q.try_one_pc;
            return PrewriteResponse {
                min_commit_ts: at,
                one_pc_commit_ts: if one_phase { at } else { 0 },
                ..reply
            };
        }
        let plain = self.plain_only || !(q.use_async_commit || q.try_one_pc);
        let at = q.min_commit_ts.max(self.max_ts + 1);
        for mutation in q.mutations.iter().filter(|mutation| mutation.op() != Op::CheckNotExists) {
            let op = if mutation.op() == Op::Insert { Op::Put } else { mutation.op() };
            let lock = Lock {
                start_ts: q.start_version,
                primary: q.primary_lock.clone(),
                op,
                value: mutation.value.clone(),
                ttl: q.lock_ttl,
                txn_size: q.txn_size,
                for_update_ts: q.for_update_ts,
                min_commit_ts: at,
                is_async: !plain && q.use_async_commit,
                secondaries: q.secondaries.clone(),
            };
            self.locks.insert(mutation.key.clone(), lock);
            if q.try_one_pc && !plain {
                self.commit_key(&mutation.key, q.start_version, at).expect("its own lock");
            }
        }
        match (plain, q.try_one_pc) {
            (true, _) => {}
            (false, true) => reply.one_pc_commit_ts = at,
            (false, false) => reply.min_commit_ts = at,
        }
        reply
    }

    fn commit_key(&mut self, key: &Bytes, start_ts: u64, commit_ts: u64) -> Result<u64, KeyError> {
        match self.locks.get(key) {
            Some(lock) if lock.start_ts == start_ts => {
                if lock.min_commit_ts > commit_ts {
                    let expired = CommitTsExpired {
                        start_ts,
                        attempted_commit_ts: commit_ts,
                        key: key.clone(),
                        min_commit_ts: lock.min_commit_ts,
                    };
                    return Err(KeyError { commit_ts_expired: Some(expired), ..Default::default() });
                }
                let lock = self.locks.remove(key).expect("just seen");
                if lock.op != Op::PessimisticLock {
                    let version = Version { start_ts, op: lock.op, value: lock.value };
                    self.writes.entry(key.clone()).or_default().insert(commit_ts, version);
                }
                Ok(commit_ts)
            }
            _ => match self.record(key, start_ts) {
                Record::Committed(ts) => Ok(ts),
                _ => {
                    let lost = Some(TxnLockNotFound { key: key.clone() });
                    Err(KeyError { txn_lock_not_found: lost, ..Default::default() })
                }
            },
        }
    }

    pub fn commit(&mut self, q: &CommitRequest) -> CommitResponse {
        let mut reply = CommitResponse::default();
        for key in &q.keys {
            match self.commit_key(key, q.start_version, q.commit_version) {
                Ok(ts) => reply.commit_version = ts,
                Err(error) => reply.error = Some(error),
            }
        }
        reply
    }

    pub fn batch_rollback(&mut self, q: &BatchRollbackRequest) -> BatchRollbackResponse {
        let mut reply = BatchRollbackResponse::default();
        for key in &q.keys {
            match self.record(key, q.start_version) {
                Record::Committed(ts) => {
                    let abort = format!("committed at {ts}");
                    reply.error = Some(KeyError { abort, ..Default::default() });
                }
                _ => self.roll_back(key, q.start_version),
            }
        }
        reply
    }

    pub fn pessimistic_lock(&mut self, q: &PessimisticLockRequest) -> PessimisticLockResponse {
        self.asked_ttls.push(q.lock_ttl);
        let mut reply = PessimisticLockResponse::default();
        for mutation in &q.mutations {
            let key = &mutation.key;
            if self.locks.get(key).is_some_and(|lock| lock.start_ts != q.start_version) {
                reply.errors.push(self.locked(key));
                continue;
            }
            let newest = self.writes.get(key).and_then(|w| w.iter().rfind(|(_, v)| v.op != Op::Rollback));
            let is_newer = |ts: u64| self.always_changes || ts > q.for_update_ts;
            if let Some((ts, version)) = newest.filter(|(ts, _)| is_newer(**ts)) {
                let conflict = WriteConflict {
                    start_ts: q.start_version,
                    conflict_ts: version.start_ts,
                    conflict_commit_ts: *ts,
                    key: key.clone(),
                    reason: write_conflict::Reason::PessimisticRetry.into(),
                    ..Default::default()
                };
                reply.errors.push(KeyError { conflict: Some(conflict), ..Default::default() });
                continue;
            }
            let value = self.version(key, q.for_update_ts).map(|(_, version)| version);
            let value = value.filter(|version| version.op == Op::Put).map(|version| version.value.clone());
            if mutation.assertion() == Assertion::NotExist && value.is_some() {
                let already_exist = Some(AlreadyExist { key: key.clone() });
                reply.errors.push(KeyError { already_exist, ..Default::default() });
            }
            if q.return_values {
                reply.not_founds.push(value.is_none());
                reply.values.push(value.unwrap_or_default());
            }
        }
        if !reply.errors.is_empty() {
            return PessimisticLockResponse { errors: reply.errors, ..Default::default() };
        }
        for mutation in &q.mutations {
            let lock = Lock {
                start_ts: q.start_version,
                primary: q.primary_lock.clone(),
                op: Op::PessimisticLock,
                value: Bytes::new(),
                ttl: q.lock_ttl,
                txn_size: 0,
                for_update_ts: q.for_update_ts,
                min_commit_ts: q.min_commit_ts,
                is_async: false,
                secondaries: Vec::new(),
            };
            self.locks.insert(mutation.key.clone(), lock);
        }
        reply
    }

    pub fn pessimistic_rollback(&mut self, q: &PessimisticRollbackRequest) {
        self.locks.retain(|key, lock| {
            let own = lock.start_ts == q.start_version && lock.op == Op::PessimisticLock;
            !(own && lock.for_update_ts <= q.for_update_ts && q.keys.contains(key))
        });
    }

    pub fn heart_beat(&mut self, q: &TxnHeartBeatRequest) -> TxnHeartBeatResponse {
        match self.locks.get_mut(&q.primary_lock).filter(|lock| lock.start_ts == q.start_version) {
            Some(lock) => {
                lock.ttl = lock.ttl.max(q.advise_lock_ttl);
                TxnHeartBeatResponse { lock_ttl: lock.ttl, ..Default::default() }
            }
            None => {
                let error = KeyError { txn_not_found: Some(TxnNotFound::default()), ..Default::default() };
                TxnHeartBeatResponse { error: Some(error), ..Default::default() }
            }
        }
    }

    pub fn check_txn_status(&mut self, q: &CheckTxnStatusRequest) -> CheckTxnStatusResponse {
        let mut reply = CheckTxnStatusResponse::default();
        let key = &q.primary_key;
        let info = self.info(key).filter(|lock| lock.lock_version == q.lock_ts);
        let Some(lock) = info else {
            match self.record(key, q.lock_ts) {
                Record::Committed(ts) => reply.commit_version = ts,
                Record::RolledBack => {}
                Record::None if q.rollback_if_not_exist && q.resolving_pessimistic_lock => {
                    reply.set_action(Action::LockNotExistDoNothing);
                }
                Record::None if q.rollback_if_not_exist => {
                    self.roll_back(key, q.lock_ts);
                    reply.set_action(Action::LockNotExistRollback);
                }
                Record::None => {
                    let missing = Some(TxnNotFound { start_ts: q.lock_ts, primary_key: key.clone() });
                    reply.error = Some(KeyError { txn_not_found: missing, ..Default::default() });
                }
            }
            return reply;
        };
        let is_over = (q.lock_ts >> 18) + lock.lock_ttl < q.current_ts >> 18;
        if is_over && (!lock.use_async_commit || q.force_sync_commit) {
            if lock.lock_type() == Op::PessimisticLock && q.resolving_pessimistic_lock {
                self.locks.remove(key);
                reply.set_action(Action::TtlExpirePessimisticRollback);
            } else {
                self.roll_back(key, q.lock_ts);
                reply.set_action(Action::TtlExpireRollback);
            }
            return reply;
        }
        let can_push = !lock.use_async_commit && q.caller_start_ts != u64::MAX;
        if can_push && q.caller_start_ts >= lock.min_commit_ts {
            self.locks.get_mut(key).expect("just seen").min_commit_ts = q.caller_start_ts + 1;
            reply.set_action(Action::MinCommitTsPushed);
        }
        CheckTxnStatusResponse { lock_ttl: lock.lock_ttl, lock_info: self.info(key), ..reply }
    }

    pub fn check_secondary_locks(&mut self, q: &CheckSecondaryLocksRequest) -> CheckSecondaryLocksResponse {
        let mut reply = CheckSecondaryLocksResponse::default();
        for key in &q.keys {
            match (
                self.info(key).filter(|lock| lock.lock_version == q.start_version),
                self.record(key, q.start_version),
            ) {
                (Some(lock), _) if lock.lock_type() != Op::PessimisticLock => reply.locks.push(lock),
                (_, Record::Committed(ts)) => reply.commit_ts = ts,
                _ => self.roll_back(key, q.start_version),
            }
        }
        reply
    }

    /// `inside` tells the keys of the region.
    pub fn resolve_lock(&mut self, q: &ResolveLockRequest, inside: impl Fn(&Bytes) -> bool) {
        let wanted = |key: &&Bytes| if q.keys.is_empty() { inside(key) } else { q.keys.contains(key) };
        let own = |(key, lock): (&Bytes, &Lock)| {
            (lock.start_ts == q.start_version && wanted(&key)).then(|| key.clone())
        };
        let keys: Vec<Bytes> = self.locks.iter().filter_map(own).collect();
        for key in keys {
            match q.commit_version {
                0 => self.roll_back(&key, q.start_version),
                ts => drop(self.commit_key(&key, q.start_version, ts)),
            }
        }
    }

    pub fn scan_lock(&self, q: &ScanLockRequest, inside: impl Fn(&Bytes) -> bool) -> ScanLockResponse {
        let wanted = |(key, lock): &(&Bytes, &Lock)| {
            let in_range = **key >= q.start_key && (q.end_key.is_empty() || **key < q.end_key);
            in_range && inside(key) && lock.start_ts <= q.max_version
        };
        let locks = self.locks.iter().filter(wanted).take(q.limit as usize);
        let locks = locks.filter_map(|(key, _)| self.info(key)).collect();
        ScanLockResponse { locks, ..Default::default() }
    }

    pub fn delete_range(&mut self, q: &DeleteRangeRequest) {
        let outside = |key: &Bytes| *key < q.start_key || (!q.end_key.is_empty() && *key >= q.end_key);
        self.writes.retain(|key, _| outside(key));
        self.locks.retain(|key, _| outside(key));
    }
}
