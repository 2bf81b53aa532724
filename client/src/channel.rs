//! How addresses become gRPC channels: one place for timeouts, keepalive and window sizes.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, Result};

/// A connection without an answer to a ping for this long after [`KEEPALIVE_INTERVAL`] is closed.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// Room for replies on their way, per stream and per connection; the default of 64 KiB stalls a batch.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// `host:port` or `http://host:port` as a URL.
pub(crate) fn url(address: &str) -> Result<String> {
    let address = address.trim().trim_end_matches('/');
    if address.starts_with("https://") {
        return Err(Error::InvalidArgument(format!("{address}: TLS is not supported, use http://")));
    }
    let authority = address.strip_prefix("http://").unwrap_or(address);
    let port = authority.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse::<u16>().ok()?;
        (!host.is_empty() && !host.contains('/')).then_some(port)
    });
    match port {
        Some(_) => Ok(format!("http://{authority}")),
        None => Err(Error::InvalidArgument(format!("{address:?} is not an address; write host:port"))),
    }
}

/// A channel to `address` that connects when it is first used.
pub(crate) fn lazy(address: &str, connect_timeout: Duration) -> Result<Channel> {
    let url = url(address)?;
    let endpoint = Endpoint::from_shared(url)
        .map_err(|e| Error::InvalidArgument(format!("{address:?} is not an address: {e}")))?
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    Ok(endpoint.connect_lazy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_scheme_are_accepted() {
        assert_eq!(url("127.0.0.1:2379").unwrap(), "http://127.0.0.1:2379");
        assert_eq!(url(" http://pd.local:2379/ ").unwrap(), "http://pd.local:2379");
        assert_eq!(url("[::1]:2379").unwrap(), "http://[::1]:2379");
        for bad in ["", "localhost", ":2379", "host:port", "host:70000", "https://a:1", "a/b:1"] {
            assert!(matches!(url(bad), Err(Error::InvalidArgument(_))), "{bad}");
        }
    }
}
