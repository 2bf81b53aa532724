//! What compactions may leave out: the layer above decides record by record, the engine asks.
//!
//! Owns the vocabulary and the adapter to RocksDB. A filter sees the records of one compaction in key order, each key
//! once. It ignores snapshots: what it drops is gone for readers that are at work, too. Iterators that are open keep
//! seeing what they saw.

use std::ffi::CStr;
use std::sync::Arc;

use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

use super::Cf;

const NAME: &CStr = c"kvasir.records";

/// Decides about the records of one compaction.
pub trait RecordFilter: Send {
    /// Whether this record stays. Must not panic: the caller is not Rust.
    fn keeps(&mut self, key: &[u8], value: &[u8]) -> bool;
}

/// Makes the filters of a database. Called from several threads at once.
pub trait FilterSource: Send + Sync {
    /// The filter for one compaction of a family; `None` when everything stays. `is_full` says that the compaction
    /// takes in all files of the family: what it does not see is not there.
    fn filter(&self, cf: Cf, is_full: bool) -> Option<Box<dyn RecordFilter>>;
}

/// One family's filters, as RocksDB asks for them.
pub(super) struct Factory {
    pub(super) cf: Cf,
    pub(super) source: Arc<dyn FilterSource>,
}

pub(super) struct Adapter(Option<Box<dyn RecordFilter>>);

impl CompactionFilterFactory for Factory {
    type Filter = Adapter;

    fn create(&mut self, context: CompactionFilterContext) -> Adapter {
        Adapter(self.source.filter(self.cf, context.is_full_compaction))
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

impl CompactionFilter for Adapter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        match self.0.as_mut().is_none_or(|filter| filter.keeps(key, value)) {
            true => CompactionDecision::Keep,
            false => CompactionDecision::Remove,
        }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}
