//! Runs the scripts in `tests/scripts` against the pure `Cluster`. A script plays the stores: it reports regions,
//! carries out the commands it got, and lets time pass. What the cluster wants is printed.

mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use bytes::Bytes;
use kvproto::{eraftpb, metapb, pdpb};
use scheduler::cluster::Cluster;
use scheduler::id::IdSource;
use scheduler::schedule::{RegionCommand, ScheduleConfig};

type Outcome = Result<String, Box<dyn Error>>;

/// Stores with slashes between: `1/2/3l`, where `l` makes a peer a learner.
type List = String;

#[derive(goldenscript::Command)]
enum Command {
    /// Starts anew with other limits.
    Config {
        #[arg(key, optional)]
        halt_scheduling: bool,
        #[arg(key)]
        splits_enabled: Option<bool>,
        #[arg(key)]
        max_replicas: Option<usize>,
        #[arg(key)]
        operators_max: Option<usize>,
    },
    /// Creates the cluster with a store and region 1 on it.
    Bootstrap { store: u64 },
    /// Registers stores at `host-ID`, or at the given address.
    Put {
        #[arg(key)]
        address: Option<String>,
        stores: Vec<u64>,
    },
    /// Store heartbeats.
    Beat {
        #[arg(key)]
        available: Option<u64>,
        #[arg(key, optional)]
        busy: bool,
        #[arg(key, optional)]
        snapshots: u32,
        #[arg(key, optional)]
        regions: u32,
        stores: Vec<u64>,
    },
    /// Describes a region and reports it.
    Region {
        id: u64,
        #[arg(key)]
        peers: String,
        #[arg(key)]
        leader: u64,
        #[arg(key)]
        pending: Option<List>,
        #[arg(key)]
        down: Option<List>,
        #[arg(key)]
        start: Option<String>,
        #[arg(key)]
        end: Option<String>,
        #[arg(key)]
        version: Option<u64>,
    },
    /// Reports a region again, with changes.
    Report {
        id: u64,
        #[arg(key)]
        leader: Option<u64>,
        #[arg(key)]
        pending: Option<List>,
        #[arg(key)]
        down: Option<List>,
        #[arg(key)]
        term: Option<u64>,
        #[arg(key)]
        conf_ver: Option<u64>,
    },
    /// Carries out the last command for a region and reports it; `pending=true` leaves a new learner behind.
    Obey {
        id: u64,
        #[arg(key, optional)]
        pending: bool,
    },
    /// Asks whether the region may be split into `count` more, with its epoch or with another version.
    AskSplit {
        id: u64,
        #[arg(key)]
        count: u32,
        #[arg(key)]
        version: Option<u64>,
    },
    /// Splits a region at keys, with slashes between; the new regions `into` are cut off its left. `silent=true`
    /// leaves out the report of the split.
    Split {
        id: u64,
        #[arg(key)]
        at: String,
        #[arg(key)]
        into: List,
        #[arg(key, optional)]
        silent: bool,
    },
    /// Sends the report that the last silent split left out.
    LateReport,
    /// Orders an operator: what it does is the key that is given.
    Order {
        id: u64,
        #[arg(key)]
        leader: Option<u64>,
        #[arg(key)]
        region: Option<List>,
        #[arg(key)]
        from: Option<u64>,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        add: Option<u64>,
        #[arg(key)]
        learner: Option<u64>,
        #[arg(key)]
        remove: Option<u64>,
        #[arg(key)]
        split: Option<String>,
        #[arg(key)]
        scatter: Option<String>,
    },
    /// Cancels the operator of a region.
    Cancel { id: u64 },
    /// Prints the operators that ended.
    History,
    /// Obeys until the region has no operator.
    Settle { id: u64 },
    /// Begins to remove a store.
    Remove { store: u64 },
    /// Lets milliseconds pass, while the given stores send heartbeats.
    Pass {
        #[arg(key)]
        beats: Option<List>,
        ms: u64,
    },
    /// One tick.
    Tick,
    /// Takes away the id window, or gives it back.
    Ids { are_available: bool },
    /// Prints stores and regions.
    Show,
    /// Moves the txn safe point; 0 is as far as the settings want it.
    AdvanceTxn { target: u64 },
    /// Moves the GC safe point.
    AdvanceGc { target: u64 },
    /// Moves both, as clients of the older protocol do.
    UpdateGc { target: u64 },
    /// Sets a barrier; without `seconds` for ever.
    Barrier {
        name: String,
        #[arg(key)]
        at: u64,
        #[arg(key)]
        seconds: Option<i64>,
        #[arg(key, optional)]
        global: bool,
    },
    /// Gives a barrier up.
    DeleteBarrier {
        name: String,
        #[arg(key, optional)]
        global: bool,
    },
    /// What a service of the older protocol asks for; without `seconds` for ever.
    Service {
        name: String,
        #[arg(key)]
        at: u64,
        #[arg(key)]
        seconds: Option<i64>,
    },
    /// Changes a setting.
    Set { key: String, value: String },
    /// Starts anew from what was written.
    Restart,
    /// Prints safe points and barriers.
    GcState,
}

#[derive(Clone, Default)]
struct ModelRegion {
    meta: metapb::Region,
    leader: u64,
    term: u64,
    pending: BTreeSet<u64>,
    down: BTreeSet<u64>,
    last_command: Option<RegionCommand>,
}

struct Ids {
    next: u64,
    are_available: bool,
}

impl IdSource for Ids {
    fn next_id(&mut self) -> Option<u64> {
        self.are_available.then(|| {
            self.next += 1;
            self.next
        })
    }
}

struct Runner {
    cluster: Cluster,
    ids: Ids,
    now_ms: u64,
    regions: BTreeMap<u64, ModelRegion>,
    /// What the last silent split made.
    unreported: Vec<metapb::Region>,
    config: ScheduleConfig,
    /// What the cluster wanted written.
    disk: BTreeMap<Bytes, Bytes>,
}

const GIB: u64 = 1 << 30;

impl Default for Runner {
    fn default() -> Runner {
        Runner {
            cluster: Cluster::new(7, ScheduleConfig::default()),
            ids: Ids { next: 1000, are_available: true },
            now_ms: 1_000_000,
            regions: BTreeMap::new(),
            unreported: Vec::new(),
            config: ScheduleConfig::default(),
            disk: BTreeMap::new(),
        }
    }
}

fn numbers(list: &Option<List>) -> Result<BTreeSet<u64>, Box<dyn Error>> {
    let list = list.as_deref().unwrap_or_default();
    list.split('/').filter(|item| !item.is_empty()).map(|item| Ok(item.parse()?)).collect()
}

fn store(id: u64, address: &Option<String>) -> metapb::Store {
    let address = address.clone().unwrap_or_else(|| format!("host-{id}"));
    metapb::Store { id, address, ..Default::default() }
}

impl Runner {
    fn configure(&mut self, command: &Command) -> Outcome {
        let Command::Config { halt_scheduling, splits_enabled, max_replicas, operators_max } = command else {
            return Err("not a configuration".into());
        };
        let defaults = ScheduleConfig::default();
        let config = ScheduleConfig {
            halt_scheduling: *halt_scheduling,
            splits_enabled: splits_enabled.unwrap_or(defaults.splits_enabled),
            max_replicas: max_replicas.unwrap_or(defaults.max_replicas),
            operators_max: operators_max.unwrap_or(defaults.operators_max),
            ..defaults
        };
        *self = Runner { cluster: Cluster::new(7, config.clone()), config, ..Runner::default() };
        Ok(String::new())
    }

    fn bootstrap(&mut self, id: u64) -> Outcome {
        let peer = metapb::Peer { id: 10 + id, store_id: id, ..Default::default() };
        let meta = metapb::Region {
            id: 1,
            region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 1 }),
            peers: vec![peer],
            ..Default::default()
        };
        let out = self.cluster.bootstrap(self.now_ms, store(id, &None), vec![meta.clone()], None)?;
        self.regions.insert(1, ModelRegion { meta, leader: id, term: 5, ..Default::default() });
        Ok(self.print(out))
    }

    fn beat(&mut self, stores: &[u64], stats: pdpb::StoreStats) -> Outcome {
        let mut text = String::new();
        for store_id in stores {
            let stats = pdpb::StoreStats { store_id: *store_id, ..stats.clone() };
            let (_, out) = self.cluster.store_heartbeat(self.now_ms, stats, &mut self.ids)?;
            text += &self.print(out);
        }
        Ok(text)
    }

    fn report(&mut self, id: u64) -> Outcome {
        let region = self.regions.get(&id).ok_or("no such region in the script")?;
        let peer_on = |store: &u64| region.meta.peers.iter().find(|peer| peer.store_id == *store).copied();
        let down = |peer| pdpb::PeerStats { peer: Some(peer), down_seconds: 1800 };
        let request = pdpb::RegionHeartbeatRequest {
            region: Some(region.meta.clone()),
            leader: peer_on(&region.leader),
            term: region.term,
            pending_peers: region.pending.iter().filter_map(peer_on).collect(),
            down_peers: region.down.iter().filter_map(peer_on).map(down).collect(),
            ..Default::default()
        };
        let out = self.cluster.region_heartbeat(self.now_ms, request, &mut self.ids)?;
        Ok(self.print(out))
    }

    /// Does what a region's leader would do.
    fn obey(&mut self, id: u64, is_pending: bool) -> Outcome {
        let region = self.regions.get_mut(&id).ok_or("no such region in the script")?;
        let command = region.last_command.take().ok_or("the region got no command")?;
        if command.region_epoch != region.meta.region_epoch {
            return Err("the command is for another epoch".into());
        }
        if let Some(transfer) = command.transfer_leader {
            region.leader = transfer.peer.ok_or("transfer to nobody")?.store_id;
            region.term += 1;
        }
        if let Some(change) = command.change_peer {
            let peer = change.peer.ok_or("a change of no peer")?;
            let had = region.meta.peers.iter().any(|other| other.id == peer.id);
            region.meta.peers.retain(|other| other.id != peer.id);
            region.pending.remove(&peer.store_id);
            match eraftpb::ConfChangeType::try_from(change.change_type)? {
                eraftpb::ConfChangeType::RemoveNode if !had => return Err("the peer is not there".into()),
                eraftpb::ConfChangeType::RemoveNode if region.leader == peer.store_id => {
                    return Err("a leader refuses to remove itself".into());
                }
                eraftpb::ConfChangeType::RemoveNode => {}
                eraftpb::ConfChangeType::AddNode if !had => return Err("no learner to promote".into()),
                eraftpb::ConfChangeType::AddNode => region.meta.peers.push(peer),
                eraftpb::ConfChangeType::AddLearnerNode => {
                    region.meta.peers.push(peer);
                    if is_pending {
                        region.pending.insert(peer.store_id);
                    }
                }
            }
            region.meta.region_epoch.as_mut().ok_or("no epoch")?.conf_ver += 1;
        }
        self.report(id)
    }

    fn define(&mut self, command: &Command) -> Outcome {
        let Command::Region { id, peers, leader, pending, down, start, end, version } = command else {
            return Err("not a region".into());
        };
        let region = self.regions.entry(*id).or_default();
        let mut new = Vec::new();
        for item in peers.split('/') {
            let number = item.trim_end_matches('l');
            let store_id: u64 = number.parse()?;
            let role = if item.ends_with('l') { metapb::PeerRole::Learner } else { metapb::PeerRole::Voter };
            new.push(metapb::Peer {
                id: id * 10 + store_id,
                store_id,
                role: role as i32,
                ..Default::default()
            });
        }
        let mut epoch = region.meta.region_epoch.unwrap_or(metapb::RegionEpoch { conf_ver: 0, version: 1 });
        epoch.conf_ver += u64::from(new != region.meta.peers);
        epoch.version = version.unwrap_or(epoch.version);
        region.meta.start_key = start.clone().unwrap_or_default().into();
        region.meta.end_key = end.clone().unwrap_or_default().into();
        region.meta.id = *id;
        region.meta.region_epoch = Some(epoch);
        region.meta.peers = new;
        (region.leader, region.term) = (*leader, 5);
        (region.pending, region.down) = (numbers(pending)?, numbers(down)?);
        self.report(*id)
    }

    fn ask_split(&mut self, id: u64, count: u32, version: Option<u64>) -> Outcome {
        let mut meta = self.regions.get(&id).map_or_else(
            || metapb::Region { id, peers: vec![metapb::Peer::default()], ..Default::default() },
            |region| region.meta.clone(),
        );
        if let (Some(version), Some(epoch)) = (version, meta.region_epoch.as_mut()) {
            epoch.version = version;
        }
        let each = self.cluster.check_split(&meta, count)?;
        Ok(format!("{each} ids for each new region\n"))
    }

    fn split(&mut self, id: u64, at: &str, into: &str, is_silent: bool) -> Outcome {
        let parent = self.regions.get(&id).ok_or("no such region in the script")?.clone();
        let keys: Vec<&str> = at.split('/').collect();
        let new_ids = into.split('/').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let mut start = parent.meta.start_key.clone();
        let mut made = Vec::new();
        for (part, end) in new_ids.iter().zip(&keys) {
            let mut region = parent.clone();
            region.meta.id = *part;
            region.meta.start_key = std::mem::replace(&mut start, end.to_string().into());
            region.meta.end_key = start.clone();
            region.meta.peers.iter_mut().for_each(|peer| peer.id = part * 10 + peer.store_id);
            made.push(region);
        }
        let mut rest = parent;
        rest.meta.start_key = start;
        made.push(rest);
        for region in &mut made {
            region.meta.region_epoch.as_mut().ok_or("no epoch")?.version += keys.len() as u64;
            self.regions.insert(region.meta.id, region.clone());
        }
        let metas = made.into_iter().map(|region| region.meta).collect();
        if is_silent {
            self.unreported = metas;
            return Ok(String::new());
        }
        self.report_split(metas)
    }

    fn remove(&mut self, store: u64) -> Outcome {
        let out = self.cluster.remove_store(self.now_ms, store, &mut self.ids)?;
        Ok(self.print(out))
    }

    fn report_split(&mut self, regions: Vec<metapb::Region>) -> Outcome {
        let out = self.cluster.report_split(self.now_ms, regions, &mut self.ids)?;
        Ok(self.print(out))
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Outcome {
        match command {
            Command::Config { .. } => self.configure(command),
            Command::Bootstrap { store } => self.bootstrap(*store),
            Command::Put { address, stores } => {
                let mut text = String::new();
                for id in stores {
                    let out = self.cluster.put_store(self.now_ms, store(*id, address), None)?;
                    text += &self.print(out);
                }
                Ok(text)
            }
            Command::Beat { available, busy, snapshots, regions, stores } => {
                let stats = pdpb::StoreStats {
                    capacity: 100 * GIB,
                    available: available.unwrap_or(50) * GIB,
                    is_busy: *busy,
                    receiving_snap_count: *snapshots,
                    region_count: *regions,
                    ..Default::default()
                };
                self.beat(stores, stats)
            }
            Command::Region { .. } => self.define(command),
            Command::Report { id, leader, pending, down, term, conf_ver } => {
                let region = self.regions.get_mut(id).ok_or("no such region in the script")?;
                region.leader = leader.unwrap_or(region.leader);
                region.term = term.unwrap_or(region.term);
                (region.pending, region.down) = (numbers(pending)?, numbers(down)?);
                if let (Some(conf_ver), Some(epoch)) = (conf_ver, region.meta.region_epoch.as_mut()) {
                    epoch.conf_ver = *conf_ver;
                }
                self.report(*id)
            }
            Command::Obey { id, pending } => self.obey(*id, *pending),
            Command::AskSplit { id, count, version } => self.ask_split(*id, *count, *version),
            Command::Split { id, at, into, silent } => self.split(*id, at, into, *silent),
            Command::Order { .. } => self.order(command),
            Command::Cancel { id } => {
                let out = self.cluster.cancel_operator(self.now_ms, *id)?;
                Ok(self.print(out))
            }
            Command::History => Ok(self.history()),
            Command::LateReport => {
                let regions = std::mem::take(&mut self.unreported);
                self.report_split(regions)
            }
            Command::Settle { id } => self.settle(*id),
            Command::Remove { store } => self.remove(*store),
            Command::Pass { beats, ms } => {
                self.now_ms += ms;
                let stores: Vec<u64> = numbers(beats)?.into_iter().collect();
                let stats =
                    pdpb::StoreStats { capacity: 100 * GIB, available: 50 * GIB, ..Default::default() };
                self.beat(&stores, stats)
            }
            Command::Tick => {
                let out = self.cluster.tick(self.now_ms, &mut self.ids);
                Ok(self.print(out))
            }
            Command::Ids { are_available } => {
                self.ids.are_available = *are_available;
                Ok(String::new())
            }
            Command::Show => Ok(self.show()),
            _ => self.gc(command),
        }
    }
}

impl Runner {
    fn settle(&mut self, id: u64) -> Outcome {
        let mut text = String::new();
        while self.cluster.operator(id).is_some() {
            text += &self.obey(id, false)?;
        }
        Ok(text)
    }
}

fn run_all(folder: &str) {
    let path = format!("{}/tests/scripts/{folder}", env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(&path).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no scripts in {path}");
    for file in files {
        println!("script {}", file.display());
        goldenscript::run(&mut Runner::default(), file).unwrap();
    }
}

#[test]
fn replica_checker() {
    run_all("replica_checker");
}

#[test]
fn operator() {
    run_all("operator");
}

#[test]
fn cluster() {
    run_all("cluster");
}

#[test]
fn split() {
    run_all("split");
}

#[test]
fn gc() {
    run_all("gc");
}
