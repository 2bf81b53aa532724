//! When a fresh cluster is ready: every store is registered, and every region has a leader and all its replicas.
//!
//! What is missing is said once when it takes long, and is the error when it takes too long.

use std::time::{Duration, Instant};

use kvclient::{SchedulerClient, SchedulerOptions};

use crate::cluster::problems;
use crate::connect;
use crate::error::{Error, Result};
use crate::region::{self, RegionView};
use crate::store;

const POLL: Duration = Duration::from_millis(20);
/// After this the user hears what is missing.
const LONG: Duration = Duration::from_secs(3);
/// After this the start has failed.
const TOO_LONG: Duration = Duration::from_secs(60);

/// Waits until `stores` stores hold `replicas` replicas of every region.
pub async fn wait(endpoint: &str, stores: usize, replicas: usize) -> Result<()> {
    let options = SchedulerOptions { timeout: Duration::from_secs(2), ..SchedulerOptions::default() };
    let client = SchedulerClient::connect_with(&[endpoint.to_owned()], options).await?;
    let started = Instant::now();
    let mut told = false;
    loop {
        let missing = match missing(&client, stores, replicas).await {
            Ok(missing) if missing.is_empty() => return Ok(()),
            Ok(missing) => missing.join("; "),
            Err(error) => error.to_string(),
        };
        if started.elapsed() > TOO_LONG {
            return Err(Error::Failed(format!(
                "the cluster is not ready: {missing}; KVCTL_LOG=info tells more"
            )));
        }
        if started.elapsed() > LONG && !told {
            eprintln!("still waiting: {missing}");
            told = true;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn missing(client: &SchedulerClient, stores: usize, replicas: usize) -> Result<Vec<String>> {
    let api = connect::api(client).await?;
    let found = store::all(client).await?;
    let regions = region::all(client, 0).await?;
    let regions: Vec<RegionView> = regions.iter().map(|info| RegionView::new(info, api)).collect();
    let mut missing = problems(&found, &regions, replicas as u32);
    if found.len() < stores {
        missing.insert(0, format!("{} of {stores} stores are registered", found.len()));
    }
    Ok(missing)
}
