//! Start of a store that is part of a cluster.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use kvproto::kvrpcpb::ApiVersion;

use super::edge::SchedulerOracle;
use super::gc::Gc;
use super::{Listeners, Role, Server, StartError, standalone};
use crate::config::Config;
use crate::engine::EngineError;
use crate::metrics::Metrics;
use crate::raftstore::node::{Garbage, NodeError};
use crate::raftstore::raft_worker::Fatal;
use crate::raftstore::recovery::RecoveryError;
use crate::storage::raft_storage::RaftStore;
use crate::storage::store::Store as _;
use crate::txn::edge::Oracle;
use crate::txn::gc::compaction_filter::Filters;

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
        let filters = Filters::default();
        let safe_points = filters.safe_points.clone();
        let garbage = Garbage { filters: Some(Arc::new(filters.clone())), safe_points };
        let store = RaftStore::start(&config, garbage, fatal).await;
        let store = store.map_err(|e| StartError::Store(with_advice(&e)))?;
        let metrics = Metrics::new()?;
        store.counters().register(metrics.registry())?;
        let oracle: Arc<dyn Oracle> = Arc::new(SchedulerOracle(store.scheduler().clone()));
        let role = Role { name: "store", oracle: oracle.clone(), safe_points: filters.safe_points.clone() };
        // Only a v2 cluster has transactions.
        let gc = match store.storage().api() {
            ApiVersion::V2 => {
                let (endpoints, config) = (&config.pd.endpoints, config.gc.clone());
                Some(Gc::learn(endpoints, filters, config, store.clone(), oracle).await?)
            }
            _ => None,
        };
        let mut server = Server::serve(config, listeners, store, role, metrics.clone(), failure)?;
        if let Some(gc) = gc {
            server.gc = Some(gc.start(metrics.registry(), &mut server.tasks, &server.stop)?);
        }
        Ok(server)
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
