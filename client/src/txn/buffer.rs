//! What a transaction has changed and locked so far. Pure.
//!
//! Owns one entry per wire key, in key order. Invariant: what a later operation on a key makes of an earlier one commits
//! as if both had been executed one after the other.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use kvproto::kvrpcpb::{Assertion, Mutation, Op};

use super::committer::Write;
use crate::error::{Error, Result};
use crate::request::shard::Span;

/// What will be done to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Put(Bytes),
    /// Like a put, if the key does not exist yet.
    Insert(Bytes),
    Delete,
    /// Inserted and deleted again: it must not have existed.
    CheckNotExists,
    /// Read by a transaction that depends on it.
    Lock,
}

#[derive(Debug, Clone)]
struct Entry {
    change: Change,
    /// A pessimistic lock is held.
    locked: bool,
    /// The transaction depends on the key, whatever else becomes of it.
    needed: bool,
}

impl Entry {
    const LOCK: Entry = Entry { change: Change::Lock, locked: false, needed: false };
}

/// The changes of one transaction.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    entries: BTreeMap<Bytes, Entry>,
    /// Entries that change something.
    changes: usize,
}

impl Buffer {
    /// What the transaction itself has made of `key`: `Some(None)` when it was deleted, `None` when the snapshot tells.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        match &self.entries.get(key)?.change {
            Change::Put(value) | Change::Insert(value) => Some(Some(value.clone())),
            Change::Delete | Change::CheckNotExists => Some(None),
            Change::Lock => None,
        }
    }

    pub(crate) fn put(&mut self, key: Bytes, value: Bytes) {
        let change = match self.change(&key) {
            Some(Change::Insert(_) | Change::CheckNotExists) => Change::Insert(value),
            _ => Change::Put(value),
        };
        self.set(key, change);
    }

    /// Fails when the transaction itself has given `key` a value.
    pub(crate) fn insert(&mut self, key: Bytes, value: Bytes) -> Result<()> {
        let change = match self.change(&key) {
            Some(Change::Put(_) | Change::Insert(_)) => return Err(Error::AlreadyExists { key }),
            Some(Change::Delete) => Change::Put(value),
            Some(Change::CheckNotExists | Change::Lock) | None => Change::Insert(value),
        };
        self.set(key, change);
        Ok(())
    }

    pub(crate) fn delete(&mut self, key: Bytes) {
        let change = match self.change(&key) {
            Some(Change::Insert(_) | Change::CheckNotExists) => Change::CheckNotExists,
            _ => Change::Delete,
        };
        self.set(key, change);
    }

    /// Lets the commit fail when somebody else writes `key` in the meantime.
    pub(crate) fn lock(&mut self, key: Bytes) {
        self.entries.entry(key).or_insert(Entry::LOCK).needed = true;
    }

    /// A pessimistic lock on `key` is held.
    pub(crate) fn set_locked(&mut self, key: Bytes) {
        self.entries.entry(key).or_insert(Entry::LOCK).locked = true;
    }

    /// Whether a pessimistic lock on `key` is held.
    pub(crate) fn is_locked(&self, key: &[u8]) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.locked)
    }

    /// The keys on which pessimistic locks are held.
    pub(crate) fn locked_keys(&self) -> Vec<Bytes> {
        self.entries.iter().filter(|(_, entry)| entry.locked).map(|(key, _)| key.clone()).collect()
    }

    /// Whether nothing was changed or locked.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether anything is to be changed, rather than only locked.
    pub(crate) fn has_changes(&self) -> bool {
        self.changes > 0
    }

    /// The keys in `span` that the transaction has changed, with their new values.
    pub(crate) fn range(&self, span: &Span) -> Vec<(Bytes, Option<Bytes>)> {
        if span.is_empty() {
            return Vec::new();
        }
        let end = match span.end.is_empty() {
            true => Bound::Unbounded,
            false => Bound::Excluded(&span.end[..]),
        };
        let entries = self.entries.range::<[u8], _>((Bound::Included(&span.start[..]), end));
        entries.filter_map(|(key, _)| Some((key.clone(), self.get(key)?))).collect()
    }

    /// Everything, in key order, as it will be prewritten.
    pub(crate) fn into_writes(self) -> Vec<Write> {
        let write = |(key, Entry { change, locked, needed }): (Bytes, Entry)| {
            // A lock that checks as well, where a check alone would let others write until the commit.
            let assertion = match (&change, locked, needed) {
                (Change::CheckNotExists, false, true) => Assertion::NotExist,
                _ => Assertion::None,
            };
            let (op, value) = match change {
                // That it does not exist was checked when it was locked.
                Change::Insert(value) if locked => (Op::Put, value),
                Change::CheckNotExists if locked || needed => (Op::Lock, Bytes::new()),
                Change::Put(value) => (Op::Put, value),
                Change::Insert(value) => (Op::Insert, value),
                Change::Delete => (Op::Del, Bytes::new()),
                Change::CheckNotExists => (Op::CheckNotExists, Bytes::new()),
                Change::Lock => (Op::Lock, Bytes::new()),
            };
            Write { mutation: Mutation { op: op.into(), key, value, assertion: assertion.into() }, locked }
        };
        self.entries.into_iter().map(write).collect()
    }

    fn change(&self, key: &[u8]) -> Option<&Change> {
        self.entries.get(key).map(|entry| &entry.change)
    }

    fn set(&mut self, key: Bytes, change: Change) {
        let entry = self.entries.entry(key).or_insert(Entry::LOCK);
        self.changes += usize::from(entry.change == Change::Lock);
        entry.change = change;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays operations on key k and returns what is prewritten.
    fn op(play: impl FnOnce(&mut Buffer) -> Result<()>) -> Op {
        let mut buffer = Buffer::default();
        play(&mut buffer).expect("operations that fit");
        let writes = buffer.into_writes();
        assert_eq!(writes.len(), 1);
        writes[0].mutation.op()
    }

    fn insert(buffer: &mut Buffer) -> Result<()> {
        buffer.insert("k".into(), "v".into())
    }

    fn put(buffer: &mut Buffer) -> Result<()> {
        buffer.put("k".into(), "v".into());
        Ok(())
    }

    fn delete(buffer: &mut Buffer) -> Result<()> {
        buffer.delete("k".into());
        Ok(())
    }

    #[test]
    fn later_operations_build_on_earlier_ones() {
        assert_eq!(op(insert), Op::Insert);
        assert_eq!(op(|b| insert(b).and_then(|()| put(b))), Op::Insert);
        assert_eq!(op(|b| insert(b).and_then(|()| delete(b))), Op::CheckNotExists);
        assert_eq!(op(|b| insert(b).and_then(|()| delete(b)).and_then(|()| insert(b))), Op::Insert);
        assert_eq!(op(|b| insert(b).and_then(|()| delete(b)).and_then(|()| put(b))), Op::Insert);
        assert_eq!(op(|b| delete(b).and_then(|()| insert(b))), Op::Put);
        assert_eq!(op(|b| put(b).and_then(|()| delete(b))), Op::Del);
        let mut buffer = Buffer::default();
        buffer.put("k".into(), "v".into());
        assert!(matches!(insert(&mut buffer), Err(Error::AlreadyExists { .. })));
    }

    #[test]
    fn a_lock_changes_nothing_and_gives_way_to_changes() {
        let mut buffer = Buffer::default();
        buffer.lock("k".into());
        assert!(!buffer.has_changes());
        assert_eq!(buffer.get(b"k"), None);
        buffer.delete("k".into());
        buffer.lock("k".into());
        assert!(buffer.has_changes());
        assert_eq!(buffer.get(b"k"), Some(None));
    }

    #[test]
    fn what_was_checked_under_a_lock_is_not_checked_again() {
        let locked = |play: fn(&mut Buffer) -> Result<()>| {
            op(|buffer| {
                buffer.set_locked("k".into());
                play(buffer)
            })
        };
        assert_eq!(locked(insert), Op::Put);
        assert_eq!(locked(|b| insert(b).and_then(|()| delete(b))), Op::Lock);
        assert_eq!(locked(|_| Ok(())), Op::Lock);
    }

    #[test]
    fn what_the_transaction_depends_on_stays_locked() {
        let mut buffer = Buffer::default();
        buffer.lock("k".into());
        insert(&mut buffer).expect("nothing is there yet");
        buffer.delete("k".into());
        let writes = buffer.into_writes();
        assert_eq!(writes[0].mutation.op(), Op::Lock);
        assert_eq!(writes[0].mutation.assertion(), Assertion::NotExist, "the insert was right");
        assert_eq!(op(|b| insert(b).and_then(|()| delete(b)).map(|()| b.lock("k".into()))), Op::Lock);
    }

    #[test]
    fn ranges_show_changes_only() {
        let mut buffer = Buffer::default();
        for key in ["a", "b", "d"] {
            buffer.put(key.into(), key.into());
        }
        buffer.lock("c".into());
        buffer.delete("d".into());
        let span = |start: &'static str, end: &'static str| Span { start: start.into(), end: end.into() };
        let found = buffer.range(&span("b", ""));
        assert_eq!(found, [("b".into(), Some("b".into())), ("d".into(), None)]);
        assert_eq!(buffer.range(&span("b", "d")).len(), 1);
        assert_eq!(buffer.range(&span("d", "b")).len(), 0);
    }
}
