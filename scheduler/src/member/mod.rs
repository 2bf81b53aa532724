//! The members of the scheduler's own group. There is one: it answers for itself, and it leads.

use kvproto::pdpb;

/// This scheduler, as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// Never 0.
    pub id: u64,
    /// Where clients reach it: `http://host:port`.
    pub client_urls: Vec<String>,
}

impl Member {
    /// The member as it travels.
    pub fn to_wire(&self) -> pdpb::Member {
        pdpb::Member {
            name: self.name.clone(),
            member_id: self.id,
            client_urls: self.client_urls.clone(),
            binary_version: env!("CARGO_PKG_VERSION").into(),
            ..pdpb::Member::default()
        }
    }

    /// The answer to "who are you?": one member, which is the leader.
    pub fn list(&self, header: pdpb::ResponseHeader) -> pdpb::GetMembersResponse {
        let member = self.to_wire();
        pdpb::GetMembersResponse {
            header: Some(header),
            members: vec![member.clone()],
            leader: Some(member.clone()),
            etcd_leader: Some(member),
            ..pdpb::GetMembersResponse::default()
        }
    }
}
