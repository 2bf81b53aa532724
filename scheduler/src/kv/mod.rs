//! The metadata store of the scheduler, behind one small trait.
//!
//! `Kv` is an ordered map of bytes with atomic, conditional batches. Everything the scheduler must remember
//! (cluster id, id window, timestamp window, stores, regions, keyspaces) goes through it as a [`Txn`].
//!
//! Invariants an implementation keeps:
//! - a `Txn` is applied wholly or not at all, and its conditions are checked against the state just before it;
//! - when `commit` returns Ok for a `Synced` txn, its writes survive a power cut;
//! - a failed condition is `KvError::Conflict`: somebody else writes the same data, and the caller must stop;
//! - where several schedulers share the data, a commit of one that does not lead is `KvError::NotLeader`.
//!
//! Calls block. Only the start of a leadership and the metadata writer thread make them.

pub mod embedded_kv;
pub mod etcd_kv;
pub mod etcd_pool;
pub mod location;
pub mod mem_kv;
pub mod records;

use bytes::Bytes;

/// Why a metadata call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KvError {
    /// A condition of the txn does not hold.
    #[error(
        "metadata key {key:?} was changed by somebody else: is another scheduler using the same metadata?"
    )]
    Conflict { key: String },
    /// The directory is locked by another process (or by another server in this one).
    #[error(
        "data directory {dir} is in use by another scheduler: stop it, or choose another --data-dir ({cause})"
    )]
    InUse { dir: String, cause: String },
    /// The disk or the database refused.
    #[error("metadata storage failed: {0}; check the disk of the data directory, then restart the scheduler")]
    Storage(String),
    /// Another scheduler leads, or none does. Clients of the field look for these two words.
    #[error("not leader")]
    NotLeader,
    /// No member of etcd has answered in time.
    #[error("etcd cannot be reached ({0}); check that most of its members run")]
    Unreachable(String),
    /// etcd does not do what it is asked.
    #[error("etcd refuses: {0}; check its space, its alarms and its access rules")]
    Refused(String),
}

/// What must hold for a txn to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key has no value.
    Absent(Bytes),
    /// The key has exactly this value.
    Equals(Bytes, Bytes),
}

impl Condition {
    /// The key the condition is about.
    pub fn key(&self) -> &Bytes {
        match self {
            Condition::Absent(key) | Condition::Equals(key, _) => key,
        }
    }

    /// Whether the condition holds for the present value of its key.
    pub fn holds(&self, value: Option<&[u8]>) -> bool {
        match self {
            Condition::Absent(_) => value.is_none(),
            Condition::Equals(_, want) => value == Some(want.as_ref()),
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put(Bytes, Bytes),
    Delete(Bytes),
}

impl Op {
    /// The key that is changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Op::Put(key, _) | Op::Delete(key) => key,
        }
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        match self {
            Op::Put(key, value) => key.len() + value.len(),
            Op::Delete(key) => key.len(),
        }
    }
}

/// Whether a txn must be on the disk before `commit` returns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// May be lost in a power cut: only for what heartbeats rebuild.
    #[default]
    Buffered,
    /// On the disk before `commit` returns.
    Synced,
}

/// An atomic batch with conditions.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    pub conditions: Vec<Condition>,
    pub ops: Vec<Op>,
    pub durability: Durability,
}

impl Txn {
    /// A txn that must be durable.
    pub fn synced(ops: Vec<Op>) -> Txn {
        Txn { conditions: Vec::new(), ops, durability: Durability::Synced }
    }

    /// Adds a condition.
    pub fn when(mut self, condition: Condition) -> Txn {
        self.conditions.push(condition);
        self
    }

    /// Appends `other`, which was made after `self`: both are then applied in one go, at the stricter durability.
    pub fn append(&mut self, other: Txn) {
        self.conditions.extend(other.conditions);
        self.ops.extend(other.ops);
        self.durability = self.durability.max(other.durability);
    }
}

/// Up to where txns are joined before they are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchMax {
    /// Operations.
    pub ops: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

/// Key and value of one stored record.
pub type Pair = (Bytes, Bytes);

/// Ordered, durable metadata. See the module for the rules.
pub trait Kv: Send + Sync + 'static {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// Up to `limit` pairs with `start <= key < end`, in key order.
    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, KvError>;

    /// Applies `txn` wholly, or fails and changes nothing. After `Unreachable` it is not known which.
    fn commit(&self, txn: &Txn) -> Result<(), KvError>;

    /// The largest txn that is worth joining from smaller ones.
    fn batch_max(&self) -> BatchMax {
        BatchMax { ops: 4096, bytes: 4 << 20 }
    }
}

#[cfg(test)]
mod tests {
    use super::embedded_kv::EmbeddedKv;
    use super::mem_kv::MemKv;
    use super::*;

    fn b(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn both(check: impl Fn(&dyn Kv)) {
        check(&MemKv::default());
        let dir = tempfile::tempdir().unwrap();
        check(&EmbeddedKv::open(dir.path()).unwrap());
    }

    #[test]
    fn range_is_ordered_half_open_and_limited() {
        both(|kv| {
            let ops = ["b", "a", "c", "d"].map(|k| Op::Put(b(k), b("v"))).to_vec();
            kv.commit(&Txn::synced(ops)).unwrap();
            let keys = |limit| -> Vec<Bytes> {
                kv.range(b"a", b"d", limit).unwrap().into_iter().map(|(key, _)| key).collect()
            };
            assert_eq!(keys(10), [b("a"), b("b"), b("c")]);
            assert_eq!(keys(2), [b("a"), b("b")]);
        });
    }

    #[test]
    fn failed_condition_changes_nothing() {
        both(|kv| {
            kv.commit(&Txn::synced(vec![Op::Put(b("k"), b("1"))])).unwrap();
            let txn = Txn::synced(vec![Op::Put(b("x"), b("1")), Op::Delete(b("k"))]);
            for condition in [Condition::Absent(b("k")), Condition::Equals(b("k"), b("2"))] {
                let outcome = kv.commit(&txn.clone().when(condition));
                assert!(matches!(outcome, Err(KvError::Conflict { .. })), "{outcome:?}");
            }
            assert_eq!(kv.get(b"x").unwrap(), None);
            assert_eq!(kv.get(b"k").unwrap(), Some(b("1")));
            kv.commit(&txn.when(Condition::Equals(b("k"), b("1")))).unwrap();
            assert_eq!(kv.get(b"k").unwrap(), None);
        });
    }

    #[test]
    fn later_ops_of_an_appended_txn_win() {
        both(|kv| {
            let mut txn = Txn { ops: vec![Op::Put(b("k"), b("1"))], ..Txn::default() };
            txn.append(Txn::synced(vec![Op::Put(b("k"), b("2"))]));
            assert_eq!(txn.durability, Durability::Synced);
            kv.commit(&txn).unwrap();
            assert_eq!(kv.get(b"k").unwrap(), Some(b("2")));
        });
    }

    #[test]
    fn embedded_metadata_survives_reopening_and_refuses_a_second_opener() {
        let dir = tempfile::tempdir().unwrap();
        let kv = EmbeddedKv::open(dir.path()).unwrap();
        kv.commit(&Txn::synced(vec![Op::Put(b("k"), b("1"))])).unwrap();
        let second = EmbeddedKv::open(dir.path()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(second.contains("is in use by another scheduler"), "{second}");
        drop(kv);
        assert_eq!(EmbeddedKv::open(dir.path()).unwrap().get(b"k").unwrap(), Some(b("1")));
    }
}
