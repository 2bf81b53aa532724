//! How the schedulers of a cluster fare, asked of each of them: works while none leads.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use kvproto::memberpb::DescribeRequest;
use kvproto::memberpb::members_client::MembersClient;
use kvproto::pdpb::pd_client::PdClient;
use kvproto::pdpb::{GetMembersRequest, Member};
use tonic::Code;

use crate::channel;
use crate::error::{Error, Result};
use crate::scheduler_conn::describe;

/// One scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberStatus {
    /// Name, id and addresses.
    pub member: Member,
    /// It says that it leads.
    pub is_leader: bool,
    /// Why it cannot do its part; `None` when it can.
    pub obstacle: Option<String>,
}

/// All schedulers that those at `endpoints` know of, by name; each is asked how it fares and has `timeout` to answer.
pub async fn member_statuses(endpoints: &[String], timeout: Duration) -> Result<Vec<MemberStatus>> {
    let answers = join_all(endpoints.iter().map(|endpoint| ask_members(endpoint, timeout))).await;
    let (mut known, mut causes) = (BTreeMap::new(), Vec::new());
    for (endpoint, answer) in endpoints.iter().zip(answers) {
        match answer {
            Ok(members) => known.extend(members.into_iter().map(|member| (member.name.clone(), member))),
            Err(error @ Error::InvalidArgument(_)) => return Err(error),
            Err(error) => causes.push(format!("{endpoint}: {error}")),
        }
    }
    if known.is_empty() {
        let (endpoints, cause) = (endpoints.join(", "), causes.join("; "));
        return Err(Error::SchedulerUnavailable { endpoints, cause });
    }
    Ok(join_all(known.into_values().map(|member| status(member, timeout))).await)
}

async fn ask_members(endpoint: &str, timeout: Duration) -> Result<Vec<Member>> {
    let mut pd = PdClient::new(channel::lazy(endpoint, timeout)?);
    match tokio::time::timeout(timeout, pd.get_members(GetMembersRequest::default())).await {
        Ok(Ok(answer)) => Ok(answer.into_inner().members),
        Ok(Err(status)) => Err(Error::Server(describe(&status))),
        Err(_) => Err(Error::Timeout { after: timeout, last: None }),
    }
}

async fn status(member: Member, timeout: Duration) -> MemberStatus {
    let asked = async {
        let url = member.client_urls.first().ok_or("it has no address")?;
        let channel = channel::lazy(url, timeout).map_err(|e| e.to_string())?;
        MembersClient::new(channel).describe(DescribeRequest {}).await.or_else(|status| match status.code() {
            // A scheduler that is alone in its process with a store: it answers, and leads.
            Code::Unimplemented => Ok(tonic::Response::new(kvproto::memberpb::DescribeResponse {
                is_leader: true,
                ..Default::default()
            })),
            _ => Err(describe(&status)),
        })
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(Ok(answer)) => {
            let answer = answer.into_inner();
            let obstacle = Some(answer.obstacle).filter(|obstacle| !obstacle.is_empty());
            MemberStatus { member, is_leader: answer.is_leader, obstacle }
        }
        Ok(Err(cause)) => MemberStatus { member, is_leader: false, obstacle: Some(cause) },
        Err(_) => MemberStatus { member, is_leader: false, obstacle: Some("it does not answer".into()) },
    }
}
