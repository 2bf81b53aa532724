//! Heart beats: prolong the life of a transaction's primary lock while its client is at work.
//!
//! Owns the task that sends them; it ends with the handle, or when the store says that the lock is gone. It may begin
//! before there is a lock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvproto::kvrpcpb::TxnHeartBeatRequest;
use kvproto::ts::Timestamp;

use super::client::Shared;
use crate::request::plan::At;
use crate::request::retry::Access;

/// Heart beats in the life of a lock: one may be lost or late, and a lock may be taken some time after it was asked for.
pub(super) const BEATS_PER_LIFE: u32 = 3;

/// Whole milliseconds.
pub(super) fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

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
    /// Starts heart beats in a task of their own, the first one after a part of the lock's life.
    pub(super) fn start(pulse: Pulse) -> KeepAlive {
        let task = async move {
            tokio::time::sleep(pulse.ttl / BEATS_PER_LIFE).await;
            pulse.beat().await;
        };
        KeepAlive(tokio::spawn(task).abort_handle())
    }
}

impl Pulse {
    /// Sends heart beats; returns when a lock that was there is gone.
    pub(super) async fn beat(self) {
        let mut found = false;
        loop {
            let life = self.began.elapsed() + self.ttl;
            let build = |_: &_| TxnHeartBeatRequest {
                primary_lock: self.primary.clone(),
                start_version: self.start_ts.get(),
                advise_lock_ttl: whole_ms(life),
                ..TxnHeartBeatRequest::default()
            };
            let executor = &self.shared.executor;
            match executor.run(executor.call(Access::Write), At::Key(&self.primary), build).await {
                Ok((_, reply)) if reply.error.is_some() && !found => {
                    tracing::debug!(txn = %self.start_ts, "no lock to keep alive yet");
                }
                Ok((_, reply)) if reply.error.is_some() => {
                    tracing::debug!(txn = %self.start_ts, "no lock is left to keep alive");
                    return;
                }
                Ok(_) => found = true,
                // The next one may get through before the lock's time is over.
                Err(error) => tracing::debug!(txn = %self.start_ts, %error, "heart beat failed"),
            }
            tokio::time::sleep(self.ttl / BEATS_PER_LIFE).await;
        }
    }
}
