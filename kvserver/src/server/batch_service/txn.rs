//! Transactional commands of a batched stream. A get whose value is in memory is answered on the spot, like a raw one;
//! everything else gets a task.

use kvproto::kvrpcpb as pb;
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::Response;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use prost::Message;

use super::{BatchStream, Frame};
use crate::metrics::Command;
use crate::server::admission::Cost;
use crate::server::convert::Reply;

/// Up to so many keys a batch of gets is tried on the spot.
const INLINE_KEYS: usize = 32;

impl BatchStream {
    /// Answers a read whose data is in memory. False when it has to wait, or is none.
    pub(super) fn answer_txn_read(&mut self, id: u64, cmd: &Cmd, frame: &mut Frame) -> bool {
        let answer = match cmd {
            Cmd::Get(request) => {
                let Some(reply) = self.shared.txn.get_inline(request) else { return false };
                frame.txn_gets += 1;
                Answer::Get(reply)
            }
            Cmd::BatchGet(request) if request.keys.len() <= INLINE_KEYS && !frame.shed => {
                let Some(reply) = self.shared.txn.batch_get_inline(request) else { return false };
                frame.txn_batch_gets += 1;
                Answer::BatchGet(reply)
            }
            _ => return false,
        };
        self.ready.push((id, Response { cmd: Some(answer) }));
        true
    }

    /// Carries out a transactional command. Gives it back when it is none.
    pub(super) fn txn_command(&mut self, id: u64, cmd: Cmd, frame: &Frame) -> Option<Cmd> {
        macro_rules! dispatch {
            ($($variant:ident $command:ident $method:ident,)*) => {
                match cmd {
                    $(Cmd::$variant(request) => {
                        if frame.shed && Command::$command != Command::KvGet {
                            let reply = Answer::$variant(Reply::failed(self.shared.shed()));
                            self.ready.push((id, Response { cmd: Some(reply) }));
                            return None;
                        }
                        let (ticket, txn) =
                            (self.ticket(id, Command::$command, frame), self.shared.txn.clone());
                        tokio::spawn(async move {
                            ticket.answer(Answer::$variant(txn.$method(request).await));
                        });
                        None
                    })*
                    other => Some(other),
                }
            };
        }
        dispatch! {
            Get KvGet get,
            BatchGet KvBatchGet batch_get,
            Scan KvScan scan,
            Prewrite KvPrewrite prewrite,
            Commit KvCommit commit,
            Cleanup KvCleanup cleanup,
            BatchRollback KvBatchRollback batch_rollback,
            PessimisticLock KvPessimisticLock pessimistic_lock,
            PessimisticRollback KvPessimisticRollback pessimistic_rollback,
            CheckTxnStatus KvCheckTxnStatus check_txn_status,
            CheckSecondaryLocks KvCheckSecondaryLocks check_secondary_locks,
            TxnHeartBeat KvTxnHeartBeat txn_heart_beat,
            ResolveLock KvResolveLock resolve_lock,
            ScanLock KvScanLock scan_lock,
            DeleteRange KvDeleteRange delete_range,
        }
    }
}

/// What a transactional command takes of the server's budget; `None` when it is none.
pub(super) fn cost(cmd: &Cmd) -> Option<Cost> {
    let cost = |requests, bytes| Some(Cost { requests, bytes });
    match cmd {
        Cmd::Prewrite(r) => cost(1, r.encoded_len()),
        Cmd::Commit(r) => cost(1, r.encoded_len()),
        Cmd::BatchRollback(r) => cost(1, r.encoded_len()),
        Cmd::ResolveLock(r) => cost(1, r.encoded_len()),
        Cmd::CheckSecondaryLocks(r) => cost(1, r.encoded_len()),
        Cmd::PessimisticRollback(r) => cost(1, r.encoded_len()),
        Cmd::PessimisticLock(r) => Some(waiting_cost(r)),
        Cmd::Cleanup(_) | Cmd::CheckTxnStatus(_) | Cmd::TxnHeartBeat(_) | Cmd::DeleteRange(_) => cost(1, 0),
        Cmd::BatchGet(_) | Cmd::Scan(_) | Cmd::ScanLock(_) => cost(1, 0),
        _ => None,
    }
}

/// Those who wait for locks must not keep out those who would release them: they do not count as requests. Their
/// number has a limit of its own.
pub(in crate::server) fn waiting_cost(request: &pb::PessimisticLockRequest) -> Cost {
    Cost { requests: 0, bytes: request.encoded_len() }
}
