//! Messages of other stores: what the gRPC streams bring is handed to the store's [`RaftIngress`].

use futures::StreamExt;
use kvproto::raft_serverpb::{Done, RaftMessage, SnapshotChunk};
use kvproto::tikvpb::BatchRaftMessage;
use tonic::{Response, Status, Streaming};

use super::kv_service::Shared;
use crate::storage::store::RaftIngress;

fn ingress(shared: &Shared) -> Result<&dyn RaftIngress, Status> {
    let ingress = shared.ingress.as_deref();
    ingress.ok_or_else(|| Status::unimplemented("a standalone server has no other stores"))
}

/// Hands over every message of a stream, until it ends or the server stops.
async fn pump<T>(
    shared: &Shared,
    mut stream: Streaming<T>,
    take: impl Fn(T),
) -> Result<Response<Done>, Status> {
    loop {
        tokio::select! {
            message = stream.message() => match message? {
                Some(message) => take(message),
                None => return Ok(Response::new(Done {})),
            },
            () = shared.stop.cancelled() => return Err(Status::unavailable("the store is stopping")),
        }
    }
}

/// Messages one by one.
pub async fn raft(shared: &Shared, messages: Streaming<RaftMessage>) -> Result<Response<Done>, Status> {
    let ingress = ingress(shared)?;
    pump(shared, messages, |message| ingress.message(message)).await
}

/// Messages in batches: the usual way.
pub async fn batch_raft(
    shared: &Shared,
    batches: Streaming<BatchRaftMessage>,
) -> Result<Response<Done>, Status> {
    let ingress = ingress(shared)?;
    pump(shared, batches, |batch| batch.msgs.into_iter().for_each(|message| ingress.message(message))).await
}

/// One snapshot.
pub async fn snapshot(shared: &Shared, chunks: Streaming<SnapshotChunk>) -> Result<Response<Done>, Status> {
    let taken = ingress(shared)?.snapshot(chunks.boxed());
    tokio::select! {
        result = taken => result.map(|()| Response::new(Done {})),
        () = shared.stop.cancelled() => Err(Status::unavailable("the store is stopping")),
    }
}
