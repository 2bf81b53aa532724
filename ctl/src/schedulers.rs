//! `kvctl scheduler`: what evens out the cluster, and what keeps stores free of leaders.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::admin_api::AdminApi;
use crate::cli::{Global, Scheduler};
use crate::connect;
use crate::error::Result;
use crate::table::{self, Align};

/// A scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerView {
    /// Its name.
    pub name: String,
    /// `running` or `paused`.
    pub status: String,
    /// When its pause ends, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until_ms: Option<u64>,
    /// The stores it works on, where it works on some only.
    #[serde(default)]
    pub stores: Vec<u64>,
    /// Operators of its kind that run.
    pub operators: usize,
}

/// Runs a verb.
pub async fn run(global: &Global, verb: Scheduler) -> Result<()> {
    let api = AdminApi::connect(global).await?;
    let done = |what: &str, name: &str| {
        let (value, text) = (json!({ "name": name, "done": what }), format!("{what} {name}"));
        global.output.print(&value, |_| text)
    };
    match verb {
        Scheduler::List => {
            let found: Vec<SchedulerView> = api.get("/api/v1/schedulers").await?;
            global.output.print(&found, |found| list(found, connect::unix_seconds()))
        }
        Scheduler::Add { name, store } => {
            let body = json!({ "name": name, "store_id": store });
            let _added: Value = api.post("/pd/api/v1/schedulers", &body).await?;
            done("added", &name)
        }
        Scheduler::Remove { name, store } => {
            let store = store.map(|id| format!("-{id}")).unwrap_or_default();
            api.delete(&format!("/pd/api/v1/schedulers/{name}{store}")).await?;
            done("removed", &name)
        }
        Scheduler::Pause { name, seconds } => {
            pause(&api, &name, seconds).await?;
            done("paused", &name)
        }
        Scheduler::Resume { name } => {
            pause(&api, &name, 0).await?;
            done("resumed", &name)
        }
    }
}

async fn pause(api: &AdminApi, name: &str, seconds: u64) -> Result<()> {
    let path = format!("/pd/api/v1/schedulers/{name}");
    api.post::<Value>(&path, &json!({ "delay": seconds })).await.map(drop)
}

fn list(schedulers: &[SchedulerView], now_seconds: u64) -> String {
    let header = [
        ("NAME", Align::Left),
        ("STATUS", Align::Left),
        ("OPERATORS", Align::Right),
        ("STORES", Align::Left),
    ];
    let row = |scheduler: &SchedulerView| {
        let status = match scheduler.paused_until_ms {
            Some(until) => format!("paused for {} s", (until / 1000).saturating_sub(now_seconds)),
            None => scheduler.status.clone(),
        };
        let stores: Vec<String> = scheduler.stores.iter().map(u64::to_string).collect();
        vec![scheduler.name.clone(), status, scheduler.operators.to_string(), stores.join(", ")]
    };
    table::rows(&header, schedulers.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_and_stores_are_shown() {
        let text = r#"[{"name":"balance-leader-scheduler","status":"paused","paused_until_ms":90000,"operators":0},
            {"name":"evict-leader-scheduler","status":"running","stores":[1,4],"operators":2}]"#;
        let views: Vec<SchedulerView> = serde_json::from_str(text).unwrap();
        let shown = list(&views, 60);
        assert!(shown.contains("paused for 30 s") && shown.contains("1, 4"), "{shown}");
    }
}
