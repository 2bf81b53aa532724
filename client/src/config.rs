//! What a client can be told: deadlines, the API to speak, and bounds. All have defaults that fit a cluster in one
//! data centre.

use std::time::Duration;

/// Configuration of a client; fill in what differs from the default.
///
/// ```
/// use std::time::Duration;
/// let config = kvclient::Config { timeout: Duration::from_secs(2), ..kvclient::Config::default() };
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    /// Deadline of every call, retries included. Default 5 s.
    pub timeout: Duration,
    /// Longest wait for one answer before another replica is asked. Default 2 s. Range deletions and checksums wait
    /// up to [`timeout`](Self::timeout).
    pub attempt_timeout: Duration,
    /// Longest wait for a TCP connection. Default 1 s.
    pub connect_timeout: Duration,
    /// Which API to speak. Default: what the cluster speaks.
    pub api: Api,
    /// The keyspace to work in, with API V2. Default `DEFAULT`.
    pub keyspace: String,
    /// Requests to one store that may be on their way; more wait. Default 8192.
    pub max_in_flight: usize,
    /// Requests that one batch or range operation may have on their way. Default 16.
    pub concurrency: usize,
    /// Pairs that a scan fetches at a time. Default 1024, at most 10240.
    pub scan_page: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            api: Api::Auto,
            keyspace: "DEFAULT".to_string(),
            max_in_flight: 8192,
            concurrency: 16,
            scan_page: 1024,
        }
    }
}

/// The API that requests are made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Api {
    /// What the cluster was bootstrapped with.
    #[default]
    Auto,
    /// Keys as they are; needs a cluster bootstrapped with `api = "v1"`.
    V1,
    /// Keys inside a keyspace.
    V2,
}
