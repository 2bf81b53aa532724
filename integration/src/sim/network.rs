//! The network between stores: latency, loss, duplication, reordering, links that are cut one way or both.
//!
//! Owns the state of every link. It decides when (and whether) a message arrives; the world delivers it.

use super::plan::{MS, NetworkPlan};
use super::rng::Rng;

/// See the file's head.
pub struct Network {
    plan: NetworkPlan,
    rng: Rng,
    stores: usize,
    /// `cut[from * stores + to]`.
    cut: Vec<bool>,
    /// Stores that reach no other store and no scheduler, for long.
    away: Vec<bool>,
    /// Stores that do not reach the scheduler.
    no_scheduler: Vec<bool>,
    /// Last arrival per link, for networks that keep the order.
    last: Vec<u64>,
    healed: bool,
}

/// When the copies of a message arrive: none, one or two times.
pub type Arrivals = [Option<u64>; 2];

impl Network {
    /// A network of `stores` stores without cuts.
    pub fn new(plan: NetworkPlan, stores: usize, rng: Rng) -> Network {
        let links = stores * stores;
        let (away, no_scheduler) = (vec![false; stores], vec![false; stores]);
        Network {
            plan,
            rng,
            stores,
            cut: vec![false; links],
            away,
            no_scheduler,
            last: vec![0; links],
            healed: false,
        }
    }

    /// Whether messages from one store reach the other.
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[from * self.stores + to] || self.away[from] || self.away[to]
    }

    /// Takes a store off the network between stores, or puts it back.
    pub fn set_away(&mut self, store: usize, away: bool) {
        self.away[store] = away;
    }

    /// Whether a store is off the network between stores.
    pub fn is_away(&self, store: usize) -> bool {
        self.away[store]
    }

    /// Cuts a store off from the scheduler until links are mended.
    pub fn cut_scheduler(&mut self, store: usize) {
        self.no_scheduler[store] = true;
    }

    /// Whether a message between a store and the scheduler gets lost.
    pub fn loses_scheduler_message(&mut self, store: usize) -> bool {
        self.no_scheduler[store] || self.away[store] || self.loses_request()
    }

    /// Cuts or mends one direction of a link.
    pub fn set_cut(&mut self, from: usize, to: usize, cut: bool) {
        self.cut[from * self.stores + to] = cut;
    }

    /// Mends every link; stores that are away stay away.
    pub fn mend_all(&mut self) {
        self.cut.fill(false);
        self.no_scheduler.fill(false);
    }

    /// From now on nothing is lost, doubled or late.
    pub fn heal(&mut self) {
        self.mend_all();
        self.away.fill(false);
        self.healed = true;
    }

    /// When a message sent now arrives.
    pub fn send(&mut self, now_ns: u64, from: usize, to: usize) -> Arrivals {
        let (link, cut) = (from * self.stores + to, self.is_cut(from, to));
        let latency = self.latency();
        let lost = !self.healed && self.rng.chance(self.plan.loss);
        let doubled = !self.healed && self.rng.chance(self.plan.duplicate);
        let again = self.latency() * 3;
        if cut || lost {
            return [None, None];
        }
        let mut at = now_ns + latency;
        if self.plan.fifo {
            at = at.max(self.last[link]);
            self.last[link] = at;
        }
        [Some(at), doubled.then_some(at + again)]
    }

    /// The time one message takes, nanoseconds.
    pub fn latency(&mut self) -> u64 {
        let (low, high) = self.plan.latency_ns;
        let straggles = !self.healed && self.rng.chance(self.plan.straggle);
        let extra = if straggles { self.rng.range(10 * MS, 2_000 * MS) } else { 0 };
        self.rng.range(low, high) + extra
    }

    /// Whether a snapshot's stream breaks.
    pub fn breaks_stream(&mut self) -> bool {
        self.rng.chance(self.plan.loss) && !self.healed
    }

    /// Whether a message between a client and a store gets lost.
    pub fn loses_request(&mut self) -> bool {
        self.rng.chance(self.plan.client_loss) && !self.healed
    }

    /// Whether a request of a client arrives twice.
    pub fn doubles_request(&mut self) -> bool {
        self.rng.chance(self.plan.duplicate) && !self.healed
    }

    /// Whether this message is to take the way through the wire format.
    pub fn by_wire(&mut self) -> bool {
        self.rng.below(64) == 0
    }
}
