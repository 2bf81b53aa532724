//! This scheduler's lease in etcd, kept alive. While it holds, the scheduler may be the leader.
//!
//! Owns the lease and the task that renews it. The lease counts as lost when it could not be renewed in time by the
//! local clock, which is before etcd takes it back, or when etcd says that it is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::leadership::{Deadline, boot_ms};
use super::lease::Lease;
use crate::kv::etcd_pool::{EtcdError, EtcdPool};

/// How long etcd waits for a renewal, in seconds. With its usual election time it grants nothing shorter.
const TTL_S: i64 = 2;
/// How often the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_millis(500);
const GRANT_WITHIN: Duration = Duration::from_secs(3);
const REVOKE_WITHIN: Duration = Duration::from_secs(1);

/// See the module.
pub struct Session {
    id: i64,
    pool: Arc<EtcdPool>,
    deadline: Arc<Deadline>,
    lost: CancellationToken,
    renewing: JoinHandle<()>,
}

impl Session {
    /// Asks for a lease, and renews it from then on.
    pub async fn open(pool: Arc<EtcdPool>) -> Result<Session, EtcdError> {
        let (id, ttl_ms, sent_at_ms) = pool
            .call(GRANT_WITHIN, |mut client| async move {
                let sent_at_ms = boot_ms();
                let granted = client.lease_grant(TTL_S, None).await?;
                Ok((granted.id(), u64::try_from(granted.ttl()).unwrap_or(0) * 1000, sent_at_ms))
            })
            .await?;
        let lease = Lease::granted(sent_at_ms, ttl_ms);
        let (deadline, lost) = (Arc::new(Deadline::default()), CancellationToken::new());
        deadline.extend_to(lease.deadline_ms());
        let renewing = renew(pool.clone(), id, lease, deadline.clone(), lost.clone());
        Ok(Session { id, pool, deadline, lost, renewing: tokio::spawn(renewing) })
    }

    /// The lease's number in etcd.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// When the lease ends.
    pub fn deadline(&self) -> Arc<Deadline> {
        self.deadline.clone()
    }

    /// Waits until the lease is lost.
    pub async fn wait_lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether the lease is lost.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Gives the lease back, so that others need not wait for its end. They have to when etcd does not hear of it.
    pub async fn close(self) {
        self.renewing.abort();
        let id = self.id;
        let revoked =
            self.pool.call(REVOKE_WITHIN, |mut client| async move { client.lease_revoke(id).await });
        if let Err(error) = revoked.await {
            tracing::debug!(%error, "the lease was not given back");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn renew(
    pool: Arc<EtcdPool>,
    id: i64,
    mut lease: Lease,
    deadline: Arc<Deadline>,
    lost: CancellationToken,
) {
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let left = Duration::from_millis(lease.left_ms(boot_ms()));
        if left.is_zero() {
            tracing::warn!("the lease in etcd was not renewed in time: this process did not run for a while");
            lost.cancel();
            return;
        }
        let renewal = |mut client: etcd_client::Client| async move {
            let sent_at_ms = boot_ms();
            client.lease_keep_alive(id).await?;
            Ok(sent_at_ms)
        };
        match pool.call(left, renewal).await {
            Ok(sent_at_ms) => {
                lease = lease.renewed(sent_at_ms);
                deadline.extend_to(lease.deadline_ms());
            }
            Err(error) => {
                tracing::warn!(%error, "the lease in etcd is lost");
                lost.cancel();
                return;
            }
        }
    }
}
