//! What the runner of transactions needs from outside: timestamps and time. Traits only, so that it runs as well where
//! both are simulated.

use futures::future::BoxFuture;

use crate::clock::Now;

/// The cluster's source of timestamps.
pub trait Oracle: Send + Sync + 'static {
    /// A timestamp above every one that was handed out before this was asked; an error says why there is none now.
    fn timestamp(&self) -> BoxFuture<'static, Result<u64, String>>;
}

/// Time as it passes here.
pub trait Timer: Send + Sync + 'static {
    fn now(&self) -> Now;

    /// Ready after `ms` milliseconds.
    fn sleep(&self, ms: u64) -> BoxFuture<'static, ()>;
}
