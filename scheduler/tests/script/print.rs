//! What scripts show: what the cluster wants written and done, and what it knows.

use std::fmt::Write as _;

use kvproto::metapb;
use scheduler::cluster::Output;
use scheduler::kv::Op;
use scheduler::kv::records::MetaWrite;
use scheduler::schedule::RegionCommand;
use scheduler::schedule::checker::Obstacle;
use scheduler::schedule::operator_controller::OperatorEvent;

use crate::Runner;

impl Runner {
    pub fn print(&mut self, out: Output) -> String {
        let mut text = String::new();
        for write in &out.writes {
            match write.to_op() {
                Op::Put(key, value) => self.disk.insert(key, value),
                Op::Delete(key) => self.disk.remove(&key),
            };
            match write {
                MetaWrite::Bootstrapped(_) => text += "write: bootstrapped\n",
                MetaWrite::Store(store) => {
                    let _ = writeln!(text, "write: store {} {:?}", store.id, store.state());
                }
                MetaWrite::Region(region) => {
                    let _ = writeln!(text, "write: region {}", describe(region));
                }
                MetaWrite::RegionGone(id) => {
                    let _ = writeln!(text, "write: region {id} is gone");
                }
                MetaWrite::Setting(record) => {
                    let _ = writeln!(text, "write: {record:?}");
                }
                MetaWrite::Scheduler(record) => {
                    let _ = writeln!(text, "write: {record:?}");
                }
                MetaWrite::Keyspace(meta) => {
                    let _ = writeln!(text, "write: keyspace {}", meta.name);
                }
                MetaWrite::ClientKey(kept) => {
                    let _ = writeln!(text, "write: client key {:?}", kept.key);
                }
                MetaWrite::GcSafePoints(_) => text += "write: safe points\n",
                MetaWrite::GcBarrier(record) => {
                    let _ = writeln!(text, "write: barrier {:?}", record.name);
                }
                MetaWrite::GcBarrierGone(record) => {
                    let _ = writeln!(text, "write: barrier {:?} is gone", record.name);
                }
            }
        }
        for event in &out.events {
            let _ = match event {
                OperatorEvent::Created { region_id, description, .. } => {
                    writeln!(text, "operator for {region_id}: {description}")
                }
                OperatorEvent::Finished { region_id, name } => {
                    writeln!(text, "operator for {region_id} finished: {name}")
                }
                OperatorEvent::Cancelled { region_id, name, cause } => {
                    writeln!(text, "operator for {region_id} given up: {name}: {cause}")
                }
            };
        }
        for command in out.commands {
            let target = command.target_peer.unwrap_or_default();
            let _ = writeln!(
                text,
                "to store {}: region {}: {}",
                target.store_id,
                command.region_id,
                step(&command)
            );
            if let Some(region) = self.regions.get_mut(&command.region_id) {
                region.last_command = Some(command);
            }
        }
        text
    }

    pub fn show(&self) -> String {
        let mut text = String::new();
        for store in self.cluster.basic().stores() {
            let id = store.meta.id;
            let state = self.cluster.store_state(store, self.now_ms).name();
            let (regions, leaders) =
                (self.cluster.basic().region_count(id), self.cluster.basic().leader_count(id));
            let _ = writeln!(text, "store {id} {state}: {regions} regions, {leaders} leaders");
        }
        for region in self.cluster.basic().regions().scan(b"", b"") {
            let leader = region.leader_store().map_or("none".into(), |store| store.to_string());
            let operator =
                self.cluster.operator(region.id()).map_or(String::new(), |o| format!(", {}", o.describe()));
            let _ = writeln!(text, "region {} led by {leader}{operator}", describe(&region.meta));
        }
        for obstacle in Obstacle::ALL {
            let waiting = self.cluster.regions_waiting_for(obstacle);
            if waiting > 0 {
                let _ = writeln!(text, "{waiting} regions wait: {}", obstacle.name());
            }
        }
        text
    }
}

fn step(command: &RegionCommand) -> String {
    if let Some(transfer) = &command.transfer_leader {
        return format!("transfer leader to store {}", transfer.peer.unwrap_or_default().store_id);
    }
    if let Some(split) = &command.split_region {
        let keys: Vec<String> = split.keys.iter().map(|key| key.escape_ascii().to_string()).collect();
        return format!("split at {keys:?}, {:?}", split.policy());
    }
    let change = command.change_peer.unwrap_or_default();
    let peer = change.peer.unwrap_or_default();
    format!("{:?} {} on store {}", change.change_type(), peer.id, peer.store_id)
}

fn describe(region: &metapb::Region) -> String {
    let epoch = region.region_epoch.unwrap_or_default();
    let peers: Vec<String> = region
        .peers
        .iter()
        .map(|peer| {
            format!("{}{}", peer.store_id, if peer.role() == metapb::PeerRole::Learner { "l" } else { "" })
        })
        .collect();
    let key = |key: &[u8]| key.escape_ascii().to_string();
    let range = format!("[{},{})", key(&region.start_key), key(&region.end_key));
    format!("{} {range} v{} c{} on {}", region.id, epoch.version, epoch.conf_ver, peers.join(","))
}
