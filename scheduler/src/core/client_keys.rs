//! Keys that clients of the field keep with the scheduler, as they would in its etcd: few and small.
//!
//! Owns the keys and their revisions. The revision of the whole counts all changes, as etcd's does; it is the largest
//! one that a key has, since keys are never deleted here. Old values are not kept.
//!
//! Invariant: a stored key is at most [`KEY_MAX`] bytes, a value [`VALUE_MAX`], and there are at most [`KEYS_MAX`].

use std::collections::BTreeMap;

use bytes::Bytes;
use kvproto::mvccpb::KeyValue;

/// Limits, in bytes and in keys.
pub const KEY_MAX: usize = 1 << 10;
pub const VALUE_MAX: usize = 64 << 10;
pub const KEYS_MAX: usize = 1 << 10;

/// Where clients of the field look for the timestamp below which nobody may read, as decimal text. The scheduler sets
/// it; that others may set it too changes what such clients see, and no safe point.
pub const SAVED_SAFE_POINT: &[u8] = b"/tidb/store/gcworker/saved_safe_point";
/// Where the timestamp that applications agreed on is kept, as decimal text.
pub const EXTERNAL_TIMESTAMP: &[u8] = b"/kvasir/external_timestamp";
/// Keys below this are the scheduler's own.
const OWN_PREFIX: &[u8] = b"/kvasir/";

/// Why a key was not set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientKeyError {
    #[error("a key must not be empty")]
    EmptyKey,
    #[error("a key of {0} bytes is over the limit of {KEY_MAX}")]
    KeyTooLarge(usize),
    #[error("a value of {0} bytes is over the limit of {VALUE_MAX}")]
    ValueTooLarge(usize),
    #[error("there are {KEYS_MAX} keys already, and no more are kept")]
    TooMany,
    #[error("keys that begin with /kvasir/ are the scheduler's own")]
    Own,
}

/// Which keys are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Bytes,
    /// Empty for `start` alone; one zero byte for everything from `start` on.
    pub end: Bytes,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct ClientKeys {
    keys: BTreeMap<Bytes, KeyValue>,
    revision: i64,
}

impl ClientKeys {
    /// Takes in a stored key, at start.
    pub fn restore(&mut self, stored: KeyValue) {
        self.revision = self.revision.max(stored.mod_revision);
        self.keys.insert(stored.key.clone(), stored);
    }

    /// How many changes there have been.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Sets a key for a client. Returns what stands there now, and what stood there before.
    pub fn put(&mut self, key: Bytes, value: Bytes) -> Result<(KeyValue, Option<KeyValue>), ClientKeyError> {
        if key.starts_with(OWN_PREFIX) {
            return Err(ClientKeyError::Own);
        }
        self.set(key, value)
    }

    fn set(&mut self, key: Bytes, value: Bytes) -> Result<(KeyValue, Option<KeyValue>), ClientKeyError> {
        if key.is_empty() {
            return Err(ClientKeyError::EmptyKey);
        }
        if key.len() > KEY_MAX {
            return Err(ClientKeyError::KeyTooLarge(key.len()));
        }
        if value.len() > VALUE_MAX {
            return Err(ClientKeyError::ValueTooLarge(value.len()));
        }
        let before = self.keys.get(&key).cloned();
        if before.is_none() && self.keys.len() >= KEYS_MAX {
            return Err(ClientKeyError::TooMany);
        }
        Ok((self.keep(key, value), before))
    }

    fn keep(&mut self, key: Bytes, value: Bytes) -> KeyValue {
        let before = self.keys.get(&key);
        self.revision += 1;
        let now = KeyValue {
            key: key.clone(),
            value,
            create_revision: before.map_or(self.revision, |b| b.create_revision),
            mod_revision: self.revision,
            version: before.map_or(1, |b| b.version + 1),
            lease: 0,
        };
        self.keys.insert(key, now.clone());
        now
    }

    /// Sets a number of the scheduler itself, as decimal text, however many keys there are.
    pub fn keep_number(&mut self, key: &'static [u8], number: u64) -> KeyValue {
        self.keep(Bytes::from_static(key), Bytes::from(number.to_string()))
    }

    /// The keys of a range, in order.
    pub fn range(&self, range: &KeyRange) -> impl Iterator<Item = &KeyValue> {
        let is_in = {
            let (start, end) = (range.start.clone(), range.end.clone());
            move |key: &Bytes| match &end[..] {
                b"" => *key == start,
                b"\0" => true,
                end => key[..] < *end,
            }
        };
        self.keys.range(range.start.clone()..).take_while(move |(key, _)| is_in(key)).map(|(_, value)| value)
    }

    /// A number that is kept as decimal text; 0 when there is none.
    pub fn number(&self, key: &[u8]) -> u64 {
        let text = self.keys.get(key).and_then(|kept| std::str::from_utf8(&kept.value).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Raises such a number. Returns what stands there now, and what is to be stored when that is new.
    pub fn raise(&mut self, key: &'static [u8], to: u64) -> Result<(u64, Option<KeyValue>), ClientKeyError> {
        let old = self.number(key);
        if to <= old {
            return Ok((old, None));
        }
        let (now, _) = self.set(Bytes::from_static(key), Bytes::from(to.to_string()))?;
        Ok((to, Some(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(names: &[&'static str]) -> ClientKeys {
        let mut keys = ClientKeys::default();
        for name in names {
            keys.put(Bytes::from_static(name.as_bytes()), "v".into()).unwrap();
        }
        keys
    }

    fn found(keys: &ClientKeys, start: &'static str, end: &'static str) -> Vec<Bytes> {
        let range = KeyRange { start: start.into(), end: end.into() };
        keys.range(&range).map(|kv| kv.key.clone()).collect()
    }

    #[test]
    fn ranges_are_etcds() {
        let keys = filled(&["b", "a", "c"]);
        assert_eq!(found(&keys, "b", ""), ["b"]);
        assert_eq!(found(&keys, "bb", ""), Vec::<Bytes>::new());
        assert_eq!(found(&keys, "a", "c"), ["a", "b"]);
        assert_eq!(found(&keys, "b", "\0"), ["b", "c"]);
        assert_eq!(found(&keys, "\0", "\0"), ["a", "b", "c"]);
        assert_eq!(found(&keys, "c", "a"), Vec::<Bytes>::new(), "an end before the start");
        assert_eq!(found(&keys, "b", "b"), Vec::<Bytes>::new());
        assert_eq!(found(&keys, "", ""), Vec::<Bytes>::new());
    }

    #[test]
    fn revisions_count_changes_and_survive_a_restart() {
        let mut keys = filled(&["a", "b"]);
        let (now, before) = keys.put("a".into(), "w".into()).unwrap();
        assert_eq!((now.create_revision, now.mod_revision, now.version), (1, 3, 2));
        assert_eq!(before.unwrap().value, "v");
        let mut restored = ClientKeys::default();
        keys.range(&KeyRange { start: "\0".into(), end: "\0".into() })
            .cloned()
            .for_each(|kv| restored.restore(kv));
        assert_eq!(restored.revision(), 3);
        assert_eq!(restored.put("c".into(), "x".into()).unwrap().0.mod_revision, 4);
    }

    #[test]
    fn what_is_too_much_is_refused_and_changes_nothing() {
        let mut keys = filled(&["a"]);
        let refused = |keys: &mut ClientKeys, key: Bytes, value: Bytes| keys.put(key, value).unwrap_err();
        assert_eq!(refused(&mut keys, Bytes::new(), "v".into()), ClientKeyError::EmptyKey);
        let long = Bytes::from(vec![b'k'; KEY_MAX + 1]);
        assert_eq!(refused(&mut keys, long, "v".into()), ClientKeyError::KeyTooLarge(KEY_MAX + 1));
        let large = Bytes::from(vec![b'v'; VALUE_MAX + 1]);
        assert_eq!(refused(&mut keys, "b".into(), large), ClientKeyError::ValueTooLarge(VALUE_MAX + 1));
        assert_eq!(refused(&mut keys, "/kvasir/x".into(), "v".into()), ClientKeyError::Own);
        assert_eq!(keys.revision(), 1);
        for n in 1..KEYS_MAX {
            keys.put(Bytes::from(format!("n{n}")), "v".into()).unwrap();
        }
        assert_eq!(refused(&mut keys, "one more".into(), "v".into()), ClientKeyError::TooMany);
        assert!(keys.put("a".into(), "w".into()).is_ok(), "those that are there may change");
    }

    #[test]
    fn numbers_only_rise_and_what_is_no_number_is_none() {
        let mut keys = ClientKeys::default();
        assert_eq!(keys.number(EXTERNAL_TIMESTAMP), 0);
        assert!(matches!(keys.raise(EXTERNAL_TIMESTAMP, 7), Ok((7, Some(_)))));
        assert_eq!(keys.raise(EXTERNAL_TIMESTAMP, 5), Ok((7, None)));
        keys.put(SAVED_SAFE_POINT.into(), "nonsense".into()).unwrap();
        assert_eq!(keys.number(SAVED_SAFE_POINT), 0);
        assert_eq!(keys.keep_number(SAVED_SAFE_POINT, 3).value, "3");
        assert_eq!(keys.number(SAVED_SAFE_POINT), 3);
    }
}
