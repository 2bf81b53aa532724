//! Every named plan of the simulator, with a few seeds each: the runs pass, and what the plan is about happened.

use std::collections::BTreeSet;

use integration::sim::{RunOptions, SCENARIOS, Scenario, Summary, run};

const SEEDS: u64 = 6;

#[track_caller]
fn passes(name: &str) {
    let scenario = Scenario::named(name).unwrap_or_else(|| panic!("no scenario {name}"));
    let go = |seed| run(RunOptions::scenario(scenario, seed)).unwrap_or_else(|failure| panic!("{failure}"));
    let runs: Vec<Summary> = (1..=SEEDS).map(go).collect();
    assert!(runs.iter().all(|run| run.operations > 0), "{name}: nobody got anything done");
    for sight in scenario.sights {
        assert!(runs.iter().any(|run| sight.count(run) > 0), "{name}: no {sight:?} in {SEEDS} seeds");
    }
}

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(#[test]
        fn $name() {
            passes(stringify!($name));
        })*
    };
}

scenarios! {
    basic,
    concurrent,
    unreliable_network,
    one_partition_one_client,
    many_partitions_one_client,
    many_partitions_many_clients,
    persist_one_client,
    persist_many_clients,
    persist_unreliable,
    persist_partitions,
    persist_partitions_unreliable,
    snapshot_recover,
    snapshot_recover_many_clients,
    snapshot_unreliable,
    snapshot_unreliable_recover,
    transfer_leader,
    conf_change,
    conf_change_recover,
    conf_change_recover_many_clients,
    conf_change_unreliable_recover,
    conf_change_snapshot_unreliable_recover,
    store_loss_and_return,
    scheduler_change,
    one_split,
    split_storm,
    split_recover,
    split_recover_many_clients,
    split_unreliable,
    split_unreliable_recover,
    split_conf_change_snapshot_unreliable_recover,
    everything_together,
    txn_bank,
    txn_registers,
    txn_lists,
    txn_skew,
    txn_clients_die,
    txn_unreliable,
    txn_leader_changes,
    txn_recover,
    txn_partitions_drift,
    txn_split_storm,
    txn_scheduler_changes,
    txn_everything_together,
}

#[test]
fn every_scenario_is_tested() {
    let declared: BTreeSet<&str> = SCENARIOS.iter().map(|s| s.name).collect();
    assert_eq!(TESTED.iter().copied().collect::<BTreeSet<_>>(), declared);
}
