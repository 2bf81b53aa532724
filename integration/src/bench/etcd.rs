//! Three etcd members on loopback, for comparison: the same number of replicas, each put durable on a quorum,
//! each get linearizable.

use std::path::Path;

use etcd_client::{Client, Compare, CompareOp, KvClient, Txn, TxnOp, TxnOpResponse};

use super::load::{self, Load, Measured};
use super::transactions::{two_below, until_through};
use super::{BenchError, Plan};
use crate::cluster;

const MEMBERS: usize = 3;
/// Keys in one transaction while loading: etcd's own limit.
const LOAD_BATCH: u64 = 128;

/// A running etcd.
pub struct Etcd {
    client: Client,
    _members: cluster::Etcd,
}

impl Etcd {
    /// Starts the members and waits until all are healthy.
    pub async fn start(dir: &Path) -> Result<Self, BenchError> {
        let members = cluster::Etcd::start(dir, MEMBERS)?;
        let client =
            Client::connect(members.endpoints(), None).await.map_err(|e| BenchError::client("etcd", e))?;
        Ok(Self { client, _members: members })
    }

    /// Writes all keys.
    pub async fn fill(&self, plan: &Plan) -> Result<(), BenchError> {
        let mut kv = self.client.kv_client();
        let value = vec![b'v'; plan.value_bytes];
        for first in (0..plan.keys).step_by(LOAD_BATCH as usize) {
            let put = |n| TxnOp::put(key(n), value.clone(), None);
            let puts: Vec<_> = (first..plan.keys.min(first + LOAD_BATCH)).map(put).collect();
            kv.txn(Txn::new().and_then(puts)).await.map_err(|e| BenchError::client("etcd", e))?;
        }
        Ok(())
    }

    pub async fn gets(&self, plan: &Plan, load: Load) -> Measured {
        let (kv, keys) = (self.client.kv_client(), plan.keys);
        load::run(load, move |numbers| {
            let (mut kv, key) = (kv.clone(), key(numbers.below(keys)));
            async move { kv.get(key, None).await.map(drop) }
        })
        .await
    }

    pub async fn puts(&self, plan: &Plan, load: Load) -> Measured {
        let (kv, keys, value) = (self.client.kv_client(), plan.keys, vec![b'v'; plan.value_bytes]);
        load::run(load, move |numbers| {
            let (mut kv, key, value) = (kv.clone(), key(numbers.below(keys)), value.clone());
            async move { kv.put(key, value, None).await.map(drop) }
        })
        .await
    }

    /// Updates of two keys: one transaction reads both, another puts both if neither has changed.
    pub async fn updates(&self, plan: &Plan, load: Load) -> Measured {
        let (kv, keys, value) = (self.client.kv_client(), plan.keys, vec![b'v'; plan.value_bytes]);
        load::run(load, move |numbers| {
            let (first, second) = two_below(numbers, keys);
            let (kv, pair, value) = (kv.clone(), [key(first), key(second)], value.clone());
            until_through(move || update(kv.clone(), pair.clone(), value.clone()))
        })
        .await
    }
}

/// Reads both keys and writes both; false when another client was faster.
async fn update(mut kv: KvClient, pair: [String; 2], value: Vec<u8>) -> Result<bool, etcd_client::Error> {
    let gets = pair.each_ref().map(|key| TxnOp::get(key.as_str(), None));
    let read = kv.txn(Txn::new().and_then(gets)).await?;
    let revision = |answer: TxnOpResponse| match answer {
        TxnOpResponse::Get(get) => get.kvs().first().map(|kv| kv.mod_revision()),
        _ => None,
    };
    let revisions: Vec<i64> = read.op_responses().into_iter().filter_map(revision).collect();
    if revisions.len() != pair.len() {
        return Err(etcd_client::Error::InvalidArgs("keys that were written are absent".into()));
    }
    let same =
        |(key, revision): (&String, i64)| Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
    let compares: Vec<Compare> = pair.iter().zip(revisions).map(same).collect();
    let puts = pair.each_ref().map(|key| TxnOp::put(key.as_str(), value.clone(), None));
    Ok(kv.txn(Txn::new().when(compares).and_then(puts)).await?.succeeded())
}

fn key(n: u64) -> String {
    format!("bench/{n:012}")
}
