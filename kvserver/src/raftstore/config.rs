//! What the core must be told: a few figures in ticks and bytes, fixed for the life of a store.

use kvproto::kvrpcpb::ApiVersion;

use super::op::compact_log;

/// Figures of the raftstore. Tick, heartbeat and election figures are the same on every store of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct RaftConfig {
    /// The form of keys and boundaries.
    pub api: ApiVersion,
    pub tick_ms: u64,
    pub heartbeat_ticks: usize,
    /// Shortest election timeout; timeouts are drawn from `[n, 2n)`.
    pub election_ticks: usize,
    /// Seed of the election timeouts: the same on every store of a cluster, so that no two members of a region draw alike.
    pub seed: u64,
    /// Entries above this size are refused, bytes.
    pub entry_max_bytes: u64,
    /// Bytes of entries in one message to a follower.
    pub message_max_bytes: u64,
    /// Messages with entries on their way to one follower.
    pub inflight_messages_max: usize,
    /// Bytes of entries kept in memory for followers that lag, per region.
    pub entry_cache_bytes_max: usize,
    /// Ticks between looks at whether the log can be shortened.
    pub log_gc_ticks: u64,
    /// Applied entries that every follower has, from which on the log is shortened.
    pub log_gc_threshold: u64,
    /// Entries from which on the log is shortened even if a follower lags behind.
    pub log_gc_count_limit: u64,
    /// Bytes from which on the log is shortened even if a follower lags behind.
    pub log_gc_size_limit: u64,
    /// Ticks between looks at whether a region is too large.
    pub split_check_ticks: u64,
    /// Bytes written to a region from which on it is looked at.
    pub split_check_diff: u64,
    /// A region that is divided keeps its last part instead of its first: where keys ascend, writes go on in it.
    pub right_derive_when_split: bool,
    /// Ticks between reports to the scheduler when nothing changed.
    pub report_ticks: u64,
    /// Ticks without a leader after which a peer asks whether it is still a member.
    pub stale_check_ticks: u64,
    /// How long a read waits for a quorum, milliseconds.
    pub read_index_timeout_ms: u64,
    /// How long writes of a lost leader wait for their fate, milliseconds.
    pub orphan_timeout_ms: u64,
    /// Writes that may wait in one region.
    pub proposals_max: usize,
}

impl Default for RaftConfig {
    fn default() -> Self {
        RaftConfig {
            api: ApiVersion::V2,
            tick_ms: 50,
            heartbeat_ticks: 2,
            election_ticks: 10,
            seed: 0,
            entry_max_bytes: 8 << 20,
            message_max_bytes: 1 << 20,
            inflight_messages_max: 256,
            entry_cache_bytes_max: 8 << 20,
            log_gc_ticks: 60,
            log_gc_threshold: 50,
            log_gc_count_limit: 196_608,
            log_gc_size_limit: 192 << 20,
            split_check_ticks: 200,
            split_check_diff: 16 << 20,
            right_derive_when_split: true,
            report_ticks: 1_200,
            stale_check_ticks: 200,
            read_index_timeout_ms: 1_500,
            orphan_timeout_ms: 1_500,
            proposals_max: 40_960,
        }
    }
}

impl RaftConfig {
    /// One tick in nanoseconds.
    pub fn tick_ns(&self) -> u64 {
        self.tick_ms * 1_000_000
    }

    /// Refuses figures with which leases or elections would be unsafe, naming the one to change.
    pub fn validate(&self) -> Result<(), String> {
        if self.tick_ms == 0 {
            return Err("raft-base-tick-interval must be at least 1 ms".into());
        }
        if self.heartbeat_ticks == 0 || self.heartbeat_ticks * 2 >= self.election_ticks {
            return Err("raft-election-timeout-ticks must be more than twice raft-heartbeat-ticks".into());
        }
        if self.election_ticks < 5 {
            return Err("raft-election-timeout-ticks must be at least 5".into());
        }
        if self.entry_max_bytes == 0 || self.message_max_bytes == 0 || self.inflight_messages_max == 0 {
            return Err(
                "raft-entry-max-size, raft-max-size-per-msg and raft-max-inflight-msgs must not be 0".into(),
            );
        }
        if self.log_gc_ticks == 0 || self.log_gc_threshold == 0 {
            return Err("raft-log-gc-tick-interval and raft-log-gc-threshold must not be 0".into());
        }
        if self.log_gc_count_limit <= compact_log::KEEP {
            return Err(format!(
                "raft-log-gc-count-limit must be more than {}, the entries that are kept",
                compact_log::KEEP
            ));
        }
        if self.split_check_ticks == 0 || self.split_check_diff == 0 {
            return Err("split-check-interval and region-split-check-diff must not be 0".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_unsafe_figures_are_named() {
        assert_eq!(RaftConfig::default().validate(), Ok(()));
        let bad = RaftConfig { heartbeat_ticks: 5, ..Default::default() };
        assert!(bad.validate().unwrap_err().contains("raft-election-timeout-ticks"));
        let bad = RaftConfig { log_gc_count_limit: 16, ..Default::default() };
        assert!(bad.validate().unwrap_err().contains("raft-log-gc-count-limit"), "it would compact for ever");
    }
}
