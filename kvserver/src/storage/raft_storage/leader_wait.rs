//! Requests for regions that have no leader at this moment.
//!
//! An election takes a fraction of a second, and clients give up or back off for longer when they are told that
//! there is no leader. So their requests wait here, for a short time and in bounded number, and go on once a leader
//! is known: to the core when it is this store, back to the client with the leader's name when it is another.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::region_reader::{RegionReader, Standing};
use crate::clock::{self, Now};
use crate::error::{RegionError, RegionResult};
use crate::raftstore::message::input::SplitRequest;
use crate::raftstore::message::{Input, Propose, ReadRequest};
use crate::raftstore::router::Router;
use crate::storage::RegionContext;

/// How long a request waits for a leader.
const WAIT_MS: u64 = 500;
/// Requests that may wait.
const WAITING_MAX: usize = 8_192;
/// How often the views are looked at while anybody waits.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A request for the core.
pub enum Request {
    Read(ReadRequest),
    Write(Propose),
    Split(SplitRequest),
}

impl Request {
    fn ctx(&self) -> &RegionContext {
        match self {
            Request::Read(r) => &r.ctx,
            Request::Write(p) => &p.ctx,
            Request::Split(s) => &s.ctx,
        }
    }

    /// Hands the request to the core, or says that there is no room.
    pub fn submit(self, router: &Router) {
        let refused = match self {
            Request::Read(r) => router.send(Input::Read(r)),
            Request::Write(p) => router.send(Input::Propose(p)),
            Request::Split(s) => router.send(Input::Split(s)),
        };
        let busy = || RegionError::ServerIsBusy { reason: "too many requests wait for the raftstore".into() };
        match refused {
            Err(Input::Read(ReadRequest { done, .. }) | Input::Propose(Propose { done, .. })) => {
                done.call(Err(busy()));
            }
            Err(Input::Split(SplitRequest { done, .. })) => done.call(Err(busy())),
            Ok(()) | Err(_) => {}
        }
    }

    fn refuse(self, error: RegionError) {
        match self {
            Request::Read(r) => r.done.call(Err(error)),
            Request::Write(p) => p.done.call(Err(error)),
            Request::Split(s) => s.done.call(Err(error)),
        }
    }
}

/// See the file's head.
pub struct LeaderWait {
    reader: Arc<RegionReader>,
    router: Router,
    waiting: Mutex<Vec<(Now, Request)>>,
    arrived: Notify,
}

impl LeaderWait {
    /// Looks after waiting requests on the current runtime until `stopping` is cancelled.
    /// The second part is the task that does so.
    pub fn start(
        reader: Arc<RegionReader>,
        router: Router,
        stopping: CancellationToken,
    ) -> (Arc<LeaderWait>, JoinHandle<()>) {
        let wait = Arc::new(LeaderWait { reader, router, waiting: Mutex::default(), arrived: Notify::new() });
        let task = wait.clone();
        let handle = Handle::current().spawn(async move {
            stopping.run_until_cancelled_owned(task.run()).await;
            task.look(Now(u64::MAX));
        });
        (wait, handle)
    }

    /// Sends the request on, at once when its fate is known, else when it is.
    pub fn submit(&self, request: Request) {
        match self.decide(request) {
            Ok(()) => {}
            Err(request) => {
                let mut waiting = self.waiting.lock();
                if waiting.len() >= WAITING_MAX {
                    drop(waiting);
                    return request.refuse_without_leader();
                }
                waiting.push((clock::now().plus_ms(WAIT_MS), request));
                if waiting.len() == 1 {
                    self.arrived.notify_one();
                }
            }
        }
    }

    /// Gives the request back when nobody leads.
    fn decide(&self, request: Request) -> Result<(), Request> {
        let standing: RegionResult<Standing> =
            self.reader.check(request.ctx()).map(|(_, _, standing)| standing);
        match standing {
            Ok(Standing::Leader) => request.submit(&self.router),
            Ok(Standing::NoLeader) => return Err(request),
            Err(error) => request.refuse(error),
        }
        Ok(())
    }

    async fn run(&self) {
        loop {
            if self.waiting.lock().is_empty() {
                self.arrived.notified().await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            self.look(clock::now());
        }
    }

    /// Decides about everything that waits; what waited until `now` is answered in any case.
    fn look(&self, now: Now) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let mut still = Vec::new();
        for (deadline, request) in waiting {
            match self.decide(request) {
                Ok(()) => {}
                Err(request) if deadline <= now => request.refuse_without_leader(),
                Err(request) => still.push((deadline, request)),
            }
        }
        self.waiting.lock().extend(still);
    }
}

impl Request {
    fn refuse_without_leader(self) {
        let region_id = self.ctx().region_id;
        self.refuse(RegionError::NotLeader { region_id, leader: None });
    }
}

#[cfg(test)]
mod tests {
    use kvproto::metapb;

    use super::super::transport::LostStores;
    use super::*;
    use crate::engine::mem::MemEngine;
    use crate::raftstore::inbox::Inbox;
    use crate::raftstore::meta::region_view::{RegionMeta, RegionView, ViewRegistry};
    use crate::storage::callback;

    struct Fixture {
        views: Arc<ViewRegistry>,
        wait: Arc<LeaderWait>,
        inbox: Arc<Inbox>,
        stopping: CancellationToken,
    }

    fn peer(id: u64) -> metapb::Peer {
        metapb::Peer { id, store_id: id, ..Default::default() }
    }

    impl Fixture {
        fn new() -> Fixture {
            let (router, inbox) = Router::new();
            let (views, stopping) = (Arc::new(ViewRegistry::default()), CancellationToken::new());
            let engine = Arc::new(MemEngine::new());
            let reader = Arc::new(RegionReader::new(1, engine, views.clone(), LostStores::default()));
            let (wait, _task) = LeaderWait::start(reader, router, stopping.clone());
            let fixture = Fixture { views, wait, inbox, stopping };
            fixture.publish(None);
            fixture
        }

        fn publish(&self, leader: Option<u64>) {
            let region = metapb::Region { id: 7, peers: vec![peer(1), peer(2)], ..Default::default() };
            let meta = Arc::new(RegionMeta { region, start: Default::default(), end: Default::default() });
            self.views.cell(7).publish(Some(RegionView::new(meta, peer(1), leader.map(peer), 1, false)));
        }

        fn read(&self) -> impl Future<Output = RegionResult<()>> + use<> {
            let (done, answer) = callback();
            let ctx = RegionContext { region_id: 7, ..Default::default() };
            self.wait.submit(Request::Read(ReadRequest { ctx, done }));
            answer
        }
    }

    #[tokio::test]
    async fn a_request_goes_to_the_core_once_this_store_leads() {
        let f = Fixture::new();
        let answer = f.read();
        f.publish(Some(1));
        let inbox = f.inbox.clone();
        let arrived = tokio::task::spawn_blocking(move || {
            let mut batch = Vec::new();
            inbox.take(&mut batch, Some(clock::now().plus_ms(30_000)));
            batch
        });
        let arrived = arrived.await.unwrap();
        assert!(matches!(arrived[..], [Input::Read(_)]), "{arrived:?}");
        drop(arrived);
        assert!(matches!(answer.await, Err(RegionError::Undetermined(_))), "answered by whoever drops it");
    }

    #[tokio::test]
    async fn a_request_is_sent_to_another_store_once_that_leads_or_away_when_nobody_does() {
        let f = Fixture::new();
        let (first, started) = (f.read(), clock::now());
        f.publish(Some(2));
        let elsewhere = RegionError::NotLeader { region_id: 7, leader: Some(peer(2)) };
        assert_eq!(first.await, Err(elsewhere));
        f.publish(None);
        let nobody = RegionError::NotLeader { region_id: 7, leader: None };
        assert_eq!(f.read().await, Err(nobody.clone()));
        assert!(clock::now().since(started) >= WAIT_MS * 1_000_000, "it waited");
        let last = f.read();
        f.stopping.cancel();
        assert_eq!(last.await, Err(nobody), "a stop answers everybody");
    }
}
