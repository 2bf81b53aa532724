//! Where other stores listen: asked of the scheduler, remembered, and asked again after a connection broke.
//!
//! Invariant: the last known address is better than none, so it is used while the scheduler does not answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvproto::metapb;
use parking_lot::Mutex;

use crate::raftstore::scheduler_client::{Error, SchedulerClient};

/// How long the scheduler may take while an old address is at hand. A store that died is to be noticed soon.
const PATIENCE: Duration = Duration::from_millis(200);

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("store {0} has left the cluster")]
    Gone(u64),
    #[error("the address of store {store_id} is not known: {cause}")]
    Unknown { store_id: u64, cause: Error },
}

#[derive(Clone, Debug)]
struct Known {
    address: String,
    fresh: bool,
}

/// See the file's head.
pub struct Resolver {
    scheduler: Arc<dyn SchedulerClient>,
    known: Mutex<BTreeMap<u64, Known>>,
}

impl Resolver {
    /// A resolver that knows nothing yet.
    pub fn new(scheduler: Arc<dyn SchedulerClient>) -> Resolver {
        Resolver { scheduler, known: Mutex::default() }
    }

    /// The store's `host:port` for other stores.
    pub async fn resolve(&self, store_id: u64) -> Result<String, ResolveError> {
        let known = self.known.lock().get(&store_id).cloned();
        let asked = match known {
            Some(known) if known.fresh => return Ok(known.address),
            Some(known) => {
                match tokio::time::timeout(PATIENCE, self.scheduler.store(store_id)).await {
                    Ok(Ok(store)) => Ok(store),
                    Ok(Err(Error::StoreNotFound(_))) => Err(ResolveError::Gone(store_id)),
                    // It is away as well; perhaps the store is where it was.
                    Ok(Err(_)) | Err(_) => return Ok(known.address),
                }
            }
            None => match self.scheduler.store(store_id).await {
                Err(Error::StoreNotFound(_)) => Err(ResolveError::Gone(store_id)),
                other => other.map_err(|cause| ResolveError::Unknown { store_id, cause }),
            },
        };
        let store = asked?;
        if store.state() == metapb::StoreState::Tombstone {
            self.known.lock().remove(&store_id);
            return Err(ResolveError::Gone(store_id));
        }
        let address = if store.peer_address.is_empty() { store.address } else { store.peer_address };
        self.known.lock().insert(store_id, Known { address: address.clone(), fresh: true });
        Ok(address)
    }

    /// The store did not answer at its address: ask for it next time.
    pub fn doubt(&self, store_id: u64) {
        if let Some(known) = self.known.lock().get_mut(&store_id) {
            known.fresh = false;
        }
    }
}
