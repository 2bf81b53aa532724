//! Raw requests as messages: decodes them, has [`Raw`] carry them out, and words the reply.

use std::sync::Arc;

use bytes::Bytes;
use kvproto::kvrpcpb as pb;

use super::{Failure, Reply, call, cut_aware, pair};
use crate::engine::EngineError;
use crate::raftstore::message::{Callback, WriteSet};
use crate::storage::{RegionContext, RegionSnapshot};
use crate::txn::raw::{Call, LongReply, Raw, RawError, Scan, Swap, column_family};

/// Raw commands of a server. Clones share the store.
#[derive(Clone)]
pub struct RawCommands {
    raw: Arc<Raw>,
}

/// The snapshot that the gets of one frame share. All of them arrived before it was taken.
#[derive(Default)]
pub struct FrameSnapshot(Option<(RegionContext, RegionSnapshot)>);

impl RawCommands {
    pub fn new(raw: Raw) -> RawCommands {
        RawCommands { raw: Arc::new(raw) }
    }

    /// Answers a get without waiting for anything; `None` when that takes a disk or a quorum.
    pub fn get_inline(
        &self,
        request: &pb::RawGetRequest,
        now: u64,
        shared: &mut FrameSnapshot,
    ) -> Option<pb::RawGetResponse> {
        let call = call(&request.context, now);
        match self.try_get(&call, request, shared) {
            Ok(None) | Err(RawError::Engine(EngineError::NotCached)) => None,
            Ok(Some(value)) => Some(get_reply(value)),
            Err(error) => Some(pb::RawGetResponse::failed(error)),
        }
    }

    fn try_get(
        &self,
        call: &Call,
        request: &pb::RawGetRequest,
        shared: &mut FrameSnapshot,
    ) -> Result<Option<Option<Bytes>>, RawError> {
        column_family(&request.cf)?;
        if shared.0.as_ref().is_none_or(|(ctx, _)| *ctx != call.ctx) {
            shared.0 = self.raw.lease_snapshot(&call.ctx)?.map(|snapshot| (call.ctx, snapshot));
        }
        let Some((_, at)) = &shared.0 else { return Ok(None) };
        Ok(Some(self.raw.get_cached(at, call, &request.key)?))
    }

    pub async fn get(&self, request: pb::RawGetRequest, now: u64) -> pb::RawGetResponse {
        let call = call(&request.context, now);
        let result = async {
            column_family(&request.cf)?;
            self.raw.get(&call, request.key).await
        };
        result.await.map_or_else(pb::RawGetResponse::failed, get_reply)
    }

    pub async fn get_ttl(&self, request: pb::RawGetKeyTtlRequest, now: u64) -> pb::RawGetKeyTtlResponse {
        let call = call(&request.context, now);
        let result = async {
            column_family(&request.cf)?;
            self.raw.get_ttl(&call, request.key).await
        };
        match result.await {
            Ok(Some(ttl)) => pb::RawGetKeyTtlResponse { ttl, ..Default::default() },
            Ok(None) => pb::RawGetKeyTtlResponse { not_found: true, ..Default::default() },
            Err(error) => pb::RawGetKeyTtlResponse::failed(error),
        }
    }

    pub async fn batch_get(&self, request: pb::RawBatchGetRequest, now: u64) -> pb::RawBatchGetResponse {
        let call = call(&request.context, now);
        let result = async {
            column_family(&request.cf)?;
            self.raw.batch_get(&call, request.keys).await
        };
        match result.await {
            Ok(pairs) => {
                let pairs = pairs.into_iter().map(pair).collect();
                pb::RawBatchGetResponse { pairs, ..Default::default() }
            }
            Err(error) => pb::RawBatchGetResponse::failed(error),
        }
    }

    pub async fn scan(&self, request: pb::RawScanRequest, now: u64) -> pb::RawScanResponse {
        let call = call(&request.context, now);
        let range = pb::KeyRange { start_key: request.start_key, end_key: request.end_key };
        let scan = scan(range, request.limit, request.key_only, request.reverse);
        let result = async {
            column_family(&request.cf)?;
            self.raw.scan(&call, vec![scan], long_reply(&request.context)).await
        };
        match result.await {
            Ok(pairs) => {
                let kvs = pairs.into_iter().map(pair).collect();
                pb::RawScanResponse { kvs, ..Default::default() }
            }
            Err(error) => pb::RawScanResponse::failed(error),
        }
    }

    pub async fn batch_scan(&self, request: pb::RawBatchScanRequest, now: u64) -> pb::RawBatchScanResponse {
        let call = call(&request.context, now);
        let (limit, key_only, reverse) = (request.each_limit, request.key_only, request.reverse);
        let scans = request.ranges.into_iter().map(|r| scan(r, limit, key_only, reverse)).collect();
        let result = async {
            column_family(&request.cf)?;
            self.raw.scan(&call, scans, long_reply(&request.context)).await
        };
        match result.await {
            Ok(pairs) => {
                let kvs = pairs.into_iter().map(pair).collect();
                pb::RawBatchScanResponse { kvs, ..Default::default() }
            }
            Err(error) => pb::RawBatchScanResponse::failed(error),
        }
    }

    pub async fn checksum(&self, request: pb::RawChecksumRequest, now: u64) -> pb::RawChecksumResponse {
        let call = call(&request.context, now);
        if request.algorithm != pb::ChecksumAlgorithm::Crc64Xor as i32 {
            let error = format!("checksum algorithm {} is not known: use Crc64_Xor", request.algorithm);
            return pb::RawChecksumResponse::failed(Failure::Request(error));
        }
        let ranges = request.ranges.into_iter().map(|r| (r.start_key, r.end_key)).collect();
        match self.raw.checksum(&call, ranges).await {
            Ok(sum) => pb::RawChecksumResponse {
                checksum: sum.crc64_xor,
                total_kvs: sum.total_kvs,
                total_bytes: sum.total_bytes,
                ..Default::default()
            },
            Err(error) => pb::RawChecksumResponse::failed(error),
        }
    }

    pub async fn compare_and_swap(&self, request: pb::RawCasRequest, now: u64) -> pb::RawCasResponse {
        let call = call(&request.context, now);
        let swap = Swap {
            key: request.key,
            expected: (!request.previous_not_exist).then_some(request.previous_value),
            new: (!request.delete).then_some(request.value),
            ttl: request.ttl,
        };
        let result = async {
            column_family(&request.cf)?;
            self.raw.compare_and_swap(&call, swap).await
        };
        match result.await {
            Ok(swapped) => pb::RawCasResponse {
                succeed: swapped.succeeded,
                previous_not_exist: swapped.previous.is_none(),
                previous_value: swapped.previous.unwrap_or_default(),
                ..Default::default()
            },
            Err(error) => pb::RawCasResponse::failed(error),
        }
    }

    /// Starts a plain write; `done` gets the reply, at once when the write is refused.
    pub fn write<W: RawWrite>(&self, request: &W, now: u64, done: impl FnOnce(W::Reply) + Send + 'static) {
        let call = call(request.context(), now);
        match self.build(request, &call) {
            Ok(write) => {
                let done = Callback::new(move |result| {
                    done(match result {
                        Ok(()) => W::Reply::default(),
                        Err(error) => W::Reply::failed(RawError::from(error)),
                    });
                });
                self.raw.write(&call, write, done);
            }
            Err(error) => done(W::Reply::failed(error)),
        }
    }

    /// Carries out a write that must not cut into a compare-and-swap.
    pub async fn write_latched<W: RawWrite>(&self, request: W, now: u64) -> W::Reply {
        let call = call(request.context(), now);
        let result = async {
            let write = self.build(&request, &call)?;
            self.raw.write_latched(&call, &request.keys(), write).await
        };
        result.await.map_or_else(W::Reply::failed, |()| W::Reply::default())
    }

    fn build<W: RawWrite>(&self, request: &W, call: &Call) -> Result<WriteSet, RawError> {
        column_family(request.cf())?;
        request.build(&self.raw, call)
    }
}

impl From<crate::txn::raw::KeyRefusal> for Failure {
    fn from(refusal: crate::txn::raw::KeyRefusal) -> Failure {
        Failure::Request(refusal.to_string())
    }
}

fn get_reply(value: Option<Bytes>) -> pb::RawGetResponse {
    match value {
        Some(value) => pb::RawGetResponse { value, ..Default::default() },
        None => pb::RawGetResponse { not_found: true, ..Default::default() },
    }
}

/// In a reverse scan the request's start is the upper bound.
fn scan(range: pb::KeyRange, limit: u32, key_only: bool, reverse: bool) -> Scan {
    let (lower, upper) = match reverse {
        false => (range.start_key, range.end_key),
        true => (range.end_key, range.start_key),
    };
    Scan { lower, upper, reverse, key_only, limit: limit as usize }
}

fn long_reply(ctx: &Option<pb::Context>) -> LongReply {
    if cut_aware(ctx) { LongReply::Cut } else { LongReply::Grow }
}

/// A raw write as it comes over the wire.
pub trait RawWrite: Send + Sync + 'static {
    type Reply: Reply;
    fn context(&self) -> &Option<pb::Context>;
    fn cf(&self) -> &str;
    /// Whether it must not cut into a compare-and-swap.
    fn for_cas(&self) -> bool;
    /// The keys to latch.
    fn keys(&self) -> Vec<Bytes>;
    /// Bytes of keys and values, for admission.
    fn bytes(&self) -> usize;
    fn build(&self, raw: &Raw, call: &Call) -> Result<WriteSet, RawError>;
}

macro_rules! raw_write {
    ($request:ident -> $reply:ident, cas $cas:expr, keys $keys:expr, bytes $bytes:expr, build $build:expr) => {
        impl RawWrite for pb::$request {
            type Reply = pb::$reply;

            fn context(&self) -> &Option<pb::Context> {
                &self.context
            }

            fn cf(&self) -> &str {
                &self.cf
            }

            fn for_cas(&self) -> bool {
                ($cas as fn(&Self) -> bool)(self)
            }

            fn keys(&self) -> Vec<Bytes> {
                ($keys as fn(&Self) -> Vec<Bytes>)(self)
            }

            fn bytes(&self) -> usize {
                ($bytes as fn(&Self) -> usize)(self)
            }

            fn build(&self, raw: &Raw, call: &Call) -> Result<WriteSet, RawError> {
                ($build as fn(&Self, &Raw, &Call) -> Result<WriteSet, RawError>)(self, raw, call)
            }
        }
    };
}

raw_write!(RawPutRequest -> RawPutResponse,
    cas |r| r.for_cas,
    keys |r| vec![r.key.clone()],
    bytes |r| r.key.len() + r.value.len(),
    build |r, raw, call| raw.put(call, &[(r.key.clone(), r.value.clone())], &[r.ttl]));

raw_write!(RawBatchPutRequest -> RawBatchPutResponse,
cas |r| r.for_cas,
keys |r| r.pairs.iter().map(|p| p.key.clone()).collect(),
bytes |r| r.pairs.iter().map(|p| p.key.len() + p.value.len()).sum(),
build |r, raw, call| {
    let pairs: Vec<_> = r.pairs.iter().map(|p| (p.key.clone(), p.value.clone())).collect();
    raw.put(call, &pairs, &batch_ttls(r))
});

raw_write!(RawDeleteRequest -> RawDeleteResponse,
    cas |r| r.for_cas,
    keys |r| vec![r.key.clone()],
    bytes |r| r.key.len(),
    build |r, raw, call| raw.delete(call, std::slice::from_ref(&r.key)));

raw_write!(RawBatchDeleteRequest -> RawBatchDeleteResponse,
    cas |r| r.for_cas,
    keys |r| r.keys.clone(),
    bytes |r| r.keys.iter().map(|k| k.len()).sum(),
    build |r, raw, call| raw.delete(call, &r.keys));

raw_write!(RawDeleteRangeRequest -> RawDeleteRangeResponse,
    cas |_| false,
    keys |_| Vec::new(),
    bytes |r| r.start_key.len() + r.end_key.len(),
    build |r, raw, call| raw.delete_range(call, &r.start_key, &r.end_key));

/// Clients from before `ttls` send one time to live for all pairs.
fn batch_ttls(request: &pb::RawBatchPutRequest) -> Vec<u64> {
    #[expect(deprecated, reason = "old clients send it")]
    let ttl = request.ttl;
    if request.ttls.is_empty() && ttl > 0 { vec![ttl] } else { request.ttls.clone() }
}
