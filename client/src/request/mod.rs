//! How one logical request becomes requests to regions: cutting by region ([`shard`]), sending and trying again
//! ([`plan`]), and the rule for what to do after a failure ([`retry`]).

pub(crate) mod command;
pub(crate) mod pages;
pub(crate) mod plan;
pub mod retry;
pub(crate) mod shard;
