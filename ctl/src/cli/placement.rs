//! Nouns and verbs about where replicas and leaders are: operators, schedulers and their limits. No behaviour.

use clap::{Args, Subcommand};

use super::CodingArgs;

/// Verbs on operators.
#[derive(Debug, Subcommand)]
pub enum Operator {
    /// Operators that run.
    List {
        /// Only those of a kind: leader, region, replica, evict or admin.
        #[arg(long)]
        kind: Option<String>,
    },
    /// The operator of a region: the one that runs, or the one that ended last.
    Show {
        /// Number of the region.
        region: u64,
    },
    /// Ask for an operator. It is obeyed when it is safe; what goes against the number of replicas is undone later.
    #[command(subcommand)]
    Add(Order),
    /// Give up the operator of a region. What its steps have done stays.
    Cancel {
        /// Number of the region.
        region: u64,
    },
    /// Operators that ended, the latest first, with how and why.
    History {
        /// Most operators to print; 0 prints all that are remembered.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
}

/// What an operator is to do.
#[derive(Debug, Subcommand)]
pub enum Order {
    /// Make the replica on a store the leader.
    TransferLeader {
        /// Number of the region.
        region: u64,
        /// Number of the store.
        store: u64,
    },
    /// Put the replicas on exactly these stores.
    TransferRegion {
        /// Number of the region.
        region: u64,
        /// Numbers of the stores, as many as there are replicas.
        #[arg(required = true)]
        stores: Vec<u64>,
    },
    /// Move a replica from one store to another.
    TransferPeer {
        /// Number of the region.
        region: u64,
        /// Number of the store that loses it.
        from: u64,
        /// Number of the store that gains it.
        to: u64,
    },
    /// Add a replica.
    AddPeer {
        /// Number of the region.
        region: u64,
        /// Number of the store.
        store: u64,
    },
    /// Add a replica without a vote.
    AddLearner {
        /// Number of the region.
        region: u64,
        /// Number of the store.
        store: u64,
    },
    /// Remove a replica.
    RemovePeer {
        /// Number of the region.
        region: u64,
        /// Number of the store.
        store: u64,
    },
    /// Split a region at raw keys of the default keyspace, or in half.
    Split(SplitArgs),
    /// Spread the replicas and leaders of regions over the stores.
    Scatter {
        /// Numbers of the regions.
        #[arg(required = true)]
        regions: Vec<u64>,
        /// Regions of a group are spread among each other, also by several commands.
        #[arg(long, default_value = "")]
        group: String,
    },
}

/// Where to split a region.
#[derive(Debug, Args)]
pub struct SplitArgs {
    /// Number of the region.
    pub region: u64,
    /// First key of a new region; may be given several times. Without it the region is split in half.
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// How keys are written.
    #[command(flatten)]
    pub coding: CodingArgs,
}

/// Verbs on limits of placement.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Every limit with its value.
    Show,
    /// Change a limit. It outlives the scheduler, and counts more than its configuration file from then on.
    Set {
        /// Its name, as `kvctl config show` lists it.
        key: String,
        /// A number, a duration such as 10m, true or false.
        value: String,
    },
}

/// Verbs on schedulers.
#[derive(Debug, Subcommand)]
pub enum Scheduler {
    /// The schedulers that are there.
    List,
    /// Add a scheduler.
    Add {
        /// Its name, such as evict-leader-scheduler.
        name: String,
        /// For evict-leader-scheduler: the store to keep free of leaders.
        #[arg(long)]
        store: Option<u64>,
    },
    /// Remove a scheduler.
    Remove {
        /// Its name.
        name: String,
        /// For evict-leader-scheduler: only give up this store.
        #[arg(long)]
        store: Option<u64>,
    },
    /// Let a scheduler do nothing for a while.
    Pause {
        /// Its name, or `all`.
        name: String,
        /// For how long.
        #[arg(value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
    /// End the pause of a scheduler.
    Resume {
        /// Its name, or `all`.
        name: String,
    },
}
