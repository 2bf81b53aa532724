//! The store's talk with the scheduler: reports of regions and orders back, reports of the store, questions.
//!
//! Owns what waits to be said: the newest report of each region (what was written is added up), and one question
//! per region, so that a scheduler that is away costs bounded memory and no report is lost for good. When the
//! stream breaks it is opened again, and every region led here is reported anew. An order that finds no room is
//! dropped: the scheduler gives it again until reports show it carried out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kvproto::{eraftpb, metapb, pdpb};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::engine::RangeEstimate;
use crate::raftstore::message::input::{ChangePeerKind, MembershipAnswer, RegionReport, SplitIds};
use crate::raftstore::message::{Input, RegionCommand};
use crate::raftstore::meta::region_view::RegionMeta;
use crate::raftstore::router::Router;
use crate::raftstore::scheduler_client::{Error, HeartbeatStream, SchedulerClient};

/// Pauses before a broken stream is opened again.
const REOPEN_MIN: Duration = Duration::from_millis(100);
const REOPEN_MAX: Duration = Duration::from_secs(2);
/// Splits that the scheduler was not told of yet.
const DIVIDED_MAX: usize = 1_024;
/// Questions for ids on their way at once.
const SPLITS_AT_ONCE: usize = 16;

/// Figures that only the store as a whole knows.
pub trait StoreFigures: Send + Sync + 'static {
    /// Fills in everything but what was written. May look at the disk; called where blocking is allowed.
    fn stats(&self) -> pdpb::StoreStats;
    /// What a region holds, as an estimate. Called where blocking is allowed.
    fn region_size(&self, region: &metapb::Region) -> RangeEstimate;
    /// Called after every report of the store, for what is to be done from time to time.
    fn after_report(&self);
}

/// See the file's head. Cheap to clone; clones share what waits.
#[derive(Clone, Default)]
pub struct SchedulerTask {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    reports: Mutex<BTreeMap<u64, RegionReport>>,
    new_report: Notify,
    /// Peers with doubts, by region.
    questions: Mutex<BTreeMap<u64, u64>>,
    new_question: Notify,
    /// Regions to be divided, and how many ids each needs.
    splits: Mutex<BTreeMap<u64, (metapb::Region, u32)>>,
    /// Regions that came of splits and were not told of yet.
    divided: Mutex<Vec<Vec<metapb::Region>>>,
    new_split: Notify,
    report_store: Notify,
    bytes_written: AtomicU64,
    keys_written: AtomicU64,
    accepted: AtomicBool,
}

/// What the tasks work with.
#[derive(Clone)]
pub struct SchedulerTaskOptions {
    pub scheduler: Arc<dyn SchedulerClient>,
    pub router: Router,
    pub figures: Arc<dyn StoreFigures>,
    /// Time between two reports of the store.
    pub store_interval: Duration,
    pub stopping: CancellationToken,
}

impl SchedulerTask {
    /// Takes a region's report in.
    pub fn report(&self, mut report: RegionReport) {
        let shared = &self.shared;
        shared.bytes_written.fetch_add(report.bytes_written, Ordering::Relaxed);
        shared.keys_written.fetch_add(report.keys_written, Ordering::Relaxed);
        let mut reports = shared.reports.lock();
        if let Some(unsent) = reports.get(&report.region.id) {
            report.bytes_written += unsent.bytes_written;
            report.keys_written += unsent.keys_written;
        }
        reports.insert(report.region.id, report);
        drop(reports);
        shared.new_report.notify_one();
    }

    /// Takes a question in: is the peer still a member?
    pub fn ask_membership(&self, region_id: u64, peer_id: u64) {
        self.shared.questions.lock().insert(region_id, peer_id);
        self.shared.new_question.notify_one();
    }

    /// Asks for the ids of `count` regions that `region` is to be divided into besides itself. A region asks once at a time.
    pub fn ask_split(&self, region: &RegionMeta, count: u32) {
        self.shared.splits.lock().insert(region.region.id, (region.region.clone(), count));
        self.shared.new_split.notify_one();
    }

    /// Takes the regions that a split made in. When too many wait they are dropped: heartbeats tell of them too.
    pub fn report_split(&self, regions: Vec<metapb::Region>) {
        let mut divided = self.shared.divided.lock();
        if divided.len() < DIVIDED_MAX {
            divided.push(regions);
        }
        drop(divided);
        self.shared.new_split.notify_one();
    }

    /// Reports the store now instead of at its next time.
    pub fn report_store_now(&self) {
        self.shared.report_store.notify_one();
    }

    /// Whether the scheduler has taken a report of this store.
    pub fn is_accepted(&self) -> bool {
        self.shared.accepted.load(Ordering::Acquire)
    }

    /// Starts talking, on the current runtime. The tasks end when `stopping` is cancelled.
    pub fn spawn(&self, options: SchedulerTaskOptions) -> Vec<JoinHandle<()>> {
        let stopping = options.stopping.clone();
        let until_stop = |task: futures::future::BoxFuture<'static, ()>| {
            let stopping = stopping.clone();
            tokio::spawn(async move { stopping.run_until_cancelled_owned(task).await.unwrap_or_default() })
        };
        let of = || (self.shared.clone(), options.clone());
        let (shared, o) = of();
        let regions = until_stop(Box::pin(async move { shared.report_regions(&o).await }));
        let (shared, o) = of();
        let store = until_stop(Box::pin(async move { shared.report_store(&o).await }));
        let (shared, o) = of();
        let splits = until_stop(Box::pin(async move { shared.serve_splits(&o).await }));
        let (shared, o) = of();
        let questions = until_stop(Box::pin(async move { shared.ask(&o).await }));
        vec![regions, store, questions, splits]
    }
}

impl Shared {
    async fn report_regions(&self, o: &SchedulerTaskOptions) {
        let mut pause = REOPEN_MIN;
        let mut broke = false;
        loop {
            let broken = match o.scheduler.heartbeats().await {
                Ok(mut stream) => {
                    if broke {
                        o.router.complete(Input::HeartbeatAll);
                        self.report_store.notify_one();
                    }
                    let (served, error) = self.serve(&mut *stream, o).await;
                    if served {
                        pause = REOPEN_MIN;
                    }
                    error
                }
                Err(error) => Some(error),
            };
            broke = true;
            match broken {
                Some(error) => tracing::warn!(%error, "region reports interrupted"),
                None => tracing::info!("the scheduler closed the stream of region reports"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REOPEN_MAX);
        }
    }

    /// Uses a stream until it breaks. Says whether it ever worked, and why it broke.
    async fn serve(
        &self,
        stream: &mut dyn HeartbeatStream,
        o: &SchedulerTaskOptions,
    ) -> (bool, Option<Error>) {
        let mut served = false;
        loop {
            let order = tokio::select! {
                order = stream.next() => Some(order),
                () = self.new_report.notified() => None,
            };
            match order {
                Some(Ok(Some(order))) => {
                    served = true;
                    carry_out(order, &o.router);
                }
                Some(Ok(None)) => return (served, None),
                Some(Err(error)) => return (served, Some(error)),
                None => {
                    for request in self.take_reports(o).await {
                        if let Err(error) = stream.send(request).await {
                            return (served, Some(error));
                        }
                    }
                }
            }
        }
    }

    async fn take_reports(&self, o: &SchedulerTaskOptions) -> Vec<pdpb::RegionHeartbeatRequest> {
        let reports = std::mem::take(&mut *self.reports.lock());
        let figures = o.figures.clone();
        let fill_in = move |report: RegionReport| {
            let size = report.size.unwrap_or_else(|| figures.region_size(&report.region));
            request(report, size)
        };
        let fill_in = move || reports.into_values().map(fill_in).collect();
        tokio::task::spawn_blocking(fill_in).await.unwrap_or_default()
    }

    async fn report_store(&self, o: &SchedulerTaskOptions) {
        let mut from = crate::clock::unix_seconds();
        loop {
            let to = crate::clock::unix_seconds();
            let figures = o.figures.clone();
            let Ok(mut stats) = tokio::task::spawn_blocking(move || figures.stats()).await else { return };
            stats.bytes_written = self.bytes_written.swap(0, Ordering::Relaxed);
            stats.keys_written = self.keys_written.swap(0, Ordering::Relaxed);
            stats.interval = Some(pdpb::TimeInterval { start_timestamp: from, end_timestamp: to });
            let (bytes, keys) = (stats.bytes_written, stats.keys_written);
            let pause = match o.scheduler.store_heartbeat(stats).await {
                Ok(()) => {
                    from = to;
                    self.accepted.store(true, Ordering::Release);
                    o.store_interval
                }
                Err(error) => {
                    // What was written is said with the next report.
                    self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
                    self.keys_written.fetch_add(keys, Ordering::Relaxed);
                    tracing::warn!(%error, "the scheduler did not take the report of this store");
                    o.store_interval.min(REOPEN_MAX)
                }
            };
            o.figures.after_report();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.report_store.notified() => {}
            }
        }
    }

    async fn serve_splits(&self, o: &SchedulerTaskOptions) {
        loop {
            self.new_split.notified().await;
            let divided = std::mem::take(&mut *self.divided.lock());
            for regions in divided {
                if let Err(error) = o.scheduler.report_split(regions).await {
                    tracing::debug!(%error, "the scheduler was not told of a split; heartbeats will");
                }
            }
            let splits = std::mem::take(&mut *self.splits.lock());
            let asked = splits.into_values().map(|(region, count)| ask_split(o, region, count));
            futures::stream::iter(asked).buffer_unordered(SPLITS_AT_ONCE).collect::<()>().await;
        }
    }

    async fn ask(&self, o: &SchedulerTaskOptions) {
        loop {
            self.new_question.notified().await;
            let questions = std::mem::take(&mut *self.questions.lock());
            for (region_id, peer_id) in questions {
                let answer = match o.scheduler.region(region_id).await {
                    Ok(Some(region)) => MembershipAnswer::Region(region),
                    Ok(None) => MembershipAnswer::Unknown,
                    Err(error) => {
                        tracing::debug!(region = region_id, %error, "the scheduler could not be asked");
                        MembershipAnswer::Unknown
                    }
                };
                o.router.complete(Input::Membership { region_id, peer_id, answer });
            }
        }
    }
}

async fn ask_split(o: &SchedulerTaskOptions, region: metapb::Region, count: u32) {
    let (region_id, version) = (region.id, region.region_epoch.unwrap_or_default().version);
    let ids = o.scheduler.ask_split(region, count).await;
    let result = ids.map_err(|e| e.to_string()).map(|ids| {
        ids.into_iter()
            .map(|id| SplitIds { region_id: id.new_region_id, peer_ids: id.new_peer_ids })
            .collect()
    });
    o.router.complete(Input::SplitIds { region_id, version, result });
}

/// A report as it travels; `size` is how much the region holds.
pub fn request(report: RegionReport, size: RangeEstimate) -> pdpb::RegionHeartbeatRequest {
    pdpb::RegionHeartbeatRequest {
        region: Some(report.region),
        leader: Some(report.leader),
        down_peers: report.down,
        pending_peers: report.pending,
        bytes_written: report.bytes_written,
        keys_written: report.keys_written,
        // 0 is "not known".
        approximate_size: size.bytes.max(1),
        approximate_keys: size.keys,
        term: report.term,
        ..Default::default()
    }
}

/// Hands an order to its region.
fn carry_out(order: pdpb::RegionHeartbeatResponse, router: &Router) {
    let region_id = order.region_id;
    if let Some(error) = order.header.as_ref().and_then(|h| h.error.as_ref()) {
        tracing::warn!(region = region_id, error = error.message, "the scheduler refused a report");
        return;
    }
    let epoch = order.region_epoch.unwrap_or_default();
    let Some(command) = command(order) else { return };
    tracing::info!(region = region_id, ?command, "order of the scheduler");
    if router.send(Input::Command { region_id, epoch, command }).is_err() {
        tracing::info!(region = region_id, "order dropped: the store is overloaded");
    }
}

/// The order in our terms; `None` for one that this build does not know.
pub fn command(order: pdpb::RegionHeartbeatResponse) -> Option<RegionCommand> {
    if let Some(pdpb::ChangePeer { peer: Some(peer), change_type }) = order.change_peer {
        let kind = match eraftpb::ConfChangeType::try_from(change_type).ok()? {
            eraftpb::ConfChangeType::AddNode => ChangePeerKind::AddVoter,
            eraftpb::ConfChangeType::AddLearnerNode => ChangePeerKind::AddLearner,
            eraftpb::ConfChangeType::RemoveNode => ChangePeerKind::Remove,
        };
        return Some(RegionCommand::ChangePeer { kind, peer });
    }
    if let Some(pdpb::TransferLeader { peer: Some(peer), .. }) = order.transfer_leader {
        return Some(RegionCommand::TransferLeader { peer });
    }
    if let Some(pdpb::SplitRegion { policy, keys }) = order.split_region {
        let by_keys = policy == pdpb::CheckPolicy::Usekey as i32;
        return Some(RegionCommand::Split { boundaries: if by_keys { keys } else { Vec::new() } });
    }
    tracing::warn!(region = order.region_id, "an order of a kind that this build does not know");
    None
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;

    use super::*;
    use crate::raftstore::inbox::Inbox;
    use crate::raftstore::scheduler_client::fake::{FakeScheduler, Stream};

    fn report(region_id: u64, term: u64, bytes_written: u64) -> RegionReport {
        let region = metapb::Region { id: region_id, ..Default::default() };
        RegionReport { region, term, bytes_written, ..Default::default() }
    }

    #[test]
    fn the_newest_report_of_a_region_stays_and_what_was_written_adds_up() {
        let task = SchedulerTask::default();
        task.report(report(7, 1, 100));
        task.report(report(8, 1, 1));
        task.report(report(7, 2, 20));
        let reports = task.shared.reports.lock();
        assert_eq!(reports.len(), 2);
        assert_eq!((reports[&7].term, reports[&7].bytes_written), (2, 120));
        assert_eq!(task.shared.bytes_written.load(Ordering::Relaxed), 121);
    }

    #[test]
    fn orders_are_translated_and_unknown_ones_left_alone() {
        let peer = metapb::Peer { id: 3, store_id: 4, ..Default::default() };
        let change = |change_type: eraftpb::ConfChangeType| pdpb::RegionHeartbeatResponse {
            change_peer: Some(pdpb::ChangePeer { peer: Some(peer), change_type: change_type as i32 }),
            ..Default::default()
        };
        for (wire, kind) in [
            (eraftpb::ConfChangeType::AddNode, ChangePeerKind::AddVoter),
            (eraftpb::ConfChangeType::AddLearnerNode, ChangePeerKind::AddLearner),
            (eraftpb::ConfChangeType::RemoveNode, ChangePeerKind::Remove),
        ] {
            assert_eq!(command(change(wire)), Some(RegionCommand::ChangePeer { kind, peer }));
        }
        assert_eq!(command(pdpb::RegionHeartbeatResponse::default()), None);
    }

    struct NoFigures;

    impl StoreFigures for NoFigures {
        fn stats(&self) -> pdpb::StoreStats {
            pdpb::StoreStats::default()
        }
        fn region_size(&self, _: &metapb::Region) -> RangeEstimate {
            RangeEstimate { bytes: 3 << 20, keys: 5, ..RangeEstimate::default() }
        }
        fn after_report(&self) {}
    }

    /// A stream, and the scheduler's end of it.
    fn stream()
    -> (Stream, mpsc::Receiver<pdpb::RegionHeartbeatRequest>, mpsc::Sender<pdpb::RegionHeartbeatResponse>)
    {
        let ((reports, reported), (order, orders)) = (mpsc::channel(8), mpsc::channel(8));
        (Stream { reports, orders }, reported, order)
    }

    /// The next inputs, all that come at once.
    async fn inputs(inbox: &Arc<Inbox>) -> Vec<Input> {
        let inbox = inbox.clone();
        let waiting = tokio::task::spawn_blocking(move || {
            let mut batch = Vec::new();
            inbox.take(&mut batch, Some(crate::clock::now().plus_ms(30_000)));
            batch
        });
        waiting.await.unwrap()
    }

    #[tokio::test]
    async fn a_broken_stream_is_opened_again_and_everything_reported_anew() {
        let (first, mut reported, mut order) = stream();
        let (second, mut reported_again, _order) = stream();
        let scheduler = FakeScheduler::default();
        scheduler.state.lock().streams = vec![first, second];
        let (router, inbox) = Router::new();
        let (task, stopping) = (SchedulerTask::default(), CancellationToken::new());
        let (scheduler, figures) = (Arc::new(scheduler), Arc::new(NoFigures));
        let store_interval = Duration::from_secs(3_600);
        let tasks = task.spawn(SchedulerTaskOptions {
            scheduler,
            router,
            figures,
            store_interval,
            stopping: stopping.clone(),
        });

        task.report(report(7, 1, 9));
        let sent = reported.next().await.unwrap();
        assert_eq!((sent.term, sent.bytes_written), (1, 9));
        assert_eq!((sent.approximate_size, sent.approximate_keys), (3 << 20, 5), "bytes, and keys");
        let peer = Some(metapb::Peer { id: 3, store_id: 4, ..Default::default() });
        let transfer_leader = Some(pdpb::TransferLeader { peer, ..Default::default() });
        let response = pdpb::RegionHeartbeatResponse { region_id: 7, transfer_leader, ..Default::default() };
        order.try_send(response).unwrap();
        assert!(matches!(inputs(&inbox).await[..], [Input::Command { region_id: 7, .. }]));

        drop(order);
        assert!(matches!(inputs(&inbox).await[..], [Input::HeartbeatAll]));
        task.report(report(7, 2, 0));
        assert_eq!(reported_again.next().await.unwrap().term, 2);
        stopping.cancel();
        futures::future::join_all(tasks).await;
    }
}
