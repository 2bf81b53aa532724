//! What goes into the core and what comes out of it.
//!
//! `input` and `output` are the whole contract between the pure core and its driver; `write_set` is the one
//! encoding of a write, from the request to the apply; `callback` answers a waiting request exactly once;
//! `peer_message` is what travels between stores.

pub mod callback;
pub mod input;
pub mod output;
pub mod peer_message;
pub mod write_set;

pub use callback::Callback;
pub use input::{Input, Propose, ReadRequest, RegionCommand, RegionContext};
pub use output::{LogBatch, Output, Task};
pub use peer_message::PeerMessage;
pub use write_set::WriteSet;
