//! Who the schedulers of the cluster are, and which one leads, as far as this one knows.
//!
//! Owns the last view that was read from etcd. A watch says when to read again; because a watch can hang, it is
//! also read once a second. When etcd cannot be read the last view stays: who led is who most likely still leads,
//! and a scheduler that does not lead says so itself. What this process knows of itself goes first.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{GetOptions, KeyValue, WatchOptions};
use kvproto::pdpb;
use tokio::sync::watch;

use super::Member;
use crate::kv::etcd_kv::Keys;
use crate::kv::etcd_pool::{EtcdError, EtcdPool};
use crate::kv::records;

/// How often the members are read without being told to.
const POLL: Duration = Duration::from_secs(1);
const READ_WITHIN: Duration = Duration::from_secs(3);

/// The leader at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    pub member: Member,
    /// The revision at which it began to lead; grows from one leader to the next.
    pub revision: i64,
}

/// What is known of the members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// By name.
    pub members: Vec<Member>,
    pub leader: Option<Leader>,
    /// The name of the member that shall lead next.
    pub next: Option<String>,
}

impl View {
    /// The answer to "who are you?". `is_leading` is whether the member `me` leads: it knows better than the view.
    pub fn to_wire(
        &self,
        me: &Member,
        is_leading: bool,
        header: pdpb::ResponseHeader,
    ) -> pdpb::GetMembersResponse {
        let other = self.leader.as_ref().map(|leader| &leader.member).filter(|leader| leader.name != me.name);
        let leader = if is_leading { Some(me) } else { other }.map(Member::to_wire);
        let mut members: Vec<pdpb::Member> = self.members.iter().map(Member::to_wire).collect();
        if !self.members.iter().any(|member| member.name == me.name) {
            members.push(me.to_wire());
        }
        pdpb::GetMembersResponse {
            header: Some(header),
            members,
            etcd_leader: leader.clone(),
            leader,
            ..pdpb::GetMembersResponse::default()
        }
    }
}

/// See the module. At first it knows nothing.
#[derive(Default)]
pub struct Directory {
    view: watch::Sender<View>,
    /// One read after the other, so that an older view never replaces a newer one.
    reading: tokio::sync::Mutex<()>,
}

impl Directory {
    /// The directory of a scheduler that is alone, and so the leader.
    pub fn alone(me: Member) -> Directory {
        let directory = Directory::default();
        let leader = Some(Leader { member: me.clone(), revision: 0 });
        directory.view.send_replace(View { members: vec![me], leader, next: None });
        directory
    }

    /// What is known now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Where clients reach the leader.
    pub fn leader_url(&self) -> Option<String> {
        self.view.borrow().leader.as_ref().map(|leader| leader.member.url().to_string())
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Reads the members once; returns the revision that was read.
    pub async fn refresh(&self, pool: &EtcdPool, keys: &Keys) -> Result<i64, EtcdError> {
        let prefix = keys.election();
        let _one_at_a_time = self.reading.lock().await;
        let mut found = pool
            .call(READ_WITHIN, |mut client| {
                let prefix = prefix.clone();
                async move { client.get(prefix, Some(GetOptions::new().with_prefix())).await }
            })
            .await?;
        let revision = found.header().map_or(0, |header| header.revision());
        let view = parse(keys, found.take_kvs());
        self.view.send_if_modified(|known| {
            if *known == view {
                return false;
            }
            if known.leader != view.leader {
                match &view.leader {
                    Some(leader) => tracing::info!(leader = leader.member.name, "a scheduler leads"),
                    None => tracing::info!("no scheduler leads"),
                }
            }
            *known = view;
            true
        });
        Ok(revision)
    }

    /// Keeps the view up to date for ever.
    pub async fn follow(self: Arc<Self>, pool: Arc<EtcdPool>, keys: Keys) {
        loop {
            // A failure is logged where calls to etcd are made; what is known stays.
            if let Ok(revision) = self.refresh(&pool, &keys).await {
                self.follow_watch(&pool, &keys, revision + 1).await;
            }
            // Without a pause an etcd that refuses at once would be asked without end.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Reads again whenever a watch that starts at `revision` says so, and from time to time; until something is
    /// amiss.
    async fn follow_watch(&self, pool: &EtcdPool, keys: &Keys, revision: i64) {
        let member = pool.current();
        let options = WatchOptions::new().with_prefix().with_start_revision(revision);
        let prefix = keys.election();
        let opened = pool
            .call(READ_WITHIN, |mut client| {
                let (prefix, options) = (prefix.clone(), options.clone());
                async move { client.watch(prefix, Some(options)).await }
            })
            .await;
        let Ok(mut changes) = opened else { return };
        loop {
            let is_gone = match tokio::time::timeout(POLL, changes.message()).await {
                Ok(Ok(Some(change))) => change.canceled(),
                Ok(Ok(None) | Err(_)) => true,
                Err(_) => pool.current() != member,
            };
            if is_gone || self.refresh(pool, keys).await.is_err() {
                return;
            }
        }
    }
}

fn parse(keys: &Keys, records: Vec<KeyValue>) -> View {
    let (leader, next, members) = (keys.leader(), keys.next(), keys.members());
    let mut view = View::default();
    for record in records {
        if record.key() == next.as_bytes() {
            view.next = Some(String::from_utf8_lossy(record.value()).into_owned());
            continue;
        }
        let member = match records::message::<pdpb::Member>(record.key(), record.value()) {
            Ok(member) => Member::from_wire(member),
            Err(error) => {
                tracing::warn!(%error, "a member cannot be read");
                continue;
            }
        };
        if record.key() == leader.as_bytes() {
            view.leader = Some(Leader { member, revision: record.create_revision() });
        } else if record.key().starts_with(members.as_bytes()) {
            view.members.push(member);
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        Member {
            name: name.into(),
            id: super::super::id_of(name),
            client_urls: vec![format!("http://{name}:1")],
        }
    }

    #[test]
    fn a_member_that_does_not_lead_does_not_name_itself_the_leader() {
        let (a, b) = (member("a"), member("b"));
        let leader = Some(Leader { member: a.clone(), revision: 7 });
        let view = View { members: vec![a.clone(), b.clone()], leader, next: None };
        let leader = |me: &Member, leads| {
            let answer = view.to_wire(me, leads, pdpb::ResponseHeader::default());
            assert_eq!(answer.members.len(), 2);
            answer.leader.map(|leader| leader.name)
        };
        assert_eq!(leader(&a, true).as_deref(), Some("a"));
        assert_eq!(leader(&a, false), None, "its lease is over and it has not heard of another one");
        assert_eq!(leader(&b, false).as_deref(), Some("a"));
        assert_eq!(leader(&b, true).as_deref(), Some("b"), "it has just begun to lead");
        let alone = View::default().to_wire(&a, true, pdpb::ResponseHeader::default());
        assert_eq!(alone.members.len(), 1);
    }

    #[test]
    fn ids_are_stable_and_differ() {
        use super::super::id_of;
        assert_eq!(id_of("a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(id_of("s1"), id_of("s2"));
    }
}
