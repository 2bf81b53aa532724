//! Timestamps over one stream: callers that wait at the same moment share a request.
//!
//! One task owns the stream. It merges what waits into requests of at most [`MAX_COUNT`] timestamps, keeps a few of
//! them in flight, and hands each caller its part of the answer in order. A broken or silent stream fails its
//! callers, which ask again through a new one: a timestamp that was reserved and never used does no harm.

use std::collections::VecDeque;
use std::sync::Weak;

use kvproto::pdpb::pd_client::PdClient;
use kvproto::pdpb::{TsoRequest, TsoResponse};
use kvproto::ts::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::error::{Error, Result};
use crate::leader_watch::LeaderWatch;
use crate::scheduler_conn::{Attempt, Inner, classify};

/// Most timestamps in one request.
pub(crate) const MAX_COUNT: u32 = 10_000;
/// Callers that may wait before others wait to queue.
const QUEUE: usize = 4096;
/// Requests on their way at once.
const PIPELINE: usize = 8;

/// A caller that waits for its last timestamp.
pub(crate) struct Call {
    count: u32,
    reply: oneshot::Sender<Result<Timestamp>>,
}

/// A request on its way and the callers it serves, in order.
struct Flight {
    count: u32,
    sent: Instant,
    calls: Vec<Call>,
}

/// Starts the task; it ends when the last sender is gone.
pub(crate) fn spawn(client: Weak<Inner>) -> mpsc::Sender<Call> {
    let (sender, inbox) = mpsc::channel(QUEUE);
    tokio::spawn(run(inbox, client));
    sender
}

/// Waits for `count` timestamps and returns the last.
pub(crate) async fn request(inbox: &mpsc::Sender<Call>, count: u32) -> Result<Timestamp> {
    let (reply, answer) = oneshot::channel();
    let closed = || broken("the timestamp stream is closed");
    inbox.send(Call { count, reply }).await.map_err(|_| closed())?;
    answer.await.map_err(|_| closed())?
}

async fn run(mut inbox: mpsc::Receiver<Call>, client: Weak<Inner>) {
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            let Some(call) = inbox.recv().await else { return };
            waiting.push_back(call);
        }
        let Some(inner) = client.upgrade() else { return };
        let mut stream =
            Stream { header: inner.header(), flights: VecDeque::new(), stall: inner.attempt_timeout() };
        let (channel, mut leader) = inner.channel();
        let mut pd = PdClient::new(channel);
        drop(inner);
        let error = stream.serve(&mut pd, &mut leader, &mut inbox, &mut waiting).await;
        let Some(error) = error else { return };
        for call in stream.flights.into_iter().flat_map(|flight| flight.calls).chain(waiting.drain(..)) {
            // A caller that no longer waits needs no answer.
            let _ = call.reply.send(Err(error.clone()));
        }
    }
}

struct Stream {
    header: kvproto::pdpb::RequestHeader,
    flights: VecDeque<Flight>,
    stall: std::time::Duration,
}

impl Stream {
    /// Serves callers until the stream breaks; `None` when no caller is left.
    async fn serve(
        &mut self,
        pd: &mut PdClient<tonic::transport::Channel>,
        leader: &mut LeaderWatch,
        inbox: &mut mpsc::Receiver<Call>,
        waiting: &mut VecDeque<Call>,
    ) -> Option<Error> {
        let (requests, queue) = mpsc::channel(PIPELINE);
        self.launch(&requests, waiting);
        let open = tokio::time::timeout(self.stall, pd.tso(ReceiverStream::new(queue))).await;
        let mut replies = match open {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => return Some(failure(status)),
            Err(_) => return Some(broken("no answer to the timestamp stream")),
        };
        loop {
            while self.flights.len() < PIPELINE && !waiting.is_empty() {
                self.launch(&requests, waiting);
            }
            let room = waiting.is_empty();
            tokio::select! {
                biased;
                reply = next(&mut replies, self.flights.front().map(|flight| flight.sent + self.stall)) => {
                    if let Err(error) = reply.and_then(|reply| self.land(reply)) {
                        return Some(error);
                    }
                }
                () = leader.changed() => return Some(broken("another scheduler leads")),
                call = inbox.recv(), if room => {
                    waiting.push_back(call?);
                    // Callers that the last reply has woken are about to ask again: they share the next request.
                    tokio::task::yield_now().await;
                    while let Ok(call) = inbox.try_recv() {
                        waiting.push_back(call);
                    }
                }
            }
        }
    }

    /// Sends one request for as many waiting callers as fit.
    fn launch(&mut self, requests: &mpsc::Sender<TsoRequest>, waiting: &mut VecDeque<Call>) {
        let mut flight = Flight { count: 0, sent: Instant::now(), calls: Vec::new() };
        while let Some(call) = waiting.front() {
            if flight.count + call.count > MAX_COUNT {
                break;
            }
            flight.count += call.count;
            flight.calls.extend(waiting.pop_front());
        }
        let header = Some(self.header.clone());
        let request = TsoRequest { header, count: flight.count, dc_location: String::new() };
        self.flights.push_back(flight);
        // The queue has room for every flight; a closed one shows as the end of the replies.
        let _ = requests.try_send(request);
    }

    /// Hands the timestamps of a reply to the callers of the oldest request.
    fn land(&mut self, reply: TsoResponse) -> Result<()> {
        let error = reply.header.as_ref().and_then(|header| header.error.as_ref());
        if let Some(error) = error.filter(|error| error.r#type != 0) {
            return Err(broken(&error.message));
        }
        let flight = self.flights.front().ok_or_else(|| broken("a reply without a request"))?;
        if reply.count != flight.count {
            return Err(broken(&format!("{} timestamps where {} were asked", reply.count, flight.count)));
        }
        let last = reply.timestamp.ok_or_else(|| broken("a reply without a timestamp"))?;
        let last = Timestamp::try_from(&last).map_err(|e| broken(&e.to_string()))?;
        if last.logical() + 1 < u64::from(flight.count) {
            return Err(broken("a reply whose first timestamp lies in another millisecond"));
        }
        let mut after = last.get() - u64::from(flight.count);
        for call in self.flights.pop_front().into_iter().flat_map(|flight| flight.calls) {
            after += u64::from(call.count);
            // A caller that no longer waits leaves its timestamps unused.
            let _ = call.reply.send(Ok(Timestamp::new(after)));
        }
        Ok(())
    }
}

async fn next(replies: &mut Streaming<TsoResponse>, deadline: Option<Instant>) -> Result<TsoResponse> {
    let reply = match deadline {
        None => replies.message().await,
        Some(deadline) => match tokio::time::timeout_at(deadline, replies.message()).await {
            Ok(reply) => reply,
            Err(_) => return Err(broken("no timestamp in time")),
        },
    };
    match reply {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err(broken("the scheduler closed the timestamp stream")),
        Err(status) => Err(failure(status)),
    }
}

fn failure(status: tonic::Status) -> Error {
    match classify(status) {
        Attempt::Again(error) | Attempt::Final(error) => error,
    }
}

fn broken(cause: &str) -> Error {
    Error::SchedulerUnavailable { endpoints: "the leader".to_string(), cause: cause.to_string() }
}
