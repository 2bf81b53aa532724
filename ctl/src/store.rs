//! `kvctl store`: the stores as the scheduler knows them, with what they hold, and the removal of one.

use std::collections::BTreeMap;

use kvproto::metapb;
use serde::Serialize;

use crate::admin_api::AdminApi;
use crate::cli::{Global, Store};
use crate::error::{Error, Result};
use crate::table::{self, Align};
use crate::{connect, region};

/// A store that was silent for longer is shown as disconnected, as the scheduler's own default has it.
const SILENT_SECONDS: u64 = 20;

/// A store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreView {
    /// Its number; never used again after it left.
    pub id: u64,
    /// Where clients reach it.
    pub address: String,
    /// Where its metrics and status are.
    pub status_address: String,
    /// `up`, `disconnected`, `offline` or `tombstone`.
    pub state: &'static str,
    /// Seconds since it was last heard of; null when the scheduler does not tell.
    pub silent_seconds: Option<u64>,
    /// Regions it leads.
    pub leaders: u64,
    /// Replicas it holds.
    pub peers: u64,
    /// Of the program.
    pub version: String,
    /// For placement.
    pub labels: BTreeMap<String, String>,
}

impl StoreView {
    /// What is shown of a store that has `leaders` and `peers`, at `now_seconds` since 1970.
    pub fn new(store: metapb::Store, load: Load, now_seconds: u64) -> StoreView {
        let heard_seconds = u64::try_from(store.last_heartbeat).unwrap_or(0) / 1_000_000_000;
        let silent_seconds = (heard_seconds > 0).then(|| now_seconds.saturating_sub(heard_seconds));
        let state = match store.state() {
            metapb::StoreState::Tombstone => "tombstone",
            metapb::StoreState::Offline => "offline",
            metapb::StoreState::Up if silent_seconds > Some(SILENT_SECONDS) => "disconnected",
            metapb::StoreState::Up => "up",
        };
        StoreView {
            id: store.id,
            address: store.address,
            status_address: store.status_address,
            state,
            silent_seconds,
            leaders: load.leaders,
            peers: load.peers,
            version: store.version,
            labels: store.labels.into_iter().map(|label| (label.key, label.value)).collect(),
        }
    }

    /// Whether it takes part.
    pub fn is_up(&self) -> bool {
        self.state == "up"
    }
}

/// What a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Regions it leads.
    pub leaders: u64,
    /// Replicas it holds.
    pub peers: u64,
}

/// Runs a verb.
pub async fn run(global: &Global, verb: Store) -> Result<()> {
    let client = connect::scheduler(global).await?;
    match verb {
        Store::List => {
            let stores = all(&client).await?;
            global.output.print(&stores, |stores| list(stores))
        }
        Store::Show { id } => {
            let store = client.get_store(id).await?;
            let load = loads(&region::all(&client, 0).await?).remove(&id).unwrap_or_default();
            global.output.print(&StoreView::new(store, load, connect::unix_seconds()), facts)
        }
        Store::Remove { id } => {
            let api = AdminApi::connect(global).await?;
            // A store that cannot go now is no mistake on the command line.
            api.delete(&format!("/pd/api/v1/store/{id}")).await.map_err(|error| match error {
                Error::Usage(text) => Error::Failed(text),
                other => other,
            })?;
            global.output.print(&serde_json::json!({ "id": id, "state": "offline" }), |_| {
                format!("store {id} is being removed: see its replicas go with `kvctl store show {id}`")
            })
        }
    }
}

/// Every store that has not left the cluster, by number.
pub async fn all(client: &kvclient::SchedulerClient) -> Result<Vec<StoreView>> {
    let mut loads = loads(&region::all(client, 0).await?);
    let mut stores = client.get_all_stores(true).await?;
    stores.sort_by_key(|store| store.id);
    let now = connect::unix_seconds();
    let view = |store: metapb::Store| {
        let load = loads.remove(&store.id).unwrap_or_default();
        StoreView::new(store, load, now)
    };
    Ok(stores.into_iter().map(view).collect())
}

/// Leaders and peers of each store.
pub fn loads(regions: &[kvclient::RegionInfo]) -> BTreeMap<u64, Load> {
    let mut loads: BTreeMap<u64, Load> = BTreeMap::new();
    for info in regions {
        for peer in &info.region.peers {
            loads.entry(peer.store_id).or_default().peers += 1;
        }
        if let Some(leader) = &info.leader {
            loads.entry(leader.store_id).or_default().leaders += 1;
        }
    }
    loads
}

fn list(stores: &[StoreView]) -> String {
    let header = [
        ("ID", Align::Right),
        ("STATE", Align::Left),
        ("ADDRESS", Align::Left),
        ("STATUS", Align::Left),
        ("LEADERS", Align::Right),
        ("PEERS", Align::Right),
        ("VERSION", Align::Left),
        ("LABELS", Align::Left),
    ];
    let row = |store: &StoreView| {
        vec![
            store.id.to_string(),
            store.state.to_owned(),
            store.address.clone(),
            store.status_address.clone(),
            store.leaders.to_string(),
            store.peers.to_string(),
            store.version.clone(),
            labels(store),
        ]
    };
    table::rows(&header, stores.iter().map(row))
}

fn facts(store: &StoreView) -> String {
    let silent = store.silent_seconds.map_or("unknown".to_owned(), |seconds| format!("{seconds} s ago"));
    table::facts([
        ("id", store.id.to_string()),
        ("state", store.state.to_owned()),
        ("address", store.address.clone()),
        ("status address", store.status_address.clone()),
        ("last heard", silent),
        ("leaders", store.leaders.to_string()),
        ("peers", store.peers.to_string()),
        ("version", store.version.clone()),
        ("labels", labels(store)),
    ])
}

fn labels(store: &StoreView) -> String {
    let labels: Vec<String> = store.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(last_heartbeat: i64) -> metapb::Store {
        metapb::Store { id: 4, address: "h:1".into(), last_heartbeat, ..Default::default() }
    }

    #[test]
    fn silence_is_told_and_unknown_silence_is_not_guessed() {
        let view = |heartbeat, now| StoreView::new(store(heartbeat), Load::default(), now);
        assert_eq!(view(100_000_000_000, 103).silent_seconds, Some(3));
        assert_eq!(view(100_000_000_000, 120).state, "up");
        assert_eq!(view(100_000_000_000, 121).state, "disconnected");
        assert_eq!((view(0, 121).state, view(0, 121).silent_seconds), ("up", None));
    }

    #[test]
    fn leaders_and_peers_are_counted_for_each_store() {
        let peer = |id, store_id| metapb::Peer { id, store_id, ..Default::default() };
        let info = kvclient::RegionInfo {
            region: metapb::Region { id: 1, peers: vec![peer(2, 1), peer(3, 4)], ..Default::default() },
            leader: Some(peer(3, 4)),
            ..Default::default()
        };
        let loads = loads(&[info.clone(), info]);
        assert_eq!(loads[&1], Load { leaders: 0, peers: 2 });
        assert_eq!(loads[&4], Load { leaders: 2, peers: 2 });
    }
}
