//! What a store does off its raft thread, in steps, so that a crash can come between any two: building, sending and
//! applying snapshots, compacting logs, removing destroyed peers.
//!
//! Each step is durable before the next begins, in the order that the core's tasks demand.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kvproto::{key, metapb};
use kvserver::engine::log_store::RegionLogWrite;
use kvserver::engine::mem::{MemEngine, SortedContent};
use kvserver::engine::{Cf, Engine, EngineError, IterOptions, Snapshot, WriteBatch};
use kvserver::raftstore::message::input::{BuiltSnapshot, MembershipAnswer, SplitCheck};
use kvserver::raftstore::message::{Input, PeerMessage, Task};
use kvserver::raftstore::meta::region_view::RegionMeta;
use kvserver::raftstore::runner::ranges;
use kvserver::raftstore::runner::region_steps::{
    RegionSteps, RemovalJob, RemovalStep, SnapFiles, SnapshotJob, SnapshotStep,
};
use kvserver::raftstore::snap::{CfRange, SnapError, SnapKey};
use kvserver::raftstore::split_keys::{HalfWalk, Record, RecordKind, SizeWalk};
use parking_lot::Mutex;

use super::event::{Event, Life, SnapshotInTransit};
use super::plan::MS;
use super::store::Store;
use super::world::World;

/// A snapshot's files, by column family.
pub type SnapContent = Vec<(Cf, SortedContent)>;

/// Snapshots by their names.
pub type Snapshots = Arc<Mutex<BTreeMap<SnapKey, Arc<SnapContent>>>>;

/// The snapshot files of a store.
#[derive(Clone, Default)]
pub struct MemFiles {
    /// Received ones, complete and on the disk.
    pub received: Snapshots,
    /// Built ones, which may be sent.
    pub built: Snapshots,
}

/// A store's snapshot files, with the engine that takes them in.
struct FilesOf {
    files: MemFiles,
    engine: MemEngine,
}

impl SnapFiles for FilesOf {
    fn build(
        &self,
        _: &dyn Engine,
        snapshot: &dyn Snapshot,
        key: &SnapKey,
        _: &metapb::Region,
        ranges: &[CfRange],
    ) -> Result<Bytes, SnapError> {
        let content = read_content(snapshot, ranges)?;
        let manifest = Bytes::from(format!("{} files", content.len()));
        self.files.built.lock().insert(key.clone(), Arc::new(content));
        Ok(manifest)
    }

    fn apply(&self, engine: &dyn Engine, key: &SnapKey, ranges: &[CfRange]) -> Result<(), SnapError> {
        let content = self.files.received.lock().get(key).cloned();
        let content = content.ok_or_else(|| SnapError::Missing(key.clone()))?;
        for range in ranges {
            engine.clear_range(range.cf, &range.start, &range.end)?;
        }
        let path = Path::new("received.sst");
        for (cf, file) in content.iter() {
            self.engine.put_sorted_file(path, file.clone());
            engine.ingest(*cf, path)?;
        }
        Ok(())
    }

    fn remove_received(&self, key: &SnapKey) {
        self.files.received.lock().remove(key);
    }
}

/// Work under way.
#[derive(Debug)]
pub enum Background {
    Build { region_id: u64 },
    Built { region_id: u64, result: Result<BuiltSnapshot, String> },
    Apply { step: SnapshotStep, job: Box<ApplyJob> },
    CheckSplit { region: Arc<RegionMeta>, half: bool },
    Compact { region_id: u64, from: u64, to: u64 },
    Remove { step: RemovalStep, job: Box<RemoveJob> },
}

/// A snapshot being put in place.
#[derive(Debug)]
pub struct ApplyJob {
    pub key: SnapKey,
    pub clear: Arc<RegionMeta>,
    pub intent: WriteBatch,
    pub log: RegionLogWrite,
    pub done: WriteBatch,
}

/// What is left of a peer being removed.
#[derive(Debug)]
pub struct RemoveJob {
    pub region_id: u64,
    pub tombstone: WriteBatch,
    pub clear: Option<Arc<RegionMeta>>,
    pub done: WriteBatch,
}

impl World {
    /// Takes a task of the core in.
    pub fn begin_task(&mut self, store: usize, task: Task) {
        match task {
            Task::BuildSnapshot { region_id, .. } => self.enqueue(store, Background::Build { region_id }),
            Task::SendSnapshot { key, message } => self.send_snapshot(store, key, message),
            Task::ApplySnapshot { key, clear, intent, log, done, .. } => {
                let job = Box::new(ApplyJob { key, clear, intent, log, done });
                self.enqueue(store, Background::Apply { step: SnapshotStep::Intent, job });
            }
            Task::CompactLog { region_id, from, to } => {
                self.enqueue(store, Background::Compact { region_id, from, to });
            }
            Task::Destroy { region_id, tombstone, clear, done } => {
                let job = Box::new(RemoveJob { region_id, tombstone, clear, done });
                self.enqueue(store, Background::Remove { step: RemovalStep::Tombstone, job });
            }
            Task::CheckSplit { region, half } => self.enqueue(store, Background::CheckSplit { region, half }),
            Task::AskSplit { region, count } => self.ask_split(store, region.region.clone(), count),
            Task::ReportSplit { regions } => self.report_split(store, regions),
            Task::Report(report) => self.send_report(store, *report),
            Task::AskMembership { region_id, peer_id } => {
                let lost = self.network.loses_scheduler_message(store);
                let answer = match self.placement.region(region_id).filter(|_| !lost) {
                    Some(region) => MembershipAnswer::Region(region.clone()),
                    None => MembershipAnswer::Unknown,
                };
                let life = self.stores[store].life();
                let input = Box::new(Input::Membership { region_id, peer_id, answer });
                let at = self.now_ns + self.network.latency() * 2;
                self.queue.push(at, Event::Input { life, input });
            }
        }
    }

    fn enqueue(&mut self, store: usize, work: Background) {
        let life = self.stores[store].life();
        self.next_task += 1;
        let task = self.next_task;
        if let Some(process) = &mut self.stores[store].process {
            process.tasks.insert(task, work);
        }
        let at = self.now_ns + self.write_latency(self.plan.disk.task_ns);
        self.queue.push(at, Event::Task { life, task });
    }

    /// A background task does its step.
    pub fn on_task(&mut self, life: Life, task: u64) {
        let Some(process) = &mut self.stores[life.store].process else { return };
        let Some(work) = process.tasks.remove(&task) else { return };
        match self.work_step(life.store, work) {
            Ok(Some(next)) => self.enqueue(life.store, next),
            Ok(None) => {}
            Err(error) => self.violate("driver", format!("store {}: {error}", life.store)),
        }
    }

    fn work_step(&mut self, store: usize, work: Background) -> Result<Option<Background>, SnapError> {
        let steps = self.stores[store].steps();
        Ok(match work {
            Background::Build { region_id } => {
                let result = steps.build_snapshot(region_id).map_err(|e| e.to_string());
                Some(Background::Built { region_id, result })
            }
            Background::Built { region_id, result } => {
                self.put_in(store, Input::SnapshotBuilt { region_id, result });
                None
            }
            Background::Apply { step, job } => {
                let ApplyJob { key, clear, intent, log, done } = &*job;
                match steps.snapshot_step(&SnapshotJob { key, clear, intent, log, done }, step)? {
                    Some(step) => return Ok(Some(Background::Apply { step, job })),
                    None => self.snapshot_in_place(store, job.key)?,
                }
                None
            }
            Background::CheckSplit { region, half } => {
                let check = self.look_for_split(&*steps.engine, &region, half)?;
                let (region_id, version) = (region.region.id, region.version());
                self.put_in(store, Input::SplitChecked { region_id, version, result: Ok(check) });
                None
            }
            Background::Compact { region_id, from, to } => {
                steps.engine.sync()?;
                steps.log.compact(region_id, from, to)?;
                self.put_in(store, Input::LogCompacted { region_id, first_index: to });
                None
            }
            Background::Remove { step, job } => {
                let RemoveJob { region_id, tombstone, clear, done } = &*job;
                let (region_id, clear) = (*region_id, clear.as_deref());
                match steps.removal_step(&RemovalJob { region_id, tombstone, clear, done }, step)? {
                    Some(step) => {
                        self.stores[store].snapshot_index.remove(&region_id);
                        return Ok(Some(Background::Remove { step, job }));
                    }
                    None => self.put_in(store, Input::Destroyed { region_id }),
                }
                None
            }
        })
    }

    /// A snapshot's data is there: its files go, and what it promises is durable.
    fn snapshot_in_place(&mut self, store: usize, key: SnapKey) -> Result<(), EngineError> {
        self.stores[store].files.received.lock().remove(&key);
        self.stores[store].snapshot_index.insert(key.region_id, key.index);
        self.snapshots_applied += 1;
        self.check_state(store, key.region_id)?;
        self.put_in(store, Input::SnapshotApplied { region_id: key.region_id, key });
        Ok(())
    }

    /// Measures a region, and finds where to cut it when it is too large or its middle is asked for.
    fn look_for_split(
        &self,
        engine: &dyn Engine,
        region: &RegionMeta,
        half: bool,
    ) -> Result<SplitCheck, EngineError> {
        let content = read_content(&*engine.snapshot(), &ranges::of_region(region))?;
        let keys = user_keys(&content)?;
        let records = content.iter().flat_map(|(cf, file)| file.iter().map(|pair| (*cf, pair)));
        let mut records: Vec<Record<'_>> = records
            .zip(&keys)
            .map(|((cf, (key, value)), user_key)| {
                let kind = match cf {
                    Cf::Raw => RecordKind::Raw,
                    Cf::Write => RecordKind::Commit,
                    Cf::Default | Cf::Lock | Cf::Meta => RecordKind::Other,
                };
                Record { user_key, bytes: (key.len() + value.len()) as u64, kind }
            })
            .collect();
        records.sort_by_key(|record| record.user_key);
        if half {
            let mut walk = HalfWalk::new(region);
            records.iter().for_each(|record| walk.add(record));
            return Ok(walk.finish());
        }
        let mut walk = SizeWalk::new(region, &self.plan.split);
        let _all = records.iter().all(|record| walk.add(record));
        let mut found = walk.finish();
        let room = self.plan.regions_max.saturating_sub(self.regions().len());
        found.split_keys.truncate(room);
        Ok(found)
    }

    fn send_snapshot(&mut self, store: usize, key: SnapKey, message: PeerMessage) {
        let from = self.stores[store].life();
        let to = message.to.store_id as usize - 1;
        let content = self.stores[store].files.built.lock().get(&key).cloned();
        let takes = self.write_latency(self.plan.disk.task_ns) + self.network.latency();
        match content {
            Some(content) if !self.network.is_cut(store, to) => {
                let transit = SnapshotInTransit { from, to, key, message, content };
                self.queue.push(self.now_ns + takes, Event::SnapshotArrives(Box::new(transit)));
            }
            _ => self.tell_sent(from, &message, false, takes),
        }
    }

    fn tell_sent(&mut self, from: Life, message: &PeerMessage, ok: bool, after_ns: u64) {
        let input = Input::SnapshotSent { region_id: message.region_id, to_peer: message.to.id, ok };
        self.queue.push(self.now_ns + after_ns, Event::Input { life: from, input: Box::new(input) });
    }

    /// A snapshot has travelled.
    pub fn on_snapshot_arrives(&mut self, transit: SnapshotInTransit) {
        let SnapshotInTransit { from, to, key, message, content } = transit;
        let broken = self.network.breaks_stream() || self.network.is_cut(from.store, to);
        let lost = broken || !self.stores[to].is_up();
        let late = self.network.latency() + MS;
        self.tell_sent(from, &message, !lost, late);
        if !lost {
            self.stores[to].files.received.lock().insert(key, content);
            self.put_in(to, Input::Raft(message));
        }
    }
}

impl Store {
    /// The steps of slow work, over this store.
    pub fn steps(&self) -> RegionSteps {
        let files = FilesOf { files: self.files.clone(), engine: self.engine.clone() };
        let engine: Arc<dyn Engine> = Arc::new(self.engine.clone());
        RegionSteps { engine, log: self.log.clone(), files: Arc::new(files), form: self.form }
    }
}

/// The user keys of all records, in their order.
fn user_keys(content: &SnapContent) -> Result<Vec<Vec<u8>>, EngineError> {
    let keys = content.iter().flat_map(|(cf, file)| file.iter().map(move |(key, _)| (*cf, key)));
    keys.map(|(cf, stored)| {
        let mut user_key = Vec::new();
        match cf {
            Cf::Raw => user_key.extend_from_slice(stored),
            // A timestamp may follow.
            _ => drop(
                key::decode_into(stored, &mut user_key).map_err(|e| EngineError::Corrupt(e.to_string()))?,
            ),
        }
        Ok(user_key)
    })
    .collect()
}

fn read_content(snapshot: &dyn Snapshot, ranges: &[CfRange]) -> Result<SnapContent, EngineError> {
    let mut content = SnapContent::new();
    for range in ranges {
        let options =
            IterOptions { lower: range.start.clone(), upper: range.end.clone(), ..Default::default() };
        let mut iter = snapshot.iter(range.cf, options)?;
        let mut file = Vec::new();
        iter.seek_to_first();
        while iter.valid() {
            file.push((Bytes::copy_from_slice(iter.key()), Bytes::copy_from_slice(iter.value())));
            iter.next();
        }
        iter.status()?;
        if !file.is_empty() {
            content.push((range.cf, Arc::new(file)));
        }
    }
    Ok(content)
}
