//! The batched stream: many commands in one frame, answered in any order by id, many answers in one frame.
//!
//! Everything happens in the task that writes the response stream. A get whose value is in memory is answered on
//! the spot; writes are handed to the storage with a callback; only what may take long gets a task. Answers that
//! pile up while the task runs or writes leave together: there is no timer. What is in flight is bounded: a
//! stream with too much of it is not read from until answers have left.
//!
//! Invariant: every command of a frame is answered exactly once, whatever it is; a [`Ticket`] that is dropped
//! answers for itself.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::task::AtomicWaker;
use kvproto::kvrpcpb as pb;
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::Response;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use kvproto::tikvpb::{BatchCommandsEmptyResponse, BatchCommandsRequest, BatchCommandsResponse};
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::admission::{Cost, Enter, Permit};
use super::convert::raw::{FrameSnapshot, RawWrite};
use super::convert::{Reply, unsupported};
use super::kv_service::{ADMISSION_WAIT, Shared};
use crate::clock::{self, Now};
use crate::metrics::{Command, Metrics};

mod txn;

pub(super) use txn::waiting_cost;

/// Commands of one stream that may be unanswered.
const IN_FLIGHT_MAX: usize = 8192;
/// Answers in one frame, and bytes of them. One answer may be larger than that.
const FRAME_ANSWERS_MAX: usize = 1024;
const FRAME_BYTES_MAX: usize = 1 << 20;
/// How often a client hears about the store's health, in nanoseconds.
const FEEDBACK_EVERY: u64 = 1_000_000_000;
/// Longest delay that a client may ask for with an empty command.
const EMPTY_DELAY_MAX: Duration = Duration::from_secs(10);

/// Answers on their way to the stream's task.
struct Answers {
    queue: Mutex<Vec<(u64, Response)>>,
    waker: AtomicWaker,
    metrics: Arc<Metrics>,
}

impl Answers {
    fn push(&self, id: u64, answer: Response) {
        let mut queue = self.queue.lock();
        queue.push((id, answer));
        let first = queue.len() == 1;
        drop(queue);
        // The task takes all there is, so only the first of a pile has to wake it.
        if first {
            self.waker.wake();
        }
    }
}

/// The duty to answer one command.
struct Ticket {
    id: u64,
    command: Command,
    started: Now,
    /// Room for what the frame brought, given back with its last answer.
    _permit: Option<Arc<Permit>>,
    answers: Option<Arc<Answers>>,
}

impl Ticket {
    fn answer(mut self, answer: Answer) {
        if let Some(answers) = self.answers.take() {
            answers.metrics.observe(self.command, clock::now().since(self.started) / 1_000, 1);
            answers.push(self.id, Response { cmd: Some(answer) });
        }
    }
}

impl Drop for Ticket {
    /// The task that had to answer is gone. An answer without content is an error to every client.
    fn drop(&mut self) {
        if let Some(answers) = self.answers.take() {
            answers.push(self.id, Response { cmd: None });
        }
    }
}

/// One client's stream.
pub struct BatchStream {
    shared: Arc<Shared>,
    inbound: Streaming<BatchCommandsRequest>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// No more frames are taken: the client is done, its stream broke, or the server stops.
    ended: bool,
    in_flight: usize,
    waiting: Option<WaitingFrame>,
    answers: Arc<Answers>,
    ready: Vec<(u64, Response)>,
    fed_back: Now,
}

/// A frame that found the server full.
struct WaitingFrame {
    frame: BatchCommandsRequest,
    enter: Enter,
    deadline: Pin<Box<Sleep>>,
}

/// What the commands of one frame have in common.
struct Frame {
    now: u64,
    started: Now,
    permit: Option<Arc<Permit>>,
    /// Set when there is no room for what costs.
    shed: bool,
    snapshot: FrameSnapshot,
    /// Gets that were answered on the spot.
    raw_gets: u64,
    txn_gets: u64,
    txn_batch_gets: u64,
}

impl Frame {
    /// Counts the gets that were answered on the spot, each with its share of the time.
    fn observe_gets(&self, metrics: &Metrics) {
        let all = self.raw_gets + self.txn_gets + self.txn_batch_gets;
        let micros = clock::now().since(self.started) / 1_000;
        let Some(micros) = micros.checked_div(all) else { return };
        let counted = [
            (Command::RawGet, self.raw_gets),
            (Command::KvGet, self.txn_gets),
            (Command::KvBatchGet, self.txn_batch_gets),
        ];
        for (command, gets) in counted.into_iter().filter(|(_, gets)| *gets > 0) {
            metrics.observe(command, micros, gets);
        }
    }
}

impl BatchStream {
    pub(super) fn new(shared: Arc<Shared>, inbound: Streaming<BatchCommandsRequest>) -> BatchStream {
        shared.metrics.batch_streams.inc();
        let metrics = shared.metrics.clone();
        let answers = Arc::new(Answers { queue: Mutex::default(), waker: AtomicWaker::new(), metrics });
        BatchStream {
            stop: Box::pin(shared.stop.clone().cancelled_owned()),
            shared,
            inbound,
            ended: false,
            in_flight: 0,
            waiting: None,
            answers,
            ready: Vec::new(),
            fed_back: clock::now(),
        }
    }

    /// Takes over answers that were finished elsewhere.
    fn collect(&mut self) {
        let mut queue = self.answers.queue.lock();
        self.in_flight -= queue.len();
        if self.ready.is_empty() {
            std::mem::swap(&mut self.ready, &mut *queue);
        } else {
            self.ready.append(&mut queue);
        }
    }

    /// Starts commands until there is enough to answer, or nothing more to start.
    fn advance(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        while self.ready.len() < FRAME_ANSWERS_MAX && self.in_flight < IN_FLIGHT_MAX {
            if let Some(waiting) = &mut self.waiting {
                let permit = match Pin::new(&mut waiting.enter).poll(cx) {
                    Poll::Ready(permit) => Some(Arc::new(permit)),
                    Poll::Pending if waiting.deadline.as_mut().poll(cx).is_pending() => return Ok(()),
                    Poll::Pending => None,
                };
                let shed = permit.is_none();
                if let Some(WaitingFrame { frame, .. }) = self.waiting.take() {
                    self.start(frame, permit, shed);
                }
                continue;
            }
            if self.ended {
                return Ok(());
            }
            match Pin::new(&mut self.inbound).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(frame))) => self.admit(frame)?,
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(Err(status))) => {
                    tracing::debug!(%status, "a batched stream broke");
                    self.ended = true;
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, frame: BatchCommandsRequest) -> Result<(), Status> {
        if frame.requests.len() != frame.request_ids.len() {
            return Err(Status::invalid_argument("a frame needs one request id for each request"));
        }
        let cost = frame.requests.iter().filter_map(|r| r.cmd.as_ref()).map(cost);
        let cost = cost.fold(Cost::default(), |a, b| Cost {
            requests: a.requests + b.requests,
            bytes: a.bytes + b.bytes,
        });
        if cost == Cost::default() {
            self.start(frame, None, false);
        } else if let Some(permit) = self.shared.admission.try_enter(cost) {
            self.start(frame, Some(Arc::new(permit)), false);
        } else {
            let (enter, deadline) = (self.shared.admission.enter(cost), tokio::time::sleep(ADMISSION_WAIT));
            self.waiting = Some(WaitingFrame { frame, enter, deadline: Box::pin(deadline) });
        }
        Ok(())
    }

    fn start(&mut self, frame: BatchCommandsRequest, permit: Option<Arc<Permit>>, shed: bool) {
        let (now, started) = (clock::unix_seconds(), clock::now());
        let snapshot = FrameSnapshot::default();
        let (raw_gets, txn_gets, txn_batch_gets) = (0, 0, 0);
        let mut common = Frame { now, started, permit, shed, snapshot, raw_gets, txn_gets, txn_batch_gets };
        for (request, id) in frame.requests.into_iter().zip(frame.request_ids) {
            match request.cmd {
                Some(cmd) => self.command(id, cmd, &mut common),
                None => self.ready.push((id, Response { cmd: None })),
            }
        }
        common.observe_gets(&self.shared.metrics);
    }

    fn command(&mut self, id: u64, cmd: Cmd, frame: &mut Frame) {
        if let Cmd::RawGet(request) = &cmd
            && let Some(reply) = self.shared.raw.get_inline(request, frame.now, &mut frame.snapshot)
        {
            frame.raw_gets += 1;
            return self.ready.push((id, Response { cmd: Some(Answer::RawGet(reply)) }));
        }
        if self.answer_txn_read(id, &cmd, frame) {
            return;
        }
        let Some(cmd) = self.txn_command(id, cmd, frame) else { return };
        match cmd {
            Cmd::RawPut(r) => self.write(id, Command::RawPut, r, frame, Answer::RawPut),
            Cmd::RawBatchPut(r) => self.write(id, Command::RawBatchPut, r, frame, Answer::RawBatchPut),
            Cmd::RawDelete(r) => self.write(id, Command::RawDelete, r, frame, Answer::RawDelete),
            Cmd::RawBatchDelete(r) => {
                self.write(id, Command::RawBatchDelete, r, frame, Answer::RawBatchDelete)
            }
            Cmd::RawDeleteRange(r) => {
                self.write(id, Command::RawDeleteRange, r, frame, Answer::RawDeleteRange)
            }
            Cmd::RawGet(_) | Cmd::RawBatchGet(_) | Cmd::RawScan(_) | Cmd::RawBatchScan(_) => {
                self.read(id, cmd, frame)
            }
            Cmd::Empty(r) if r.delay_time > 0 => {
                let ticket = self.ticket(id, Command::Other, frame);
                let delay = Duration::from_millis(r.delay_time).min(EMPTY_DELAY_MAX);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    ticket.answer(Answer::Empty(BatchCommandsEmptyResponse { test_id: r.test_id }));
                });
            }
            other => {
                let answer = self.immediate(other);
                self.ready.push((id, Response { cmd: answer }));
            }
        }
    }

    fn ticket(&mut self, id: u64, command: Command, frame: &Frame) -> Ticket {
        self.in_flight += 1;
        let (started, answers) = (frame.started, Some(self.answers.clone()));
        Ticket { id, command, started, _permit: frame.permit.clone(), answers }
    }

    fn write<W: RawWrite>(
        &mut self,
        id: u64,
        command: Command,
        request: W,
        frame: &Frame,
        answer: fn(W::Reply) -> Answer,
    ) {
        if frame.shed {
            let reply = answer(W::Reply::failed(self.shared.shed()));
            return self.ready.push((id, Response { cmd: Some(reply) }));
        }
        let (ticket, now) = (self.ticket(id, command, frame), frame.now);
        if request.for_cas() {
            let raw = self.shared.raw.clone();
            tokio::spawn(async move { ticket.answer(answer(raw.write_latched(request, now).await)) });
        } else {
            self.shared.raw.write(&request, now, move |reply| ticket.answer(answer(reply)));
        }
    }

    /// A read that may have to wait.
    fn read(&mut self, id: u64, cmd: Cmd, frame: &Frame) {
        let (raw, now) = (self.shared.raw.clone(), frame.now);
        let command = match &cmd {
            Cmd::RawGet(_) => Command::RawGet,
            Cmd::RawBatchGet(_) => Command::RawBatchGet,
            Cmd::RawScan(_) => Command::RawScan,
            _ => Command::RawBatchScan,
        };
        let ticket = self.ticket(id, command, frame);
        tokio::spawn(async move {
            let answer = match cmd {
                Cmd::RawGet(r) => Answer::RawGet(raw.get(r, now).await),
                Cmd::RawBatchGet(r) => Answer::RawBatchGet(raw.batch_get(r, now).await),
                Cmd::RawScan(r) => Answer::RawScan(raw.scan(r, now).await),
                Cmd::RawBatchScan(r) => Answer::RawBatchScan(raw.batch_scan(r, now).await),
                // Dropping the ticket answers with an error.
                _ => return,
            };
            ticket.answer(answer);
        });
    }

    /// Commands that take no work, and those that nobody here carries out.
    fn immediate(&self, cmd: Cmd) -> Option<Answer> {
        macro_rules! refuse {
            ($($variant:ident $reply:ident),* $(,)?) => {
                match cmd {
                    $(Cmd::$variant(_) => Answer::$variant(pb::$reply {
                        region_error: Some(unsupported(stringify!($variant))),
                        ..Default::default()
                    }),)*
                    _ => return None,
                }
            };
        }
        Some(match cmd {
            Cmd::Empty(r) => Answer::Empty(BatchCommandsEmptyResponse { test_id: r.test_id }),
            Cmd::GetHealthFeedback(_) => {
                let health_feedback = Some(self.shared.health_feedback());
                let reply = pb::GetHealthFeedbackResponse { health_feedback, ..Default::default() };
                Answer::GetHealthFeedback(reply)
            }
            // Advice about transactions that nothing here keeps.
            Cmd::BroadcastTxnStatus(_) => Answer::BroadcastTxnStatus(pb::BroadcastTxnStatusResponse {}),
            _ => refuse!(
                Gc GcResponse,
                RawCoprocessor RawCoprocessorResponse,
                Flush FlushResponse,
                BufferBatchGet BufferBatchGetResponse,
            ),
        })
    }

    /// The answers that leave now.
    fn frame(&mut self) -> BatchCommandsResponse {
        let (mut n, mut bytes) = (0, 0);
        for (_, answer) in self.ready.iter().take(FRAME_ANSWERS_MAX) {
            bytes += weight(answer);
            if bytes > FRAME_BYTES_MAX && n > 0 {
                break;
            }
            n += 1;
        }
        let mut frame = BatchCommandsResponse {
            responses: Vec::with_capacity(n),
            request_ids: Vec::with_capacity(n),
            ..Default::default()
        };
        for (id, answer) in self.ready.drain(..n) {
            frame.request_ids.push(id);
            frame.responses.push(answer);
        }
        let now = clock::now();
        if now.since(self.fed_back) >= FEEDBACK_EVERY {
            self.fed_back = now;
            frame.health_feedback = Some(self.shared.health_feedback());
        }
        frame
    }
}

impl Drop for BatchStream {
    fn drop(&mut self) {
        self.shared.metrics.batch_streams.dec();
    }
}

impl Stream for BatchStream {
    type Item = Result<BatchCommandsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.answers.waker.register(cx.waker());
        this.collect();
        this.ended = this.ended || this.stop.as_mut().poll(cx).is_ready();
        if let Err(status) = this.advance(cx) {
            return Poll::Ready(Some(Err(status)));
        }
        // Refused writes were answered on the way.
        this.collect();
        if !this.ready.is_empty() {
            return Poll::Ready(Some(Ok(this.frame())));
        }
        match this.ended && this.in_flight == 0 && this.waiting.is_none() {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }
}

/// What a command takes of the server's budget. Gets are answered at once and cost nothing.
fn cost(cmd: &Cmd) -> Cost {
    let write = |bytes| Cost { requests: 1, bytes };
    if let Some(cost) = txn::cost(cmd) {
        return cost;
    }
    match cmd {
        Cmd::RawPut(r) => write(r.bytes()),
        Cmd::RawBatchPut(r) => write(r.bytes()),
        Cmd::RawDelete(r) => write(r.bytes()),
        Cmd::RawBatchDelete(r) => write(r.bytes()),
        Cmd::RawDeleteRange(r) => write(r.bytes()),
        Cmd::RawBatchGet(_) | Cmd::RawScan(_) | Cmd::RawBatchScan(_) => write(0),
        _ => Cost::default(),
    }
}

/// Bytes of an answer, roughly for the small ones.
fn weight(answer: &Response) -> usize {
    match &answer.cmd {
        Some(Answer::RawGet(r)) => r.value.len() + 16,
        Some(Answer::Get(r)) if r.error.is_none() => r.value.len() + 24,
        Some(Answer::RawPut(_) | Answer::RawDelete(_)) => 16,
        _ => answer.encoded_len(),
    }
}
