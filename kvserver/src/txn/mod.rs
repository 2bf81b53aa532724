//! Transactions and raw key-value requests over the storage.
//!
//! `raw` is plain key-value. The rest is transactions: `mvcc` reads versions and locks, `commands` decides, one file per
//! command, `max_ts` knows what readers have seen, `latches` lets commands take turns, `lock_waits` holds those who wait for a
//! lock, `deadlock` finds those who would wait for each other, `scheduler` runs them.

pub mod commands;
pub mod deadlock;
pub mod edge;
pub mod error;
pub mod gc;
pub mod horizon;
pub mod key_check;
pub mod latches;
pub mod lock_waits;
pub mod max_ts;
pub mod mvcc;
pub mod pairs;
pub mod range;
pub mod raw;
pub mod reads;
pub mod regions;
pub mod scheduler;
