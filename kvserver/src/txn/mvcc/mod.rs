//! How versions of transactional data lie in the engine, and how they are read.
//!
//! Percolator's three families: `lock` holds at most one uncommitted change per user key, `write` what was committed
//! or rolled back by user key and timestamp, `default` values that are too long to stand inside those records, by user
//! key and the start timestamp of the transaction that wrote them. Everything here is pure: it reads a snapshot and
//! decides.

pub mod codec;
pub mod inspect;
pub mod key;
pub mod lock;
pub mod point_get;
pub mod reader;
pub mod rules;
pub mod scan;
pub mod scan_lock;
pub mod value;
pub mod write;

pub use key::Key;
pub use lock::{Lock, LockKind};
pub use point_get::{BatchEntry, Found, batch_get, point_get};
pub use reader::{CommitRecord, Reader, Version};
pub use rules::{Isolation, ReadRules, Sight};
pub use scan::{Scanned, scan};
pub use scan_lock::{LockKeys, lock_keys, scan_lock};
pub use write::{Write, WriteKind, WriteRef};

/// Values up to this many bytes stand inside lock and write records; longer ones go to the family `default`.
pub const SHORT_VALUE_MAX: usize = 255;

/// The same for a commit in one phase: there the value is written once wherever it stands, and a second record costs more
/// than a longer one.
pub const ONE_PHASE_VALUE_MAX: usize = 1 << 10;
