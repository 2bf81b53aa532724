//! Where transactions get their timestamps and their time from in a running server.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::clock::{self, Now};
use crate::raftstore::scheduler_client::SchedulerClient;
use crate::txn::edge::{Oracle, Timer};

/// Asks the scheduler.
pub struct SchedulerOracle(pub Arc<dyn SchedulerClient>);

impl Oracle for SchedulerOracle {
    fn timestamp(&self) -> BoxFuture<'static, Result<u64, String>> {
        let scheduler = self.0.clone();
        async move { scheduler.timestamp().await.map_err(|error| error.to_string()) }.boxed()
    }
}

/// The server's clock and runtime.
pub struct ServerTimer;

impl Timer for ServerTimer {
    fn now(&self) -> Now {
        clock::now()
    }

    fn sleep(&self, ms: u64) -> BoxFuture<'static, ()> {
        tokio::time::sleep(Duration::from_millis(ms)).boxed()
    }
}
