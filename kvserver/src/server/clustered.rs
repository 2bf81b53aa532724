//! Start of a store that is part of a cluster.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::edge::SchedulerOracle;
use super::{Listeners, Server, StartError, standalone};
use crate::config::Config;
use crate::engine::EngineError;
use crate::metrics::Metrics;
use crate::raftstore::node::NodeError;
use crate::raftstore::raft_worker::Fatal;
use crate::raftstore::recovery::RecoveryError;
use crate::storage::raft_storage::RaftStore;

impl Server {
    /// Starts a store of the cluster that `pd.endpoints` leads to. Waits for the scheduler as long as it does not
    /// answer.
    pub async fn start(mut config: Config) -> Result<Server, StartError> {
        config.validate()?;
        refuse_standalone_data(&config.storage.data_dir)?;
        let listeners = Listeners::bind(&mut config).await?;
        let (failed, failure) = watch::channel(None);
        let fatal: Fatal = Arc::new(move |reason| {
            tracing::error!(reason, "the store cannot go on");
            failed.send_replace(Some(reason));
        });
        let store = RaftStore::start(&config, fatal).await.map_err(|e| StartError::Store(with_advice(&e)))?;
        let metrics = Metrics::new()?;
        store.counters().register(metrics.registry())?;
        let oracle = Arc::new(SchedulerOracle(store.scheduler().clone()));
        Server::serve(config, listeners, store, oracle, metrics, "store", failure)
    }
}

/// What went wrong, and the way out where the words of those who met it have none.
fn with_advice(error: &NodeError) -> String {
    match error {
        NodeError::Engine(EngineError::Corrupt(_))
        | NodeError::Recovery(RecoveryError::Engine(EngineError::Corrupt(_))) => format!(
            "{error}; when the disk is at fault, remove this store from the cluster and start it with an empty data \
             directory"
        ),
        _ => error.to_string(),
    }
}

/// A directory of a standalone server has data that no cluster knows of.
fn refuse_standalone_data(data_dir: &Path) -> Result<(), StartError> {
    if !data_dir.join(standalone::DIRECTORY).exists() {
        return Ok(());
    }
    Err(StartError::Store(format!(
        "{} belongs to a standalone server: start it with `kvserver standalone`, or choose another directory",
        data_dir.display()
    )))
}
