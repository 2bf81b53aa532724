//! Garbage collection as methods of the scheduler connection: the two safe points, and the barriers that hold them.
//!
//! Below the txn safe point nobody may read any more; up to the GC safe point stores forget old versions. Stores move
//! both by themselves; a barrier keeps the versions that somebody still needs.

use std::time::Duration;

use kvproto::pdpb::*;
use kvproto::ts::Timestamp;

use crate::error::{Error, Result};
use crate::scheduler_client::SchedulerClient;

/// The seconds of a barrier that never expires.
const FOREVER: i64 = i64::MAX;

/// What may be forgotten, and what is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcState {
    /// Reads and transactions that begin below it are refused.
    pub txn_safe_point: Timestamp,
    /// Old versions up to here are dropped. At or below the txn safe point.
    pub gc_safe_point: Timestamp,
    /// What holds the txn safe point, by name.
    pub barriers: Vec<GcBarrier>,
}

/// The versions that are visible at a timestamp and later are kept until the barrier expires or is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcBarrier {
    /// Chosen by who set it.
    pub name: String,
    /// The txn safe point does not rise above it.
    pub ts: Timestamp,
    /// The time left; `None` for one that never expires.
    pub ttl: Option<Duration>,
    /// It was set for the whole cluster, not for a keyspace. Both hold the same safe point.
    pub is_global: bool,
}

/// What an advance of the txn safe point came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdvancedSafePoint {
    /// Before.
    pub old: Timestamp,
    /// Now.
    pub new: Timestamp,
    /// What kept it from the target, in words.
    pub blocker: Option<String>,
}

fn ttl(seconds: i64) -> Option<Duration> {
    (seconds != FOREVER).then(|| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

impl SchedulerClient {
    /// Both safe points and all barriers.
    pub async fn gc_state(&self) -> Result<GcState> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                let include_global_gc_barriers = true;
                let header = Some(header);
                pd.get_gc_state(GetGcStateRequest {
                    header,
                    include_global_gc_barriers,
                    ..Default::default()
                })
                .await
            })
            .await?;
        let state = reply.gc_state.ok_or_else(|| Error::Protocol("no GC state in the answer".into()))?;
        let own = state.gc_barriers.into_iter().map(|b| (b.barrier_id, b.barrier_ts, b.ttl_seconds, false));
        let global = reply.global_gc_barriers.unwrap_or_default().barriers.into_iter();
        let global = global.map(|b| (b.barrier_id, b.barrier_ts, b.ttl_seconds, true));
        let barrier = |(name, ts, seconds, is_global)| GcBarrier {
            name,
            ts: Timestamp::new(ts),
            ttl: ttl(seconds),
            is_global,
        };
        let mut barriers: Vec<GcBarrier> = own.chain(global).map(barrier).collect();
        barriers.sort_by(|a, b| (&a.name, a.is_global).cmp(&(&b.name, b.is_global)));
        Ok(GcState {
            txn_safe_point: Timestamp::new(state.txn_safe_point),
            gc_safe_point: Timestamp::new(state.gc_safe_point),
            barriers,
        })
    }

    /// Moves the txn safe point towards `target`, as far as barriers allow; with `None`, to where the scheduler's own
    /// settings want it. It never goes back.
    pub async fn advance_txn_safe_point(&self, target: Option<Timestamp>) -> Result<AdvancedSafePoint> {
        let target = target.map_or(0, Timestamp::get);
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                let header = Some(header);
                pd.advance_txn_safe_point(AdvanceTxnSafePointRequest { header, target, ..Default::default() })
                    .await
            })
            .await?;
        Ok(AdvancedSafePoint {
            old: Timestamp::new(reply.old_txn_safe_point),
            new: Timestamp::new(reply.new_txn_safe_point),
            blocker: Some(reply.blocker_description).filter(|text| !text.is_empty()),
        })
    }

    /// Moves the GC safe point, once every lock at or below `target` is resolved. It never goes back, nor above the txn
    /// safe point. Returns it.
    pub async fn advance_gc_safe_point(&self, target: Timestamp) -> Result<Timestamp> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                let (header, target) = (Some(header), target.get());
                pd.advance_gc_safe_point(AdvanceGcSafePointRequest { header, target, ..Default::default() })
                    .await
            })
            .await?;
        Ok(Timestamp::new(reply.new_gc_safe_point))
    }

    /// Keeps the versions that are visible at `ts` and later, for so long (`None`: until it is deleted). A barrier of the
    /// same name is replaced.
    pub async fn set_gc_barrier(
        &self,
        name: &str,
        ts: Timestamp,
        time_to_live: Option<Duration>,
    ) -> Result<GcBarrier> {
        // A part of a second counts as a whole one, so that nothing expires too early.
        let whole = |left: Duration| left.as_secs() + u64::from(left.subsec_nanos() > 0);
        let ttl_seconds = time_to_live.map_or(FOREVER, |left| i64::try_from(whole(left)).unwrap_or(FOREVER));
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                pd.set_gc_barrier(SetGcBarrierRequest {
                    header: Some(header),
                    barrier_id: name.to_string(),
                    barrier_ts: ts.get(),
                    ttl_seconds,
                    ..Default::default()
                })
                .await
            })
            .await?;
        let barrier =
            reply.new_barrier_info.ok_or_else(|| Error::Protocol("no barrier in the answer".into()))?;
        Ok(of_keyspaces(barrier))
    }

    /// Gives a barrier up and returns it; `None` when there was none.
    pub async fn delete_gc_barrier(&self, name: &str) -> Result<Option<GcBarrier>> {
        let reply = self
            .inner
            .call(self.timeout, |mut pd, header| async move {
                let (header, barrier_id) = (Some(header), name.to_string());
                pd.delete_gc_barrier(DeleteGcBarrierRequest { header, barrier_id, ..Default::default() })
                    .await
            })
            .await?;
        Ok(reply.deleted_barrier_info.map(of_keyspaces))
    }
}

fn of_keyspaces(barrier: GcBarrierInfo) -> GcBarrier {
    GcBarrier {
        name: barrier.barrier_id,
        ts: Timestamp::new(barrier.barrier_ts),
        ttl: ttl(barrier.ttl_seconds),
        is_global: false,
    }
}
