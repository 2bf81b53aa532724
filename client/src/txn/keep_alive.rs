//! Heart beats: prolong the life of a transaction's primary lock while its client is at work.
//!
//! Owns the task that sends them; it ends with the handle, or when the store says that the lock is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvproto::kvrpcpb::TxnHeartBeatRequest;
use kvproto::ts::Timestamp;

use super::client::Shared;
use crate::request::plan::At;
use crate::request::retry::Access;

/// What a heart beat needs to know.
#[derive(Clone)]
pub(super) struct Pulse {
    pub(super) shared: Arc<Shared>,
    pub(super) start_ts: Timestamp,
    pub(super) primary: Bytes,
    /// When `start_ts` was handed out, by this process's clock.
    pub(super) began: Instant,
    /// How long the lock lives after a heart beat.
    pub(super) ttl: Duration,
}

/// A running task; dropping it ends the heart beats.
pub(super) struct KeepAlive(tokio::task::AbortHandle);

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl KeepAlive {
    /// Starts heart beats in a task of their own.
    pub(super) fn start(pulse: Pulse) -> KeepAlive {
        KeepAlive(tokio::spawn(pulse.beat()).abort_handle())
    }
}

impl Pulse {
    /// Sends a heart beat each half of the lock's life; returns when the lock is gone.
    pub(super) async fn beat(self) {
        loop {
            tokio::time::sleep(self.ttl / 2).await;
            let life = self.began.elapsed() + self.ttl;
            let build = |_: &_| TxnHeartBeatRequest {
                primary_lock: self.primary.clone(),
                start_version: self.start_ts.get(),
                advise_lock_ttl: u64::try_from(life.as_millis()).unwrap_or(u64::MAX),
                ..TxnHeartBeatRequest::default()
            };
            let executor = &self.shared.executor;
            match executor.run(executor.call(Access::Write), At::Key(&self.primary), build).await {
                Ok((_, reply)) if reply.error.is_some() => {
                    tracing::debug!(txn = %self.start_ts, "no lock is left to keep alive");
                    return;
                }
                Ok(_) => {}
                // The next one may get through before the lock's time is over.
                Err(error) => tracing::debug!(txn = %self.start_ts, %error, "heart beat failed"),
            }
        }
    }
}
