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
const TRANSPORT: Backoff = Backoff::from_millis(10, 500);
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
            regions if regions.iter().any(|region| is_older(region, &attempt.epoch)) => {
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
    if error.undetermined_result.is_some() || error.stale_command.is_some() {
        // A command of an earlier term may have been committed by the next leader.
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
