//! Clients that take timestamps while schedulers suffer, and the verdict over what they got.
//!
//! Two kinds: clients of the SDK, which follow the leader, and plain streams that stay with one scheduler, whatever it
//! is: a follower passes them on, and one that was frozen finds their requests in its sockets when it goes on.
//!
//! The rules that are checked: a timestamp is greater than every one that any client had before its request was sent,
//! no timestamp is given twice, and no client of the SDK meets an error: it waits until somebody leads.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvclient::{SchedulerClient, SchedulerOptions};
use kvproto::pdpb::pd_client::PdClient;
use kvproto::pdpb::{RequestHeader, TsoRequest};
use kvproto::ts::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::{ClusterError, wait_until};

/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(2);
/// Between two requests on a plain stream, and before it is opened again.
const PLAIN_PACE: Duration = Duration::from_millis(25);
/// How long a client of the SDK tries; much longer than any leader is away.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests without an answer on a plain stream.
const WAITING_MAX: usize = 256;

#[derive(Default)]
struct Seen {
    /// The greatest that any client has had.
    greatest: AtomicU64,
    taken: AtomicU64,
    by_streams: AtomicU64,
    all: Mutex<BTreeSet<u64>>,
    /// When a client of the SDK last got one.
    last: Mutex<Option<Instant>>,
    longest_pause: Mutex<Duration>,
    wrong: Mutex<Vec<String>>,
    ending: AtomicBool,
}

impl Seen {
    /// What every timestamp asked for from now on must exceed.
    fn floor(&self) -> u64 {
        self.greatest.load(Ordering::SeqCst)
    }

    fn take(&self, who: &str, floor: u64, ts: u64) {
        if ts <= floor {
            let text = format!("{who} got {ts} after somebody had {floor}");
            self.wrong.lock().push(text);
        }
        if !self.all.lock().insert(ts) {
            self.wrong.lock().push(format!("{who} got {ts}, which was given before"));
        }
        self.greatest.fetch_max(ts, Ordering::SeqCst);
        self.taken.fetch_add(1, Ordering::SeqCst);
    }

    fn note_pause(&self) {
        let now = Instant::now();
        if let Some(last) = self.last.lock().replace(now) {
            let mut longest = self.longest_pause.lock();
            *longest = (*longest).max(now - last);
        }
    }
}

/// How many clients there are, and how they are connected.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    pub clients: usize,
    /// Clients of the SDK that share a connection, and ask again as soon as they have an answer.
    pub to_a_connection: usize,
}

/// Clients at work; a dropped load stops them.
pub struct TimestampLoad {
    seen: Arc<Seen>,
    clients: JoinSet<()>,
}

impl TimestampLoad {
    /// Starts `clients` clients of the SDK that know all endpoints, and a plain stream at each endpoint.
    pub async fn start(endpoints: &[String], clients: usize) -> Result<Self, kvclient::Error> {
        // A connection of its own for each: they do not share a stream.
        TimestampLoad::of(endpoints, Crowd { clients, to_a_connection: 1 }).await
    }

    /// The same with a crowd.
    pub async fn of(endpoints: &[String], crowd: Crowd) -> Result<Self, kvclient::Error> {
        let (seen, mut tasks) = (Arc::new(Seen::default()), JoinSet::new());
        let options = SchedulerOptions { timeout: PATIENCE, ..SchedulerOptions::default() };
        let mut connection = SchedulerClient::connect_with(endpoints, options).await?;
        let cluster_id = connection.cluster_id();
        for n in 0..crowd.clients {
            if n > 0 && n % crowd.to_a_connection == 0 {
                connection = SchedulerClient::connect_with(endpoints, options).await?;
            }
            let pace = (crowd.to_a_connection == 1).then_some(PACE);
            tasks.spawn(take(connection.clone(), seen.clone(), n, pace));
        }
        for endpoint in endpoints {
            let (seen, url) = (seen.clone(), format!("http://{endpoint}"));
            tasks.spawn(async move {
                while !seen.ending.load(Ordering::SeqCst) {
                    // It ends whenever its scheduler does not lead any more, or is gone.
                    let _ended = plain_stream(&seen, &url, cluster_id).await.is_err();
                    tokio::time::sleep(PLAIN_PACE).await;
                }
            });
        }
        Ok(Self { seen, clients: tasks })
    }

    /// Waits until clients of the SDK and plain streams got more; returns how long the longest pause of all clients
    /// together was since it was last asked for.
    pub fn wait_more(&self, within: Duration) -> Result<Duration, ClusterError> {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let (taken, streamed) = (count(&self.seen.taken), count(&self.seen.by_streams));
        wait_until("more timestamps", within, || {
            count(&self.seen.taken) > taken + 50 && count(&self.seen.by_streams) > streamed + 10
        })?;
        Ok(std::mem::take(&mut *self.seen.longest_pause.lock()))
    }

    /// How many timestamps were taken.
    pub fn taken(&self) -> u64 {
        self.seen.taken.load(Ordering::SeqCst)
    }

    /// Ends the load; the error tells what broke the rule.
    pub async fn finish(mut self) -> Result<u64, String> {
        self.seen.ending.store(true, Ordering::SeqCst);
        self.clients.shutdown().await;
        let wrong = self.seen.wrong.lock();
        if wrong.is_empty() { Ok(self.taken()) } else { Err(wrong.join("\n")) }
    }
}

/// Takes one timestamp after another, until the load ends.
async fn take(client: SchedulerClient, seen: Arc<Seen>, n: usize, pace: Option<Duration>) {
    while !seen.ending.load(Ordering::SeqCst) {
        let floor = seen.floor();
        match client.get_timestamp(1).await {
            Ok(ts) => {
                seen.take(&format!("client {n}"), floor, ts.get());
                seen.note_pause();
            }
            Err(error) => seen.wrong.lock().push(format!("client {n}: {error}")),
        }
        if let Some(pace) = pace {
            tokio::time::sleep(pace).await;
        }
    }
}

/// Sends requests on one stream, answered or not, and judges the answers by what was known when each was sent.
async fn plain_stream(
    seen: &Seen,
    url: &str,
    cluster_id: u64,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut pd = PdClient::connect(url.to_string()).await?;
    let (requests, queue) = mpsc::channel(WAITING_MAX);
    let mut floors = VecDeque::new();
    let mut replies = pd.tso(ReceiverStream::new(queue)).await?.into_inner();
    let mut pace = tokio::time::interval(PLAIN_PACE);
    loop {
        tokio::select! {
            reply = replies.message() => {
                let reply = reply?.ok_or("the end of the stream")?;
                let floor = floors.pop_front().ok_or("an answer without a question")?;
                let ts = Timestamp::try_from(&reply.timestamp.ok_or("no timestamp")?)?;
                seen.take(url, floor, ts.get());
                seen.by_streams.fetch_add(1, Ordering::SeqCst);
            }
            _ = pace.tick(), if floors.len() < WAITING_MAX => {
                let header = Some(RequestHeader { cluster_id, ..Default::default() });
                floors.push_back(seen.floor());
                requests.try_send(TsoRequest { header, count: 1, ..Default::default() })?;
            }
        }
    }
}
