//! What a store does off its raft thread, in steps, so that a crash can come between any two: building, sending and
//! applying snapshots, compacting logs, removing destroyed peers.
//!
//! Each step is durable before the next begins, in the order that the core's tasks demand.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kvserver::engine::log_store::{LogStore, LogWrite, RegionLogWrite};
use kvserver::engine::mem::SortedContent;
use kvserver::engine::{Cf, Engine, EngineError, IterOptions, Snapshot, WriteBatch, WriteOptions};
use kvserver::raftstore::message::input::{BuiltSnapshot, MembershipAnswer, SplitCheck};
use kvserver::raftstore::message::{Input, PeerMessage, Task};
use kvserver::raftstore::meta::keys;
use kvserver::raftstore::meta::region_view::RegionMeta;
use kvserver::raftstore::meta::values::{self, ApplyState, PeerState, RegionState};
use kvserver::raftstore::snap::SnapKey;
use kvserver::raftstore::split_keys::{HalfWalk, Record, RecordKind, SizeWalk};

use super::event::{Event, Life, SnapshotInTransit};
use super::plan::MS;
use super::world::World;

/// A snapshot's files, by column family.
#[derive(Debug, Default)]
pub struct SnapContent(pub Vec<(Cf, SortedContent)>);

/// Work under way.
#[derive(Debug)]
pub enum Background {
    Build { region_id: u64 },
    Built { region_id: u64, result: Result<BuiltSnapshot, String> },
    ApplyIntent { job: Box<ApplyJob> },
    ApplyLog { job: Box<ApplyJob> },
    ApplyData { job: Box<ApplyJob> },
    ApplyDone { job: Box<ApplyJob> },
    CheckSplit { region: Arc<RegionMeta>, half: bool },
    Compact { region_id: u64, from: u64, to: u64 },
    Tombstone { region_id: u64, tombstone: WriteBatch, clear: Option<Arc<RegionMeta>>, done: WriteBatch },
    RemoveLog { region_id: u64, clear: Option<Arc<RegionMeta>>, done: WriteBatch },
    RemoveData { region_id: u64, clear: Option<Arc<RegionMeta>>, done: WriteBatch },
    Removed { region_id: u64, done: WriteBatch },
}

/// A snapshot being put in place.
#[derive(Debug)]
pub struct ApplyJob {
    pub key: SnapKey,
    /// What is cleared first.
    pub clear: Arc<RegionMeta>,
    pub intent: WriteBatch,
    pub log: RegionLogWrite,
    pub done: WriteBatch,
}

/// A write that is on the disk when it returns.
pub const SYNC: WriteOptions = WriteOptions { sync: true, no_slowdown: false };

impl World {
    /// Takes a task of the core in.
    pub fn begin_task(&mut self, store: usize, task: Task) {
        match task {
            Task::BuildSnapshot { region_id, .. } => self.enqueue(store, Background::Build { region_id }),
            Task::SendSnapshot { key, message } => self.send_snapshot(store, key, message),
            Task::ApplySnapshot { key, clear, intent, log, done, .. } => {
                let job = Box::new(ApplyJob { key, clear, intent, log, done });
                self.enqueue(store, Background::ApplyIntent { job });
            }
            Task::CompactLog { region_id, from, to } => {
                self.enqueue(store, Background::Compact { region_id, from, to });
            }
            Task::Destroy { region_id, tombstone, clear, done } => {
                self.enqueue(store, Background::Tombstone { region_id, tombstone, clear, done });
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

    fn work_step(&mut self, store: usize, work: Background) -> Result<Option<Background>, EngineError> {
        let (engine, log) = (self.stores[store].engine.clone(), self.stores[store].log.clone());
        Ok(match work {
            Background::Build { region_id } => {
                let result = self.build(store, region_id)?;
                Some(Background::Built { region_id, result })
            }
            Background::Built { region_id, result } => {
                self.put_in(store, Input::SnapshotBuilt { region_id, result });
                None
            }
            Background::ApplyIntent { job } => {
                engine.write(&job.intent, SYNC)?;
                Some(Background::ApplyLog { job })
            }
            Background::ApplyLog { job } => {
                log.append(&LogWrite { regions: vec![job.log.clone()] }, true)?;
                Some(Background::ApplyData { job })
            }
            Background::ApplyData { job } => {
                let content = self.stores[store].received.get(&job.key).cloned();
                let Some(content) = content else {
                    return Err(EngineError::Io(format!("snapshot {} has no files", job.key)));
                };
                replace_data(&engine, &job.clear, &content)?;
                Some(Background::ApplyDone { job })
            }
            Background::ApplyDone { job } => {
                engine.write(&job.done, SYNC)?;
                self.snapshot_in_place(store, &job.key)?;
                let input = Input::SnapshotApplied { region_id: job.key.region_id, key: job.key };
                self.put_in(store, input);
                None
            }
            Background::CheckSplit { region, half } => {
                let check = self.look_for_split(&engine, &region, half)?;
                let (region_id, version) = (region.region.id, region.version());
                self.put_in(store, Input::SplitChecked { region_id, version, result: Ok(check) });
                None
            }
            Background::Compact { region_id, from, to } => {
                engine.sync()?;
                log.compact(region_id, from, to)?;
                self.put_in(store, Input::LogCompacted { region_id, first_index: to });
                None
            }
            work => self.remove_step(store, work)?,
        })
    }

    fn remove_step(&mut self, store: usize, work: Background) -> Result<Option<Background>, EngineError> {
        let (engine, log) = (self.stores[store].engine.clone(), self.stores[store].log.clone());
        Ok(match work {
            Background::Tombstone { region_id, tombstone, clear, done } => {
                engine.write(&tombstone, SYNC)?;
                Some(Background::RemoveLog { region_id, clear, done })
            }
            Background::RemoveLog { region_id, clear, done } => {
                log.remove(region_id)?;
                self.stores[store].snapshot_index.remove(&region_id);
                Some(Background::RemoveData { region_id, clear, done })
            }
            Background::RemoveData { region_id, clear, done } => {
                if let Some(meta) = clear {
                    clear_data(&engine, &meta)?;
                }
                Some(Background::Removed { region_id, done })
            }
            Background::Removed { region_id, done } => {
                engine.write(&done, SYNC)?;
                self.put_in(store, Input::Destroyed { region_id });
                None
            }
            other => return Err(EngineError::Io(format!("not a removal: {other:?}"))),
        })
    }

    /// The last step of a snapshot is done: its files go, and what it promises is durable.
    pub fn snapshot_in_place(&mut self, store: usize, key: &SnapKey) -> Result<(), EngineError> {
        self.stores[store].received.remove(key);
        self.stores[store].snapshot_index.insert(key.region_id, key.index);
        self.snapshots_applied += 1;
        self.check_state(store, key.region_id)
    }

    /// Measures a region, and finds where to cut it when it is too large or its middle is asked for.
    fn look_for_split(
        &self,
        engine: &dyn Engine,
        region: &RegionMeta,
        half: bool,
    ) -> Result<SplitCheck, EngineError> {
        let content = read_content(&*engine.snapshot(), region)?;
        let raw = content.0.iter().filter(|(cf, _)| *cf == Cf::Raw).flat_map(|(_, file)| file.iter());
        let records: Vec<Record<'_>> = raw
            .map(|(key, value)| {
                let bytes = (key.len() + value.len()) as u64;
                Record { user_key: key, bytes, kind: RecordKind::Raw }
            })
            .collect();
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

    /// Builds a snapshot from what the engine holds now.
    fn build(&mut self, store: usize, region_id: u64) -> Result<Result<BuiltSnapshot, String>, EngineError> {
        let snapshot = self.stores[store].engine.snapshot();
        let Some((state, apply)) = read_states(&*snapshot, region_id)? else {
            return Ok(Err("the region is gone".into()));
        };
        let Some(region) = state.region.clone().filter(|_| state.state() == PeerState::Normal) else {
            return Ok(Err("the region is not in order".into()));
        };
        let meta = self.stores[store].region_on_disk(region_id)?.map(|(meta, _)| meta);
        let Some(meta) = meta else { return Ok(Err("the region is gone".into())) };
        let content = read_content(&*snapshot, &meta)?;
        let key = SnapKey { region_id, term: apply.applied_term, index: apply.applied_index };
        let manifest = Bytes::from(format!("{} files", content.0.len()));
        if let Some(process) = &mut self.stores[store].process {
            process.built.insert(key.clone(), Arc::new(content));
        }
        Ok(Ok(BuiltSnapshot { key, region, manifest }))
    }

    fn send_snapshot(&mut self, store: usize, key: SnapKey, message: PeerMessage) {
        let from = self.stores[store].life();
        let to = message.to.store_id as usize - 1;
        let content = self.stores[store].process.as_ref().and_then(|p| p.built.get(&key).cloned());
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
            self.stores[to].received.insert(key, content);
            self.put_in(to, Input::Raft(message));
        }
    }
}

/// The records of a region in a snapshot of the engine.
fn read_states(
    snapshot: &dyn Snapshot,
    region_id: u64,
) -> Result<Option<(RegionState, ApplyState)>, EngineError> {
    let read = |key: &[u8]| snapshot.get(Cf::Meta, key, Default::default());
    let (state, apply) = (read(&keys::region_state(region_id))?, read(&keys::apply_state(region_id))?);
    let (Some(state), Some(apply)) = (state, apply) else { return Ok(None) };
    Ok(Some((values::decode(&state, "region state")?, values::decode(&apply, "apply state")?)))
}

fn read_content(snapshot: &dyn Snapshot, meta: &RegionMeta) -> Result<SnapContent, EngineError> {
    let mut content = SnapContent::default();
    for cf in Cf::DATA {
        let options =
            IterOptions { lower: meta.start.clone(), upper: meta.end.clone(), ..Default::default() };
        let mut iter = snapshot.iter(cf, options)?;
        let mut file = Vec::new();
        iter.seek_to_first();
        while iter.valid() {
            file.push((Bytes::copy_from_slice(iter.key()), Bytes::copy_from_slice(iter.value())));
            iter.next();
        }
        iter.status()?;
        if !file.is_empty() {
            content.0.push((cf, Arc::new(file)));
        }
    }
    Ok(content)
}

/// Puts a snapshot's data in the place of whatever is in the range.
pub fn replace_data(
    engine: &kvserver::engine::mem::MemEngine,
    meta: &RegionMeta,
    content: &SnapContent,
) -> Result<(), EngineError> {
    clear_data(engine, meta)?;
    let path = Path::new("received.sst");
    for (cf, file) in &content.0 {
        engine.put_sorted_file(path, file.clone());
        engine.ingest(*cf, path)?;
    }
    Ok(())
}

/// Removes the data of a range.
pub fn clear_data(engine: &dyn Engine, meta: &RegionMeta) -> Result<(), EngineError> {
    Cf::DATA.into_iter().try_for_each(|cf| engine.clear_range(cf, &meta.start, &meta.end))
}
