//! What to do after a failed attempt. One pure function: failure, attempt number, time left and jitter in; what to
//! learn about the region and whether to go on out.
//!
//! Invariant: a conditional write whose outcome is unknown is never sent again.

use std::time::Duration;

use kvproto::{errorpb, metapb};

use crate::backoff::Backoff;
use crate::region_cache::Update;

/// The region is changing: leader election, split, merge.
const REGION: Backoff = Backoff::from_millis(2, 200);
/// The store cannot be reached.
const TRANSPORT: Backoff = Backoff::from_millis(10, 200);
/// The store asks for patience.
const BUSY: Backoff = Backoff::from_millis(50, 1000);
/// An answer that names the right place is followed at once this often in a call; later ones wait, since two stores
/// that name each other would make a busy loop.
const HINTS_AT_ONCE: u32 = 3;
/// A hint by the server how long to wait is not believed beyond this.
const MAX_BUSY_WAIT: Duration = Duration::from_secs(2);

/// What a request does, as far as sending it twice matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Changes nothing.
    Read,
    /// A write that may be repeated.
    Write,
    /// A write whose second execution may differ from the first: compare-and-swap.
    ConditionalWrite,
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy)]
pub enum Failure<'a> {
    /// The store answered that it could not serve the region; the request was not executed.
    Region(&'a errorpb::Error),
    /// The request did not leave this process.
    NotSent,
    /// The connection broke after the request was sent.
    Broken,
    /// No answer in the time for one attempt.
    Silent,
}

/// Circumstances of a failed attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// What the request does.
    pub access: Access,
    /// Attempts that failed before this one.
    pub number: u32,
    /// The region the request was sent to.
    pub region_id: u64,
    /// The epoch the request was sent with.
    pub epoch: metapb::RegionEpoch,
    /// Time until the deadline of the call.
    pub left: Duration,
    /// Any number; spreads the delays.
    pub jitter: u32,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What the region cache should learn.
    pub update: Update,
    /// The connection to the store should be made anew, its address looked up again.
    pub reconnect: bool,
    /// The attempt may have been executed.
    pub unknown: bool,
    /// Whether to try again.
    pub next: Next,
}

/// Whether to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// At once.
    Now,
    /// After a pause.
    After(Duration),
    /// No: it may have been executed and must not be sent twice.
    Undetermined,
    /// No: the cluster will always refuse a write of so many bytes.
    Refused(u64),
    /// No: the deadline would pass before the next attempt.
    Deadline,
}

/// Decides what follows a failed attempt.
pub fn decide(failure: Failure<'_>, attempt: &Attempt) -> Decision {
    let mut decision = match failure {
        Failure::Region(error) => region_error(error, attempt),
        Failure::NotSent => transport(attempt, false),
        Failure::Broken | Failure::Silent => transport(attempt, true),
    };
    decision.reconnect |= matches!(failure, Failure::NotSent | Failure::Broken);
    if decision.unknown && attempt.access == Access::ConditionalWrite {
        decision.next = Next::Undetermined;
    }
    match decision.next {
        Next::Now if attempt.left.is_zero() => decision.next = Next::Deadline,
        Next::After(pause) if pause >= attempt.left => decision.next = Next::Deadline,
        _ => {}
    }
    decision
}

fn transport(attempt: &Attempt, sent: bool) -> Decision {
    // Another replica knows more, and asking it costs nothing; but only the first time.
    let next = match attempt.number {
        0 => Next::Now,
        number => Next::After(TRANSPORT.delay(number - 1, attempt.jitter)),
    };
    let unknown = sent && attempt.access != Access::Read;
    Decision { update: Update::NextPeer, reconnect: false, unknown, next }
}

fn region_error(error: &errorpb::Error, attempt: &Attempt) -> Decision {
    let pause = Next::After(REGION.delay(attempt.number, attempt.jitter));
    let at_once = if attempt.number < HINTS_AT_ONCE { Next::Now } else { pause };
    let busy = Next::After(BUSY.delay(attempt.number, attempt.jitter));
    let decision = |update, next| Decision { update, reconnect: false, unknown: false, next };
    if let Some(not_leader) = &error.not_leader {
        return match not_leader.leader.filter(|leader| leader.id != 0) {
            Some(leader) => decision(Update::Leader(leader), at_once),
            None => decision(Update::NextPeer, pause),
        };
    }
    if let Some(mismatch) = &error.epoch_not_match {
        return match &mismatch.current_regions[..] {
            [] => decision(Update::Forget, at_once),
            // Only the region itself tells whether the store is behind: neighbours have versions of their own.
            regions if regions.iter().any(|r| r.id == attempt.region_id && is_older(r, &attempt.epoch)) => {
                decision(Update::Keep, pause)
            }
            regions => decision(Update::Replace(regions.to_vec()), at_once),
        };
    }
    if let Some(busy_error) = &error.server_is_busy {
        let hint = busy_error.backoff_ms.max(u64::from(busy_error.estimated_wait_ms));
        return match Duration::from_millis(hint).min(MAX_BUSY_WAIT) {
            Duration::ZERO => decision(Update::Keep, busy),
            hint => decision(Update::Keep, Next::After(hint)),
        };
    }
    if error.store_not_match.is_some() {
        return Decision { reconnect: true, ..decision(Update::Forget, pause) };
    }
    if let Some(too_large) = &error.raft_entry_too_large {
        return decision(Update::Keep, Next::Refused(too_large.entry_size));
    }
    if error.stale_command.is_some() {
        // The command of an earlier term was overwritten: it will never be executed.
        return decision(Update::NextPeer, pause);
    }
    if error.undetermined_result.is_some() {
        let unknown = attempt.access != Access::Read;
        return Decision { unknown, ..decision(Update::NextPeer, pause) };
    }
    if error.disk_full.is_some() {
        return decision(Update::Keep, busy);
    }
    if error.is_witness.is_some() {
        return decision(Update::NextPeer, at_once);
    }
    let waits = error.read_index_not_ready.is_some()
        || error.proposal_in_merging_mode.is_some()
        || error.data_is_not_ready.is_some()
        || error.region_not_initialized.is_some()
        || error.max_timestamp_not_synced.is_some()
        || error.bucket_version_not_match.is_some()
        || error.recovery_in_progress.is_some()
        || error.flashback_in_progress.is_some();
    if waits {
        return decision(Update::Keep, pause);
    }
    // Region not found, key not in region, another peer id, or an error of the future.
    decision(Update::Forget, pause)
}

/// True when `region` shows that the store lags behind what the request knew.
fn is_older(region: &metapb::Region, epoch: &metapb::RegionEpoch) -> bool {
    let current = region.region_epoch.unwrap_or_default();
    current.version < epoch.version && current.conf_ver <= epoch.conf_ver
        || current.version <= epoch.version && current.conf_ver < epoch.conf_ver
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    /// The language of `tests/scripts/retry`: what happened to which attempt.
    #[derive(goldenscript::Command)]
    enum Command {
        /// An attempt at region 1 of epoch 5.5 failed: fail not_leader leader=2 access=cas attempt=3 left_ms=100
        Fail {
            what: String,
            #[arg(key)]
            leader: Option<u64>,
            #[arg(key)]
            version: Option<u64>,
            /// With `version`: the version of a neighbour that is told of as well.
            #[arg(key)]
            neighbour: Option<u64>,
            #[arg(key)]
            hint_ms: Option<u64>,
            #[arg(key)]
            access: Option<String>,
            #[arg(key)]
            attempt: Option<u32>,
            #[arg(key)]
            left_ms: Option<u64>,
        },
    }

    struct Runner;

    fn error(
        what: &str,
        leader: Option<u64>,
        version: Option<u64>,
        neighbour: Option<u64>,
        hint_ms: u64,
    ) -> Option<errorpb::Error> {
        let mut error = errorpb::Error::default();
        match what {
            "not_leader" => {
                let leader = leader.map(|id| metapb::Peer { id, store_id: id, ..Default::default() });
                error.not_leader = Some(errorpb::NotLeader { region_id: 1, leader });
            }
            "epoch_not_match" => {
                let region_epoch = |version| Some(metapb::RegionEpoch { version, conf_ver: 5 });
                let region = |(id, version)| metapb::Region {
                    id,
                    region_epoch: region_epoch(version),
                    ..Default::default()
                };
                let told = version.map(|v| (1, v)).into_iter().chain(neighbour.map(|v| (2, v)));
                let current_regions = told.map(region).collect();
                error.epoch_not_match = Some(errorpb::EpochNotMatch { current_regions });
            }
            "server_is_busy" => {
                let busy = errorpb::ServerIsBusy { backoff_ms: hint_ms, ..Default::default() };
                error.server_is_busy = Some(busy);
            }
            "region_not_found" => error.region_not_found = Some(Default::default()),
            "key_not_in_region" => error.key_not_in_region = Some(Default::default()),
            "store_not_match" => error.store_not_match = Some(Default::default()),
            "mismatch_peer_id" => error.mismatch_peer_id = Some(Default::default()),
            "stale_command" => error.stale_command = Some(Default::default()),
            "undetermined_result" => error.undetermined_result = Some(Default::default()),
            "raft_entry_too_large" => {
                let too_large = errorpb::RaftEntryTooLarge { region_id: 1, entry_size: 9_000_000 };
                error.raft_entry_too_large = Some(too_large);
            }
            "disk_full" => error.disk_full = Some(Default::default()),
            "region_not_initialized" => error.region_not_initialized = Some(Default::default()),
            "proposal_in_merging_mode" => error.proposal_in_merging_mode = Some(Default::default()),
            "is_witness" => error.is_witness = Some(Default::default()),
            "from_the_future" => error.message = "a kind this client does not know".to_string(),
            _ => return None,
        }
        Some(error)
    }

    fn show(decision: &Decision) -> String {
        let update = match &decision.update {
            Update::Keep => "keep".to_string(),
            Update::Leader(peer) => format!("leader is {}", peer.id),
            Update::NextPeer => "next peer".to_string(),
            Update::Forget => "forget region".to_string(),
            Update::Replace(regions) => format!("take {} region", regions.len()),
        };
        let next = match decision.next {
            Next::Now => "now".to_string(),
            Next::After(pause) => format!("after {} us", pause.as_micros()),
            Next::Undetermined => "give up: undetermined".to_string(),
            Next::Refused(size) => format!("give up: {size} bytes are too many"),
            Next::Deadline => "give up: deadline".to_string(),
        };
        let reconnect = if decision.reconnect { ", reconnect" } else { "" };
        let unknown = if decision.unknown { ", may have happened" } else { "" };
        format!("{update}{reconnect}{unknown}, {next}\n")
    }

    impl goldenscript::Runner for Runner {
        type Command = Command;

        fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
            let Command::Fail { what, leader, version, neighbour, hint_ms, access, attempt, left_ms } =
                command;
            let access = match access.as_deref() {
                None | Some("read") => Access::Read,
                Some("write") => Access::Write,
                Some("cas") => Access::ConditionalWrite,
                Some(_) => return Err("access is read, write or cas".into()),
            };
            let attempt = Attempt {
                access,
                number: attempt.unwrap_or(0),
                region_id: 1,
                epoch: metapb::RegionEpoch { version: 5, conf_ver: 5 },
                left: Duration::from_millis(left_ms.unwrap_or(5000)),
                jitter: 0,
            };
            let region_error = error(what, *leader, *version, *neighbour, hint_ms.unwrap_or(0));
            let failure = match (what.as_str(), &region_error) {
                (_, Some(error)) => Failure::Region(error),
                ("not_sent", _) => Failure::NotSent,
                ("broken", _) => Failure::Broken,
                ("silent", _) => Failure::Silent,
                _ => return Err("no such failure".into()),
            };
            Ok(show(&decide(failure, &attempt)))
        }
    }

    fn script(name: &str) {
        goldenscript::run(&mut Runner, format!("tests/scripts/retry/{name}")).unwrap();
    }

    #[test]
    fn region_errors() {
        script("region_errors");
    }

    #[test]
    fn broken_connections() {
        script("broken_connections");
    }

    #[test]
    fn deadlines() {
        script("deadlines");
    }

    #[test]
    fn a_conditional_write_that_may_have_happened_is_never_sent_again() {
        let undetermined = error("undetermined_result", None, None, None, 0).unwrap();
        let failures = [Failure::Region(&undetermined), Failure::Broken, Failure::Silent];
        for (failure, number) in failures.into_iter().flat_map(|f| (0..5).map(move |n| (f, n))) {
            let access = Access::ConditionalWrite;
            let (epoch, left) = (metapb::RegionEpoch::default(), Duration::from_secs(1));
            let decision = decide(failure, &Attempt { access, number, region_id: 1, epoch, left, jitter: 0 });
            assert_eq!(decision.next, Next::Undetermined, "{failure:?}");
        }
    }
}
