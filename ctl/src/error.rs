//! What a command can end with besides success: one enum, an exit code each, and a hint what to do.

use std::path::PathBuf;

/// Result of every command.
pub type Result<T> = std::result::Result<T, Error>;

/// The codes a script can rely on; `--help` prints this text.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; the message on stderr says what to do
  2  the command line is wrong
  3  not found: no such key, store or region
  4  partly done: some lines were bad and are named on stderr, the others are stored
  5  the condition did not hold: compare-and-swap changed nothing, a key to
     insert was there, or other transactions were always faster";

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The SDK's error; its text says what to do.
    #[error(transparent)]
    Client(#[from] kvclient::Error),
    /// Arguments that only make sense together, or a text that is no key.
    #[error("{0}")]
    Usage(String),
    /// No such key, store or region.
    #[error("{0}")]
    NotFound(String),
    /// Some input lines were bad; the others are stored.
    #[error("{bad} of {lines} lines are bad; correct them and import them again, the others are stored")]
    Partly {
        /// How many lines hold no record, or one that the cluster refuses.
        bad: u64,
        /// How many lines were read.
        lines: u64,
    },
    /// The value was not the expected one.
    #[error("not swapped: {0}")]
    NotSwapped(String),
    /// A file or standard stream.
    #[error("{path}: {source}")]
    Io {
        /// The file, or what stands for it.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Anything else; the text says what to do.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// An error of the file at `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path: path.display().to_string(), source }
    }

    /// The exit code; see [`EXIT_CODES`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) | Error::Client(kvclient::Error::InvalidArgument(_)) => 2,
            Error::NotFound(_) | Error::Client(kvclient::Error::StoreNotFound(_)) => 3,
            Error::Partly { .. } => 4,
            Error::NotSwapped(_) | Error::Client(kvclient::Error::AlreadyExists { .. }) => 5,
            Error::Client(error) if error.is_conflict() => 5,
            Error::Client(_) | Error::Io { .. } | Error::Failed(_) => 1,
        }
    }

    /// What to do next, where the message does not know it because it is about this program.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::Client(kvclient::Error::SchedulerUnavailable { .. }) => {
                Some("start a cluster with `kvctl playground`, or name yours with --scheduler HOST:PORT")
            }
            Error::Client(kvclient::Error::StoreNotFound(_)) => Some("`kvctl store list` shows the stores"),
            _ => None,
        }
    }

    /// Whether the reader of a pipe went away, as `head` does when it has seen enough.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_code_is_used() {
        let codes = [
            Error::Failed(String::new()).exit_code(),
            Error::Usage(String::new()).exit_code(),
            Error::NotFound(String::new()).exit_code(),
            Error::Partly { bad: 1, lines: 2 }.exit_code(),
            Error::NotSwapped(String::new()).exit_code(),
        ];
        assert_eq!(codes, [1, 2, 3, 4, 5]);
        for code in codes {
            assert!(EXIT_CODES.contains(&format!("\n  {code}  ")), "exit code {code} is not documented");
        }
    }
}
