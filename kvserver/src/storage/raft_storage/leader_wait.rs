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
use tokio_util::sync::CancellationToken;

use super::region_reader::{RegionReader, Standing};
use crate::clock::{self, Now};
use crate::error::{RegionError, RegionResult};
use crate::raftstore::message::{Callback, Input, Propose, ReadRequest};
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
}

impl Request {
    fn ctx(&self) -> &RegionContext {
        match self {
            Request::Read(r) => &r.ctx,
            Request::Write(p) => &p.ctx,
        }
    }

    fn into_done(self) -> Callback<()> {
        match self {
            Request::Read(r) => r.done,
            Request::Write(p) => p.done,
        }
    }

    /// Hands the request to the core, or says that there is no room.
    pub fn submit(self, router: &Router) {
        let refused = match self {
            Request::Read(r) => router.send(Input::Read(r)),
            Request::Write(p) => router.send(Input::Propose(p)),
        };
        if let Err(Input::Read(ReadRequest { done, .. }) | Input::Propose(Propose { done, .. })) = refused {
            done.call(Err(RegionError::ServerIsBusy {
                reason: "too many requests wait for the raftstore".into(),
            }));
        }
    }

    fn refuse(self, error: RegionError) {
        self.into_done().call(Err(error));
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
    pub fn start(reader: Arc<RegionReader>, router: Router, stopping: CancellationToken) -> Arc<LeaderWait> {
        let wait = Arc::new(LeaderWait { reader, router, waiting: Mutex::default(), arrived: Notify::new() });
        let task = wait.clone();
        Handle::current().spawn(async move {
            stopping.run_until_cancelled_owned(task.run()).await;
            task.give_up(Now(u64::MAX));
        });
        wait
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
    #[expect(clippy::result_large_err, reason = "a request that has to wait is given back whole")]
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
            self.give_up(clock::now());
        }
    }

    /// Decides about everything that waits; what waited until `now` is answered in any case.
    fn give_up(&self, now: Now) {
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
