//! Settings over HTTP, limits of placement and how long old versions are kept: see them, change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::{Json, Router};
use serde_json::{Map, Value};

use super::http_api::{Answer, Failure, json_answer, read};
use super::state::State;
use crate::schedule::settings::{self, Setting};

/// The routes.
pub fn routes() -> Router<Arc<State>> {
    Router::new().route("/pd/api/v1/config/schedule", read(show).post(change))
}

fn json(setting: Setting) -> Value {
    match setting {
        Setting::Number(number) => number.into(),
        Setting::Flag(flag) => flag.into(),
        Setting::Duration(_) => setting.to_string().into(),
    }
}

async fn show(Shared(state): Shared<Arc<State>>) -> Answer {
    let settings = state.read(|cluster, _| settings::all(cluster.config()));
    json_answer(settings.into_iter().map(|(key, value)| (key, json(value))).collect::<BTreeMap<_, _>>())
}

async fn change(Shared(state): Shared<Arc<State>>, Json(changes): Json<Map<String, Value>>) -> Answer {
    let bad = |key: &str| {
        Failure(
            StatusCode::BAD_REQUEST,
            format!("{key} must be a number, a duration such as \"10m\", true or false"),
        )
    };
    let mut wanted = Vec::with_capacity(changes.len());
    for (key, value) in changes {
        let setting = match &value {
            Value::Bool(flag) => Some(Setting::Flag(*flag)),
            Value::String(text) => {
                Setting::parse(text).filter(|setting| matches!(setting, Setting::Duration(_)))
            }
            other => other.as_u64().map(Setting::Number),
        };
        wanted.push((key.clone(), setting.ok_or_else(|| bad(&key))?));
    }
    state.change(|cluster, _, _| Ok(((), cluster.change_settings(&wanted)?))).await?;
    for (key, value) in &wanted {
        tracing::info!(key, %value, "setting changed");
    }
    show(Shared(state)).await
}
