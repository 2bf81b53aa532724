//! Start of a standalone server: opens or creates its directory, then serves the store and its scheduler.
//!
//! The data of a standalone server lies in its own sub-directory, so that a directory of a clustered store is
//! told apart before anything is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvproto::keyspacepb::keyspace_server::KeyspaceServer;
use kvproto::pdpb::pd_server::PdServer;
use tokio::sync::watch;
use tonic::service::Routes;

use super::standalone_pd::StandalonePd;
use super::standalone_tso::Tso;
use super::{Listeners, Role, Server, StartError, bind, grpc_threads, health, local};
use crate::config::{Api, Config};
use crate::engine::rocks::RocksEngine;
use crate::engine::{Cf, Engine, WriteBatch, WriteOptions};
use crate::metrics::Metrics;
use crate::raftstore::meta::keys::STORE_IDENT;
use crate::raftstore::meta::values::{self, StoreIdent};
use crate::storage::standalone_storage::{STORE_ID, StandaloneStorage, StandaloneStore};

/// Sub-directory with the data.
pub(super) const DIRECTORY: &str = "standalone";

impl Server {
    /// Starts a server that is a whole cluster by itself; its scheduler service listens on `pd_addr`.
    pub async fn start_standalone(mut config: Config, pd_addr: &str) -> Result<Server, StartError> {
        config.validate()?;
        let listeners = Listeners::bind(&mut config).await?;
        let pd_listener = bind(pd_addr).await?;
        let pd_addr = local(&pd_listener)?;
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || open(&opening)).await;
        let (engine, ident) = opened.map_err(|e| StartError::Store(e.to_string()))??;
        let api = config.storage.api.version();
        let storage = StandaloneStorage::start(engine.clone(), api)
            .map_err(|e| StartError::Store(format!("cannot start the committer: {e}")))?;
        let store = Arc::new(StandaloneStore::new(storage, ident.cluster_id));
        let tso = Arc::new(Tso::load(engine).map_err(|e| StartError::Store(e.to_string()))?);
        let (addr, status_addr) = (&config.server.advertise_addr, &config.server.status_addr);
        let pd = StandalonePd::new(ident.cluster_id, api, pd_addr, addr, status_addr, tso.clone());
        let routes = Routes::new(PdServer::new(pd.clone()))
            .add_service(KeyspaceServer::new(pd))
            .add_service(health::service(store.clone()));
        let role = Role { name: "standalone", oracle: Arc::new(tso), safe_points: Arc::default() };
        let mut server = Server::serve(config, listeners, store, role, Metrics::new()?, never())?;
        server.tasks.spawn(grpc_threads::serve(pd_listener, routes, 1, server.stop.clone()));
        server.pd_addr = Some(pd_addr);
        Ok(server)
    }
}

/// Nothing here is beyond answering with an error.
fn never() -> watch::Receiver<Option<String>> {
    watch::channel(None).1
}

/// Opens the directory, or makes it a new cluster's.
fn open(config: &Config) -> Result<(Arc<dyn Engine>, StoreIdent), StartError> {
    let failed = |e: crate::engine::EngineError| StartError::Store(e.to_string());
    let path = directory(&config.storage.data_dir)?;
    let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&path, &config.engine()).map_err(failed)?);
    let wanted = match config.storage.api {
        Api::V1 => 1,
        Api::V2 => 2,
    };
    if let Some(ident) =
        values::load::<StoreIdent>(&*engine, STORE_IDENT, "store identity").map_err(failed)?
    {
        if ident.api != wanted {
            return Err(StartError::Store(format!(
                "{} was created with [storage] api = \"v{}\": set the same, or use another directory",
                config.storage.data_dir.display(),
                ident.api
            )));
        }
        return Ok((engine, ident));
    }
    let ident = StoreIdent { cluster_id: new_cluster_id(), store_id: STORE_ID, api: wanted };
    let mut batch = WriteBatch::new();
    batch.put(Cf::Meta, STORE_IDENT, values::encode(&ident));
    engine.write(&batch, WriteOptions { sync: true, no_slowdown: false }).map_err(failed)?;
    Ok((engine, ident))
}

/// The sub-directory, created if the directory is empty. One that holds something else is refused.
fn directory(data_dir: &Path) -> Result<PathBuf, StartError> {
    let io = |e: std::io::Error| StartError::Store(format!("cannot use {}: {e}", data_dir.display()));
    std::fs::create_dir_all(data_dir).map_err(io)?;
    let path = data_dir.join(DIRECTORY);
    if !path.exists() {
        let mut others = std::fs::read_dir(data_dir).map_err(io)?.filter_map(|entry| entry.ok());
        let other = others.find(|entry| entry.file_name() != "lost+found");
        if let Some(other) = other {
            return Err(StartError::Store(format!(
                "{} holds {:?} and no data of a standalone server: it may belong to a store of a cluster (start \
                 `kvserver` without `standalone`) or to another program; choose an empty directory",
                data_dir.display(),
                other.file_name()
            )));
        }
        std::fs::create_dir(&path).map_err(io)?;
    }
    Ok(path)
}

/// Not zero, and different from other clusters with good odds: the time and the process that made it.
fn new_cluster_id() -> u64 {
    (crate::clock::unix_millis() << 20 | u64::from(std::process::id()) & 0xf_ffff) & (u64::MAX >> 1) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("raft")).unwrap();
        let error = directory(dir.path()).unwrap_err().to_string();
        assert!(error.contains("raft") && error.contains("empty directory"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert!(directory(empty.path()).is_ok());
        assert!(directory(empty.path()).is_ok(), "it is ours the second time");
    }

    #[test]
    fn a_cluster_keeps_its_identity_and_its_api() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.storage.data_dir = dir.path().into();
        config.resolve(1 << 30, 2);
        let (_, ident) = open(&config).unwrap();
        let (_, again) = open(&config).unwrap();
        assert_eq!(ident, again);
        config.storage.api = Api::V1;
        assert!(open(&config).err().unwrap().to_string().contains("api = \"v2\""));
    }
}
