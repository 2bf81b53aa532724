//! Reads straight from one store, whoever leads: what a client with an old idea of the leader does. The SDK would
//! follow the leader; this asks the store that it was told to ask, and so shows whether that store ever answers
//! with what it should not.
//!
//! A watch is a pair: a writer that raises a number through the SDK, and readers that ask the one store. A reader
//! notes what was acknowledged before it asks; an answer below that is stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvclient::RawClient;
use kvproto::key::{BoundaryForm, KeyCodec, KeyspaceId, Mode};
use kvproto::kvrpcpb::{ApiVersion, Context, RawGetRequest};
use kvproto::tikvpb::tikv_client::TikvClient;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use super::Store;

const KEY: &str = "watched";
/// Questions that are under way at once, each on a connection of its own.
const READERS: usize = 4;
/// A frozen store answers late; one that never answers is not waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What the readers of a store have seen.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: AtomicU64,
    answers: AtomicU64,
    refusals: AtomicU64,
    stop: AtomicBool,
    stale: parking_lot::Mutex<Option<String>>,
}

/// A writer and the readers of one store; they end when this is dropped.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Seen>,
    tasks: JoinSet<()>,
}

impl Watch {
    /// Begins to write through `client` and to read from `store`, which holds a replica of the region.
    ///
    /// # Errors
    /// When the store or the scheduler cannot be reached.
    pub async fn start(client: &RawClient, store: &Store) -> Result<Watch, String> {
        let codec = KeyCodec::V2 { mode: Mode::Raw, keyspace: KeyspaceId::DEFAULT };
        let key = codec.wire_key(Bytes::from_static(KEY.as_bytes()));
        let boundary = BoundaryForm::of_raw(ApiVersion::V2).boundary(key.clone());
        let found = client.scheduler().get_region(boundary).await.map_err(|e| e.to_string())?;
        let region = found.ok_or("the scheduler knows no such region")?.region;
        let stores = client.scheduler().get_all_stores(true).await.map_err(|e| e.to_string())?;
        let address = store.advertised.to_string();
        let id = stores.iter().find(|s| s.address == address).ok_or("the scheduler knows no such store")?.id;
        let peer = *region.peers.iter().find(|peer| peer.store_id == id).ok_or("no replica there")?;
        let context = Context {
            region_id: region.id,
            region_epoch: region.region_epoch,
            peer: Some(peer),
            api_version: ApiVersion::V2.into(),
            ..Context::default()
        };
        let request = RawGetRequest { context: Some(context), key, ..RawGetRequest::default() };
        let (seen, mut tasks) = (Arc::new(Seen::default()), JoinSet::new());
        for _ in 0..READERS {
            let endpoint = Endpoint::from_shared(format!("http://{}", store.address));
            let channel = endpoint.map_err(|e| e.to_string())?.connect().await.map_err(|e| e.to_string())?;
            tasks.spawn(read(seen.clone(), TikvClient::new(channel), request.clone()));
        }
        tasks.spawn(write(seen.clone(), client.clone()));
        Ok(Watch { seen, tasks })
    }

    /// The newest number whose write was acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.seen.acknowledged.load(Ordering::Relaxed)
    }

    /// Answers that the store gave, and refusals.
    pub fn answers(&self) -> (u64, u64) {
        (self.seen.answers.load(Ordering::Relaxed), self.seen.refusals.load(Ordering::Relaxed))
    }

    /// Stops, and tells of the first stale answer.
    ///
    /// # Errors
    /// The stale answer.
    pub async fn finish(mut self) -> Result<(), String> {
        self.seen.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|panic| panic.to_string())?;
        }
        self.seen.stale.lock().take().map_or(Ok(()), Err)
    }
}

async fn write(seen: Arc<Seen>, client: RawClient) {
    for n in 1.. {
        if seen.stop.load(Ordering::Relaxed) {
            return;
        }
        // A write that failed may have happened; the next number is above it either way.
        if client.put(KEY, n.to_string()).await.is_ok() {
            seen.acknowledged.store(n, Ordering::Relaxed);
        }
    }
}

async fn read(seen: Arc<Seen>, mut store: TikvClient<Channel>, request: RawGetRequest) {
    while !seen.stop.load(Ordering::Relaxed) {
        let floor = seen.acknowledged.load(Ordering::Relaxed);
        let answer = tokio::time::timeout(ANSWER_WITHIN, store.raw_get(request.clone())).await;
        let answer = answer.map(|reply| reply.map(tonic::Response::into_inner));
        match answer {
            Ok(Ok(reply)) if reply.region_error.is_none() && reply.error.is_empty() => {
                seen.answers.fetch_add(1, Ordering::Relaxed);
                let number = std::str::from_utf8(&reply.value).ok().and_then(|text| text.parse().ok());
                let number: u64 = number.unwrap_or(0);
                if number < floor {
                    let text = format!("{floor} was acknowledged before the store answered {number}");
                    seen.stale.lock().get_or_insert(text);
                }
            }
            _ => {
                seen.refusals.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    }
}
