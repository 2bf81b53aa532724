//! Who answers a request: the services of the present term, or what a scheduler answers that does not lead.
//!
//! Owns the rule. While this process leads, a request goes to the term's services. Otherwise gRPC gets the members,
//! health, and a timestamp stream that is passed on to the leader; anything else is UNAVAILABLE with the words that
//! clients of the field look for, unless the client asks to have it forwarded. HTTP about this process is always
//! answered here, and about the cluster by the leader.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use http::{Request, StatusCode, header};
use tonic::Status;
use tower::ServiceExt;

use super::forward::{self, Forwarder};
use super::member_api;
use super::member_service::MemberService;
use super::node::Node;

/// Metadata with which clients of the field ask a member to pass their request on to the leader.
const FORWARD_WISH: &str = "pd-forwarded-host";

/// What clients of the field ask any member; it does not matter which one answers.
const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";

/// The refusal of a scheduler that does not lead.
pub fn not_leader() -> Status {
    Status::unavailable("not leader")
}

/// The stream until `end`, which ends it as one of a scheduler that does not lead.
pub fn until_not_leader<T>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    end: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let state = Some((Box::pin(stream), Box::pin(end)));
    futures::stream::unfold(state, |state| async {
        let (mut stream, mut end) = state?;
        tokio::select! {
            biased;
            () = &mut end => Some((Err(not_leader()), None)),
            item = stream.next() => item.map(|item| (item, Some((stream, end)))),
        }
    })
}

struct Dispatcher {
    node: Arc<Node>,
    members: MemberService,
    /// HTTP about this process.
    http: Router,
    forwarder: Arc<Forwarder>,
}

/// The one service behind the port.
pub fn service(node: Arc<Node>) -> Router {
    let forwarder = Arc::new(Forwarder::default());
    let members = MemberService::new(node.clone(), forwarder.clone());
    let http = member_api::routes(node.clone(), forwarder.clone());
    let dispatcher = Arc::new(Dispatcher { node, members, http, forwarder });
    Router::new().fallback_service(tower::service_fn(move |request| {
        let dispatcher = dispatcher.clone();
        async move { Ok::<_, Infallible>(dispatcher.answer(request).await) }
    }))
}

impl Dispatcher {
    async fn answer(&self, request: Request<Body>) -> Response {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let is_grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let term = self.node.leading_term();
        if !is_grpc {
            if member_api::is_about_this_process(request.uri().path()) {
                return send(self.http.clone(), request).await;
            }
            return match term {
                Some(term) => send(term.http.clone(), request).await,
                None => self.forward_http(request).await,
            };
        }
        if MemberService::is_its_own(request.uri().path()) {
            return send(self.members.administration(), request).await;
        }
        match term {
            Some(term) => send(term.grpc.clone(), request).await,
            None => self.answer_as_follower(request).await,
        }
    }

    async fn answer_as_follower(&self, request: Request<Body>) -> Response {
        if let Some(answer) = MemberService::route(request.uri().path()) {
            return self.members.answer(answer, request).await;
        }
        let is_asked_for =
            request.headers().contains_key(FORWARD_WISH) || request.uri().path() == MEMBER_LIST;
        let is_wanted = is_asked_for && !forward::is_forwarded(&request);
        match self.node.other_leader_url() {
            Some(url) if is_wanted => match self.forwarder.forward(&url, request).await {
                Ok(answer) => answer,
                Err(cause) => Status::unavailable(cause).into_http::<Body>(),
            },
            _ => not_leader().into_http::<Body>(),
        }
    }

    async fn forward_http(&self, request: Request<Body>) -> Response {
        let refuse = |cause: String| {
            let body = axum::Json(serde_json::json!({ "error": cause }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        };
        match self.node.other_leader_url() {
            Some(url) if !forward::is_forwarded(&request) => {
                self.forwarder.forward(&url, request).await.unwrap_or_else(refuse)
            }
            _ => refuse("no scheduler leads at this moment: try again".into()),
        }
    }
}

async fn send(service: Router, request: Request<Body>) -> Response {
    service.oneshot(request).await.unwrap_or_else(|never| match never {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_that_is_cut_says_why_and_ends() {
        let numbers = || futures::stream::iter([Ok(1), Ok(2)]);
        let whole: Vec<_> = until_not_leader(numbers(), std::future::pending()).collect().await;
        assert!(matches!(whole[..], [Ok(1), Ok(2)]), "a stream that ends by itself ends well");
        let endless = numbers().chain(futures::stream::pending());
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let mut cut = Box::pin(until_not_leader(endless, async { drop(ended.await) }));
        assert!(matches!(cut.next().await, Some(Ok(1))));
        assert!(matches!(cut.next().await, Some(Ok(2))));
        drop(end);
        let status = cut.next().await.unwrap().unwrap_err();
        assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "not leader"));
        assert!(cut.next().await.is_none());
    }
}
