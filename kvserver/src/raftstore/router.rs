//! The way into a store's raftstore, for everybody who has something for it.
//!
//! Invariant (INV-DROP): requests and peer messages may be refused and come back to the caller, who answers for
//! them; completions are always taken.

use std::sync::Arc;

use super::inbox::Inbox;
use super::message::Input;

/// A handle on the inbox; cheap to clone.
#[derive(Clone)]
pub struct Router {
    inbox: Arc<Inbox>,
}

impl Router {
    /// A new inbox and a handle on it.
    pub fn new() -> (Router, Arc<Inbox>) {
        let inbox = Arc::new(Inbox::default());
        (Router { inbox: inbox.clone() }, inbox)
    }

    /// Hands in a request or a peer message; gives it back when the store is overloaded or stopping.
    #[expect(
        clippy::result_large_err,
        reason = "an input is given back whole, so that its callback can be answered"
    )]
    pub fn send(&self, input: Input) -> Result<(), Input> {
        self.inbox.offer(input)
    }

    /// Hands in a completion.
    pub fn complete(&self, input: Input) {
        self.inbox.complete(input);
    }
}
