//! What one scheduler process has besides the cluster: its name, the other members, and its time as the leader.
//!
//! Owns what is served at this moment: while the process leads there is a [`Term`] with the cluster's state and the
//! services over it, and each time it is elected there is a new one, loaded from the metadata. Nothing of a term
//! outlives it. A scheduler with metadata of its own has one term, from its start to its end.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::Router;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use kvproto::pdpb;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;

use super::grpc_service::GrpcService;
use super::http_api;
use super::member_api;
use super::meta_writer::MetaWriter;
use super::metrics::Metrics;
use super::state::{Clock, Parts, State};
use super::{LOAD_CHUNK, TICK};
use crate::cluster::Cluster;
use crate::error::Error;
use crate::id::WINDOW;
use crate::kv::etcd_pool::EtcdPool;
use crate::kv::records::{self, MetaWrite};
use crate::kv::{Kv, KvError};
use crate::member::Member;
use crate::member::directory::Directory;
use crate::member::election::{Lead, Mandate, Transfer, TransferError};
use crate::member::leadership::Leadership;
use crate::schedule::ScheduleConfig;
use crate::tso::service::{SAVE_INTERVAL, TsoService};

/// See the module.
pub struct Node {
    pub me: Member,
    pub cluster_id: u64,
    pub config: ScheduleConfig,
    pub directory: Arc<Directory>,
    pub metrics: Arc<Metrics>,
    pub clock: Arc<Clock>,
    /// None with metadata of its own.
    pub etcd: Option<Arc<EtcdPool>>,
    /// Where wishes for another leader go; closed with metadata of its own.
    pub transfers: mpsc::Sender<Transfer>,
    pub term: ArcSwapOption<Term>,
}

/// One time as the leader.
pub struct Term {
    pub state: Arc<State>,
    pub grpc: Router,
    pub http: Router,
}

impl Node {
    /// The term, when this process leads now.
    pub fn leading_term(&self) -> Option<Arc<Term>> {
        self.term.load_full().filter(|term| term.state.leadership.is_valid())
    }

    /// Where the leader is, when it is another scheduler.
    pub fn other_leader_url(&self) -> Option<String> {
        let leader = self.directory.view().leader?.member;
        (leader.name != self.me.name).then(|| leader.url().to_string())
    }

    /// A header without an error.
    pub fn header(&self) -> pdpb::ResponseHeader {
        pdpb::ResponseHeader { cluster_id: self.cluster_id, error: None }
    }

    /// The answer to "who are you?".
    pub fn members(&self) -> pdpb::GetMembersResponse {
        let mut answer =
            self.directory.view().to_wire(&self.me, self.leading_term().is_some(), self.header());
        // What was known of others before etcd went out of reach may be long over, and would send clients astray.
        if self.leading_term().is_none() && self.etcd.as_ref().is_some_and(|etcd| !etcd.is_up()) {
            (answer.leader, answer.etcd_leader) = (None, None);
        }
        answer
    }

    /// Why this process cannot do its part, if it cannot.
    pub fn obstacle(&self) -> Option<String> {
        if let Some(term) = self.leading_term() {
            return term.state.writer.failure().map(KvError::to_string);
        }
        match &self.etcd {
            Some(etcd) if !etcd.is_up() => Some("etcd cannot be reached".into()),
            _ if self.directory.leader_url().is_none() => Some("no scheduler leads".into()),
            _ => None,
        }
    }

    /// Everything in Prometheus' text format.
    pub fn render_metrics(&self) -> Result<String, prometheus::Error> {
        let term = self.leading_term();
        let up = self.etcd.as_ref().map(|etcd| etcd.is_up());
        self.metrics.refresh_member(term.is_some(), up);
        match term {
            Some(term) => term.state.read(|cluster, now_ms| self.metrics.refresh(cluster, now_ms)),
            None => self.metrics.forget_cluster(),
        }
        self.metrics.render()
    }

    /// Gives the lead to the member with this name, or to any other one; nothing to do when it has the lead already.
    pub async fn transfer_leader(&self, to: Option<String>) -> Result<(), TransferError> {
        if self.leading_term().is_none() {
            return Err(TransferError::NotLeader);
        }
        if to.as_ref() == Some(&self.me.name) {
            return Ok(());
        }
        let (done, outcome) = oneshot::channel();
        let transfer = Transfer { to, done };
        if self.transfers.send(transfer).await.is_err() {
            return Err(TransferError::Alone);
        }
        outcome.await.unwrap_or(Err(TransferError::NotLeader))
    }

    /// Loads the cluster, makes windows of ids and timestamps durable, and serves from then on.
    pub async fn start_term(
        self: &Arc<Self>,
        kv: Arc<dyn Kv>,
        leadership: Arc<Leadership>,
        ending: CancellationToken,
    ) -> Result<Arc<Term>, Error> {
        let started = std::time::Instant::now();
        let (id, config, now_ms) = (self.cluster_id, self.config.clone(), self.clock.now_ms());
        let from = kv.clone();
        let loading = tokio::task::spawn_blocking(move || load(from.as_ref(), id, config, now_ms));
        let loaded = loading.await.map_err(|e| KvError::Storage(format!("loading: {e}")))??;
        let writer = Arc::new(MetaWriter::start(kv).map_err(Error::Thread)?);
        let state = Arc::new(State::new(Parts {
            cluster: loaded.cluster,
            id_end: loaded.id_end,
            tso: TsoService::new(loaded.tso_end_ms, writer.clone(), leadership.clone()),
            writer,
            leadership,
            metrics: self.metrics.clone(),
            members: (self.directory.clone(), self.me.clone()),
            clock: self.clock.clone(),
            stopping: ending,
        }));
        state.extend_ids(WINDOW).await?;
        state.tso.allocate(1).await?;
        let leader_api = member_api::leader_routes(self.clone());
        let http = http_api::routes(state.clone()).merge(leader_api);
        let term = Term { grpc: grpc_routes(&state), http, state };
        let term = Arc::new(term);
        self.term.store(Some(term.clone()));
        self.metrics.terms.inc();
        let regions = term.state.read(|cluster, _| cluster.basic().regions().len());
        let took_ms = started.elapsed().as_millis() as u64;
        tracing::info!(regions, took_ms, cluster_id = id, "this scheduler leads");
        Ok(term)
    }

    /// Stops serving as the leader; returns when everything is written.
    pub async fn end_term(&self, term: &Term) {
        self.term.store(None);
        term.state.leadership.give_up();
        term.state.writer.stop().await;
    }
}

impl Lead for Arc<Node> {
    fn lead(&self, mandate: Mandate) -> BoxFuture<'_, ()> {
        async move {
            let Mandate { leadership, kv, ending } = mandate;
            let starting = self.start_term(kv, leadership, ending.clone());
            match ending.run_until_cancelled(starting).await {
                Some(Ok(term)) => {
                    let failure = term.tick().await;
                    if let Err(error) = failure {
                        tracing::error!(%error, "the leader cannot go on and gives the lead away");
                    }
                    self.end_term(&term).await;
                }
                Some(Err(error)) => tracing::error!(%error, "this scheduler was elected and cannot lead"),
                None => {}
            }
        }
        .boxed()
    }
}

impl Term {
    /// Drives the clock until the term ends; fails when metadata cannot be written.
    pub async fn tick(&self) -> Result<(), KvError> {
        let state = &self.state;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saves = tokio::time::interval(SAVE_INTERVAL);
        saves.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let outcome = tokio::select! {
                () = state.stopping.cancelled() => return Ok(()),
                error = state.writer.wait_failure() => Err(error),
                _ = ticks.tick() => state.tick().await,
                _ = saves.tick() => state.tso.save_ahead().await,
            };
            // A write that ends with the term is no failure of its own.
            match outcome {
                Err(_) if state.stopping.is_cancelled() => return Ok(()),
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
    }
}

fn grpc_routes(state: &Arc<State>) -> Router {
    use kvproto::etcdserverpb::cluster_server::ClusterServer;
    use kvproto::etcdserverpb::kv_server::KvServer;
    use kvproto::health::health_server::HealthServer;
    use kvproto::keyspacepb::keyspace_server::KeyspaceServer;
    use kvproto::pdpb::pd_server::PdServer;
    let service = GrpcService::new(state.clone());
    tonic::service::Routes::new(PdServer::new(service.clone()).accept_compressed(CompressionEncoding::Gzip))
        .add_service(KeyspaceServer::new(service.clone()).accept_compressed(CompressionEncoding::Gzip))
        .add_service(KvServer::new(service.clone()).accept_compressed(CompressionEncoding::Gzip))
        .add_service(ClusterServer::new(service.clone()).accept_compressed(CompressionEncoding::Gzip))
        .add_service(HealthServer::new(service).accept_compressed(CompressionEncoding::Gzip))
        .into_axum_router()
}

struct Loaded {
    cluster: Cluster,
    id_end: u64,
    tso_end_ms: u64,
}

fn load(kv: &dyn Kv, cluster_id: u64, config: ScheduleConfig, now_ms: u64) -> Result<Loaded, Error> {
    let mut cluster = Cluster::new(cluster_id, config);
    let mut start = Bytes::from_static(records::RECORDS_START);
    loop {
        let chunk = kv.range(&start, records::RECORDS_END, LOAD_CHUNK)?;
        let Some((last, _)) = chunk.last() else { break };
        start = [last.as_ref(), &[0]].concat().into();
        for (key, value) in chunk {
            cluster.restore(MetaWrite::decode(&key, &value)?, now_ms)?;
        }
    }
    let id_end = read_number(kv, records::ID_END)?;
    let tso_end_ms = read_number(kv, records::TSO_END)?;
    Ok(Loaded { cluster, id_end, tso_end_ms })
}

/// A number record; 0 when there is none.
pub fn read_number(kv: &dyn Kv, key: Bytes) -> Result<u64, Error> {
    match kv.get(&key)? {
        Some(value) => Ok(records::decode_number(&key, &value)?),
        None => Ok(0),
    }
}
