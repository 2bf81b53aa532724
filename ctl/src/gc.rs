//! `kvctl gc`: how far old versions may be forgotten, what holds that back, and the settings behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use kvclient::{GcBarrier, GcState};
use kvproto::ts::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::admin_api::AdminApi;
use crate::cli::{Barrier, Gc, GcVerb, Global};
use crate::error::{Error, Result};
use crate::moment::{self, Moment, TimestampView};
use crate::table::{self, Align};
use crate::{config, connect};

/// The state of garbage collection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GcView {
    /// Reads and transactions that begin below it are refused.
    pub txn_safe_point: TimestampView,
    /// Old versions up to here are dropped.
    pub gc_safe_point: TimestampView,
    /// The scheduler's settings, by name.
    pub settings: BTreeMap<String, Value>,
    /// What holds the txn safe point.
    pub barriers: Vec<BarrierView>,
}

/// A barrier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BarrierView {
    /// Chosen by who set it.
    pub name: String,
    /// What is visible here and later is kept.
    #[serde(flatten)]
    pub at: TimestampView,
    /// Null for one that never expires.
    pub ttl_seconds: Option<u64>,
    /// Set for the whole cluster, not for a keyspace.
    pub is_global: bool,
}

impl From<GcBarrier> for BarrierView {
    fn from(barrier: GcBarrier) -> BarrierView {
        BarrierView {
            name: barrier.name,
            at: barrier.ts.into(),
            ttl_seconds: barrier.ttl.map(|left| left.as_secs()),
            is_global: barrier.is_global,
        }
    }
}

/// What became of the wish for a safe point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct MovedView {
    txn_safe_point: TimestampView,
    moved: bool,
    /// What holds it back, in words.
    blocker: Option<String>,
}

/// Runs a verb.
pub async fn run(global: &Global, args: Gc) -> Result<()> {
    match args.verb.unwrap_or(GcVerb::Show) {
        GcVerb::Show => {
            let state = connect::scheduler(global).await?.gc_state().await?;
            let settings = AdminApi::connect(global).await?.get(config::PATH).await?;
            global.output.print(&view(state, settings), facts)
        }
        GcVerb::SetSafePoint { moment } => set_safe_point(global, Moment::parse(&moment)?).await,
        GcVerb::Barrier(Barrier::Set { name, moment, ttl }) => {
            let moment = Moment::parse(&moment)?;
            let ttl = ttl.as_deref().map(moment::duration).transpose()?;
            let client = connect::scheduler(global).await?;
            let ts = moment.timestamp(client.get_timestamp(1).await?);
            let barrier = client.set_gc_barrier(&name, ts, ttl).await.map_err(usage)?;
            global.output.print(&BarrierView::from(barrier), |barrier| {
                format!("what is visible at {} is kept {}", barrier.at.line(), kept(barrier.ttl_seconds))
            })
        }
        GcVerb::Barrier(Barrier::Delete { name }) => {
            let gone = connect::scheduler(global).await?.delete_gc_barrier(&name).await.map_err(usage)?;
            let gone = gone.ok_or_else(|| Error::NotFound(format!("there is no barrier {name:?}")))?;
            global.output.print(&BarrierView::from(gone), |barrier| {
                format!("barrier {:?} at {} is deleted", barrier.name, barrier.at.line())
            })
        }
    }
}

async fn set_safe_point(global: &Global, moment: Moment) -> Result<()> {
    let client = connect::scheduler(global).await?;
    let target = moment.timestamp(client.get_timestamp(1).await?);
    if target == Timestamp::ZERO {
        return Err(Error::Usage("the safe point needs a timestamp above 0".into()));
    }
    let advanced = client.advance_txn_safe_point(Some(target)).await.map_err(usage)?;
    let view = MovedView {
        txn_safe_point: advanced.new.into(),
        moved: advanced.new > advanced.old,
        blocker: advanced.blocker,
    };
    global.output.print(&view, |view| match &view.blocker {
        Some(blocker) => format!("the txn safe point is {}: {blocker} holds it", view.txn_safe_point.line()),
        None => format!(
            "the txn safe point is {}; stores drop older versions when they have ended older transactions",
            view.txn_safe_point.line()
        ),
    })
}

/// What the scheduler refuses here was asked wrongly.
fn usage(error: kvclient::Error) -> Error {
    match error {
        kvclient::Error::Scheduler { kind: kvproto::pdpb::ErrorType::InvalidValue, message } => {
            Error::Usage(message)
        }
        other => other.into(),
    }
}

fn view(state: GcState, settings: BTreeMap<String, Value>) -> GcView {
    GcView {
        txn_safe_point: state.txn_safe_point.into(),
        gc_safe_point: state.gc_safe_point.into(),
        settings: settings.into_iter().filter(|(name, _)| name.starts_with("gc.")).collect(),
        barriers: state.barriers.into_iter().map(BarrierView::from).collect(),
    }
}

fn kept(ttl_seconds: Option<u64>) -> String {
    match ttl_seconds {
        Some(seconds) => format!("for {}", moment::describe(Duration::from_secs(seconds))),
        None => "until the barrier is deleted".into(),
    }
}

fn facts(view: &GcView) -> String {
    let mut lines =
        vec![("txn safe point", view.txn_safe_point.line()), ("gc safe point", view.gc_safe_point.line())];
    lines.extend(view.settings.iter().map(|(name, value)| (name.as_str(), config::text(value))));
    let mut text = table::facts(lines);
    if !view.barriers.is_empty() {
        let header = [("BARRIER", Align::Left), ("KEEPS FROM", Align::Left), ("TIME LEFT", Align::Left)];
        let row = |barrier: &BarrierView| {
            let name =
                if barrier.is_global { format!("{} (global)", barrier.name) } else { barrier.name.clone() };
            let left =
                barrier.ttl_seconds.map_or("for ever".into(), |s| moment::describe(Duration::from_secs(s)));
            vec![name, barrier.at.line(), left]
        };
        text.push_str("\n\n");
        text.push_str(&table::rows(&header, view.barriers.iter().map(row)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_shows_settings_of_its_own_and_barriers() {
        let barrier = GcBarrier {
            name: "backup".into(),
            ts: Timestamp::compose(951_782_400_000, 1).unwrap(),
            ttl: Some(Duration::from_secs(3_600)),
            is_global: true,
        };
        let state = GcState { barriers: vec![barrier], ..GcState::default() };
        let settings = [("gc.life-time", "10m"), ("leader-schedule-limit", "4")];
        let settings = settings.map(|(name, value)| (name.to_string(), Value::from(value)));
        let view = view(state, settings.into_iter().collect());
        let text = facts(&view);
        assert!(text.contains("txn safe point  0 (none)") && text.contains("gc.life-time    10m"), "{text}");
        assert!(
            text.contains("backup (global)  249504045465600001 (2000-02-29 00:00:00.000 UTC)  1h"),
            "{text}"
        );
        assert!(!text.contains("leader-schedule-limit"), "{text}");
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["barriers"][0]["ttl_seconds"], 3_600);
        assert_eq!(json["barriers"][0]["logical"], 1);
    }
}
