//! The status server: plain HTTP for people, probes and Prometheus.
//!
//! `/status` who this is, `/ready` whether to send requests here (200 or 503 with the reasons), `/metrics`,
//! `/config` the effective configuration, `/region/{id}` one region as its readers see it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use kvproto::key;
use serde_json::{Value, json};

use super::admission::Admission;
use crate::clock::{self, Now};
use crate::config::{Api, Config};
use crate::metrics::Metrics;
use crate::raftstore::meta::region_view::RegionView;
use crate::storage::store::Store;

/// What the pages show.
pub struct StatusPages {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub admission: Arc<Admission>,
    pub metrics: Arc<Metrics>,
    pub role: &'static str,
    pub started: Now,
}

/// The pages as a service.
pub fn router(pages: Arc<StatusPages>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/config", get(config))
        .route("/region/{id}", get(region))
        .fallback(|| async { (StatusCode::NOT_FOUND, "try /status /ready /metrics /config /region/{id}\n") })
        .with_state(pages)
}

async fn status(State(pages): State<Arc<StatusPages>>) -> Json<Value> {
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "role": pages.role,
        "cluster_id": pages.store.cluster_id(),
        "store_id": pages.store.store_id(),
        "address": pages.config.server.advertise_addr,
        "uptime_seconds": clock::now().since(pages.started) / 1_000_000_000,
        "regions": pages.store.views().all().len(),
        "not_ready": pages.store.not_ready(),
    }))
}

async fn ready(State(pages): State<Arc<StatusPages>>) -> Response {
    let reasons = pages.store.not_ready();
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

async fn metrics(State(pages): State<Arc<StatusPages>>) -> Response {
    let used = pages.admission.used();
    pages.metrics.set_engine(&pages.store.engine_stats(), pages.store.stalled(), used.requests);
    match pages.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn config(State(pages): State<Arc<StatusPages>>) -> Response {
    match serde_json::to_value(&pages.config) {
        Ok(mut config) => {
            // Tools of the field look for the number.
            config["storage"]["api-version"] = match pages.config.storage.api {
                Api::V1 => 1.into(),
                Api::V2 => 2.into(),
            };
            Json(config).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn region(State(pages): State<Arc<StatusPages>>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<u64>() else {
        return (StatusCode::BAD_REQUEST, format!("{id:?} is no region id\n")).into_response();
    };
    match pages.store.views().get(id) {
        Some((_, view)) => {
            let mut described = describe(&view);
            described["raft"] = json!(pages.store.inspect(id).await.as_deref());
            Json(described).into_response()
        }
        None => (StatusCode::NOT_FOUND, format!("region {id} has no peer on this store\n")).into_response(),
    }
}

fn describe(view: &RegionView) -> Value {
    let (meta, region) = (&view.meta, &view.meta.region);
    let peer = |p: &kvproto::metapb::Peer| json!({ "id": p.id, "store_id": p.store_id, "role": p.role });
    json!({
        "id": region.id,
        "start_key": hex(&meta.start),
        "end_key": hex(&meta.end),
        "prefix": key::split_wire_key(&meta.start).map(|(mode, id, _)| format!("{mode:?} {}", id.get())),
        "epoch": { "version": meta.version(), "conf_ver": meta.conf_ver() },
        "peers": region.peers.iter().map(peer).collect::<Vec<_>>(),
        "peer_id": view.peer.id,
        "leader": view.leader.as_ref().map(peer),
        "term": view.term,
        "serves": view.serves,
        "lease_alive": view.lease_alive(clock::now()),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}
