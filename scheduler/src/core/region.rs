//! One region as its leader last described it.
//!
//! A `RegionInfo` made from a heartbeat has been checked: non-zero id, an epoch, at least one peer, at most one
//! peer a store, a leader among the peers, and a start key below the end key. The empty end key is the end of
//! the key space.

use bytes::Bytes;
use kvproto::{metapb, pdpb};

/// Why a region description is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("region {id}: {reason}")]
pub struct InvalidRegion {
    pub id: u64,
    pub reason: &'static str,
}

/// A region with what its leader reported.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegionInfo {
    pub meta: metapb::Region,
    /// None until a leader has reported since the scheduler's start.
    pub leader: Option<metapb::Peer>,
    /// The leader's Raft term; 0 when unknown.
    pub term: u64,
    pub down_peers: Vec<pdpb::PeerStats>,
    /// Peers that lag so far behind that the leader's log does not reach them.
    pub pending_peers: Vec<metapb::Peer>,
    /// MiB, as the wire has it.
    pub approximate_size: u64,
    pub approximate_keys: u64,
    pub bytes_written: u64,
    pub bytes_read: u64,
    pub keys_written: u64,
    pub keys_read: u64,
}

/// What a replica costs (log, ticks, memory) even when it is empty, as if it were so many MiB of data.
pub const IDLE_WEIGHT: u64 = 10;

impl RegionInfo {
    /// A region without a known leader, from metadata.
    pub fn from_meta(meta: metapb::Region) -> Result<RegionInfo, InvalidRegion> {
        validate(&meta)?;
        Ok(RegionInfo { meta, ..RegionInfo::default() })
    }

    /// A region from its leader's heartbeat.
    pub fn from_heartbeat(request: pdpb::RegionHeartbeatRequest) -> Result<RegionInfo, InvalidRegion> {
        let Some(meta) = request.region else {
            return Err(InvalidRegion { id: 0, reason: "heartbeat without a region" });
        };
        validate(&meta)?;
        let leader = request.leader.unwrap_or_default();
        if !meta.peers.iter().any(|peer| peer.id == leader.id && peer.store_id == leader.store_id) {
            return Err(InvalidRegion { id: meta.id, reason: "the leader is not one of the peers" });
        }
        const MIB: u64 = 1 << 20;
        Ok(RegionInfo {
            meta,
            leader: Some(leader),
            term: request.term,
            down_peers: request.down_peers,
            pending_peers: request.pending_peers,
            approximate_size: request.approximate_size.div_ceil(MIB),
            approximate_keys: request.approximate_keys,
            bytes_written: request.bytes_written,
            bytes_read: request.bytes_read,
            keys_written: request.keys_written,
            keys_read: request.keys_read,
        })
    }

    /// The region's id.
    pub fn id(&self) -> u64 {
        self.meta.id
    }

    /// The epoch's version: raised by split and merge.
    pub fn version(&self) -> u64 {
        self.meta.region_epoch.as_ref().map_or(0, |epoch| epoch.version)
    }

    /// The epoch's configuration version: raised by membership changes.
    pub fn conf_ver(&self) -> u64 {
        self.meta.region_epoch.as_ref().map_or(0, |epoch| epoch.conf_ver)
    }

    /// The store of the leader.
    pub fn leader_store(&self) -> Option<u64> {
        self.leader.as_ref().map(|leader| leader.store_id)
    }

    /// Whether `key` is in the region's range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.meta.start_key.as_ref() && ends_after(&self.meta.end_key, key)
    }

    /// The peer with this id.
    pub fn peer(&self, peer_id: u64) -> Option<&metapb::Peer> {
        self.meta.peers.iter().find(|peer| peer.id == peer_id)
    }

    /// The peer on this store.
    pub fn peer_on(&self, store_id: u64) -> Option<&metapb::Peer> {
        self.meta.peers.iter().find(|peer| peer.store_id == store_id)
    }

    /// Peers that vote.
    pub fn voters(&self) -> impl Iterator<Item = &metapb::Peer> {
        self.meta.peers.iter().filter(|peer| peer.role() == metapb::PeerRole::Voter)
    }

    /// Peers that only follow.
    pub fn learners(&self) -> impl Iterator<Item = &metapb::Peer> {
        self.meta.peers.iter().filter(|peer| peer.role() == metapb::PeerRole::Learner)
    }

    /// How much a replica weighs in the balance of stores: its size in MiB, and what an idle one costs as well.
    pub fn weight(&self) -> u64 {
        self.approximate_size.saturating_add(IDLE_WEIGHT)
    }

    /// Whether a joint membership change is under way.
    pub fn is_joint(&self) -> bool {
        use metapb::PeerRole::{DemotingVoter, IncomingVoter};
        self.meta.peers.iter().any(|peer| matches!(peer.role(), IncomingVoter | DemotingVoter))
    }

    /// Whether the leader says that the peer lags behind its log.
    pub fn is_pending(&self, peer_id: u64) -> bool {
        self.pending_peers.iter().any(|peer| peer.id == peer_id)
    }

    /// Whether the leader has not heard of the peer for a while.
    pub fn is_down(&self, peer_id: u64) -> bool {
        self.down_peers.iter().any(|stats| stats.peer.as_ref().is_some_and(|peer| peer.id == peer_id))
    }
}

/// Whether a range with this end key (empty: no end) goes on at `key`.
pub fn ends_after(end_key: &Bytes, key: &[u8]) -> bool {
    end_key.is_empty() || key < end_key.as_ref()
}

fn validate(meta: &metapb::Region) -> Result<(), InvalidRegion> {
    let refuse = |reason| Err(InvalidRegion { id: meta.id, reason });
    if meta.id == 0 {
        return refuse("id 0");
    }
    if meta.region_epoch.is_none() {
        return refuse("no epoch");
    }
    if meta.peers.is_empty() {
        return refuse("no peers");
    }
    if !ends_after(&meta.end_key, &meta.start_key) {
        return refuse("the start key is not below the end key");
    }
    for (index, peer) in meta.peers.iter().enumerate() {
        if peer.id == 0 || peer.store_id == 0 {
            return refuse("a peer without an id or a store");
        }
        let earlier = &meta.peers[..index];
        if earlier.iter().any(|other| other.id == peer.id || other.store_id == peer.store_id) {
            return refuse("two peers on one store, or with one id");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> metapb::Region {
        metapb::Region {
            id: 1,
            region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 1 }),
            peers: vec![metapb::Peer { id: 2, store_id: 3, ..Default::default() }],
            ..Default::default()
        }
    }

    fn reason(change: impl FnOnce(&mut metapb::Region)) -> Option<&'static str> {
        let mut meta = meta();
        change(&mut meta);
        RegionInfo::from_meta(meta).err().map(|e| e.reason)
    }

    #[test]
    fn malformed_regions_are_refused_with_a_reason() {
        assert_eq!(reason(|_| ()), None);
        assert_eq!(reason(|m| m.id = 0), Some("id 0"));
        assert_eq!(reason(|m| m.region_epoch = None), Some("no epoch"));
        assert_eq!(reason(|m| m.peers.clear()), Some("no peers"));
        assert_eq!(reason(|m| m.peers[0].store_id = 0), Some("a peer without an id or a store"));
        let twice = reason(|m| {
            let peer = metapb::Peer { id: 9, ..m.peers[0] };
            m.peers.push(peer)
        });
        assert_eq!(twice, Some("two peers on one store, or with one id"));
        let inverted = reason(|m| {
            m.start_key = "b".into();
            m.end_key = "a".into();
        });
        assert_eq!(inverted, Some("the start key is not below the end key"));
    }

    #[test]
    fn a_leader_must_be_a_peer() {
        let request = |leader| pdpb::RegionHeartbeatRequest {
            region: Some(meta()),
            leader,
            approximate_size: 1,
            ..Default::default()
        };
        assert!(RegionInfo::from_heartbeat(request(None)).is_err());
        let stranger = metapb::Peer { id: 9, store_id: 3, ..Default::default() };
        assert!(RegionInfo::from_heartbeat(request(Some(stranger))).is_err());
        let region = RegionInfo::from_heartbeat(request(Some(meta().peers[0]))).unwrap();
        assert_eq!((region.leader_store(), region.approximate_size), (Some(3), 1));
    }

    #[test]
    fn the_empty_end_key_is_the_end_of_the_key_space() {
        let region = RegionInfo::from_meta(metapb::Region { start_key: "b".into(), ..meta() }).unwrap();
        assert!(!region.contains(b"a"));
        assert!(region.contains(b"b") && region.contains(&[0xff; 9]));
    }
}
