//! Safe points and barriers as part of the cluster: the rules are in [`crate::gc`]; here they meet the oracle's time,
//! the keyspaces, the settings, and the key where clients of the field look for the txn safe point.

use kvproto::ts::Timestamp;

use super::{Cluster, Output};
use crate::core::client_keys::SAVED_SAFE_POINT;
use crate::error::ClusterError;
use crate::gc::{Advanced, Barrier, Gc, GcError, Scope, ServiceMin};
use crate::kv::records::MetaWrite;

/// The id that stands for keys of no keyspace.
pub const NULL_KEYSPACE: u32 = u32::MAX;

/// When a request is made: `now_ms` by this process's clock, `ts` by the oracle.
#[derive(Debug, Clone, Copy)]
pub struct Present {
    pub now_ms: u64,
    pub ts: Timestamp,
}

impl Cluster {
    /// Safe points and barriers.
    pub fn gc(&self) -> &Gc {
        &self.gc
    }

    /// Moves the txn safe point towards `target` as far as barriers allow; with target 0 to where the settings want it.
    pub fn advance_txn_safe_point(
        &mut self,
        now: Present,
        target: u64,
    ) -> Result<(Advanced, Output), ClusterError> {
        self.require_bootstrapped()?;
        check_past(now, target)?;
        let target = if target == 0 { self.gc.wanted(&self.config.gc, now.ts) } else { target };
        let (advanced, writes) = self.gc.advance_txn(now.now_ms, target)?;
        Ok((advanced, self.gc_output(writes)))
    }

    /// Moves the GC safe point. Returns the old one.
    pub fn advance_gc_safe_point(&mut self, target: u64) -> Result<(u64, Output), ClusterError> {
        self.require_bootstrapped()?;
        let (old, writes) = self.gc.advance_gc(target)?;
        Ok((old, self.gc_output(writes)))
    }

    /// Moves both as far as barriers allow. Returns the GC safe point.
    pub fn update_gc_safe_point(&mut self, now: Present, target: u64) -> Result<(u64, Output), ClusterError> {
        self.require_bootstrapped()?;
        check_past(now, target)?;
        let (reached, writes) = self.gc.advance_both(now.now_ms, target);
        Ok((reached, self.gc_output(writes)))
    }

    /// Sets a barrier.
    pub fn set_gc_barrier(
        &mut self,
        now_ms: u64,
        of: (Scope, &str),
        ts: u64,
        ttl_seconds: i64,
    ) -> Result<(Barrier, Output), ClusterError> {
        self.require_bootstrapped()?;
        let (barrier, writes) = self.gc.set_barrier(now_ms, of, ts, ttl_seconds)?;
        Ok((barrier, self.gc_output(writes)))
    }

    /// Gives a barrier up.
    pub fn delete_gc_barrier(
        &mut self,
        now_ms: u64,
        of: (Scope, &str),
    ) -> Result<(Option<Barrier>, Output), ClusterError> {
        self.require_bootstrapped()?;
        let (gone, writes) = self.gc.delete_barrier(now_ms, of)?;
        Ok((gone, self.gc_output(writes)))
    }

    /// Takes in what a service of the older protocol asks for.
    pub fn update_service_safe_point(
        &mut self,
        now: Present,
        name: &str,
        safe_point: u64,
        ttl_seconds: i64,
    ) -> Result<(ServiceMin, Output), ClusterError> {
        self.require_bootstrapped()?;
        if name == crate::gc::GC_WORKER {
            check_past(now, safe_point)?;
        }
        let (min, writes) = self.gc.update_service(now.now_ms, name, safe_point, ttl_seconds)?;
        Ok((min, self.gc_output(writes)))
    }

    /// Whether the keyspace of a request exists; all of them share the safe points.
    pub fn check_gc_keyspace(&self, id: u32) -> Result<(), ClusterError> {
        self.require_bootstrapped()?;
        if id != NULL_KEYSPACE {
            self.keyspace_by_id(id)?;
        }
        Ok(())
    }

    /// The writes, and with new safe points the key that clients read.
    fn gc_output(&mut self, mut writes: Vec<MetaWrite>) -> Output {
        let has_moved = writes.iter().any(|write| matches!(write, MetaWrite::GcSafePoints(_)));
        if has_moved && self.client_keys.number(SAVED_SAFE_POINT) != self.gc.txn_safe_point() {
            let kept = self.client_keys.keep_number(SAVED_SAFE_POINT, self.gc.txn_safe_point());
            writes.push(MetaWrite::ClientKey(kept));
        }
        Output { writes, ..Output::default() }
    }
}

fn check_past(now: Present, ts: u64) -> Result<(), GcError> {
    if ts > now.ts.get() { Err(GcError::Future(ts)) } else { Ok(()) }
}
