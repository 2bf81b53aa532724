//! Connections of the commands to a cluster, made from the global flags.

use std::time::Duration;

use kvclient::{Config, RawClient, SchedulerClient, SchedulerOptions, TransactionClient};
use kvproto::kvrpcpb::ApiVersion;

use crate::cli::Global;
use crate::error::Result;

/// A client of raw pairs in the default keyspace, or of a V1 cluster's plain keys.
pub async fn raw(global: &Global) -> Result<RawClient> {
    let config = Config { timeout: Duration::from_secs(global.timeout), ..Config::default() };
    Ok(RawClient::with_config(global.scheduler.clone(), config).await?)
}

/// A client of transactions in the default keyspace.
pub async fn transactions(global: &Global) -> Result<TransactionClient> {
    let config = Config { timeout: Duration::from_secs(global.timeout), ..Config::default() };
    Ok(TransactionClient::with_config(global.scheduler.clone(), config).await?)
}

/// A client of the scheduler.
pub async fn scheduler(global: &Global) -> Result<SchedulerClient> {
    let options =
        SchedulerOptions { timeout: Duration::from_secs(global.timeout), ..SchedulerOptions::default() };
    Ok(SchedulerClient::connect_with(&global.scheduler, options).await?)
}

/// The API the cluster was bootstrapped with; a scheduler that does not tell belongs to a V2 cluster.
pub async fn api(client: &SchedulerClient) -> Result<ApiVersion> {
    let config = client.get_cluster_config().await?;
    Ok(config.traits.map_or(ApiVersion::V2, |traits| traits.api_version()))
}

/// Seconds of the wall clock since 1970, to say how long ago something was.
pub fn unix_seconds() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the only place of this program that reads the wall clock")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
