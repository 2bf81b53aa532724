//! What a store tells the scheduler about itself: space, regions, snapshots.

use std::sync::Arc;

use kvproto::key::BoundaryForm;
use kvproto::{metapb, pdpb};
use tokio_util::sync::CancellationToken;

use super::space::disk_space;
use crate::clock;
use crate::engine::RangeEstimate;
use crate::raftstore::meta::region_view::ViewRegistry;
use crate::raftstore::node::Disk;
use crate::raftstore::runner::scheduler_task::StoreFigures;
use crate::raftstore::runner::{Runners, ranges};
use crate::raftstore::util::region;

/// See the file's head.
pub struct Figures {
    store_id: u64,
    /// Seconds since 1970.
    started: u64,
    disk: Disk,
    form: BoundaryForm,
    views: Arc<ViewRegistry>,
    runners: Arc<Runners>,
    /// Cancelled once leaders are asked to leave.
    pub stopping: CancellationToken,
}

impl Figures {
    /// The figures of a store that starts now.
    pub fn new(
        store_id: u64,
        disk: Disk,
        form: BoundaryForm,
        views: Arc<ViewRegistry>,
        runners: Arc<Runners>,
    ) -> Figures {
        let (started, stopping) = (clock::unix_seconds(), CancellationToken::new());
        Figures { store_id, started, disk, form, views, runners, stopping }
    }
}

impl StoreFigures for Figures {
    fn stats(&self) -> pdpb::StoreStats {
        let (capacity, available) = disk_space(&self.disk.dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "the file system does not tell its size");
            (0, 0)
        });
        let snapshots = self.disk.snaps.counts();
        let snapshot_bytes = self.disk.snaps.disk_bytes().unwrap_or_else(|error| {
            tracing::warn!(%error, "the size of snapshots is not known");
            0
        });
        pdpb::StoreStats {
            store_id: self.store_id,
            capacity,
            available,
            used_size: self.disk.engine.stats().disk_bytes + self.disk.log.disk_bytes() + snapshot_bytes,
            region_count: u32::try_from(self.views.all().len()).unwrap_or(u32::MAX),
            sending_snap_count: snapshots.sending,
            receiving_snap_count: snapshots.receiving,
            applying_snap_count: snapshots.applying,
            start_time: u32::try_from(self.started).unwrap_or(u32::MAX),
            is_busy: self.disk.engine.stalled(),
            is_stopping: self.stopping.is_cancelled(),
            ..Default::default()
        }
    }

    fn region_size(&self, region: &metapb::Region) -> RangeEstimate {
        // A region whose boundaries cannot be read is not served, and not reported.
        let Ok(meta) = region::meta(region.clone(), self.form) else { return RangeEstimate::default() };
        let sizes = ranges::of_region(&meta).into_iter().map(|r| {
            let size = self.disk.engine.estimate(r.cf, &r.start, &r.end);
            size.unwrap_or_else(|error| {
                tracing::warn!(region = region.id, %error, "the size of a region is not known");
                RangeEstimate::default()
            })
        });
        sizes.fold(RangeEstimate::default(), |all, one| all.plus(&one))
    }

    fn after_report(&self) {
        self.runners.sweep_snapshots();
    }
}
