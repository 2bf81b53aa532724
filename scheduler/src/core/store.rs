//! One store as the scheduler sees it: its registration, its last report, and how long ago that came.
//!
//! Times are milliseconds of the clock that the caller of the core passes in.

use kvproto::{metapb, pdpb};

/// The state of a store for placement and for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreState {
    /// Heartbeats arrive.
    Up,
    /// No heartbeat for a short while: it gets no new peers.
    Disconnected,
    /// No heartbeat for longer than the allowed down time: its peers are replaced.
    Down,
    /// An operator removes it: its peers move away.
    Offline,
    /// Removed. Its id is never used again.
    Tombstone,
}

impl StoreState {
    /// The name used by HTTP and metrics.
    pub fn name(self) -> &'static str {
        match self {
            StoreState::Up => "Up",
            StoreState::Disconnected => "Disconnected",
            StoreState::Down => "Down",
            StoreState::Offline => "Offline",
            StoreState::Tombstone => "Tombstone",
        }
    }

    /// Every state, in the order above.
    pub const ALL: [StoreState; 5] = [
        StoreState::Up,
        StoreState::Disconnected,
        StoreState::Down,
        StoreState::Offline,
        StoreState::Tombstone,
    ];
}

/// When silence of a store counts, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SilenceLimits {
    /// After this it is `Disconnected`.
    pub disconnected_ms: u64,
    /// After this it is `Down`.
    pub down_ms: u64,
}

/// A registered store.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreInfo {
    /// What the store registered; `state` and `node_state` are the scheduler's.
    pub meta: metapb::Store,
    /// Its last heartbeat. None until the first one after the scheduler's start.
    pub stats: Option<pdpb::StoreStats>,
    /// When it was last heard of. A restarted scheduler gives every store the full time again.
    pub last_seen_ms: u64,
}

/// Free bytes with which a store is never low on space, however large its disk.
pub const ROOM_BYTES: u64 = 8 << 30;

impl StoreInfo {
    /// A store that has just registered.
    pub fn new(meta: metapb::Store, now_ms: u64) -> StoreInfo {
        StoreInfo { meta, stats: None, last_seen_ms: now_ms }
    }

    /// The registration as clients get it, with the time of the last heartbeat (unix nanoseconds).
    pub fn to_wire(&self) -> metapb::Store {
        let last_heartbeat = self.last_seen_ms.saturating_mul(1_000_000);
        metapb::Store {
            last_heartbeat: i64::try_from(last_heartbeat).unwrap_or(i64::MAX),
            ..self.meta.clone()
        }
    }

    /// The state at `now_ms`.
    pub fn state(&self, now_ms: u64, limits: SilenceLimits) -> StoreState {
        match self.meta.state() {
            metapb::StoreState::Tombstone => StoreState::Tombstone,
            metapb::StoreState::Offline => StoreState::Offline,
            metapb::StoreState::Up => {
                let silent_ms = now_ms.saturating_sub(self.last_seen_ms);
                if silent_ms > limits.down_ms {
                    StoreState::Down
                } else if silent_ms > limits.disconnected_ms {
                    StoreState::Disconnected
                } else {
                    StoreState::Up
                }
            }
        }
    }

    /// Whether heartbeats arrive, also when the store is being removed.
    pub fn is_connected(&self, now_ms: u64, limits: SilenceLimits) -> bool {
        self.meta.state() != metapb::StoreState::Tombstone
            && now_ms.saturating_sub(self.last_seen_ms) <= limits.disconnected_ms
    }

    /// Free bytes as last reported; 0 before the first heartbeat.
    pub fn available(&self) -> u64 {
        self.stats.as_ref().map_or(0, |stats| stats.available)
    }

    /// Whether less than `1 - low_space_ratio` of the capacity is free, and less than [`ROOM_BYTES`]: a fifth of a
    /// large disk, perhaps one shared with others, is plenty. A store that reports no capacity has an unknown one
    /// and is not held to be full.
    pub fn is_low_on_space(&self, low_space_ratio: f64) -> bool {
        self.stats.as_ref().is_some_and(|stats| {
            let share = stats.capacity as f64 * (1.0 - low_space_ratio);
            stats.capacity > 0 && (stats.available as f64) < share.min(ROOM_BYTES as f64)
        })
    }

    /// Snapshots that the store is sending, receiving and applying.
    pub fn snapshots_in_flight(&self) -> u32 {
        self.stats.as_ref().map_or(0, |stats| {
            stats
                .sending_snap_count
                .saturating_add(stats.receiving_snap_count)
                .saturating_add(stats.applying_snap_count)
        })
    }

    /// Whether the store says that it cannot take more work.
    pub fn is_busy(&self) -> bool {
        self.stats.as_ref().is_some_and(|stats| stats.is_busy)
    }

    /// Whether the store says that it is about to stop.
    pub fn is_stopping(&self) -> bool {
        self.stats.as_ref().is_some_and(|stats| stats.is_stopping)
    }

    /// Sets the state, and the newer field that says the same.
    pub fn set_state(&mut self, state: metapb::StoreState) {
        self.meta.state = state as i32;
        self.meta.node_state = match state {
            metapb::StoreState::Up => metapb::NodeState::Serving,
            metapb::StoreState::Offline => metapb::NodeState::Removing,
            metapb::StoreState::Tombstone => metapb::NodeState::Removed,
        } as i32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SilenceLimits = SilenceLimits { disconnected_ms: 20, down_ms: 100 };

    #[test]
    fn silence_turns_up_into_disconnected_and_then_down() {
        let store = StoreInfo::new(metapb::Store { id: 1, ..Default::default() }, 1000);
        assert_eq!(store.state(1020, LIMITS), StoreState::Up);
        assert_eq!(store.state(1021, LIMITS), StoreState::Disconnected);
        assert_eq!(store.state(1101, LIMITS), StoreState::Down);
        // A clock that went back never makes a store look silent.
        assert_eq!(store.state(0, LIMITS), StoreState::Up);
    }

    #[test]
    fn an_operators_state_outranks_silence() {
        let mut store = StoreInfo::new(metapb::Store::default(), 0);
        store.set_state(metapb::StoreState::Offline);
        assert_eq!(store.state(5000, LIMITS), StoreState::Offline);
        assert_eq!(store.meta.node_state(), metapb::NodeState::Removing);
        store.set_state(metapb::StoreState::Tombstone);
        assert_eq!(store.state(0, LIMITS), StoreState::Tombstone);
        assert!(!store.is_connected(0, LIMITS));
    }

    #[test]
    fn low_space_is_a_share_of_a_known_capacity() {
        let mut store = StoreInfo::new(metapb::Store::default(), 0);
        assert!(!store.is_low_on_space(0.8));
        let stats = |capacity, available| pdpb::StoreStats { capacity, available, ..Default::default() };
        store.stats = Some(stats(100, 19));
        assert!(store.is_low_on_space(0.8));
        store.stats = Some(stats(100, 21));
        assert!(!store.is_low_on_space(0.8));
        store.stats = Some(stats(0, 0));
        assert!(!store.is_low_on_space(0.8));
        store.stats = Some(stats(100 * ROOM_BYTES, ROOM_BYTES));
        assert!(!store.is_low_on_space(0.8), "a nearly full large disk still has room");
        store.stats = Some(stats(100 * ROOM_BYTES, ROOM_BYTES - 1));
        assert!(store.is_low_on_space(0.8));
    }
}
