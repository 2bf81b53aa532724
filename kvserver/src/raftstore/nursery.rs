//! Regions that are about to come into being on this store by a split of another.
//!
//! Owns three things: which regions are expected (a split that makes them is committed and not applied yet), the
//! messages that came too early for them, and those that were born and wait to be taken in by the shard. Invariants:
//! an expected region gets no message and no other beginning until its split is decided; what waits is bounded,
//! since Raft repeats itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::message::PeerMessage;
use super::op::split::Child;

/// Messages kept for one region: each sender asks for a pre-vote and a vote and sends a heartbeat.
const MESSAGES_MAX: usize = 8;
/// Regions for which messages are kept.
const REGIONS_MAX: usize = 1_024;

/// A new region's peer.
#[derive(Clone, Debug)]
pub struct Born {
    pub child: Child,
    /// The region it comes from is led here: so should this one.
    pub campaigns: bool,
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct Nursery {
    expected: BTreeSet<u64>,
    early: BTreeMap<u64, VecDeque<PeerMessage>>,
    born: Vec<Born>,
}

impl Nursery {
    /// A split that makes these regions is about to be applied.
    pub fn expect(&mut self, regions: &[u64]) {
        self.expected.extend(regions);
    }

    /// The split is decided: what was not born will not be.
    pub fn forget(&mut self, regions: &[u64]) {
        for region_id in regions.iter().filter(|id| !self.born.iter().any(|b| b.child.meta.region.id == **id))
        {
            self.expected.remove(region_id);
        }
    }

    /// True while the region waits for its split to be applied, or to be taken in.
    pub fn expects(&self, region_id: u64) -> bool {
        self.expected.contains(&region_id)
    }

    /// A region came into being.
    pub fn bear(&mut self, child: Child, campaigns: bool) {
        self.born.push(Born { child, campaigns });
    }

    /// The regions that wait to be taken in.
    pub fn take_born(&mut self) -> Vec<Born> {
        std::mem::take(&mut self.born)
    }

    /// Gives one back that cannot be taken in yet.
    pub fn put_back(&mut self, born: Born) {
        self.born.push(born);
    }

    /// True when something waits to be taken in.
    pub fn has_born(&self) -> bool {
        !self.born.is_empty()
    }

    /// The region is taken in; gives the messages that came too early.
    pub fn settle(&mut self, region_id: u64) -> VecDeque<PeerMessage> {
        self.expected.remove(&region_id);
        self.early.remove(&region_id).unwrap_or_default()
    }

    /// Keeps a message for a region that is not here yet. The oldest make room.
    pub fn keep(&mut self, m: PeerMessage) {
        if self.early.len() >= REGIONS_MAX && !self.early.contains_key(&m.region_id) {
            self.early.pop_first();
        }
        let queue = self.early.entry(m.region_id).or_default();
        if queue.len() >= MESSAGES_MAX {
            queue.pop_front();
        }
        queue.push_back(m);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raftstore::message::peer_message::Payload;
    use kvproto::metapb;

    fn message(region_id: u64, from: u64) -> PeerMessage {
        let from = metapb::Peer { id: from, store_id: from, ..Default::default() };
        let (to, epoch) = (metapb::Peer::default(), metapb::RegionEpoch::default());
        PeerMessage { region_id, from, to, epoch, range: None, payload: Payload::CheckStale }
    }

    #[test]
    fn early_messages_are_kept_in_order_and_in_bounded_number() {
        let mut nursery = Nursery::default();
        (1..=10).for_each(|n| nursery.keep(message(7, n)));
        (0..REGIONS_MAX as u64).for_each(|n| nursery.keep(message(100 + n, 1)));
        assert!(nursery.settle(7).is_empty(), "the lowest region made room");
        (1..=10).for_each(|n| nursery.keep(message(2_000, n)));
        let kept: Vec<u64> = nursery.settle(2_000).into_iter().map(|m| m.from.id).collect();
        assert_eq!(kept, [3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn a_refused_split_leaves_nothing_expected() {
        let mut nursery = Nursery::default();
        nursery.expect(&[8, 9]);
        assert!(nursery.expects(8));
        nursery.forget(&[8, 9]);
        assert!(!nursery.expects(8) && !nursery.expects(9));
    }
}
