//! The end of a peer: removed from its region, replaced, or told so by the others.
//!
//! At once: the view is withdrawn, whoever waits is answered, nothing is sent any more. Once nothing of the peer is
//! under way: a durable tombstone (it keeps peer id and epoch, so that late messages do not bring the peer back),
//! then the log goes, then the data. Until the data is gone its range stays taken, so that nothing newer is placed
//! under the broom (INV-RANGE).

use super::super::apply::ApplyTask;
use super::super::message::{Output, Task};
use super::super::meta::keys;
use super::super::meta::region_map::Holder;
use super::super::meta::values::{self, PeerState, RegionState};
use super::super::peer::{Peer, StoreCtx};
use crate::engine::{Cf, WriteBatch};
use crate::error::RegionError;

impl Peer {
    /// Begins the end. The shard drops the peer once [`Peer::is_gone`].
    pub(in crate::raftstore) fn destroy(&mut self, ctx: &mut StoreCtx, out: &mut Output) {
        if self.doomed {
            return;
        }
        tracing::info!(region = self.region_id, peer = self.peer.id, "destroying peer");
        self.doomed = true;
        ctx.leaving.insert(self.region_id);
        self.lease.suspend();
        ctx.views.remove(self.region_id);
        let error = RegionError::RegionNotFound { region_id: self.region_id };
        for done in self.reads.take_all() {
            out.reply(done, Err(error.clone()));
        }
        // Proposals may still be committed by the others: dropping them says that nobody knows.
        drop(self.proposals.take_all());
        self.abandon_split();
        self.try_destroy(ctx, out);
    }

    /// Goes on with the end as soon as nothing of the peer is being written or applied.
    pub(in crate::raftstore) fn try_destroy(&mut self, ctx: &mut StoreCtx, out: &mut Output) {
        if self.is_busy() || self.is_gone() {
            return;
        }
        let meta = self.meta();
        out.apply.push(ApplyTask::Remove { region_id: self.region_id });
        let mut state = RegionState::new(PeerState::Tombstone, &meta.region, &self.peer);
        let mut done = WriteBatch::new();
        done.put(Cf::Meta, keys::region_state(self.region_id), values::encode(&state));
        state.cleaning = true;
        let mut tombstone = WriteBatch::new();
        tombstone.put(Cf::Meta, keys::region_state(self.region_id), values::encode(&state));
        tombstone.delete(Cf::Meta, keys::apply_state(self.region_id));
        let clear = self.rn.store().initialized().then(|| meta.clone());
        if clear.is_some()
            && let Err(overlap) = ctx.map.take(&meta, Holder::Cleaning)
        {
            // The map held the range for this region until now.
            unreachable!("INV-RANGE: a destroyed region's range was given away: {overlap}");
        }
        out.tasks.push(Task::Destroy { region_id: self.region_id, tombstone, clear, done });
        ctx.without_data.remove(&self.region_id);
        self.gone = true;
    }

    /// True once the rest of the end is out of the peer's hands.
    pub(in crate::raftstore) fn is_gone(&self) -> bool {
        self.gone
    }
}
