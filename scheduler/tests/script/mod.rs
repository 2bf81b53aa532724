//! Parts of the script runner.

pub mod gc;
pub mod orders;
pub mod print;
