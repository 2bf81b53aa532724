//! The way back to whoever waits for a result.
//!
//! Invariant: every callback is called exactly once. One that is dropped unanswered (a peer that went away with
//! its queues) answers [`RegionError::Undetermined`], so that no request waits for ever and none is told a lie.

use crate::error::{RegionError, RegionResult};

/// Answers one waiting request. `T` is what a success carries.
pub struct Callback<T>(Option<Box<dyn FnOnce(RegionResult<T>) + Send>>);

impl<T> Callback<T> {
    /// Wraps what is to happen with the result.
    pub fn new(f: impl FnOnce(RegionResult<T>) + Send + 'static) -> Callback<T> {
        Callback(Some(Box::new(f)))
    }

    /// For commands nobody waits for.
    pub fn none() -> Callback<T> {
        Callback(None)
    }

    /// Delivers the result.
    pub fn call(mut self, result: RegionResult<T>) {
        if let Some(f) = self.0.take() {
            f(result)
        }
    }
}

impl<T> Drop for Callback<T> {
    fn drop(&mut self) {
        if let Some(f) = self.0.take() {
            f(Err(RegionError::Undetermined("the peer went away before the result was known".into())))
        }
    }
}

impl<T> std::fmt::Debug for Callback<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Callback(waiting)" } else { "Callback(none)" })
    }
}
