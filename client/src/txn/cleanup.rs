//! Ends old transactions in the whole cluster: what has to happen before versions that they may need are removed.

use bytes::Bytes;
use kvproto::kvrpcpb::ScanLockRequest;
use kvproto::ts::Timestamp;

use super::key_error::Refusal;
use super::lock_resolver::LockResolver;
use super::resolution::Caller;
use crate::bounds::successor;
use crate::error::Result;
use crate::request::plan::At;
use crate::request::retry::Access;

/// Locks asked for at once.
const PAGE: u32 = 1024;

impl LockResolver {
    /// Ends all transactions that began at or before `up_to` and have locks in any region, those that are still at work
    /// included. Returns how many locks there were. Each region is asked anew until its leader answers, for
    /// [`Config::timeout`](crate::Config::timeout) at most. A transaction that cannot be ended does not keep the others
    /// alive: the first such error is returned once all were tried, and leaves the rest to a repetition.
    pub async fn end_all(&self, up_to: Timestamp) -> Result<usize> {
        let (mut start, mut count, mut failed) = (Bytes::new(), 0, None);
        loop {
            let build = |_: &_| ScanLockRequest {
                max_version: up_to.get(),
                start_key: start.clone(),
                limit: PAGE,
                ..ScanLockRequest::default()
            };
            let call = self.executor.call(Access::Read);
            let (region, reply) = self.executor.run(call, At::Key(&start), build).await?;
            if let Some(error) = reply.error {
                return Err(Refusal::new(error, up_to).into_error(up_to));
            }
            count += reply.locks.len();
            let last = reply.locks.last().filter(|_| reply.locks.len() >= PAGE as usize);
            let next = last.map_or_else(|| region.end.clone(), |last| successor(&last.key));
            if let Err(error) = self.resolve(reply.locks, Caller::Force).await {
                tracing::warn!(%error, "an old transaction cannot be ended");
                failed.get_or_insert(error);
            }
            if next.is_empty() {
                return failed.map_or(Ok(count), Err);
            }
            start = next;
        }
    }
}
