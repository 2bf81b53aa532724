//! Deliberate mistakes of stores that serve transactions, made around the real runner: checkers must notice each.
//!
//! A mistake is made in what the runner is asked, in the command it is given, or by a second runner that knows nothing of
//! what the first one knows.

use kvproto::kvrpcpb as pb;
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use kvserver::engine::Cf;
use kvserver::raftstore::message::WriteSet;
use kvserver::server::convert::txn::{TxnCommands, requests};
use kvserver::server::convert::{Reply, region_context};
use kvserver::storage::{self, Storage};
use kvserver::txn::commands::{Command, Cx, Done};
use kvserver::txn::error::TxnResult;
use kvserver::txn::mvcc::{Key, Write, WriteKind};
use kvserver::txn::scheduler::{Txn, TxnCall};

use super::serve::{Server, answer};
use crate::sim::breakage::Breakage;

/// How often a read passes the locks that it found.
const PASSES_MAX: usize = 8;

/// A command without some of its care.
struct Careless<C> {
    command: C,
    /// It does not wait for its turn.
    unlatched: bool,
}

impl<C: Command> Command for Careless<C> {
    type Answer = C::Answer;

    fn keys(&self) -> Vec<bytes::Bytes> {
        if self.unlatched { Vec::new() } else { self.command.keys() }
    }

    fn needs_synced_max_ts(&self) -> bool {
        self.unlatched && self.command.needs_synced_max_ts()
    }

    fn newest_ts(&self) -> u64 {
        self.command.newest_ts()
    }

    fn process(&self, cx: &mut Cx<'_>) -> TxnResult<Done<C::Answer>> {
        self.command.process(cx)
    }
}

/// Carries a request out as a store with this mistake does.
pub async fn answer_with(server: &Server, breakage: Breakage, cmd: Cmd) -> Option<Answer> {
    let Server { commands, blind, txn, storage } = server;
    match (breakage, cmd) {
        (Breakage::CommitWithoutLock, Cmd::Commit(r)) => {
            let reply = commands.commit(r.clone()).await;
            let lost = reply.error.as_ref().is_some_and(|error| error.txn_lock_not_found.is_some());
            Some(Answer::Commit(if lost { commit_anyway(&**storage, r).await } else { reply }))
        }
        (Breakage::PrewriteWithoutConflicts, Cmd::Prewrite(mut r)) => {
            r.skip_constraint_check = true;
            Some(Answer::Prewrite(commands.prewrite(r).await))
        }
        (Breakage::CommandsWithoutLatches, Cmd::Prewrite(r)) => {
            Some(Answer::Prewrite(careless_prewrite(txn, r, true).await))
        }
        (Breakage::MaxTsNotSynced, Cmd::Prewrite(r)) => {
            Some(Answer::Prewrite(careless_prewrite(txn, r, false).await))
        }
        (Breakage::ReadsPassLocks, cmd @ (Cmd::Get(_) | Cmd::BatchGet(_))) => pass_locks(commands, cmd).await,
        (Breakage::MinCommitTsBelowReads, cmd @ (Cmd::Get(_) | Cmd::BatchGet(_))) => {
            let (keys, ts) = what_is_read(&cmd);
            for key in keys {
                while let Some(lock) = txn.max_ts().blocking(&key, ts) {
                    lock.gone().await;
                }
            }
            answer(blind, cmd).await
        }
        (Breakage::ReadsPassMemoryLocks, cmd @ (Cmd::Get(_) | Cmd::BatchGet(_))) => {
            txn.max_ts().raise(what_is_read(&cmd).1);
            answer(blind, cmd).await
        }
        (_, cmd) => answer(commands, cmd).await,
    }
}

fn what_is_read(cmd: &Cmd) -> (Vec<bytes::Bytes>, u64) {
    match cmd {
        Cmd::Get(r) => (vec![r.key.clone()], r.version),
        Cmd::BatchGet(r) => (r.keys.clone(), r.version),
        _ => (Vec::new(), 0),
    }
}

/// A commit that takes its client's word for the locks.
async fn commit_anyway(storage: &dyn Storage, request: pb::CommitRequest) -> pb::CommitResponse {
    let mut write = WriteSet::default();
    for key in &request.keys {
        let (kind, start_ts) = (WriteKind::Lock, request.start_version);
        let record = Write { kind, start_ts, last_change_ts: 0, short_value: None };
        let key = Key::new(key.clone()).with_ts(request.commit_version);
        write.put(Cf::Write, &key, &[&record.encode()]);
    }
    let (done, written) = storage::callback();
    storage.write(&region_context(&request.context.unwrap_or_default()), write, done);
    match written.await {
        Ok(()) => pb::CommitResponse { commit_version: request.commit_version, ..Default::default() },
        Err(error) => pb::CommitResponse::failed(kvserver::txn::error::TxnError::from(error)),
    }
}

async fn careless_prewrite(txn: &Txn, request: pb::PrewriteRequest, unlatched: bool) -> pb::PrewriteResponse {
    let ctx = region_context(&request.context.clone().unwrap_or_default());
    let call = TxnCall { ctx, api: pb::ApiVersion::V1 };
    let done = async { txn.run(&call, Careless { command: requests::prewrite(request)?, unlatched }).await };
    match done.await {
        Ok(done) => pb::PrewriteResponse {
            min_commit_ts: done.min_commit_ts,
            one_pc_commit_ts: done.one_pc_commit_ts,
            ..Default::default()
        },
        Err(error) => pb::PrewriteResponse::failed(error),
    }
}

/// A read that takes every lock for one that it may pass.
async fn pass_locks(commands: &TxnCommands, mut cmd: Cmd) -> Option<Answer> {
    let mut found = None;
    for _ in 0..PASSES_MAX {
        found = answer(commands, cmd.clone()).await;
        let locked: Vec<u64> = match &found {
            Some(Answer::Get(reply)) => locks(reply.error.iter()),
            Some(Answer::BatchGet(reply)) => {
                locks(reply.error.iter().chain(reply.pairs.iter().filter_map(|pair| pair.error.as_ref())))
            }
            _ => Vec::new(),
        };
        let (Cmd::Get(pb::GetRequest { context, .. }) | Cmd::BatchGet(pb::BatchGetRequest { context, .. })) =
            &mut cmd
        else {
            break;
        };
        if locked.is_empty() {
            break;
        }
        context.get_or_insert_default().resolved_locks.extend(locked);
    }
    found
}

fn locks<'a>(errors: impl Iterator<Item = &'a pb::KeyError>) -> Vec<u64> {
    errors.filter_map(|error| Some(error.locked.as_ref()?.lock_version)).collect()
}
