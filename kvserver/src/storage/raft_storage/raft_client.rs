//! gRPC connections from store to store.
//!
//! Owns the settings of such a connection, and says on every stream which cluster it comes from. A broken one is noticed by pings even when nobody writes: whole
//! regions wait for the news that a store is gone.

use std::time::Duration;

use kvproto::tikvpb::tikv_client::TikvClient;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::storage::store::CLUSTER_ID_KEY;

/// Longest wait for a connection; a store that does not take one in this time counts as lost.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Room for messages on their way, per stream and per connection.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Connects to the store at `address` (`host:port`).
///
/// # Errors
/// The address is none, or nobody answers there.
pub async fn connect(address: &str) -> Result<TikvClient<Channel>, tonic::transport::Error> {
    Ok(TikvClient::new(channel(address).await?))
}

/// The same for other services of the store.
///
/// # Errors
/// The address is none, or nobody answers there.
pub async fn channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    endpoint.connect().await
}

/// A request that says which cluster it comes from.
pub fn of_cluster<S>(cluster_id: u64, stream: S) -> Request<S> {
    let mut request = Request::new(stream);
    request.metadata_mut().insert(CLUSTER_ID_KEY, cluster_id.into());
    request
}

/// An error with its causes, which say what the socket met.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
