//! Messages of other stores: what the gRPC streams bring is handed to the store's [`RaftIngress`].

use futures::StreamExt;
use kvproto::raft_serverpb::{Done, RaftMessage, SnapshotChunk};
use kvproto::tikvpb::BatchRaftMessage;
use tonic::{Request, Response, Status, Streaming};

use super::kv_service::Shared;
use crate::storage::store::{CLUSTER_ID_KEY, RaftIngress};

/// The way in, for a stream of this cluster.
#[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
fn ingress<'a, T>(shared: &'a Shared, request: &Request<T>) -> Result<&'a dyn RaftIngress, Status> {
    let ingress = shared.ingress.as_deref();
    let ingress = ingress.ok_or_else(|| Status::unimplemented("a standalone server has no other stores"))?;
    same_cluster(shared.store.cluster_id(), request)?;
    Ok(ingress)
}

/// Refuses a stream of another cluster.
#[allow(clippy::result_large_err, reason = "Status is what tonic wants")]
pub(super) fn same_cluster<T>(ours: u64, request: &Request<T>) -> Result<(), Status> {
    let theirs = request.metadata().get(CLUSTER_ID_KEY).and_then(|id| id.to_str().ok());
    match theirs {
        Some(theirs) if theirs.parse() == Ok(ours) => Ok(()),
        _ => Err(Status::failed_precondition(format!(
            "this store belongs to cluster {ours}, the message comes from cluster {}: the sender has an address that \
             is no longer a store of its cluster",
            theirs.unwrap_or("(not said)")
        ))),
    }
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
pub async fn raft(
    shared: &Shared,
    messages: Request<Streaming<RaftMessage>>,
) -> Result<Response<Done>, Status> {
    let ingress = ingress(shared, &messages)?;
    pump(shared, messages.into_inner(), |message| ingress.message(message)).await
}

/// Messages in batches: the usual way.
pub async fn batch_raft(
    shared: &Shared,
    batches: Request<Streaming<BatchRaftMessage>>,
) -> Result<Response<Done>, Status> {
    let ingress = ingress(shared, &batches)?;
    pump(shared, batches.into_inner(), |batch| {
        batch.msgs.into_iter().for_each(|message| ingress.message(message))
    })
    .await
}

/// One snapshot.
pub async fn snapshot(
    shared: &Shared,
    chunks: Request<Streaming<SnapshotChunk>>,
) -> Result<Response<Done>, Status> {
    let taken = ingress(shared, &chunks)?.snapshot(chunks.into_inner().boxed());
    tokio::select! {
        result = taken => result.map(|()| Response::new(Done {})),
        () = shared.stop.cancelled() => Err(Status::unavailable("the store is stopping")),
    }
}
