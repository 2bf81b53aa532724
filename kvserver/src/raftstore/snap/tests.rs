//! The whole way of a snapshot between two stores on disk, and what may go wrong on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvproto::metapb;

use super::snap::{self, Manifest, Side};
use super::{CfRange, Receive, SnapConfig, SnapCounts, SnapError, SnapKey, SnapManager, SnapReceiver};
use crate::clock::Now;
use crate::engine::rocks::RocksEngine;
use crate::engine::{Cf, Engine, EngineConfig, IterOptions, WriteBatch, WriteOptions};
use crate::safe_points::SafePoints;

/// A store: an engine, and snapshots beside it.
struct Store {
    dir: tempfile::TempDir,
    engine: RocksEngine,
    snaps: SnapManager,
    safe_points: Arc<SafePoints>,
}

fn store_with(config: SnapConfig) -> Store {
    let dir = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(&dir.path().join("db"), &EngineConfig::default()).unwrap();
    let safe_points: Arc<SafePoints> = Arc::default();
    let snaps = SnapManager::open_with(&dir.path().join("snap"), config, safe_points.clone()).unwrap();
    Store { dir, engine, snaps, safe_points }
}

fn store() -> Store {
    store_with(SnapConfig::default())
}

fn key() -> SnapKey {
    SnapKey { region_id: 1, term: 2, index: 3 }
}

/// The region from "b" to "y": transactional data has encoded keys, here an upper-case letter in front.
fn ranges() -> Vec<CfRange> {
    let range = |cf, start: &'static str, end: &'static str| CfRange {
        cf,
        start: Bytes::from(start),
        end: Bytes::from(end),
    };
    vec![
        range(Cf::Raw, "b", "y"),
        range(Cf::Default, "Tb", "Ty"),
        range(Cf::Lock, "Tb", "Ty"),
        range(Cf::Write, "Tb", "Ty"),
    ]
}

impl Store {
    fn put(&self, cf: Cf, key: &str, value: &str) {
        let mut batch = WriteBatch::new();
        batch.put(cf, key.to_string(), value.to_string());
        self.engine.write(&batch, WriteOptions::default()).unwrap();
    }

    fn fill(&self) {
        for n in 0..3000 {
            self.put(Cf::Raw, &format!("c{n:05}"), &format!("raw {n}"));
        }
        self.put(Cf::Write, "Tc", "write");
        for cf in [Cf::Raw, Cf::Write] {
            self.put(cf, "Ta", "outside");
            self.put(cf, "z", "outside");
        }
    }

    fn contents(&self) -> Vec<(Cf, Bytes, Bytes)> {
        let mut found = Vec::new();
        for cf in Cf::DATA {
            let mut it = self.engine.snapshot().iter(cf, IterOptions::default()).unwrap();
            it.seek_to_first();
            while it.valid() {
                let (key, value) = (Bytes::copy_from_slice(it.key()), Bytes::copy_from_slice(it.value()));
                found.push((cf, key, value));
                it.next();
            }
            it.status().unwrap();
        }
        found
    }

    fn build(&self) -> Manifest {
        let region = metapb::Region { id: 1, ..Default::default() };
        self.snaps.build(&self.engine, &*self.engine.snapshot(), &key(), &region, &ranges()).unwrap()
    }

    fn apply(&self) -> Result<(), SnapError> {
        self.snaps.apply(&self.engine, &key(), &ranges())
    }

    fn snap_dir(&self) -> PathBuf {
        self.dir.path().join("snap")
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.snap_dir()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn receiver(to: &Store, manifest: &Manifest) -> SnapReceiver {
    match to.snaps.receive(&manifest.encode()).unwrap() {
        Receive::Into(receiver) => receiver,
        Receive::Complete(_) => panic!("nothing was sent yet"),
    }
}

/// Every byte of the snapshot, as the network carries it.
fn stream(from: &Store) -> Vec<u8> {
    let mut sender = from.snaps.send(&key()).unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = sender.next_chunk(777).unwrap() {
        assert!(chunk.len() <= 777);
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

fn transfer(from: &Store, to: &Store) {
    let mut receiver = receiver(to, &from.build());
    stream(from).chunks(1000).for_each(|chunk| receiver.write(chunk).unwrap());
    receiver.finish().unwrap();
}

fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // A new file: the old one may be linked elsewhere.
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn corrupt<T>(result: Result<T, SnapError>) -> String {
    match result.map(|_| ()) {
        Err(SnapError::Corrupt(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_replaces_its_ranges_and_nothing_else() {
    let (from, to) = (store(), store());
    from.fill();
    to.put(Cf::Raw, "d", "old, inside");
    to.put(Cf::Lock, "Td", "old, in a family the snapshot has no file of");
    to.put(Cf::Raw, "a", "mine, outside");
    transfer(&from, &to);
    assert_eq!(to.files(), ["rev_1_2_3.meta", "rev_1_2_3_raw.sst", "rev_1_2_3_write.sst"]);
    to.apply().unwrap();
    let mut expected = vec![(Cf::Write, Bytes::from("Tc"), Bytes::from("write"))];
    expected.push((Cf::Raw, Bytes::from("a"), Bytes::from("mine, outside")));
    let inside = |(cf, key, _): &(Cf, Bytes, Bytes)| *cf == Cf::Raw && key.starts_with(b"c");
    expected.extend(from.contents().into_iter().filter(inside));
    assert_eq!(to.contents(), expected);
    to.snaps.remove(Side::Received, &key()).unwrap();
    assert!(to.files().is_empty());
    assert_eq!(to.contents(), expected);
}

#[test]
fn an_interrupted_apply_is_done_again() {
    let (from, to) = (store(), store());
    from.fill();
    transfer(&from, &to);
    // As if the process had died after the first of two files was taken in.
    let path = to.snap_dir().join("rev_1_2_3_raw.sst");
    let half = to.snap_dir().join("rev_1_2_3_raw.sst.tmp");
    std::fs::hard_link(&path, &half).unwrap();
    to.engine.ingest(Cf::Raw, &half).unwrap();
    std::fs::hard_link(&path, &half).unwrap();
    let Store { dir, engine, snaps, safe_points } = to;
    drop(snaps);
    let snaps = SnapManager::open(&dir.path().join("snap"), SnapConfig::default()).unwrap();
    let to = Store { dir, engine, snaps, safe_points };
    assert_eq!(to.files(), ["rev_1_2_3.meta", "rev_1_2_3_raw.sst", "rev_1_2_3_write.sst"]);
    to.apply().unwrap();
    let once = to.contents();
    assert_eq!(once.len(), 3001);
    to.put(Cf::Raw, "d", "written after");
    // As if ingestion had failed and the process lived on. A link to the same file must not be written through.
    std::fs::hard_link(&path, &half).unwrap();
    to.apply().unwrap();
    assert_eq!(to.contents(), once);
}

#[test]
fn an_empty_region_is_a_manifest_without_files() {
    let (from, to) = (store(), store());
    to.put(Cf::Raw, "d", "old");
    transfer(&from, &to);
    assert_eq!(to.files(), ["rev_1_2_3.meta"]);
    to.apply().unwrap();
    assert!(to.contents().is_empty());
}

#[test]
fn a_stream_that_differs_from_its_manifest_leaves_nothing() {
    let (from, to) = (store(), store());
    from.fill();
    let manifest = from.build();
    let good = stream(&from);
    let mut bad = good.clone();
    bad[5000] ^= 1;
    let mut receiving = receiver(&to, &manifest);
    assert!(corrupt(receiving.write(&bad)).contains("checksum"));
    drop(receiving);
    let mut receiving = receiver(&to, &manifest);
    receiving.write(&good[..good.len() - 1]).unwrap();
    assert!(corrupt(receiving.finish()).contains("fewer bytes"));
    let mut receiving = receiver(&to, &manifest);
    receiving.write(&good).unwrap();
    assert!(corrupt(receiving.write(b"x")).contains("more bytes"));
    drop(receiving);
    assert!(to.files().is_empty());
    assert_eq!(to.snaps.counts(), SnapCounts::default());
    assert!(matches!(to.apply(), Err(SnapError::Missing(_))));
}

#[test]
fn files_that_rot_are_neither_sent_nor_put_in_place() {
    let (from, to) = (store(), store());
    from.fill();
    transfer(&from, &to);
    to.put(Cf::Raw, "d", "old");
    let before = to.contents();
    flip_a_bit(&to.snap_dir().join("rev_1_2_3_raw.sst"));
    assert!(corrupt(to.apply()).contains("checksum"));
    flip_a_bit(&to.snap_dir().join("rev_1_2_3.meta"));
    corrupt(to.apply());
    assert_eq!(to.contents(), before);

    flip_a_bit(&from.snap_dir().join("gen_1_2_3_raw.sst"));
    let send = || {
        let mut sender = from.snaps.send(&key()).unwrap();
        std::iter::from_fn(|| sender.next_chunk(4096).transpose()).collect::<Result<Vec<_>, _>>()
    };
    assert!(corrupt(send()).contains("checksum"));
    let path = from.snap_dir().join("gen_1_2_3_raw.sst");
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap();
    assert!(corrupt(send()).contains("cut off"));
    // Building again mends it, and what arrives replaces what rotted.
    transfer(&from, &to);
    to.apply().unwrap();
    assert_eq!(to.contents().len(), 3001);
}

#[test]
fn a_snapshot_that_arrived_before_is_not_received_again() {
    let (from, to) = (store(), store());
    from.fill();
    transfer(&from, &to);
    let manifest = from.build();
    assert!(matches!(to.snaps.receive(&manifest.encode()), Ok(Receive::Complete(have)) if have == manifest));
}

#[test]
fn quotas_and_holds_are_kept() {
    let config =
        SnapConfig { sending_max: 2, receiving_max: 1, snapshot_bytes_max: 100_000, ..SnapConfig::default() };
    let (from, to) = (store_with(config.clone()), store_with(config));
    from.fill();
    let mut manifest = from.build();
    let senders = [from.snaps.send(&key()).unwrap(), from.snaps.send(&key()).unwrap()];
    assert_eq!(from.snaps.counts(), SnapCounts { sending: 2, ..SnapCounts::default() });
    assert!(matches!(from.snaps.send(&key()), Err(SnapError::Busy { limit: 2, .. })));
    assert!(matches!(from.snaps.remove(Side::Generated, &key()), Err(SnapError::InUse(_))));
    drop(senders);
    assert_eq!(from.snaps.counts(), SnapCounts::default());

    let receiving = receiver(&to, &manifest);
    assert!(matches!(to.snaps.receive(&manifest.encode()), Err(SnapError::InUse(_))));
    assert!(matches!(to.apply(), Err(SnapError::InUse(_))));
    (manifest.key.region_id, manifest.region.id) = (9, 9);
    assert!(matches!(to.snaps.receive(&manifest.encode()), Err(SnapError::Busy { limit: 1, .. })));
    drop(receiving);
    manifest.files[0].bytes = 100_001;
    assert!(matches!(to.snaps.receive(&manifest.encode()), Err(SnapError::TooLarge { .. })));
}

#[test]
fn a_file_of_a_family_the_region_has_not_is_refused() {
    let (from, to) = (store(), store());
    from.fill();
    transfer(&from, &to);
    let only_raw = &ranges()[..1];
    assert!(corrupt(to.snaps.apply(&to.engine, &key(), only_raw)).contains("a file of write"));
}

#[test]
fn old_unused_snapshots_are_swept() {
    let (from, to) = (store(), store());
    from.fill();
    transfer(&from, &to);
    std::fs::write(to.snap_dir().join("unrelated.txt"), "mine").unwrap();
    let path = to.snap_dir().join(snap::meta_name(Side::Received, &key()));
    let modified = path.metadata().unwrap().modified().unwrap();
    let now = modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let sweep = |now, keep| to.snaps.sweep(now, 3600, |_, _| keep).unwrap();
    assert_eq!(sweep(now + 3000, false), 0);
    assert_eq!(sweep(now + 4000, true), 0);
    assert!(to.snaps.disk_bytes().unwrap() > 1000);
    assert_eq!(sweep(now + 4000, false), 1);
    assert_eq!(to.files(), ["unrelated.txt"]);
    let sender = from.snaps.send(&key()).unwrap();
    assert_eq!(from.snaps.sweep(now + 4000, 3600, |_, _| false).unwrap(), 0);
    drop(sender);
    assert_eq!(from.snaps.sweep(now + 4000, 3600, |_, _| false).unwrap(), 1);
}

#[test]
fn the_rate_is_shared_by_all_transfers() {
    let config = SnapConfig { bytes_per_second: 1000, ..SnapConfig::default() };
    let store = store_with(config);
    let now = Now(1_000_000_000);
    assert_eq!(store.snaps.throttle(100, now), Duration::ZERO);
    assert_eq!(store.snaps.clone().throttle(2000, now), Duration::from_secs(2));
}

#[test]
fn a_receiver_refuses_to_read_what_the_data_may_lack_before_it_takes_the_data() {
    let (from, to) = (store(), store());
    from.fill();
    from.safe_points.raise(90, 70);
    transfer(&from, &to);
    assert_eq!(to.safe_points.txn(), 0, "as long as it has its own data");
    to.apply().unwrap();
    assert_eq!((to.safe_points.txn(), to.safe_points.gc()), (70, 70));
    assert!(to.safe_points.check(69).is_err());
}
