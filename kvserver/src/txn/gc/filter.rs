//! Which records of `write` and `default` nobody can need any more, decided in key order.
//!
//! With safe point S, and per user key from the newest record to the oldest: all at or above S stay; of the rest the
//! newest put or delete stays, because it is what a reader at S sees, and everything below it goes, with its long
//! value. Locks and rollbacks below S go: no transaction that they concern can come back. A delete below which nothing
//! lies goes as well, but only when it is certain that the whole of its key is in view; else an older put that was not in
//! view would come to light.
//!
//! Pure. Records that this build cannot read stay.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::filter::RecordFilter;
use crate::txn::mvcc::{Write, WriteKind, key, value};

/// How many keys of dropped values are handed over together.
const BATCH: usize = 512;

/// What was dropped, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Old versions: puts and deletes.
    pub versions: u64,
    /// Records of locks and rollbacks.
    pub marks: u64,
}

/// Takes what a filter leaves behind. Called from the threads of compactions.
pub trait Leftovers: Send + Sync {
    /// Keys of `default` whose records in `write` are gone.
    fn values(&self, keys: Vec<Vec<u8>>);

    /// False while more keys wait than should.
    fn has_room(&self) -> bool;

    /// Counts.
    fn count(&self, dropped: Dropped);
}

/// The filter of the family `write`. See the file's head.
pub struct WriteFilter {
    safe_point: u64,
    sees_all: bool,
    leftovers: Arc<dyn Leftovers>,
    /// The encoded user key of the last record.
    user: Vec<u8>,
    /// The version that readers at the safe point see has come by.
    is_anchored: bool,
    values: Vec<Vec<u8>>,
    dropped: Dropped,
}

impl WriteFilter {
    /// A filter up to `safe_point`; `sees_all` says that all records of a key come by.
    pub fn new(safe_point: u64, sees_all: bool, leftovers: Arc<dyn Leftovers>) -> WriteFilter {
        WriteFilter {
            safe_point,
            sees_all,
            leftovers,
            user: Vec::new(),
            is_anchored: false,
            values: Vec::new(),
            dropped: Dropped::default(),
        }
    }

    fn drop_version(&mut self, encoded: &[u8], stored: &[u8]) -> bool {
        // A record that cannot be read stays, and so does what it may belong to.
        let Ok(write) = Write::decode(Bytes::copy_from_slice(stored)) else { return true };
        if write.kind == WriteKind::Put && write.short_value.is_none() {
            // A filter that drops deletes must not stop half way: an old put would come to light.
            if !self.sees_all && !self.leftovers.has_room() {
                return true;
            }
            self.values.push(key::with_ts(encoded, write.start_ts));
            if self.values.len() >= BATCH {
                self.leftovers.values(std::mem::take(&mut self.values));
            }
        }
        self.dropped.versions += 1;
        false
    }

    /// Hands over what is left behind so far.
    pub fn flush(&mut self) {
        if !self.values.is_empty() {
            self.leftovers.values(std::mem::take(&mut self.values));
        }
        let dropped = std::mem::take(&mut self.dropped);
        if dropped != Dropped::default() {
            self.leftovers.count(dropped);
        }
    }
}

impl RecordFilter for WriteFilter {
    fn keeps(&mut self, stored_key: &[u8], stored: &[u8]) -> bool {
        let Some((encoded, ts)) = key::split(stored_key) else { return true };
        if encoded != &self.user[..] {
            self.user.clear();
            self.user.extend_from_slice(encoded);
            self.is_anchored = false;
        }
        if ts > self.safe_point {
            return true;
        }
        let Some((kind, _)) = Write::peek(stored) else { return true };
        match kind {
            WriteKind::Lock | WriteKind::Rollback if ts == self.safe_point => true,
            WriteKind::Lock | WriteKind::Rollback => {
                self.dropped.marks += 1;
                false
            }
            WriteKind::Put | WriteKind::Delete if self.is_anchored => self.drop_version(encoded, stored),
            WriteKind::Put => {
                self.is_anchored = true;
                true
            }
            WriteKind::Delete => {
                self.is_anchored = true;
                if self.sees_all { self.drop_version(encoded, stored) } else { true }
            }
        }
    }
}

impl Drop for WriteFilter {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The filter of the family `default`: notes of rollbacks below the safe point go. Values go with their records in
/// `write` only.
pub struct NoteFilter {
    pub safe_point: u64,
}

impl RecordFilter for NoteFilter {
    fn keeps(&mut self, stored_key: &[u8], stored: &[u8]) -> bool {
        let is_note = stored == [value::ROLLED_BACK];
        !is_note || key::split(stored_key).is_none_or(|(_, ts)| ts >= self.safe_point)
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::txn::mvcc::Key;

    #[derive(Default)]
    struct Seen(Mutex<(Vec<Vec<u8>>, Dropped)>);

    impl Leftovers for Seen {
        fn values(&self, keys: Vec<Vec<u8>>) {
            self.0.lock().0.extend(keys);
        }

        fn has_room(&self) -> bool {
            self.0.lock().0.len() < 2
        }

        fn count(&self, dropped: Dropped) {
            let mut seen = self.0.lock();
            seen.1.versions += dropped.versions;
            seen.1.marks += dropped.marks;
        }
    }

    fn record(kind: WriteKind, start_ts: u64, short: bool) -> Vec<u8> {
        let short_value = (kind == WriteKind::Put && short).then(|| Bytes::from_static(b"v"));
        Write { kind, start_ts, last_change_ts: 0, short_value }.encode()
    }

    /// Runs records of one key, `(kind, commit timestamp)` from new to old, and gives the timestamps that stay.
    fn kept(sees_all: bool, records: &[(WriteKind, u64)]) -> (Vec<u64>, Vec<u64>) {
        let (seen, key) = (Arc::new(Seen::default()), Key::new(Bytes::from_static(b"k")));
        let mut filter = WriteFilter::new(10, sees_all, seen.clone());
        let mut stays = Vec::new();
        for (kind, ts) in records {
            if filter.keeps(&key.with_ts(*ts), &record(*kind, ts - 1, false)) {
                stays.push(*ts);
            }
        }
        drop(filter);
        let values = seen.0.lock().0.iter().map(|key| key::split(key).unwrap().1).collect();
        (stays, values)
    }

    use WriteKind::{Delete, Lock, Put, Rollback};

    #[test]
    fn what_a_reader_at_the_safe_point_sees_stays() {
        assert_eq!(
            kept(false, &[(Put, 12), (Put, 9), (Put, 7), (Delete, 5), (Put, 3)]),
            (vec![12, 9], vec![6, 2])
        );
        assert_eq!(
            kept(false, &[(Put, 10), (Put, 9)]),
            (vec![10], vec![8]),
            "a version at the safe point itself"
        );
        assert_eq!(kept(false, &[(Put, 11), (Put, 12)]).0, [11, 12], "all above it");
        assert_eq!(
            kept(false, &[(Rollback, 11), (Lock, 10), (Rollback, 9), (Lock, 8), (Put, 7)]).0,
            [11, 10, 7]
        );
    }

    #[test]
    fn a_delete_goes_only_when_nothing_can_be_below_it() {
        assert_eq!(kept(false, &[(Put, 12), (Delete, 9), (Put, 7)]), (vec![12, 9], vec![6]));
        assert_eq!(kept(true, &[(Put, 12), (Delete, 9), (Put, 7)]), (vec![12], vec![6]));
        assert_eq!(kept(true, &[(Delete, 11), (Put, 7)]).0, [11, 7], "one above the safe point stays");
    }

    #[test]
    fn versions_with_long_values_wait_while_there_is_no_room_for_their_keys() {
        let seen: Arc<Seen> = Arc::default();
        seen.values(vec![Vec::new(); 2]);
        let (mut filter, key) = (WriteFilter::new(10, false, seen.clone()), Key::new("k".into()));
        let keeps =
            |filter: &mut WriteFilter, ts, short| filter.keeps(&key.with_ts(ts), &record(Put, ts - 1, short));
        assert!(keeps(&mut filter, 9, false));
        assert!(keeps(&mut filter, 8, false), "no room");
        assert!(!keeps(&mut filter, 7, true), "none needed");
        let mut all = WriteFilter::new(10, true, seen);
        assert!(keeps(&mut all, 9, false));
        assert!(!keeps(&mut all, 8, false), "all of a key or nothing");
    }

    #[test]
    fn what_cannot_be_read_stays() {
        let seen: Arc<Seen> = Arc::default();
        let mut filter = WriteFilter::new(10, true, seen);
        let mut newer = record(Put, 1, true);
        newer[0] = 99;
        assert!(filter.keeps(b"short", &newer));
        assert!(filter.keeps(&Key::new("k".into()).with_ts(5), &newer));
        assert!(
            filter.keeps(&Key::new("k".into()).with_ts(4), &record(Put, 3, true)),
            "it is the first known one"
        );
    }

    #[test]
    fn old_notes_of_rollbacks_go_and_values_stay() {
        let (mut filter, key) = (NoteFilter { safe_point: 10 }, Key::new("k".into()));
        assert!(!filter.keeps(&key.with_ts(9), &[value::ROLLED_BACK]));
        assert!(filter.keeps(&key.with_ts(10), &[value::ROLLED_BACK]));
        assert!(filter.keeps(&key.with_ts(9), &[value::VALUE, value::ROLLED_BACK]));
    }
}
