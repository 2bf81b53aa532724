//! Where results go: tables for people or JSON for programs, on standard output. Messages and progress go to
//! standard error and never mix with results.
//!
//! Invariant: with JSON a command prints one document (or one a line where its help says so) whose field names are
//! those of the serialised types.

use std::io::Write as _;

use clap::ValueEnum;
use serde::Serialize;

use crate::error::{Error, Result};

/// What `--output` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people; may change.
    #[default]
    Table,
    /// For programs; the field names are stable.
    Json,
}

impl Output {
    /// Prints `value` as one JSON document, or as the text that `table` makes of it.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
        match self {
            Output::Table => print_line(table(value).as_bytes()),
            Output::Json => print_line(&json(value)?),
        }
    }

    /// Whether JSON was asked for.
    pub fn is_json(self) -> bool {
        self == Output::Json
    }
}

/// `value` as one line of JSON without its line end.
pub fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Failed(format!("result cannot be printed: {error}")))
}

/// Writes bytes and a line end to standard output.
pub fn print_line(line: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(line).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).map_err(stdout_error)
}

/// An error of standard output.
pub fn stdout_error(source: std::io::Error) -> Error {
    Error::io("standard output")(source)
}
