//! gRPC that is about the schedulers themselves: who they are, who leads, and what one answers that does not.
//!
//! Holds no state. The timestamp stream of a scheduler that does not lead is passed on to the leader it knows, and
//! ends as soon as it hears of another one.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response as HttpResponse;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use kvproto::health::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use kvproto::memberpb::members_client::MembersClient;
use kvproto::memberpb::members_server::{Members, MembersServer};
use kvproto::memberpb::{DescribeRequest, DescribeResponse, TransferLeaderRequest, TransferLeaderResponse};
use kvproto::pdpb;
use kvproto::pdpb::pd_client::PdClient;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::dispatch::{not_leader, until_not_leader};
use super::forward::{self, Forwarder};
use super::grpc_service::check_cluster;
use super::node::Node;
use crate::member::election::TransferError;

/// How long the leader may take to open a stream.
const OPEN_WITHIN: Duration = Duration::from_secs(2);

/// What is answered without leading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Members,
    Health,
    Timestamps,
}

/// See the module.
#[derive(Clone)]
pub struct MemberService {
    node: Arc<Node>,
    forwarder: Arc<Forwarder>,
}

impl MemberService {
    /// A face of `node`.
    pub fn new(node: Arc<Node>, forwarder: Arc<Forwarder>) -> MemberService {
        MemberService { node, forwarder }
    }

    /// Whether the path belongs to the service that only this file has.
    pub fn is_its_own(path: &str) -> bool {
        path.starts_with("/memberpb.Members/")
    }

    /// That service.
    pub fn administration(&self) -> Router {
        tonic::service::Routes::new(MembersServer::new(self.clone())).into_axum_router()
    }

    /// What a scheduler that does not lead answers itself.
    pub fn route(path: &str) -> Option<Route> {
        match path {
            "/pdpb.PD/GetMembers" => Some(Route::Members),
            "/grpc.health.v1.Health/Check" => Some(Route::Health),
            "/pdpb.PD/Tso" => Some(Route::Timestamps),
            _ => None,
        }
    }

    /// Answers a request of that kind.
    pub async fn answer(&self, route: Route, request: http::Request<Body>) -> HttpResponse {
        let service = self.clone();
        let answer = match route {
            Route::Members => Grpc::new(ProstCodec::default()).unary(MembersCall(service), request).await,
            Route::Health => Grpc::new(ProstCodec::default()).unary(HealthCall(service), request).await,
            Route::Timestamps => Grpc::new(ProstCodec::default()).streaming(TsoCall(service), request).await,
        };
        answer.map(Body::new)
    }

    /// Passes a timestamp stream on to the leader.
    async fn pass_on(&self, request: Request<Streaming<pdpb::TsoRequest>>) -> TsoReply {
        let leader = self.node.other_leader_url().filter(|_| !forward::is_marked(request.metadata()));
        let leader = leader.ok_or_else(not_leader)?;
        let channel = self.forwarder.channel(&leader).map_err(Status::unavailable)?;
        // What the client sends wrong ends the leader's stream, and with it the client's.
        let requests = tokio_stream::StreamExt::map_while(request.into_inner(), Result::ok);
        let mut request = Request::new(requests);
        forward::mark(request.metadata_mut());
        let mut pd = PdClient::new(channel);
        let opened = tokio::time::timeout(OPEN_WITHIN, pd.tso(request)).await;
        let answers = opened.map_err(|_| not_leader())??.into_inner();
        let mut views = self.node.directory.subscribe();
        let other = async move {
            let is_other = |url: Option<&str>| url != Some(leader.as_str());
            let changed = views.wait_for(|view| is_other(view.leader.as_ref().map(|l| l.member.url())));
            // The directory lives as long as the process.
            let _closed = changed.await.is_err();
        };
        Ok(Response::new(Box::pin(until_not_leader(answers, other))))
    }
}

/// The name of the scheduler of this cluster that answers at `url`, if one does.
pub async fn name_at(url: &str, cluster_id: u64) -> Option<String> {
    let channel = Forwarder::default().channel(url).ok()?;
    let mut members = MembersClient::new(channel);
    let asked = tokio::time::timeout(OPEN_WITHIN, members.describe(DescribeRequest {})).await;
    let answer = asked.ok()?.ok()?.into_inner();
    let is_of_cluster = answer.header.is_some_and(|header| header.cluster_id == cluster_id);
    answer.member.filter(|_| is_of_cluster).map(|member| member.name)
}

#[tonic::async_trait]
impl Members for MemberService {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let node = &self.node;
        Ok(Response::new(DescribeResponse {
            header: Some(node.header()),
            member: Some(node.me.to_wire()),
            is_leader: node.leading_term().is_some(),
            obstacle: node.obstacle().unwrap_or_default(),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        check_cluster(self.node.cluster_id, request.header.as_ref())?;
        let node = &self.node;
        if !request.from.is_empty() && request.from != node.me.name && node.leading_term().is_some() {
            return Ok(Response::new(TransferLeaderResponse { header: Some(node.header()) }));
        }
        let to = Some(request.name).filter(|name| !name.is_empty());
        tracing::info!(to, "asked to let another scheduler lead");
        node.transfer_leader(to).await.map_err(|error| match error {
            TransferError::NotLeader => not_leader(),
            TransferError::UnknownMember { .. } => Status::not_found(error.to_string()),
            TransferError::Alone => Status::failed_precondition(error.to_string()),
            TransferError::Etcd(_) => Status::unavailable(error.to_string()),
        })?;
        Ok(Response::new(TransferLeaderResponse { header: Some(node.header()) }))
    }
}

struct MembersCall(MemberService);

impl UnaryService<pdpb::GetMembersRequest> for MembersCall {
    type Response = pdpb::GetMembersResponse;
    type Future = futures::future::Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<pdpb::GetMembersRequest>) -> Self::Future {
        futures::future::ready(Ok(Response::new(self.0.node.members())))
    }
}

struct HealthCall(MemberService);

impl UnaryService<HealthCheckRequest> for HealthCall {
    type Response = HealthCheckResponse;
    type Future = futures::future::Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<HealthCheckRequest>) -> Self::Future {
        let status = match self.0.node.obstacle() {
            Some(_) => ServingStatus::NotServing,
            None => ServingStatus::Serving,
        };
        futures::future::ready(Ok(Response::new(HealthCheckResponse { status: status as i32 })))
    }
}

type TsoStream = Pin<Box<dyn Stream<Item = Result<pdpb::TsoResponse, Status>> + Send>>;
type TsoReply = Result<Response<TsoStream>, Status>;

struct TsoCall(MemberService);

impl StreamingService<pdpb::TsoRequest> for TsoCall {
    type Response = pdpb::TsoResponse;
    type ResponseStream = TsoStream;
    type Future = BoxFuture<'static, TsoReply>;

    fn call(&mut self, request: Request<Streaming<pdpb::TsoRequest>>) -> Self::Future {
        let service = self.0.clone();
        async move { service.pass_on(request).await }.boxed()
    }
}
