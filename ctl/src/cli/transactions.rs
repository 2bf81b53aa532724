//! Nouns and verbs about transactions: data, versions, timestamps, garbage collection. No behaviour.

use clap::{Args, Subcommand, ValueEnum};

use super::{CodingArgs, Scan};

/// Transactions: one for each verb, or a shell in which they are begun and committed by hand.
#[derive(Debug, Args)]
pub struct Txn {
    /// What to do; the shell when absent.
    #[command(subcommand)]
    pub verb: Option<TxnVerb>,
}

/// Verbs on transactional pairs. Each is a transaction of its own.
#[derive(Debug, Subcommand)]
pub enum TxnVerb {
    /// Print the value of a key; exit code 3 when it has none.
    Get {
        /// The key.
        key: String,
        /// Read as of this moment: a timestamp, or how long ago (10m).
        #[arg(long, value_name = "MOMENT")]
        at: Option<String>,
        #[command(flatten)]
        coding: CodingArgs,
    },
    /// Set the value of a key, and print when it was committed.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
        #[command(flatten)]
        coding: CodingArgs,
    },
    /// Delete a key, whether it is there or not, and print when it was committed.
    Delete {
        /// The key.
        key: String,
        #[command(flatten)]
        coding: CodingArgs,
    },
    /// Print pairs in key order, `key<TAB>value` on a line; with JSON one object on a line.
    Scan {
        #[command(flatten)]
        scan: Scan,
        /// Read as of this moment: a timestamp, or how long ago (10m).
        #[arg(long, value_name = "MOMENT")]
        at: Option<String>,
    },
    /// Begin, read, write and commit by hand: commands are read from standard input, one a line.
    #[command(after_long_help = SHELL)]
    Shell {
        #[command(flatten)]
        coding: CodingArgs,
    },
}

/// What `--help` says about the shell.
pub const SHELL: &str = r#"Commands, one a line; a word with spaces stands in "double quotes", in which
\" \\ \t \n \r \0 \xHH are escapes. A line that starts with # is ignored.

  begin [pessimistic]   open a transaction; optimistic if not told otherwise
  get KEY               print the value, or (absent)
  put KEY VALUE         write
  insert KEY VALUE      write; fails when the key is there
  delete KEY            delete
  lock KEY...           keep others from writing these keys
  scan [START [END]] [limit N] [reverse]
                        print pairs in key order, 100 at most without limit
  commit                make the writes visible, all at once
  rollback              give them up
  help                  this list
  quit                  leave; an open transaction is rolled back

Without an open transaction get, put, insert, delete and scan are transactions
of their own. The prompt shows the open one. From a pipe or a file there is no
prompt, and the first error ends the shell with its exit code; in a terminal
the shell goes on. A transaction that cannot go on after an error is rolled back."#;

/// Verbs on the versions of a key.
#[derive(Debug, Subcommand)]
pub enum Mvcc {
    /// Show a key's lock and versions, the newest first; exit code 3 when there is nothing.
    Get {
        /// The key.
        key: String,
        #[command(flatten)]
        coding: CodingArgs,
    },
}

/// Garbage collection: what may be forgotten, and what is kept.
#[derive(Debug, Args)]
pub struct Gc {
    /// What to do; show the state when absent.
    #[command(subcommand)]
    pub verb: Option<GcVerb>,
}

/// Verbs on garbage collection.
#[derive(Debug, Subcommand)]
pub enum GcVerb {
    /// The safe points, the settings, and the barriers.
    Show,
    /// Let everything older than a moment be forgotten. Barriers hold it back, and it never goes back; stores then end old
    /// transactions and drop old versions by themselves.
    SetSafePoint {
        /// A timestamp, `now`, or how long ago (10m).
        moment: String,
    },
    /// What keeps old versions.
    #[command(subcommand)]
    Barrier(Barrier),
}

/// Verbs on barriers.
#[derive(Debug, Subcommand)]
pub enum Barrier {
    /// Keep the versions that are visible at a moment and later. A barrier of the same name is replaced.
    Set {
        /// Its name.
        name: String,
        /// A timestamp, `now`, or how long ago (10m).
        moment: String,
        /// Keep them for so long (1h), or until the barrier is deleted.
        #[arg(long, value_name = "DURATION")]
        ttl: Option<String>,
    },
    /// Give a barrier up; exit code 3 when there is none.
    Delete {
        /// Its name.
        name: String,
    },
}

/// How transactions of a benchmark commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum Commit {
    /// In one phase where all keys lie in one region, else asynchronously, else in two phases.
    #[default]
    OnePhase,
    /// Asynchronously where there are few keys, else in two phases.
    Async,
    /// In two phases.
    TwoPhase,
}
