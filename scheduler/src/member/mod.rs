//! The schedulers of a cluster: who they are, which one leads, and how long it may.
//!
//! `lease` is the arithmetic and `leadership` the handle that everything asks which answers for the leader.
//! `directory` knows the members, `session` keeps this one's lease alive, `election` decides who leads.

pub mod directory;
pub mod election;
pub mod leadership;
pub mod lease;
pub mod session;

use kvproto::pdpb;

/// A scheduler, as clients see it.
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

    /// Reads back what `to_wire` has made.
    pub fn from_wire(member: pdpb::Member) -> Member {
        Member { name: member.name, id: member.member_id, client_urls: member.client_urls }
    }

    /// The first URL that clients are told.
    pub fn url(&self) -> &str {
        self.client_urls.first().map_or("", String::as_str)
    }
}

/// The id of a member of a group: the same after every start, and never 0. (64-bit FNV-1a of the name.)
pub fn id_of(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}
