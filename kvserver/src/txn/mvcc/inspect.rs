//! What transactions have left on a key, for people who look for a fault: the lock, all versions, all long values.

use bytes::Bytes;

use super::key::{self, Key};
use super::scan::encoded_bounds;
use super::value::{self, Record};
use super::{Lock, Version, Write};
use crate::engine::{Cf, EngineError, IterOptions, ReadTier};
use crate::storage::RegionSnapshot;
use crate::txn::error::{TxnError, TxnResult};
use crate::txn::pairs::REPLY_BYTES_MAX;

/// Everything about one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRecords {
    pub lock: Option<Lock>,
    /// From the newest to the oldest, rollbacks included.
    pub versions: Vec<Version>,
    /// Values that stand apart from their versions, by the start timestamp of who wrote them, from the newest to the
    /// oldest.
    pub values: Vec<(u64, Bytes)>,
    /// Start timestamps of transactions that were rolled back at a timestamp where another one has its version.
    pub rollback_notes: Vec<u64>,
}

impl KeyRecords {
    /// True when no transaction has left anything here.
    pub fn is_empty(&self) -> bool {
        *self == KeyRecords::default()
    }
}

/// Everything about one wire key.
pub fn by_key(at: &RegionSnapshot, tier: ReadTier, user: &Bytes) -> TxnResult<KeyRecords> {
    let key = Key::new(user.clone());
    let lock = at.snapshot.get(Cf::Lock, key.encoded(), tier)?.map(Lock::decode).transpose()?;
    let mut records = KeyRecords { lock, ..KeyRecords::default() };
    let mut bytes = 0;
    for cf in [Cf::Write, Cf::Default] {
        let options = IterOptions {
            lower: Bytes::copy_from_slice(key.encoded()),
            // Above every timestamp of this key, and below every other key.
            upper: [key.encoded(), &[0xff; key::TS_LEN + 1]].concat().into(),
            tier,
            ..IterOptions::default()
        };
        let mut iter = at.snapshot.iter(cf, options)?;
        iter.seek_to_first();
        while iter.valid() {
            bytes += iter.key().len() + iter.value().len();
            if bytes > REPLY_BYTES_MAX {
                return Err(TxnError::ReplyTooLarge { max: REPLY_BYTES_MAX });
            }
            let (_, ts) = key::split(iter.key()).ok_or_else(not_a_key)?;
            let stored = Bytes::copy_from_slice(iter.value());
            match cf {
                Cf::Write => {
                    records.versions.push(Version { commit_ts: ts, write: Write::decode(stored)? });
                }
                _ => match value::decode(stored)? {
                    Record::Value(value) => records.values.push((ts, value)),
                    Record::RolledBack => records.rollback_notes.push(ts),
                },
            }
            iter.next();
        }
        iter.status()?;
    }
    Ok(records)
}

/// The first wire key of the region on which the transaction of `start_ts` has a lock or an end, and everything about
/// it. Reads all records of the region if need be.
pub fn by_start_ts(
    at: &RegionSnapshot,
    tier: ReadTier,
    start_ts: u64,
) -> TxnResult<Option<(Bytes, KeyRecords)>> {
    let (lower, mut upper) = encoded_bounds(&at.region.start, &at.region.end);
    let mut found = None;
    for cf in [Cf::Lock, Cf::Write] {
        let options = IterOptions {
            lower: lower.clone(),
            upper: upper.clone(),
            tier,
            no_fill_cache: true,
            ..IterOptions::default()
        };
        let mut iter = at.snapshot.iter(cf, options)?;
        iter.seek_to_first();
        while iter.valid() {
            let (encoded, owner) = match cf {
                Cf::Lock => (Some(iter.key()), Lock::peek(iter.value()).map(|(_, start_ts)| start_ts)),
                _ => (
                    key::split(iter.key()).map(|(encoded, _)| encoded),
                    Write::peek(iter.value()).map(|(_, start_ts)| start_ts),
                ),
            };
            if owner == Some(start_ts) {
                let user = encoded.and_then(|encoded| key::user_key(encoded).ok()).ok_or_else(not_a_key)?;
                // Only an earlier key would be of interest now.
                upper = kvproto::key::encode(&user).into();
                found = Some(user);
                break;
            }
            iter.next();
        }
        if !iter.valid() {
            iter.status()?;
        }
    }
    match found {
        Some(user) => Ok(Some((user.clone(), by_key(at, tier, &user)?))),
        None => Ok(None),
    }
}

fn not_a_key() -> EngineError {
    EngineError::Corrupt("a key that is not memcomparable-encoded in a transactional family".into())
}
