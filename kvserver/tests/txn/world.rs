//! One region over one engine: runs commands and reads against it as the runner does, one after the other.

use std::sync::Arc;

use bytes::Bytes;
use kvserver::engine::{Engine, ReadTier, WriteBatch, WriteOptions};
use kvserver::raftstore::message::WriteSet;
use kvserver::raftstore::message::write_set::{self, Entry};
use kvserver::raftstore::meta::region_view::RegionMeta;
use kvserver::storage::RegionSnapshot;
use kvserver::txn::commands::{Command, Cx, Done, Released};
use kvserver::txn::error::TxnResult;
use kvserver::txn::max_ts::MaxTs;
use kvserver::txn::mvcc::Reader;

/// See the file's head.
pub struct World {
    pub engine: Arc<dyn Engine>,
    pub max_ts: Arc<MaxTs>,
    pub region: Arc<RegionMeta>,
}

impl World {
    pub fn new(engine: Arc<dyn Engine>) -> World {
        let region = RegionMeta { region: Default::default(), start: Bytes::new(), end: Bytes::new() };
        World { engine, max_ts: Arc::default(), region: Arc::new(region) }
    }

    pub fn at(&self) -> RegionSnapshot {
        RegionSnapshot { snapshot: self.engine.snapshot(), region: self.region.clone(), term: 1 }
    }

    /// Lets a command decide and applies what it decided. Gives its answer and the locks that went.
    pub fn run<C: Command>(&self, command: &C) -> TxnResult<(C::Answer, Vec<Released>)> {
        let at = self.at();
        let mut cx = Cx { reader: Reader::new(&at.snapshot, ReadTier::All), max_ts: &self.max_ts };
        let Done { write, answer, released, memory } = command.process(&mut cx)?;
        self.apply(write);
        drop(memory);
        Ok((answer, released))
    }

    /// Applies a write as replicas do.
    pub fn apply(&self, write: WriteSet) {
        let Ok(Entry::Write { ops, .. }) = write_set::decode(&write.seal(1)) else {
            panic!("a write that cannot be read back")
        };
        let mut batch = WriteBatch::new();
        for op in ops {
            batch.push(op.unwrap());
        }
        self.engine.write(&batch, WriteOptions::default()).unwrap();
    }
}
