//! Passes requests on to another scheduler.
//!
//! Owns the connections to the other members; there are as many as members ever led. A request that was passed on
//! is marked and never passed on again, so that two schedulers that take each other for the leader do not play
//! ping-pong.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue, Request, Version};
use parking_lot::Mutex;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt;

/// Marks a request that was passed on.
const MARK: &str = "kvasir-forwarded";
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the leader may take to begin its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Members that are remembered; a cluster has a few.
const CHANNELS_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub struct Forwarder {
    channels: Mutex<BTreeMap<String, Channel>>,
}

/// Whether another scheduler has passed this request on.
pub fn is_forwarded<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(MARK)
}

/// The same for a decoded request.
pub fn is_marked(metadata: &MetadataMap) -> bool {
    metadata.contains_key(MARK)
}

/// Marks a request that is made on behalf of somebody.
pub fn mark(metadata: &mut MetadataMap) {
    metadata.insert(MARK, tonic::metadata::MetadataValue::from_static("1"));
}

impl Forwarder {
    /// A connection to the scheduler at `url`, which is made when it is first used.
    pub fn channel(&self, url: &str) -> Result<Channel, String> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(url) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(url.to_string()).map_err(|e| format!("{url}: {e}"))?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .connect_lazy();
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(url.to_string(), channel.clone());
        Ok(channel)
    }

    /// Passes a request of any kind on; the error says what went wrong.
    pub async fn forward(&self, url: &str, request: Request<Body>) -> Result<Response, String> {
        let channel = self.channel(url)?;
        let (mut parts, body) = request.into_parts();
        // What belongs to the client's connection does not belong to ours.
        let hop = [CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE, HeaderName::from_static("keep-alive")];
        for name in hop {
            parts.headers.remove(name);
        }
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
        parts.headers.insert(MARK, HeaderValue::from_static("1"));
        parts.version = Version::HTTP_2;
        let request = Request::from_parts(parts, tonic::body::Body::new(body));
        match tokio::time::timeout(ANSWER_WITHIN, channel.oneshot(request)).await {
            Ok(Ok(mut answer)) => {
                *answer.version_mut() = Version::HTTP_11;
                Ok(answer.map(Body::new).into_response())
            }
            Ok(Err(error)) => Err(format!("the leader at {url} cannot be reached: {error}")),
            Err(_) => Err(format!("the leader at {url} does not answer")),
        }
    }
}
