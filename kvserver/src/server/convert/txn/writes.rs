//! Transactional commands that write, request by request.

use kvproto::kvrpcpb as pb;

use super::errors::lock_info;
use super::{Answered, TxnCommands, call, invalid, requests};
use crate::server::convert::Reply;
use crate::txn::commands::{
    Acquired, CheckSecondaryLocks, CheckTxnStatus, CheckedTxn, ClaimedKey, Cleanup, Commit, Fates,
    PessimisticRollback, ResolveLock, Rollback, SecondaryLocks, StatusAction, TxnHeartBeat, TxnStatus,
};
use crate::txn::error::{LockInfo, TxnError};

impl TxnCommands {
    pub async fn prewrite(&self, request: pb::PrewriteRequest) -> pb::PrewriteResponse {
        let call = call(&request.context);
        let result: Answered<_> =
            async { Ok(self.txn.run(&call, requests::prewrite(request)?).await?) }.await;
        match result {
            Ok(done) => pb::PrewriteResponse {
                min_commit_ts: done.min_commit_ts,
                one_pc_commit_ts: done.one_pc_commit_ts,
                ..Default::default()
            },
            Err(failure) => pb::PrewriteResponse::failed(failure),
        }
    }

    pub async fn commit(&self, request: pb::CommitRequest) -> pb::CommitResponse {
        let call = call(&request.context);
        let (start_ts, commit_ts) = (request.start_version, request.commit_version);
        let command = Commit { start_ts, commit_ts, keys: request.keys };
        let result: Answered<_> = async {
            not_a_file(request.is_txn_file)?;
            Ok(self.txn.run(&call, command).await?)
        }
        .await;
        match result {
            Ok(commit_version) => pb::CommitResponse { commit_version, ..Default::default() },
            Err(failure) => pb::CommitResponse::failed(failure),
        }
    }

    pub async fn batch_rollback(&self, request: pb::BatchRollbackRequest) -> pb::BatchRollbackResponse {
        let call = call(&request.context);
        let command = Rollback { start_ts: request.start_version, keys: request.keys };
        let result: Answered<_> = async {
            not_a_file(request.is_txn_file)?;
            Ok(self.txn.run(&call, command).await?)
        }
        .await;
        result.map_or_else(pb::BatchRollbackResponse::failed, |()| Default::default())
    }

    pub async fn cleanup(&self, request: pb::CleanupRequest) -> pb::CleanupResponse {
        let call = call(&request.context);
        let command =
            Cleanup { key: request.key, start_ts: request.start_version, current_ts: request.current_ts };
        match self.txn.run(&call, command).await {
            Ok(()) => pb::CleanupResponse::default(),
            Err(TxnError::Committed { commit_ts, .. }) => {
                pb::CleanupResponse { commit_version: commit_ts, ..Default::default() }
            }
            Err(error) => pb::CleanupResponse::failed(error),
        }
    }

    pub async fn pessimistic_lock(&self, request: pb::PessimisticLockRequest) -> pb::PessimisticLockResponse {
        let call = call(&request.context);
        let wants = Wants {
            values: request.return_values,
            existence: request.check_existence,
            by_force: request.wake_up_mode == pb::PessimisticLockWakeUpMode::WakeUpModeForceLock as i32,
        };
        let result: Answered<_> = async {
            let (command, wait_ms) = requests::pessimistic_lock(request, self.wait_ms)?;
            let start_ts = command.start_ts;
            Ok(self.txn.run_waiting(&call, command, start_ts, wait_ms).await?)
        }
        .await;
        match result {
            Ok(acquired) => wants.reply(acquired),
            Err(failure) => pb::PessimisticLockResponse::failed(failure),
        }
    }

    pub async fn check_txn_status(&self, request: pb::CheckTxnStatusRequest) -> pb::CheckTxnStatusResponse {
        let call = call(&request.context);
        let primary = request.primary_key;
        let command = CheckTxnStatus {
            primary: primary.clone(),
            start_ts: request.lock_ts,
            caller_start_ts: request.caller_start_ts,
            current_ts: request.current_ts,
            rollback_if_not_exist: request.rollback_if_not_exist,
            force_sync_commit: request.force_sync_commit,
            resolving_pessimistic_lock: request.resolving_pessimistic_lock,
            verify_is_primary: request.verify_is_primary,
        };
        let result: Answered<_> = async {
            not_a_file(request.is_txn_file)?;
            Ok(self.txn.run(&call, command).await?)
        }
        .await;
        let CheckedTxn { status, action } = match result {
            Ok(checked) => checked,
            Err(failure) => return pb::CheckTxnStatusResponse::failed(failure),
        };
        let mut reply =
            pb::CheckTxnStatusResponse { action: wire_action(action) as i32, ..Default::default() };
        match status {
            TxnStatus::Committed { commit_ts } => reply.commit_version = commit_ts,
            TxnStatus::RolledBack => {}
            TxnStatus::Locked(lock) => {
                // Without a time to live clients take it for rolled back.
                reply.lock_ttl = lock.ttl.max(1);
                reply.lock_info = Some(lock_info(LockInfo { key: primary, lock: *lock }));
            }
        }
        reply
    }
}

impl TxnCommands {
    pub async fn check_secondary_locks(
        &self,
        request: pb::CheckSecondaryLocksRequest,
    ) -> pb::CheckSecondaryLocksResponse {
        let call = call(&request.context);
        let command = CheckSecondaryLocks { start_ts: request.start_version, keys: request.keys };
        match self.txn.run(&call, command).await {
            Ok(SecondaryLocks { commit_ts, locks }) => {
                let locks = locks.into_iter().map(lock_info).collect();
                pb::CheckSecondaryLocksResponse { locks, commit_ts, ..Default::default() }
            }
            Err(error) => pb::CheckSecondaryLocksResponse::failed(error),
        }
    }

    /// One transaction or several, on named keys or wherever they have locks in the region.
    pub async fn resolve_lock(&self, request: pb::ResolveLockRequest) -> pb::ResolveLockResponse {
        let call = call(&request.context);
        let result: Answered<()> = async {
            not_a_file(request.is_txn_file || request.txn_infos.iter().any(|info| info.is_txn_file))?;
            let fates = match request.txn_infos.is_empty() {
                true => Fates::new([(request.start_version, request.commit_version)])?,
                false => Fates::new(request.txn_infos.iter().map(|info| (info.txn, info.status)))?,
            };
            match request.keys.is_empty() {
                true => self.txn.resolve_region(&call, fates).await?,
                false => self.txn.run(&call, ResolveLock { fates, keys: request.keys }).await?,
            };
            Ok(())
        }
        .await;
        result.map_or_else(pb::ResolveLockResponse::failed, |()| Default::default())
    }

    pub async fn txn_heart_beat(&self, request: pb::TxnHeartBeatRequest) -> pb::TxnHeartBeatResponse {
        let call = call(&request.context);
        let command = TxnHeartBeat {
            primary: request.primary_lock,
            start_ts: request.start_version,
            advise_ttl: request.advise_lock_ttl,
            min_commit_ts: request.min_commit_ts,
        };
        let result: Answered<_> = async {
            not_a_file(request.is_txn_file)?;
            Ok(self.txn.run(&call, command).await?)
        }
        .await;
        match result {
            Ok(lock_ttl) => pb::TxnHeartBeatResponse { lock_ttl, ..Default::default() },
            Err(failure) => pb::TxnHeartBeatResponse::failed(failure),
        }
    }

    /// On named keys, or on all that the transaction has claimed in the region.
    pub async fn pessimistic_rollback(
        &self,
        request: pb::PessimisticRollbackRequest,
    ) -> pb::PessimisticRollbackResponse {
        let call = call(&request.context);
        let pb::PessimisticRollbackRequest { start_version, for_update_ts, keys, .. } = request;
        let whole_region = keys.is_empty();
        let command = PessimisticRollback { start_ts: start_version, for_update_ts, keys };
        let done = match whole_region {
            true => self.txn.give_back_claims(&call, command).await,
            false => self.txn.run(&call, command).await,
        };
        done.map_or_else(pb::PessimisticRollbackResponse::failed, |()| Default::default())
    }

    pub async fn delete_range(&self, request: pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        let call = call(&request.context);
        let (start, end) = (request.start_key, request.end_key);
        let result: Answered<()> = async {
            self.txn.keys().api(call.api).map_err(TxnError::from)?;
            let end = self.txn.keys().range(call.api, &start, end).map_err(TxnError::from)?;
            if request.notify_only {
                // Nothing here has to be told of a range that is deleted by other means.
                return Ok(());
            }
            Ok(self.txn.delete_range(&call, &start, &end).await?)
        }
        .await;
        result.map_or_else(pb::DeleteRangeResponse::failed, |()| Default::default())
    }
}

/// Transactions whose data lies in files are not served.
fn not_a_file(is_txn_file: bool) -> Answered<()> {
    if is_txn_file { invalid("transactions kept in files are not supported".into()) } else { Ok(()) }
}

fn wire_action(action: StatusAction) -> pb::Action {
    match action {
        StatusAction::Nothing => pb::Action::NoAction,
        StatusAction::RolledBackExpired => pb::Action::TtlExpireRollback,
        StatusAction::RolledBackMissing => pb::Action::LockNotExistRollback,
        StatusAction::PushedMinCommitTs => pb::Action::MinCommitTsPushed,
        StatusAction::RemovedExpiredClaim => pb::Action::TtlExpirePessimisticRollback,
        StatusAction::LeftMissing => pb::Action::LockNotExistDoNothing,
    }
}

/// What a pessimistic lock request wants to know.
struct Wants {
    values: bool,
    existence: bool,
    by_force: bool,
}

impl Wants {
    fn reply(&self, acquired: Acquired) -> pb::PessimisticLockResponse {
        let mut reply = pb::PessimisticLockResponse::default();
        if self.by_force {
            let result = |claimed: ClaimedKey| {
                let conflict_ts = claimed.locked_with_conflict_ts;
                let kind = match conflict_ts {
                    0 => pb::PessimisticLockKeyResultType::LockResultNormal,
                    _ => pb::PessimisticLockKeyResultType::LockResultLockedWithConflict,
                };
                pb::PessimisticLockKeyResult {
                    r#type: kind as i32,
                    value: claimed.value.unwrap_or_default(),
                    existence: claimed.exists,
                    locked_with_conflict_ts: conflict_ts,
                    ..Default::default()
                }
            };
            reply.results = acquired.keys.into_iter().map(result).collect();
            return reply;
        }
        if self.values || self.existence {
            reply.not_founds = acquired.keys.iter().map(|claimed| !claimed.exists).collect();
        }
        if self.values {
            let value = |claimed: ClaimedKey| claimed.value.unwrap_or_default();
            reply.values = acquired.keys.into_iter().map(value).collect();
        }
        reply
    }
}
