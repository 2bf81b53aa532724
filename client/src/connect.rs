//! From addresses to an executor: finds the scheduler, and learns which API the cluster speaks and which keyspace to
//! work in.

use std::time::Instant;

use kvproto::key::{BoundaryForm, KeyCodec, KeyspaceId, Mode};
use kvproto::keyspacepb::KeyspaceState;
use kvproto::kvrpcpb::ApiVersion;

use crate::backoff::{Backoff, Jitter};
use crate::config::{Api, Config};
use crate::error::{Error, Result};
use crate::request::plan::Executor;
use crate::scheduler_client::{SchedulerClient, SchedulerOptions};

/// Between attempts to learn about a cluster that is just starting.
const STARTING: Backoff = Backoff::from_millis(20, 200);

/// Connects to the cluster whose schedulers listen at `endpoints`, for keys of this mode.
pub(crate) async fn connect<S: Into<String>>(
    endpoints: impl IntoIterator<Item = S>,
    config: Config,
    mode: Mode,
) -> Result<(Executor, KeyCodec)> {
    let endpoints: Vec<String> = endpoints.into_iter().map(Into::into).collect();
    let options = SchedulerOptions {
        timeout: config.timeout,
        connect_timeout: config.connect_timeout,
        ..SchedulerOptions::default()
    };
    let started = Instant::now();
    let scheduler = SchedulerClient::connect_with(&endpoints, options).await?;
    let mut jitter = Jitter::from_process();
    let mut attempt = 0;
    // A cluster that is just starting gets the time of one call.
    let (codec, form) = loop {
        match learn(&scheduler, &config, mode).await {
            Ok(learned) => break learned,
            Err(error) => {
                let pause = STARTING.delay(attempt, jitter.draw());
                if !error.is_retryable() || started.elapsed() + pause >= config.timeout {
                    return Err(error);
                }
                tokio::time::sleep(pause).await;
                attempt += 1;
            }
        }
    };
    Ok((Executor::new(scheduler, form, codec.api_version(), config), codec))
}

/// Finds out which API the cluster speaks and which keyspace to use.
async fn learn(scheduler: &SchedulerClient, config: &Config, mode: Mode) -> Result<(KeyCodec, BoundaryForm)> {
    let scheduler = scheduler.with_timeout(config.timeout);
    let cluster = scheduler.get_cluster_config().await?.traits.map(|traits| traits.api_version());
    let cluster_is_v2 = cluster.map(|api| api == ApiVersion::V2);
    if mode == Mode::Txn && cluster_is_v2 == Some(false) {
        return Err(Error::NoTransactions);
    }
    let v2 = match (config.api, cluster_is_v2) {
        // Transactions without a keyspace have their place beside the keyspaces.
        (Api::V1, Some(true)) if mode == Mode::Txn => false,
        (Api::V1, Some(true)) => return Err(Error::ApiMismatch { wanted: "v1", cluster: "v2" }),
        (Api::V2, Some(false)) => return Err(Error::ApiMismatch { wanted: "v2", cluster: "v1" }),
        (Api::V1, _) => false,
        (Api::V2, _) => true,
        // A scheduler that does not tell serves the oldest API.
        (Api::Auto, cluster_is_v2) => cluster_is_v2.unwrap_or(false),
    };
    if !v2 {
        let form = match mode {
            Mode::Raw => BoundaryForm::of_raw(ApiVersion::V1),
            Mode::Txn => BoundaryForm::Encoded,
        };
        return Ok((KeyCodec::V1, form));
    }
    let keyspace = scheduler.load_keyspace(&config.keyspace).await?;
    if keyspace.state() != KeyspaceState::Enabled {
        let state = keyspace.state().as_str_name().to_string();
        return Err(Error::KeyspaceNotEnabled { name: config.keyspace.clone(), state });
    }
    let Some(kvproto::keyspacepb::keyspace_meta::Keyspace::Id(id)) = keyspace.keyspace else {
        return Err(Error::Protocol(format!("keyspace {:?} has no id", config.keyspace)));
    };
    let codec = KeyCodec::V2 { mode, keyspace: KeyspaceId::new(id)? };
    Ok((codec, BoundaryForm::Encoded))
}
