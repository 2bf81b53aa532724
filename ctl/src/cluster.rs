//! `kvctl cluster`: the whole cluster at a glance, and what is wrong with it.

use kvproto::pdpb::GetMembersResponse;
use serde::Serialize;

use crate::cli::Global;
use crate::error::Result;
use crate::region::{self, RegionView};
use crate::store::{self, StoreView};
use crate::{connect, key, table};

/// Problems of one kind that are named; further ones are counted.
const NAMED_MAX: usize = 5;

/// The cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterView {
    /// Its number; requests carry it.
    pub id: u64,
    /// What it was bootstrapped with.
    pub api: &'static str,
    /// Replicas that each region should have.
    pub max_replicas: u32,
    /// Its schedulers.
    pub members: Vec<MemberView>,
    /// Stores that have not left.
    pub stores: usize,
    /// Those that take part.
    pub stores_up: usize,
    /// Number of regions.
    pub regions: usize,
    /// `healthy`, or `degraded` when there are problems.
    pub health: &'static str,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

/// A scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberView {
    /// As configured.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Answers requests.
    pub leader: bool,
}

/// Prints the cluster.
pub async fn run(global: &Global) -> Result<()> {
    let client = connect::scheduler(global).await?;
    let members = members(client.get_members().await?);
    if !client.is_bootstrapped().await? {
        return Err(kvclient::Error::NotBootstrapped.into());
    }
    let config = client.get_cluster_config().await?;
    let api = config.traits.map_or(kvproto::kvrpcpb::ApiVersion::V2, |traits| traits.api_version());
    let stores = store::all(&client).await?;
    let regions = region::all(&client, 0).await?;
    let regions: Vec<RegionView> = regions.iter().map(|info| RegionView::new(info, api)).collect();
    let max_replicas = config.cluster.max_peer_count;
    let problems = problems(&stores, &regions, max_replicas);
    let view = ClusterView {
        id: client.cluster_id(),
        api: key::api_name(api),
        max_replicas,
        members,
        stores: stores.len(),
        stores_up: stores.iter().filter(|store| store.is_up()).count(),
        regions: regions.len(),
        health: if problems.is_empty() { "healthy" } else { "degraded" },
        problems,
    };
    global.output.print(&view, facts)
}

fn members(response: GetMembersResponse) -> Vec<MemberView> {
    let leader = response.leader.map(|leader| leader.member_id);
    let view = |member: kvproto::pdpb::Member| MemberView {
        leader: Some(member.member_id) == leader,
        name: member.name,
        client_urls: member.client_urls,
    };
    response.members.into_iter().map(view).collect()
}

/// What keeps the cluster from being healthy, in words.
pub fn problems(stores: &[StoreView], regions: &[RegionView], max_replicas: u32) -> Vec<String> {
    let mut problems = Vec::new();
    let down = stores.iter().filter(|store| !store.is_up());
    name_some(&mut problems, down.map(|store| format!("store {} is {}", store.id, store.state)), "stores");
    if regions.is_empty() {
        problems.push("no region has reported yet".to_owned());
    }
    let leaderless = regions.iter().filter(|region| region.leader_store.is_none());
    name_some(
        &mut problems,
        leaderless.map(|region| format!("region {} has no leader", region.id)),
        "regions",
    );
    let wanted = max_replicas as usize;
    let thin = regions
        .iter()
        .filter(|region| region.healthy_voters() < wanted)
        .map(|region| format!("region {} has {} of {wanted} replicas", region.id, region.healthy_voters()));
    name_some(&mut problems, thin, "regions");
    problems
}

fn name_some(problems: &mut Vec<String>, mut found: impl Iterator<Item = String>, noun: &str) {
    problems.extend(found.by_ref().take(NAMED_MAX));
    match found.count() {
        0 => {}
        more => problems.push(format!("and {more} more {noun}")),
    }
}

fn facts(view: &ClusterView) -> String {
    let member = |member: &MemberView| {
        let urls = member.client_urls.join(",");
        format!("{} {urls}{}", member.name, if member.leader { " (leader)" } else { "" })
    };
    let mut lines = vec![
        ("id", view.id.to_string()),
        ("api", view.api.to_owned()),
        ("replicas", view.max_replicas.to_string()),
    ];
    lines.extend(view.members.iter().map(|view| ("scheduler", member(view))));
    lines.extend([
        ("stores", format!("{} of {} up", view.stores_up, view.stores)),
        ("regions", view.regions.to_string()),
        ("health", view.health.to_owned()),
    ]);
    lines.extend(view.problems.iter().map(|problem| ("problem", problem.clone())));
    table::facts(lines)
}

#[cfg(test)]
mod tests {
    use kvclient::RegionInfo;
    use kvproto::kvrpcpb::ApiVersion;
    use kvproto::metapb;

    use super::*;
    use crate::store::Load;

    fn region(id: u64, voters: u64, led: bool) -> RegionView {
        let peer = |id| metapb::Peer { id, store_id: id, ..Default::default() };
        let peers: Vec<_> = (1..=voters).map(peer).collect();
        let leader = led.then(|| peers[0]);
        let region = metapb::Region { id, peers, ..Default::default() };
        RegionView::new(&RegionInfo { region, leader, ..Default::default() }, ApiVersion::V2)
    }

    fn store(id: u64, state: metapb::StoreState) -> StoreView {
        StoreView::new(metapb::Store { id, state: state as i32, ..Default::default() }, Load::default(), 0)
    }

    #[test]
    fn a_whole_cluster_has_no_problems() {
        let stores = [store(1, metapb::StoreState::Up)];
        assert_eq!(problems(&stores, &[region(7, 3, true)], 3), Vec::<String>::new());
    }

    #[test]
    fn each_problem_is_named() {
        let stores = [store(1, metapb::StoreState::Up), store(4, metapb::StoreState::Offline)];
        let found = problems(&stores, &[region(7, 3, false), region(8, 2, true)], 3);
        assert_eq!(found, ["store 4 is offline", "region 7 has no leader", "region 8 has 2 of 3 replicas"]);
        assert_eq!(problems(&[], &[], 3), ["no region has reported yet"]);
    }

    #[test]
    fn many_problems_of_one_kind_are_counted() {
        let regions: Vec<_> = (1..=9).map(|id| region(id, 3, false)).collect();
        let found = problems(&[], &regions, 3);
        assert_eq!(found.len(), NAMED_MAX + 1);
        assert_eq!(found[NAMED_MAX], "and 4 more regions");
    }
}
