//! Input that no well-behaved program sends, against real servers: each piece gets a clear error, nothing is lost, and
//! the server goes on serving everybody else.

#[path = "bad_input/ports.rs"]
mod ports;
#[path = "bad_input/requests.rs"]
mod requests;
#[path = "bad_input/scheduler.rs"]
mod scheduler;
#[path = "bad_input/starts.rs"]
mod starts;
#[path = "bad_input/stores.rs"]
mod stores;
#[path = "bad_input/transactions.rs"]
mod transactions;

use bytes::Bytes;
use integration::cluster::regions::{Led, Regions, raw_key};
use integration::cluster::{ClusterOptions, ProcessCluster};
use kvproto::kvrpcpb as pb;
use kvproto::tikvpb::tikv_client::TikvClient;
use tonic::transport::Channel;

/// A cluster of one store, with a pair in it that must stay.
struct Victim {
    cluster: ProcessCluster,
    regions: Regions,
    store: TikvClient<Channel>,
}

impl Victim {
    async fn start() -> Victim {
        let options = ClusterOptions { stores: 1, ..ClusterOptions::default() };
        let cluster = ProcessCluster::start(options).expect("a cluster of one store");
        let regions = Regions::connect(&cluster.endpoint()).await.expect("a connection");
        let at = regions.of(&raw_key("k")).await.expect("a region");
        let store = regions.store(at.leader.store_id).await.expect("a connection");
        let mut victim = Victim { cluster, regions, store };
        victim.put("stays", "v").await;
        victim
    }

    async fn at(&self) -> Led {
        self.regions.of(&raw_key("k")).await.expect("a region")
    }

    async fn put(&mut self, key: &str, value: &str) {
        let context = Some(self.at().await.context());
        let (key, value) = (raw_key(key), Bytes::from(value.to_string()));
        let request = pb::RawPutRequest { context, key, value, ..Default::default() };
        let answer = self.store.raw_put(request).await.expect("an answer").into_inner();
        assert_eq!((answer.region_error, answer.error), (None, String::new()));
    }

    async fn get(&mut self, key: &str) -> Option<Bytes> {
        let context = Some(self.at().await.context());
        let request = pb::RawGetRequest { context, key: raw_key(key), ..Default::default() };
        let answer = self.store.raw_get(request).await.expect("an answer").into_inner();
        assert_eq!((answer.region_error, answer.error), (None, String::new()));
        (!answer.not_found).then_some(answer.value)
    }

    /// The servers run, have lost nothing and take new writes.
    async fn assert_well(&mut self) {
        assert!(self.cluster.stores[0].process.died().is_none(), "the store has ended");
        assert!(self.cluster.scheduler.died().is_none(), "the scheduler has ended");
        assert_eq!(self.get("stays").await, Some("v".into()));
        self.put("new", "w").await;
        assert_eq!(self.get("new").await, Some("w".into()));
    }
}
