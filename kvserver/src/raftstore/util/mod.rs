//! Small pure helpers for regions and epochs.

pub mod epoch;
pub mod region;
