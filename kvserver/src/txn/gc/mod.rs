//! Garbage collection of old versions, and the cleaning of locks whose clients are gone.
//!
//! `filter` decides which records nobody needs, `compaction_filter` lets compactions leave them out, `walk` and
//! `orphans` look at what compactions do not reach, `worker` is the thread that removes things. `driver` moves the safe
//! points on, `cleaner` finishes transactions whose clients are gone.

pub mod cleaner;
pub mod compaction_filter;
pub mod driver;
pub mod filter;
pub mod orphans;
pub mod walk;
pub mod worker;

pub use crate::safe_points::{SafePoints, TooOld};
