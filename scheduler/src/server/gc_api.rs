//! Safe points over HTTP, as tools of the field ask for them: see them with what holds them back, delete a barrier.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use serde_json::json;

use super::http_api::{Answer, Failure, json_answer, not_found, read};
use super::state::State;
use crate::error::ClusterError;
use crate::gc::{GC_WORKER, Scope, TTL_FOREVER};

/// The routes.
pub fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/pd/api/v1/gc/safepoint", read(show))
        .route("/pd/api/v1/gc/safepoint/{service}", axum::routing::delete(remove))
}

/// The barriers as safe points of services, and the txn safe point as that of the worker.
async fn show(Shared(state): Shared<Arc<State>>) -> Answer {
    json_answer(state.read(|cluster, now_ms| {
        cluster.require_bootstrapped()?;
        let gc = cluster.gc();
        let worker = json!({
            "service_id": GC_WORKER, "expired_at": TTL_FOREVER, "safe_point": gc.txn_safe_point(),
        });
        let services = gc.barriers(now_ms).map(|barrier| {
            json!({
                "service_id": barrier.name,
                "expired_at": barrier.expires_seconds(),
                "safe_point": barrier.ts,
                "is_global": barrier.scope == Scope::Cluster,
            })
        });
        Ok::<_, ClusterError>(json!({
            "service_gc_safe_points": services.chain([worker]).collect::<Vec<_>>(),
            "min_service_gc_safe_point": gc.service_min(now_ms).safe_point,
            "txn_safe_point": gc.txn_safe_point(),
            "gc_safe_point": gc.gc_safe_point(),
        }))
    })?)
}

async fn remove(Shared(state): Shared<Arc<State>>, Path(service): Path<String>) -> Answer {
    if service == GC_WORKER {
        let why = format!("{GC_WORKER} is the txn safe point itself, which only rises");
        return Err(Failure(StatusCode::BAD_REQUEST, why));
    }
    let of = (Scope::Keyspaces, &service[..]);
    let gone = state.change(|cluster, _, now_ms| cluster.delete_gc_barrier(now_ms, of)).await?;
    if gone.is_none() {
        return Err(not_found(format!("no service {service:?} holds a safe point")));
    }
    tracing::info!(service, "barrier of garbage collection deleted");
    json_answer("Delete service GC safepoint successfully.")
}
