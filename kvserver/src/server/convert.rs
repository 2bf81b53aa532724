//! Between messages and domain: the only place that knows both.
//!
//! Every error leaves with the truth that the store has: who leads, which regions exist, what was asked for. The
//! text says what to do; the typed part is what clients act on.

use kvproto::errorpb;
use kvproto::kvrpcpb::{self, ApiVersion};
use kvproto::limits::CUT_AWARE_SOURCE;

use crate::engine::EngineError;
use crate::error::RegionError;
use crate::storage::RegionContext;
use crate::txn::raw::{Call, RawError};

pub mod raw;
pub mod txn;
pub mod wait;

/// How long a client is asked to stay away from a busy server, in milliseconds.
const BUSY_BACKOFF_MS: u64 = 100;

/// Where a request believes its keys to be.
pub fn region_context(ctx: &kvrpcpb::Context) -> RegionContext {
    let epoch = ctx.region_epoch.unwrap_or_default();
    let (peer_id, store_id) = ctx.peer.as_ref().map_or((0, 0), |p| (p.id, p.store_id));
    RegionContext {
        region_id: ctx.region_id,
        version: epoch.version,
        conf_ver: epoch.conf_ver,
        peer_id,
        store_id,
        term: ctx.term,
    }
}

/// What a raw request says about itself. `now` is in seconds since 1970.
pub fn call(ctx: &Option<kvrpcpb::Context>, now: u64) -> Call {
    match ctx {
        Some(ctx) => Call { ctx: region_context(ctx), api: api_version(ctx.api_version), now },
        None => Call { ctx: RegionContext::default(), api: ApiVersion::V1, now },
    }
}

/// True when a short reply to a scan will not be taken for the end of the region.
pub fn cut_aware(ctx: &Option<kvrpcpb::Context>) -> bool {
    ctx.as_ref().is_some_and(|ctx| ctx.request_source.starts_with(CUT_AWARE_SOURCE))
}

/// Numbers of a later protocol are taken for V3, which no cluster serves.
fn api_version(number: i32) -> ApiVersion {
    ApiVersion::try_from(number).unwrap_or(ApiVersion::V3)
}

/// How a failed request is told to its client.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The client mends its view of the cluster and tries again.
    Region(Box<errorpb::Error>),
    /// The application must do something else.
    Request(String),
    /// What stands in the way of a transaction, key by key.
    Keys(Vec<kvrpcpb::KeyError>),
}

impl Failure {
    /// As errors of keys; `Err` for what concerns the region.
    fn into_keys(self) -> Result<Vec<kvrpcpb::KeyError>, Box<errorpb::Error>> {
        match self {
            Failure::Region(error) => Err(error),
            Failure::Request(abort) => Ok(vec![kvrpcpb::KeyError { abort, ..Default::default() }]),
            Failure::Keys(errors) => Ok(errors),
        }
    }

    /// As one text; `Err` for what concerns the region.
    fn into_text(self) -> Result<String, Box<errorpb::Error>> {
        let text = |error: kvrpcpb::KeyError| {
            [error.abort, error.retryable].into_iter().find(|text| !text.is_empty()).unwrap_or_default()
        };
        match self {
            Failure::Region(error) => Err(error),
            Failure::Request(text) => Ok(text),
            Failure::Keys(errors) => Ok(errors.into_iter().map(text).collect::<Vec<_>>().join("; ")),
        }
    }
}

impl From<RawError> for Failure {
    fn from(error: RawError) -> Failure {
        match error {
            RawError::Region(error) => Failure::Region(Box::new(region_error(error))),
            RawError::Engine(EngineError::Stalled) => {
                let reason = "the storage engine is behind with compacting".into();
                Failure::Region(Box::new(region_error(RegionError::ServerIsBusy { reason })))
            }
            RawError::ReplyTooLarge { .. } => {
                let reason = error.to_string();
                Failure::Region(Box::new(region_error(RegionError::ServerIsBusy { reason })))
            }
            RawError::Engine(error) => {
                tracing::error!(%error, "a request failed in the storage engine");
                // Not the request's fault but this store's: another leader may do better.
                Failure::Region(Box::new(errorpb::Error { message: error.to_string(), ..Default::default() }))
            }
            error => Failure::Request(error.to_string()),
        }
    }
}

/// A region error as a message.
pub fn region_error(error: RegionError) -> errorpb::Error {
    let mut message = errorpb::Error { message: error.to_string(), ..Default::default() };
    match error {
        RegionError::NotLeader { region_id, leader } => {
            message.not_leader = Some(errorpb::NotLeader { region_id, leader });
        }
        RegionError::RegionNotFound { region_id } => {
            message.region_not_found = Some(errorpb::RegionNotFound { region_id });
        }
        RegionError::RegionNotInitialized { region_id } => {
            message.region_not_initialized = Some(errorpb::RegionNotInitialized { region_id });
        }
        RegionError::KeyNotInRegion { key, region_id, start_key, end_key } => {
            message.key_not_in_region = Some(errorpb::KeyNotInRegion { key, region_id, start_key, end_key });
        }
        RegionError::EpochNotMatch { current } => {
            message.epoch_not_match = Some(errorpb::EpochNotMatch { current_regions: current });
        }
        RegionError::StaleCommand => message.stale_command = Some(errorpb::StaleCommand {}),
        RegionError::StoreNotMatch { requested, actual } => {
            let (request_store_id, actual_store_id) = (requested, actual);
            message.store_not_match = Some(errorpb::StoreNotMatch { request_store_id, actual_store_id });
        }
        RegionError::MismatchPeerId { requested, actual } => {
            let (request_peer_id, store_peer_id) = (requested, actual);
            message.mismatch_peer_id = Some(errorpb::MismatchPeerId { request_peer_id, store_peer_id });
        }
        RegionError::ServerIsBusy { reason } => message.server_is_busy = Some(busy(reason)),
        RegionError::RaftEntryTooLarge { region_id, bytes } => {
            message.raft_entry_too_large = Some(errorpb::RaftEntryTooLarge { region_id, entry_size: bytes });
        }
        RegionError::DiskFull { store_id, reason } => {
            message.disk_full = Some(errorpb::DiskFull { store_id: vec![store_id], reason });
        }
        RegionError::ReadIndexNotReady { region_id, reason } => {
            message.read_index_not_ready = Some(errorpb::ReadIndexNotReady { reason, region_id });
        }
        RegionError::MaxTimestampNotSynced { .. } => {
            message.max_timestamp_not_synced = Some(errorpb::MaxTimestampNotSynced {});
        }
        RegionError::Undetermined(reason) => {
            message.undetermined_result = Some(errorpb::UndeterminedResult { message: reason });
        }
        RegionError::DataIsNotReady { region_id, peer_id } => {
            message.data_is_not_ready = Some(errorpb::DataIsNotReady { region_id, peer_id, safe_ts: 0 });
        }
        // No type of its own: clients look for another peer, which is right.
        RegionError::Stopped { .. } => {}
    }
    message
}

fn busy(reason: String) -> errorpb::ServerIsBusy {
    errorpb::ServerIsBusy { reason, backoff_ms: BUSY_BACKOFF_MS, ..Default::default() }
}

/// The answer to a command that no part of this server carries out.
pub fn unsupported(command: &str) -> errorpb::Error {
    errorpb::Error { message: format!("{command} is not served by this store"), ..Default::default() }
}

/// Replies that can say that nothing was done.
pub trait Reply: Default + Send + 'static {
    /// Records the failure.
    fn fail(&mut self, failure: Failure);

    /// A reply that says so.
    fn failed(failure: impl Into<Failure>) -> Self {
        let mut reply = Self::default();
        reply.fail(failure.into());
        reply
    }
}

macro_rules! reply_with_error {
    ($($reply:ident),*) => {$(
        impl Reply for kvrpcpb::$reply {
            fn fail(&mut self, failure: Failure) {
                match failure.into_text() {
                    Ok(error) => self.error = error,
                    Err(error) => self.region_error = Some(*error),
                }
            }
        }
    )*};
}

reply_with_error!(
    RawGetResponse,
    RawGetKeyTtlResponse,
    RawPutResponse,
    RawBatchPutResponse,
    RawDeleteResponse,
    RawBatchDeleteResponse,
    RawDeleteRangeResponse,
    RawCasResponse,
    RawChecksumResponse,
    RawCoprocessorResponse,
    DeleteRangeResponse,
    UnsafeDestroyRangeResponse,
    MvccGetByKeyResponse,
    MvccGetByStartTsResponse,
    GetLockWaitInfoResponse
);

/// Replies that are lists have no error of their own: it stands in the one pair that they then have.
macro_rules! reply_with_pairs {
    ($($reply:ident . $pairs:ident),*) => {$(
        impl Reply for kvrpcpb::$reply {
            fn fail(&mut self, failure: Failure) {
                match failure.into_keys() {
                    Ok(errors) => self.$pairs = errors.into_iter().map(pair_with_error).collect(),
                    Err(error) => self.region_error = Some(*error),
                }
            }
        }
    )*};
}

reply_with_pairs!(RawBatchGetResponse.pairs, RawScanResponse.kvs, RawBatchScanResponse.kvs);

/// The pair that stands for an error.
fn pair_with_error(error: kvrpcpb::KeyError) -> kvrpcpb::KvPair {
    kvrpcpb::KvPair { error: Some(error), ..Default::default() }
}

/// A pair of a reply.
pub fn pair((key, value): (bytes::Bytes, bytes::Bytes)) -> kvrpcpb::KvPair {
    kvrpcpb::KvPair { key, value, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use kvproto::metapb;

    use super::*;

    #[test]
    fn a_context_without_parts_asks_for_region_zero_in_v1() {
        let call = call(&None, 7);
        assert_eq!((call.ctx, call.api, call.now), (RegionContext::default(), ApiVersion::V1, 7));
        let ctx = kvrpcpb::Context { region_id: 9, api_version: 77, ..Default::default() };
        let call = super::call(&Some(ctx), 7);
        assert_eq!((call.ctx.region_id, call.ctx.version, call.api), (9, 0, ApiVersion::V3));
    }

    #[test]
    fn hints_survive_the_conversion() {
        let leader = metapb::Peer { id: 5, store_id: 2, ..Default::default() };
        let error = region_error(RegionError::NotLeader { region_id: 1, leader: Some(leader) });
        assert_eq!(error.not_leader.unwrap().leader, Some(leader));
        assert!(error.message.contains("region 1"), "{}", error.message);
        let current = vec![metapb::Region { id: 3, ..Default::default() }];
        let error = region_error(RegionError::EpochNotMatch { current: current.clone() });
        assert_eq!(error.epoch_not_match.unwrap().current_regions, current);
    }

    #[test]
    fn a_refusal_of_a_list_request_stands_in_its_only_pair() {
        let reply = kvrpcpb::RawScanResponse::failed(Failure::Request("no".into()));
        assert_eq!(reply.kvs[0].error.as_ref().unwrap().abort, "no");
        assert!(reply.region_error.is_none());
    }

    #[test]
    fn a_stalled_engine_is_a_busy_server() {
        let broken = EngineError::Io("the disk said no".into());
        let Failure::Region(error) = RawError::Engine(broken).into() else { panic!("blamed on the request") };
        assert!(error.message.contains("the disk said no"));
        let Failure::Region(error) = RawError::Engine(EngineError::Stalled).into() else { panic!() };
        assert!(error.server_is_busy.is_some());
    }
}
