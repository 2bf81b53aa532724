//! The scheduler's metadata in a real etcd: the fence that keeps a former leader from writing, and what a transaction
//! and a page of etcd can hold.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Client, PutOptions};
use integration::cluster::Etcd;
use scheduler::kv::etcd_kv::{EtcdKv, Fence, Keys};
use scheduler::kv::etcd_pool::EtcdPool;
use scheduler::kv::{Condition, Kv, KvError, Op, Txn};
use tokio_util::sync::CancellationToken;

struct Fixture {
    client: Client,
    pool: Arc<EtcdPool>,
    keys: Keys,
    etcd: Etcd,
    _dir: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> Fixture {
        let dir = tempfile::tempdir().expect("a directory");
        let etcd = Etcd::start(dir.path(), 1).expect("etcd");
        let endpoints: Vec<String> = etcd.endpoints().iter().map(|e| format!("http://{e}")).collect();
        let client = Client::connect(&endpoints, None).await.expect("a client");
        let pool = Arc::new(EtcdPool::new(&endpoints).await.expect("a pool"));
        Fixture { client, pool, keys: Keys::new("/kvasir/test"), etcd, _dir: dir }
    }

    /// Becomes the leader as another scheduler would.
    async fn lead(&mut self) -> Leader {
        let key = self.keys.leader();
        self.client.delete(key.clone(), None).await.expect("a delete");
        let put = self.client.put(key, "somebody", Some(PutOptions::new())).await.expect("a put");
        let revision = put.header().expect("a header").revision();
        let ended = CancellationToken::new();
        let kv = EtcdKv::new(self.pool.clone(), self.keys.clone(), Fence { revision }, ended.clone());
        Leader { kv: Arc::new(kv), ended }
    }

    async fn lead_and_keep(mut self) -> (Leader, Fixture) {
        (self.lead().await, self)
    }
}

struct Leader {
    kv: Arc<EtcdKv>,
    ended: CancellationToken,
}

impl Leader {
    /// Calls block, so they are made where the scheduler makes them: on a thread of their own.
    async fn run<T: Send + 'static>(&self, call: impl FnOnce(&EtcdKv) -> T + Send + 'static) -> T {
        let kv = self.kv.clone();
        tokio::task::spawn_blocking(move || call(&kv)).await.expect("no panic")
    }

    async fn commit(&self, txn: Txn) -> Result<(), KvError> {
        self.run(move |kv| kv.commit(&txn)).await
    }

    async fn get(&self, key: &'static str) -> Option<Bytes> {
        self.run(move |kv| kv.get(key.as_bytes())).await.expect("a get")
    }
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Op {
    Op::Put(key.into(), value.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_leader_changes_nothing() {
    let mut fixture = Fixture::start().await;
    let old = fixture.lead().await;
    old.commit(Txn::synced(vec![put("k", "1")])).await.expect("it leads");
    let new = fixture.lead().await;
    assert_eq!(old.commit(Txn::synced(vec![put("k", "2")])).await.unwrap_err().to_string(), "not leader");
    assert_eq!(new.get("k").await.as_deref(), Some(&b"1"[..]));
    new.commit(Txn::synced(vec![put("k", "3"), put("other", "1")])).await.expect("the new one leads");
    new.commit(Txn::synced(vec![Op::Delete("other".into())])).await.expect("and goes on");
    assert!(old.commit(Txn::synced(vec![put("k", "4")])).await.is_err());
    assert_eq!((new.get("k").await.as_deref(), new.get("other").await), (Some(&b"3"[..]), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_hold_and_the_last_of_several_changes_of_a_key_wins() {
    let (leader, _fixture) = Fixture::start().await.lead_and_keep().await;
    let first = Txn::synced(vec![put("k", "1"), Op::Delete("k".into()), put("k", "2")]);
    leader.commit(first.when(Condition::Absent("k".into()))).await.expect("it is absent");
    assert_eq!(leader.get("k").await.as_deref(), Some(&b"2"[..]));
    let refused = Txn::synced(vec![put("k", "3")]).when(Condition::Equals("k".into(), "1".into()));
    assert!(matches!(leader.commit(refused).await, Err(KvError::Conflict { key }) if key == "k"));
    let taken = Txn::synced(vec![put("k", "3")]).when(Condition::Equals("k".into(), "2".into()));
    leader.commit(taken).await.expect("a failed condition does not end the leadership");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transactions_and_ranges_beyond_a_message_go_through() {
    let (leader, _fixture) = Fixture::start().await.lead_and_keep().await;
    // More operations than etcd takes at once, in one transaction.
    let key = |n: usize| format!("m/{n:04}");
    let ops: Vec<Op> = (0..300).map(|n| put(key(n), "small")).collect();
    leader.commit(Txn::synced(ops)).await.expect("300 changes in one");
    // 12 MB in all: the client takes messages of 4 MiB.
    for n in 0..12 {
        leader.commit(Txn::synced(vec![put(key(n), vec![7; 1_000_000])])).await.expect("a large value");
    }
    let range = |start: &'static [u8], end: &'static [u8], limit: usize| {
        leader.run(move |kv| kv.range(start, end, limit).expect("a range"))
    };
    let all = range(b"m/", b"m0", 10_000).await;
    let keys: Vec<Bytes> = all.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(keys, (0..300).map(|n| Bytes::from(key(n))).collect::<Vec<_>>());
    assert_eq!(all.iter().map(|(_, value)| value.len()).sum::<usize>(), 12_000_000 + 288 * 5);
    assert_eq!(range(b"m/", b"m0", 11).await.len(), 11);
    let some = range(b"m/0012", b"m/0015", 10).await;
    assert_eq!(some.len(), 3);
    assert!(range(b"z", b"a", 10).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_end_with_the_leadership_and_not_only_by_their_deadline() {
    let (leader, fixture) = Fixture::start().await.lead_and_keep().await;
    fixture.etcd.members[0].freeze();
    let committing = leader.commit(Txn::synced(vec![put("k", "1")]));
    let ending = async { leader.ended.cancel() };
    let (committed, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(5), committing), ending);
    assert!(matches!(committed.expect("long before the deadline"), Err(KvError::NotLeader)));
    fixture.etcd.members[0].thaw();
}
