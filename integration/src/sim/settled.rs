//! Liveness: once everything is healed the cluster comes to rest in bounded time.
//!
//! At rest: every client is done and no store owes an answer; every region has a serving leader and exactly the wanted
//! voters; each of them has applied the same index and holds the same data; no store has a peer that is no member or
//! has no data; the leaders' ranges cover every key once; and the scheduler knows all that.

use kvproto::metapb::{PeerRole, Region};

use super::check::coverage;
use super::store::{Process, Store};
use super::world::World;

impl World {
    /// What keeps the cluster from rest; `None` when it rests.
    pub fn unsettled(&mut self) -> Option<String> {
        if let Some(why) = self.clients.unfinished() {
            return Some(why);
        }
        if let Some(why) = self.txn.unfinished() {
            return Some(why);
        }
        let waits = |p: &Process| !p.attempts.is_empty() || !p.txn.is_idle();
        let forgotten = |s: &&Store| s.process.as_ref().is_some_and(waits);
        if let Some(store) = self.stores.iter().find(forgotten) {
            return Some(format!("store {} has requests that it does not answer", store.id));
        }
        let mut covered = Vec::new();
        for region_id in self.regions() {
            match self.region_unsettled(region_id) {
                Ok(region) => covered.push(region),
                Err(why) => return Some(format!("region {region_id}: {why}")),
            }
        }
        if let Some(region) = covered.iter().find(|region| self.placement.region(region.id) != Some(region)) {
            let known = self.placement.region(region.id);
            return Some(format!("the scheduler takes {region:?} for {known:?}"));
        }
        let ranges = covered.into_iter().map(|region| (region.start_key, region.end_key));
        (!coverage::tiles(ranges.collect())).then(|| "the leaders do not cover every key once".to_string())
    }

    fn region_unsettled(&mut self, region_id: u64) -> Result<Region, String> {
        let views = self.stores.iter().enumerate().filter_map(|(i, s)| {
            let (_, view) = s.process.as_ref()?.views.get(region_id)?;
            (view.is_leader() && view.serves).then_some((i, view))
        });
        let leaders: Vec<_> = views.collect();
        let [(leader, view)] = &leaders[..] else {
            return Err(format!("{} serving leaders", leaders.len()));
        };
        let region = view.meta.region.clone();
        let voters = region.peers.iter().filter(|p| p.role == PeerRole::Voter as i32).count();
        if voters != self.plan.max_replicas || voters != region.peers.len() {
            return Err(format!("members are {:?}", region.peers));
        }
        let status = self.stores[*leader].process.as_ref().map(|p| p.shard.status(region_id));
        let Some(Ok(status)) = status else { return Err("the leader has gone".into()) };
        for store in 0..self.stores.len() {
            let Some(process) = &self.stores[store].process else {
                return Err(format!("store {store} is down"));
            };
            let member = region.peers.iter().find(|p| p.store_id == self.stores[store].id);
            match (process.shard.status(region_id), member) {
                (Ok(s), Some(peer)) if s.peer_id != peer.id => {
                    return Err(format!("store {store} has peer {} instead of {}", s.peer_id, peer.id));
                }
                (Ok(s), Some(_)) if s.applied_index != status.last_index => {
                    return Err(format!(
                        "store {store} applied {} of {}",
                        s.applied_index, status.last_index
                    ));
                }
                (Ok(_), Some(_)) => {
                    let checked = self.check_state(store, region_id);
                    self.judge_engine(checked);
                }
                (Ok(s), None) => {
                    return Err(format!("store {store} keeps peer {}, which is no member", s.peer_id));
                }
                (Err(_), Some(peer)) => {
                    return Err(format!("store {store} has not got peer {} yet", peer.id));
                }
                (Err(_), None) => {}
            }
        }
        Ok(region)
    }

    /// A peer that stopped for good: it found what it must never find.
    pub fn check_stopped(&mut self) {
        for store in 0..self.stores.len() {
            for region_id in self.regions() {
                let status = self.stores[store].process.as_ref().map(|p| p.shard.status(region_id));
                if let Some(Ok(status)) = status
                    && let Some(reason) = &status.stopped
                {
                    return self.violate("stopped", format!("store {store} region {region_id}: {reason}"));
                }
            }
        }
    }
}
