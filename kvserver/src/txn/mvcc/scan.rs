//! Scans in one snapshot of one region, upwards and downwards, at one timestamp.
//!
//! Two cursors, over `lock` and `write`, move from user key to user key together. Nothing is allocated for a key: its
//! encoding lies in one buffer that is used again, and the reply takes decoded keys and values one after the other. Of a
//! key with few versions the cursor steps over them; after [`NEAR`] steps it seeks.
//!
//! Locks that are in the way stand in the reply in key order, in the place of their pair.

use bytes::Bytes;

use super::key::{self, TS_LEN};
use super::rules::{ReadRules, Sight};
use super::value;
use super::write::{WriteKind, WriteRef};
use super::{Isolation, Lock, LockKind};
use crate::engine::{Cf, EngineError, Iter, IterOptions, ReadTier};
use crate::storage::RegionSnapshot;
use crate::txn::error::{LockInfo, TxnError, TxnResult};
use crate::txn::pairs::{Fit, LongReply, Pairs, PairsIter, REPLY_BYTES_MAX};
use crate::txn::range::Scan;

/// Over so many versions of one key a cursor steps before it seeks.
const NEAR: usize = 8;
/// What a lock costs in a reply besides its keys, at most.
const LOCK_OVERHEAD: usize = 96;

/// Pairs and locks of a reply, in key order.
#[derive(Debug, Default)]
pub struct Scanned {
    pairs: Pairs,
    /// Before which pair each lock stands.
    locked: Vec<(usize, LockInfo)>,
    locked_bytes: usize,
}

impl Scanned {
    /// Number of pairs and locks.
    pub fn len(&self) -> usize {
        self.pairs.len() + self.locked.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The entries of a [`Scanned`], in order.
pub struct ScannedIter {
    pairs: PairsIter,
    given: usize,
    locked: std::iter::Peekable<std::vec::IntoIter<(usize, LockInfo)>>,
}

impl Iterator for ScannedIter {
    type Item = Result<(Bytes, Bytes), LockInfo>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((_, info)) = self.locked.next_if(|(before, _)| *before <= self.given) {
            return Some(Err(info));
        }
        self.given += 1;
        self.pairs.next().map(Ok)
    }
}

impl IntoIterator for Scanned {
    type Item = Result<(Bytes, Bytes), LockInfo>;
    type IntoIter = ScannedIter;

    fn into_iter(self) -> ScannedIter {
        ScannedIter { pairs: self.pairs.into_iter(), given: 0, locked: self.locked.into_iter().peekable() }
    }
}

/// Adds what a range holds to `out`, and says whether the reply was cut.
pub fn scan(
    at: &RegionSnapshot,
    tier: ReadTier,
    scan: &Scan,
    rules: &ReadRules,
    long: LongReply,
    out: &mut Scanned,
) -> TxnResult<bool> {
    let end = out.len().saturating_add(scan.limit);
    let Some(mut scanner) = Scanner::open(at, tier, scan, rules, long)? else { return Ok(false) };
    while out.len() < end {
        let Some((locked, written)) = scanner.next_key()? else { break };
        let passed = if locked { scanner.pass_lock(out)? } else { Passed::Lock };
        let cut = match passed {
            Passed::Lock if written => scanner.add_version(out)?,
            Passed::Lock => false,
            Passed::Key { cut } => {
                if written {
                    scanner.leave_key()?;
                }
                cut
            }
        };
        if cut {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How far a key with a lock is done with.
enum Passed {
    /// The lock is not in the way; the versions decide.
    Lock,
    /// The key is in the reply, or is not to be.
    Key { cut: bool },
}

struct Scanner<'a> {
    at: &'a RegionSnapshot,
    tier: ReadTier,
    rules: &'a ReadRules,
    long: LongReply,
    reverse: bool,
    key_only: bool,
    writes: Box<dyn Iter>,
    /// `None` when locks do not matter.
    locks: Option<Box<dyn Iter>>,
    /// The user key at hand, encoded, and room for a timestamp.
    key: Vec<u8>,
    /// Downwards: the newest record met that the read sees.
    held: Vec<u8>,
}

impl<'a> Scanner<'a> {
    /// Cursors on the first keys of the range; `None` when it is empty.
    fn open(
        at: &'a RegionSnapshot,
        tier: ReadTier,
        scan: &Scan,
        rules: &'a ReadRules,
        long: LongReply,
    ) -> TxnResult<Option<Scanner<'a>>> {
        let Some((lower, upper)) = scan.within(&at.region)? else { return Ok(None) };
        let (lower, upper) = encoded_bounds(&lower, &upper);
        let open = |cf| -> Result<Box<dyn Iter>, EngineError> {
            let options =
                IterOptions { lower: lower.clone(), upper: upper.clone(), tier, ..Default::default() };
            let mut iter = at.snapshot.iter(cf, options)?;
            if scan.reverse {
                iter.seek_to_last()
            } else {
                iter.seek_to_first()
            }
            Ok(iter)
        };
        let locks = match rules.isolation {
            Isolation::Snapshot => Some(open(Cf::Lock)?),
            Isolation::ReadCommitted => None,
        };
        let writes = open(Cf::Write)?;
        let Scan { reverse, key_only, .. } = *scan;
        let (key, held) = (Vec::new(), Vec::new());
        Ok(Some(Scanner { at, tier, rules, long, reverse, key_only, writes, locks, key, held }))
    }

    /// Takes the next user key, and says whether it has a lock and whether it has versions.
    fn next_key(&mut self) -> Result<Option<(bool, bool)>, EngineError> {
        let locked = match &self.locks {
            Some(locks) => key_of(&**locks)?,
            None => None,
        };
        let written = match key_of(&*self.writes)? {
            Some(stored) => Some(key::split(stored).ok_or_else(not_a_key)?.0),
            None => None,
        };
        let order = match (locked, written) {
            (None, None) => return Ok(None),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(l), Some(w)) if self.reverse => w.cmp(l),
            (Some(l), Some(w)) => l.cmp(w),
        };
        let encoded = if order.is_le() { locked } else { written };
        self.key.clear();
        self.key.extend_from_slice(encoded.unwrap_or_default());
        self.key.extend_from_slice(&[0; TS_LEN]);
        Ok(Some((order.is_le(), order.is_ge())))
    }

    /// Looks at the lock under the cursor and moves on.
    fn pass_lock(&mut self, out: &mut Scanned) -> TxnResult<Passed> {
        let Some(locks) = &mut self.locks else { return Ok(Passed::Lock) };
        let stored = match Lock::peek(locks.value()) {
            Some((kind, start_ts)) if !self.rules.may_matter(kind, start_ts) => None,
            _ => Some(Bytes::copy_from_slice(locks.value())),
        };
        if self.reverse {
            locks.prev()
        } else {
            locks.next()
        }
        let Some(stored) = stored else { return Ok(Passed::Lock) };
        let lock = Lock::decode(stored)?;
        let user = key::user_key(self.encoded()).map_err(|_| not_a_key())?;
        match self.rules.sight(&user, &lock) {
            Sight::Free => Ok(Passed::Lock),
            Sight::Through if lock.kind == LockKind::Put => {
                let short = lock.short_value.as_deref();
                let cut = self.add(short, lock.start_ts, out)?;
                Ok(Passed::Key { cut })
            }
            Sight::Through => Ok(Passed::Key { cut: false }),
            Sight::Blocked => {
                let named = lock.secondaries.iter().flatten().map(Bytes::len).sum::<usize>();
                let bytes = user.len() + lock.primary.len() + named + LOCK_OVERHEAD;
                if fit(out, bytes, self.long)? {
                    return Ok(Passed::Key { cut: true });
                }
                out.locked_bytes += bytes;
                out.locked.push((out.pairs.len(), LockInfo { key: user, lock }));
                Ok(Passed::Key { cut: false })
            }
        }
    }

    /// Adds the version that the read sees, if any, and leaves the key.
    fn add_version(&mut self, out: &mut Scanned) -> TxnResult<bool> {
        if self.reverse {
            let found = self.find_backward()?;
            return if found { self.add_record(out) } else { Ok(false) };
        }
        let cut = if self.find_forward()? { self.add_record(out)? } else { false };
        self.leave_key()?;
        Ok(cut)
    }

    /// Adds the put that was found.
    fn add_record(&mut self, out: &mut Scanned) -> TxnResult<bool> {
        let record = if self.reverse { &self.held[..] } else { self.writes.value() };
        let write = WriteRef::parse(record)?;
        let place = Place { at: self.at, tier: self.tier, key: &mut self.key };
        add(place, self.key_only, self.long, (write.short_value, write.start_ts), out)
    }

    fn add(&mut self, short: Option<&[u8]>, start_ts: u64, out: &mut Scanned) -> TxnResult<bool> {
        let place = Place { at: self.at, tier: self.tier, key: &mut self.key };
        add(place, self.key_only, self.long, (short, start_ts), out)
    }

    /// From the newest version to the one that the read sees; true when that is a put. It is under the cursor then.
    fn find_forward(&mut self) -> Result<bool, EngineError> {
        for _ in 0..NEAR {
            match self.commit_ts()? {
                None => return Ok(false),
                Some(ts) if ts <= self.rules.ts => return self.settle(),
                Some(_) => self.writes.next(),
            }
        }
        self.seek(self.rules.ts);
        self.settle()
    }

    /// From the oldest version to the newest that the read sees, and out of the key; true when that is a put. It is in
    /// `held` then.
    fn find_backward(&mut self) -> Result<bool, EngineError> {
        let mut kind = None;
        for _ in 0..NEAR {
            match self.commit_ts()? {
                None => return Ok(kind == Some(WriteKind::Put)),
                Some(ts) if ts > self.rules.ts => {
                    self.leave_key()?;
                    return Ok(kind == Some(WriteKind::Put));
                }
                Some(_) => {
                    let record = self.writes.value();
                    let write = WriteRef::parse(record)?;
                    if write.kind.has_data() {
                        kind = Some(write.kind);
                        self.held.clear();
                        self.held.extend_from_slice(record);
                    }
                    self.writes.prev();
                }
            }
        }
        self.seek(self.rules.ts);
        let found = self.settle()?;
        if found {
            self.held.clear();
            self.held.extend_from_slice(self.writes.value());
        }
        self.writes.seek_for_prev(&self.key[..self.key.len() - TS_LEN]);
        Ok(found)
    }

    /// From a version to the newest one at or before it that has data; true when that is a put.
    fn settle(&mut self) -> Result<bool, EngineError> {
        while self.commit_ts()?.is_some() {
            let write = WriteRef::parse(self.writes.value())?;
            match write.kind {
                WriteKind::Put => return Ok(true),
                WriteKind::Delete => return Ok(false),
                WriteKind::Lock if write.last_change_ts > 0 => {
                    let data_ts = write.last_change_ts;
                    self.seek(data_ts);
                }
                WriteKind::Lock | WriteKind::Rollback => self.writes.next(),
            }
        }
        Ok(false)
    }

    /// Moves over the rest of the key's versions.
    fn leave_key(&mut self) -> Result<(), EngineError> {
        for _ in 0..NEAR {
            if self.commit_ts()?.is_none() {
                return Ok(());
            }
            if self.reverse { self.writes.prev() } else { self.writes.next() }
        }
        if self.reverse {
            self.writes.seek_for_prev(&self.key[..self.key.len() - TS_LEN]);
            return Ok(());
        }
        self.seek(0);
        while self.commit_ts()?.is_some() {
            self.writes.next();
        }
        Ok(())
    }

    /// The timestamp of the version under the cursor, if it is one of the key at hand.
    fn commit_ts(&self) -> Result<Option<u64>, EngineError> {
        let Some(stored) = key_of(&*self.writes)? else { return Ok(None) };
        match key::split(stored) {
            Some((encoded, ts)) if encoded == self.encoded() => Ok(Some(ts)),
            _ => Ok(None),
        }
    }

    fn encoded(&self) -> &[u8] {
        &self.key[..self.key.len() - TS_LEN]
    }

    /// To the newest version of the key at or before `ts`, or beyond the key.
    fn seek(&mut self, ts: u64) {
        self.writes.seek(key::set_ts(&mut self.key, ts));
    }
}

/// Where a long value is looked for.
struct Place<'a> {
    at: &'a RegionSnapshot,
    tier: ReadTier,
    /// An encoded user key with room for a timestamp.
    key: &'a mut [u8],
}

/// Adds a pair with a value that is at hand, or that the transaction of the start timestamp left in `default`.
fn add(
    place: Place<'_>,
    key_only: bool,
    long: LongReply,
    (short, start_ts): (Option<&[u8]>, u64),
    out: &mut Scanned,
) -> TxnResult<bool> {
    let stored;
    let value = match short {
        _ if key_only => &[],
        Some(value) => value,
        None => {
            let key = key::set_ts(place.key, start_ts);
            stored = place.at.snapshot.get(Cf::Default, key, place.tier)?;
            stored
                .as_deref()
                .and_then(value::peek)
                .ok_or_else(|| EngineError::Corrupt(format!("a version of {start_ts} has no value")))?
        }
    };
    let encoded = &place.key[..place.key.len() - TS_LEN];
    if fit(out, encoded.len() + value.len(), long)? {
        return Ok(true);
    }
    out.pairs.push_encoded(encoded, value).map_err(|_| not_a_key())?;
    Ok(false)
}

/// True when the reply ends before an entry of `bytes` more.
fn fit(out: &Scanned, bytes: usize, long: LongReply) -> TxnResult<bool> {
    match out.pairs.fit(bytes, out.locked_bytes, long) {
        Fit::Fits => Ok(false),
        Fit::Cut => Ok(true),
        Fit::TooLarge => Err(TxnError::ReplyTooLarge { max: REPLY_BYTES_MAX }),
    }
}

/// The key under a cursor; `None` at the end of its range.
fn key_of(iter: &dyn Iter) -> Result<Option<&[u8]>, EngineError> {
    if iter.valid() {
        return Ok(Some(iter.key()));
    }
    iter.status()?;
    Ok(None)
}

fn not_a_key() -> EngineError {
    EngineError::Corrupt("a key that is not memcomparable-encoded in a transactional family".into())
}

/// The bounds of user keys as they are in all transactional families. Empty ones stay open.
pub fn encoded_bounds(lower: &[u8], upper: &[u8]) -> (Bytes, Bytes) {
    let encoded = |key: &[u8]| if key.is_empty() { Bytes::new() } else { kvproto::key::encode(key).into() };
    (encoded(lower), encoded(upper))
}
