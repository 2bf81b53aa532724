//! What the clients saw against what the stores hold, once all is at rest: fates, snapshots, cycles, sums, and locks
//! that nobody holds any more.

use kvserver::engine::{Cf, Engine, EngineError, IterOptions};
use kvserver::raftstore::runner::ranges;
use kvserver::txn::mvcc::write::Write;
use kvserver::txn::mvcc::{WriteKind, key};

use super::session::wire_key;
use super::workload::{DEPOSIT, Workload, is_locked_pair, pair};
use crate::check_txn::cycles::{self, Level};
use crate::check_txn::deps::Shape;
use crate::check_txn::settle::{Record, settle};
use crate::check_txn::{Key, Txn, Verdict, bank, broken, skew, snapshot};
use crate::sim::world::World;

impl World {
    /// Judges everything about transactions; for a world at rest.
    pub fn judge_transactions(&mut self) -> Verdict {
        if self.plan.txn.clients == 0 {
            return Ok(());
        }
        let notes = std::mem::take(&mut *self.txn.notes.lock());
        if let Some(surprise) = notes.surprises.first() {
            return broken("txn", surprise.clone());
        }
        self.check_no_locks()?;
        let records = self.records().map_err(|e| format!("records that cannot be read: {e}"));
        let records = records.or_else(|what| broken("txn", what).map(|()| Vec::new()))?;
        let mut history = notes.history;
        check_cycles(&history, self.plan.txn.workload)?;
        settle(&mut history, &records)?;
        snapshot::check(&history)?;
        check_cycles(&history, self.plan.txn.workload)?;
        self.check_workload(&history)
    }

    /// Every lock is gone, on every replica.
    fn check_no_locks(&self) -> Verdict {
        for store in &self.stores {
            let snapshot = store.engine.snapshot();
            let first = snapshot.iter(Cf::Lock, IterOptions::default()).map(|mut iter| {
                iter.seek_to_first();
                iter.valid().then(|| (iter.key().to_vec(), iter.value().to_vec()))
            });
            match first {
                Ok(None) => {}
                Ok(Some((key, lock))) => {
                    let lock = kvserver::txn::mvcc::Lock::decode(lock.into());
                    return broken("locks", format!("store {} keeps {key:?}: {lock:?}", store.id));
                }
                Err(error) => return broken("locks", error.to_string()),
            }
        }
        Ok(())
    }

    /// The commit records of all regions, each from its leader.
    fn records(&self) -> Result<Vec<Record>, EngineError> {
        let known: Vec<(bytes::Bytes, Key)> =
            (0..self.plan.txn.keys).map(|number| (wire_key(&self.plan, number), number)).collect();
        let mut records = Vec::new();
        for store in &self.stores {
            let snapshot = store.engine.snapshot();
            for view in store.views().iter().filter(|view| view.is_leader()) {
                let of_writes =
                    ranges::of_region(&view.meta).into_iter().filter(|range| range.cf == Cf::Write);
                for range in of_writes {
                    let options = IterOptions { lower: range.start, upper: range.end, ..Default::default() };
                    let mut iter = snapshot.iter(Cf::Write, options)?;
                    iter.seek_to_first();
                    while iter.valid() {
                        records.extend(record(iter.key(), iter.value(), &known)?);
                        iter.next();
                    }
                    iter.status()?;
                }
            }
        }
        Ok(records)
    }

    fn check_workload(&self, history: &[Txn]) -> Verdict {
        let keys = self.plan.txn.keys;
        match self.plan.txn.workload {
            Workload::Bank => {
                // Before the bank was filled there was no money in it.
                let empty = |txn: &&Txn| {
                    txn.ops
                        .iter()
                        .all(|op| !matches!(op, crate::check_txn::Op::Read { seen, .. } if seen.is_empty()))
                };
                let filled: Vec<Txn> = history.iter().filter(empty).cloned().collect();
                bank::check(&filled, keys, keys * DEPOSIT)
            }
            Workload::Registers | Workload::Lists => Ok(()),
            Workload::Skew => {
                let locked = (0..keys / 2).filter(|number| is_locked_pair(*number));
                locked.into_iter().try_for_each(|number| skew::check_locked(history, pair(number)))
            }
        }
    }
}

/// A commit record, unless it is that of a rollback.
fn record(stored: &[u8], value: &[u8], known: &[(bytes::Bytes, Key)]) -> Result<Option<Record>, EngineError> {
    let corrupt = |what: &str| EngineError::Corrupt(format!("{what}: {stored:?}"));
    let (encoded, commit_ts) = key::split(stored).ok_or_else(|| corrupt("a short key"))?;
    let user = key::user_key(encoded).map_err(|e| corrupt(&e.to_string()))?;
    let write = Write::decode(bytes::Bytes::copy_from_slice(value))?;
    if write.kind == WriteKind::Rollback {
        return Ok(None);
    }
    let number = known.iter().find(|(wire, _)| *wire == user).map(|(_, number)| *number);
    let key = number.ok_or_else(|| corrupt("a key that nobody wrote"))?;
    Ok(Some(Record { key, start_ts: write.start_ts, commit_ts }))
}

fn check_cycles(history: &[Txn], workload: Workload) -> Verdict {
    let shape = match workload {
        Workload::Lists => Shape::Lists,
        Workload::Registers => Shape::Registers,
        Workload::Bank | Workload::Skew => return Ok(()),
    };
    cycles::check(history, shape, Level::SnapshotIsolation)
}
