//! Safe points and barriers over gRPC, in both protocols that clients of the field speak: safe points of services, and
//! GC states with barriers.
//!
//! Holds no state. What is answered is durable; rules are in [`crate::gc`]. All keyspaces share the safe points: a
//! request about one keyspace is answered with those of the whole cluster, and only a request about none moves them.

use kvproto::pdpb::{self, keyspace_scope::Keyspace};
use tonic::{Response, Status};

use super::grpc_service::GrpcService;
use crate::cluster::{Cluster, NULL_KEYSPACE};
use crate::error::ClusterError;
use crate::gc::{Barrier, GcError, Scope};

type Reply<T> = Result<Response<T>, Status>;

fn keyspace_of(scope: Option<pdpb::KeyspaceScope>) -> u32 {
    match scope.and_then(|scope| scope.keyspace) {
        Some(Keyspace::KeyspaceId(id)) => id,
        None => NULL_KEYSPACE,
    }
}

/// Only the whole cluster's safe points can be moved.
fn whole_cluster(scope: Option<pdpb::KeyspaceScope>) -> Result<(), ClusterError> {
    if keyspace_of(scope) == NULL_KEYSPACE { Ok(()) } else { Err(GcError::OneKeyspace.into()) }
}

fn barrier_info(barrier: &Barrier, now_ms: u64) -> pdpb::GcBarrierInfo {
    pdpb::GcBarrierInfo {
        barrier_id: barrier.name.clone(),
        barrier_ts: barrier.ts,
        ttl_seconds: barrier.ttl_seconds(now_ms),
    }
}

fn global_info(barrier: &Barrier, now_ms: u64) -> pdpb::GlobalGcBarrierInfo {
    let pdpb::GcBarrierInfo { barrier_id, barrier_ts, ttl_seconds } = barrier_info(barrier, now_ms);
    pdpb::GlobalGcBarrierInfo { barrier_id, barrier_ts, ttl_seconds }
}

fn globals(cluster: &Cluster, now_ms: u64) -> Vec<pdpb::GlobalGcBarrierInfo> {
    let live = cluster.gc().barriers(now_ms);
    live.filter(|barrier| barrier.scope == Scope::Cluster)
        .map(|barrier| global_info(barrier, now_ms))
        .collect()
}

/// The state that all keyspaces share.
fn shared_state(cluster: &Cluster, now_ms: u64, without_barriers: bool) -> pdpb::GcState {
    let live = cluster.gc().barriers(now_ms);
    let own = live.filter(|barrier| barrier.scope == Scope::Keyspaces && !without_barriers);
    pdpb::GcState {
        keyspace_scope: Some(pdpb::KeyspaceScope { keyspace: Some(Keyspace::KeyspaceId(NULL_KEYSPACE)) }),
        is_keyspace_level_gc: false,
        txn_safe_point: cluster.gc().txn_safe_point(),
        gc_safe_point: cluster.gc().gc_safe_point(),
        gc_barriers: own.map(|barrier| barrier_info(barrier, now_ms)).collect(),
    }
}

impl GrpcService {
    pub(super) async fn safe_point(
        &self,
        request: pdpb::GetGcSafePointRequest,
    ) -> Reply<pdpb::GetGcSafePointResponse> {
        self.check(request.header.as_ref())?;
        let (header, safe_point) = self.look_up(|cluster| Ok(cluster.gc().gc_safe_point()))?;
        Ok(Response::new(pdpb::GetGcSafePointResponse { header, safe_point }))
    }

    pub(super) async fn raise_safe_point(
        &self,
        request: pdpb::UpdateGcSafePointRequest,
    ) -> Reply<pdpb::UpdateGcSafePointResponse> {
        self.check(request.header.as_ref())?;
        let (present, to) = (self.present().await?, request.safe_point);
        let raised = self.state.change(|cluster, _, _| cluster.update_gc_safe_point(present, to)).await;
        let (header, new_safe_point) = self.split(raised)?;
        Ok(Response::new(pdpb::UpdateGcSafePointResponse { header, new_safe_point }))
    }

    pub(super) async fn take_service_safe_point(
        &self,
        request: pdpb::UpdateServiceGcSafePointRequest,
    ) -> Reply<pdpb::UpdateServiceGcSafePointResponse> {
        self.check(request.header.as_ref())?;
        let present = self.present().await?;
        let taken = self.state.change(|cluster, _, _| {
            let name = std::str::from_utf8(&request.service_id).map_err(|_| GcError::Name)?;
            let (min, out) =
                cluster.update_service_safe_point(present, name, request.safe_point, request.ttl)?;
            Ok((Some(min), out))
        });
        let (header, min) = self.split(taken.await)?;
        let answer = pdpb::UpdateServiceGcSafePointResponse { header, ..Default::default() };
        Ok(Response::new(match min {
            None => answer,
            Some(min) => pdpb::UpdateServiceGcSafePointResponse {
                service_id: min.name.into(),
                ttl: min.ttl_seconds,
                min_safe_point: min.safe_point,
                ..answer
            },
        }))
    }

    pub(super) async fn move_txn_safe_point(
        &self,
        request: pdpb::AdvanceTxnSafePointRequest,
    ) -> Reply<pdpb::AdvanceTxnSafePointResponse> {
        self.check(request.header.as_ref())?;
        let present = self.present().await?;
        let moved = self.state.change(|cluster, _, _| {
            whole_cluster(request.keyspace_scope)?;
            let (advanced, out) = cluster.advance_txn_safe_point(present, request.target)?;
            Ok((Some(advanced), out))
        });
        let (header, advanced) = self.split(moved.await)?;
        let answer = pdpb::AdvanceTxnSafePointResponse { header, ..Default::default() };
        Ok(Response::new(match advanced {
            None => answer,
            Some(advanced) => pdpb::AdvanceTxnSafePointResponse {
                old_txn_safe_point: advanced.old,
                new_txn_safe_point: advanced.new,
                blocker_description: advanced.blocker.unwrap_or_default(),
                ..answer
            },
        }))
    }

    pub(super) async fn move_gc_safe_point(
        &self,
        request: pdpb::AdvanceGcSafePointRequest,
    ) -> Reply<pdpb::AdvanceGcSafePointResponse> {
        self.check(request.header.as_ref())?;
        let target = request.target;
        let moved = self.state.change(|cluster, _, _| {
            whole_cluster(request.keyspace_scope)?;
            let (old, out) = cluster.advance_gc_safe_point(target)?;
            Ok(((old, target), out))
        });
        let (header, (old_gc_safe_point, new_gc_safe_point)) = self.split(moved.await)?;
        Ok(Response::new(pdpb::AdvanceGcSafePointResponse { header, old_gc_safe_point, new_gc_safe_point }))
    }

    /// Sets a barrier that the keyspace of the request, if any, may set.
    async fn set(
        &self,
        of: (Scope, &str),
        keyspace: u32,
        ts: u64,
        ttl_seconds: i64,
    ) -> Result<(Option<pdpb::ResponseHeader>, Option<Barrier>), Status> {
        let set = self.state.change(|cluster, _, now_ms| {
            cluster.check_gc_keyspace(keyspace)?;
            let (barrier, out) = cluster.set_gc_barrier(now_ms, of, ts, ttl_seconds)?;
            Ok((Some(barrier), out))
        });
        self.split(set.await)
    }

    async fn delete(
        &self,
        of: (Scope, &str),
        keyspace: u32,
    ) -> Result<(Option<pdpb::ResponseHeader>, Option<Barrier>), Status> {
        let deleted = self.state.change(|cluster, _, now_ms| {
            cluster.check_gc_keyspace(keyspace)?;
            cluster.delete_gc_barrier(now_ms, of)
        });
        self.split(deleted.await)
    }

    pub(super) async fn put_barrier(
        &self,
        request: pdpb::SetGcBarrierRequest,
    ) -> Reply<pdpb::SetGcBarrierResponse> {
        self.check(request.header.as_ref())?;
        let (of, keyspace) =
            ((Scope::Keyspaces, &request.barrier_id[..]), keyspace_of(request.keyspace_scope));
        let (header, set) = self.set(of, keyspace, request.barrier_ts, request.ttl_seconds).await?;
        let new_barrier_info = set.map(|barrier| barrier_info(&barrier, self.state.clock.now_ms()));
        Ok(Response::new(pdpb::SetGcBarrierResponse { header, new_barrier_info }))
    }

    pub(super) async fn drop_barrier(
        &self,
        request: pdpb::DeleteGcBarrierRequest,
    ) -> Reply<pdpb::DeleteGcBarrierResponse> {
        self.check(request.header.as_ref())?;
        let of = (Scope::Keyspaces, &request.barrier_id[..]);
        let (header, gone) = self.delete(of, keyspace_of(request.keyspace_scope)).await?;
        let deleted_barrier_info = gone.map(|barrier| barrier_info(&barrier, self.state.clock.now_ms()));
        Ok(Response::new(pdpb::DeleteGcBarrierResponse { header, deleted_barrier_info }))
    }

    pub(super) async fn put_global_barrier(
        &self,
        request: pdpb::SetGlobalGcBarrierRequest,
    ) -> Reply<pdpb::SetGlobalGcBarrierResponse> {
        self.check(request.header.as_ref())?;
        let of = (Scope::Cluster, &request.barrier_id[..]);
        let (header, set) = self.set(of, NULL_KEYSPACE, request.barrier_ts, request.ttl_seconds).await?;
        let new_barrier_info = set.map(|barrier| global_info(&barrier, self.state.clock.now_ms()));
        Ok(Response::new(pdpb::SetGlobalGcBarrierResponse { header, new_barrier_info }))
    }

    pub(super) async fn drop_global_barrier(
        &self,
        request: pdpb::DeleteGlobalGcBarrierRequest,
    ) -> Reply<pdpb::DeleteGlobalGcBarrierResponse> {
        self.check(request.header.as_ref())?;
        let (header, gone) = self.delete((Scope::Cluster, &request.barrier_id[..]), NULL_KEYSPACE).await?;
        let deleted_barrier_info = gone.map(|barrier| global_info(&barrier, self.state.clock.now_ms()));
        Ok(Response::new(pdpb::DeleteGlobalGcBarrierResponse { header, deleted_barrier_info }))
    }

    pub(super) async fn gc_state(&self, request: pdpb::GetGcStateRequest) -> Reply<pdpb::GetGcStateResponse> {
        self.check(request.header.as_ref())?;
        let now_ms = self.state.clock.now_ms();
        let (header, found) = self.look_up(|cluster| {
            cluster.check_gc_keyspace(keyspace_of(request.keyspace_scope))?;
            let state = shared_state(cluster, now_ms, request.exclude_gc_barriers);
            let barriers = || pdpb::GlobalGcBarriersInfo { barriers: globals(cluster, now_ms) };
            Ok(Some((state, request.include_global_gc_barriers.then(barriers))))
        })?;
        let (gc_state, global_gc_barriers) = found.map_or((None, None), |(state, all)| (Some(state), all));
        Ok(Response::new(pdpb::GetGcStateResponse { header, gc_state, global_gc_barriers }))
    }

    pub(super) async fn gc_states(
        &self,
        request: pdpb::GetAllKeyspacesGcStatesRequest,
    ) -> Reply<pdpb::GetAllKeyspacesGcStatesResponse> {
        self.check(request.header.as_ref())?;
        let now_ms = self.state.clock.now_ms();
        let (header, (gc_states, global_gc_barriers)) = self.look_up(|cluster| {
            let global = match request.exclude_global_gc_barriers {
                true => Vec::new(),
                false => globals(cluster, now_ms),
            };
            Ok((vec![shared_state(cluster, now_ms, request.exclude_gc_barriers)], global))
        })?;
        Ok(Response::new(pdpb::GetAllKeyspacesGcStatesResponse { header, gc_states, global_gc_barriers }))
    }
}
