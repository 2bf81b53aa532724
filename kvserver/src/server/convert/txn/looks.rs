//! Looks at locks, waits and records: for clients that clean up, and for people who look for a fault.

use kvproto::kvrpcpb as pb;

use super::errors::{lock_info, lock_op};
use super::{TxnCommands, call};
use crate::server::convert::wait::entry_to_wire;
use crate::server::convert::{Failure, Reply};
use crate::txn::lock_waits::LockWait;
use crate::txn::mvcc::inspect::KeyRecords;
use crate::txn::mvcc::{Lock, Version, WriteKind};

impl TxnCommands {
    /// The range may go beyond the region, and its keys may be of any API version.
    pub async fn scan_lock(&self, request: pb::ScanLockRequest) -> pb::ScanLockResponse {
        let call = call(&request.context);
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let range = (request.start_key, request.end_key);
        match self.txn.scan_locks(&call, range, request.max_version, limit).await {
            Ok(locks) => {
                let locks = locks.into_iter().map(lock_info).collect();
                pb::ScanLockResponse { locks, ..Default::default() }
            }
            Err(error) => pb::ScanLockResponse::failed(error),
        }
    }

    pub async fn mvcc_by_key(&self, request: pb::MvccGetByKeyRequest) -> pb::MvccGetByKeyResponse {
        let call = call(&request.context);
        match self.txn.key_records(&call, request.key).await {
            Ok(records) => pb::MvccGetByKeyResponse { info: Some(info(records)), ..Default::default() },
            Err(error) => pb::MvccGetByKeyResponse::failed(error),
        }
    }

    pub async fn mvcc_by_start_ts(
        &self,
        request: pb::MvccGetByStartTsRequest,
    ) -> pb::MvccGetByStartTsResponse {
        let call = call(&request.context);
        match self.txn.records_of(&call, request.start_ts).await {
            Ok(Some((key, records))) => {
                pb::MvccGetByStartTsResponse { key, info: Some(info(records)), ..Default::default() }
            }
            Ok(None) => {
                let text = format!("transaction {} has left nothing in this region", request.start_ts);
                pb::MvccGetByStartTsResponse::failed(Failure::Request(text))
            }
            Err(error) => pb::MvccGetByStartTsResponse::failed(error),
        }
    }

    /// Requests that wait for locks on this store.
    pub fn lock_wait_info(&self) -> pb::GetLockWaitInfoResponse {
        let entry = |LockWait { entry, waited_ms }| kvproto::deadlock::WaitForEntry {
            wait_time: waited_ms,
            ..entry_to_wire(entry)
        };
        let entries = self.txn.waiting().into_iter().map(entry).collect();
        pb::GetLockWaitInfoResponse { entries, ..Default::default() }
    }
}

fn info(records: KeyRecords) -> pb::MvccInfo {
    let KeyRecords { lock, versions, values, rollback_notes } = records;
    let value = |(start_ts, value)| pb::MvccValue { start_ts, value };
    pb::MvccInfo {
        lock: lock.map(mvcc_lock),
        writes: versions.into_iter().map(|version| mvcc_write(version, &rollback_notes)).collect(),
        values: values.into_iter().map(value).collect(),
    }
}

fn mvcc_lock(lock: Lock) -> pb::MvccLock {
    pb::MvccLock {
        r#type: lock_op(lock.kind) as i32,
        start_ts: lock.start_ts,
        use_async_commit: lock.is_async_commit(),
        primary: lock.primary,
        short_value: lock.short_value.unwrap_or_default(),
        ttl: lock.ttl,
        for_update_ts: lock.for_update_ts,
        txn_size: lock.txn_size,
        secondaries: lock.secondaries.unwrap_or_default(),
        last_change_ts: lock.last_change_ts,
        ..Default::default()
    }
}

fn mvcc_write(version: Version, rollback_notes: &[u64]) -> pb::MvccWrite {
    let Version { commit_ts, write } = version;
    let kind = match write.kind {
        WriteKind::Put => pb::Op::Put,
        WriteKind::Delete => pb::Op::Del,
        WriteKind::Lock => pb::Op::Lock,
        WriteKind::Rollback => pb::Op::Rollback,
    };
    pb::MvccWrite {
        r#type: kind as i32,
        start_ts: write.start_ts,
        commit_ts,
        short_value: write.short_value.unwrap_or_default(),
        has_overlapped_rollback: rollback_notes.contains(&commit_ts),
        last_change_ts: write.last_change_ts,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::mvcc::Write;

    #[test]
    fn a_rollback_that_shares_a_timestamp_is_shown_with_the_version() {
        let version = |commit_ts| Version {
            commit_ts,
            write: Write {
                kind: WriteKind::Put,
                start_ts: 5,
                last_change_ts: 0,
                short_value: Some("v".into()),
            },
        };
        let versions = vec![version(9), version(7)];
        let info = info(KeyRecords { versions, rollback_notes: vec![7], ..KeyRecords::default() });
        let shown: Vec<_> = info.writes.iter().map(|w| (w.commit_ts, w.has_overlapped_rollback)).collect();
        assert_eq!(shown, [(9, false), (7, true)]);
        assert_eq!((&info.writes[0].short_value[..], info.lock), (&b"v"[..], None));
    }
}
