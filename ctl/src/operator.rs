//! `kvctl operator`: changes of regions that run, that are asked for, and that ended.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::admin_api::AdminApi;
use crate::cli::{Global, Operator, Order, SplitArgs};
use crate::error::{Error, Result};
use crate::table::{self, Align};
use crate::{connect, key, pairs, text};

/// How often a command that waits for an operator looks.
const LOOK: Duration = Duration::from_millis(50);

/// An operator, running or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorView {
    /// The region it changes.
    pub region_id: u64,
    /// What it is for.
    #[serde(rename = "desc")]
    pub name: String,
    /// Whose it is: `leader`, `region`, `replica`, `evict` or `admin`.
    pub kind: String,
    /// `running`, `success`, `timeout`, `cancel` or `replace`.
    pub status: String,
    /// What it does, of one that runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// How many steps are done, of one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_step: Option<usize>,
    /// What it did, of one that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brief: Option<String>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long it has run, of one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// How long it ran, of one that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// Runs a verb.
pub async fn run(global: &Global, verb: Operator) -> Result<()> {
    let api = AdminApi::connect(global).await?;
    match verb {
        Operator::List { kind } => {
            let mut found: Vec<OperatorView> = api.get("/pd/api/v1/operators").await?;
            found.retain(|operator| kind.as_ref().is_none_or(|kind| operator.kind == *kind));
            global.output.print(&found, |found| list(found))
        }
        Operator::Show { region } => {
            let found: OperatorView = api.get(&format!("/pd/api/v1/operators/{region}")).await?;
            global.output.print(&found, facts)
        }
        Operator::Cancel { region } => {
            api.delete(&format!("/pd/api/v1/operators/{region}")).await?;
            global.output.print(&json!({ "region_id": region, "status": "cancel" }), |_| "cancelled".into())
        }
        Operator::History { limit } => {
            let mut found: Vec<OperatorView> = api.get("/pd/api/v1/operators/records").await?;
            if limit > 0 {
                found.truncate(limit);
            }
            global.output.print(&found, |found| list(found))
        }
        Operator::Add(order) => add(global, &api, order).await,
    }
}

async fn add(global: &Global, api: &AdminApi, order: Order) -> Result<()> {
    let wish = match order {
        Order::TransferLeader { region, store } => leader_wish(region, store),
        Order::TransferRegion { region, stores } => {
            json!({ "name": "transfer-region", "region_id": region, "to_store_ids": stores })
        }
        Order::TransferPeer { region, from, to } => {
            json!({ "name": "transfer-peer", "region_id": region, "from_store_id": from, "to_store_id": to })
        }
        Order::AddPeer { region, store } => on_store("add-peer", region, store),
        Order::AddLearner { region, store } => on_store("add-learner", region, store),
        Order::RemovePeer { region, store } => on_store("remove-peer", region, store),
        Order::Split(args) => split_wish(global, &args).await?,
        Order::Scatter { regions, group } => return scatter(global, api, regions, group).await,
    };
    let begun: OperatorView = api.post("/pd/api/v1/operators", &wish).await?;
    global.output.print(&begun, facts)
}

fn on_store(name: &str, region: u64, store: u64) -> Value {
    json!({ "name": name, "region_id": region, "store_id": store })
}

fn leader_wish(region: u64, store: u64) -> Value {
    json!({ "name": "transfer-leader", "region_id": region, "to_store_id": store })
}

/// A split at raw keys of the default keyspace.
async fn split_wish(global: &Global, args: &SplitArgs) -> Result<Value> {
    let client = connect::scheduler(global).await?;
    let api = connect::api(&client).await?;
    let boundary = |text: &String| -> Result<String> {
        let user = pairs::parse(args.coding.coding(), "key", text)?;
        let boundary: Bytes = key::boundary_of_raw(user.to_vec(), api);
        Ok(text::to_hex(&boundary))
    };
    let keys = args.keys.iter().map(boundary).collect::<Result<Vec<String>>>()?;
    let policy = if keys.is_empty() { "approximate" } else { "usekey" };
    Ok(json!({ "name": "split-region", "region_id": args.region, "policy": policy, "keys": keys }))
}

/// What became of a wish to scatter.
#[derive(Debug, Serialize, Deserialize)]
struct Scattered {
    scattered: usize,
    failures: Vec<Failure>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    region_id: u64,
    reason: String,
}

async fn scatter(global: &Global, api: &AdminApi, regions: Vec<u64>, group: String) -> Result<()> {
    let wish = json!({ "name": "scatter-regions", "region_ids": regions, "group": group });
    let done: Scattered = api.post("/pd/api/v1/operators", &wish).await?;
    global.output.print(&done, |done| {
        let failures = done.failures.iter().map(|f| format!("\nregion {}: {}", f.region_id, f.reason));
        format!("{} regions{}", done.scattered, failures.collect::<String>())
    })?;
    match done.failures.is_empty() {
        true => Ok(()),
        false => Err(Error::Failed(format!("{} regions are not scattered", done.failures.len()))),
    }
}

/// Hands leadership of a region to a store and waits until it is there.
pub async fn transfer_leader(global: &Global, region: u64, store: u64) -> Result<()> {
    carry_out(global, &leader_wish(region, store)).await
}

/// Splits a region and waits until it is done.
pub async fn split(global: &Global, args: &SplitArgs) -> Result<()> {
    carry_out(global, &split_wish(global, args).await?).await
}

/// Starts an operator and waits for its end.
async fn carry_out(global: &Global, wish: &Value) -> Result<()> {
    let api = AdminApi::connect(global).await?;
    let begun: OperatorView = api.post("/pd/api/v1/operators", wish).await?;
    let (path, started) = (format!("/pd/api/v1/operators/{}", begun.region_id), Instant::now());
    loop {
        let seen: OperatorView = api.get(&path).await?;
        match seen.status.as_str() {
            "success" => return global.output.print(&seen, |seen| format!("done: {}", what(seen))),
            "running" if started.elapsed() > Duration::from_secs(global.timeout) => {
                let (region, seconds) = (begun.region_id, global.timeout);
                return Err(Error::Failed(format!(
                    "not done within {seconds} s, and goes on: look with `kvctl operator show {region}`"
                )));
            }
            "running" => tokio::time::sleep(LOOK).await,
            status => {
                let reason = seen.reason.clone().unwrap_or_default();
                return Err(Error::Failed(format!("{status}: {}: {reason}", what(&seen))));
            }
        }
    }
}

fn what(operator: &OperatorView) -> String {
    match &operator.brief {
        Some(brief) => brief.clone(),
        None => format!("{}: {}", operator.name, operator.steps.join(", ")),
    }
}

fn list(operators: &[OperatorView]) -> String {
    let header = [
        ("REGION", Align::Right),
        ("KIND", Align::Left),
        ("STATUS", Align::Left),
        ("TIME", Align::Right),
        ("WHAT", Align::Left),
        ("WHY", Align::Left),
    ];
    let row = |operator: &OperatorView| {
        let ms = operator.duration_ms.or(operator.age_ms).unwrap_or(0);
        vec![
            operator.region_id.to_string(),
            operator.kind.clone(),
            operator.status.clone(),
            format!("{:.1} s", ms as f64 / 1000.0),
            what(operator),
            operator.reason.clone().unwrap_or_default(),
        ]
    };
    table::rows(&header, operators.iter().map(row))
}

fn facts(operator: &OperatorView) -> String {
    let done = operator.current_step.unwrap_or(operator.steps.len());
    let mark = |(index, step): (usize, &String)| match index < done {
        true => format!("{step} (done)"),
        false => step.clone(),
    };
    let steps: Vec<String> = operator.steps.iter().enumerate().map(mark).collect();
    let ms = operator.duration_ms.or(operator.age_ms).unwrap_or(0);
    let mut rows = vec![
        ("region", operator.region_id.to_string()),
        ("name", operator.name.clone()),
        ("kind", operator.kind.clone()),
        ("status", operator.status.clone()),
        ("time", format!("{:.1} s", ms as f64 / 1000.0)),
        ("steps", operator.brief.clone().unwrap_or_else(|| steps.join(", "))),
    ];
    rows.extend(operator.reason.clone().map(|reason| ("reason", reason)));
    table::facts(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_operator_shows_how_far_it_is() {
        let text = r#"{"desc":"admin-move-peer","region_id":7,"kind":"admin","priority":"urgent","status":"running",
            "steps":["add learner 9 on store 4","promote learner 9 on store 4"],"current_step":1,"created_ms":5,
            "age_ms":1500}"#;
        let view: OperatorView = serde_json::from_str(text).unwrap();
        let shown = facts(&view);
        assert!(shown.contains("add learner 9 on store 4 (done), promote learner 9 on store 4"), "{shown}");
        assert!(list(std::slice::from_ref(&view)).contains("1.5 s"));
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!((&json["desc"], &json["current_step"]), (&json!("admin-move-peer"), &json!(1)));
    }

    #[test]
    fn an_ended_operator_says_why() {
        let text = r#"{"desc":"balance-leader","brief":"balance-leader: transfer leader from store 1 to store 2",
            "region_id":7,"kind":"leader","status":"timeout","reason":"timed out at step transfer leader",
            "created_ms":5,"ended_ms":60005,"duration_ms":60000}"#;
        let view: OperatorView = serde_json::from_str(text).unwrap();
        let shown = list(std::slice::from_ref(&view));
        assert!(
            shown.contains("timeout") && shown.contains("60.0 s") && shown.contains("timed out"),
            "{shown}"
        );
    }
}
