//! Snapshots on their way between stores.
//!
//! Owns nothing but transfers under way: the files and the quotas are the snapshot manager's. Files are read and
//! written on a thread per transfer, of which the quotas allow few; the network side is asynchronous and paced by
//! the manager's limit on bytes per second. A snapshot's message reaches the core only when all files are here,
//! verified and on disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kvproto::raft_serverpb::SnapshotChunk;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::raft_client;
use super::resolver::ResolveError;
use super::transport::Network;
use crate::clock;
use crate::raftstore::message::{Input, PeerMessage};
use crate::raftstore::op::snapshot;
use crate::raftstore::runner::SnapshotSender;
use crate::raftstore::snap::{Receive, SnapError, SnapKey, SnapManager};

/// Bytes of files in one message.
const CHUNK_BYTES: usize = 512 << 10;
/// Messages between the network and the thread that reads or writes the files.
const CHUNKS_WAITING: usize = 4;
/// A transfer may take this long, and a second more for every so many bytes.
const TIMEOUT: Duration = Duration::from_secs(60);
const SLOWEST_BYTES_PER_SECOND: u64 = 1 << 20;

/// Tells whether the files of a snapshot were written.
type Written = oneshot::Receiver<Result<(), SnapError>>;

/// See the file's head. Clones share the transfers.
#[derive(Clone)]
pub struct SnapRunner {
    inner: Arc<Inner>,
}

struct Inner {
    network: Network,
    snaps: SnapManager,
    runtime: Handle,
}

/// Why a snapshot did not reach the other store.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error(transparent)]
    Snapshot(#[from] SnapError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("cannot connect to {0}: {1}")]
    Connect(String, String),
    #[error("the other store refused it: {0}")]
    Refused(String),
    #[error("it took longer than {0:?}")]
    Timeout(Duration),
    #[error("no thread for it: {0}")]
    Thread(std::io::Error),
    #[error("it is no snapshot's message")]
    NoSnapshot,
    #[error("this store is stopping")]
    Stopping,
}

impl SnapRunner {
    /// Transfers run on the current runtime.
    pub fn new(network: Network, snaps: SnapManager) -> SnapRunner {
        SnapRunner { inner: Arc::new(Inner { network, snaps, runtime: Handle::current() }) }
    }

    /// Takes a snapshot that another store sends.
    pub fn receive(
        &self,
        chunks: BoxStream<'static, Result<SnapshotChunk, Status>>,
    ) -> impl Future<Output = Result<(), Status>> + Send + 'static {
        let inner = self.inner.clone();
        async move {
            let received = inner.receive(chunks).await;
            match &received {
                Ok(()) => inner.network.counters.snapshot("received"),
                Err(status) => {
                    inner.network.counters.snapshot("receive_failed");
                    tracing::info!(error = status.message(), "snapshot not received");
                }
            }
            received
        }
    }
}

impl SnapshotSender for SnapRunner {
    fn send(&self, key: SnapKey, message: PeerMessage) {
        let inner = self.inner.clone();
        self.inner.runtime.spawn(async move {
            let (region_id, to) = (message.region_id, message.to);
            let sent = tokio::select! {
                sent = inner.send(&key, message) => sent,
                () = inner.network.stopping.cancelled() => Err(TransferError::Stopping),
            };
            match &sent {
                Ok(bytes) => {
                    inner.network.counters.snapshot("sent");
                    tracing::info!(snapshot = %key, store = to.store_id, bytes, "snapshot sent");
                }
                Err(error) => {
                    inner.network.counters.snapshot("send_failed");
                    tracing::warn!(snapshot = %key, store = to.store_id, %error, "snapshot not sent");
                }
            }
            inner.network.router.complete(Input::SnapshotSent {
                region_id,
                to_peer: to.id,
                ok: sent.is_ok(),
            });
        });
    }
}

impl Inner {
    /// Sends a snapshot that was built; gives its size.
    async fn send(self: &Arc<Inner>, key: &SnapKey, message: PeerMessage) -> Result<u64, TransferError> {
        let (_, manifest) = snapshot::announced(&message).ok_or(TransferError::NoSnapshot)?;
        let bytes = crate::raftstore::snap::Manifest::decode(&manifest)?.bytes();
        let store_id = message.to.store_id;
        let address = self.network.resolver.resolve(store_id).await?;
        let mut client = raft_client::connect(&address).await.map_err(|e| {
            self.network.resolver.doubt(store_id);
            TransferError::Connect(address.clone(), raft_client::describe(&e))
        })?;
        let (chunks, failed) = self.read_files(key)?;
        let first = SnapshotChunk { message: Some(message.into_wire()), data: Bytes::new() };
        let stream = futures::stream::iter([first]).chain(self.clone().paced(chunks));
        let limit = TIMEOUT + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND);
        let sent = tokio::time::timeout(
            limit,
            client.snapshot(raft_client::of_cluster(self.network.cluster_id, stream)),
        )
        .await;
        match sent {
            Ok(Ok(_)) => Ok(bytes),
            Err(_) => Err(TransferError::Timeout(limit)),
            // When the files could not be read the other store only sees too few bytes.
            Ok(Err(status)) => Err(match failed.await {
                Ok(error) => error.into(),
                Err(_) => TransferError::Refused(status.message().into()),
            }),
        }
    }

    /// Reads the files on a thread. The second part is told when that fails.
    fn read_files(
        &self,
        key: &SnapKey,
    ) -> Result<(mpsc::Receiver<Bytes>, oneshot::Receiver<SnapError>), TransferError> {
        let (chunks, receiver) = mpsc::channel(CHUNKS_WAITING);
        let (failure, failed) = oneshot::channel();
        let (snaps, key) = (self.snaps.clone(), key.clone());
        let read = move || -> Result<(), SnapError> {
            let mut sender = snaps.send(&key)?;
            while let Some(chunk) = sender.next_chunk(CHUNK_BYTES)? {
                // Nobody reads any more: the transfer has ended.
                if chunks.blocking_send(chunk).is_err() {
                    break;
                }
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("snap-send".into()).spawn(move || {
            if let Err(error) = read() {
                // Nobody may wait for the reason any more.
                drop(failure.send(error));
            }
        });
        thread.map_err(TransferError::Thread)?;
        Ok((receiver, failed))
    }

    /// The pieces of the files, at the permitted rate.
    fn paced(self: Arc<Inner>, chunks: mpsc::Receiver<Bytes>) -> impl Stream<Item = SnapshotChunk> + Send {
        ReceiverStream::new(chunks).then(move |data| {
            let inner = self.clone();
            async move {
                inner.pace(data.len()).await;
                SnapshotChunk { message: None, data }
            }
        })
    }

    async fn pace(&self, bytes: usize) {
        let wait = self.snaps.throttle(bytes as u64, clock::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    async fn receive(
        &self,
        mut chunks: BoxStream<'static, Result<SnapshotChunk, Status>>,
    ) -> Result<(), Status> {
        let invalid = |what: &str| Status::invalid_argument(format!("snapshot: {what}"));
        let first = chunks.next().await.ok_or_else(|| invalid("an empty stream"))??;
        let wire = first.message.ok_or_else(|| invalid("the first piece must be its message"))?;
        let message = PeerMessage::from_wire(wire).map_err(|e| invalid(&e.to_string()))?;
        if message.to.store_id != self.network.store_id {
            let text =
                format!("it is for store {}, this is store {}", message.to.store_id, self.network.store_id);
            return Err(Status::failed_precondition(text));
        }
        let announced = message.is_snapshot().then(|| snapshot::announced(&message)).flatten();
        let (key, manifest) = announced.ok_or_else(|| invalid("the message announces none"))?;
        let (files, written) = self.write_files(manifest).map_err(|e| Status::unavailable(e.to_string()))?;
        while let Some(chunk) = chunks.next().await {
            let data = chunk?.data;
            self.pace(data.len()).await;
            // The thread has ended: it failed, or needs no more because the files are here already.
            if files.send(data).await.is_err() {
                break;
            }
        }
        drop(files);
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(status_of(&error)),
            Err(_) => return Err(Status::internal("the thread that writes the files ended badly")),
        }
        tracing::info!(snapshot = %key, peer = message.to.id, "snapshot received");
        self.network
            .router
            .send(Input::Raft(message))
            .map_err(|_| Status::unavailable("the store is overloaded; try again"))
    }

    /// Writes what is fed into the first part to files on a thread; the second part tells the outcome.
    fn write_files(&self, manifest: Bytes) -> Result<(mpsc::Sender<Bytes>, Written), TransferError> {
        let (files, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_WAITING);
        let (outcome, written) = oneshot::channel();
        let snaps = self.snaps.clone();
        let mut write = move || -> Result<(), SnapError> {
            let Receive::Into(mut receiver) = snaps.receive(&manifest)? else { return Ok(()) };
            while let Some(chunk) = chunks.blocking_recv() {
                receiver.write(&chunk)?;
            }
            receiver.finish().map(drop)
        };
        let thread = std::thread::Builder::new().name("snap-receive".into());
        // Nobody waits for the outcome when the sender hung up.
        thread.spawn(move || drop(outcome.send(write()))).map_err(TransferError::Thread)?;
        Ok((files, written))
    }
}

fn status_of(error: &SnapError) -> Status {
    let code = match error {
        SnapError::Busy { .. } | SnapError::InUse(_) => Code::ResourceExhausted,
        SnapError::TooLarge { .. } => Code::OutOfRange,
        SnapError::Corrupt(_) => Code::DataLoss,
        SnapError::Missing(_) | SnapError::Io { .. } | SnapError::Engine(_) => Code::Internal,
    };
    Status::new(code, error.to_string())
}
