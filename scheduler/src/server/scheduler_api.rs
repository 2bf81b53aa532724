//! Schedulers over HTTP: list, add, remove, pause and resume, under the field's paths. `/api/v1/schedulers` tells more
//! about each than the field's list of names.

use std::sync::Arc;

use axum::extract::{Path, Query, State as Shared};
use axum::routing::{delete, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::http_api::{Answer, json_answer, read};
use super::state::State;
use crate::cluster::Cluster;
use crate::schedulers::SchedulerName;

/// The routes.
pub fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/pd/api/v1/schedulers", read(names).post(add))
        .route("/pd/api/v1/schedulers/{name}", delete(remove).merge(post(pause)))
        .route("/api/v1/schedulers", read(list))
}

/// A scheduler.
#[derive(Debug, Serialize)]
struct Scheduler {
    name: &'static str,
    /// `running` or `paused`.
    status: &'static str,
    /// When its pause ends, unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_until_ms: Option<u64>,
    /// The stores it works on, where it works on some only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stores: Vec<u64>,
    /// Operators of its kind that run.
    operators: usize,
}

fn view(cluster: &Cluster, now_ms: u64) -> Vec<Scheduler> {
    let schedulers = cluster.schedulers().present().map(|(name, state)| {
        let is_paused = now_ms < state.paused_until_ms;
        Scheduler {
            name: name.as_str(),
            status: if is_paused { "paused" } else { "running" },
            paused_until_ms: is_paused.then_some(state.paused_until_ms),
            stores: state.stores.iter().copied().collect(),
            operators: cluster.operators().filter(|operator| operator.kind() == name.kind()).count(),
        }
    });
    schedulers.collect()
}

#[derive(Deserialize)]
struct Filter {
    /// `paused`: only those.
    status: Option<String>,
}

async fn names(Shared(state): Shared<Arc<State>>, Query(filter): Query<Filter>) -> Answer {
    let is_wanted =
        |scheduler: &Scheduler| filter.status.as_deref().is_none_or(|status| scheduler.status == status);
    let names = state.read(|cluster, now_ms| {
        let wanted = view(cluster, now_ms).into_iter().filter(is_wanted);
        wanted.map(|scheduler| scheduler.name).collect::<Vec<_>>()
    });
    json_answer(names)
}

async fn list(Shared(state): Shared<Arc<State>>) -> Answer {
    json_answer(state.read(view))
}

#[derive(Deserialize)]
struct New {
    name: String,
    store_id: Option<u64>,
}

async fn add(Shared(state): Shared<Arc<State>>, Json(new): Json<New>) -> Answer {
    state.change(|cluster, _, _| Ok(((), cluster.add_scheduler(&new.name, new.store_id)?))).await?;
    json_answer(json!({ "name": new.name }))
}

/// `evict-leader-scheduler-3` is the field's way to give up one store.
fn name_and_store(name: &str) -> (&str, Option<u64>) {
    match name.rsplit_once('-') {
        Some((front, store)) if SchedulerName::parse(front).is_some() => match store.parse() {
            Ok(store) => (front, Some(store)),
            Err(_) => (name, None),
        },
        _ => (name, None),
    }
}

async fn remove(Shared(state): Shared<Arc<State>>, Path(name): Path<String>) -> Answer {
    let (scheduler, store) = name_and_store(&name);
    state.change(|cluster, _, _| Ok(((), cluster.remove_scheduler(scheduler, store)?))).await?;
    json_answer(json!({ "name": name }))
}

#[derive(Deserialize)]
struct Pause {
    /// Seconds; 0 ends a pause.
    delay: u64,
}

async fn pause(
    Shared(state): Shared<Arc<State>>,
    Path(name): Path<String>,
    Json(pause): Json<Pause>,
) -> Answer {
    let delay_ms = pause.delay.saturating_mul(1000);
    state.change(|cluster, _, now_ms| Ok(((), cluster.pause_scheduler(now_ms, &name, delay_ms)?))).await?;
    json_answer(json!({ "name": name, "delay": pause.delay }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_may_hang_on_the_name() {
        assert_eq!(name_and_store("evict-leader-scheduler-3"), ("evict-leader-scheduler", Some(3)));
        assert_eq!(name_and_store("evict-leader-scheduler"), ("evict-leader-scheduler", None));
        assert_eq!(name_and_store("balance-leader-3"), ("balance-leader-3", None));
    }
}
