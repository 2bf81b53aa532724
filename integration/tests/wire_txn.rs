//! The official Rust client, as published on crates.io, runs transactions of every kind it has against a real cluster
//! of three stores, and a standalone store: in keyspace DEFAULT and, beside it in the same cluster, in API V1. Nothing here uses our SDK:
//! what passes is what a program written for TiKV meets.
//!
//! The client meets a live lock by asking again some ten times in a second and a half; it does not commit in another way
//! when the server declines one phase; and a pessimistic lock that finds a newer version is its caller's to ask for
//! again. The tests do what its users have to do, no more.

#[path = "wire_txn/conflicts.rs"]
mod conflicts;
#[path = "wire_txn/frames.rs"]
mod frames;
#[path = "wire_txn/kinds.rs"]
mod kinds;
#[path = "wire_txn/locks.rs"]
mod locks;
#[path = "wire_txn/moves.rs"]
mod moves;
#[path = "wire_txn/reads.rs"]
mod reads;
#[path = "wire_txn/refusals.rs"]
mod refusals;

use std::time::{Duration, Instant};

use integration::cluster::by_hand::ByHand;
use integration::cluster::{ClusterOptions, ProcessCluster};
use kvproto::kvrpcpb::ApiVersion;
use tikv_client::transaction::HeartbeatOption;
use tikv_client::{
    CheckLevel, Config, Error, KvPair, ProtoKeyError, Snapshot, TimestampExt, TransactionClient,
    TransactionOptions,
};

/// A condition that does not hold after this long never will.
const SOON: Duration = Duration::from_secs(30);

/// How a client is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    V1,
    V2,
}

/// Both at the same cluster.
const BOTH: [Api; 2] = [Api::V2, Api::V1];

/// A client of a cluster, and what it takes to look behind it.
struct World {
    api: Api,
    client: TransactionClient,
    hand: ByHand,
}

fn cluster() -> ProcessCluster {
    ProcessCluster::start(ClusterOptions::default().with_leaders_at_rest())
        .expect("a cluster of three stores")
}

impl World {
    async fn of(cluster: &ProcessCluster, api: Api) -> World {
        World::at(cluster.endpoint(), api).await
    }

    /// At the scheduler with this address.
    async fn at(endpoint: String, api: Api) -> World {
        let version = match api {
            Api::V1 => ApiVersion::V1,
            Api::V2 => ApiVersion::V2,
        };
        let hand = ByHand::connect(&endpoint, version).await.expect("a connection");
        World { api, client: client(endpoint, api).await.expect("a client"), hand }
    }

    /// The name of a key that only this test uses; short enough for others to be found in failures.
    fn key(&self, name: &str) -> String {
        format!("{:?}/{name}", self.api)
    }

    /// Divides the region of the first key before each of these.
    async fn split(&self, names: &[&str]) {
        for name in names {
            let key = self.hand.key(&self.key(name));
            self.hand.regions().split(&[key]).await.expect("a division");
        }
    }

    /// Sees everything that is committed by now.
    async fn now(&self) -> Snapshot {
        let now = self.client.current_timestamp().await.expect("a timestamp");
        self.client.snapshot(now, TransactionOptions::new_optimistic())
    }

    /// What a key holds now.
    async fn get(&self, name: &str) -> Option<String> {
        let value = self.now().await.get(self.key(name)).await.expect("a value");
        value.map(|value| String::from_utf8(value).expect("these tests write text"))
    }

    /// Commits these values.
    async fn put(&self, pairs: &[(&str, &str)]) -> u64 {
        let mut txn = self.client.begin_optimistic().await.expect("a transaction");
        for (name, value) in pairs {
            txn.put(self.key(name), value.as_bytes().to_vec()).await.expect("buffered");
        }
        txn.commit().await.expect("a commit").expect("a timestamp").version()
    }

    /// Locks whose keys begin with the test's name and this.
    async fn locks(&self, prefix: &str) -> Vec<tikv_client::ProtoLockInfo> {
        let now = self.client.current_timestamp().await.expect("a timestamp");
        let range = self.key(prefix)..self.key(&format!("{prefix}~"));
        self.client.scan_locks(&now, range, 1024).await.expect("locks")
    }
}

async fn client(endpoint: String, api: Api) -> Result<TransactionClient, Error> {
    let config = match api {
        Api::V1 => Config::default(),
        Api::V2 => Config::default().with_default_keyspace(),
    };
    TransactionClient::new_with_config(vec![endpoint], config).await
}

/// Every way a transaction can lock and commit.
fn kinds() -> Vec<(&'static str, TransactionOptions)> {
    let optimistic = TransactionOptions::new_optimistic;
    let pessimistic = TransactionOptions::new_pessimistic;
    vec![
        ("optimistic", optimistic()),
        ("optimistic, async commit", optimistic().use_async_commit()),
        ("optimistic, one phase", optimistic().try_one_pc()),
        ("optimistic, one phase or async commit", optimistic().use_async_commit().try_one_pc()),
        ("pessimistic", pessimistic()),
        ("pessimistic, async commit", pessimistic().use_async_commit()),
        ("pessimistic, one phase", pessimistic().try_one_pc()),
        ("pessimistic, one phase or async commit", pessimistic().use_async_commit().try_one_pc()),
    ]
}

/// A transaction that is left alone: nothing renews its locks and nothing complains when it is dropped.
fn abandoned(options: TransactionOptions) -> TransactionOptions {
    options.heartbeat_option(HeartbeatOption::NoHeartbeat).drop_check(CheckLevel::None)
}

/// What servers said about keys, in whatever the client has wrapped it.
fn key_errors(error: &Error) -> Vec<&ProtoKeyError> {
    match error {
        Error::KeyError(error) => vec![error],
        Error::ExtractedErrors(errors) | Error::MultipleKeyErrors(errors) => {
            errors.iter().flat_map(key_errors).collect()
        }
        Error::PessimisticLockError { inner, .. } | Error::UndeterminedError(inner) => key_errors(inner),
        _ => Vec::new(),
    }
}

/// Whether a transaction failed because another one was faster: its caller begins again.
fn is_conflict(error: &Error) -> bool {
    let errors = key_errors(error);
    !errors.is_empty() && errors.iter().all(|error| error.conflict.is_some())
}

fn texts(pairs: impl IntoIterator<Item = KvPair>) -> Vec<(String, String)> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("these tests write text");
    pairs.into_iter().map(|KvPair(key, value)| (text(key.into()), text(value))).collect()
}

/// Looks again and again until something is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::task::yield_now().await;
    }
}
