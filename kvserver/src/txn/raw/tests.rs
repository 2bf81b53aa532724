//! Raw commands on a standalone storage with the engine in memory.

use std::sync::Arc;

use bytes::Bytes;
use kvproto::kvrpcpb::ApiVersion;

use super::*;
use crate::engine::Engine;
use crate::engine::mem::MemEngine;
use crate::error::RegionResult;
use crate::raftstore::meta::region_view::RegionMeta;
use crate::storage::standalone_storage::StandaloneStorage;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Runs jobs where they are handed in.
struct Here;

impl Offload for Here {
    fn offload(&self, job: Box<dyn FnOnce() + Send>) -> bool {
        job();
        true
    }
}

fn raw(api: ApiVersion) -> Raw {
    let engine: Arc<dyn Engine> = Arc::new(MemEngine::new());
    Raw::new(StandaloneStorage::start(engine, api).unwrap(), Arc::new(Here), 8 << 20)
}

fn at(now: u64) -> Call {
    let ctx = RegionContext { region_id: 2, version: 1, conf_ver: 1, ..Default::default() };
    Call { ctx, api: ApiVersion::V1, now }
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn pairs(texts: &[(&str, &str)]) -> Vec<(Bytes, Bytes)> {
    texts.iter().map(|(k, v)| (b(k), b(v))).collect()
}

fn put(raw: &Raw, call: &Call, texts: &[(&str, &str)], ttls: &[u64]) {
    let write = raw.put(call, &pairs(texts), ttls).unwrap();
    block_on(commit(raw, call, write)).unwrap();
}

async fn commit(raw: &Raw, call: &Call, write: WriteSet) -> Result<(), RawError> {
    let (done, outcome) = storage::callback();
    raw.write(call, write, done);
    Ok(outcome.await?)
}

fn get(raw: &Raw, call: &Call, key: &str) -> Option<Bytes> {
    block_on(raw.get(call, b(key))).unwrap()
}

fn scan(
    raw: &Raw,
    call: &Call,
    lower: &str,
    upper: &str,
    reverse: bool,
    limit: usize,
) -> Vec<(Bytes, Bytes)> {
    let scan = Scan { lower: b(lower), upper: b(upper), reverse, key_only: false, limit };
    block_on(raw.scan(call, vec![scan], LongReply::Grow)).unwrap().into_iter().collect()
}

#[test]
fn a_value_with_a_ttl_is_absent_everywhere_once_it_expires() {
    let raw = raw(ApiVersion::V1);
    put(&raw, &at(100), &[("a", "1"), ("b", "2")], &[10, 0]);
    let ttl = |call: &Call, key| block_on(raw.get_ttl(call, b(key))).unwrap();
    assert_eq!((ttl(&at(104), "a"), ttl(&at(104), "b"), ttl(&at(104), "c")), (Some(6), Some(0), None));
    assert_eq!(get(&raw, &at(109), "a"), Some(b("1")));
    let late = at(110);
    assert_eq!(get(&raw, &late, "a"), None);
    assert_eq!(ttl(&late, "a"), None);
    assert_eq!(scan(&raw, &late, "", "", false, 10), pairs(&[("b", "2")]));
    assert_eq!(block_on(raw.batch_get(&late, vec![b("a"), b("b")])).unwrap(), pairs(&[("b", "2")]));
    let sum = block_on(raw.checksum(&late, vec![(b(""), b(""))])).unwrap();
    assert_eq!((sum.total_kvs, sum.total_bytes), (1, 2));
}

#[test]
fn one_ttl_counts_for_all_and_a_wrong_number_is_refused() {
    let raw = raw(ApiVersion::V1);
    put(&raw, &at(100), &[("a", "1"), ("b", "2")], &[10]);
    assert_eq!((get(&raw, &at(110), "a"), get(&raw, &at(110), "b")), (None, None));
    let error = raw.put(&at(100), &pairs(&[("a", "1"), ("b", "2"), ("c", "3")]), &[1, 2]).unwrap_err();
    assert!(matches!(error, RawError::TtlCount { ttls: 2, pairs: 3 }));
}

#[test]
fn scans_go_both_ways_and_stop_at_the_limit() {
    let raw = raw(ApiVersion::V1);
    let call = at(0);
    put(&raw, &call, &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")], &[]);
    assert_eq!(scan(&raw, &call, "b", "d", false, 10), pairs(&[("b", "2"), ("c", "3")]));
    assert_eq!(scan(&raw, &call, "b", "d", true, 10), pairs(&[("c", "3"), ("b", "2")]));
    assert_eq!(scan(&raw, &call, "", "", true, 1), pairs(&[("d", "4")]));
    assert_eq!(scan(&raw, &call, "c", "b", false, 10), vec![]);
    let keys = Scan { lower: b("a"), upper: b("b"), reverse: false, key_only: true, limit: 9 };
    let again = keys.clone();
    let both = block_on(raw.scan(&call, vec![keys, again], LongReply::Grow)).unwrap();
    assert_eq!(both.into_iter().collect::<Vec<_>>(), pairs(&[("a", ""), ("a", "")]));
}

#[test]
fn a_reply_is_cut_only_for_clients_that_know() {
    let raw = raw(ApiVersion::V1);
    let call = at(0);
    let value = "v".repeat(1 << 20);
    for key in ["a", "b", "c", "d", "e"] {
        put(&raw, &call, &[(key, &value)], &[]);
    }
    let all = Scan { lower: b(""), upper: b(""), reverse: false, key_only: false, limit: 100 };
    let cut = block_on(raw.scan(&call, vec![all.clone()], LongReply::Cut)).unwrap();
    assert_eq!(cut.len(), 3, "a fourth value would take the reply over 4 MiB");
    assert_eq!(block_on(raw.scan(&call, vec![all], LongReply::Grow)).unwrap().len(), 5);
}

#[test]
fn compare_and_swap_takes_its_turn_with_its_own_kind() {
    let raw = raw(ApiVersion::V1);
    let call = at(0);
    let swap = |expected: Option<&str>, new: Option<&str>| {
        let swap = Swap { key: b("k"), expected: expected.map(b), new: new.map(b), ttl: 0 };
        block_on(raw.compare_and_swap(&call, swap)).unwrap()
    };
    let swapped = |succeeded, previous: Option<&str>| Swapped { succeeded, previous: previous.map(b) };
    assert_eq!(swap(Some("x"), Some("1")), swapped(false, None));
    assert_eq!(swap(None, Some("1")), swapped(true, None));
    assert_eq!(swap(None, Some("2")), swapped(false, Some("1")));
    assert_eq!(swap(Some("1"), Some("2")), swapped(true, Some("1")));
    assert_eq!(swap(Some("2"), None), swapped(true, Some("2")));
    assert_eq!(get(&raw, &call, "k"), None);
    let write = raw.put(&call, &pairs(&[("k", "3")]), &[]).unwrap();
    block_on(raw.write_latched(&call, &[b("k")], write)).unwrap();
    assert_eq!(swap(Some("3"), Some("4")), swapped(true, Some("3")));
}

/// A store that led in term 7 when the snapshot was taken, and leads again in term 9 when the write comes.
struct LedAgain(Arc<dyn Storage>);

impl Storage for LedAgain {
    fn api(&self) -> ApiVersion {
        self.0.api()
    }

    fn region(&self, ctx: &RegionContext) -> RegionResult<Arc<RegionMeta>> {
        self.0.region(ctx)
    }

    fn lease_snapshot(&self, ctx: &RegionContext) -> RegionResult<Option<RegionSnapshot>> {
        Ok(self.0.lease_snapshot(ctx)?.map(|at| RegionSnapshot { term: 7, ..at }))
    }

    fn confirm(&self, ctx: &RegionContext, done: Callback<()>) {
        self.0.confirm(ctx, done);
    }

    fn confirmed_snapshot(&self, ctx: &RegionContext) -> RegionResult<RegionSnapshot> {
        self.0.confirmed_snapshot(ctx)
    }

    fn write(&self, ctx: &RegionContext, write: WriteSet, done: Callback<()>) {
        match ctx.term {
            1..9 => done.call(Err(RegionError::StaleCommand)),
            _ => self.0.write(ctx, write, done),
        }
    }
}

#[test]
fn a_compare_and_swap_holds_only_in_the_term_it_read_in() {
    let engine: Arc<dyn Engine> = Arc::new(MemEngine::new());
    let storage = LedAgain(StandaloneStorage::start(engine, ApiVersion::V1).unwrap());
    let raw = Raw::new(Arc::new(storage), Arc::new(Here), 8 << 20);
    put(&raw, &at(0), &[("k", "1")], &[]);
    let swap = |expected| Swap { key: b("k"), expected: Some(b(expected)), new: Some(b("2")), ttl: 0 };
    let refused = block_on(raw.compare_and_swap(&at(0), swap("1")));
    assert!(matches!(refused, Err(RawError::Region(RegionError::StaleCommand))), "{refused:?}");
    let found = block_on(raw.compare_and_swap(&at(0), swap("0"))).unwrap();
    assert_eq!(found, Swapped { succeeded: false, previous: Some(b("1")) });
}

#[test]
fn concurrent_increments_lose_none() {
    let raw = Arc::new(raw(ApiVersion::V1));
    put(&raw, &at(0), &[("n", "0")], &[]);
    let add = |raw: Arc<Raw>| {
        for _ in 0..50 {
            loop {
                let old = get(&raw, &at(0), "n").unwrap();
                let n: u64 = std::str::from_utf8(&old).unwrap().parse().unwrap();
                let new = Some(b(&(n + 1).to_string()));
                let swap = Swap { key: b("n"), expected: Some(old), new, ttl: 0 };
                if block_on(raw.compare_and_swap(&at(0), swap)).unwrap().succeeded {
                    break;
                }
            }
        }
    };
    let threads: Vec<_> =
        (0..4).map(|_| raw.clone()).map(|raw| std::thread::spawn(move || add(raw))).collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(get(&raw, &at(0), "n"), Some(b("200")));
}

#[test]
fn delete_range_removes_what_it_says() {
    let raw = raw(ApiVersion::V1);
    let call = at(0);
    put(&raw, &call, &[("a", "1"), ("b", "2"), ("c", "3")], &[]);
    let delete = |start: &str, end: &str| {
        let write = raw.delete_range(&call, &b(start), &b(end)).unwrap();
        block_on(commit(&raw, &call, write)).unwrap();
    };
    delete("c", "a");
    delete("a", "c");
    assert_eq!(scan(&raw, &call, "", "", false, 10), pairs(&[("c", "3")]));
    delete("", "");
    assert_eq!(scan(&raw, &call, "", "", false, 10), vec![]);
}

#[test]
fn requests_of_the_wrong_api_size_or_region_are_refused() {
    let v2 = raw(ApiVersion::V2);
    let call = at(0);
    let refused = |e: RawError| matches!(e, RawError::Key(KeyRefusal::NeedsV2));
    assert!(refused(block_on(v2.get(&call, b("k"))).unwrap_err()));
    assert!(refused(v2.put(&call, &pairs(&[("k", "v")]), &[]).unwrap_err()));
    assert!(refused(v2.delete_range(&call, &b("a"), &b("b")).unwrap_err()));
    let v1 = raw(ApiVersion::V1);
    let long = "k".repeat(kvproto::limits::MAX_KEY_BYTES + 1);
    assert!(matches!(v1.delete(&call, &[b(&long)]), Err(RawError::Key(KeyRefusal::TooLong { .. }))));
    let huge = "v".repeat(9 << 20);
    let error = v1.put(&call, &pairs(&[("k", &huge)]), &[]).unwrap_err();
    assert!(matches!(error, RawError::Region(RegionError::RaftEntryTooLarge { .. })));
    let mut elsewhere = call;
    elsewhere.ctx.region_id = 77;
    let error = block_on(v1.get(&elsewhere, b("k"))).unwrap_err();
    assert!(matches!(error, RawError::Region(RegionError::RegionNotFound { region_id: 77 })));
}
