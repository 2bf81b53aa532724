//! The simulator itself: seeds pass and repeat, and each deliberate mistake is caught by a checker within a few
//! seeds. Many more seeds run with `make sim`.

use integration::sim::{Breakage, Class, Failure, RunOptions, Scenario, run};

const EVENTS: u64 = 10_000;

fn options(seed: u64, breakage: Breakage) -> RunOptions {
    RunOptions { breakage, ..RunOptions::seed(seed, EVENTS) }
}

/// The first failure within `seeds` seeds.
fn first_failure(breakage: Breakage, seeds: u64) -> Option<Failure> {
    (1..=seeds).find_map(|seed| run(options(seed, breakage)).err())
}

/// Demands that `breakage` is caught within `seeds` seeds, by one of `checkers`.
#[track_caller]
fn caught(breakage: Breakage, seeds: u64, checkers: &[&str]) {
    noticed(breakage, first_failure(breakage, seeds), checkers);
}

/// The same in a scenario.
#[track_caller]
fn caught_in(scenario: &str, breakage: Breakage, seeds: u64, checkers: &[&str]) {
    let scenario = Scenario::named(scenario).expect("a scenario");
    let go = |seed| run(RunOptions { breakage, ..RunOptions::scenario(scenario, seed) }).err();
    noticed(breakage, (1..=seeds).find_map(go), checkers);
}

#[track_caller]
fn noticed(breakage: Breakage, failure: Option<Failure>, checkers: &[&str]) {
    let failure = failure.unwrap_or_else(|| panic!("{breakage:?} was not noticed"));
    assert!(
        checkers.contains(&failure.checker.as_str()),
        "{breakage:?} was noticed by another checker: {failure}"
    );
    if failure.checker != "panic" {
        assert_eq!(failure.class, Class::Safety);
    }
}

#[test]
fn seeds_pass() {
    if let Some(failure) = first_failure(Breakage::None, 20) {
        panic!("{failure}");
    }
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 1..=3 {
        let once = run(options(seed, Breakage::None)).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(once.operations > 0 && once.entries > 0, "nothing happened: {once:?}");
        assert_eq!(run(options(seed, Breakage::None)), Ok(once));
    }
}

#[test]
fn a_failure_says_how_to_replay_it() {
    let failure = first_failure(Breakage::AckBeforePersist, 1).expect("noticed at once");
    let line = format!("cargo run -p integration --bin sim -- run --seed 1 --events {EVENTS}");
    assert!(failure.to_string().contains(&line), "{failure}");
}

#[test]
fn an_acknowledgement_before_the_log_is_durable_is_caught() {
    caught(Breakage::AckBeforePersist, 1, &["log"]);
}

#[test]
fn entries_lost_after_their_acknowledgement_are_caught_by_their_effects() {
    caught(
        Breakage::LostEntries,
        20,
        &["commit", "state", "linear", "stopped", "restart", "coverage", "panic"],
    );
}

#[test]
fn reads_that_ignore_the_lease_are_caught() {
    caught(Breakage::StaleLease, 60, &["lease", "linear"]);
}

#[test]
fn a_lease_by_a_slow_clock_is_caught() {
    caught(Breakage::SlowClock, 60, &["lease"]);
}

#[test]
fn a_skipped_epoch_check_at_propose_is_caught() {
    caught(Breakage::EpochAtPropose, 20, &["epoch"]);
}

#[test]
fn a_skipped_epoch_check_at_apply_is_caught() {
    caught(Breakage::EpochAtApply, 20, &["epoch"]);
}

#[test]
fn a_gap_between_commit_and_apply_is_caught() {
    caught(Breakage::ApplyGap, 3, &["commit"]);
}

#[test]
fn another_entry_than_the_committed_one_is_caught() {
    caught(Breakage::ApplyOther, 3, &["commit"]);
}

#[test]
fn an_applied_index_without_its_effects_is_caught() {
    caught(Breakage::ApplyTorn, 5, &["state"]);
}

#[test]
fn a_lease_that_outlives_a_split_is_caught() {
    caught_in("split_storm", Breakage::LeaseOverSplit, 5, &["lease"]);
}

#[test]
fn a_split_that_is_not_on_disk_before_its_effects_is_caught() {
    caught_in("split_recover", Breakage::SplitWithoutSync, 40, &["epoch", "coverage", "state", "restart"]);
}

/// Checkers that judge transactions.
const TRANSACTIONS: &[&str] = &["snapshot", "cycles", "settle", "bank", "skew"];

#[test]
fn a_commit_that_does_not_look_for_its_lock_is_caught() {
    caught_in("txn_partitions_drift", Breakage::CommitWithoutLock, 20, TRANSACTIONS);
}

#[test]
fn a_prewrite_that_does_not_look_for_conflicts_is_caught() {
    caught_in("txn_registers", Breakage::PrewriteWithoutConflicts, 5, TRANSACTIONS);
}

#[test]
fn commands_that_do_not_take_turns_are_caught() {
    caught_in("txn_lists", Breakage::CommandsWithoutLatches, 5, TRANSACTIONS);
}

#[test]
fn reads_that_pass_locks_are_caught() {
    caught_in("txn_bank", Breakage::ReadsPassLocks, 10, TRANSACTIONS);
}

#[test]
fn a_commit_timestamp_below_reads_is_caught() {
    caught_in("txn_lists", Breakage::MinCommitTsBelowReads, 5, TRANSACTIONS);
}

#[test]
fn reads_that_pass_memory_locks_are_caught() {
    caught_in("txn_lists", Breakage::ReadsPassMemoryLocks, 5, TRANSACTIONS);
}

#[test]
fn a_new_leader_that_does_not_know_of_earlier_reads_is_caught() {
    caught_in("txn_leader_changes", Breakage::MaxTsNotSynced, 20, TRANSACTIONS);
}

#[test]
fn a_seed_with_transactions_runs_the_same_way_twice() {
    let scenario = Scenario::named("txn_everything_together").expect("a scenario");
    let once = run(RunOptions::scenario(scenario, 1)).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(once.committed > 0, "nothing was committed: {once:?}");
    assert_eq!(run(RunOptions::scenario(scenario, 1)), Ok(once));
}
