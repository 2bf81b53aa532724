//! Small helpers: regions and epochs (pure), background threads.

pub mod epoch;
pub mod region;
pub mod worker;
