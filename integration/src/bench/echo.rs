//! The ceiling: a server of the same gRPC stack that does nothing but answer, with the messages of a raw get. Its
//! unary rate is what a client of unary calls can reach at best; its batched rate what a client can reach that
//! sends whatever has queued as one message of a stream.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use kvproto::kvrpcpb::{RawGetRequest, RawGetResponse};
use kvproto::tikvpb::tikv_client::TikvClient;
use kvproto::tikvpb::{
    BatchCommandsRequest, BatchCommandsResponse, batch_commands_request, batch_commands_response,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::BenchError;

/// Requests that may wait for a frame, and frames that may wait for the connection.
const QUEUE: usize = 1024;
const FRAMES: usize = 4;

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// Answers every raw get with the same value.
#[derive(Clone)]
struct Echo {
    value: Bytes,
}

impl Echo {
    fn answer(&self, _request: &RawGetRequest) -> RawGetResponse {
        RawGetResponse { value: self.value.clone(), ..RawGetResponse::default() }
    }

    fn answer_frame(&self, frame: BatchCommandsRequest) -> BatchCommandsResponse {
        let answer = |request: batch_commands_request::Request| batch_commands_response::Response {
            cmd: match request.cmd {
                Some(batch_commands_request::request::Cmd::RawGet(get)) => {
                    Some(batch_commands_response::response::Cmd::RawGet(self.answer(&get)))
                }
                _ => None,
            },
        };
        let responses = frame.requests.into_iter().map(answer).collect();
        BatchCommandsResponse {
            responses,
            request_ids: frame.request_ids,
            ..BatchCommandsResponse::default()
        }
    }
}

impl UnaryService<RawGetRequest> for Echo {
    type Response = RawGetResponse;
    type Future = Answer<RawGetResponse>;

    fn call(&mut self, request: Request<RawGetRequest>) -> Self::Future {
        let answer = self.answer(request.get_ref());
        Box::pin(async move { Ok(Response::new(answer)) })
    }
}

impl StreamingService<BatchCommandsRequest> for Echo {
    type Response = BatchCommandsResponse;
    type ResponseStream = futures::stream::BoxStream<'static, Result<BatchCommandsResponse, Status>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: Request<Streaming<BatchCommandsRequest>>) -> Self::Future {
        let echo = self.clone();
        let answers = request.into_inner().map(move |frame| frame.map(|frame| echo.answer_frame(frame)));
        Box::pin(async move { Ok(Response::new(answers.boxed())) })
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "tikvpb.Tikv";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/tikvpb.Tikv/RawGet" => Grpc::new(ProstCodec::default()).unary(echo, request).await,
                "/tikvpb.Tikv/BatchCommands" => {
                    Grpc::new(ProstCodec::default()).streaming(echo, request).await
                }
                _ => Status::unimplemented("only RawGet and BatchCommands").into_http(),
            })
        })
    }
}

/// Serves until the process ends.
pub async fn serve(address: SocketAddr, value_bytes: usize) -> Result<(), BenchError> {
    let value = Bytes::from(vec![b'v'; value_bytes]);
    let served = Server::builder().tcp_nodelay(true).add_service(Echo { value }).serve(address).await;
    served.map_err(|error| BenchError::client("echo server", error))
}

/// One connection for all clients, as the official client has to a store.
pub async fn connect(address: SocketAddr) -> Result<TikvClient<Channel>, BenchError> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|e| BenchError::client("echo", e))?;
    let channel = endpoint.tcp_nodelay(true).connect().await.map_err(|e| BenchError::client("echo", e))?;
    Ok(TikvClient::new(channel))
}

/// A unary call.
pub async fn unary(mut client: TikvClient<Channel>, key: Bytes) -> Result<(), Status> {
    let reply = client.raw_get(RawGetRequest { key, ..RawGetRequest::default() }).await?.into_inner();
    if reply.value.is_empty() { Err(Status::internal("an empty echo")) } else { Ok(()) }
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<RawGetResponse>>>>;

/// Sends requests as they queue: what waits while a frame is sent goes into the next.
#[derive(Clone)]
pub struct Batched {
    queue: mpsc::Sender<(u64, RawGetRequest)>,
    waiting: Waiting,
    next_id: Arc<AtomicU64>,
}

impl Batched {
    pub async fn start(mut client: TikvClient<Channel>) -> Result<Self, BenchError> {
        let (queue, queued) = mpsc::channel(QUEUE);
        let (frames, outgoing) = mpsc::channel(FRAMES);
        tokio::spawn(fill_frames(queued, frames));
        let answers = client.batch_commands(ReceiverStream::new(outgoing)).await;
        let answers = answers.map_err(|error| BenchError::client("echo", error))?.into_inner();
        let waiting = Waiting::default();
        tokio::spawn(hand_out(answers, waiting.clone()));
        Ok(Self { queue, waiting, next_id: Arc::default() })
    }

    pub async fn call(&self, key: Bytes) -> Result<(), Status> {
        let gone = || Status::unavailable("the echo stream has ended");
        let (sender, answer) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().insert(id, sender);
        let request = RawGetRequest { key, ..RawGetRequest::default() };
        self.queue.send((id, request)).await.map_err(|_| gone())?;
        let reply = answer.await.map_err(|_| gone())?;
        if reply.value.is_empty() { Err(Status::internal("an empty echo")) } else { Ok(()) }
    }
}

async fn fill_frames(
    mut queued: mpsc::Receiver<(u64, RawGetRequest)>,
    frames: mpsc::Sender<BatchCommandsRequest>,
) {
    let mut batch = Vec::with_capacity(QUEUE);
    while queued.recv_many(&mut batch, QUEUE).await > 0 {
        let mut frame = BatchCommandsRequest::default();
        for (id, get) in batch.drain(..) {
            let cmd = Some(batch_commands_request::request::Cmd::RawGet(get));
            frame.requests.push(batch_commands_request::Request { cmd });
            frame.request_ids.push(id);
        }
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

async fn hand_out(mut answers: Streaming<BatchCommandsResponse>, waiting: Waiting) {
    while let Ok(Some(frame)) = answers.message().await {
        let mut waiting = waiting.lock();
        for (id, response) in frame.request_ids.into_iter().zip(frame.responses) {
            let Some(batch_commands_response::response::Cmd::RawGet(get)) = response.cmd else { continue };
            if let Some(sender) = waiting.remove(&id) {
                // A caller that has given up has no use for its answer.
                let _ = sender.send(get);
            }
        }
    }
    waiting.lock().clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ways_come_back() {
        let address = crate::cluster::free_address();
        let server = tokio::spawn(serve(address, 256));
        let client = loop {
            assert!(!server.is_finished(), "the echo server has ended");
            match connect(address).await {
                Ok(client) => break client,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        unary(client.clone(), Bytes::from_static(b"k")).await.unwrap();
        let batched = Batched::start(client).await.unwrap();
        let calls = (0..100).map(|_| batched.call(Bytes::from_static(b"k")));
        futures::future::try_join_all(calls).await.unwrap();
        assert!(batched.waiting.lock().is_empty());
        server.abort();
    }
}
