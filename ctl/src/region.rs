//! `kvctl region`: where keys are, with boundaries that can be read; splits and leaders by hand.

use bytes::Bytes;
use kvclient::{RegionInfo, SchedulerClient};
use kvproto::kvrpcpb::ApiVersion;
use kvproto::metapb::PeerRole;
use serde::Serialize;

use crate::cli::{Global, Region};
use crate::error::{Error, Result};
use crate::key::{self, Bound, Side};
use crate::table::{self, Align};
use crate::{connect, operator, pairs};

/// Regions asked for at a time.
const PAGE: usize = 1024;

/// A region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegionView {
    /// Its number.
    pub id: u64,
    /// First key.
    pub start: Bound,
    /// First key after it.
    pub end: Bound,
    /// Store of the leader, when one is known.
    pub leader_store: Option<u64>,
    /// Its replicas.
    pub peers: Vec<PeerView>,
    /// Grows with every split and merge.
    pub version: u64,
    /// Grows with every change of members.
    pub conf_ver: u64,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerView {
    /// Its number.
    pub id: u64,
    /// The store that holds it.
    pub store: u64,
    /// `voter`, `learner`, `incoming-voter` or `demoting-voter`.
    pub role: &'static str,
    /// The leader does not hear it.
    pub down: bool,
    /// It still catches up.
    pub pending: bool,
}

impl RegionView {
    /// What is shown of a region in a cluster of this API version.
    pub fn new(info: &RegionInfo, api: ApiVersion) -> RegionView {
        let RegionInfo { region, leader, down_peers, pending_peers } = info;
        let epoch = region.region_epoch.unwrap_or_default();
        let peer = |peer: &kvproto::metapb::Peer| PeerView {
            id: peer.id,
            store: peer.store_id,
            role: role(peer.role()),
            down: down_peers.iter().filter_map(|down| down.peer.as_ref()).any(|down| down.id == peer.id),
            pending: pending_peers.iter().any(|pending| pending.id == peer.id),
        };
        RegionView {
            id: region.id,
            start: key::describe(&region.start_key, api, Side::Start),
            end: key::describe(&region.end_key, api, Side::End),
            leader_store: leader.as_ref().map(|leader| leader.store_id),
            peers: region.peers.iter().map(peer).collect(),
            version: epoch.version,
            conf_ver: epoch.conf_ver,
        }
    }

    /// Voters that the leader hears and that are caught up.
    pub fn healthy_voters(&self) -> usize {
        self.peers.iter().filter(|peer| peer.role == "voter" && !peer.down && !peer.pending).count()
    }
}

fn role(role: PeerRole) -> &'static str {
    match role {
        PeerRole::Voter => "voter",
        PeerRole::Learner => "learner",
        PeerRole::IncomingVoter => "incoming-voter",
        PeerRole::DemotingVoter => "demoting-voter",
    }
}

/// Runs a verb.
pub async fn run(global: &Global, verb: Region) -> Result<()> {
    let client = connect::scheduler(global).await?;
    let api = connect::api(&client).await?;
    match verb {
        Region::List { limit } => {
            let regions = all(&client, limit).await?;
            let cut = limit > 0 && regions.len() == limit && !is_last(&regions);
            let views: Vec<RegionView> = regions.iter().map(|info| RegionView::new(info, api)).collect();
            global.output.print(&views, |views| list(views))?;
            if cut {
                eprintln!("stopped after {limit} regions and there are more; --limit 0 prints all");
            }
            Ok(())
        }
        Region::Split(args) => operator::split(global, &args).await,
        Region::TransferLeader { id, store } => operator::transfer_leader(global, id, store).await,
        Region::Show { id } => {
            let found = client.get_region_by_id(id).await?;
            let missing = || Error::NotFound(format!("region {id} does not exist; it may have been merged"));
            show(global, &found.ok_or_else(missing)?, api)
        }
        Region::Key { key, coding } => {
            let user = pairs::parse(coding.coding(), "key", &key)?;
            let found = client.get_region(key::boundary_of_raw(user.to_vec(), api)).await?;
            let missing =
                || Error::NotFound(format!("no region is known for key {key:?}; try again shortly"));
            show(global, &found.ok_or_else(missing)?, api)
        }
    }
}

/// Regions in key order, up to `limit`; 0 is all of them.
pub async fn all(client: &SchedulerClient, limit: usize) -> Result<Vec<RegionInfo>> {
    let mut regions: Vec<RegionInfo> = Vec::new();
    loop {
        let left = if limit == 0 { usize::MAX } else { limit - regions.len() };
        let start = regions.last().map_or_else(Bytes::new, |last| last.region.end_key.clone());
        let page = client.scan_regions(start, Bytes::new(), left.min(PAGE) as u32).await?;
        let got = page.len();
        regions.extend(page);
        if got == 0 || is_last(&regions) || (limit > 0 && regions.len() >= limit) {
            return Ok(regions);
        }
    }
}

fn is_last(regions: &[RegionInfo]) -> bool {
    regions.last().is_some_and(|last| last.region.end_key.is_empty())
}

fn show(global: &Global, info: &RegionInfo, api: ApiVersion) -> Result<()> {
    global.output.print(&RegionView::new(info, api), facts)
}

fn list(regions: &[RegionView]) -> String {
    let header = [
        ("ID", Align::Right),
        ("START", Align::Left),
        ("END", Align::Left),
        ("LEADER", Align::Left),
        ("PEERS", Align::Left),
        ("EPOCH", Align::Left),
    ];
    let row = |region: &RegionView| {
        vec![
            region.id.to_string(),
            region.start.text.clone(),
            region.end.text.clone(),
            leader(region),
            peers(region),
            format!("{}/{}", region.version, region.conf_ver),
        ]
    };
    table::rows(&header, regions.iter().map(row))
}

fn facts(region: &RegionView) -> String {
    table::facts([
        ("id", region.id.to_string()),
        ("start", region.start.text.clone()),
        ("end", region.end.text.clone()),
        ("leader", leader(region)),
        ("peers", peers(region)),
        ("version", region.version.to_string()),
        ("conf ver", region.conf_ver.to_string()),
    ])
}

fn leader(region: &RegionView) -> String {
    region.leader_store.map_or("none".to_owned(), |store| format!("store {store}"))
}

/// The stores of the replicas, with what is special about each.
fn peers(region: &RegionView) -> String {
    let peer = |peer: &PeerView| {
        let notes: Vec<&str> = [
            (peer.role != "voter").then_some(peer.role),
            peer.down.then_some("down"),
            peer.pending.then_some("pending"),
        ]
        .into_iter()
        .flatten()
        .collect();
        match notes.is_empty() {
            true => peer.store.to_string(),
            false => format!("{}({})", peer.store, notes.join(" ")),
        }
    };
    region.peers.iter().map(peer).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use kvproto::{metapb, pdpb};

    use super::*;

    #[test]
    fn peers_that_are_not_plain_voters_are_marked() {
        let peer = |id, role: PeerRole| metapb::Peer {
            id,
            store_id: id * 10,
            role: role as i32,
            ..Default::default()
        };
        let peers = vec![peer(1, PeerRole::Voter), peer(2, PeerRole::Learner), peer(3, PeerRole::Voter)];
        let info = RegionInfo {
            leader: Some(peers[0]),
            pending_peers: vec![peers[1]],
            down_peers: vec![pdpb::PeerStats { peer: Some(peers[2]), ..Default::default() }],
            region: metapb::Region { id: 9, peers, ..Default::default() },
        };
        let view = RegionView::new(&info, ApiVersion::V2);
        assert_eq!(super::peers(&view), "10, 20(learner pending), 30(down)");
        assert_eq!(view.healthy_voters(), 1);
        assert_eq!((view.start.text.as_str(), view.end.text.as_str()), ("-inf", "+inf"));
        assert_eq!(leader(&view), "store 10");
    }
}
