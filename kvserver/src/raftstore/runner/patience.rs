//! How long background work may keep failing before the store gives up.
//!
//! A snapshot that cannot be put in place, a peer that cannot be removed, a log that cannot be shortened: once is
//! bad luck, again and again is a disk that fails, and a store that hides it keeps its place in quorums that it does
//! not serve. Owns a count of failures in a row for each region.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::raftstore::raft_worker::Fatal;

/// Failures in a row that are borne. The worker pauses for a second after each.
const FAILURES_MAX: u32 = 10;

/// See the file's head.
pub(super) struct Patience {
    fatal: Fatal,
    failures: Mutex<BTreeMap<u64, u32>>,
}

impl Patience {
    pub(super) fn new(fatal: Fatal) -> Patience {
        Patience { fatal, failures: Mutex::default() }
    }

    /// Work for a region has failed; `what` says how, and ends the store when it was once too often.
    pub(super) fn failed(&self, region_id: u64, what: impl FnOnce() -> String) {
        let failures = {
            let mut failures = self.failures.lock();
            let count = failures.entry(region_id).or_default();
            *count += 1;
            *count
        };
        if failures == FAILURES_MAX {
            (self.fatal)(format!("{} times in a row: {}", FAILURES_MAX, what()));
        }
    }

    /// Work for a region was done.
    pub(super) fn succeeded(&self, region_id: u64) {
        self.failures.lock().remove(&region_id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_failures_in_a_row_of_one_region_end_the_store() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let fatal: Fatal = {
            let told = told.clone();
            Arc::new(move |reason| told.lock().push(reason))
        };
        let patience = Patience::new(fatal);
        for n in 1..FAILURES_MAX {
            patience.failed(7, || unreachable!("failure {n}"));
            patience.failed(8, || unreachable!("failure {n}"));
        }
        patience.succeeded(7);
        patience.failed(7, || unreachable!("the first of a new row"));
        assert!(told.lock().is_empty());
        patience.failed(8, || "no disk".into());
        assert_eq!(*told.lock(), ["10 times in a row: no disk"]);
    }
}
