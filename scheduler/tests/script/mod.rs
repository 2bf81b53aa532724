//! Parts of the script runner.

pub mod orders;
pub mod print;
