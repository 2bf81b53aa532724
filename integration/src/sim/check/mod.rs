//! Checkers: each watches the outputs of the stores for one promise, and knows nothing of how it is kept.
//!
//! A checker answers with [`Broken`]: what was seen that must never be seen. They share no state.

pub mod commit;
pub mod coverage;
pub mod epoch;
pub mod lease;
pub mod linear;
pub mod log;
pub mod state;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The checker's name.
    pub checker: &'static str,
    pub what: String,
}

/// What a checker says.
pub type Verdict = Result<(), Broken>;

/// Names what was broken.
pub fn broken(checker: &'static str, what: impl Into<String>) -> Verdict {
    Err(Broken { checker, what: what.into() })
}
