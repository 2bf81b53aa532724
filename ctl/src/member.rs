//! `kvctl member`: the schedulers of the cluster, how they fare, and which one leads.

use std::time::{Duration, Instant};

use kvclient::{MemberStatus, member_statuses};
use serde::Serialize;

use crate::cli::{Global, Leader, Member};
use crate::connect;
use crate::error::{Error, Result};
use crate::table::{self, Align};

/// How long one scheduler may take to say how it fares.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Pause before the schedulers are asked again who leads.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberView {
    /// As configured.
    pub name: String,
    /// Its number.
    pub id: u64,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Whether it leads.
    pub leader: bool,
    /// `healthy` or `unhealthy`.
    pub health: &'static str,
    /// Why it is unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl From<MemberStatus> for MemberView {
    fn from(status: MemberStatus) -> MemberView {
        MemberView {
            name: status.member.name,
            id: status.member.member_id,
            client_urls: status.member.client_urls,
            leader: status.is_leader,
            health: if status.obstacle.is_none() { "healthy" } else { "unhealthy" },
            problem: status.obstacle,
        }
    }
}

/// Runs a verb.
pub async fn run(global: &Global, verb: Member) -> Result<()> {
    match verb {
        Member::List => global.output.print(&all(global).await?, |members| list(members)),
        Member::Leader(Leader::Show) => {
            let leader = leader(all(global).await?);
            let leader = leader.ok_or_else(|| Error::NotFound("no scheduler leads at this moment".into()))?;
            global.output.print(&leader, facts)
        }
        Member::Leader(Leader::Transfer { name }) => transfer(global, name).await,
    }
}

async fn all(global: &Global) -> Result<Vec<MemberView>> {
    let statuses = member_statuses(&global.scheduler, ANSWER_WITHIN).await?;
    Ok(statuses.into_iter().map(MemberView::from).collect())
}

fn leader(members: Vec<MemberView>) -> Option<MemberView> {
    members.into_iter().find(|member| member.leader)
}

/// Asks the leader to step back, and waits until another one leads.
async fn transfer(global: &Global, name: Option<String>) -> Result<()> {
    let former = leader(all(global).await?).map(|leader| leader.name);
    let from = former.as_deref().filter(|_| name.is_none());
    connect::scheduler(global).await?.transfer_leader(name.as_deref(), from).await?;
    let is_done = |leader: &MemberView| match &name {
        Some(name) => leader.name == *name,
        None => Some(&leader.name) != former.as_ref(),
    };
    let (within, started) = (Duration::from_secs(global.timeout), Instant::now());
    loop {
        if let Some(leader) = leader(all(global).await?).filter(is_done) {
            return global.output.print(&leader, facts);
        }
        if started.elapsed() >= within {
            let text = "the wished scheduler does not lead yet: see `kvctl member list`";
            return Err(Error::Failed(text.into()));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn list(members: &[MemberView]) -> String {
    let header = [
        ("NAME", Align::Left),
        ("ID", Align::Right),
        ("URLS", Align::Left),
        ("LEADER", Align::Left),
        ("HEALTH", Align::Left),
        ("PROBLEM", Align::Left),
    ];
    let row = |member: &MemberView| {
        vec![
            member.name.clone(),
            member.id.to_string(),
            member.client_urls.join(","),
            if member.leader { "yes" } else { "no" }.to_owned(),
            member.health.to_owned(),
            member.problem.clone().unwrap_or_default(),
        ]
    };
    table::rows(&header, members.iter().map(row))
}

fn facts(member: &MemberView) -> String {
    let mut facts = vec![
        ("name", member.name.clone()),
        ("id", member.id.to_string()),
        ("urls", member.client_urls.join(",")),
        ("health", member.health.to_owned()),
    ];
    facts.extend(member.problem.clone().map(|problem| ("problem", problem)));
    table::facts(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, is_leader: bool, obstacle: Option<&str>) -> MemberView {
        let member = kvproto::pdpb::Member {
            name: name.into(),
            member_id: 7,
            client_urls: vec![format!("http://{name}:2379")],
            ..Default::default()
        };
        MemberView::from(MemberStatus { member, is_leader, obstacle: obstacle.map(str::to_owned) })
    }

    #[test]
    fn the_list_says_who_leads_and_what_is_wrong() {
        let members = [member("a", true, None), member("b", false, Some("it does not answer"))];
        let lines: Vec<String> = list(&members).lines().map(str::to_owned).collect();
        assert_eq!(lines[1], "a      7  http://a:2379  yes     healthy");
        assert!(lines[2].ends_with("no      unhealthy  it does not answer"), "{}", lines[2]);
        assert_eq!(leader(members.to_vec()).map(|leader| leader.name).as_deref(), Some("a"));
    }
}
