//! Keeping Raft logs short.
//!
//! Propose: from time to time a leader looks at how much of its log is applied and which part every follower has.
//! It drops what everybody has once that is worth it, and beyond the limits of count and size also what a lagging
//! follower still needs: that one will get a snapshot. Apply: the truncated index moves on every replica alike.
//! After the apply the entries are removed in the background, and only once the engine is synced up to there
//! (INV-DURABLE).

use super::super::message::{Output, Task, write_set};
use super::super::peer::{Peer, StoreCtx};
use crate::raftstore::config::RaftConfig;

/// Entries a leader keeps for followers that are only a little behind.
pub const KEEP: u64 = 16;

/// The state of a log, as far as compaction looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogShape {
    pub first: u64,
    pub applied: u64,
    /// The smallest index that every member is known to have.
    pub replicated: u64,
    /// Bytes applied since the last compaction.
    pub bytes: u64,
}

/// The index up to which the log should go now, if any.
pub fn compact_to(log: LogShape, config: &RaftConfig) -> Option<u64> {
    let applied_len = log.applied.saturating_sub(log.first);
    let target = if applied_len >= config.log_gc_count_limit || log.bytes >= config.log_gc_size_limit {
        log.applied.saturating_sub(KEEP)
    } else if log.replicated.saturating_sub(log.first) >= config.log_gc_threshold {
        log.replicated.min(log.applied)
    } else {
        return None;
    };
    (target >= log.first).then_some(target)
}

impl Peer {
    /// Proposes to shorten the log, when it is time.
    pub(in crate::raftstore) fn propose_compact_log(&mut self, ctx: &StoreCtx) {
        if self.rn.raft.lead_transferee.is_some() {
            return;
        }
        let replicated = self.rn.raft.prs().iter().map(|(_, p)| p.matched).min().unwrap_or(0);
        let first = self.rn.store().first();
        let log = LogShape { first, applied: self.applied.0, replicated, bytes: self.written.log_bytes };
        let Some(index) = compact_to(log, &ctx.config) else { return };
        let Ok(term) = self.rn.raft.raft_log.term(index) else { return };
        let data = write_set::compact_log(self.meta().version(), index, term);
        // Refused only while leadership is on its way to another peer; that one will do it.
        if let Err(error) = self.rn.propose(Vec::new(), data.to_vec()) {
            tracing::debug!(region = self.region_id, %error, "log compaction not proposed");
        }
    }

    /// The truncated index moved: entries can go.
    pub(in crate::raftstore) fn on_log_compacted(&mut self, index: u64, term: u64, out: &mut Output) {
        let from = self.rn.store().first();
        self.rn.mut_store().truncate(index, term);
        self.written.log_bytes = 0;
        out.tasks.push(Task::CompactLog { region_id: self.region_id, from, to: index + 1 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(first: u64, applied: u64, replicated: u64, bytes: u64) -> LogShape {
        LogShape { first, applied, replicated, bytes }
    }

    #[test]
    fn what_everybody_has_goes_once_it_is_worth_it() {
        let c = RaftConfig::default();
        assert_eq!(compact_to(log(6, 100, 55, 0), &c), None);
        assert_eq!(compact_to(log(6, 100, 56, 0), &c), Some(56));
        assert_eq!(compact_to(log(6, 60, 100, 0), &c), Some(60), "never beyond the applied index");
    }

    #[test]
    fn beyond_the_limits_a_lagging_follower_does_not_hold_the_log() {
        let c = RaftConfig { log_gc_count_limit: 1_000, log_gc_size_limit: 1 << 20, ..Default::default() };
        assert_eq!(compact_to(log(6, 1_006, 7, 0), &c), Some(990));
        assert_eq!(compact_to(log(6, 100, 7, 1 << 20), &c), Some(84));
        assert_eq!(compact_to(log(6, 10, 7, 1 << 20), &c), None, "nothing worth dropping yet");
    }
}
