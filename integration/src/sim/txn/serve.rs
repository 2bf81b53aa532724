//! A store's side of transactional requests: one task per request, over the real runner.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use kvproto::tikvpb::batch_commands_request::request::Cmd;
use kvproto::tikvpb::batch_commands_response::response::Cmd as Answer;
use kvserver::server::convert::txn::TxnCommands;
use kvserver::storage::raft_storage::region_reader::RegionReader;
use kvserver::txn::deadlock::LocalDetector;
use kvserver::txn::lock_waits::LockWaitOptions;
use kvserver::txn::scheduler::{Txn, TxnParts};

use super::executor::Home;
use super::mistakes::answer_with;
use super::port::{Effect, Heard, SimStorage};
use crate::sim::event::Life;
use crate::sim::world::World;

/// Bytes that one write may have.
const WRITE_BYTES_MAX: usize = 6 << 20;

/// What serves requests in one life of a store.
pub struct Server {
    pub commands: TxnCommands,
    /// For deliberate mistakes: the same over a runner that knows nothing of the other one's reads and writes.
    pub blind: TxnCommands,
    pub txn: Arc<Txn>,
    pub storage: Arc<SimStorage>,
}

/// Transactions in one life of a store.
pub struct TxnProcess {
    server: Arc<Server>,
    /// What its clock shows, for its tasks.
    clock: Arc<AtomicU64>,
    /// Calls that are not answered yet.
    calls: BTreeSet<u64>,
}

impl TxnProcess {
    /// True when no call waits for its answer.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }
}

impl World {
    /// What a store that starts needs for transactions.
    pub fn txn_process(&mut self, life: Life, reader: Arc<RegionReader>) -> TxnProcess {
        let clock = Arc::new(AtomicU64::new(0));
        let port = self.txn.port(Home::Store(life), clock.clone());
        let api = self.plan.raft[life.store].api;
        let storage = Arc::new(SimStorage { port: port.clone(), reader, api });
        let parts = || TxnParts {
            storage: storage.clone(),
            pool: Arc::new(port.clone()),
            oracle: Arc::new(port.clone()),
            timer: Arc::new(port.clone()),
            detector: Arc::new(LocalDetector::new(Arc::new(port.clone()))),
            waits: LockWaitOptions::default(),
            safe_points: Arc::default(),
            write_bytes_max: WRITE_BYTES_MAX,
        };
        let txn = Arc::new(Txn::new(parts()));
        if self.plan.txn.clients > 0 {
            let waits = txn.clone();
            self.txn.executor.spawn(Home::Store(life), async move { waits.drive_waits().await }.boxed());
        }
        let blind = TxnCommands::new(Arc::new(Txn::new(parts())));
        let server = Server { commands: TxnCommands::new(txn.clone()), blind, txn, storage };
        TxnProcess { server: Arc::new(server), clock, calls: BTreeSet::new() }
    }

    /// Shows a store's tasks the present.
    pub(super) fn set_store_clock(&mut self, store: usize) {
        let shown = self.stores[store].mode.clock.read(self.now_ns);
        if let Some(process) = &self.stores[store].process {
            process.txn.clock.store(shown.0, Ordering::Relaxed);
        }
    }

    /// A request reaches a store.
    pub(super) fn on_call(&mut self, store: usize, call: u64, cmd: Box<Cmd>) {
        let life = self.stores[store].life();
        let Some(process) = &mut self.stores[store].process else { return self.hear(call, Heard::NotSent) };
        process.txn.calls.insert(call);
        let (server, breakage) = (process.txn.server.clone(), self.breakage);
        let port = self.txn.port(Home::Store(life), Arc::default());
        let future = async move {
            let answer = answer_with(&server, breakage, *cmd).await;
            port.leave(Effect::Answer { call, answer: answer.map(Box::new) });
        };
        self.txn.executor.spawn(Home::Store(life), future.boxed());
    }

    /// A store has found an answer.
    pub(super) fn on_answer(&mut self, store: usize, call: u64, answer: Option<Box<Answer>>) {
        if let Some(process) = &mut self.stores[store].process {
            process.txn.calls.remove(&call);
        }
        self.hear(call, Heard::Answer(answer));
    }

    /// The store's process is gone: its tasks end, and its clients see their connections break.
    pub fn end_transactions(&mut self, life: Life, process: TxnProcess) {
        self.txn.executor.end(Home::Store(life));
        for call in process.calls {
            self.hear(call, Heard::Broken);
        }
    }
}

/// Has the server's own conversion carry a request out.
pub async fn answer(commands: &TxnCommands, cmd: Cmd) -> Option<Answer> {
    Some(match cmd {
        Cmd::Get(r) => Answer::Get(commands.get(r).await),
        Cmd::BatchGet(r) => Answer::BatchGet(commands.batch_get(r).await),
        Cmd::Prewrite(r) => Answer::Prewrite(commands.prewrite(r).await),
        Cmd::Commit(r) => Answer::Commit(commands.commit(r).await),
        Cmd::BatchRollback(r) => Answer::BatchRollback(commands.batch_rollback(r).await),
        Cmd::PessimisticLock(r) => Answer::PessimisticLock(commands.pessimistic_lock(r).await),
        Cmd::CheckTxnStatus(r) => Answer::CheckTxnStatus(commands.check_txn_status(r).await),
        Cmd::CheckSecondaryLocks(r) => Answer::CheckSecondaryLocks(commands.check_secondary_locks(r).await),
        Cmd::PessimisticRollback(r) => Answer::PessimisticRollback(commands.pessimistic_rollback(r).await),
        Cmd::TxnHeartBeat(r) => Answer::TxnHeartBeat(commands.txn_heart_beat(r).await),
        Cmd::ResolveLock(r) => Answer::ResolveLock(commands.resolve_lock(r).await),
        Cmd::ScanLock(r) => Answer::ScanLock(commands.scan_lock(r).await),
        _ => return None,
    })
}
