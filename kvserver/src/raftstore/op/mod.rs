//! One feature, one file: how it is proposed, applied, and what follows once it is applied.

pub mod compact_log;
pub mod conf_change;
pub mod destroy;
pub mod snapshot;
pub mod split;
pub mod transfer_leader;
