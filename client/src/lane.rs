//! One long-lived `BatchCommands` stream to a store: the path nearly every request takes.
//!
//! Callers append to an inbox of frames; the gRPC stream itself takes a frame whenever the connection can write
//! one. So what arrives while a frame is being written travels in the next, without a timer and without a task in
//! between. Replies are matched by id through a table of slots, one lock per frame.
//!
//! Owns the inbox, the slots and the task that reads replies, opens the stream when there is work and opens a new
//! one after it broke. Invariants: a request is in the inbox, in a slot, or answered, never two of these; each
//! holds one permit while in the inbox or in a slot; who needs both locks takes the inbox first; a slot's generation changes when it is freed, so that a late reply
//! finds nobody. Deadlines are checked every [`SWEEP`], so no request needs a timer of its own.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use kvproto::tikvpb::batch_commands_request::{self, Request};
use kvproto::tikvpb::batch_commands_response::{self, Response};
use kvproto::tikvpb::tikv_client::TikvClient;
use kvproto::tikvpb::{BatchCommandsRequest, BatchCommandsResponse};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::MissedTickBehavior;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::scheduler_conn::describe;

/// Most requests in one frame.
const FRAME_REQUESTS: usize = 256;
/// A frame is closed once its requests' keys and values add up to this.
const FRAME_BYTES: usize = 1 << 20;
/// How often deadlines are checked while requests are on their way.
const SWEEP: Duration = Duration::from_millis(20);

/// What a batched request asks.
pub(crate) type Command = batch_commands_request::request::Cmd;
/// What a batched reply answers.
pub(crate) type Answer = batch_commands_response::response::Cmd;

/// Why a request has no answer.
#[derive(Debug, Clone)]
pub(crate) enum LaneError {
    /// It did not leave this process.
    NotSent(Arc<str>),
    /// The stream broke after it was sent.
    Broken(Arc<str>),
    /// Its deadline passed; `sent` tells whether it was on its way.
    Silent { sent: bool },
}

struct Waiter {
    answer: oneshot::Sender<Result<Answer, LaneError>>,
    deadline: Instant,
}

/// Requests that will travel together.
#[derive(Default)]
struct Frame {
    requests: Vec<Request>,
    waiters: Vec<Waiter>,
    bytes: usize,
}

#[derive(Default)]
struct Inbox {
    frames: VecDeque<Frame>,
    /// Wakes the open stream.
    waker: Option<Waker>,
    /// The stream that may take frames; older ones end.
    stream: u64,
    /// The task sleeps until it is notified.
    idle: bool,
}

#[derive(Default)]
struct Slots {
    entries: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    waiter: Option<Waiter>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    slots: Mutex<Slots>,
    permits: Semaphore,
    work: Notify,
}

/// A handle to the stream; dropping it ends the stream's task.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    task: tokio::task::AbortHandle,
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Callers hold the lane while they wait, so nobody waits now.
        self.task.abort();
        self.shared.end_stream();
    }
}

impl Lane {
    /// A lane over `client` with at most `max_in_flight` requests queued or on their way. It connects with the
    /// first request.
    pub(crate) fn new(client: TikvClient<Channel>, max_in_flight: usize) -> Lane {
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            slots: Mutex::default(),
            permits: Semaphore::new(max_in_flight),
            work: Notify::new(),
        });
        let task = tokio::spawn(run(shared.clone(), client)).abort_handle();
        Lane { shared, task }
    }

    /// Sends `command`, whose keys and values take `bytes`, and waits for its answer.
    pub(crate) async fn call(
        &self,
        command: Command,
        bytes: usize,
        deadline: Instant,
    ) -> Result<Answer, LaneError> {
        match self.shared.permits.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => {
                let wait = tokio::time::timeout_at(deadline.into(), self.shared.permits.acquire());
                // The semaphore is never closed.
                let Ok(Ok(permit)) = wait.await else { return Err(LaneError::Silent { sent: false }) };
                permit.forget();
            }
        }
        let (sender, answer) = oneshot::channel();
        self.shared.push(Request { cmd: Some(command) }, Waiter { answer: sender, deadline }, bytes);
        answer.await.unwrap_or_else(|_| Err(LaneError::Broken("the connection was closed".into())))
    }
}

impl Shared {
    fn push(&self, request: Request, waiter: Waiter, bytes: usize) {
        let (waker, idle) = {
            let mut inbox = self.inbox.lock();
            let full = |frame: &Frame| frame.requests.len() >= FRAME_REQUESTS || frame.bytes >= FRAME_BYTES;
            if inbox.frames.back().is_none_or(full) {
                inbox.frames.push_back(Frame::default());
            }
            if let Some(frame) = inbox.frames.back_mut() {
                frame.requests.push(request);
                frame.waiters.push(waiter);
                frame.bytes += bytes;
            }
            (inbox.waker.take(), std::mem::take(&mut inbox.idle))
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        if idle {
            self.work.notify_one();
        }
    }

    /// Lets the stream that is open end and returns the number of the next one.
    fn end_stream(&self) -> u64 {
        let mut inbox = self.inbox.lock();
        inbox.stream += 1;
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
        inbox.stream
    }

    /// True when requests wait or are on their way; else remembers that the task sleeps.
    fn has_work(&self) -> bool {
        let mut inbox = self.inbox.lock();
        let live = !inbox.frames.is_empty() || !self.slots.lock().is_empty();
        inbox.idle = !live;
        live
    }

    /// Hands the answers of a frame to their callers.
    fn land(&self, reply: BatchCommandsResponse, waiters: &mut Vec<Option<Waiter>>) {
        {
            let mut slots = self.slots.lock();
            waiters.extend(reply.request_ids.iter().map(|id| slots.take(*id)));
        }
        let mut landed = 0;
        for (waiter, Response { cmd }) in waiters.drain(..).zip(reply.responses) {
            let Some(waiter) = waiter else { continue };
            landed += 1;
            let answer = cmd.ok_or_else(|| LaneError::Broken("the store sent an empty answer".into()));
            // A caller that gave up needs no answer.
            let _ = waiter.answer.send(answer);
        }
        self.permits.add_permits(landed);
    }

    /// Fails requests whose deadline has passed.
    fn expire(&self, now: Instant) {
        let mut late = Vec::new();
        self.slots.lock().take_late(now, &mut late);
        let sent = late.len();
        for frame in &mut self.inbox.lock().frames {
            frame.take_late(now, &mut late);
        }
        self.permits.add_permits(late.len());
        for (index, waiter) in late.into_iter().enumerate() {
            let _ = waiter.answer.send(Err(LaneError::Silent { sent: index < sent }));
        }
    }

    /// Fails what waits for the stream that has ended.
    fn fail(&self, end: &End) {
        let sent = self.slots.lock().take_all();
        let queued = match end {
            End::NotOpened(_) => std::mem::take(&mut self.inbox.lock().frames),
            End::Finished | End::Broke(_) => VecDeque::new(),
        };
        let queued: Vec<Waiter> = queued.into_iter().flat_map(|frame| frame.waiters).collect();
        self.permits.add_permits(sent.len() + queued.len());
        let error = match end {
            End::Finished => LaneError::NotSent("the store closed the stream".into()),
            End::Broke(cause) | End::NotOpened(cause) => LaneError::Broken(cause.as_str().into()),
        };
        for waiter in sent {
            let _ = waiter.answer.send(Err(error.clone()));
        }
        if let End::NotOpened(cause) = end {
            let error = LaneError::NotSent(cause.as_str().into());
            for waiter in queued {
                let _ = waiter.answer.send(Err(error.clone()));
            }
        }
    }
}

impl Frame {
    fn take_late(&mut self, now: Instant, late: &mut Vec<Waiter>) {
        if !self.waiters.iter().any(|waiter| waiter.is_late(now)) {
            return;
        }
        let requests = std::mem::take(&mut self.requests).into_iter();
        for (request, waiter) in requests.zip(std::mem::take(&mut self.waiters)) {
            if waiter.is_late(now) {
                late.push(waiter);
            } else {
                self.requests.push(request);
                self.waiters.push(waiter);
            }
        }
    }
}

impl Waiter {
    fn is_late(&self, now: Instant) -> bool {
        self.deadline <= now || self.answer.is_closed()
    }
}

impl Slots {
    fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    /// Stores a waiter and returns the id of its request.
    fn put(&mut self, waiter: Waiter) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Slot::default());
            // Permits bound the number of slots far below u32::MAX.
            (self.entries.len() - 1) as u32
        });
        let slot = &mut self.entries[index as usize];
        slot.waiter = Some(waiter);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// Takes the waiter of a request; `None` when it is gone.
    fn take(&mut self, id: u64) -> Option<Waiter> {
        let index = id as u32;
        let slot = self.entries.get_mut(index as usize)?;
        if u64::from(slot.generation) != id >> 32 {
            return None;
        }
        let waiter = slot.waiter.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(waiter)
    }

    fn take_if(&mut self, mut wanted: impl FnMut(&Waiter) -> bool, taken: &mut Vec<Waiter>) {
        for (index, slot) in self.entries.iter_mut().enumerate() {
            if let Some(waiter) = slot.waiter.take_if(|waiter| wanted(waiter)) {
                slot.generation = slot.generation.wrapping_add(1);
                self.free.push(index as u32);
                taken.push(waiter);
            }
        }
    }

    fn take_late(&mut self, now: Instant, late: &mut Vec<Waiter>) {
        self.take_if(|waiter| waiter.is_late(now), late);
    }

    fn take_all(&mut self) -> Vec<Waiter> {
        let mut all = Vec::new();
        self.take_if(|_| true, &mut all);
        all
    }
}

/// The request half of a stream. Polled by the connection whenever it can write.
struct Frames {
    shared: Arc<Shared>,
    stream: u64,
    /// The last poll let others run first.
    yielded: bool,
}

impl futures::Stream for Frames {
    type Item = BatchCommandsRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BatchCommandsRequest>> {
        let Frames { shared, stream, yielded } = self.get_mut();
        let mut inbox = shared.inbox.lock();
        if inbox.stream != *stream {
            return Poll::Ready(None);
        }
        let queued = inbox.frames.front().map_or(0, |frame| frame.requests.len());
        if queued == 0 {
            inbox.frames.clear();
            inbox.waker = Some(cx.waker().clone());
            *yielded = false;
            return Poll::Pending;
        }
        if queued < FRAME_REQUESTS && !*yielded {
            // A frame of replies wakes many callers, and the first to run wakes this stream. Going to the back of
            // the run queue once lets the others add their next requests to the frame.
            *yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        *yielded = false;
        let frame = inbox.frames.pop_front().unwrap_or_default();
        // The inbox stays locked meanwhile: a request is always in one of the two places.
        let mut slots = shared.slots.lock();
        let request_ids = frame.waiters.into_iter().map(|waiter| slots.put(waiter)).collect();
        Poll::Ready(Some(BatchCommandsRequest {
            requests: frame.requests,
            request_ids,
            client_send_time_ns: 0,
        }))
    }
}

/// Opens a stream when there is work, serves it until it breaks, and so on.
async fn run(shared: Arc<Shared>, mut client: TikvClient<Channel>) {
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if !shared.has_work() {
            shared.work.notified().await;
            continue;
        }
        let frames = Frames { shared: shared.clone(), stream: shared.end_stream(), yielded: false };
        let opening = client.batch_commands(frames);
        tokio::pin!(opening);
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                _ = sweep.tick() => shared.expire(Instant::now()),
            }
        };
        match opened {
            Ok(replies) => {
                let end = serve(&shared, replies.into_inner(), &mut sweep).await;
                shared.end_stream();
                shared.fail(&end);
            }
            Err(status) => {
                shared.end_stream();
                shared.fail(&End::NotOpened(describe(&status)));
            }
        }
    }
}

/// How a stream ended.
enum End {
    /// The store ended it in good order, as a store that stops does: it had answered everything it took, so what
    /// has no answer was not executed.
    Finished,
    /// It broke off: what has no answer may have been executed.
    Broke(String),
    /// It never began.
    NotOpened(String),
}

/// How a stream ended that brings nothing more. Only trailers come from the store itself: without them something in
/// between may have closed it.
async fn ended(replies: &mut Streaming<BatchCommandsResponse>) -> End {
    match replies.trailers().await {
        Ok(Some(_)) => End::Finished,
        Ok(None) => End::Broke("the stream ended without a word".into()),
        Err(status) => End::Broke(format!("the stream broke: {}", describe(&status))),
    }
}

/// Reads replies until the stream ends.
async fn serve(
    shared: &Shared,
    mut replies: Streaming<BatchCommandsResponse>,
    sweep: &mut tokio::time::Interval,
) -> End {
    let mut waiters = Vec::new();
    let mut busy = true;
    loop {
        tokio::select! {
            biased;
            reply = replies.message() => match reply {
                Ok(Some(reply)) => shared.land(reply, &mut waiters),
                Ok(None) => return ended(&mut replies).await,
                Err(status) => return End::Broke(format!("the stream broke: {}", describe(&status))),
            },
            _ = sweep.tick(), if busy => {
                shared.expire(Instant::now());
                busy = shared.has_work();
            }
            _ = shared.work.notified(), if !busy => busy = true,
        }
    }
}
