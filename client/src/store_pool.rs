//! The stores this client talks to: one connection and one request stream each.
//!
//! Owns the map from store number to connection. An address is looked up at the scheduler when a store is first used and
//! again after its connection failed, so a store that came back elsewhere is found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kvproto::metapb;
use kvproto::tikvpb::tikv_client::TikvClient;
use tokio::sync::Mutex;
use tonic::transport::Channel;

use crate::channel;
use crate::error::{Error, Result};
use crate::lane::Lane;
use crate::scheduler_client::SchedulerClient;

/// Largest frame of replies. One reply stays below 4 MiB, but a frame holds many.
const MAX_FRAME_BYTES: usize = 256 << 20;

/// A store and the connection to it.
pub(crate) struct Store {
    pub(crate) id: u64,
    pub(crate) address: String,
    /// For requests that have no place in the stream.
    pub(crate) unary: TikvClient<Channel>,
    pub(crate) lane: Lane,
}

/// All stores that were used so far.
pub(crate) struct StorePool {
    scheduler: SchedulerClient,
    connect_timeout: Duration,
    max_in_flight: usize,
    stores: ArcSwap<BTreeMap<u64, Arc<Store>>>,
    /// Held while the map changes: one look-up at a time.
    changing: Mutex<()>,
}

impl StorePool {
    pub(crate) fn new(
        scheduler: SchedulerClient,
        connect_timeout: Duration,
        max_in_flight: usize,
    ) -> StorePool {
        let (stores, changing) = (ArcSwap::default(), Mutex::default());
        StorePool { scheduler, connect_timeout, max_in_flight: max_in_flight.max(1), stores, changing }
    }

    /// The store with this number, if it is known.
    pub(crate) fn known(&self, store_id: u64) -> Option<Arc<Store>> {
        self.stores.load().get(&store_id).cloned()
    }

    /// The store with this number; asks the scheduler for its address at most until `deadline`.
    pub(crate) async fn get(&self, store_id: u64, deadline: Instant) -> Result<Arc<Store>> {
        if let Some(store) = self.known(store_id) {
            return Ok(store);
        }
        let Ok(_changing) = tokio::time::timeout_at(deadline.into(), self.changing.lock()).await else {
            let (address, cause) =
                ("unknown".to_string(), "the scheduler does not tell its address".to_string());
            return Err(Error::StoreUnavailable { store_id, address, cause });
        };
        if let Some(store) = self.known(store_id) {
            return Ok(store);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let meta = self.scheduler.with_timeout(left).get_store(store_id).await?;
        if meta.state() == metapb::StoreState::Tombstone {
            return Err(Error::StoreNotFound(store_id));
        }
        let channel = channel::lazy(&meta.address, self.connect_timeout)?;
        let unary = TikvClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES);
        let lane = Lane::new(unary.clone(), self.max_in_flight);
        let store = Arc::new(Store { id: store_id, address: meta.address, unary, lane });
        let mut stores = BTreeMap::clone(&self.stores.load());
        stores.insert(store_id, store.clone());
        self.stores.store(Arc::new(stores));
        Ok(store)
    }

    /// Forgets this connection, unless a newer one has taken its place. Requests on their way on it go on.
    pub(crate) fn forget(&self, store: &Arc<Store>) {
        self.stores.rcu(|stores| match stores.get(&store.id) {
            Some(known) if Arc::ptr_eq(known, store) => {
                let mut rest = BTreeMap::clone(stores);
                rest.remove(&store.id);
                Arc::new(rest)
            }
            _ => stores.clone(),
        });
    }
}
