//! Transactional reads as the server asks for them: gets, batches, scans, and looks at locks.
//!
//! Every read first tells the writers that choose their own commit timestamp what it has seen, then looks for what they
//! have decided and not yet applied, then takes its snapshot (INV-MAXTS): so each takes a snapshot of its own, after
//! that. What can be answered from memory and without waiting is answered at once ([`Txn::get_now`]).

use bytes::Bytes;

use super::error::TxnResult;
use super::mvcc::Reader;
use super::mvcc::point_get::{self, BatchEntry, Found};
use super::mvcc::rules::ReadRules;
use super::mvcc::scan::{self, Scanned};
use super::pairs::LongReply;
use super::range::{Scan, in_region};
use super::scheduler::{Txn, TxnCall, UNBOUNDED};
use crate::engine::ReadTier;
use crate::storage::RegionSnapshot;

impl Txn {
    /// The value of a key, when that takes neither a disk, nor a quorum, nor the oracle, nor another transaction.
    pub fn get_now(
        &self,
        call: &TxnCall,
        key: &Bytes,
        rules: &ReadRules,
    ) -> Option<TxnResult<Option<Found>>> {
        self.now(call, std::slice::from_ref(key), rules, |reader| {
            point_get::point_get(reader, key.clone(), rules)
        })
    }

    /// The values of a few keys, under the same conditions.
    pub fn batch_get_now(
        &self,
        call: &TxnCall,
        keys: &[Bytes],
        rules: &ReadRules,
    ) -> Option<TxnResult<Vec<BatchEntry>>> {
        self.now(call, keys, rules, |reader| point_get::batch_get(reader, keys, rules))
    }

    fn now<T>(
        &self,
        call: &TxnCall,
        keys: &[Bytes],
        rules: &ReadRules,
        read: impl FnOnce(&mut Reader<'_>) -> TxnResult<T>,
    ) -> Option<TxnResult<T>> {
        if let Err(refused) = self.check_keys(call, keys) {
            return Some(Err(refused));
        }
        if let Err(refused) = self.unless_too_old(rules.ts, Ok(())) {
            return Some(Err(refused));
        }
        if !self.horizon.covers(rules.ts, &*self.timer) {
            return None;
        }
        self.max_ts.raise(rules.ts);
        if keys.iter().any(|key| self.max_ts.blocking(key, rules.ts).is_some()) {
            return None;
        }
        let at = match self.storage.lease_snapshot(&call.ctx) {
            Ok(snapshot) => snapshot?,
            Err(error) => return Some(Err(error.into())),
        };
        let read = keys
            .iter()
            .try_for_each(|key| in_region(&at.region, key))
            .map_err(Into::into)
            .and_then(|()| read(&mut Reader::new(&at.snapshot, ReadTier::Cache)));
        match read {
            Err(error) if error.is_not_cached() => None,
            read => Some(self.unless_too_old(rules.ts, read)),
        }
    }

    /// The value of a key; `None` when it has none.
    pub async fn get(&self, call: &TxnCall, key: Bytes, rules: ReadRules) -> TxnResult<Option<Found>> {
        let keys = vec![key];
        self.check_keys(call, &keys)?;
        let ts = rules.ts;
        self.unless_too_old(ts, Ok(()))?;
        self.before_read(&keys, ts).await?;
        let found = self.read(&call.ctx, 1, move |at, tier| {
            in_region(&at.region, &keys[0])?;
            point_get::point_get(&mut Reader::new(&at.snapshot, tier), keys[0].clone(), &rules)
        });
        self.unless_too_old(ts, found.await)
    }

    /// Those of `keys` that exist or are locked.
    pub async fn batch_get(
        &self,
        call: &TxnCall,
        keys: Vec<Bytes>,
        rules: ReadRules,
    ) -> TxnResult<Vec<BatchEntry>> {
        self.check_keys(call, &keys)?;
        let ts = rules.ts;
        self.unless_too_old(ts, Ok(()))?;
        self.before_read(&keys, ts).await?;
        let found = self.read(&call.ctx, keys.len(), move |at, tier| {
            keys.iter().try_for_each(|key| in_region(&at.region, key))?;
            point_get::batch_get(&mut Reader::new(&at.snapshot, tier), &keys, &rules)
        });
        self.unless_too_old(ts, found.await)
    }

    /// What a range holds, as far as it lies in the region.
    pub async fn scan(
        &self,
        call: &TxnCall,
        mut range: Scan,
        rules: ReadRules,
        long: LongReply,
    ) -> TxnResult<Scanned> {
        self.keys().api(call.api)?;
        range.upper = self.keys().range(call.api, &range.lower, range.upper)?;
        let ts = rules.ts;
        self.unless_too_old(ts, Ok(()))?;
        self.before_scan(&range.lower, &range.upper, ts).await?;
        let found = self.read(&call.ctx, UNBOUNDED, move |at: &RegionSnapshot, tier| {
            let mut scanned = Scanned::default();
            scan::scan(at, tier, &range, &rules, long, &mut scanned)?;
            Ok(scanned)
        });
        self.unless_too_old(ts, found.await)
    }

    fn check_keys(&self, call: &TxnCall, keys: &[Bytes]) -> TxnResult<()> {
        self.keys().api(call.api)?;
        keys.iter().try_for_each(|key| self.keys().key(call.api, key))?;
        Ok(())
    }
}
