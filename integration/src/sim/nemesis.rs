//! Faults: crashes, power cuts, pauses, partitions, long absences, unwelcome orders, wrong hints, lost schedulers.
//!
//! Each fault lasts a while and ends by itself. The budget: at any time most stores run, except that a power cut
//! may hit all of them at once; what is on a disk stays there.

use bytes::Bytes;
use kvproto::metapb;
use kvserver::engine::Cf;
use kvserver::raftstore::message::input::{ChangePeerKind, SplitRequest};
use kvserver::raftstore::message::peer_message::Payload;
use kvserver::raftstore::message::{Callback, Input, PeerMessage, RegionCommand, RegionContext, WriteSet};
use kvserver::raftstore::meta::region_view::RegionView;
use raft::eraftpb;

use super::breakage::Breakage;
use super::event::Event;
use super::plan::{Fault, MS, draw_drift};
use super::store::Store;
use super::world::World;

impl World {
    /// Strikes, and sets the time of the next strike.
    pub fn on_nemesis(&mut self) {
        if self.healed || self.struck >= self.plan.faults.at_most {
            return;
        }
        let (low, high) = self.plan.faults.every_ns;
        let next = self.now_ns + self.nemesis_rng.range(low, high);
        self.queue.push(next, Event::Nemesis);
        let fault = self.draw_fault();
        self.struck += u64::from(fault.is_some());
        match fault {
            Some(Fault::Crash) => self.crash_one(),
            Some(Fault::PowerCut) => self.cut_power(),
            Some(Fault::Pause) => self.pause_one(),
            Some(Fault::Partition) => self.partition(),
            Some(Fault::Transfer) => self.transfer_leader(),
            Some(Fault::Membership) => self.change_members(),
            Some(Fault::Scheduler) => self.replace_scheduler(),
            Some(Fault::FalseHint) => self.give_false_hint(),
            Some(Fault::StaleEntry) => self.forge_stale_entry(),
            Some(Fault::StoreAway) => self.send_away(),
            Some(Fault::Drift) => self.change_drift(),
            Some(Fault::Split) => self.split_one(),
            None => {}
        }
    }

    fn draw_fault(&mut self) -> Option<Fault> {
        let weights = &self.plan.faults.weights;
        let mut at = self.nemesis_rng.below(weights.iter().map(|(_, w)| w).sum());
        weights.iter().find_map(|(fault, weight)| {
            if at < *weight {
                return Some(*fault);
            }
            at -= weight;
            None
        })
    }

    fn lasts(&mut self) -> u64 {
        let (low, high) = self.plan.faults.lasts_ns;
        self.nemesis_rng.range(low, high)
    }

    /// A store to strike: most of the time one that leads.
    fn target(&mut self) -> usize {
        let leads = if self.nemesis_rng.chance(0.7) { self.any_leader() } else { None };
        leads.map_or_else(|| self.nemesis_rng.index(self.stores.len()), |(store, _)| store)
    }

    /// A store that may be taken out without leaving less than a majority.
    fn victim(&mut self) -> Option<usize> {
        let is_out = |(at, s): &(usize, &Store)| !s.runs(self.now_ns) || self.network.is_away(*at);
        let out = self.stores.iter().enumerate().filter(is_out).count();
        let store = self.target();
        let may = (out + 1) * 2 < self.stores.len() && self.stores[store].runs(self.now_ns);
        may.then_some(store)
    }

    fn crash_one(&mut self) {
        let Some(store) = self.victim() else { return };
        let power_cut = self.nemesis_rng.chance(0.5);
        self.crash(store, power_cut);
        let back = self.now_ns + self.lasts();
        self.queue.push(back, Event::Restart(store));
    }

    fn cut_power(&mut self) {
        for store in 0..self.stores.len() {
            if self.stores[store].is_up() {
                self.crash(store, true);
                let back = self.now_ns + self.lasts();
                self.queue.push(back, Event::Restart(store));
            }
        }
    }

    fn pause_one(&mut self) {
        let Some(store) = self.victim() else { return };
        self.stores[store].paused_until_ns = self.now_ns + self.lasts();
        if self.nemesis_rng.chance(0.3) {
            self.seem_lost(store);
        }
    }

    /// Takes a store away until its replicas have been replaced: its process is gone, or nobody reaches it.
    fn send_away(&mut self) {
        let Some(store) = self.victim() else { return };
        if self.stores.len() <= self.plan.max_replicas {
            return;
        }
        let (low, high) = self.plan.faults.away_ns;
        let back = self.now_ns + self.nemesis_rng.range(low, high);
        match self.nemesis_rng.below(3) {
            0 => self.network.set_away(store, true),
            kind => self.crash(store, kind == 1),
        }
        self.queue.push(back, Event::Return(store));
    }

    /// A store that was away is back.
    pub fn on_return(&mut self, store: usize) {
        self.returns += 1;
        self.network.set_away(store, false);
        self.start(store);
    }

    fn change_drift(&mut self) {
        let (store, drift) = (self.nemesis_rng.index(self.stores.len()), draw_drift(&mut self.nemesis_rng));
        if self.breakage != Breakage::SlowClock {
            self.stores[store].mode.clock.set_drift(self.now_ns, drift);
        }
    }

    /// The scheduler's leader is gone; another one takes over at once or after a while.
    fn replace_scheduler(&mut self) {
        let gap = if self.nemesis_rng.chance(0.5) { MS } else { self.nemesis_rng.range(200, 5_000) * MS };
        self.on_scheduler_lost();
        self.queue.push(self.now_ns + gap, Event::SchedulerTakesOver);
    }

    /// The stores that this one's messages do not reach take its process for gone.
    fn seem_lost(&mut self, store: usize) {
        let store_id = self.stores[store].id;
        for other in (0..self.stores.len()).filter(|other| *other != store) {
            let hears = !self.network.is_cut(store, other) && self.stores[store].runs(self.now_ns);
            if !hears && self.stores[other].is_up() {
                let at = self.now_ns + self.nemesis_rng.range(MS, 300 * MS);
                let input = Box::new(Input::StoreLost { store_id });
                self.queue.push(at, Event::Input { life: self.stores[other].life(), input });
            }
        }
    }

    fn partition(&mut self) {
        let n = self.stores.len();
        let one_way = self.nemesis_rng.chance(0.4);
        let side: Vec<bool> = if self.nemesis_rng.chance(0.5) {
            let alone = self.target();
            (0..n).map(|store| store == alone).collect()
        } else {
            (0..n).map(|_| self.nemesis_rng.chance(0.5)).collect()
        };
        for from in 0..n {
            for to in 0..n {
                if side[from] != side[to] && (!one_way || side[from]) {
                    self.network.set_cut(from, to, true);
                }
            }
        }
        if self.nemesis_rng.chance(0.3) {
            let lonely = self.nemesis_rng.chance(0.5);
            (0..n).filter(|store| side[*store] == lonely).for_each(|store| self.network.cut_scheduler(store));
        }
        self.partitions += 1;
        // Broken connections look like a lost process to the other side.
        if self.nemesis_rng.chance(0.6) {
            for store in (0..n).filter(|store| side[*store]) {
                self.seem_lost(store);
            }
        }
        // Long enough for an election, most of the time.
        let mended = self.now_ns + self.nemesis_rng.log_range(100 * MS, 4_000 * MS);
        self.queue.push(mended, Event::Mend);
    }

    /// A leader that serves, with its view of the region.
    pub(super) fn any_leader(&mut self) -> Option<(usize, std::sync::Arc<RegionView>)> {
        let first = self.nemesis_rng.index(self.stores.len());
        let (store, mut led) =
            (0..self.stores.len()).map(|i| (first + i) % self.stores.len()).find_map(|at| {
                let mut views = self.stores[at].views();
                views.retain(|view| view.is_leader() && view.serves);
                (!views.is_empty()).then_some((at, views))
            })?;
        Some((store, led.swap_remove(self.nemesis_rng.index(led.len()))))
    }

    fn order(&mut self, store: usize, view: &RegionView, command: RegionCommand) {
        let epoch = view.meta.region.region_epoch.unwrap_or_default();
        self.put_in(store, Input::Command { region_id: view.meta.region.id, epoch, command });
    }

    /// Divides a region at random keys, or asks for it to be divided in half.
    fn split_one(&mut self) {
        let Some((store, view)) = self.any_leader() else { return };
        if self.regions().len() >= self.plan.regions_max {
            return;
        }
        let rng = &mut self.nemesis_rng;
        let mut keys: Vec<Bytes> = (0..rng.range(1, 3)).map(|_| self.plan.any_key(rng)).collect();
        keys.retain(|key| view.meta.contains(key));
        if keys.is_empty() || rng.chance(0.2) {
            return self.order(store, &view, RegionCommand::Split { boundaries: Vec::new() });
        }
        let (region, peer_id) = (&view.meta.region, view.peer.id);
        let ctx = RegionContext {
            region_id: region.id,
            version: view.meta.version(),
            peer_id,
            ..Default::default()
        };
        self.put_in(store, Input::Split(SplitRequest { ctx, keys, done: Callback::none() }));
    }

    fn transfer_leader(&mut self) {
        let Some((store, view)) = self.any_leader() else { return };
        let peers = &view.meta.region.peers;
        let peer = peers[self.nemesis_rng.index(peers.len())];
        self.order(store, &view, RegionCommand::TransferLeader { peer });
    }

    fn change_members(&mut self) {
        let Some((store, view)) = self.any_leader() else { return };
        let peers = &view.meta.region.peers;
        let store_id = self.nemesis_rng.range(1, self.stores.len() as u64);
        let there = peers.iter().find(|p| p.store_id == store_id).copied();
        let voters = peers.iter().filter(|p| p.role == metapb::PeerRole::Voter as i32).count();
        let (kind, peer) = match there {
            Some(peer) if peer.role == metapb::PeerRole::Learner as i32 => match self.nemesis_rng.chance(0.5)
            {
                true => (ChangePeerKind::AddVoter, peer),
                false => (ChangePeerKind::Remove, peer),
            },
            // Fewer voters than two would make a single crash fatal.
            Some(peer) if voters > 2 => (ChangePeerKind::Remove, peer),
            Some(_) => return,
            None => {
                let Some(id) = self.placement.next_id() else { return };
                let voter = self.nemesis_rng.chance(0.3);
                let kind = if voter { ChangePeerKind::AddVoter } else { ChangePeerKind::AddLearner };
                (kind, metapb::Peer { id, store_id, ..Default::default() })
            }
        };
        self.order(store, &view, RegionCommand::ChangePeer { kind, peer });
    }

    /// Tells a store that another is gone, though it may be alive and well.
    fn give_false_hint(&mut self) {
        let (store, other) =
            (self.nemesis_rng.index(self.stores.len()), self.nemesis_rng.index(self.stores.len()));
        let store_id = self.stores[other].id;
        let hint = match self.nemesis_rng.below(4) {
            0 => Input::Unreachable { store_id },
            1 => Input::StoreBack { store_id },
            _ => Input::StoreLost { store_id },
        };
        if store != other {
            self.put_in(store, hint);
        }
    }

    /// Puts an entry into a leader's log as if its region version had been right when it was proposed: the check at
    /// apply must refuse it.
    fn forge_stale_entry(&mut self) {
        let Some((store, view)) = self.any_leader() else { return };
        let key = self.clients.any_register();
        if !view.meta.contains(&key) {
            return;
        }
        let mut write = WriteSet::default();
        write.put(Cf::Raw, &key, &[&self.clients.forbidden_value().to_be_bytes()]);
        let entry = eraftpb::Entry { data: write.seal(view.meta.version() - 1), ..Default::default() };
        let mut m = eraftpb::Message { from: view.peer.id, to: view.peer.id, ..Default::default() };
        m.set_msg_type(eraftpb::MessageType::MsgPropose);
        m.entries = vec![entry].into();
        let epoch = view.meta.region.region_epoch.unwrap_or_default();
        let payload = Payload::Raft(Box::new(m));
        let (region_id, from) = (view.meta.region.id, view.peer);
        let message = PeerMessage { region_id, from, to: from, epoch, range: None, payload };
        self.put_in(store, Input::Raft(message));
    }

    /// Everything comes back and works from now on.
    pub fn heal(&mut self) {
        self.healed = true;
        self.network.heal();
        for store in 0..self.stores.len() {
            self.stores[store].paused_until_ns = self.stores[store].paused_until_ns.min(self.now_ns + MS);
            if !self.stores[store].is_up() {
                self.queue.push(self.now_ns + MS, Event::Restart(store));
            }
        }
        // False hints end when the hinted stores are heard of; orders are taken back by the scheduler.
        self.clients.calm_down(2);
        self.calm_transactions();
        for client in 0..self.clients.len() {
            self.queue.push(self.now_ns + MS, Event::ClientWakes(client));
        }
    }
}
