//! Connections to the members of an etcd, and calls that go on with the next member when one does not answer.
//!
//! Owns one client for each member, which of them is asked first, and whether any of them answers. A member that
//! hangs costs one attempt and is then asked last. Every call has a deadline. A call may be tried several times,
//! and an attempt that was given up may still take effect later: what must not happen twice has to say so itself.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions};
use parking_lot::Mutex;
use tonic::Code;

use super::KvError;

/// Longest wait for one member's answer before the next one is asked.
const ATTEMPT: Duration = Duration::from_millis(600);
/// Pause after all members have failed in a row.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A connection without an answer to a ping for `PING_TIMEOUT` is closed: a watch on it would hang.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a call to etcd failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EtcdError {
    /// No member has answered in time; what was asked for may happen all the same.
    #[error("{0}")]
    Unreachable(String),
    /// A member has answered, and would answer the same again.
    #[error("{message}")]
    Refused { code: Code, message: String },
}

impl From<EtcdError> for KvError {
    fn from(error: EtcdError) -> KvError {
        match error {
            EtcdError::Unreachable(cause) => KvError::Unreachable(cause),
            EtcdError::Refused { message, .. } => KvError::Refused(message),
        }
    }
}

struct Health {
    /// Since when no member answers.
    down_since: Option<Instant>,
    failed_in_a_row: usize,
}

/// See the module.
pub struct EtcdPool {
    members: Vec<(String, Client)>,
    first: AtomicUsize,
    health: Mutex<Health>,
}

impl EtcdPool {
    /// Clients of the members at these URLs. Connects when the first call is made.
    pub async fn new(endpoints: &[String]) -> Result<EtcdPool, EtcdError> {
        let mut members = Vec::new();
        for endpoint in endpoints {
            let options = ConnectOptions::new()
                .with_connect_timeout(CONNECT_TIMEOUT)
                .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
                // A member that is cut off from the others must not answer from what it remembers.
                .with_require_leader(true);
            let client = Client::connect([endpoint], Some(options)).await.map_err(|e| {
                EtcdError::Refused { code: Code::InvalidArgument, message: format!("{endpoint}: {e}") }
            })?;
            members.push((endpoint.clone(), client));
        }
        let health = Mutex::new(Health { down_since: None, failed_in_a_row: 0 });
        Ok(EtcdPool { members, first: AtomicUsize::new(0), health })
    }

    /// Whether the last calls were answered by any member.
    pub fn is_up(&self) -> bool {
        self.health.lock().down_since.is_none()
    }

    /// The member that is asked first, as a number that changes when another one is.
    pub fn current(&self) -> usize {
        self.first.load(Ordering::Relaxed) % self.members.len()
    }

    /// Makes a call; asks one member after the other until one answers or `within` has passed.
    pub async fn call<T, F, Fut>(&self, within: Duration, attempt: F) -> Result<T, EtcdError>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + within;
        let mut cause = String::from("no time to ask");
        for tries in 1.. {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let at = self.current();
            let (url, client) = &self.members[at];
            match tokio::time::timeout(left.min(ATTEMPT), attempt(client.clone())).await {
                Ok(Ok(value)) => {
                    self.answered();
                    return Ok(value);
                }
                Ok(Err(error)) => match refusal(&error) {
                    Some(refused) => {
                        self.answered();
                        return Err(refused);
                    }
                    None => cause = format!("{url}: {error}"),
                },
                Err(_) => cause = format!("{url} does not answer"),
            }
            self.failed(at, &cause);
            if tries % self.members.len() == 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                tokio::time::sleep(ROUND_PAUSE.min(left)).await;
            }
        }
        Err(EtcdError::Unreachable(cause))
    }

    fn answered(&self) {
        let mut health = self.health.lock();
        health.failed_in_a_row = 0;
        if let Some(since) = health.down_since.take() {
            tracing::info!(after_ms = since.elapsed().as_millis() as u64, "etcd answers again");
        }
    }

    fn failed(&self, at: usize, cause: &str) {
        let next = (at + 1) % self.members.len();
        // Another call may have moved on already.
        if self.first.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() && next != at {
            tracing::info!(cause, next = self.members[next].0, "asking the next etcd member");
        }
        let mut health = self.health.lock();
        health.failed_in_a_row += 1;
        if health.failed_in_a_row >= self.members.len() && health.down_since.is_none() {
            health.down_since = Some(Instant::now());
            tracing::warn!(cause, "etcd cannot be reached: no member answers");
        }
    }
}

/// The error when the answer is final; None when another member, or a later attempt, may do better.
fn refusal(error: &etcd_client::Error) -> Option<EtcdError> {
    let refused = |code, message: &str| Some(EtcdError::Refused { code, message: message.into() });
    match error {
        etcd_client::Error::GRpcStatus(status) => match status.code() {
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Aborted => None,
            Code::ResourceExhausted if status.message().contains("too many requests") => None,
            code => refused(code, status.message()),
        },
        etcd_client::Error::LeaseKeepAliveError(message) if message.contains("lease not found") => {
            refused(Code::NotFound, message)
        }
        _ => None,
    }
}
