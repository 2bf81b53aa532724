//! Many Raft groups in one store: the core that decides, and the threads that carry it out.
//!
//! The core ([`raftstore::Shard`], [`apply::Applier`]) is a machine that can be single-stepped: events go in as
//! [`message::Input`], effects come out as [`message::Output`]. It has no clock, thread, channel, randomness,
//! file or socket; time is an argument. `raft_worker` runs it on a thread, with the log written and entries
//! applied inline or on threads of their own; the simulator runs the same core under seeded faults.
//!
//! Invariants: INV-LOG (a vote or an acknowledgement leaves only after its log write is durable), INV-APPLY (the
//! applied index is in the batch of its effects, and never beyond what is persisted here), INV-EPOCH (commands
//! are checked at propose and at apply), INV-RANGE (live regions never overlap), INV-LEASE (at most one valid
//! lease at any instant), INV-DROP (messages may be lost, completions never).

pub mod apply;
pub mod apply_worker;
pub mod bootstrap;
pub mod config;
pub mod damage;
mod entry_cache;
pub mod inbox;
pub mod lease;
pub mod log_writer;
pub mod message;
pub mod meta;
pub mod node;
pub mod nursery;
pub mod op;
pub mod peer;
mod peer_msg_handler;
pub mod peer_storage;
mod proposal;
pub mod raft_worker;
#[expect(clippy::module_inception, reason = "the store's core carries the subsystem's name")]
pub mod raftstore;
mod read_queue;
mod ready;
pub mod recovery;
pub mod router;
pub mod runner;
pub mod scheduler_client;
pub mod snap;
pub mod split_keys;
mod store_worker;
pub mod ticker;
pub mod util;

pub use config::RaftConfig;
pub use raftstore::Shard;
