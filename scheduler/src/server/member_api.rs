//! HTTP about this process and the other schedulers, answered whether it leads or not: `/ping`, `/metrics`, and the
//! members, health and readiness under `/pd/api`. Paths and JSON are those that the field's tools read.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::future::join_all;
use kvproto::health::health_check_response::ServingStatus;
use kvproto::health::{HealthCheckRequest, health_client::HealthClient};
use serde_json::json;

use super::forward::Forwarder;
use super::http_api::{Answer, Failure, json_answer, no_head};
use super::http_json as view;
use super::node::Node;
use crate::member::Member;
use crate::member::election::TransferError;

/// How long another member may take to say that it is well.
const HEALTH_WITHIN: Duration = Duration::from_millis(500);

/// What the handlers share.
#[derive(Clone)]
struct Face {
    node: Arc<Node>,
    forwarder: Arc<Forwarder>,
}

/// Whether this path is answered here by every scheduler.
pub fn is_about_this_process(path: &str) -> bool {
    let own = ["/ping", "/metrics", "/pd/api/v2/ready"];
    let below_v1 = ["ping", "members", "leader", "health", "version", "status"];
    own.contains(&path) || path.strip_prefix("/pd/api/v1/").is_some_and(|name| below_v1.contains(&name))
}

/// The routes.
pub fn routes(node: Arc<Node>, forwarder: Arc<Forwarder>) -> Router {
    Router::new()
        .route("/ping", get(ping).head(no_head))
        .route("/metrics", get(metrics).head(no_head))
        .route("/pd/api/v1/ping", get(ping).head(no_head))
        .route("/pd/api/v1/members", get(members).head(no_head))
        .route("/pd/api/v1/leader", get(leader).head(no_head))
        .route("/pd/api/v1/health", get(health).head(no_head))
        .route("/pd/api/v1/version", get(version).head(no_head))
        .route("/pd/api/v1/status", get(status).head(no_head))
        .route("/pd/api/v2/ready", get(ready).head(no_head))
        .with_state(Face { node, forwarder })
}

/// The routes that only the leader has.
pub fn leader_routes(node: Arc<Node>) -> Router {
    Router::new()
        .route("/pd/api/v1/leader/resign", post(resign))
        .route("/pd/api/v1/leader/transfer/{name}", post(transfer))
        .with_state(node)
}

async fn ping() -> StatusCode {
    StatusCode::OK
}

async fn metrics(Shared(face): Shared<Face>) -> Answer {
    match face.node.render_metrics() {
        Ok(text) => Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()),
        Err(e) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())),
    }
}

async fn members(Shared(face): Shared<Face>) -> Answer {
    let known = face.node.members();
    let member = |member| view::Member::new(&Member::from_wire(member));
    let leader = known.leader.map(member);
    json_answer(view::Members {
        header: view::Header { cluster_id: face.node.cluster_id },
        members: known.members.into_iter().map(member).collect(),
        etcd_leader: leader.clone(),
        leader,
    })
}

async fn leader(Shared(face): Shared<Face>) -> Answer {
    match face.node.members().leader {
        Some(leader) => json_answer(view::Member::new(&Member::from_wire(leader))),
        None => Err(Failure(StatusCode::SERVICE_UNAVAILABLE, "no scheduler leads at this moment".into())),
    }
}

async fn health(Shared(face): Shared<Face>) -> Answer {
    let members = face.node.members().members.into_iter().map(Member::from_wire);
    let checks = members.map(|member| async {
        let is_me = member.name == face.node.me.name;
        let health = if is_me { face.node.obstacle().is_none() } else { face.is_well(&member).await };
        let Member { name, id: member_id, client_urls } = member;
        view::MemberHealth { name, member_id, client_urls, health }
    });
    json_answer(join_all(checks).await)
}

impl Face {
    async fn is_well(&self, member: &Member) -> bool {
        let Ok(channel) = self.forwarder.channel(member.url()) else { return false };
        let mut client = HealthClient::new(channel);
        let check = client.check(HealthCheckRequest::default());
        match tokio::time::timeout(HEALTH_WITHIN, check).await {
            Ok(Ok(answer)) => answer.get_ref().status() == ServingStatus::Serving,
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

async fn ready(Shared(face): Shared<Face>) -> Answer {
    match face.node.obstacle() {
        None => Ok(StatusCode::OK.into_response()),
        Some(obstacle) => Err(Failure(StatusCode::SERVICE_UNAVAILABLE, obstacle)),
    }
}

async fn version() -> Answer {
    json_answer(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

async fn status(Shared(face): Shared<Face>) -> Answer {
    json_answer(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "start_timestamp": face.node.clock.started_at_ms() / 1000,
    }))
}

async fn resign(Shared(node): Shared<Arc<Node>>) -> Answer {
    transferred(node.transfer_leader(None).await)
}

async fn transfer(Shared(node): Shared<Arc<Node>>, Path(name): Path<String>) -> Answer {
    transferred(node.transfer_leader(Some(name)).await)
}

fn transferred(outcome: Result<(), TransferError>) -> Answer {
    match outcome {
        Ok(()) => Ok(Json("The leader has resigned.").into_response()),
        Err(error) => {
            let status = match error {
                TransferError::UnknownMember { .. } => StatusCode::NOT_FOUND,
                TransferError::Alone => StatusCode::CONFLICT,
                TransferError::NotLeader | TransferError::Etcd(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            Err(Failure(status, error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_the_cluster_is_left_to_the_leader() {
        for path in ["/metrics", "/pd/api/v1/members", "/pd/api/v1/health", "/pd/api/v2/ready"] {
            assert!(is_about_this_process(path), "{path}");
        }
        for path in ["/pd/api/v1/stores", "/pd/api/v1/leader/resign", "/pd/api/v1/", "/x"] {
            assert!(!is_about_this_process(path), "{path}");
        }
    }
}
