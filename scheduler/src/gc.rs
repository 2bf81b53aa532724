//! How far old versions may be forgotten: two safe points, and the barriers that hold them back.
//!
//! Owns the rules, and no clock: the time is an argument, and every change returns what is to be stored.
//!
//! - Below the **txn safe point** nobody may read or begin to write any more. It moves first.
//! - Up to the **GC safe point** stores drop versions that no reader at or above it can see. It moves when all locks at
//!   or below the txn safe point are resolved, and never beyond it.
//! - A **barrier** keeps the txn safe point at or below its timestamp until it expires or is deleted. Services of the
//!   older protocol ("service safe points") are barriers under the name of the service. Barriers of keyspaces and those
//!   of the whole cluster have names of their own, and both hold the one pair of safe points that a cluster has.
//!
//! Invariants: both safe points only rise; the GC safe point is at or below the txn safe point; a barrier is set at or
//! above the txn safe point only, so what it protects is still there.

use std::collections::BTreeMap;

use kvproto::ts::Timestamp;

use crate::kv::records::{GcBarrierRecord, GcSafePointsRecord, MetaWrite};

/// The name under which clients of the older protocol move the txn safe point itself.
pub const GC_WORKER: &str = "gc_worker";
/// The longest name of a barrier, bytes.
pub const NAME_MAX: usize = 256;
/// The most barriers.
pub const BARRIERS_MAX: usize = 1024;
/// The seconds, and the instant, of a barrier that never expires.
pub const TTL_FOREVER: i64 = i64::MAX;
const NEVER_MS: u64 = u64::MAX;

/// What the safe point is to be when nobody moves it by hand. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcConfig {
    /// Whether it moves by itself.
    pub is_enabled: bool,
    /// How long old versions can be read.
    pub life_ms: u64,
    /// It moves by itself in steps of at least this length.
    pub run_interval_ms: u64,
}

impl Default for GcConfig {
    fn default() -> GcConfig {
        GcConfig { is_enabled: true, life_ms: 10 * 60_000, run_interval_ms: 60_000 }
    }
}

/// Why a change of safe points or barriers is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GcError {
    #[error("the txn safe point is {now} and never goes back; {asked} is below it")]
    TxnGoesBack { now: u64, asked: u64 },
    #[error("the GC safe point is {now} and never goes back; {asked} is below it")]
    GcGoesBack { now: u64, asked: u64 },
    #[error("{asked} is above the txn safe point {txn}: advance that first, and resolve the locks up to it")]
    AboveTxn { txn: u64, asked: u64 },
    #[error("{0} is in the future: use a timestamp of this cluster's oracle")]
    Future(u64),
    #[error(
        "the txn safe point is {txn}: versions at {asked} may be gone; set the barrier at {txn} or later"
    )]
    BarrierTooLate { txn: u64, asked: u64 },
    #[error("a barrier needs a timestamp above 0")]
    NoTimestamp,
    #[error("a barrier needs a name of 1 to {NAME_MAX} bytes of UTF-8")]
    Name,
    #[error("{GC_WORKER} is the name of the safe point itself: choose another one")]
    Reserved,
    #[error("a barrier needs a time to live of at least a second; delete it to give it up")]
    TimeToLive,
    #[error("{GC_WORKER} lives for ever: ask with the largest time to live")]
    WorkerTimeToLive,
    #[error("there are {BARRIERS_MAX} barriers already: delete some")]
    TooMany,
    #[error("garbage is collected for the whole cluster at once: ask without a keyspace")]
    OneKeyspace,
}

/// Whom a barrier is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Keyspaces,
    Cluster,
}

/// A barrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barrier {
    pub scope: Scope,
    pub name: String,
    /// The versions that are visible at this timestamp and later are kept.
    pub ts: u64,
    /// Unix milliseconds.
    expires_ms: u64,
}

impl Barrier {
    /// Seconds left, rounded up; [`TTL_FOREVER`] for one that does not expire.
    pub fn ttl_seconds(&self, now_ms: u64) -> i64 {
        match self.expires_ms {
            NEVER_MS => TTL_FOREVER,
            ms => i64::try_from(ms.saturating_sub(now_ms).div_ceil(1000)).unwrap_or(TTL_FOREVER),
        }
    }

    /// Unix seconds at which it expires, rounded up; [`TTL_FOREVER`] for one that does not.
    pub fn expires_seconds(&self) -> i64 {
        match self.expires_ms {
            NEVER_MS => TTL_FOREVER,
            ms => i64::try_from(ms.div_ceil(1000)).unwrap_or(TTL_FOREVER),
        }
    }

    fn is_live(&self, now_ms: u64) -> bool {
        self.expires_ms > now_ms
    }

    fn describe(&self) -> String {
        let what = match self.scope {
            Scope::Keyspaces => "barrier",
            Scope::Cluster => "global barrier",
        };
        format!("{what} {:?} at {}", self.name, self.ts)
    }
}

/// What an advance of the txn safe point came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advanced {
    pub old: u64,
    pub new: u64,
    /// What kept it from the target.
    pub blocker: Option<String>,
}

/// The smallest wish of all services, for clients of the older protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceMin {
    pub name: String,
    pub ttl_seconds: i64,
    pub safe_point: u64,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Gc {
    txn_safe_point: u64,
    gc_safe_point: u64,
    barriers: BTreeMap<(Scope, String), Barrier>,
}

impl Gc {
    /// Takes in the stored safe points, at start.
    pub fn restore_safe_points(&mut self, record: &GcSafePointsRecord) {
        (self.txn_safe_point, self.gc_safe_point) = (record.txn_safe_point, record.gc_safe_point);
    }

    /// Takes in a stored barrier, at start.
    pub fn restore_barrier(&mut self, record: GcBarrierRecord) {
        let scope = if record.is_global { Scope::Cluster } else { Scope::Keyspaces };
        let barrier =
            Barrier { scope, name: record.name.clone(), ts: record.ts, expires_ms: record.expires_ms };
        self.barriers.insert((scope, record.name), barrier);
    }

    /// Below this nobody reads or begins to write.
    pub fn txn_safe_point(&self) -> u64 {
        self.txn_safe_point
    }

    /// Up to this old versions are dropped.
    pub fn gc_safe_point(&self) -> u64 {
        self.gc_safe_point
    }

    /// The barriers that have not expired.
    pub fn barriers(&self, now_ms: u64) -> impl Iterator<Item = &Barrier> {
        self.barriers.values().filter(move |barrier| barrier.is_live(now_ms))
    }

    /// How far the safe point should be at the timestamp `now`: `life_ms` ago, or where it is when it does not move by
    /// itself or the step would be too short.
    pub fn wanted(&self, config: &GcConfig, now: Timestamp) -> u64 {
        let target_ms = now.physical_ms().saturating_sub(config.life_ms);
        let reached_ms = Timestamp::new(self.txn_safe_point).physical_ms();
        let is_due = target_ms.saturating_sub(reached_ms) >= config.run_interval_ms.max(1);
        match Timestamp::compose(target_ms, 0) {
            Some(target) if config.is_enabled && is_due => target.get(),
            _ => self.txn_safe_point,
        }
    }

    /// Moves the txn safe point towards `target`, as far as barriers allow.
    pub fn advance_txn(&mut self, now_ms: u64, target: u64) -> Result<(Advanced, Vec<MetaWrite>), GcError> {
        let old = self.txn_safe_point;
        if target < old {
            return Err(GcError::TxnGoesBack { now: old, asked: target });
        }
        let mut writes = self.drop_expired(now_ms);
        let (reached, blocker) = self.capped(now_ms, target);
        let new = reached.max(old);
        if new > old {
            self.txn_safe_point = new;
            writes.push(self.safe_points_write());
        }
        Ok((Advanced { old, new, blocker }, writes))
    }

    /// Moves the GC safe point to `target`, which is at or below the txn safe point. Returns the old one.
    pub fn advance_gc(&mut self, target: u64) -> Result<(u64, Vec<MetaWrite>), GcError> {
        let old = self.gc_safe_point;
        if target < old {
            return Err(GcError::GcGoesBack { now: old, asked: target });
        }
        if target > self.txn_safe_point {
            return Err(GcError::AboveTxn { txn: self.txn_safe_point, asked: target });
        }
        self.gc_safe_point = target;
        let writes = if target > old { vec![self.safe_points_write()] } else { Vec::new() };
        Ok((old, writes))
    }

    /// Moves both, for clients of the older protocol, which have resolved the locks up to `target` themselves: as far as
    /// barriers allow. Returns the GC safe point.
    pub fn advance_both(&mut self, now_ms: u64, target: u64) -> (u64, Vec<MetaWrite>) {
        let mut writes = self.drop_expired(now_ms);
        let (reached, _) = self.capped(now_ms, target);
        let before = (self.txn_safe_point, self.gc_safe_point);
        self.txn_safe_point = self.txn_safe_point.max(reached);
        self.gc_safe_point = self.gc_safe_point.max(reached);
        if before != (self.txn_safe_point, self.gc_safe_point) {
            writes.push(self.safe_points_write());
        }
        (self.gc_safe_point, writes)
    }

    /// Sets a barrier, or moves one: it may go back, but not below the txn safe point.
    pub fn set_barrier(
        &mut self,
        now_ms: u64,
        (scope, name): (Scope, &str),
        ts: u64,
        ttl_seconds: i64,
    ) -> Result<(Barrier, Vec<MetaWrite>), GcError> {
        check_name(name)?;
        if ts == 0 {
            return Err(GcError::NoTimestamp);
        }
        let ttl_seconds =
            u64::try_from(ttl_seconds).ok().filter(|ttl| *ttl > 0).ok_or(GcError::TimeToLive)?;
        if ts < self.txn_safe_point {
            return Err(GcError::BarrierTooLate { txn: self.txn_safe_point, asked: ts });
        }
        let key = (scope, name.to_string());
        let live = self.barriers(now_ms).count();
        if live >= BARRIERS_MAX && !self.barriers.contains_key(&key) {
            return Err(GcError::TooMany);
        }
        let mut writes = self.drop_expired(now_ms);
        let expires_ms = match ttl_seconds {
            ttl if ttl == TTL_FOREVER as u64 => NEVER_MS,
            ttl => ttl.checked_mul(1000).and_then(|ms| now_ms.checked_add(ms)).unwrap_or(NEVER_MS),
        };
        let barrier = Barrier { scope, name: key.1.clone(), ts, expires_ms };
        writes.push(MetaWrite::GcBarrier(record_of(&barrier)));
        self.barriers.insert(key, barrier.clone());
        Ok((barrier, writes))
    }

    /// Gives a barrier up. Returns it, when it was there and had not expired.
    pub fn delete_barrier(
        &mut self,
        now_ms: u64,
        (scope, name): (Scope, &str),
    ) -> Result<(Option<Barrier>, Vec<MetaWrite>), GcError> {
        check_name(name)?;
        let mut writes = self.drop_expired(now_ms);
        let gone = self.barriers.remove(&(scope, name.to_string()));
        writes.extend(gone.as_ref().map(|barrier| MetaWrite::GcBarrierGone(record_of(barrier))));
        Ok((gone, writes))
    }

    /// What a service asks for in the older protocol: a barrier under its name, given up with a time to live of 0 or
    /// less. One that comes too late is not set, which the answer shows: the smallest wish is then above what was asked.
    pub fn update_service(
        &mut self,
        now_ms: u64,
        name: &str,
        safe_point: u64,
        ttl_seconds: i64,
    ) -> Result<(ServiceMin, Vec<MetaWrite>), GcError> {
        if name == GC_WORKER {
            if ttl_seconds != TTL_FOREVER {
                return Err(GcError::WorkerTimeToLive);
            }
            let (_, writes) = self.advance_txn(now_ms, safe_point.max(self.txn_safe_point))?;
            return Ok((self.service_min(now_ms), writes));
        }
        let writes = if ttl_seconds <= 0 {
            self.delete_barrier(now_ms, (Scope::Keyspaces, name))?.1
        } else if safe_point < self.txn_safe_point {
            check_name(name)?;
            self.drop_expired(now_ms)
        } else {
            // A service may ask before it knows any timestamp: 0 then holds everything that is still there.
            self.set_barrier(now_ms, (Scope::Keyspaces, name), safe_point.max(1), ttl_seconds)?.1
        };
        Ok((self.service_min(now_ms), writes))
    }

    /// The lowest barrier of all; the txn safe point when there is none.
    pub fn service_min(&self, now_ms: u64) -> ServiceMin {
        match self.barriers(now_ms).min_by_key(|barrier| barrier.ts) {
            Some(lowest) => ServiceMin {
                name: lowest.name.clone(),
                ttl_seconds: lowest.ttl_seconds(now_ms),
                safe_point: lowest.ts,
            },
            None => ServiceMin {
                name: GC_WORKER.into(),
                ttl_seconds: TTL_FOREVER,
                safe_point: self.txn_safe_point,
            },
        }
    }

    /// How far `target` may be reached, and what stands in its way.
    fn capped(&self, now_ms: u64, target: u64) -> (u64, Option<String>) {
        match self.barriers(now_ms).min_by_key(|barrier| barrier.ts).filter(|lowest| lowest.ts < target) {
            Some(lowest) => (lowest.ts, Some(lowest.describe())),
            None => (target, None),
        }
    }

    fn drop_expired(&mut self, now_ms: u64) -> Vec<MetaWrite> {
        let mut writes = Vec::new();
        self.barriers.retain(|_, barrier| {
            let is_live = barrier.is_live(now_ms);
            if !is_live {
                writes.push(MetaWrite::GcBarrierGone(record_of(barrier)));
            }
            is_live
        });
        writes
    }

    fn safe_points_write(&self) -> MetaWrite {
        let (txn_safe_point, gc_safe_point) = (self.txn_safe_point, self.gc_safe_point);
        assert!(gc_safe_point <= txn_safe_point, "GC safe point {gc_safe_point} is above {txn_safe_point}");
        MetaWrite::GcSafePoints(GcSafePointsRecord { txn_safe_point, gc_safe_point })
    }
}

fn record_of(barrier: &Barrier) -> GcBarrierRecord {
    GcBarrierRecord {
        name: barrier.name.clone(),
        is_global: barrier.scope == Scope::Cluster,
        ts: barrier.ts,
        expires_ms: barrier.expires_ms,
    }
}

fn check_name(name: &str) -> Result<(), GcError> {
    match name {
        GC_WORKER => Err(GcError::Reserved),
        name if name.is_empty() || name.len() > NAME_MAX => Err(GcError::Name),
        _ => Ok(()),
    }
}
