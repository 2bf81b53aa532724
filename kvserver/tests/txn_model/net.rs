//! The requests on their way to the store: delivered in any order, some of them more than once. The answer to the first
//! delivery is what the sender hears.

use bytes::Bytes;
use kvserver::engine::ReadTier;
use kvserver::txn::commands::{
    AcquirePessimisticLock, Acquired, CheckSecondaryLocks, CheckTxnStatus, CheckedTxn, Commit, Fates,
    PessimisticRollback, Prewrite, Prewritten, ResolveLock, Rollback, SecondaryLocks, TxnHeartBeat,
};
use kvserver::txn::error::TxnResult;
use kvserver::txn::mvcc;

use crate::world::World;

/// Who hears the answer.
#[derive(Clone, Copy, Debug)]
pub enum Sender {
    Txn(usize),
    Helper(usize),
    Nobody,
}

#[derive(Clone, Debug)]
pub enum Request {
    Claim(AcquirePessimisticLock),
    Unclaim(PessimisticRollback),
    Prewrite(Prewrite),
    Commit(Commit),
    Rollback(Rollback),
    Check(CheckTxnStatus),
    Secondaries(CheckSecondaryLocks),
    /// All locks of one transaction.
    Resolve {
        start_ts: u64,
        commit_ts: u64,
    },
    Beat(TxnHeartBeat),
}

#[derive(Debug)]
pub enum Answer {
    Claim(TxnResult<Acquired>),
    Prewrite(TxnResult<Prewritten>),
    Commit(TxnResult<u64>),
    /// It can never commit.
    Rollback(bool),
    Check(TxnResult<CheckedTxn>),
    Secondaries(TxnResult<SecondaryLocks>),
    Other,
}

#[derive(Clone, Debug)]
pub struct Letter {
    pub request: Request,
    pub sender: Sender,
}

/// Carries a request out.
pub fn deliver(world: &World, request: &Request) -> Answer {
    match request {
        Request::Claim(claim) => Answer::Claim(world.run(claim).map(|(answer, _)| answer)),
        Request::Unclaim(rollback) => {
            world.run(rollback).unwrap();
            Answer::Other
        }
        Request::Prewrite(prewrite) => Answer::Prewrite(world.run(prewrite).map(|(answer, _)| answer)),
        Request::Commit(commit) => Answer::Commit(world.run(commit).map(|(answer, _)| answer)),
        Request::Rollback(rollback) => {
            // Fails when it is late and the transaction has committed.
            Answer::Rollback(world.run(rollback).is_ok())
        }
        Request::Check(check) => Answer::Check(world.run(check).map(|(answer, _)| answer)),
        Request::Secondaries(check) => Answer::Secondaries(world.run(check).map(|(answer, _)| answer)),
        Request::Resolve { start_ts, commit_ts } => {
            resolve(world, *start_ts, *commit_ts);
            Answer::Other
        }
        Request::Beat(beat) => {
            let _ = world.run(beat);
            Answer::Other
        }
    }
}

fn resolve(world: &World, start_ts: u64, commit_ts: u64) {
    let fates = Fates::new([(start_ts, commit_ts)]).unwrap();
    let mut from = Some(Bytes::new());
    while let Some(start) = from {
        let page = mvcc::lock_keys(&world.at(), ReadTier::All, &start, 2, |_, ts| fates.wants(ts)).unwrap();
        let resolve = ResolveLock { fates: fates.clone(), keys: page.keys };
        world.run(&resolve).expect("a decided transaction can be resolved everywhere");
        from = page.next;
    }
}
