//! Operators over HTTP, under the field's paths: list, look at, ask for, cancel; and those that ended.
//!
//! Times are unix milliseconds. Keys are hexadecimal, in the form of region boundaries.

use std::sync::Arc;

use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::http_api::{Answer, Failure, json_answer, not_found, read};
use super::http_json::unhex;
use super::state::State;
use crate::cluster::Cluster;
use crate::schedule::operator::{Cancel, Operator};
use crate::schedule::operator_controller::{OperatorRecord, Outcome};
use crate::schedule::order::Order;

/// The routes.
pub fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/pd/api/v1/operators", read(list).post(create))
        .route("/pd/api/v1/operators/records", read(records))
        .route("/pd/api/v1/operators/{region_id}", read(show).delete(cancel))
}

/// A running operator.
#[derive(Debug, Serialize)]
struct Running {
    desc: &'static str,
    region_id: u64,
    kind: &'static str,
    priority: &'static str,
    status: &'static str,
    steps: Vec<String>,
    /// How many steps are done.
    current_step: usize,
    created_ms: u64,
    age_ms: u64,
}

impl Running {
    fn new(operator: &Operator, now_ms: u64) -> Running {
        let (steps, current_step) = operator.steps();
        Running {
            desc: operator.name(),
            region_id: operator.region_id(),
            kind: operator.kind().name(),
            priority: operator.kind().priority().name(),
            status: "running",
            steps: steps.iter().map(ToString::to_string).collect(),
            current_step,
            created_ms: operator.created_ms(),
            age_ms: now_ms.saturating_sub(operator.created_ms()),
        }
    }
}

/// An operator that ended.
#[derive(Debug, Serialize)]
struct Ended {
    desc: &'static str,
    brief: String,
    region_id: u64,
    kind: &'static str,
    /// `success`, `timeout`, `cancel` or `replace`.
    status: &'static str,
    /// Why it did not succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    created_ms: u64,
    ended_ms: u64,
    duration_ms: u64,
}

impl From<&OperatorRecord> for Ended {
    fn from(record: &OperatorRecord) -> Ended {
        let (status, reason) = match &record.outcome {
            Outcome::Finished => ("success", None),
            Outcome::Cancelled(cause) => {
                let status = match cause {
                    Cancel::TimedOut { .. } => "timeout",
                    Cancel::Replaced { .. } => "replace",
                    _ => "cancel",
                };
                (status, Some(cause.to_string()))
            }
        };
        Ended {
            desc: record.name,
            brief: record.description.clone(),
            region_id: record.region_id,
            kind: record.kind.name(),
            status,
            reason,
            created_ms: record.created_ms,
            ended_ms: record.ended_ms,
            duration_ms: record.ended_ms.saturating_sub(record.created_ms),
        }
    }
}

#[derive(Deserialize)]
struct Filter {
    /// Only operators of this kind.
    kind: Option<String>,
}

async fn list(Shared(state): Shared<Arc<State>>, Query(filter): Query<Filter>) -> Answer {
    json_answer(state.read(|cluster, now_ms| {
        let is_wanted =
            |operator: &&Operator| filter.kind.as_deref().is_none_or(|kind| operator.kind().name() == kind);
        let running = cluster.operators().filter(is_wanted);
        running.map(|operator| Running::new(operator, now_ms)).collect::<Vec<_>>()
    }))
}

#[derive(Deserialize)]
struct Since {
    /// Unix seconds; older ones are left out.
    from: Option<u64>,
}

async fn records(Shared(state): Shared<Arc<State>>, Query(since): Query<Since>) -> Answer {
    let from_ms = since.from.unwrap_or(0).saturating_mul(1000);
    json_answer(state.read(|cluster, _| {
        let records = cluster.operator_records().filter(|record| record.ended_ms >= from_ms);
        records.map(Ended::from).collect::<Vec<_>>()
    }))
}

/// The region's operator: the running one, or the one that ended last.
async fn show(Shared(state): Shared<Arc<State>>, Path(region_id): Path<u64>) -> Answer {
    let found = state.read(|cluster, now_ms| look_up(cluster, region_id, now_ms));
    json_answer(found.ok_or_else(|| not_found(format!("region {region_id} has had no operator lately")))?)
}

#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Running(Running),
    Ended(Ended),
}

fn look_up(cluster: &Cluster, region_id: u64, now_ms: u64) -> Option<Found> {
    if let Some(operator) = cluster.operator(region_id) {
        return Some(Found::Running(Running::new(operator, now_ms)));
    }
    let ended = cluster.operator_records().find(|record| record.region_id == region_id)?;
    Some(Found::Ended(Ended::from(ended)))
}

async fn cancel(Shared(state): Shared<Arc<State>>, Path(region_id): Path<u64>) -> Answer {
    state.change(|cluster, _, now_ms| Ok(((), cluster.cancel_operator(now_ms, region_id)?))).await?;
    json_answer(json!({ "region_id": region_id, "status": "cancel" }))
}

/// What is asked for. Which fields count depends on the name.
#[derive(Debug, Deserialize)]
struct Wish {
    name: String,
    region_id: Option<u64>,
    region_ids: Option<Vec<u64>>,
    store_id: Option<u64>,
    from_store_id: Option<u64>,
    to_store_id: Option<u64>,
    to_store_ids: Option<Vec<u64>>,
    keys: Option<Vec<String>>,
    group: Option<String>,
}

fn need<T>(name: &str, value: Option<T>) -> Result<T, Failure> {
    value.ok_or_else(|| Failure(StatusCode::BAD_REQUEST, format!("{name} is missing")))
}

impl Wish {
    fn order(self) -> Result<Order, Failure> {
        Ok(match self.name.as_str() {
            "transfer-leader" => {
                Order::TransferLeader { to_store_id: need("to_store_id", self.to_store_id)? }
            }
            "transfer-region" => {
                Order::TransferRegion { to_store_ids: need("to_store_ids", self.to_store_ids)? }
            }
            "transfer-peer" => Order::TransferPeer {
                from_store_id: need("from_store_id", self.from_store_id)?,
                to_store_id: need("to_store_id", self.to_store_id)?,
            },
            "add-peer" => Order::AddPeer { store_id: need("store_id", self.store_id)? },
            "add-learner" => Order::AddLearner { store_id: need("store_id", self.store_id)? },
            "remove-peer" => Order::RemovePeer { store_id: need("store_id", self.store_id)? },
            "split-region" => Order::Split { keys: split_keys(self.keys.unwrap_or_default())? },
            other => {
                let known = "transfer-leader, transfer-region, transfer-peer, add-peer, add-learner, \
                             remove-peer, split-region, scatter-region, scatter-regions";
                let text = format!("there is no operator {other:?}; there are {known}");
                return Err(Failure(StatusCode::BAD_REQUEST, text));
            }
        })
    }
}

fn split_keys(keys: Vec<String>) -> Result<Vec<Bytes>, Failure> {
    let bad = |key: &str| Failure(StatusCode::BAD_REQUEST, format!("split key {key:?} is not hexadecimal"));
    keys.iter().map(|key| Ok(unhex(key.as_bytes()).ok_or_else(|| bad(key))?.into())).collect()
}

async fn create(Shared(state): Shared<Arc<State>>, Json(wish): Json<Wish>) -> Answer {
    if matches!(wish.name.as_str(), "scatter-region" | "scatter-regions") {
        return scatter(&state, wish).await;
    }
    let region_id = need("region_id", wish.region_id)?;
    let order = wish.order()?;
    state.change(|cluster, ids, now_ms| Ok(((), cluster.order(now_ms, region_id, order, ids)?))).await?;
    let found = state.read(|cluster, now_ms| look_up(cluster, region_id, now_ms));
    Ok((StatusCode::OK, Json(found)).into_response())
}

async fn scatter(state: &Arc<State>, wish: Wish) -> Answer {
    let group = wish.group.unwrap_or_default();
    let regions = match (wish.region_id, wish.region_ids) {
        (Some(one), None) => vec![one],
        (None, Some(many)) => many,
        _ => return Err(Failure(StatusCode::BAD_REQUEST, "give either region_id or region_ids".into())),
    };
    let mut failures = Vec::new();
    for region_id in &regions {
        let done = state
            .change(|cluster, ids, now_ms| Ok(((), cluster.scatter(now_ms, *region_id, &group, ids)?)))
            .await;
        if let Err(error) = done {
            failures.push(json!({ "region_id": region_id, "reason": error.to_string() }));
        }
    }
    json_answer(json!({ "scattered": regions.len() - failures.len(), "failures": failures }))
}
