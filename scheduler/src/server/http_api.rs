//! The HTTP interface to the cluster, served by the leader: `/pd/api/v1/...`. It reads the same state as gRPC, and
//! answers in JSON; an error is `{"error": "..."}` with a fitting status. HEAD is answered 405, which start-up scripts of
//! the field rely on.

use std::sync::Arc;

use axum::extract::{Path, Query, State as Shared};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::http_json as view;
use super::state::{ChangeError, State};
use super::{config_api, gc_api, operator_api, scheduler_api};
use crate::cluster::Cluster;
use crate::core::store::StoreInfo;
use crate::error::ClusterError;

/// How many regions are copied while the cluster is locked.
const CHUNK: usize = 1024;

/// What a handler returns.
pub(super) type Answer = Result<Response, Failure>;

/// An error with its status.
pub(super) struct Failure(pub StatusCode, pub String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Failure {
        let status = match error {
            ClusterError::NotBootstrapped => StatusCode::SERVICE_UNAVAILABLE,
            ClusterError::UnknownStore(_)
            | ClusterError::UnknownRegion(_)
            | ClusterError::UnknownScheduler(_)
            | ClusterError::NoOperator(_) => StatusCode::NOT_FOUND,
            ClusterError::OperatorRefused { .. } => StatusCode::CONFLICT,
            ClusterError::InvalidScheduler(_) | ClusterError::InvalidSetting(_) | ClusterError::Gc(_) => {
                StatusCode::BAD_REQUEST
            }
            ClusterError::StoreTombstone(_) => StatusCode::GONE,
            ClusterError::TooFewStores { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure(status, error.to_string())
    }
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Failure {
        match error {
            ChangeError::Cluster(error) => error.into(),
            ChangeError::Kv(error) => Failure(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        }
    }
}

pub(super) fn not_found(what: impl Into<String>) -> Failure {
    Failure(StatusCode::NOT_FOUND, what.into())
}

/// A value as JSON.
pub(super) fn json_answer<T: serde::Serialize>(value: T) -> Answer {
    Ok(Json(value).into_response())
}

/// HEAD is not served.
pub(super) async fn no_head() -> impl IntoResponse {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")])
}

/// A route that answers GET, and HEAD with 405.
pub(super) fn read<H, T>(handler: H) -> MethodRouter<Arc<State>>
where
    H: axum::handler::Handler<T, Arc<State>>,
    T: 'static,
{
    get(handler).head(no_head)
}

/// All routes.
pub fn routes(state: Arc<State>) -> Router {
    Router::new()
        .route("/pd/api/v1/stores", read(stores))
        .route("/pd/api/v1/store/{id}", read(store).delete(remove_store))
        .route("/pd/api/v1/regions", read(regions))
        .route("/pd/api/v1/regions/count", read(regions_count))
        .route("/pd/api/v1/region/id/{id}", read(region_by_id))
        .route("/pd/api/v1/region/key/{*key}", read(region_by_key))
        .route("/pd/api/v1/cluster", read(cluster))
        .merge(config_api::routes())
        .merge(gc_api::routes())
        .merge(operator_api::routes())
        .merge(scheduler_api::routes())
        .fallback(|uri: Uri| async move { not_found(format!("no such path: {}", uri.path())) })
        .with_state(state)
}

fn store_view(cluster: &Cluster, store: &StoreInfo, now_ms: u64) -> view::Store {
    let (id, basic) = (store.meta.id, cluster.basic());
    view::Store::new(
        store,
        cluster.store_state(store, now_ms),
        basic.leader_count(id),
        basic.region_count(id),
    )
}

async fn stores(Shared(state): Shared<Arc<State>>) -> Answer {
    let stores: Vec<view::Store> = state.read(|cluster, now_ms| {
        cluster.require_bootstrapped()?;
        let live = cluster
            .basic()
            .stores()
            .filter(|store| store.meta.state() != kvproto::metapb::StoreState::Tombstone);
        Ok::<_, ClusterError>(live.map(|store| store_view(cluster, store, now_ms)).collect())
    })?;
    json_answer(view::Stores { count: stores.len(), stores })
}

async fn store(Shared(state): Shared<Arc<State>>, Path(id): Path<u64>) -> Answer {
    json_answer(state.read(|cluster, now_ms| {
        cluster.require_bootstrapped()?;
        let store = cluster.basic().store(id).ok_or(ClusterError::UnknownStore(id))?;
        Ok::<_, ClusterError>(store_view(cluster, store, now_ms))
    })?)
}

async fn remove_store(Shared(state): Shared<Arc<State>>, Path(id): Path<u64>) -> Answer {
    state.change(|cluster, ids, now_ms| Ok(((), cluster.remove_store(now_ms, id, ids)?))).await?;
    tracing::info!(store_id = id, "store is being removed");
    json_answer("The store is set as Offline.")
}

#[derive(Deserialize)]
struct Page {
    /// The most regions to list; without it all.
    limit: Option<usize>,
}

async fn regions(Shared(state): Shared<Arc<State>>, Query(page): Query<Page>) -> Answer {
    let limit = page.limit.unwrap_or(usize::MAX);
    let mut regions: Vec<view::Region> = Vec::new();
    let mut after = 0;
    loop {
        let want = CHUNK.min(limit - regions.len());
        let chunk: Vec<view::Region> = state.read(|cluster, _| {
            let tree = cluster.basic().regions();
            tree.ids_after(after, want)
                .into_iter()
                .filter_map(|id| tree.get(id))
                .map(view::Region::from)
                .collect()
        });
        let Some(last) = chunk.last() else { break };
        after = last.id;
        regions.extend(chunk);
    }
    json_answer(view::Regions { count: regions.len(), regions })
}

async fn regions_count(Shared(state): Shared<Arc<State>>) -> Answer {
    let count = state.read(|cluster, _| cluster.basic().regions().len());
    json_answer(json!({ "count": count }))
}

async fn region_by_id(Shared(state): Shared<Arc<State>>, Path(id): Path<u64>) -> Answer {
    let region = state.read(|cluster, _| cluster.basic().regions().get(id).map(view::Region::from));
    json_answer(region.ok_or_else(|| not_found(format!("region {id} is not known")))?)
}

#[derive(Deserialize)]
struct KeyFormat {
    /// `hex`: the key in the path is hexadecimal.
    format: Option<String>,
}

/// Keys are arbitrary bytes, so the path is decoded here and not as UTF-8.
async fn region_by_key(
    Shared(state): Shared<Arc<State>>,
    uri: Uri,
    Query(query): Query<KeyFormat>,
) -> Answer {
    let bad = |why: &str| Failure(StatusCode::BAD_REQUEST, why.to_string());
    let text = uri.path().strip_prefix("/pd/api/v1/region/key/").unwrap_or_default();
    let mut key = view::percent_decode(text).ok_or_else(|| bad("the key has a broken %XX escape"))?;
    if query.format.as_deref() == Some("hex") {
        key = view::unhex(&key).ok_or_else(|| bad("the key is not hexadecimal"))?;
    }
    let region = state.read(|cluster, _| cluster.basic().regions().by_key(&key).map(view::Region::from));
    json_answer(region.ok_or_else(|| not_found("no region with this key is known"))?)
}

async fn cluster(Shared(state): Shared<Arc<State>>) -> Answer {
    json_answer(state.read(|cluster, _| {
        json!({
            "id": cluster.id(),
            "max_peer_count": cluster.config().max_replicas,
            "is_bootstrapped": cluster.is_bootstrapped(),
        })
    }))
}
