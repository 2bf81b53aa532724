//! Finding the leading scheduler among the known members.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kvproto::pdpb::GetMembersRequest;
use kvproto::pdpb::pd_client::PdClient;
use tonic::transport::Channel;

use crate::channel;
use crate::error::{Error, Result};
use crate::scheduler_conn::{Leader, describe};

/// Asks all members at once; the first that names a leader is believed.
pub(crate) async fn find_leader(
    channels: &BTreeMap<String, Channel>,
    timeout: Duration,
) -> Result<(u64, String, Vec<String>)> {
    let ask = |url: String, channel: Channel| async move {
        let reply = PdClient::new(channel).get_members(GetMembersRequest::default()).await;
        let reply = reply.map_err(|status| format!("{url}: {}", describe(&status)))?.into_inner();
        let cluster_id = reply.header.as_ref().map_or(0, |header| header.cluster_id);
        let leader = reply.leader.as_ref().and_then(|leader| leader.client_urls.first().cloned());
        let members: Vec<String> = reply.members.into_iter().flat_map(|m| m.client_urls).collect();
        match leader {
            Some(leader) if cluster_id != 0 => Ok((cluster_id, leader, members)),
            Some(_) => Err(format!("{url}: cluster id is zero")),
            None => Err(format!("{url}: no leader is elected")),
        }
    };
    let mut answers: FuturesUnordered<_> =
        channels.iter().map(|(url, channel)| ask(url.clone(), channel.clone())).collect();
    let mut causes = Vec::new();
    let first = async {
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(found) => return Some(found),
                Err(cause) => causes.push(cause),
            }
        }
        None
    };
    if let Ok(Some(found)) = tokio::time::timeout(timeout, first).await {
        return Ok(found);
    }
    let endpoints = channels.keys().cloned().collect::<Vec<_>>().join(", ");
    let cause = if causes.is_empty() { "no answer".to_string() } else { causes.join("; ") };
    Err(Error::SchedulerUnavailable { endpoints, cause })
}

/// Remembers all members and returns the leader among them.
pub(crate) fn add_members(
    channels: &mut BTreeMap<String, Channel>,
    leader: String,
    members: Vec<String>,
    connect_timeout: Duration,
) -> Result<Leader> {
    for member in members.iter().chain([&leader]) {
        let url = channel::url(member)?;
        if let Entry::Vacant(entry) = channels.entry(url) {
            entry.insert(channel::lazy(member, connect_timeout)?);
        }
    }
    let url = channel::url(&leader)?;
    let channel = channels[&url].clone();
    Ok(Leader { generation: 0, url, channel })
}
