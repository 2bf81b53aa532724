//! The lock record: one uncommitted change of a key, or the claim of a pessimistic transaction on it.
//!
//! Layout: format (1 byte), kind (1 byte), flags (1 byte), start timestamp, time to live, transaction size, for-update
//! timestamp, minimum commit timestamp, timestamp of the last change (numbers of variable length), primary key, then
//! what the flags announce: short value, secondary keys.

use bytes::Bytes;
use kvproto::ts::Timestamp;

use super::codec::{self, Input, put_bytes, put_u64};
use super::write::WriteKind;
use crate::engine::EngineError;

/// The format this build writes.
pub const FORMAT: u8 = 1;

const HAS_VALUE: u8 = 1;
const ASYNC_COMMIT: u8 = 2;
const FLAGS: u8 = HAS_VALUE | ASYNC_COMMIT;

/// What the transaction wants with the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LockKind {
    Put = 1,
    Delete = 2,
    /// Nobody else may change the key at the same time.
    Lock = 3,
    /// Taken before it is known what will be written.
    Pessimistic = 4,
}

impl LockKind {
    fn from_u8(n: u8) -> Option<LockKind> {
        [LockKind::Put, LockKind::Delete, LockKind::Lock, LockKind::Pessimistic]
            .into_iter()
            .find(|kind| *kind as u8 == n)
    }

    /// What committing the lock leaves behind; `None` for one that is never committed.
    pub fn committed(self) -> Option<WriteKind> {
        match self {
            LockKind::Put => Some(WriteKind::Put),
            LockKind::Delete => Some(WriteKind::Delete),
            LockKind::Lock => Some(WriteKind::Lock),
            LockKind::Pessimistic => None,
        }
    }
}

/// See the file's head. Timestamps are those of the oracle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    pub kind: LockKind,
    pub start_ts: u64,
    /// Wire key of the lock that decides the transaction's fate.
    pub primary: Bytes,
    /// Milliseconds after the start timestamp's wall time for which the transaction counts as alive.
    pub ttl: u64,
    /// Number of keys of the transaction, as its client says.
    pub txn_size: u64,
    /// Up to which timestamp a pessimistic transaction has seen the key; 0 for an optimistic one.
    pub for_update_ts: u64,
    /// The transaction commits at this timestamp or later; 0 when nothing is promised.
    pub min_commit_ts: u64,
    /// Commit timestamp of the newest version with data below this lock; 0 when it is not known.
    pub last_change_ts: u64,
    /// A value that stands in the lock itself.
    pub short_value: Option<Bytes>,
    /// `Some` for async commit: the transaction is committed once all its keys are locked. Only the primary names the
    /// others.
    pub secondaries: Option<Vec<Bytes>>,
}

impl Lock {
    /// A lock of `start_ts` with nothing special about it.
    pub fn new(kind: LockKind, start_ts: u64, primary: Bytes, ttl: u64) -> Lock {
        Lock {
            kind,
            start_ts,
            primary,
            ttl,
            txn_size: 0,
            for_update_ts: 0,
            min_commit_ts: 0,
            last_change_ts: 0,
            short_value: None,
            secondaries: None,
        }
    }

    pub fn is_pessimistic(&self) -> bool {
        self.kind == LockKind::Pessimistic
    }

    pub fn is_async_commit(&self) -> bool {
        self.secondaries.is_some()
    }

    /// True when the transaction has not been heard of for longer than its time to live, by the wall time of
    /// `current_ts`. [`u64::MAX`] is past every lock's life.
    pub fn is_expired(&self, current_ts: u64) -> bool {
        let until = Timestamp::new(self.start_ts).physical_ms().saturating_add(self.ttl);
        current_ts == u64::MAX || until < Timestamp::new(current_ts).physical_ms()
    }

    /// Kind and start timestamp of a stored lock alone, without looking at the rest or copying: for walks over many
    /// locks.
    pub fn peek(stored: &[u8]) -> Option<(LockKind, u64)> {
        let (&[format, kind, _flags], rest) = stored.split_first_chunk::<3>()?;
        let kind = LockKind::from_u8(kind).filter(|_| format == FORMAT)?;
        Some((kind, codec::peek_u64(rest)?.0))
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let value = self.short_value.as_ref().map_or(0, |v| v.len() + 2);
        let keys = self.secondaries.iter().flatten().map(|key| key.len() + 3).sum::<usize>();
        let mut buf = Vec::with_capacity(3 + 6 * 10 + self.primary.len() + 3 + value + keys);
        let flags = if self.short_value.is_some() { HAS_VALUE } else { 0 }
            | if self.secondaries.is_some() { ASYNC_COMMIT } else { 0 };
        buf.extend_from_slice(&[FORMAT, self.kind as u8, flags]);
        let numbers = [
            self.start_ts,
            self.ttl,
            self.txn_size,
            self.for_update_ts,
            self.min_commit_ts,
            self.last_change_ts,
        ];
        numbers.into_iter().for_each(|n| put_u64(&mut buf, n));
        put_bytes(&mut buf, &self.primary);
        if let Some(value) = &self.short_value {
            put_bytes(&mut buf, value);
        }
        if let Some(secondaries) = &self.secondaries {
            put_u64(&mut buf, secondaries.len() as u64);
            secondaries.iter().for_each(|key| put_bytes(&mut buf, key));
        }
        buf
    }

    /// Reads a stored lock; shares its memory.
    pub fn decode(stored: Bytes) -> Result<Lock, EngineError> {
        match stored.first() {
            Some(&FORMAT) => {}
            Some(format) => {
                return Err(EngineError::Corrupt(format!(
                    "lock format {format} is newer than this build understands; upgrade this store"
                )));
            }
            None => return Err(EngineError::Corrupt("an empty lock".into())),
        }
        Lock::read(stored).ok_or_else(|| EngineError::Corrupt("a lock that cannot be read".into()))
    }

    fn read(stored: Bytes) -> Option<Lock> {
        let mut input = Input(stored);
        let _format = input.u8()?;
        let kind = LockKind::from_u8(input.u8()?)?;
        let flags = input.u8()?;
        if flags & !FLAGS != 0 {
            return None;
        }
        let (start_ts, ttl, txn_size) = (input.u64()?, input.u64()?, input.u64()?);
        let (for_update_ts, min_commit_ts, last_change_ts) = (input.u64()?, input.u64()?, input.u64()?);
        let primary = input.bytes()?;
        let short_value = if flags & HAS_VALUE != 0 { Some(input.bytes()?) } else { None };
        let secondaries = if flags & ASYNC_COMMIT != 0 {
            let count = input.u64()?;
            let mut keys = Vec::new();
            for _ in 0..count {
                keys.push(input.bytes()?);
            }
            Some(keys)
        } else {
            None
        };
        input.end()?;
        Some(Lock {
            kind,
            start_ts,
            primary,
            ttl,
            txn_size,
            for_update_ts,
            min_commit_ts,
            last_change_ts,
            short_value,
            secondaries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Lock {
        Lock {
            txn_size: u64::MAX,
            for_update_ts: 9,
            min_commit_ts: 10,
            last_change_ts: 3,
            short_value: Some("value".into()),
            secondaries: Some(vec!["a".into(), Bytes::new(), vec![7; 300].into()]),
            ..Lock::new(LockKind::Put, 1 << 60, "primary".into(), 3_000)
        }
    }

    #[test]
    fn locks_read_back() {
        let bare = Lock::new(LockKind::Pessimistic, 5, Bytes::new(), 0);
        for lock in [bare.clone(), full(), Lock { secondaries: Some(vec![]), ..bare }] {
            assert_eq!(Lock::peek(&lock.encode()), Some((lock.kind, lock.start_ts)));
            assert_eq!(Lock::decode(lock.encode().into()).unwrap(), lock);
        }
    }

    #[test]
    fn a_lock_expires_after_its_time_to_live_and_at_the_end_of_time() {
        let at = |ms: u64| ms << kvproto::ts::LOGICAL_BITS;
        let lock = Lock::new(LockKind::Put, at(1_000) + 5, "p".into(), 100);
        assert!(!lock.is_expired(0) && !lock.is_expired(at(1_100) + 7) && lock.is_expired(at(1_101)));
        let immortal = Lock { ttl: u64::MAX, ..lock };
        assert!(!immortal.is_expired(u64::MAX - 1) && immortal.is_expired(u64::MAX));
    }

    #[test]
    fn damage_is_an_error_and_no_panic() {
        let good = full().encode();
        for n in 0..good.len() {
            assert!(Lock::decode(Bytes::copy_from_slice(&good[..n])).is_err(), "{n} bytes");
            let mut bad = good.clone();
            bad[n] ^= 0xff;
            let (_, _) = (Lock::peek(&bad), Lock::decode(bad.into()));
        }
        let mut newer = good;
        newer[0] = 9;
        assert!(Lock::decode(newer.into()).unwrap_err().to_string().contains("upgrade"));
    }
}
