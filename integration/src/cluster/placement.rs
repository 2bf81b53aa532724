//! Clusters looked at for where replicas and leaders are: counts by store, orders to the scheduler, and the journey of
//! many regions through stores that are emptied, added and stopped.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvclient::RawClient;
use kvproto::pdpb;
use serde_json::{Value, json};

use super::regions::{Regions, raw_key};
use super::{ClusterOptions, ProcessCluster, send, wait_until};

/// How long anything may take to come to rest.
const SOON: Duration = Duration::from_secs(180);

/// What went wrong.
pub type Failure = Box<dyn Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

/// A user key; regions are split at these.
pub fn key(n: usize) -> String {
    format!("k{n:05}")
}

/// The boundary at a key.
pub fn boundary(n: usize) -> Bytes {
    kvproto::key::encode(&raw_key(&key(n))).into()
}

/// See the module.
pub struct Placement {
    pub cluster: ProcessCluster,
    pub regions: Regions,
    pub client: RawClient,
}

/// How long each part of a journey took, in its order.
pub type Times = Vec<(&'static str, Duration)>;

impl Placement {
    /// A cluster of three stores.
    pub async fn start() -> Result<Placement> {
        let cluster = ProcessCluster::start(ClusterOptions::default())?;
        let regions = Regions::connect(&cluster.endpoint()).await?;
        let client = RawClient::connect([cluster.endpoint()]).await?;
        Ok(Placement { cluster, regions, client })
    }

    /// Sends JSON to the scheduler and reads its answer; a refusal is an error.
    pub fn request(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let address = self.cluster.scheduler_address;
        let reply = send(address, method, path, &body.to_string(), Duration::from_secs(10))?;
        match reply.is_ok() {
            true => Ok(reply.json()?),
            false => Err(format!("{method} {path} {body}: {} {}", reply.status, reply.body).into()),
        }
    }

    /// Lets every scheduler do nothing for so long; 0 ends that.
    pub fn pause(&self, seconds: u64) -> Result<()> {
        self.request("POST", "/pd/api/v1/schedulers/all", &json!({ "delay": seconds })).map(drop)
    }

    /// A number of every store, by store id.
    pub fn per_store(&self, field: &str) -> Result<BTreeMap<u64, u64>> {
        let stores = self.cluster.api("/pd/api/v1/stores")?;
        let one = |store: &Value| Some((store["store"]["id"].as_u64()?, store["status"][field].as_u64()?));
        Ok(stores["stores"].as_array().into_iter().flatten().filter_map(one).collect())
    }

    /// The id of the store that was started as number `index`.
    pub fn store_id(&self, index: usize) -> Result<u64> {
        let stores = self.cluster.api("/pd/api/v1/stores")?;
        let address = self.cluster.stores[index].advertised.to_string();
        let mut found = stores["stores"].as_array().into_iter().flatten();
        let found = found.find(|store| store["store"]["address"] == address.as_str());
        found.and_then(|store| store["store"]["id"].as_u64()).ok_or_else(|| "the store is not known".into())
    }

    /// The operators that run.
    pub fn operators(&self) -> Result<Value> {
        Ok(self.cluster.api("/pd/api/v1/operators")?)
    }

    /// Waits until the numbers of all stores differ by `most` at most, and no operator runs.
    pub fn wait_even(&self, field: &str, most: u64) -> Result<Duration> {
        let started = Instant::now();
        let is_even = || {
            let Ok(counts) = self.per_store(field) else { return false };
            let spread = counts.values().max().zip(counts.values().min()).map(|(max, min)| max - min);
            spread.is_some_and(|spread| spread <= most)
        };
        match wait_until(&format!("an even {field}"), SOON, is_even) {
            Ok(()) => Ok(started.elapsed()),
            Err(error) => Err(format!("{error}: {:?}, {}", self.per_store(field)?, self.operators()?).into()),
        }
    }

    /// Splits the raw keys of keyspace DEFAULT at `count` keys.
    pub async fn split(&self, count: usize) -> Result<()> {
        let request = pdpb::SplitRegionsRequest {
            header: self.regions.header(),
            split_keys: (0..count).map(boundary).collect(),
            retry_limit: 0,
        };
        let answer = self.regions.pd().split_regions(request).await?.into_inner();
        match (answer.finished_percentage, answer.regions_id.len()) == (100, count) {
            true => Ok(()),
            false => Err(format!("{count} splits were asked for: {answer:?}").into()),
        }
    }

    /// Writes a value under each of `count` keys.
    pub async fn put_all(&self, count: usize) -> Result<()> {
        Ok(self.client.batch_put((0..count).map(|n| (key(n), n.to_string()))).await?)
    }

    /// Reads them back.
    pub async fn check_all(&self, count: usize) -> Result<()> {
        match self.client.batch_get((0..count).map(key)).await?.len() {
            found if found == count => Ok(()),
            found => Err(format!("{found} of {count} pairs are there").into()),
        }
    }

    /// From `count` further regions led by one store to the same on four stores: evened out, off a store by order and
    /// back, onto a new store, off a store that stops and back. Returns how long each part took.
    pub async fn journey(&mut self, count: usize) -> Result<Times> {
        let mut times = Times::new();
        self.pause(600)?;
        self.put_all(count).await?;
        let started = Instant::now();
        self.split(count).await?;
        times.push(("regions split", started.elapsed()));
        self.pause(0)?;
        times.push(("leaders of three stores even", self.wait_even("leader_count", 1)?));
        self.check_all(count).await?;

        let second = self.store_id(1)?;
        let evict = json!({ "name": "evict-leader-scheduler", "store_id": second });
        self.request("POST", "/pd/api/v1/schedulers", &evict)?;
        times.push(("a store emptied of leaders", self.wait_led(second, 0)?));
        self.request("DELETE", "/pd/api/v1/schedulers/evict-leader-scheduler", &json!({}))?;
        times.push(("its leaders back", self.wait_even("leader_count", 1)?));

        let started = Instant::now();
        self.cluster.add_store()?;
        times.push(("a new store ready", started.elapsed()));
        times.push(("replicas of four stores even", self.wait_even("region_count", 4)?));
        times.push(("leaders of four stores even", self.wait_even("leader_count", 1)?));
        self.check_all(count).await?;

        let (third, started) = (self.store_id(2)?, Instant::now());
        self.cluster.stores[2].process.terminate(SOON)?;
        times.push(("a store stopped", started.elapsed()));
        times.push(("its last leader elsewhere", self.wait_led(third, 0)?));
        self.cluster.stores[2].process.start_again()?;
        self.cluster.stores[2].wait_ready()?;
        times.push(("leaders even after its restart", self.wait_even("leader_count", 1)?));
        self.check_all(count).await?;
        Ok(times)
    }

    fn wait_led(&self, store: u64, leaders: u64) -> Result<Duration> {
        let started = Instant::now();
        let is_so =
            || self.per_store("leader_count").is_ok_and(|counts| counts.get(&store) == Some(&leaders));
        wait_until(&format!("{leaders} leaders on store {store}"), SOON, is_so)?;
        Ok(started.elapsed())
    }
}
