//! One client's transactions: reads, locks, commits and the resolution of what is in the way, with the SDK's own state
//! machines, and with notes of everything that was seen.
//!
//! A session is a task that may be dropped between any two steps: the notes, which outlive it, then hold a
//! transaction with an unknown fate, and the stores its locks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use kvclient::Error;
use kvclient::request::retry::Access;
use kvclient::txn::committer::{Action, Committer, Plan, Write};
use kvclient::txn::resolution::{Caller as Asker, Resolution, Step, Verdict};
use kvproto::kvrpcpb as pb;
use kvproto::ts::Timestamp;
use parking_lot::Mutex;

use super::calls::{Caller, Passes};
use super::notes::Notes;
use crate::check_txn::{Fate, Key, Op, Value};
use crate::sim::plan::{MS, Plan as WorldPlan};

/// How often a transaction waits for locks before it gives up.
const WAITS_MAX: usize = 40;
/// The longest pause before locks are looked at again, milliseconds.
const WAIT_MS_MAX: u64 = 200;

/// Why a transaction ends before its commit.
#[derive(Debug)]
pub struct GivesUp;

/// See the file's head.
pub struct Session {
    pub client: usize,
    pub caller: Caller,
    pub notes: Arc<Mutex<Notes>>,
    pub plan: Arc<WorldPlan>,
}

/// A transaction that is open.
pub struct Open {
    /// Its place in the notes.
    number: usize,
    pub start_ts: u64,
    started_ns: u64,
    pub pessimistic: bool,
    for_update_ts: u64,
    primary: Option<Bytes>,
    /// When its locks were got.
    locked: BTreeMap<Key, u64>,
    writes: BTreeMap<Key, Value>,
    passes: Passes,
}

impl Session {
    /// True time.
    fn now_ns(&self) -> u64 {
        self.caller.port.now().0
    }

    fn note(&self, open: &Open, op: Op) {
        self.notes.lock().history[open.number].ops.push(op);
    }

    /// The wire key of a key's number.
    pub fn wire_key(&self, key: Key) -> Bytes {
        wire_key(&self.plan, key)
    }

    /// Begins a transaction.
    pub async fn begin(&mut self, pessimistic: bool) -> Open {
        let (mut began, mut ts) = (self.now_ns(), None);
        while ts.is_none() {
            began = self.now_ns();
            ts = self.caller.port.timestamp().await;
        }
        let start_ts = ts.unwrap_or_default();
        let number = self.notes.lock().begin(self.client, start_ts, began);
        Open {
            number,
            start_ts,
            started_ns: self.now_ns(),
            pessimistic,
            for_update_ts: 0,
            primary: None,
            locked: BTreeMap::new(),
            writes: BTreeMap::new(),
            passes: Passes::default(),
        }
    }

    /// Reads keys at the transaction's start, or what it wrote itself.
    pub async fn read(&mut self, open: &mut Open, keys: &[Key]) -> Result<BTreeMap<Key, Value>, GivesUp> {
        let mut seen: BTreeMap<Key, Value> =
            keys.iter().filter_map(|key| Some((*key, open.writes.get(key)?.clone()))).collect();
        let wire: BTreeMap<Bytes, Key> = keys
            .iter()
            .filter(|key| !seen.contains_key(key))
            .map(|key| (self.wire_key(*key), *key))
            .collect();
        let found = self.read_at(open.start_ts, &mut open.passes, wire.keys().cloned().collect()).await;
        let Ok(found) = found else { return Err(GivesUp) };
        for (key, number) in &wire {
            seen.insert(*number, found.get(key).map_or(Value::new(), |bytes| decode(bytes)));
        }
        for (key, value) in &seen {
            self.note(open, Op::Read { key: *key, seen: value.clone(), at: open.start_ts });
        }
        Ok(seen)
    }

    /// What keys hold at a timestamp; resolves what is in the way, and waits for what lives.
    async fn read_at(
        &mut self,
        ts: u64,
        passes: &mut Passes,
        keys: BTreeSet<Bytes>,
    ) -> Result<BTreeMap<Bytes, Bytes>, Error> {
        let mut open = keys;
        let mut found = BTreeMap::new();
        for _ in 0..WAITS_MAX {
            let items: Vec<(Bytes, Bytes)> = open.iter().map(|key| (key.clone(), key.clone())).collect();
            let locks = match (self.caller.rng.chance(0.5), &items[..]) {
                (_, []) => return Ok(found),
                (true, [(key, _)]) => self.get(ts, passes, key.clone(), &mut open, &mut found).await?,
                _ => self.batch_get(ts, passes, items, &mut open, &mut found).await?,
            };
            if locks.is_empty() {
                continue;
            }
            let wait_ms = self.resolve(locks, Asker::Read(Timestamp::new(ts)), Some(passes)).await?;
            if wait_ms > 0 {
                self.caller.port.sleep(wait_ms.min(WAIT_MS_MAX) * MS).await;
            }
        }
        Err(Error::Timeout { after: Default::default(), last: None })
    }

    async fn get(
        &mut self,
        ts: u64,
        passes: &Passes,
        key: Bytes,
        open: &mut BTreeSet<Bytes>,
        found: &mut BTreeMap<Bytes, Bytes>,
    ) -> Result<Vec<pb::LockInfo>, Error> {
        let ask = pb::GetRequest {
            context: Some(context(passes)),
            key: key.clone(),
            version: ts,
            ..Default::default()
        };
        let reply = self.caller.one(key.clone(), Access::Read, ask).await?;
        match reply.error {
            None => {
                open.remove(&key);
                if !reply.not_found {
                    found.insert(key, reply.value);
                }
                Ok(Vec::new())
            }
            Some(error) => Ok(vec![error.locked.clone().ok_or_else(|| self.unexpected(&error))?]),
        }
    }

    async fn batch_get(
        &mut self,
        ts: u64,
        passes: &Passes,
        items: Vec<(Bytes, Bytes)>,
        open: &mut BTreeSet<Bytes>,
        found: &mut BTreeMap<Bytes, Bytes>,
    ) -> Result<Vec<pb::LockInfo>, Error> {
        #[derive(Default)]
        struct Read {
            pairs: Vec<pb::KvPair>,
            asked: Vec<Bytes>,
            refused: Option<pb::KeyError>,
        }
        let mut read = Read::default();
        let ask = |_: &Read, keys: &[Bytes]| pb::BatchGetRequest {
            context: Some(context(passes)),
            keys: keys.to_vec(),
            version: ts,
            ..Default::default()
        };
        let on = |read: &mut Read, keys: &[Bytes], reply: pb::BatchGetResponse| match reply.error {
            // The region said nothing else.
            Some(error) if reply.pairs.is_empty() => read.refused = Some(error),
            _ => {
                read.asked.extend_from_slice(keys);
                read.pairs.extend(reply.pairs);
            }
        };
        self.caller.each(&mut read, items, Access::Read, ask, on).await?;
        let mut locks = Vec::new();
        let mut blocked = BTreeSet::new();
        for pair in read.pairs {
            match pair.error {
                None => drop(found.insert(pair.key, pair.value)),
                Some(error) => {
                    let lock = error.locked.clone().ok_or_else(|| self.unexpected(&error))?;
                    blocked.insert(lock.key.clone());
                    locks.push(lock);
                }
            }
        }
        if let Some(error) = read.refused {
            locks.push(error.locked.clone().ok_or_else(|| self.unexpected(&error))?);
        }
        open.retain(|key| !read.asked.contains(key) || blocked.contains(key));
        Ok(locks)
    }

    /// A refusal that makes no sense.
    fn unexpected(&self, error: &pb::KeyError) -> Error {
        self.notes.lock().surprises.push(format!("client {}: {error:?}", self.client));
        Error::Protocol(format!("{error:?}"))
    }

    /// Locks keys, one after the other, and reads them. Whoever cannot gives up.
    pub async fn lock(&mut self, open: &mut Open, keys: &[Key]) -> Result<BTreeMap<Key, Value>, GivesUp> {
        let mut seen = BTreeMap::new();
        for key in keys {
            let value = self.lock_one(open, *key).await?;
            seen.insert(*key, value);
        }
        Ok(seen)
    }

    async fn lock_one(&mut self, open: &mut Open, key: Key) -> Result<Value, GivesUp> {
        let wire = self.wire_key(key);
        let primary = open.primary.get_or_insert_with(|| wire.clone()).clone();
        for _ in 0..WAITS_MAX {
            let for_update_ts = self.caller.timestamp().await;
            open.for_update_ts = for_update_ts;
            // From here on the key may be locked, whatever the answer is.
            open.locked.entry(key).or_insert(0);
            let elapsed_ms = (self.now_ns() - open.started_ns) / MS;
            let ask = pb::PessimisticLockRequest {
                mutations: vec![pb::Mutation {
                    op: pb::Op::PessimisticLock.into(),
                    key: wire.clone(),
                    ..Default::default()
                }],
                primary_lock: primary.clone(),
                start_version: open.start_ts,
                lock_ttl: 3_000 + elapsed_ms,
                for_update_ts,
                is_first_lock: open.locked.len() == 1,
                wait_timeout: self.caller.rng.range(50, 500) as i64,
                return_values: true,
                min_commit_ts: for_update_ts + 1,
                ..Default::default()
            };
            let reply = self.caller.one(wire.clone(), Access::Write, ask).await;
            let Ok(reply) = reply else { return Err(GivesUp) };
            let Some(error) = reply.errors.into_iter().next() else {
                open.locked.insert(key, for_update_ts);
                let there = !reply.not_founds.first().copied().unwrap_or(false);
                let value = reply.values.first().filter(|_| there).map_or(Value::new(), |v| decode(v));
                self.note(open, Op::Lock { key, since: for_update_ts });
                let own = open.writes.get(&key).cloned();
                if own.is_none() {
                    self.note(open, Op::Read { key, seen: value.clone(), at: for_update_ts });
                }
                return Ok(own.unwrap_or(value));
            };
            if let Some(lock) = error.locked {
                let Ok(wait_ms) = self.resolve(vec![lock], Asker::Wait, None).await else {
                    return Err(GivesUp);
                };
                self.caller.port.sleep(wait_ms.clamp(1, WAIT_MS_MAX / 4) * MS).await;
            } else if error.conflict.is_none() {
                return Err(GivesUp);
            }
        }
        Err(GivesUp)
    }

    /// Writes a key when the transaction commits.
    pub fn write(&mut self, open: &mut Open, key: Key, value: Value) {
        let since = open.locked.get(&key).copied().filter(|since| *since > 0).unwrap_or(open.start_ts);
        self.note(open, Op::Write { key, value: value.clone(), since });
        open.writes.insert(key, value);
    }

    /// Gives a transaction up that has not begun to commit.
    pub async fn roll_back(&mut self, open: Open) {
        self.notes.lock().end(open.number, Fate::Aborted, self.now_ns());
        let keys: Vec<(Bytes, Bytes)> =
            open.locked.keys().map(|key| self.wire_key(*key)).map(|k| (k.clone(), k)).collect();
        let ask = |_: &mut (), keys: &[Bytes]| pb::PessimisticRollbackRequest {
            start_version: open.start_ts,
            for_update_ts: u64::MAX,
            keys: keys.to_vec(),
            ..Default::default()
        };
        // What stays locked expires.
        drop(
            self.caller.each(&mut (), keys, Access::Write, |_, keys| ask(&mut (), keys), |_, _, _| {}).await,
        );
    }

    /// Commits a transaction; what is left of its locks afterwards is cleaned in the same task.
    pub async fn commit(&mut self, open: Open) -> bool {
        let writes = self.buffer(&open);
        let plan = Plan {
            start_ts: Timestamp::new(open.start_ts),
            for_update_ts: Timestamp::new(open.for_update_ts),
            primary: open.primary.clone(),
            async_commit: self.caller.rng.below(100) < self.plan.txn.async_commit,
            one_phase: self.caller.rng.below(100) < self.plan.txn.one_phase,
        };
        let mut committer = Committer::new(plan, writes);
        let mut committed = false;
        loop {
            match committer.next_action() {
                Action::Prewrite(writes) => {
                    let items = writes.into_iter().map(|write| (write.mutation.key.clone(), write)).collect();
                    self.caller.has_late_copies = false;
                    let elapsed_ms = (self.now_ns() - open.started_ns) / MS;
                    let done = self
                        .caller
                        .each(
                            &mut committer,
                            items,
                            Access::Write,
                            |committer, piece| Committer::prewrite(committer, piece, elapsed_ms),
                            Committer::on_prewrite,
                        )
                        .await;
                    if self.caller.has_late_copies {
                        committer.on_late_copy();
                    }
                    committer.on_prewritten(done);
                }
                Action::Resolve(locks) => match self.resolve(locks.clone(), Asker::Wait, None).await {
                    Ok(0) => committer.on_resolved(),
                    Ok(wait_ms) if self.caller.rng.chance(0.8) => {
                        self.caller.port.sleep(wait_ms.min(WAIT_MS_MAX) * MS).await;
                        committer.on_resolved();
                    }
                    _ => committer.on_stuck(locks.first()),
                },
                Action::Timestamp => {
                    let ts = self.caller.timestamp().await;
                    committer.on_timestamp(Ok(Timestamp::new(ts)));
                }
                Action::CommitPrimary => self.commit_primary(&mut committer).await,
                Action::Seal(keys) => {
                    let sealed = self.roll_back_keys(&mut committer, keys).await;
                    committer.on_sealed(sealed);
                }
                Action::Decided(outcome) => committed = self.decided(&open, outcome),
                Action::Commit(keys) => {
                    let items = keys.into_iter().map(|key| (key.clone(), key)).collect();
                    let on = |_: &mut Committer, _: &[Bytes], _| {};
                    drop(self.caller.each(&mut committer, items, Access::Write, Committer::commit, on).await);
                }
                Action::Rollback(keys) => drop(self.roll_back_keys(&mut committer, keys).await),
                Action::Finished => return committed,
            }
        }
    }

    fn buffer(&self, open: &Open) -> Vec<Write> {
        let locked_only = open.locked.keys().filter(|key| !open.writes.contains_key(key));
        let mut writes: Vec<Write> = locked_only
            .map(|key| Write {
                mutation: mutation(pb::Op::Lock, self.wire_key(*key), Bytes::new()),
                locked: true,
            })
            .collect();
        for (key, value) in &open.writes {
            let mutation = mutation(pb::Op::Put, self.wire_key(*key), encode(value));
            writes.push(Write { mutation, locked: open.locked.contains_key(key) });
        }
        writes.sort_by(|a, b| a.mutation.key.cmp(&b.mutation.key));
        writes
    }

    async fn commit_primary(&mut self, committer: &mut Committer) {
        let primary = committer.primary().clone();
        let near = self.caller.cache.lookup(&primary);
        let request = committer.commit_primary(|key| near.as_ref().is_some_and(|view| view.contains(key)));
        let keys = request.keys.clone();
        let mut reply = None;
        // A region that was divided meanwhile refuses the keys that it lost: then the primary goes alone.
        for ask in [request, committer.commit_primary(|_| false)] {
            reply = Some((ask.keys.clone(), self.caller.one(primary.clone(), Access::Write, ask).await));
            if !matches!(&reply, Some((_, Err(Error::Timeout { .. })))) {
                break;
            }
        }
        let (keys, reply) = reply.unwrap_or((keys, Err(Error::InvalidArgument("no request".into()))));
        committer.on_primary_committed(&keys, reply);
    }

    async fn roll_back_keys(&mut self, committer: &mut Committer, keys: Vec<Bytes>) -> Result<(), Error> {
        let items = keys.into_iter().map(|key| (key.clone(), key)).collect();
        let mut refused: (&mut Committer, Option<pb::KeyError>) = (committer, None);
        let ask = |(committer, _): &(&mut Committer, Option<pb::KeyError>), keys: &[Bytes]| {
            committer.rollback(keys)
        };
        let on = |refused: &mut (&mut Committer, Option<pb::KeyError>),
                  _: &[Bytes],
                  reply: pb::BatchRollbackResponse| {
            refused.1 = refused.1.take().or(reply.error);
        };
        self.caller.each(&mut refused, items, Access::Write, ask, on).await?;
        match refused.1 {
            None => Ok(()),
            Some(error) => Err(Error::Server(format!("{error:?}"))),
        }
    }

    /// The user learns the fate.
    fn decided(&self, open: &Open, outcome: Result<Option<Timestamp>, Error>) -> bool {
        let fate = match &outcome {
            Ok(Some(ts)) => Fate::Committed(ts.get()),
            Ok(None) => Fate::Committed(open.start_ts),
            Err(Error::Undetermined { .. }) => Fate::Unknown,
            Err(_) => Fate::Aborted,
        };
        self.notes.lock().end(open.number, fate, self.now_ns());
        outcome.is_ok()
    }

    /// Finishes what is over among the transactions of `locks`; says how long the others may live, milliseconds, and
    /// which locks a read may pass.
    pub async fn resolve(
        &mut self,
        locks: Vec<pb::LockInfo>,
        asker: Asker,
        mut passes: Option<&mut Passes>,
    ) -> Result<u64, Error> {
        let mut by_txn: BTreeMap<u64, Vec<pb::LockInfo>> = BTreeMap::new();
        for lock in locks {
            by_txn.entry(lock.lock_version).or_default().push(lock);
        }
        let mut wait_ms = 0;
        for (start_ts, locks) in by_txn {
            let now = Timestamp::new(self.caller.timestamp().await);
            let verdict = self.resolve_one(Resolution::new(&locks, asker, now, None)).await?;
            match (verdict, asker, &mut passes) {
                (Verdict::Alive(ms), ..) => wait_ms = ms.max(1).max(wait_ms),
                (Verdict::Committed(ts), Asker::Read(at), Some(passes)) if ts <= at => {
                    passes.committed.push(start_ts);
                }
                (_, _, Some(passes)) => passes.over.push(start_ts),
                (_, _, None) => {}
            }
        }
        Ok(wait_ms)
    }

    async fn resolve_one(&mut self, mut resolution: Resolution) -> Result<Verdict, Error> {
        let mut verdict = None;
        loop {
            match resolution.next_step() {
                Step::Status(ask) => {
                    let key = ask.primary_key.clone();
                    let reply = self.caller.one(key, Access::Write, *ask).await?;
                    resolution.on_status(reply)?;
                }
                Step::Secondaries(keys) => {
                    let items = keys.into_iter().map(|key| (key.clone(), key)).collect();
                    let mut asked = (resolution, Ok(()));
                    type Asked = (Resolution, Result<(), Error>);
                    let ask = |asked: &Asked, keys: &[Bytes]| asked.0.check_secondaries(keys);
                    let on = |asked: &mut Asked, keys: &[Bytes], reply| {
                        let heard = asked.0.on_secondaries(keys, reply);
                        asked.1 = std::mem::replace(&mut asked.1, Ok(())).and(heard);
                    };
                    self.caller.each(&mut asked, items, Access::Write, ask, on).await?;
                    asked.1?;
                    resolution = asked.0;
                    resolution.on_secondaries_checked();
                }
                Step::Decided(decided) => verdict = Some(decided),
                Step::Resolve(keys) => {
                    let items = keys.into_iter().map(|key| (key.clone(), key)).collect();
                    let on = |_: &mut Resolution, _: &[Bytes], _| {};
                    self.caller.each(&mut resolution, items, Access::Write, Resolution::resolve, on).await?;
                }
                Step::Unlock(keys) => {
                    let items = keys.into_iter().map(|key| (key.clone(), key)).collect();
                    let on = |_: &mut Resolution, _: &[Bytes], _| {};
                    self.caller.each(&mut resolution, items, Access::Write, Resolution::unlock, on).await?;
                }
                Step::Finished => {
                    let nothing = || Error::Protocol("a resolution ended without a verdict".into());
                    return verdict.ok_or_else(nothing);
                }
            }
        }
    }
}

/// What reads say about locks.
fn context(passes: &Passes) -> pb::Context {
    pb::Context {
        resolved_locks: passes.over.clone(),
        committed_locks: passes.committed.clone(),
        ..Default::default()
    }
}

fn mutation(op: pb::Op, key: Bytes, value: Bytes) -> pb::Mutation {
    pb::Mutation { op: op.into(), key, value, ..Default::default() }
}

/// The wire key of a key's number, spread over the regions there are at the start.
pub fn wire_key(plan: &WorldPlan, key: Key) -> Bytes {
    let prefix = WorldPlan::prefix(key % plan.regions);
    Bytes::from(vec![prefix, b'k', (key / plan.regions) as u8 * 16])
}

fn encode(value: &Value) -> Bytes {
    value.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>().into()
}

fn decode(bytes: &[u8]) -> Value {
    let numbers = bytes.chunks_exact(8);
    numbers.map(|number| number.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))).collect()
}
