//! One replica of one region.
//!
//! Owns the consensus state of the replica and all that waits for it: proposals, reads, the lease, the published
//! view. `ready.rs` hands its effects out, `peer_msg_handler.rs` feeds it messages and ticks, `op/` has a file per
//! feature. Invariants: the published view is never more permissive than the state here; the election timeout is
//! a pure function of (seed, region, term, rank) after every call into the consensus library.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use kvproto::key::BoundaryForm;
use kvproto::metapb;
use raft::{RawNode, StateRole};

use super::config::RaftConfig;
use super::lease::{self, Lease};
use super::message::peer_message::Payload;
use super::message::{Output, PeerMessage};
use super::meta::region_map::RegionMap;
use super::meta::region_view::{NEIGHBOURS_MAX, RegionMeta, RegionView, ViewCell, ViewRegistry};
use super::meta::values::{ApplyState, RegionStatus};
use super::nursery::Nursery;
use super::op::snapshot::ApplyingSnapshot;
use super::op::split::Splitting;
use super::peer_storage::PeerStorage;
use super::proposal::ProposalQueue;
use super::read_queue::ReadQueue;
use super::util::region::{epoch, is_learner, peer_by_id};
use crate::clock::Now;
use crate::engine::log_store::{LogStore, LoggedState};
use crate::engine::{Engine, EngineError, RangeEstimate};
use crate::error::RegionError;

/// What the peers of a store share.
pub struct StoreCtx {
    pub config: Arc<RaftConfig>,
    pub store_id: u64,
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn LogStore>,
    pub map: RegionMap,
    pub views: Arc<ViewRegistry>,
    pub now: Now,
    /// Stores whose process is known to be gone.
    pub lost_stores: BTreeSet<u64>,
    /// Regions whose destroyed peer is still being removed, and messages of their successors are dropped.
    pub leaving: BTreeSet<u64>,
    /// Peers that wait for their first snapshot, by region.
    pub without_data: BTreeMap<u64, u64>,
    pub nursery: Nursery,
}

impl StoreCtx {
    /// The form of boundaries in this cluster.
    pub fn form(&self) -> BoundaryForm {
        BoundaryForm::of_raw(self.config.api)
    }

    /// The region and those next to it here that may have been a part of it: what a client with an older view of it
    /// should know. A split gives all parts the same version, so those with a smaller one are not.
    pub fn current_regions(&self, meta: &RegionMeta) -> Vec<metapb::Region> {
        let near = self.map.neighbours(meta.region.id, NEIGHBOURS_MAX);
        let near = near.into_iter().filter_map(|id| self.views.get(id));
        let near =
            near.filter(|(_, v)| v.meta.version() >= meta.version()).map(|(_, v)| v.meta.region.clone());
        std::iter::once(meta.region.clone()).chain(near).collect()
    }
}

/// See the file's head.
pub struct Peer {
    pub(super) region_id: u64,
    pub(super) peer: metapb::Peer,
    pub(super) rn: RawNode<PeerStorage>,
    pub(super) proposals: ProposalQueue,
    pub(super) reads: ReadQueue,
    pub(super) lease: Lease,
    cell: Arc<ViewCell>,
    published: Option<Published>,
    pub(super) applied: (u64, u64),
    /// Last index handed to the applier.
    pub(super) sent_to_apply: u64,
    /// Hand-outs whose log write is under way: number and whether it changes term or vote.
    pub(super) unpersisted: Vec<(u64, bool)>,
    pub(super) applying: Option<ApplyingSnapshot>,
    pub(super) dirty: bool,
    pub(super) stopped: Option<String>,
    /// Set once the peer must go: it goes when nothing of it is under way.
    pub(super) doomed: bool,
    /// Set once its end is out of its hands.
    pub(super) gone: bool,
    /// Other peers by id, with when they were last heard of.
    pub(super) heard: BTreeMap<u64, (metapb::Peer, Now)>,
    /// The newest membership version of those who wrote to this peer.
    pub(super) told_conf_ver: u64,
    pub(super) ticks: Ticks,
    pub(super) written: Written,
    /// How much the region held when last looked at; none when that says nothing any more.
    pub(super) size: Option<RangeEstimate>,
    pub(super) splitting: Option<Splitting>,
    /// Regions expected of splits that are being applied, by the split's index.
    pub(super) coming: VecDeque<(u64, Vec<u64>)>,
}

/// Tick counters of a peer's periodic duties.
#[derive(Debug, Default)]
pub(super) struct Ticks {
    pub log_gc: u64,
    pub report: u64,
    pub split_check: u64,
    /// How often in a row the scheduler gave no ids for a split.
    pub splits_refused: u32,
    /// The region is being looked at.
    pub checking: bool,
    pub leaderless: u64,
    /// A report is due at the end of the turn.
    pub report_now: bool,
    /// Time to look for members that fell behind.
    pub look_at_pending: bool,
    /// Peers that lagged when last looked at, to notice when one has caught up.
    pub pending: Vec<u64>,
}

/// Writes since the last report.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub bytes: u64,
    pub keys: u64,
    /// Bytes applied since the log was last shortened.
    pub log_bytes: u64,
    /// Bytes applied since the region's size was last looked at.
    pub unchecked: u64,
}

/// What the newest view says, to notice when it must be replaced.
struct Published {
    region: Arc<RegionMeta>,
    leader: u64,
    term: u64,
    serves: bool,
    suspended: bool,
}

impl Peer {
    /// A peer over what is on disk.
    pub fn load(
        meta: Arc<RegionMeta>,
        peer: metapb::Peer,
        logged: Option<LoggedState>,
        apply: &ApplyState,
        ctx: &StoreCtx,
    ) -> Result<Peer, EngineError> {
        let region_id = meta.region.id;
        let storage = PeerStorage::load(meta, ctx.log.clone(), logged, apply)?;
        let c = &ctx.config;
        let config = raft::Config {
            id: peer.id,
            election_tick: c.election_ticks,
            heartbeat_tick: c.heartbeat_ticks,
            min_election_tick: c.election_ticks,
            max_election_tick: 2 * c.election_ticks,
            applied: apply.applied_index,
            max_size_per_msg: c.message_max_bytes,
            max_inflight_msgs: c.inflight_messages_max,
            max_committed_size_per_ready: 16 << 20,
            check_quorum: true,
            pre_vote: true,
            read_only_option: raft::ReadOnlyOption::Safe,
            batch_append: true,
            // Followers learn of a commit with the next append or heartbeat: nobody reads there.
            skip_bcast_commit: true,
            ..Default::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let rn = RawNode::new(&config, storage, &logger)
            .map_err(|e| EngineError::Corrupt(format!("region {region_id} cannot be started: {e}")))?;
        let mut peer = Peer {
            region_id,
            peer,
            rn,
            proposals: ProposalQueue::default(),
            reads: ReadQueue::default(),
            lease: Lease::new(lease::length_ns(c.tick_ms, c.election_ticks as u64)),
            cell: ctx.views.cell(region_id),
            published: None,
            applied: (apply.applied_index, apply.applied_term),
            sent_to_apply: apply.applied_index,
            unpersisted: Vec::new(),
            applying: None,
            dirty: false,
            stopped: None,
            doomed: false,
            gone: false,
            heard: BTreeMap::new(),
            told_conf_ver: 0,
            ticks: Ticks::default(),
            written: Written::default(),
            size: None,
            splitting: None,
            coming: VecDeque::new(),
        };
        peer.fix_election_timeout(ctx);
        peer.publish_view();
        Ok(peer)
    }

    pub(super) fn meta(&self) -> Arc<RegionMeta> {
        self.rn.store().region.clone()
    }

    pub(super) fn set_region(&mut self, region: Arc<RegionMeta>) {
        if let Some(peer) = peer_by_id(&region.region, self.peer.id) {
            self.peer = *peer;
        }
        self.rn.mut_store().region = region;
    }

    pub(super) fn is_leader(&self) -> bool {
        self.rn.raft.state == StateRole::Leader
    }

    pub(super) fn term(&self) -> u64 {
        self.rn.raft.term
    }

    /// True when something of this peer is being written or applied elsewhere.
    pub(super) fn is_busy(&self) -> bool {
        !self.unpersisted.is_empty() || self.sent_to_apply > self.applied.0 || self.applying.is_some()
    }

    pub(super) fn member(&self, peer_id: u64) -> Option<metapb::Peer> {
        self.rn.store().region.region.peers.iter().find(|p| p.id == peer_id).copied()
    }

    /// Whom this peer believes to lead, when that peer is a member as far as known here.
    pub(super) fn leader(&self) -> Option<metapb::Peer> {
        self.member(self.rn.raft.leader_id)
    }

    /// The error that sends a client to the leader.
    pub(super) fn not_leader(&self) -> RegionError {
        // A leader hint that points here would send the client in circles.
        let leader = self.leader().filter(|l| l.id != self.peer.id);
        RegionError::NotLeader { region_id: self.region_id, leader }
    }

    /// Gives the election timeout a value that depends on nothing but seed, region, term and this peer's rank among
    /// the members, so that runs repeat and no two members of a region draw the same.
    pub(super) fn fix_election_timeout(&mut self, ctx: &StoreCtx) {
        let span = ctx.config.election_ticks as u64;
        let rank = self.rank();
        let mixed = mix(ctx.config.seed ^ self.region_id.rotate_left(32) ^ self.term());
        let offset = (mixed % span + rank * 3) % span;
        self.rn.raft.set_randomized_election_timeout((span + offset) as usize);
    }

    /// The number of members with a smaller id.
    pub(super) fn rank(&self) -> u64 {
        self.rn.store().region.region.peers.iter().filter(|p| p.id < self.peer.id).count() as u64
    }

    /// True when reads may be served here at all: the leader has applied an entry of its own term.
    pub(super) fn serves(&self) -> bool {
        self.is_leader() && self.applied.1 == self.term() && self.stopped.is_none() && !self.doomed
    }

    /// Publishes what readers may know, when it changed. A new view begins without a lease.
    pub(super) fn publish_view(&mut self) {
        let meta = self.meta();
        let serves = self.serves();
        let leader = self.leader();
        let leader_id = leader.map_or(0, |l| l.id);
        let suspended = self.lease.is_suspended();
        let same = |p: &Published| {
            Arc::ptr_eq(&p.region, &meta)
                && (p.leader, p.term, p.serves, p.suspended) == (leader_id, self.term(), serves, suspended)
        };
        if self.published.as_ref().is_some_and(same) {
            return;
        }
        let now = Published { region: meta.clone(), leader: leader_id, term: self.term(), serves, suspended };
        self.cell.publish(Some(RegionView::new(meta, self.peer, leader, self.term(), serves)));
        self.published = Some(now);
        self.extend_lease();
    }

    /// Passes the lease on to the published view.
    pub(super) fn extend_lease(&self) {
        if !self.serves() || self.lease.is_suspended() || self.lease.until() == Now(0) {
            return;
        }
        if let Some(view) = self.cell.load()
            && view.serves
            && view.term == self.term()
        {
            view.extend_lease(self.lease.until());
        }
    }

    /// Whether somebody read under the lease since the last call.
    pub(super) fn take_read_lately(&self) -> bool {
        self.cell.load().is_some_and(|v| v.take_read_lately())
    }

    /// A message to another peer of the region.
    pub(super) fn message(&self, to: metapb::Peer, payload: Payload) -> PeerMessage {
        let epoch = epoch(&self.rn.store().region.region);
        PeerMessage { region_id: self.region_id, from: self.peer, to, epoch, range: None, payload }
    }

    /// The range, for a receiver that may have no data yet.
    pub(super) fn range_for(&self, to_peer: u64) -> Option<(Bytes, Bytes)> {
        let may_lack_data =
            !self.is_leader() || self.rn.raft.prs().get(to_peer).is_none_or(|p| p.matched == 0);
        let region = &self.rn.store().region.region;
        may_lack_data.then(|| (region.start_key.clone(), region.end_key.clone()))
    }

    /// A peer that wrote to this one, though it may not be in the region as known here.
    pub(super) fn known_sender(&self, peer_id: u64) -> Option<metapb::Peer> {
        self.heard.get(&peer_id).map(|(peer, _)| *peer)
    }

    pub(super) fn forget_departed_peers(&mut self) {
        let region = self.meta();
        self.heard.retain(|id, _| region.region.peers.iter().any(|p| p.id == *id));
    }

    /// Asks for a report to the scheduler at the end of the turn.
    pub(super) fn report_soon(&mut self) {
        self.ticks.report_now = true;
    }

    /// The peer cannot go on: it keeps its data, answers with the reason, and leads no more.
    pub(super) fn stop(&mut self, reason: String, ctx: &mut StoreCtx, out: &mut Output) {
        tracing::error!(region = self.region_id, peer = self.peer.id, reason, "peer stopped");
        self.stopped = Some(reason);
        self.lease.suspend();
        let term = self.term();
        self.rn.raft.become_follower(term, raft::INVALID_ID);
        self.fix_election_timeout(ctx);
        self.publish_view();
        let error = self.stopped_error();
        for done in self.reads.take_all() {
            out.reply(done, Err(error.clone()));
        }
        // Proposals may still be committed by others: dropping them says that nobody knows.
        drop(self.proposals.take_all());
        self.abandon_split();
    }

    pub(super) fn stopped_error(&self) -> RegionError {
        let reason = self.stopped.clone().unwrap_or_default();
        RegionError::Stopped { region_id: self.region_id, reason }
    }

    /// What the peer looks like inside.
    pub fn status(&self) -> RegionStatus {
        let region = &self.rn.store().region.region;
        let (learners, voters): (Vec<&metapb::Peer>, Vec<&metapb::Peer>) =
            region.peers.iter().partition(|p| is_learner(p));
        let hs = self.rn.raft.hard_state();
        let e = epoch(region);
        RegionStatus {
            region_id: self.region_id,
            peer_id: self.peer.id,
            leader_id: self.rn.raft.leader_id,
            role: match self.rn.raft.state {
                StateRole::Leader => "leader",
                StateRole::Follower => "follower",
                StateRole::Candidate => "candidate",
                StateRole::PreCandidate => "pre-candidate",
            },
            term: self.term(),
            vote: hs.vote,
            first_index: self.rn.store().first(),
            last_index: self.rn.store().last(),
            commit_index: self.rn.raft.raft_log.committed,
            persisted_index: self.rn.store().persisted(),
            applied_index: self.applied.0,
            applied_term: self.applied.1,
            voters: voters.iter().map(|p| p.id).collect(),
            learners: learners.iter().map(|p| p.id).collect(),
            conf_ver: e.conf_ver,
            version: e.version,
            applying_snapshot: self.applying.is_some(),
            stopped: self.stopped.clone(),
        }
    }
}

/// A well-spread function of its argument (splitmix64's finaliser).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
