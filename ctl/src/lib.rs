//! kvctl: the command line of a Kvasir cluster.
//!
//! [`run`] does what a parsed command line says and returns the exit code. One file per noun; formats, texts, keys
//! and tables are pure and stand apart.

pub mod admin_api;
pub mod bench;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod connect;
pub mod error;
pub mod format;
pub mod gc;
pub mod key;
pub mod member;
pub mod moment;
pub mod mvcc;
pub mod operator;
pub mod output;
pub mod pairs;
pub mod playground;
pub mod progress;
pub mod raw;
pub mod region;
pub mod schedulers;
pub mod store;
pub mod table;
pub mod text;
pub mod tso;
pub mod txn;

use clap::CommandFactory as _;

use cli::{Cli, Noun};

/// Runs a command and returns the exit code that [`error::EXIT_CODES`] documents. Errors go to standard error.
pub async fn run(cli: Cli) -> u8 {
    let Cli { global, noun } = cli;
    let done = match noun {
        Noun::Playground(args) => playground::run(&global, args).await,
        Noun::Raw(verb) => raw::run(&global, verb).await,
        Noun::Txn(args) => txn::run(&global, args).await,
        Noun::Mvcc(verb) => mvcc::run(&global, verb).await,
        Noun::Tso { timestamp } => tso::run(&global, timestamp).await,
        Noun::Gc(args) => gc::run(&global, args).await,
        Noun::Cluster => cluster::run(&global).await,
        Noun::Member(verb) => member::run(&global, verb).await,
        Noun::Store(verb) => store::run(&global, verb).await,
        Noun::Region(verb) => region::run(&global, verb).await,
        Noun::Config(verb) => config::run(&global, verb).await,
        Noun::Operator(verb) => operator::run(&global, verb).await,
        Noun::Scheduler(verb) => schedulers::run(&global, verb).await,
        Noun::Bench(args) => bench::run(&global, args).await,
        Noun::Completions { shell } => completions(shell),
    };
    match done {
        Ok(()) => 0,
        Err(error) if error.is_closed_pipe() => error.exit_code(),
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            error.exit_code()
        }
    }
}

fn completions(shell: clap_complete::Shell) -> error::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kvctl", &mut script);
    output::print_line(&script)
}
