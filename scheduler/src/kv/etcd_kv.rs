//! Metadata of several schedulers in etcd, for the one that leads.
//!
//! Owns the fence: every commit compares the create revision of the leader key, so a scheduler that does not lead
//! any more changes nothing, however late its write arrives. Commits are numbered in a record of their own that
//! each one compares and raises. So a commit that is sent to a second member because the first one was silent
//! happens once, and never after a later one. Commits come from one thread, one after the other.
//!
//! A commit that fails ends the handle's use: its outcome may be unknown. The next leader reads what is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Client, Compare, CompareOp, GetOptions, GetResponse, TxnOp, TxnOpResponse, TxnResponse};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::etcd_pool::{EtcdError, EtcdPool};
use super::{BatchMax, Condition, Kv, KvError, Op, Pair, Txn};

const READ_WITHIN: Duration = Duration::from_secs(5);
/// Much longer than a leader without an answer from etcd leads.
const COMMIT_WITHIN: Duration = Duration::from_secs(10);
/// Pairs read at once; fewer when they do not fit into a message.
const PAGE: usize = 1024;
/// etcd takes 128 operations at one level of a transaction, fewer on the levels below.
const LEVEL_OPS: usize = 60;

/// The keys of one cluster.
#[derive(Debug, Clone)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// Keys under `root`, which ends without a slash.
    pub fn new(root: &str) -> Keys {
        Keys { root: root.into() }
    }

    /// Under this lie the leader and the members.
    pub fn election(&self) -> String {
        format!("{}/election/", self.root)
    }

    /// Who leads; gone with its lease.
    pub fn leader(&self) -> String {
        format!("{}/election/leader", self.root)
    }

    /// Who shall lead next; short-lived.
    pub fn next(&self) -> String {
        format!("{}/election/next", self.root)
    }

    /// Under this lie the members, by name.
    pub fn members(&self) -> String {
        format!("{}/election/member/", self.root)
    }

    /// The number of the last commit.
    fn commits(&self) -> String {
        format!("{}/commits", self.root)
    }

    /// A record.
    pub fn data(&self, key: &[u8]) -> Vec<u8> {
        [self.root.as_bytes(), b"/data/", key].concat()
    }
}

/// What makes a commit the leader's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The revision at which the leader key was created.
    pub revision: i64,
}

/// etcd behind [`Kv`].
pub struct EtcdKv {
    pool: Arc<EtcdPool>,
    runtime: Handle,
    keys: Keys,
    fence: Fence,
    committed: AtomicU64,
    /// Cancelled when the leadership is over: calls that wait then fail.
    ended: CancellationToken,
}

impl EtcdKv {
    /// A handle for the leader whose key was created at the fence's revision. Needs a tokio runtime, and must be
    /// used from threads that do not belong to it.
    pub fn new(pool: Arc<EtcdPool>, keys: Keys, fence: Fence, ended: CancellationToken) -> EtcdKv {
        EtcdKv { pool, runtime: Handle::current(), keys, fence, committed: AtomicU64::new(0), ended }
    }

    /// Makes a call, unless the leadership ends first: that is the outer error.
    fn call<T, F, Fut>(&self, within: Duration, attempt: F) -> Result<Result<T, EtcdError>, KvError>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let call = self.ended.run_until_cancelled(self.pool.call(within, attempt));
        self.runtime.block_on(call).ok_or(KvError::NotLeader)
    }

    /// The value of the commit record after `number` commits.
    fn mark(&self, number: u64) -> String {
        format!("{}:{number}", self.fence.revision)
    }

    fn compares(&self, number: u64, conditions: &[Condition]) -> Vec<Compare> {
        let (leader, commits) = (self.keys.leader(), self.keys.commits());
        let mut compares = vec![Compare::create_revision(leader, CompareOp::Equal, self.fence.revision)];
        compares.push(match number {
            1 => Compare::mod_revision(commits, CompareOp::Less, self.fence.revision),
            _ => Compare::value(commits, CompareOp::Equal, self.mark(number - 1)),
        });
        compares.extend(conditions.iter().map(|condition| match condition {
            Condition::Absent(key) => Compare::create_revision(self.keys.data(key), CompareOp::Equal, 0),
            Condition::Equals(key, value) => {
                Compare::value(self.keys.data(key), CompareOp::Equal, value.as_ref())
            }
        }));
        compares
    }

    /// What to do, each key once, since etcd refuses a transaction that changes a key twice: the last change wins.
    fn changes(&self, number: u64, ops: &[Op]) -> Result<Vec<TxnOp>, KvError> {
        let last: BTreeMap<&Bytes, &Op> = ops.iter().map(|op| (op.key(), op)).collect();
        let change = |op: &&Op| match op {
            Op::Put(key, value) => TxnOp::put(self.keys.data(key), value.as_ref(), None),
            Op::Delete(key) => TxnOp::delete(self.keys.data(key), None),
        };
        let mut changes: Vec<TxnOp> = last.values().map(change).collect();
        if changes.len() > LEVEL_OPS {
            let nested = |ops: &[TxnOp]| TxnOp::txn(etcd_client::Txn::new().and_then(ops));
            changes = changes.chunks(LEVEL_OPS).map(nested).collect();
        }
        if changes.len() > LEVEL_OPS {
            return Err(KvError::Refused(format!("a change of {} records is too large", last.len())));
        }
        changes.push(TxnOp::put(self.keys.commits(), self.mark(number), None));
        Ok(changes)
    }

    /// Judges a transaction whose comparisons failed, from what the leader and commit records hold.
    fn judge(&self, response: &TxnResponse, number: u64, txn: &Txn) -> Result<(), KvError> {
        let found = response.op_responses();
        let record = |at: usize| match found.get(at) {
            Some(TxnOpResponse::Get(got)) => got.kvs().first(),
            _ => None,
        };
        if record(1).is_some_and(|mark| mark.value() == self.mark(number).as_bytes()) {
            return Ok(()); // An attempt that seemed lost has arrived.
        }
        if record(0).is_none_or(|leader| leader.create_revision() != self.fence.revision) {
            return Err(KvError::NotLeader);
        }
        let key = txn.conditions.first().map_or("commits".into(), |c| String::from_utf8_lossy(c.key()));
        Err(KvError::Conflict { key: key.into_owned() })
    }

    fn read_page(
        &self,
        from: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Result<GetResponse, EtcdError>, KvError> {
        let options = GetOptions::new().with_range(end).with_limit(limit as i64);
        self.call(READ_WITHIN, |mut client| {
            let (from, options) = (from.to_vec(), options.clone());
            async move { client.get(from, Some(options)).await }
        })
    }
}

impl Kv for EtcdKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let key = self.keys.data(key);
        let mut found = self.call(READ_WITHIN, |mut client| {
            let key = key.clone();
            async move { client.get(key, None).await }
        })??;
        Ok(found.take_kvs().pop().map(|kv| Bytes::from(kv.into_key_value().1)))
    }

    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let cut = self.keys.data(b"").len();
        let (mut from, end) = (self.keys.data(start), self.keys.data(end));
        let (mut pairs, mut page) = (Vec::new(), PAGE);
        while from < end && pairs.len() < limit {
            let want = page.min(limit - pairs.len());
            let mut found = match self.read_page(&from, &end, want)? {
                // The page is larger than a message may be.
                Err(EtcdError::Refused { code: Code::OutOfRange | Code::ResourceExhausted, .. })
                    if want > 1 =>
                {
                    page = want / 2;
                    continue;
                }
                other => other?,
            };
            let more = found.more();
            for kv in found.take_kvs() {
                let (key, value) = kv.into_key_value();
                from = [key.as_slice(), &[0]].concat();
                pairs.push((Bytes::from(key).slice(cut..), Bytes::from(value)));
            }
            if !more {
                break;
            }
        }
        Ok(pairs)
    }

    fn commit(&self, txn: &Txn) -> Result<(), KvError> {
        let number = self.committed.load(Ordering::Relaxed) + 1;
        let look = [TxnOp::get(self.keys.leader(), None), TxnOp::get(self.keys.commits(), None)];
        let request = etcd_client::Txn::new()
            .when(self.compares(number, &txn.conditions))
            .and_then(self.changes(number, &txn.ops)?)
            .or_else(look);
        let response = self.call(COMMIT_WITHIN, |mut client| {
            let request = request.clone();
            async move { client.txn(request).await }
        })??;
        if !response.succeeded() {
            self.judge(&response, number, txn)?;
        }
        self.committed.store(number, Ordering::Relaxed);
        Ok(())
    }

    fn batch_max(&self) -> BatchMax {
        // etcd takes requests of 1.5 MiB.
        BatchMax { ops: LEVEL_OPS, bytes: 512 << 10 }
    }
}
