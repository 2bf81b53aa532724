//! A few stores in one thread: real shards and appliers, memory engines, a network that is a list of messages.
//!
//! The world does what a driver does, in the order the contract asks for. Time moves only by ticks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use kvproto::key::BoundaryForm;
use kvproto::kvrpcpb::ApiVersion;
use kvproto::metapb;
use kvserver::clock::Now;
use kvserver::engine::log_store::{LogStore, LogWrite, MemLogStore};
use kvserver::engine::mem::MemEngine;
use kvserver::engine::{Cf, Engine, IterOptions, ReadTier, WriteBatch, WriteOptions};
use kvserver::error::RegionError;
use kvserver::raftstore::apply::Applier;
use kvserver::raftstore::bootstrap::{first_region, load_regions, region_records};
use kvserver::raftstore::message::input::{
    BuiltSnapshot, ChangePeerKind, Propose, ReadRequest, SplitIds, SplitRequest,
};
use kvserver::raftstore::message::peer_message::Payload;
use kvserver::raftstore::message::{
    Callback, Input, LogBatch, Output, PeerMessage, RegionCommand, Task, WriteSet,
};
use kvserver::raftstore::meta::keys;
use kvserver::raftstore::meta::region_view::ViewRegistry;
use kvserver::raftstore::meta::values::{ApplyState, RegionState, load};
use kvserver::raftstore::raftstore::ShardOptions;
use kvserver::raftstore::snap::SnapKey;
use kvserver::raftstore::{RaftConfig, Shard};
use kvserver::storage::RegionContext;
use parking_lot::Mutex;

const REGION: u64 = 1;
const SYNC: WriteOptions = WriteOptions { sync: true, no_slowdown: false };

type Lines = Arc<Mutex<Vec<String>>>;
type Data = Vec<(Bytes, Bytes)>;

struct Store {
    engine: Arc<MemEngine>,
    log: Arc<MemLogStore>,
    views: Arc<ViewRegistry>,
    running: Option<(Shard, Applier)>,
    out: Output,
    /// `Some` while log writes wait for `disk`.
    held: Option<Vec<LogBatch>>,
}

#[derive(Default)]
pub struct World {
    stores: BTreeMap<u64, Store>,
    config: Arc<RaftConfig>,
    now: Now,
    network: VecDeque<PeerMessage>,
    cut: BTreeSet<(u64, u64)>,
    snapshots: BTreeMap<SnapKey, Data>,
    lines: Lines,
    /// The region that commands are about, and the highest one there is.
    region: u64,
    last_region: u64,
}

impl World {
    pub fn new(peers: u64, stores: u64, log_gc_threshold: u64, log_gc_count_limit: u64) -> World {
        let default = RaftConfig::default();
        let or = |n: u64, default| if n == 0 { default } else { n };
        let config = RaftConfig {
            api: ApiVersion::V1,
            log_gc_ticks: 4,
            log_gc_threshold: or(log_gc_threshold, default.log_gc_threshold),
            log_gc_count_limit: or(log_gc_count_limit, default.log_gc_count_limit),
            stale_check_ticks: 40,
            ..default
        };
        let mut world = World { config: Arc::new(config), now: Now(1_000_000_000), ..Default::default() };
        (world.region, world.last_region) = (REGION, REGION);
        let mut region = first_region(REGION, 11, 1);
        region.peers = (1..=peers).map(|s| peer(10 + s, s)).collect();
        for id in 1..=stores {
            let (engine, log) = (Arc::new(MemEngine::default()), Arc::new(MemLogStore::default()));
            if id <= peers {
                let (batch, write) = region_records(&region, &peer(10 + id, id));
                engine.write(&batch, SYNC).unwrap();
                log.append(&write, true).unwrap();
            }
            let (views, out) = (Arc::default(), Output::default());
            world.stores.insert(id, Store { engine, log, views, running: None, out, held: None });
            world.start(id);
        }
        // The quiet time after the start passes.
        world.now = world.now.plus_ms(1_000);
        world.lines.lock().clear();
        world
    }

    pub fn say(&self, line: String) {
        self.lines.lock().push(line);
    }

    pub fn said(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock())
    }

    pub fn start(&mut self, id: u64) {
        let store = self.stores.get_mut(&id).unwrap();
        store.views = Arc::default();
        store.out = Output::default();
        let found = load_regions(&*store.engine, BoundaryForm::Plain).unwrap();
        let options = ShardOptions {
            config: self.config.clone(),
            store_id: id,
            engine: store.engine.clone(),
            log: store.log.clone(),
            views: store.views.clone(),
        };
        let shard = Shard::load(options, found, self.now, &mut store.out).unwrap();
        store.running = Some((shard, Applier::new(BoundaryForm::Plain)));
        self.carry_out(id);
    }

    pub fn crash(&mut self, id: u64) {
        let store = self.stores.get_mut(&id).unwrap();
        store.running = None;
        store.out = Output::default();
        if let Some(held) = &mut store.held {
            held.clear();
        }
        store.engine.crash(0);
        store.log.crash(0);
    }

    pub fn step(&mut self, id: u64, input: Input) {
        let Some(store) = self.stores.get_mut(&id) else { return };
        if let Some((shard, _)) = &mut store.running {
            shard.step(self.now, input, &mut store.out);
            self.carry_out(id);
        }
    }

    /// Does what a driver does with the effects of a turn.
    fn carry_out(&mut self, id: u64) {
        loop {
            let store = self.stores.get_mut(&id).unwrap();
            let Some((shard, applier)) = &mut store.running else { return };
            shard.collect(&mut store.out);
            for reply in store.out.replies.drain(..) {
                reply.done.call(reply.result);
            }
            self.network.extend(store.out.early.drain(..));
            let mut again = false;
            if !store.out.log.is_empty() {
                let batch = std::mem::take(&mut store.out.log);
                match &mut store.held {
                    Some(held) => held.push(batch),
                    None => {
                        let durable = store.log.append(batch.write(), batch.must_sync()).unwrap();
                        let (writes, after) = batch.persisted(durable);
                        self.network.extend(after);
                        shard.step(self.now, Input::Persisted(writes), &mut store.out);
                        again = true;
                    }
                }
            }
            let mut batch = WriteBatch::new();
            for task in std::mem::take(&mut store.out.apply) {
                if let Some(applied) = applier.apply(task, &mut batch) {
                    store
                        .engine
                        .write(&batch, WriteOptions { sync: applied.must_sync(), no_slowdown: true })
                        .unwrap();
                    batch.clear();
                    shard.step(self.now, Input::Applied(applied), &mut store.out);
                    again = true;
                }
            }
            let tasks = std::mem::take(&mut store.out.tasks);
            again |= !tasks.is_empty();
            tasks.into_iter().for_each(|task| self.task(id, task));
            if !again {
                return;
            }
        }
    }

    fn task(&mut self, id: u64, task: Task) {
        let store = self.stores.get_mut(&id).unwrap();
        let completion = match task {
            Task::BuildSnapshot { region_id, .. } => {
                let built = build(&store.engine, region_id);
                self.snapshots.insert(built.key.clone(), all(&store.engine, &built.region));
                self.say(format!("store {id} builds snapshot {}{}", built.key.index, of(region_id)));
                Input::SnapshotBuilt { region_id, result: Ok(built) }
            }
            Task::SendSnapshot { message, .. } => {
                let (region_id, to_peer) = (message.region_id, message.to.id);
                self.network.push_back(message);
                Input::SnapshotSent { region_id, to_peer, ok: true }
            }
            Task::ApplySnapshot { key, clear, intent, log, done, .. } => {
                store.engine.write(&intent, SYNC).unwrap();
                store.log.append(&LogWrite { regions: vec![log] }, true).unwrap();
                store.engine.clear_range(Cf::Raw, &clear.start, &clear.end).unwrap();
                let mut batch = WriteBatch::new();
                self.snapshots[&key].iter().for_each(|(k, v)| batch.put(Cf::Raw, k.clone(), v.clone()));
                store.engine.write(&batch, SYNC).unwrap();
                store.engine.write(&done, SYNC).unwrap();
                self.say(format!("store {id} applies snapshot {}{}", key.index, of(key.region_id)));
                Input::SnapshotApplied { region_id: key.region_id, key }
            }
            Task::CompactLog { region_id, from, to } => {
                store.engine.sync().unwrap();
                store.log.compact(region_id, from, to).unwrap();
                return;
            }
            Task::Destroy { region_id, tombstone, clear, done } => {
                store.engine.write(&tombstone, SYNC).unwrap();
                store.log.remove(region_id).unwrap();
                if let Some(clear) = clear {
                    store.engine.clear_range(Cf::Raw, &clear.start, &clear.end).unwrap();
                }
                store.engine.write(&done, SYNC).unwrap();
                self.say(format!("store {id} destroys its peer{}", of(region_id)));
                Input::Destroyed { region_id }
            }
            Task::Report(report) => {
                let ids = |peers: &[metapb::Peer]| peers.iter().map(|p| p.id).collect::<Vec<_>>();
                let (peers, pending) = (ids(&report.region.peers), ids(&report.pending));
                let of = of(report.region.id);
                self.say(format!("store {id} reports{of} peers {peers:?} pending {pending:?}"));
                return;
            }
            Task::AskSplit { region, count } => {
                let result = Ok(self.ids(&region.region, u64::from(count)));
                Input::SplitIds { region_id: region.region.id, version: region.version(), result }
            }
            Task::ReportSplit { regions } => {
                let ids: Vec<u64> = regions.iter().map(|r| r.id).collect();
                self.say(format!("store {id} reports regions {ids:?} of a split"));
                return;
            }
            // Nobody looks at sizes here.
            Task::CheckSplit { .. } => return,
            Task::AskMembership { region_id, peer_id } => {
                self.say(format!("store {id} asks whether peer {peer_id} is a member of region {region_id}"));
                return;
            }
        };
        let store = self.stores.get_mut(&id).unwrap();
        if let Some((shard, _)) = &mut store.running {
            shard.step(self.now, completion, &mut store.out);
        }
    }

    /// What the scheduler gives a region that is to be divided.
    fn ids(&mut self, region: &metapb::Region, count: u64) -> Vec<SplitIds> {
        let first = self.last_region + 1;
        self.last_region += count;
        let peers = |id| region.peers.iter().map(|p| id * 10 + p.store_id).collect();
        (first..first + count).map(|id| SplitIds { region_id: id, peer_ids: peers(id) }).collect()
    }

    fn quietly(&mut self, f: impl FnOnce(&mut World)) {
        let mut kept = self.said();
        f(self);
        // What clients are told is never hidden.
        kept.extend(self.said().into_iter().filter(|l| l.starts_with("put ") || l.starts_with("read ")));
        *self.lines.lock() = kept;
    }

    fn all_ids(&self) -> Vec<u64> {
        self.stores.keys().copied().collect()
    }

    /// One tick for the given stores, or for all.
    pub fn tick(&mut self, ids: &[u64]) {
        self.now = self.now.plus_ms(self.config.tick_ms + 2);
        let ids = if ids.is_empty() { self.all_ids() } else { ids.to_vec() };
        for id in ids {
            let store = self.stores.get_mut(&id).unwrap();
            if let Some((shard, _)) = &mut store.running {
                shard.advance_to(self.now, &mut store.out);
                self.carry_out(id);
            }
        }
    }

    pub fn elect(&mut self, id: u64) -> Result<(), String> {
        self.quietly(|w| w.settle(0));
        for _ in 0..60 {
            // Everybody's promise to the old leader passes, but only this store is allowed to act on it.
            self.now = self.now.plus_ms(self.config.tick_ms + 2);
            self.tick(&[id]);
            self.quietly(World::deliver);
            if self.role(id) == "leader" {
                self.quietly(|w| w.settle(3));
                return Ok(());
            }
        }
        Err(format!("store {id} was not elected"))
    }

    fn role(&self, id: u64) -> &'static str {
        let shard = self.stores[&id].running.as_ref().map(|(shard, _)| shard);
        shard.and_then(|s| s.status(self.region).ok()).map_or("none", |s| s.role)
    }

    pub fn settle(&mut self, ticks: u64) {
        self.quietly(|w| {
            w.deliver();
            for _ in 0..ticks {
                w.tick(&[]);
                w.deliver();
            }
        });
    }

    pub fn deliver(&mut self) {
        for _ in 0..10_000 {
            let Some(m) = self.network.pop_front() else { return };
            let (from, to) = (m.from.store_id, m.to.store_id);
            let lost =
                self.cut.contains(&(from, to)) || self.stores.get(&to).is_none_or(|s| s.running.is_none());
            self.say(format!("{from} → {to} {}{}", show(&m), if lost { " lost" } else { "" }));
            if !lost {
                // Every message goes over the wire's form.
                let m = PeerMessage::from_wire(m.into_wire()).expect("what a peer sends is valid");
                self.step(to, Input::Raft(m));
            }
        }
        panic!("messages go in circles");
    }

    /// The region that commands are about from now on.
    pub fn region(&mut self, id: u64) {
        self.region = id;
    }

    /// What a client knows that has asked the store just now, or that still believes in `version`.
    fn context(&self, id: u64, version: Option<u64>) -> RegionContext {
        let view = self.stores.get(&id).and_then(|s| s.views.get(self.region));
        let known = view.map_or(1, |(_, view)| view.meta.version());
        RegionContext { region_id: self.region, version: version.unwrap_or(known), ..Default::default() }
    }

    pub fn split(&mut self, id: u64, keys: &[String], version: Option<u64>) {
        let keys: Vec<Bytes> = keys.iter().map(|k| Bytes::from(k.clone())).collect();
        let (lines, ctx) = (self.lines.clone(), self.context(id, version));
        let done = Callback::new(move |result: Result<Vec<metapb::Region>, _>| {
            let shown =
                |regions: Vec<metapb::Region>| regions.iter().map(range).collect::<Vec<_>>().join(" ");
            let result = result.map_or_else(explain, shown);
            lines.lock().push(format!("split: {result}"));
        });
        self.step(id, Input::Split(SplitRequest { ctx, keys, done }));
    }

    fn callback(&self, what: String) -> Callback<()> {
        let lines = self.lines.clone();
        Callback::new(move |result| {
            let result = result.map_or_else(explain, |()| "ok".into());
            lines.lock().push(format!("{what}: {result}"));
        })
    }

    pub fn put(&mut self, id: u64, key: &str, value: &str, version: Option<u64>) {
        let mut write = WriteSet::default();
        write.put(Cf::Raw, key.as_bytes(), &[value.as_bytes()]);
        let done = self.callback(format!("put {key}={value}"));
        self.step(id, Input::Propose(Propose { ctx: self.context(id, version), write, done }));
    }

    pub fn read(&mut self, id: u64, key: &str) {
        let (lines, key) = (self.lines.clone(), key.to_string());
        let engine = self.stores[&id].engine.clone();
        let done = Callback::new(move |result: Result<(), _>| {
            let value = result.map_or_else(|e| e.to_string(), |()| value_of(&engine, &key));
            lines.lock().push(format!("read {key}: {value}"));
        });
        self.step(id, Input::Read(ReadRequest { ctx: self.context(id, None), done }));
    }

    pub fn lease_read(&mut self, id: u64, key: &str) {
        let store = &self.stores[&id];
        let answer = match store.views.get(self.region) {
            Some((_, view)) if view.lease_alive(self.now) => {
                view.touch();
                value_of(&store.engine, key)
            }
            Some((_, view)) if view.is_leader() => "no lease".into(),
            Some(_) => "not leader".into(),
            None => "no region".into(),
        };
        self.say(format!("lease read {key}: {answer}"));
    }

    pub fn get(&self, id: u64, key: &str) -> String {
        value_of(&self.stores[&id].engine, key)
    }

    pub fn cut(&mut self, a: u64, b: u64, one_way: bool) {
        self.cut.insert((a, b));
        if !one_way {
            self.cut.insert((b, a));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    pub fn hold(&mut self, id: u64) {
        self.stores.get_mut(&id).unwrap().held.get_or_insert_default();
    }

    pub fn disk(&mut self, id: u64) {
        let store = self.stores.get_mut(&id).unwrap();
        for batch in store.held.take().into_iter().flatten() {
            let durable = store.log.append(batch.write(), batch.must_sync()).unwrap();
            let (writes, after) = batch.persisted(durable);
            if let Some((shard, _)) = &mut store.running {
                shard.step(self.now, Input::Persisted(writes), &mut store.out);
            }
            self.network.extend(after);
        }
        self.carry_out(id);
    }

    fn command(&mut self, id: u64, command: RegionCommand) {
        let views = &self.stores[&id].views;
        let epoch = views.get(self.region).and_then(|(_, v)| v.meta.region.region_epoch).unwrap_or_default();
        self.step(id, Input::Command { region_id: self.region, epoch, command });
    }

    pub fn change(&mut self, id: u64, kind: ChangePeerKind, peer_id: u64, on: u64) {
        self.command(id, RegionCommand::ChangePeer { kind, peer: peer(peer_id, on) });
    }

    pub fn transfer(&mut self, id: u64, to: u64) {
        let region = self.stores[&id].views.get(self.region).map(|(_, v)| v.meta.clone());
        let on = |r: &metapb::Region| r.peers.iter().find(|p| p.store_id == to).copied();
        let peer = region.and_then(|r| on(&r.region)).unwrap_or_else(|| peer(99, to));
        self.command(id, RegionCommand::TransferLeader { peer });
    }

    pub fn lost(&mut self, id: u64, gone: u64) {
        self.step(id, Input::StoreLost { store_id: gone });
    }

    pub fn status(&self, ids: &[u64]) {
        for id in if ids.is_empty() { self.all_ids() } else { ids.to_vec() } {
            let Some((shard, _)) = &self.stores[&id].running else {
                self.say(format!("store {id}: stopped"));
                continue;
            };
            let Ok(s) = shard.status(self.region) else {
                self.say(format!("store {id}: no peer"));
                continue;
            };
            let stopped = s.stopped.as_ref().map_or(String::new(), |why| format!(" stopped: {why}"));
            let view = self.stores[&id].views.get(self.region).map(|(_, view)| view.peer.role);
            let learner = if view == Some(1) { " (learner)" } else { "" };
            self.say(format!(
                "store {id}: peer {}{learner} {} term {} log {}..{} commit {} applied {} voters {:?} learners {:?}{stopped}",
                s.peer_id,
                s.role,
                s.term,
                s.first_index,
                s.last_index,
                s.commit_index,
                s.applied_index,
                s.voters,
                s.learners,
            ));
        }
    }
}

fn peer(id: u64, store_id: u64) -> metapb::Peer {
    metapb::Peer { id, store_id, ..Default::default() }
}

fn value_of(engine: &MemEngine, key: &str) -> String {
    let value = engine.snapshot().get(Cf::Raw, key.as_bytes(), ReadTier::All).unwrap();
    value.map_or("none".into(), |v| String::from_utf8_lossy(&v).into_owned())
}

fn all(engine: &MemEngine, region: &metapb::Region) -> Data {
    let snapshot = engine.snapshot();
    let (lower, upper) = (region.start_key.clone(), region.end_key.clone());
    let mut iter = snapshot.iter(Cf::Raw, IterOptions { lower, upper, ..Default::default() }).unwrap();
    let mut data = Vec::new();
    iter.seek_to_first();
    while iter.valid() {
        data.push((Bytes::copy_from_slice(iter.key()), Bytes::copy_from_slice(iter.value())));
        iter.next();
    }
    data
}

fn build(engine: &MemEngine, region_id: u64) -> BuiltSnapshot {
    let apply: ApplyState = load(engine, &keys::apply_state(region_id), "apply state").unwrap().unwrap();
    let state: RegionState = load(engine, &keys::region_state(region_id), "state").unwrap().unwrap();
    let key = SnapKey { region_id, term: apply.applied_term, index: apply.applied_index };
    BuiltSnapshot { key, region: state.region.unwrap(), manifest: Bytes::new() }
}

/// Names a region other than the first.
fn of(region_id: u64) -> String {
    if region_id == REGION { String::new() } else { format!(" of region {region_id}") }
}

fn range(region: &metapb::Region) -> String {
    let key = |k: &Bytes| String::from_utf8_lossy(k).into_owned();
    let version = region.region_epoch.unwrap_or_default().version;
    format!("{}@{version}[{},{})", region.id, key(&region.start_key), key(&region.end_key))
}

/// An error, with the regions that it tells of.
fn explain(error: RegionError) -> String {
    match &error {
        RegionError::EpochNotMatch { current } => {
            format!("{error}: {}", current.iter().map(range).collect::<Vec<_>>().join(" "))
        }
        _ => error.to_string(),
    }
}

fn show(m: &PeerMessage) -> String {
    let Payload::Raft(raft) = &m.payload else { return format!("{:?}{}", m.payload, of(m.region_id)) };
    let mut line = format!("{:?}{} term {}", raft.msg_type, of(m.region_id), raft.term);
    if !raft.entries.is_empty() {
        line +=
            &format!(" entries {}..{}", raft.entries[0].index, raft.entries[raft.entries.len() - 1].index);
    } else if raft.index > 0 {
        line += &format!(" index {}", raft.index);
    }
    if raft.reject {
        line += " reject";
    }
    if raft.get_snapshot().get_metadata().index > 0 {
        line += &format!(" snapshot {}", raft.get_snapshot().get_metadata().index);
    }
    line
}
