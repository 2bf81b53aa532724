//! Transactions over a real connection to a standalone server: every request alone and in a batched stream, waits for
//! locks, deadlocks, and what people see who look for a fault.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use kvproto::kvrpcpb as pb;
use kvproto::metapb::RegionEpoch;
use kvproto::pdpb::TsoRequest;
use kvproto::pdpb::pd_client::PdClient;
use kvproto::tikvpb::BatchCommandsRequest;
use kvproto::tikvpb::batch_commands_request::{Request, request::Cmd};
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use kvproto::tikvpb::tikv_client::TikvClient;
use kvproto::ts::Timestamp;
use kvserver::{Config, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

struct World {
    server: Server,
    client: Client,
    _dir: tempfile::TempDir,
}

/// Connections to the store and to its scheduler.
#[derive(Clone)]
struct Client {
    kv: TikvClient<Channel>,
    pd: PdClient<Channel>,
}

impl Deref for World {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

async fn connect(addr: std::net::SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

fn context() -> Option<pb::Context> {
    Some(pb::Context {
        region_id: 8,
        region_epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
        api_version: pb::ApiVersion::V2 as i32,
        ..Default::default()
    })
}

fn key(name: &str) -> Bytes {
    [b"x\0\0\0", name.as_bytes()].concat().into()
}

fn put(name: &str, value: &str) -> pb::Mutation {
    pb::Mutation { key: key(name), value: Bytes::copy_from_slice(value.as_bytes()), ..Default::default() }
}

impl World {
    async fn start() -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.server.addr = "127.0.0.1:0".into();
        config.server.status_addr = "127.0.0.1:0".into();
        config.storage.data_dir = dir.path().into();
        config.resolve(256 << 20, 2);
        let server = Server::start_standalone(config, "127.0.0.1:0").await.unwrap();
        let kv = TikvClient::new(connect(server.addr()).await);
        let pd = PdClient::new(connect(server.pd_addr().unwrap()).await);
        World { server, client: Client { kv, pd }, _dir: dir }
    }

    /// What the store counts.
    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.server.status_addr().unwrap()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    }

    async fn stop(self) {
        self.server.shutdown(false).await.unwrap();
    }
}

impl Client {
    async fn ts(&mut self) -> u64 {
        let request = tokio_stream::once(TsoRequest { count: 1, ..Default::default() });
        let reply = self.pd.tso(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
        let ts = reply.timestamp.unwrap();
        Timestamp::compose(ts.physical as u64, ts.logical as u64).unwrap().get()
    }

    /// Prewrites pairs whose first key is the primary.
    async fn prewrite(
        &mut self,
        start_version: u64,
        pairs: &[(&str, &str)],
        change: impl FnOnce(&mut pb::PrewriteRequest),
    ) -> pb::PrewriteResponse {
        let mut request = pb::PrewriteRequest {
            context: context(),
            mutations: pairs.iter().map(|(name, value)| put(name, value)).collect(),
            primary_lock: key(pairs[0].0),
            start_version,
            lock_ttl: 60_000,
            txn_size: pairs.len() as u64,
            ..Default::default()
        };
        change(&mut request);
        let reply = self.kv.kv_prewrite(request).await.unwrap().into_inner();
        assert_eq!(reply.region_error, None);
        reply
    }

    async fn commit(
        &mut self,
        start_version: u64,
        commit_version: u64,
        names: &[&str],
    ) -> pb::CommitResponse {
        let keys = names.iter().map(|name| key(name)).collect();
        let request = pb::CommitRequest {
            context: context(),
            start_version,
            keys,
            commit_version,
            ..Default::default()
        };
        let reply = self.kv.kv_commit(request).await.unwrap().into_inner();
        assert_eq!(reply.region_error, None);
        reply
    }

    /// A transaction of one client, from start to end.
    async fn write(&mut self, pairs: &[(&str, &str)]) -> u64 {
        let start = self.ts().await;
        assert_eq!(self.prewrite(start, pairs, |_| {}).await.errors, []);
        let commit = self.ts().await;
        let names: Vec<&str> = pairs.iter().map(|(name, _)| *name).collect();
        assert_eq!(self.commit(start, commit, &names).await.error, None);
        commit
    }

    async fn get(&mut self, name: &str, version: u64) -> pb::GetResponse {
        let request = pb::GetRequest { context: context(), key: key(name), version, need_commit_ts: true };
        let alone = self.kv.kv_get(request.clone()).await.unwrap().into_inner();
        let Answer::Get(batched) = self.batched(Cmd::Get(request)).await else { panic!("not a get") };
        assert_eq!(alone, batched, "both ways give the same answer");
        alone
    }

    async fn batched(&mut self, cmd: Cmd) -> Answer {
        let requests = vec![Request { cmd: Some(cmd) }];
        let frame = BatchCommandsRequest { requests, request_ids: vec![7], ..Default::default() };
        let answers = self.kv.batch_commands(tokio_stream::once(frame)).await.unwrap();
        let frame = answers.into_inner().message().await.unwrap().unwrap();
        assert_eq!(frame.request_ids, [7]);
        frame.responses.into_iter().next().and_then(|response| response.cmd).expect("an answer")
    }

    fn claim(&self, start_version: u64, name: &str, wait_timeout: i64) -> pb::PessimisticLockRequest {
        let op = pb::Op::PessimisticLock as i32;
        pb::PessimisticLockRequest {
            context: context(),
            mutations: vec![pb::Mutation { op, key: key(name), ..Default::default() }],
            primary_lock: key(name),
            start_version,
            lock_ttl: 60_000,
            for_update_ts: start_version,
            wait_timeout,
            return_values: true,
            ..Default::default()
        }
    }

    /// A claim that waits in the background.
    fn claim_later(
        &self,
        request: pb::PessimisticLockRequest,
    ) -> tokio::task::JoinHandle<pb::PessimisticLockResponse> {
        let mut kv = self.kv.clone();
        tokio::spawn(async move { kv.kv_pessimistic_lock(request).await.unwrap().into_inner() })
    }

    /// Waits until so many requests wait for locks.
    async fn wait_for_waiters(&mut self, count: usize) -> Vec<kvproto::deadlock::WaitForEntry> {
        let begun = tokio::time::Instant::now();
        loop {
            let request = pb::GetLockWaitInfoRequest { context: context() };
            let entries = self.kv.get_lock_wait_info(request).await.unwrap().into_inner().entries;
            if entries.len() == count {
                return entries;
            }
            assert!(begun.elapsed() < DEADLINE, "{count} waiters expected, there are {entries:?}");
            tokio::task::yield_now().await;
        }
    }

    async fn give_back(&mut self, start_version: u64, name: &str) {
        let keys = vec![key(name)];
        let for_update_ts = start_version;
        let request =
            pb::PessimisticRollbackRequest { context: context(), start_version, for_update_ts, keys };
        let reply = self.kv.kv_pessimistic_rollback(request).await.unwrap().into_inner();
        assert_eq!((reply.region_error, reply.errors), (None, vec![]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_is_read_at_its_time_and_not_before() {
    let mut world = World::start().await;
    let before = world.ts().await;
    let long = "l".repeat(1_000);
    let committed = world.write(&[("a", "1"), ("b", &long)]).await;
    let now = world.ts().await;
    let found = world.get("b", now).await;
    assert_eq!((&found.value[..], found.commit_ts, found.not_found), (long.as_bytes(), committed, false));
    assert!(world.get("a", before).await.not_found);
    let keys = ["b", "none", "a"].map(key).to_vec();
    let request = pb::BatchGetRequest { context: context(), keys, version: now, ..Default::default() };
    let Answer::BatchGet(batch) = world.batched(Cmd::BatchGet(request.clone())).await else { panic!() };
    assert_eq!(batch, world.kv.kv_batch_get(request).await.unwrap().into_inner());
    assert_eq!(batch.pairs.iter().map(|p| p.key.clone()).collect::<Vec<_>>(), [key("b"), key("a")]);
    // Downwards the start is the upper bound.
    let request = pb::ScanRequest {
        context: context(),
        start_key: key("z"),
        end_key: key("a"),
        limit: 10,
        version: now,
        reverse: true,
        ..Default::default()
    };
    let Answer::Scan(scan) = world.batched(Cmd::Scan(request.clone())).await else { panic!() };
    assert_eq!(scan, world.kv.kv_scan(request).await.unwrap().into_inner());
    assert_eq!(scan.pairs.iter().map(|p| p.key.clone()).collect::<Vec<_>>(), [key("b"), key("a")]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_in_the_way_is_resolved_by_whoever_meets_it() {
    let mut world = World::start().await;
    let start = world.ts().await;
    assert_eq!(world.prewrite(start, &[("p", "1"), ("s", "2")], |_| {}).await.errors, []);
    let now = world.ts().await;
    let locked = world.get("s", now).await.error.and_then(|error| error.locked).expect("a lock");
    assert_eq!((locked.primary_lock, locked.lock_version, locked.lock_ttl), (key("p"), start, 60_000));
    assert_eq!(world.get("s", start - 1).await.error, None, "the reader is older than the transaction");
    let mut check = pb::CheckTxnStatusRequest {
        context: context(),
        primary_key: key("p"),
        lock_ts: start,
        caller_start_ts: now,
        current_ts: now,
        ..Default::default()
    };
    let alive = world.kv.kv_check_txn_status(check.clone()).await.unwrap().into_inner();
    assert_eq!((alive.lock_ttl, alive.commit_version, alive.lock_info.is_some()), (60_000, 0, true));
    check.current_ts = u64::MAX;
    let Answer::CheckTxnStatus(dead) = world.batched(Cmd::CheckTxnStatus(check)).await else { panic!() };
    assert_eq!((dead.lock_ttl, dead.commit_version, dead.lock_info), (0, 0, None));
    assert_eq!(dead.action, pb::Action::TtlExpireRollback as i32);
    let scan = pb::ScanLockRequest { context: context(), max_version: now, ..Default::default() };
    let locks = world.kv.kv_scan_lock(scan.clone()).await.unwrap().into_inner().locks;
    assert_eq!(locks.iter().map(|lock| lock.key.clone()).collect::<Vec<_>>(), [key("s")]);
    let resolve = pb::ResolveLockRequest { context: context(), start_version: start, ..Default::default() };
    assert_eq!(world.kv.kv_resolve_lock(resolve).await.unwrap().into_inner(), Default::default());
    assert_eq!(world.kv.kv_scan_lock(scan).await.unwrap().into_inner().locks, []);
    assert!(world.get("s", now).await.not_found);
    let later = world.ts().await;
    let late = world.commit(start, later, &["p"]).await.error.expect("too late");
    assert!(late.txn_lock_not_found.is_some() && !late.retryable.is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_commits_and_one_phase_commits_choose_a_time_after_every_read() {
    let mut world = World::start().await;
    let read_at = world.ts().await;
    let start = read_at - 1;
    assert!(world.get("k", read_at).await.not_found);
    let done = world.prewrite(start, &[("k", "1")], |r| r.try_one_pc = true).await;
    assert!(done.one_pc_commit_ts > read_at && done.min_commit_ts == 0, "{done:?}");
    assert!(world.get("k", read_at).await.not_found, "what was read stays");
    let start = world.ts().await;
    let pairs = [("p", "1"), ("s", "2")];
    let asynchronous = |r: &mut pb::PrewriteRequest| {
        r.use_async_commit = true;
        r.secondaries = vec![key("s")];
    };
    let done = world.prewrite(start, &pairs, asynchronous).await;
    assert!(done.min_commit_ts > start && done.one_pc_commit_ts == 0);
    assert_eq!(world.prewrite(start, &pairs, asynchronous).await, done, "repeated, it says the same");
    let request =
        pb::CheckSecondaryLocksRequest { context: context(), keys: vec![key("s")], start_version: start };
    let secondaries = world.kv.kv_check_secondary_locks(request).await.unwrap().into_inner();
    assert_eq!((secondaries.locks.len(), secondaries.commit_ts), (1, 0));
    assert!(secondaries.locks[0].use_async_commit);
    assert_eq!(world.commit(start, done.min_commit_ts, &["p", "s"]).await.error, None);
    let now = world.ts().await;
    assert_eq!(world.get("s", now).await.commit_ts, done.min_commit_ts);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_waits_until_the_lock_is_released() {
    let mut world = World::start().await;
    world.write(&[("k", "v")]).await;
    let (one, two) = (world.ts().await, world.ts().await);
    let request = world.claim(one, "k", -1);
    let claimed = world.kv.kv_pessimistic_lock(request).await.unwrap().into_inner();
    assert_eq!((claimed.errors, claimed.values, claimed.not_founds), (vec![], vec!["v".into()], vec![false]));
    let request = world.claim(two, "k", -1);
    let refused = world.kv.kv_pessimistic_lock(request).await.unwrap().into_inner();
    assert_eq!(refused.errors[0].locked.as_ref().map(|lock| lock.lock_version), Some(one));
    let waiting = world.claim_later(world.claim(two, "k", 15_000));
    let waits = world.wait_for_waiters(1).await;
    assert_eq!((waits[0].txn, waits[0].wait_for_txn, &waits[0].key), (two, one, &key("k")));
    world.give_back(one, "k").await;
    let claimed = waiting.await.unwrap();
    assert_eq!((claimed.errors, claimed.values.len()), (vec![], 1));
    // The waiting goes on in a batched stream as well.
    let request = world.claim(one, "k", 100);
    let Answer::PessimisticLock(late) = world.batched(Cmd::PessimisticLock(request)).await else { panic!() };
    assert_eq!(late.errors[0].locked.as_ref().map(|lock| lock.lock_version), Some(two), "after the time-out");
    world.wait_for_waiters(0).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_that_closes_a_circle_is_told_of_the_deadlock() {
    let mut world = World::start().await;
    let (one, two) = (world.ts().await, world.ts().await);
    for (txn, name) in [(one, "a"), (two, "b")] {
        let request = world.claim(txn, name, -1);
        assert_eq!(world.kv.kv_pessimistic_lock(request).await.unwrap().into_inner().errors, []);
    }
    let waiting = world.claim_later(world.claim(one, "b", 15_000));
    world.wait_for_waiters(1).await;
    let request = world.claim(two, "a", 15_000);
    let refused = world.kv.kv_pessimistic_lock(request).await.unwrap().into_inner();
    let deadlock = refused.errors[0].deadlock.clone().expect("a deadlock");
    let chain: Vec<_> = deadlock.wait_chain.iter().map(|e| (e.txn, e.wait_for_txn, e.key.clone())).collect();
    assert_eq!(chain, [(one, two, key("b")), (two, one, key("a"))]);
    assert_eq!((deadlock.lock_ts, deadlock.lock_key, deadlock.deadlock_key), (one, key("a"), key("b")));
    world.give_back(two, "b").await;
    assert_eq!(waiting.await.unwrap().errors, []);
    let metrics = world.metrics().await;
    for line in ["kvasir_deadlocks_total 1", "kvasir_lock_waits_total 2", "kvasir_lock_wake_ups_total 1"] {
        assert!(metrics.contains(&format!("\n{line}\n")), "{line} is not in\n{metrics}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_waits_with_an_answer() {
    let mut world = World::start().await;
    let (one, two) = (world.ts().await, world.ts().await);
    let request = world.claim(one, "k", -1);
    assert_eq!(world.kv.kv_pessimistic_lock(request).await.unwrap().into_inner().errors, []);
    let waiting = world.claim_later(world.claim(two, "k", 3_600_000));
    world.wait_for_waiters(1).await;
    world.stop().await;
    let told = waiting.await.unwrap().errors;
    assert_eq!(told[0].locked.as_ref().map(|lock| lock.lock_version), Some(one));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_leaves_the_line() {
    let mut world = World::start().await;
    let (one, two) = (world.ts().await, world.ts().await);
    let request = world.claim(one, "k", -1);
    assert_eq!(world.kv.kv_pessimistic_lock(request).await.unwrap().into_inner().errors, []);
    let waiting = world.claim_later(world.claim(two, "k", 15_000));
    world.wait_for_waiters(1).await;
    waiting.abort();
    world.wait_for_waiters(0).await;
    world.give_back(one, "k").await;
    let request = world.claim(one, "k", -1);
    let free = world.kv.kv_pessimistic_lock(request).await.unwrap().into_inner();
    assert_eq!(free.errors, [], "the one that is gone did not take the lock");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heart_beats_rollbacks_and_clean_ups() {
    let mut world = World::start().await;
    let start = world.ts().await;
    assert_eq!(world.prewrite(start, &[("k", "v")], |_| {}).await.errors, []);
    let beat = pb::TxnHeartBeatRequest {
        context: context(),
        primary_lock: key("k"),
        start_version: start,
        advise_lock_ttl: 90_000,
        ..Default::default()
    };
    let Answer::TxnHeartBeat(beaten) = world.batched(Cmd::TxnHeartBeat(beat.clone())).await else { panic!() };
    assert_eq!(beaten.lock_ttl, 90_000);
    let now = world.ts().await;
    let clean =
        pb::CleanupRequest { context: context(), key: key("k"), start_version: start, current_ts: now };
    let alive = world.kv.kv_cleanup(clean).await.unwrap().into_inner();
    assert!(alive.error.and_then(|error| error.locked).is_some(), "it is alive");
    let keys = vec![key("k")];
    let roll =
        pb::BatchRollbackRequest { context: context(), start_version: start, keys, ..Default::default() };
    for _ in 0..2 {
        let reply = world.kv.kv_batch_rollback(roll.clone()).await.unwrap().into_inner();
        assert_eq!((reply.region_error, reply.error), (None, None));
    }
    let gone = world.kv.kv_txn_heart_beat(beat).await.unwrap().into_inner().error.expect("an error");
    assert_eq!(gone.txn_not_found.map(|found| found.start_ts), Some(start));
    let committed = world.write(&[("done", "v")]).await;
    let request = pb::MvccGetByKeyRequest { context: context(), key: key("done") };
    let writes = world.kv.mvcc_get_by_key(request).await.unwrap().into_inner().info.unwrap().writes;
    let begun = writes[0].start_ts;
    let clean =
        pb::CleanupRequest { context: context(), key: key("done"), start_version: begun, current_ts: 0 };
    let late = world.kv.kv_cleanup(clean).await.unwrap().into_inner();
    assert_eq!((late.error, late.commit_version), (None, committed));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_shown_and_ranges_removed() {
    let mut world = World::start().await;
    let long = "l".repeat(1_000);
    let committed = world.write(&[("k", &long)]).await;
    let request = pb::MvccGetByKeyRequest { context: context(), key: key("k") };
    let shown = world.kv.mvcc_get_by_key(request).await.unwrap().into_inner();
    let info = shown.info.expect("records");
    assert_eq!((info.writes.len(), info.writes[0].commit_ts, info.values.len()), (1, committed, 1));
    let start_ts = info.writes[0].start_ts;
    let by_ts = pb::MvccGetByStartTsRequest { context: context(), start_ts };
    let shown = world.kv.mvcc_get_by_start_ts(by_ts).await.unwrap().into_inner();
    assert_eq!((shown.key, shown.error), (key("k"), String::new()));
    world.write(&[("m", "v")]).await;
    let delete = pb::DeleteRangeRequest {
        context: context(),
        start_key: key("k"),
        end_key: key("l"),
        ..Default::default()
    };
    let beyond = context().map(|context| pb::Context { region_id: 6, ..context });
    let beyond = pb::DeleteRangeRequest { context: beyond, ..delete.clone() };
    let refused = world.kv.kv_delete_range(beyond).await.unwrap().into_inner().region_error.expect("refused");
    assert!(refused.key_not_in_region.is_some(), "{refused:?}");
    assert_eq!(world.kv.kv_delete_range(delete).await.unwrap().into_inner(), Default::default());
    let now = world.ts().await;
    assert!(world.get("k", now).await.not_found && !world.get("m", now).await.not_found);
    let destroy = pb::UnsafeDestroyRangeRequest {
        context: None,
        start_key: key(""),
        end_key: Bytes::from_static(b"x\0\0\x01"),
    };
    assert_eq!(world.kv.unsafe_destroy_range(destroy).await.unwrap().into_inner(), Default::default());
    assert!(world.get("m", now).await.not_found);
    world.stop().await;
}

/// Adds one to a counter that everybody else wants, too.
async fn increment(world: &mut Client) {
    let start = world.ts().await;
    let mut request = world.claim(start, "counter", 15_000);
    let claimed = loop {
        let claimed = world.kv.kv_pessimistic_lock(request.clone()).await.unwrap().into_inner();
        let Some(error) = claimed.errors.first() else { break claimed };
        assert!(error.conflict.is_some(), "{error:?}");
        request.for_update_ts = world.ts().await;
    };
    let before: u64 = String::from_utf8_lossy(&claimed.values[0]).parse().unwrap_or(0);
    let after = (before + 1).to_string();
    let for_update_ts = request.for_update_ts;
    let written = world
        .prewrite(start, &[("counter", &after)], |r| {
            r.for_update_ts = for_update_ts;
            r.pessimistic_actions = vec![pb::prewrite_request::PessimisticAction::DoPessimisticCheck as i32];
        })
        .await;
    assert_eq!(written.errors, []);
    let commit = world.ts().await;
    assert_eq!(world.commit(start, commit, &["counter"]).await.error, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_one_key_by_many_take_turns_and_lose_nothing() {
    const CLIENTS: u64 = 12;
    const TURNS: u64 = 8;
    let mut world = World::start().await;
    let clients = (0..CLIENTS).map(|_| {
        let mut client = world.client.clone();
        tokio::spawn(async move {
            for _ in 0..TURNS {
                increment(&mut client).await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        tokio::time::timeout(DEADLINE, client).await.expect("nobody is forgotten").unwrap();
    }
    let now = world.ts().await;
    assert_eq!(world.get("counter", now).await.value, (CLIENTS * TURNS).to_string());
    world.wait_for_waiters(0).await;
    world.stop().await;
}
