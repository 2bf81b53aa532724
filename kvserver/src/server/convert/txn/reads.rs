//! Transactional reads, request by request.

use bytes::Bytes;
use kvproto::kvrpcpb as pb;

use super::errors::locked_pair;
use super::{Answered, TxnCommands, call, invalid, not_stale, requests};
use crate::server::convert::{Reply, cut_aware};
use crate::txn::mvcc::Isolation;
use crate::txn::mvcc::point_get::{BatchEntry, Found};
use crate::txn::mvcc::rules::ReadRules;
use crate::txn::pairs::LongReply;
use crate::txn::range::Scan;

/// What a read may see.
fn rules(ctx: &Option<pb::Context>, ts: u64) -> Answered<ReadRules> {
    not_stale(ctx)?;
    let mut rules = ReadRules::at(requests::read_ts(ts)?);
    let Some(ctx) = ctx else { return Ok(rules) };
    rules.isolation = match pb::IsolationLevel::try_from(ctx.isolation_level) {
        Ok(pb::IsolationLevel::Si) => Isolation::Snapshot,
        Ok(pb::IsolationLevel::Rc) => Isolation::ReadCommitted,
        _ => return invalid(format!("isolation level {} is not served: use SI or RC", ctx.isolation_level)),
    };
    match ctx.resolved_locks.is_empty() && ctx.committed_locks.is_empty() {
        true => Ok(rules),
        false => Ok(rules.knowing(ctx.resolved_locks.clone(), ctx.committed_locks.clone())),
    }
}

fn get_reply(found: Option<Found>, need_commit_ts: bool) -> pb::GetResponse {
    match found {
        Some(Found { value, commit_ts }) => {
            let commit_ts = if need_commit_ts { commit_ts } else { 0 };
            pb::GetResponse { value, commit_ts, ..Default::default() }
        }
        None => pb::GetResponse { not_found: true, ..Default::default() },
    }
}

fn batch_reply(entries: Vec<BatchEntry>, need_commit_ts: bool) -> pb::BatchGetResponse {
    let pair = |BatchEntry { key, found }| match found {
        Ok(Found { value, commit_ts }) => {
            let commit_ts = if need_commit_ts { commit_ts } else { 0 };
            pb::KvPair { key, value, commit_ts, ..Default::default() }
        }
        Err(info) => locked_pair(*info),
    };
    pb::BatchGetResponse { pairs: entries.into_iter().map(pair).collect(), ..Default::default() }
}

impl TxnCommands {
    /// Answers a get without waiting for anything; `None` when it has to.
    pub fn get_inline(&self, request: &pb::GetRequest) -> Option<pb::GetResponse> {
        let found = match rules(&request.context, request.version) {
            Ok(rules) => self.txn.get_now(&call(&request.context), &request.key, &rules)?,
            Err(failure) => return Some(pb::GetResponse::failed(failure)),
        };
        Some(found.map_or_else(pb::GetResponse::failed, |found| get_reply(found, request.need_commit_ts)))
    }

    pub async fn get(&self, request: pb::GetRequest) -> pb::GetResponse {
        let result: Answered<_> = async {
            let rules = rules(&request.context, request.version)?;
            Ok(self.txn.get(&call(&request.context), request.key, rules).await?)
        }
        .await;
        result.map_or_else(pb::GetResponse::failed, |found| get_reply(found, request.need_commit_ts))
    }

    /// Answers a batch of gets without waiting for anything; `None` when it has to.
    pub fn batch_get_inline(&self, request: &pb::BatchGetRequest) -> Option<pb::BatchGetResponse> {
        let entries = match rules(&request.context, request.version) {
            Ok(rules) => self.txn.batch_get_now(&call(&request.context), &request.keys, &rules)?,
            Err(failure) => return Some(pb::BatchGetResponse::failed(failure)),
        };
        let reply = |entries| batch_reply(entries, request.need_commit_ts);
        Some(entries.map_or_else(pb::BatchGetResponse::failed, reply))
    }

    pub async fn batch_get(&self, request: pb::BatchGetRequest) -> pb::BatchGetResponse {
        let result: Answered<_> = async {
            let rules = rules(&request.context, request.version)?;
            Ok(self.txn.batch_get(&call(&request.context), request.keys, rules).await?)
        }
        .await;
        result
            .map_or_else(pb::BatchGetResponse::failed, |entries| batch_reply(entries, request.need_commit_ts))
    }

    /// In a reverse scan the request's start is the upper bound.
    pub async fn scan(&self, request: pb::ScanRequest) -> pb::ScanResponse {
        let (lower, upper): (Bytes, Bytes) = match request.reverse {
            false => (request.start_key, request.end_key),
            true => (request.end_key, request.start_key),
        };
        let (reverse, key_only, limit) = (request.reverse, request.key_only, request.limit as usize);
        let range = Scan { lower, upper, reverse, key_only, limit };
        let long = if cut_aware(&request.context) { LongReply::Cut } else { LongReply::Grow };
        let result: Answered<_> = async {
            if request.sample_step > 0 {
                return invalid("samples of a scan are not served: set sample_step to 0".into());
            }
            let rules = rules(&request.context, request.version)?;
            Ok(self.txn.scan(&call(&request.context), range, rules, long).await?)
        }
        .await;
        match result {
            Ok(scanned) => {
                let pair = |entry| match entry {
                    Ok((key, value)) => pb::KvPair { key, value, ..Default::default() },
                    Err(info) => locked_pair(info),
                };
                pb::ScanResponse { pairs: scanned.into_iter().map(pair).collect(), ..Default::default() }
            }
            Err(failure) => pb::ScanResponse::failed(failure),
        }
    }
}
