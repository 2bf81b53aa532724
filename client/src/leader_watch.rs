//! Notices that another scheduler leads, for streams that would otherwise wait on the old one for ever.
//!
//! Owns the task that asks the members from time to time while somebody listens to a long stream: a leader that hangs
//! breaks no connection, and nobody calls it who would find out.

use std::sync::Weak;
use std::time::Duration;

use tokio::sync::watch;

use crate::scheduler_conn::Inner;

/// How often the members are asked.
const EVERY: Duration = Duration::from_secs(1);

/// Tells when another leader than the one of `seen` is found. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LeaderWatch {
    generations: watch::Receiver<u64>,
    seen: u64,
}

impl LeaderWatch {
    pub(crate) fn new(generations: watch::Receiver<u64>, seen: u64) -> LeaderWatch {
        LeaderWatch { generations, seen }
    }

    /// Waits until another leader is found. Safe to use in `select!`.
    pub(crate) async fn changed(&mut self) {
        let seen = self.seen;
        if self.generations.wait_for(|generation| *generation != seen).await.is_err() {
            // The connection is gone, and with it all who could find another leader.
            std::future::pending::<()>().await;
        }
    }
}

/// Asks the members for the leader until the connection is gone.
pub(crate) async fn ask_from_time_to_time(client: Weak<Inner>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let Some(inner) = client.upgrade() else { return };
        if let Err(error) = inner.look_for_leader().await {
            tracing::debug!(%error, "no leading scheduler is found");
        }
    }
}
