//! The gRPC listener: accepted connections are dealt out to a few threads, each with a runtime of its own.
//!
//! A connection lives on one thread with everything it starts, so that a request is read, answered and written
//! without waking another thread; on a small machine those wake-ups cost more than the work. Clients with one
//! connection use one thread; clients that want more open more connections.
//!
//! Invariant: when the future ends, or is dropped, the threads end too.

use std::io;
use std::net::TcpStream as StdStream;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// HTTP/2 windows, in bytes: room for a batch of requests in flight without a round trip to ask for more.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Calls at once on one connection.
const STREAMS_MAX: u32 = 1 << 16;
/// Calls that clients gave up and the server has not seen yet; a client with a deadline makes many.
const RESET_STREAMS_MAX: usize = 1 << 16;
/// How long to wait when no connection can be accepted, as with a full table of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait to be taken over by a thread.
const WAITING_MAX: usize = 128;

/// Serves until `stop`, then ends open calls.
pub async fn serve(listener: TcpListener, routes: Routes, threads: usize, stop: CancellationToken) {
    // Ends the threads at once when this future is dropped.
    let dropped = CancellationToken::new();
    let _ends_threads = dropped.clone().drop_guard();
    let mut lanes = Vec::new();
    let mut ends = Vec::new();
    for n in 0..threads.max(1) {
        let (lane, connections) = mpsc::channel(WAITING_MAX);
        let (ended, end) = oneshot::channel();
        let (routes, stop, dropped) = (routes.clone(), stop.clone(), dropped.clone());
        let run = move || {
            serve_lane(connections, routes, stop, dropped);
            if ended.send(()).is_err() {
                tracing::debug!("a gRPC thread ended unobserved");
            }
        };
        match std::thread::Builder::new().name(format!("grpc-{n}")).spawn(run) {
            Ok(_detached) => {
                lanes.push(lane);
                ends.push(end);
            }
            Err(error) => tracing::error!(%error, "cannot start a gRPC thread"),
        }
    }
    deal(listener, lanes, stop).await;
    for end in ends {
        if end.await.is_err() {
            tracing::error!("a gRPC thread died");
        }
    }
}

/// Accepts connections and hands each to the next thread.
async fn deal(listener: TcpListener, lanes: Vec<mpsc::Sender<StdStream>>, stop: CancellationToken) {
    for n in 0.. {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted.and_then(|(stream, _)| prepare(stream)),
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok(stream) => {
                let Some(lane) = lanes.get(n % lanes.len().max(1)) else { return };
                if lane.send(stream).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn prepare(stream: TcpStream) -> io::Result<StdStream> {
    stream.set_nodelay(true)?;
    stream.into_std()
}

fn serve_lane(
    connections: mpsc::Receiver<StdStream>,
    routes: Routes,
    stop: CancellationToken,
    dropped: CancellationToken,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "cannot start a gRPC thread"),
    };
    let served = async {
        let incoming = ReceiverStream::new(connections).map(TcpStream::from_std);
        tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.cancelled())
            .await
    };
    runtime.block_on(async {
        tokio::select! {
            served = served => if let Err(error) = served {
                tracing::error!(%error, "a gRPC thread failed");
            },
            () = dropped.cancelled() => {}
        }
    });
}
