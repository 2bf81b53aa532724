//! Decides which scheduler leads, through a key in etcd that lives as long as its owner's lease.
//!
//! Owns this scheduler's candidacy: it waits until nobody leads, tries to create the leader key, leads while its lease
//! holds, and gives the lead away in order when it stops, is asked to, or cannot go on. The create revision of the
//! key is the fence of everything that the leader writes.
//!
//! Invariants:
//! - it leads only between the creation of the key and the end of its lease by the local clock;
//! - it has stopped answering as the leader before it deletes the key.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, TxnOp, TxnOpResponse};
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Member;
use super::directory::{Directory, View};
use super::leadership::Leadership;
use super::session::Session;
use crate::kv::Kv;
use crate::kv::etcd_kv::{EtcdKv, Fence, Keys};
use crate::kv::etcd_pool::{EtcdError, EtcdPool};
use crate::kv::records;

const CALL_WITHIN: Duration = Duration::from_secs(2);
/// Pause after etcd has refused something.
const RETRY: Duration = Duration::from_millis(200);
/// How long the others let the member go first that is named as the next leader, and how long a leader that stepped
/// back waits for another one.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the name of the next leader stays, in seconds.
const NEXT_TTL_S: i64 = 2;
/// How long what a leader has begun may take to end.
const WRAP_UP: Duration = Duration::from_secs(1);
/// A member that has been away for so long is forgotten, in seconds.
const FORGET_S: i64 = 600;
const MEMBER_RENEWAL: Duration = Duration::from_secs(30);

/// What a scheduler gets when it is elected.
pub struct Mandate {
    /// Whether it leads now.
    pub leadership: Arc<Leadership>,
    /// The metadata; commits are fenced.
    pub kv: Arc<dyn Kv>,
    /// Cancelled when the leader has to end.
    pub ending: CancellationToken,
}

/// What there is to do as the leader.
pub trait Lead: Send + Sync + 'static {
    /// Leads until `ending` is cancelled or it cannot go on.
    fn lead(&self, mandate: Mandate) -> BoxFuture<'_, ()>;
}

/// Why the lead was not given away.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("not leader")]
    NotLeader,
    #[error("there is no other scheduler that could lead")]
    Alone,
    #[error("there is no scheduler named {name:?}; there are: {known}")]
    UnknownMember { name: String, known: String },
    #[error("etcd: {0}")]
    Etcd(#[from] EtcdError),
}

/// A wish that another scheduler leads.
pub struct Transfer {
    /// The name of the one that shall lead; None: any other.
    pub to: Option<String>,
    /// Told when this scheduler does not lead any more.
    pub done: oneshot::Sender<Result<(), TransferError>>,
}

/// Why a leader ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stopping,
    LeaseLost,
    KeyLost,
    Asked,
    Failed,
}

/// See the module.
pub struct Elector {
    pub pool: Arc<EtcdPool>,
    pub keys: Keys,
    pub me: Member,
    pub directory: Arc<Directory>,
    pub transfers: mpsc::Receiver<Transfer>,
}

impl Elector {
    /// Stands for election until `stopping` is cancelled; then the lead and the lease are given back.
    pub async fn run(mut self, leader: Arc<dyn Lead>, stopping: CancellationToken) {
        while !stopping.is_cancelled() {
            let opened = stopping.run_until_cancelled(Session::open(self.pool.clone())).await;
            match opened {
                None => return,
                Some(Ok(session)) => {
                    self.use_session(&session, leader.as_ref(), &stopping).await;
                    session.close().await;
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "no lease from etcd: this scheduler cannot lead");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Campaigns and leads while the session holds. Returns also when etcd did not say how a change of the leader key
    /// ended: closing the session then ends whatever key it may have left, which it would keep alive for ever.
    async fn use_session(&mut self, session: &Session, leader: &dyn Lead, stopping: &CancellationToken) {
        while !stopping.is_cancelled() && !session.is_lost() {
            let elected = tokio::select! {
                () = stopping.cancelled() => return,
                () = session.wait_lost() => return,
                elected = self.campaign(session) => elected,
            };
            match elected {
                Ok(revision) => {
                    let end = self.lead(session, revision, leader, stopping).await;
                    tracing::info!(revision, why = ?end, "this scheduler does not lead any more");
                    if matches!(end, End::Asked | End::Failed) {
                        if !self.resign(revision).await {
                            return;
                        }
                        let mut views = self.directory.subscribe();
                        let other = views
                            .wait_for(|view| view.leader.as_ref().is_some_and(|l| l.revision > revision));
                        // Nobody else may be there: then it is this one's turn again.
                        let _nobody = tokio::time::timeout(PATIENCE, other).await.is_err();
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the campaign for the lead failed");
                    tokio::time::sleep(RETRY).await;
                    return;
                }
            }
        }
    }

    /// Waits until nobody leads, then tries to; returns the revision of the leader key when it is ours.
    async fn campaign(&self, session: &Session) -> Result<i64, EtcdError> {
        let mut views = self.directory.subscribe();
        loop {
            let next = match views.wait_for(|view| view.leader.is_none()).await {
                Ok(view) => view.next.clone(),
                Err(_) => None,
            };
            if next.is_some_and(|name| name != self.me.name) {
                let other = views.wait_for(|view| view.leader.is_some());
                if tokio::time::timeout(PATIENCE, other).await.is_ok() {
                    continue;
                }
            }
            if let Some(revision) = self.create_leader_key(session.id()).await? {
                self.directory.refresh(&self.pool, &self.keys).await?;
                return Ok(revision);
            }
            self.directory.refresh(&self.pool, &self.keys).await?;
        }
    }

    async fn create_leader_key(&self, lease: i64) -> Result<Option<i64>, EtcdError> {
        let key = self.keys.leader();
        let value = records::encode(&self.me.to_wire());
        let put = TxnOp::put(key.clone(), value.as_ref(), Some(PutOptions::new().with_lease(lease)));
        let request = etcd_client::Txn::new()
            .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
            // Whoever was named as the next leader had its turn: the name must not count in the next election.
            .and_then([put, TxnOp::delete(self.keys.next(), None)])
            .or_else([TxnOp::get(key, None)]);
        let response = self
            .pool
            .call(CALL_WITHIN, |mut client| {
                let request = request.clone();
                async move { client.txn(request).await }
            })
            .await?;
        if response.succeeded() {
            return Ok(response.header().map(|header| header.revision()));
        }
        // An earlier attempt that seemed lost may have created it.
        let found = response.op_responses().into_iter().find_map(|found| match found {
            TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
            _ => None,
        });
        Ok(found.filter(|key| key.lease() == lease).map(|key| key.create_revision()))
    }

    /// Leads, and says why it ended. Afterwards nothing answers as the leader any more.
    async fn lead(
        &mut self,
        session: &Session,
        revision: i64,
        leader: &dyn Lead,
        stopping: &CancellationToken,
    ) -> End {
        tracing::info!(revision, "this scheduler is elected");
        let leadership = Arc::new(Leadership::until(session.deadline()));
        let (ending, cut_off) = (CancellationToken::new(), CancellationToken::new());
        let kv = EtcdKv::new(self.pool.clone(), self.keys.clone(), Fence { revision }, cut_off.clone());
        let mandate = Mandate { leadership: leadership.clone(), kv: Arc::new(kv), ending: ending.clone() };
        let mut leading = leader.lead(mandate);
        let mut views = self.directory.subscribe();
        let (end, asked_by) = loop {
            tokio::select! {
                () = &mut leading => break (End::Failed, None),
                () = session.wait_lost() => break (End::LeaseLost, None),
                () = until_led_by_others(&mut views, revision) => break (End::KeyLost, None),
                () = stopping.cancelled() => break (End::Stopping, None),
                Some(transfer) = self.transfers.recv() => match self.announce(&transfer).await {
                    Ok(()) => break (End::Asked, Some(transfer.done)),
                    // Whoever asked may have gone away.
                    Err(error) => { let _gone = transfer.done.send(Err(error)).is_err(); }
                },
            }
        };
        leadership.give_up();
        if matches!(end, End::LeaseLost | End::KeyLost) {
            cut_off.cancel();
        }
        ending.cancel();
        if end != End::Failed && tokio::time::timeout(WRAP_UP, &mut leading).await.is_err() {
            cut_off.cancel();
            leading.await;
        }
        cut_off.cancel();
        if let Some(done) = asked_by {
            // Tried again by the caller; the lead ends with the session at the latest.
            let _given_back = self.resign(revision).await;
            let _gone = done.send(Ok(())).is_err();
        }
        while let Ok(late) = self.transfers.try_recv() {
            let _gone = late.done.send(Err(TransferError::NotLeader)).is_err();
        }
        end
    }

    /// Checks a transfer and tells the others whose turn it is.
    async fn announce(&self, transfer: &Transfer) -> Result<(), TransferError> {
        let members = self.directory.view().members;
        if members.iter().all(|member| member.name == self.me.name) {
            return Err(TransferError::Alone);
        }
        let Some(name) = &transfer.to else { return Ok(()) };
        if !members.iter().any(|member| member.name == *name) {
            let known: Vec<String> = members.into_iter().map(|member| member.name).collect();
            return Err(TransferError::UnknownMember { name: name.clone(), known: known.join(", ") });
        }
        let lease = self
            .pool
            .call(CALL_WITHIN, |mut client| async move { client.lease_grant(NEXT_TTL_S, None).await });
        let lease = lease.await?.id();
        let put = self.pool.call(CALL_WITHIN, |mut client| {
            let (key, name) = (self.keys.next(), name.clone());
            async move { client.put(key, name, Some(PutOptions::new().with_lease(lease))).await }
        });
        put.await?;
        Ok(())
    }

    /// Deletes the leader key if it is still the one of this revision. False when etcd did not say that it is gone.
    async fn resign(&self, revision: i64) -> bool {
        let key = self.keys.leader();
        let request = etcd_client::Txn::new()
            .when([Compare::create_revision(key.clone(), CompareOp::Equal, revision)])
            .and_then([TxnOp::delete(key, None)]);
        let deleted = self.pool.call(CALL_WITHIN, |mut client| {
            let request = request.clone();
            async move { client.txn(request).await }
        });
        match deleted.await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "the lead could not be given back: it ends with the lease");
                false
            }
        }
    }
}

/// Waits until the leader key is another one, or gone.
async fn until_led_by_others(views: &mut watch::Receiver<View>, revision: i64) {
    let is_ours = |view: &View| view.leader.as_ref().is_some_and(|leader| leader.revision == revision);
    // The directory lives as long as the elector.
    let _closed = views.wait_for(|view| !is_ours(view)).await.is_err();
}

/// The cluster's id: the one that is there, or `proposed` when none is.
pub async fn agree_on_cluster_id(
    pool: &EtcdPool,
    keys: &Keys,
    proposed: u64,
) -> Result<u64, crate::error::Error> {
    let key = keys.data(&records::CLUSTER_ID);
    let value = records::encode_number(proposed);
    let request = etcd_client::Txn::new()
        .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(key.clone(), value.as_ref(), None)])
        .or_else([TxnOp::get(key, Some(GetOptions::new()))]);
    let response = pool
        .call(CALL_WITHIN, |mut client| {
            let request = request.clone();
            async move { client.txn(request).await }
        })
        .await
        .map_err(crate::kv::KvError::from)?;
    let found = response.op_responses().into_iter().find_map(|found| match found {
        TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
        _ => None,
    });
    match found {
        Some(record) => Ok(records::decode_number(&records::CLUSTER_ID, record.value())?),
        None => Ok(proposed),
    }
}

/// Keeps this scheduler, registered with this lease, in the list of members for ever. It stays there for a while after
/// its end, so that an operator sees who is missing.
pub async fn stay_registered(pool: Arc<EtcdPool>, keys: Keys, me: Member, mut lease: i64) {
    loop {
        while_renewed(&pool, lease).await;
        lease = loop {
            match register(&pool, &keys, &me).await {
                Ok(lease) => break lease,
                Err(error) => tracing::warn!(%error, "this scheduler cannot register itself as a member"),
            }
            tokio::time::sleep(RETRY).await;
        };
    }
}

/// Puts a scheduler into the list of members; returns the lease under which it stays there.
pub async fn register(pool: &EtcdPool, keys: &Keys, me: &Member) -> Result<i64, EtcdError> {
    let lease = pool
        .call(CALL_WITHIN, |mut client| async move { client.lease_grant(FORGET_S, None).await })
        .await?
        .id();
    let (key, value) = (format!("{}{}", keys.members(), me.name), records::encode(&me.to_wire()));
    let put = pool.call(CALL_WITHIN, |mut client| {
        let (key, value) = (key.clone(), value.clone());
        async move { client.put(key, value.as_ref(), Some(PutOptions::new().with_lease(lease))).await }
    });
    put.await?;
    Ok(lease)
}

/// Renews a lease until etcd says that it is gone.
async fn while_renewed(pool: &EtcdPool, lease: i64) {
    loop {
        tokio::time::sleep(MEMBER_RENEWAL).await;
        let renewed = pool
            .call(CALL_WITHIN, |mut client| async move { client.lease_keep_alive(lease).await.map(drop) });
        if matches!(renewed.await, Err(EtcdError::Refused { .. })) {
            return;
        }
    }
}
