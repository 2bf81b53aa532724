//! Named plans: which faults, which load, what sizes. Each leaves the rest to the seed, like the plan of any seed.
//!
//! A scenario also names what must have been seen for a run of it to mean anything: a test of snapshots without a
//! snapshot tests nothing.

use kvserver::raftstore::split_keys::SplitLimits;

use super::plan::{Fault, MS, Plan};
use super::rng::Rng;
use super::run::Summary;
use super::txn::workload::Workload;

/// How many clients there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    One,
    Many,
}

/// How the network between stores, and between clients and stores, behaves while no link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    Reliable,
    /// Messages get lost, doubled, late and out of order.
    Unreliable,
}

/// Something that has to happen in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    Crashes,
    Partitions,
    Elections,
    Snapshots,
    ConfChanges,
    Returns,
    SchedulerChanges,
    Splits,
    /// Transactions that committed.
    Commits,
    /// Transactional clients that died.
    ClientCrashes,
}

/// See the file's head.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// In one line.
    pub about: &'static str,
    clients: Clients,
    network: Network,
    /// Kinds of faults and their weights.
    faults: &'static [(Fault, u64)],
    /// Faults in all.
    at_most: u64,
    /// They follow each other closely.
    often: bool,
    /// The log is kept so short that a follower which was away needs a snapshot.
    short_log: bool,
    /// What transactional clients do; without it there are none.
    transactions: Option<Workload>,
    /// They die now and then.
    clients_die: bool,
    /// Stores, from and to.
    stores: (u64, u64),
    /// Events before everything heals, unless another number is asked for.
    pub events: u64,
    /// What some of a few seeds must have seen.
    pub sights: &'static [Sight],
}

/// What a scenario is when it does not say otherwise.
const PLAIN: Scenario = Scenario {
    name: "",
    about: "",
    clients: Clients::Many,
    network: Network::Reliable,
    faults: &[],
    at_most: u64::MAX,
    often: false,
    short_log: false,
    transactions: None,
    clients_die: false,
    stores: (3, 5),
    events: 12_000,
    sights: &[],
};

const PARTITIONS: &[(Fault, u64)] = &[(Fault::Partition, 1)];
const RESTARTS: &[(Fault, u64)] = &[(Fault::PowerCut, 1), (Fault::Crash, 2)];
const RESTARTS_PARTITIONS: &[(Fault, u64)] =
    &[(Fault::PowerCut, 1), (Fault::Crash, 2), (Fault::Partition, 3)];
const MEMBERS: &[(Fault, u64)] = &[(Fault::Membership, 1)];
const MEMBERS_RESTARTS: &[(Fault, u64)] = &[(Fault::Membership, 4), (Fault::PowerCut, 1), (Fault::Crash, 2)];
const MEMBERS_ALL: &[(Fault, u64)] = &[
    (Fault::Membership, 4),
    (Fault::PowerCut, 1),
    (Fault::Crash, 2),
    (Fault::Partition, 3),
    (Fault::Transfer, 2),
];

const SPLITS: &[(Fault, u64)] = &[(Fault::Split, 1)];
const SPLITS_RESTARTS: &[(Fault, u64)] = &[(Fault::Split, 4), (Fault::PowerCut, 1), (Fault::Crash, 2)];
const SPLITS_ALL: &[(Fault, u64)] = &[
    (Fault::Split, 4),
    (Fault::Membership, 4),
    (Fault::PowerCut, 1),
    (Fault::Crash, 2),
    (Fault::Partition, 3),
    (Fault::Transfer, 2),
];
const EVERYTHING: &[(Fault, u64)] = &[
    (Fault::Split, 6),
    (Fault::Membership, 6),
    (Fault::PowerCut, 1),
    (Fault::Crash, 4),
    (Fault::Pause, 3),
    (Fault::Partition, 5),
    (Fault::Transfer, 4),
    (Fault::Scheduler, 2),
    (Fault::FalseHint, 2),
    (Fault::StaleEntry, 2),
    (Fault::StoreAway, 1),
    (Fault::Drift, 1),
];

/// Every scenario.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "basic", about: "one client, nothing fails", clients: Clients::One, ..PLAIN },
    Scenario { name: "concurrent", about: "many clients, nothing fails", ..PLAIN },
    Scenario {
        name: "unreliable_network",
        about: "many clients; messages get lost, doubled, late and out of order",
        network: Network::Unreliable,
        ..PLAIN
    },
    Scenario {
        name: "one_partition_one_client",
        about: "the network is divided once",
        clients: Clients::One,
        faults: PARTITIONS,
        at_most: 1,
        sights: &[Sight::Partitions],
        ..PLAIN
    },
    Scenario {
        name: "many_partitions_one_client",
        about: "the network is divided again and again",
        clients: Clients::One,
        faults: PARTITIONS,
        sights: &[Sight::Partitions, Sight::Elections],
        ..PLAIN
    },
    Scenario {
        name: "many_partitions_many_clients",
        about: "the network is divided again and again, under load",
        faults: PARTITIONS,
        sights: &[Sight::Partitions, Sight::Elections],
        ..PLAIN
    },
    Scenario {
        name: "persist_one_client",
        about: "stores crash and start again, one or all at once",
        clients: Clients::One,
        faults: RESTARTS,
        sights: &[Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "persist_many_clients",
        about: "stores crash and start again under load",
        faults: RESTARTS,
        sights: &[Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "persist_unreliable",
        about: "stores crash and start again over an unreliable network",
        network: Network::Unreliable,
        faults: RESTARTS,
        sights: &[Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "persist_partitions",
        about: "stores crash and start again while the network is divided",
        faults: RESTARTS_PARTITIONS,
        sights: &[Sight::Crashes, Sight::Partitions],
        ..PLAIN
    },
    Scenario {
        name: "persist_partitions_unreliable",
        about: "the same over an unreliable network",
        network: Network::Unreliable,
        faults: RESTARTS_PARTITIONS,
        sights: &[Sight::Crashes, Sight::Partitions],
        ..PLAIN
    },
    Scenario {
        name: "snapshot_recover",
        about: "short logs: followers need snapshots, stores crash and start again",
        clients: Clients::One,
        faults: RESTARTS_PARTITIONS,
        short_log: true,
        events: 16_000,
        sights: &[Sight::Crashes, Sight::Snapshots],
        ..PLAIN
    },
    Scenario {
        name: "snapshot_recover_many_clients",
        about: "snapshots and restarts under load",
        faults: RESTARTS_PARTITIONS,
        short_log: true,
        events: 16_000,
        sights: &[Sight::Crashes, Sight::Snapshots],
        ..PLAIN
    },
    Scenario {
        name: "snapshot_unreliable",
        about: "snapshots over an unreliable network that is divided now and then",
        network: Network::Unreliable,
        faults: PARTITIONS,
        short_log: true,
        events: 16_000,
        sights: &[Sight::Snapshots],
        ..PLAIN
    },
    Scenario {
        name: "snapshot_unreliable_recover",
        about: "snapshots, restarts and partitions over an unreliable network",
        network: Network::Unreliable,
        faults: RESTARTS_PARTITIONS,
        short_log: true,
        events: 16_000,
        sights: &[Sight::Crashes, Sight::Snapshots],
        ..PLAIN
    },
    Scenario {
        name: "transfer_leader",
        about: "leadership is handed on again and again",
        faults: &[(Fault::Transfer, 1)],
        sights: &[Sight::Elections],
        ..PLAIN
    },
    Scenario {
        name: "conf_change",
        about: "members come and go",
        faults: MEMBERS,
        stores: (4, 5),
        sights: &[Sight::ConfChanges],
        ..PLAIN
    },
    Scenario {
        name: "conf_change_recover",
        about: "members come and go while stores crash and start again",
        clients: Clients::One,
        faults: MEMBERS_RESTARTS,
        stores: (4, 5),
        sights: &[Sight::ConfChanges, Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "conf_change_recover_many_clients",
        about: "the same under load",
        faults: MEMBERS_RESTARTS,
        stores: (4, 5),
        sights: &[Sight::ConfChanges, Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "conf_change_unreliable_recover",
        about: "members come and go, stores crash, the network is unreliable",
        network: Network::Unreliable,
        faults: MEMBERS_RESTARTS,
        stores: (4, 5),
        sights: &[Sight::ConfChanges, Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "conf_change_snapshot_unreliable_recover",
        about: "members, snapshots, restarts, partitions and transfers over an unreliable network",
        network: Network::Unreliable,
        faults: MEMBERS_ALL,
        short_log: true,
        events: 16_000,
        stores: (4, 5),
        sights: &[Sight::ConfChanges, Sight::Crashes, Sight::Snapshots],
        ..PLAIN
    },
    Scenario {
        name: "store_loss_and_return",
        about: "a store is away until its replicas are replaced, and comes back with its old data",
        faults: &[(Fault::StoreAway, 1)],
        stores: (4, 5),
        events: 25_000,
        sights: &[Sight::Returns, Sight::ConfChanges],
        ..PLAIN
    },
    Scenario {
        name: "scheduler_change",
        about: "schedulers replace each other while members come and go; old orders arrive late",
        faults: &[(Fault::Scheduler, 2), (Fault::Membership, 2), (Fault::Crash, 1)],
        stores: (4, 5),
        sights: &[Sight::SchedulerChanges, Sight::ConfChanges],
        ..PLAIN
    },
    Scenario {
        name: "one_split",
        about: "a region is divided once, nothing fails",
        clients: Clients::One,
        faults: SPLITS,
        at_most: 1,
        sights: &[Sight::Splits],
        ..PLAIN
    },
    Scenario {
        name: "split_storm",
        about: "regions are divided again and again while leadership moves",
        faults: &[(Fault::Split, 3), (Fault::Transfer, 1)],
        sights: &[Sight::Splits],
        ..PLAIN
    },
    Scenario {
        name: "split_recover",
        about: "regions are divided while stores crash and start again",
        clients: Clients::One,
        faults: SPLITS_RESTARTS,
        sights: &[Sight::Splits, Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "split_recover_many_clients",
        about: "the same under load",
        faults: SPLITS_RESTARTS,
        sights: &[Sight::Splits, Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "split_unreliable",
        about: "regions are divided over an unreliable network",
        network: Network::Unreliable,
        faults: SPLITS,
        sights: &[Sight::Splits],
        ..PLAIN
    },
    Scenario {
        name: "split_unreliable_recover",
        about: "regions are divided, stores crash, the network is unreliable",
        network: Network::Unreliable,
        faults: SPLITS_RESTARTS,
        sights: &[Sight::Splits, Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "split_conf_change_snapshot_unreliable_recover",
        about: "splits, members, snapshots, restarts, partitions and transfers over an unreliable network",
        network: Network::Unreliable,
        faults: SPLITS_ALL,
        short_log: true,
        events: 16_000,
        stores: (4, 5),
        sights: &[Sight::Splits, Sight::ConfChanges, Sight::Crashes, Sight::Snapshots],
        ..PLAIN
    },
    Scenario {
        name: "everything_together",
        about: "every fault there is, over an unreliable network",
        network: Network::Unreliable,
        faults: EVERYTHING,
        short_log: true,
        events: 24_000,
        stores: (4, 5),
        sights: &[
            Sight::Splits,
            Sight::ConfChanges,
            Sight::Crashes,
            Sight::Partitions,
            Sight::Snapshots,
            Sight::SchedulerChanges,
        ],
        ..PLAIN
    },
    Scenario {
        name: "txn_bank",
        about: "transfers between accounts, nothing fails",
        transactions: Some(Workload::Bank),
        sights: &[Sight::Commits],
        ..PLAIN
    },
    Scenario {
        name: "txn_registers",
        about: "read-modify-writes of several registers, nothing fails",
        transactions: Some(Workload::Registers),
        sights: &[Sight::Commits],
        ..PLAIN
    },
    Scenario {
        name: "txn_lists",
        about: "appends to several lists, nothing fails",
        transactions: Some(Workload::Lists),
        sights: &[Sight::Commits],
        ..PLAIN
    },
    Scenario {
        name: "txn_skew",
        about: "pairs of keys of which one is to stay set, some of them locked",
        transactions: Some(Workload::Skew),
        sights: &[Sight::Commits],
        ..PLAIN
    },
    Scenario {
        name: "txn_clients_die",
        about: "clients die between any two steps of their transactions",
        transactions: Some(Workload::Lists),
        clients_die: true,
        sights: &[Sight::Commits, Sight::ClientCrashes],
        ..PLAIN
    },
    Scenario {
        name: "txn_unreliable",
        about: "requests get lost, doubled and late while clients die",
        network: Network::Unreliable,
        transactions: Some(Workload::Registers),
        clients_die: true,
        sights: &[Sight::Commits, Sight::ClientCrashes],
        ..PLAIN
    },
    Scenario {
        name: "txn_leader_changes",
        about: "leadership is handed on again and again under transactions",
        faults: &[(Fault::Transfer, 1)],
        often: true,
        transactions: Some(Workload::Lists),
        sights: &[Sight::Commits, Sight::Elections],
        ..PLAIN
    },
    Scenario {
        name: "txn_recover",
        about: "stores crash and start again under transactions, and clients die",
        faults: RESTARTS,
        transactions: Some(Workload::Bank),
        clients_die: true,
        sights: &[Sight::Commits, Sight::Crashes],
        ..PLAIN
    },
    Scenario {
        name: "txn_partitions_drift",
        about: "the network is divided and clocks change their rates under transactions",
        network: Network::Unreliable,
        faults: &[(Fault::Partition, 3), (Fault::Drift, 1), (Fault::Pause, 1)],
        transactions: Some(Workload::Lists),
        sights: &[Sight::Commits, Sight::Partitions],
        ..PLAIN
    },
    Scenario {
        name: "txn_split_storm",
        about: "regions are divided and led elsewhere under transactions",
        faults: &[(Fault::Split, 3), (Fault::Transfer, 1)],
        transactions: Some(Workload::Registers),
        clients_die: true,
        sights: &[Sight::Commits, Sight::Splits],
        ..PLAIN
    },
    Scenario {
        name: "txn_scheduler_changes",
        about: "schedulers replace each other, and with them the source of timestamps",
        faults: &[(Fault::Scheduler, 2), (Fault::Transfer, 1)],
        transactions: Some(Workload::Bank),
        clients_die: true,
        sights: &[Sight::Commits, Sight::SchedulerChanges],
        ..PLAIN
    },
    Scenario {
        name: "txn_everything_together",
        about: "transactions under every fault there is, over an unreliable network",
        network: Network::Unreliable,
        faults: EVERYTHING,
        short_log: true,
        transactions: Some(Workload::Lists),
        clients_die: true,
        events: 24_000,
        stores: (4, 5),
        sights: &[
            Sight::Commits,
            Sight::ClientCrashes,
            Sight::Splits,
            Sight::Crashes,
            Sight::Partitions,
            Sight::Snapshots,
        ],
        ..PLAIN
    },
];

impl Scenario {
    /// The scenario with this name.
    pub fn named(name: &str) -> Option<&'static Scenario> {
        SCENARIOS.iter().find(|s| s.name == name)
    }

    /// The plan of a seed in this scenario.
    pub fn plan(&self, seed: u64) -> Plan {
        let mut rng = Rng::new(seed, 7);
        let mut plan = Plan::draw_with(seed, Some(self.stores));
        plan.load.clients = match self.clients {
            Clients::One => 1,
            Clients::Many => rng.range(3, 8) as usize,
        };
        let network = &mut plan.network;
        (network.loss, network.duplicate, network.straggle, network.client_loss) = match self.network {
            Network::Reliable => (0.0, 0.0, 0.0, 0.0),
            Network::Unreliable => (0.05 + rng.share(0.1), rng.share(0.1), 0.001 + rng.share(0.02), 0.03),
        };
        network.fifo = self.network == Network::Reliable;
        plan.disk.stall = 0.0;
        plan.faults.weights = self.faults.to_vec();
        plan.faults.at_most = self.at_most;
        if self.often {
            plan.faults.every_ns = (10 * MS, 60 * MS);
        }
        if !self.faults.iter().any(|(fault, _)| *fault == Fault::Split) {
            plan.split = SplitLimits::default();
        }
        plan.set_transactions(self.transactions, self.clients_die);
        if self.short_log {
            plan.keep_logs_short();
            plan.regions = 1;
        }
        // Otherwise little happens in a run, and a follower that was away missed little.
        if self.clients == Clients::One || self.short_log {
            plan.load.think_ns = (MS / 10, 5 * MS);
            plan.load.noise = 30;
        }
        plan
    }
}

impl Sight {
    /// How often a run saw it.
    pub fn count(self, run: &Summary) -> u64 {
        match self {
            Sight::Crashes => run.crashes,
            Sight::Partitions => run.partitions,
            // The first leader of a region is no news.
            Sight::Elections => run.elections.saturating_sub(run.regions),
            // A member that joins takes two changes and a snapshot; others count.
            Sight::Snapshots => (run.snapshots * 2).saturating_sub(run.conf_changes),
            Sight::ConfChanges => run.conf_changes,
            Sight::Returns => run.returns,
            Sight::SchedulerChanges => run.scheduler_changes,
            Sight::Splits => run.splits,
            Sight::Commits => run.committed,
            Sight::ClientCrashes => run.client_crashes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let names: BTreeSet<&str> = SCENARIOS.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        assert!(names.into_iter().all(|name| Scenario::named(name).is_some_and(|s| s.name == name)));
        assert!(Scenario::named("no such scenario").is_none());
    }

    #[test]
    fn a_scenario_is_the_same_plan_for_the_same_seed_and_another_for_another() {
        let scenario = Scenario::named("snapshot_unreliable_recover").expect("declared");
        let show = |seed| format!("{:?}", scenario.plan(seed));
        assert_eq!(show(3), show(3));
        assert_ne!(show(3), show(4));
        assert!(Scenario::named("basic").expect("declared").plan(1).faults.weights.is_empty());
    }
}
