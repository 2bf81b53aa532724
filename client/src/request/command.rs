//! The requests a store answers, seen alike: what they carry, how they travel, and where their replies keep errors.

use std::time::Instant;

use kvproto::errorpb;
use kvproto::kvrpcpb::*;
use tonic::Code;

use crate::lane::{Answer, Command, LaneError};
use crate::scheduler_conn::describe;
use crate::store_pool::Store;

/// Why a request has no reply.
#[derive(Debug)]
pub(crate) enum SendError {
    /// It did not leave this process.
    NotSent(String),
    /// The connection broke after it was sent.
    Broken(String),
    /// No answer in time.
    Silent { sent: bool },
    /// The store does not serve such requests.
    Refused(String),
    /// An answer of another kind than the question.
    Mismatch,
}

/// A request to one region.
pub(crate) trait StoreRequest: Send {
    /// Its answer.
    type Reply: StoreReply;

    /// Whether a reply that the store cut because of its size is understood as such.
    const CUT_AWARE: bool = false;

    /// Takes the region and peer it is meant for.
    fn set_context(&mut self, context: Context);

    /// Sends it to `store` and waits until `deadline`.
    fn send(
        self,
        store: &Store,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Reply, SendError>> + Send;
}

/// An answer to a request to one region.
pub(crate) trait StoreReply: Send {
    /// Takes the error that says that the region could not serve it.
    fn region_error(&mut self) -> Option<errorpb::Error>;

    /// Takes the error of the execution.
    fn server_error(&mut self) -> Option<String>;
}

impl From<LaneError> for SendError {
    fn from(error: LaneError) -> SendError {
        match error {
            LaneError::NotSent(cause) => SendError::NotSent(cause.to_string()),
            LaneError::Broken(cause) => SendError::Broken(cause.to_string()),
            LaneError::Silent { sent } => SendError::Silent { sent },
        }
    }
}

impl From<tonic::Status> for SendError {
    fn from(status: tonic::Status) -> SendError {
        let text = describe(&status);
        if never_connected(&status) {
            return SendError::NotSent(text);
        }
        match status.code() {
            Code::Unimplemented | Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => {
                SendError::Refused(text)
            }
            Code::DeadlineExceeded => SendError::Silent { sent: true },
            // A status does not tell whether the request reached the store; assume that it did.
            _ => SendError::Broken(text),
        }
    }
}

/// True when there was no connection to send anything on.
fn never_connected(status: &tonic::Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |cause| cause.source()).any(|cause| cause.is::<tonic::ConnectError>())
}

macro_rules! reply {
    // The caller looks at the errors of keys.
    ($reply:ty, keys) => {
        impl StoreReply for $reply {
            fn region_error(&mut self) -> Option<errorpb::Error> {
                self.region_error.take()
            }

            fn server_error(&mut self) -> Option<String> {
                None
            }
        }
    };
    ($reply:ty, error) => {
        impl StoreReply for $reply {
            fn region_error(&mut self) -> Option<errorpb::Error> {
                self.region_error.take()
            }

            fn server_error(&mut self) -> Option<String> {
                (!self.error.is_empty()).then(|| std::mem::take(&mut self.error))
            }
        }
    };
    ($reply:ty, $pairs:ident) => {
        impl StoreReply for $reply {
            fn region_error(&mut self) -> Option<errorpb::Error> {
                self.region_error.take()
            }

            fn server_error(&mut self) -> Option<String> {
                let error = self.$pairs.iter_mut().find_map(|pair| pair.error.take())?;
                Some(if error.abort.is_empty() {
                    "it refused one of the keys".to_string()
                } else {
                    error.abort
                })
            }
        }
    };
}

macro_rules! batched {
    ($request:ty, $variant:ident, $reply:ty, $errors:ident, |$this:ident| $bytes:expr $(, $constant:item)?) => {
        reply!($reply, $errors);

        impl StoreRequest for $request {
            type Reply = $reply;

            $($constant)?

            fn set_context(&mut self, context: Context) {
                keep_lists(&mut self.context, context);
            }

            async fn send(self, store: &Store, deadline: Instant) -> Result<$reply, SendError> {
                let $this = &self;
                let bytes = $bytes;
                match store.lane.call(Command::$variant(self), bytes, deadline).await? {
                    Answer::$variant(reply) => Ok(reply),
                    _ => Err(SendError::Mismatch),
                }
            }
        }
    };
}

macro_rules! unary {
    ($request:ty, $method:ident, $reply:ty) => {
        reply!($reply, error);

        impl StoreRequest for $request {
            type Reply = $reply;

            fn set_context(&mut self, context: Context) {
                self.context = Some(context);
            }

            async fn send(self, store: &Store, deadline: Instant) -> Result<$reply, SendError> {
                let mut client = store.unary.clone();
                match tokio::time::timeout_at(deadline.into(), client.$method(self)).await {
                    Ok(reply) => Ok(reply?.into_inner()),
                    Err(_) => Err(SendError::Silent { sent: true }),
                }
            }
        }
    };
}

/// Fills in where a request goes; which locks it may pass is the caller's.
fn keep_lists(place: &mut Option<Context>, mut context: Context) {
    if let Some(lists) = place.take() {
        context.resolved_locks = lists.resolved_locks;
        context.committed_locks = lists.committed_locks;
    }
    *place = Some(context);
}

fn mutation_bytes(mutations: &[Mutation]) -> usize {
    mutations.iter().map(|mutation| mutation.key.len() + mutation.value.len()).sum()
}

fn pair_bytes(pairs: &[KvPair]) -> usize {
    pairs.iter().map(|pair| pair.key.len() + pair.value.len()).sum()
}

fn key_bytes(keys: &[bytes::Bytes]) -> usize {
    keys.iter().map(bytes::Bytes::len).sum()
}

batched!(RawGetRequest, RawGet, RawGetResponse, error, |q| q.key.len());
batched!(RawBatchGetRequest, RawBatchGet, RawBatchGetResponse, pairs, |q| key_bytes(&q.keys));
batched!(RawPutRequest, RawPut, RawPutResponse, error, |q| q.key.len() + q.value.len());
batched!(RawBatchPutRequest, RawBatchPut, RawBatchPutResponse, error, |q| pair_bytes(&q.pairs));
batched!(RawDeleteRequest, RawDelete, RawDeleteResponse, error, |q| q.key.len());
batched!(RawBatchDeleteRequest, RawBatchDelete, RawBatchDeleteResponse, error, |q| key_bytes(&q.keys));
batched!(
    RawScanRequest,
    RawScan,
    RawScanResponse,
    kvs,
    |q| q.start_key.len() + q.end_key.len(),
    const CUT_AWARE: bool = true;
);
batched!(RawDeleteRangeRequest, RawDeleteRange, RawDeleteRangeResponse, error, |q| q.start_key.len()
    + q.end_key.len());
unary!(RawGetKeyTtlRequest, raw_get_key_ttl, RawGetKeyTtlResponse);
unary!(RawCasRequest, raw_compare_and_swap, RawCasResponse);
unary!(RawChecksumRequest, raw_checksum, RawChecksumResponse);
unary!(MvccGetByKeyRequest, mvcc_get_by_key, MvccGetByKeyResponse);
unary!(UnsafeDestroyRangeRequest, unsafe_destroy_range, UnsafeDestroyRangeResponse);

batched!(GetRequest, Get, GetResponse, keys, |q| q.key.len());
batched!(BatchGetRequest, BatchGet, BatchGetResponse, keys, |q| key_bytes(&q.keys));
batched!(
    ScanRequest,
    Scan,
    ScanResponse,
    keys,
    |q| q.start_key.len() + q.end_key.len(),
    const CUT_AWARE: bool = true;
);
batched!(PrewriteRequest, Prewrite, PrewriteResponse, keys, |q| mutation_bytes(&q.mutations));
batched!(CommitRequest, Commit, CommitResponse, keys, |q| key_bytes(&q.keys));
batched!(BatchRollbackRequest, BatchRollback, BatchRollbackResponse, keys, |q| key_bytes(&q.keys));
batched!(PessimisticLockRequest, PessimisticLock, PessimisticLockResponse, keys, |q| mutation_bytes(
    &q.mutations
));
batched!(PessimisticRollbackRequest, PessimisticRollback, PessimisticRollbackResponse, keys, |q| {
    key_bytes(&q.keys)
});
batched!(TxnHeartBeatRequest, TxnHeartBeat, TxnHeartBeatResponse, keys, |q| q.primary_lock.len());
batched!(CheckTxnStatusRequest, CheckTxnStatus, CheckTxnStatusResponse, keys, |q| q.primary_key.len());
batched!(CheckSecondaryLocksRequest, CheckSecondaryLocks, CheckSecondaryLocksResponse, keys, |q| {
    key_bytes(&q.keys)
});
batched!(ScanLockRequest, ScanLock, ScanLockResponse, keys, |q| q.start_key.len() + q.end_key.len());
batched!(ResolveLockRequest, ResolveLock, ResolveLockResponse, keys, |q| key_bytes(&q.keys));
batched!(DeleteRangeRequest, DeleteRange, DeleteRangeResponse, error, |q| q.start_key.len()
    + q.end_key.len());
