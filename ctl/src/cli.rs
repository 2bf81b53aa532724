//! The command line: nouns, verbs and flags, with the help that explains them. No behaviour.

mod placement;
mod transactions;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::EXIT_CODES;
use crate::format::Format;
use crate::output::Output;
use crate::text::Coding;

pub use placement::{Config, Operator, Order, Scheduler, SplitArgs};
pub use transactions::{Barrier, Commit, Gc, GcVerb, Mvcc, SHELL, Txn, TxnVerb};

/// The command line of a Kvasir cluster: start one, read and write it, look into it, measure it.
#[derive(Debug, Parser)]
#[command(name = "kvctl", version, after_help = EXIT_CODES, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Flags that every command knows.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub noun: Noun,
}

/// Where help lists the flags that every command knows.
const GLOBAL: &str = "Cluster and output";

/// Flags that every command knows.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Schedulers of the cluster; one is enough to find the others.
    #[arg(
        long,
        global = true,
        env = "KVCTL_SCHEDULER",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379",
        help_heading = GLOBAL
    )]
    pub scheduler: Vec<String>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t, help_heading = GLOBAL)]
    pub output: Output,
    /// Longest time one operation may take, retries included.
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Start a whole cluster in this process, until Ctrl-C.
    Playground(Playground),
    /// Read and write raw key-value pairs.
    #[command(subcommand)]
    Raw(Raw),
    /// Read and write in transactions, one by one or in a shell.
    Txn(Txn),
    /// Look at the versions and locks of keys.
    #[command(subcommand)]
    Mvcc(Mvcc),
    /// Get a new timestamp, or see what one stands for.
    Tso {
        /// A timestamp; a new one when absent.
        timestamp: Option<u64>,
    },
    /// Show how far old versions may be forgotten, and what keeps them.
    Gc(Gc),
    /// Show the cluster: its id, API, members, stores and health.
    Cluster,
    /// Show the scheduler processes, and choose which one leads.
    #[command(subcommand)]
    Member(Member),
    /// Show stores, and remove one.
    #[command(subcommand)]
    Store(Store),
    /// Show regions, split them, move their leaders.
    #[command(subcommand)]
    Region(Region),
    /// Limits of placement that can be changed while the cluster runs.
    #[command(subcommand)]
    Config(Config),
    /// Changes of regions: those that run, those asked for, those that ended.
    #[command(subcommand)]
    Operator(Operator),
    /// What evens out the cluster, or keeps stores free of leaders.
    #[command(subcommand)]
    Scheduler(Scheduler),
    /// Measure throughput and latency under a named workload.
    Bench(Bench),
    /// Print a script that makes a shell complete kvctl's commands: `source <(kvctl completions bash)`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// A cluster of one scheduler and several stores in this process.
#[derive(Debug, Args)]
pub struct Playground {
    /// Stores to start. A data directory remembers its number and may grow, not shrink [default: 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub stores: Option<u32>,
    /// Keep the data here and find it again at the next start. Without it the data is temporary and is removed at
    /// the end.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Port of the scheduler on 127.0.0.1; 0 takes any free ports for the whole cluster.
    #[arg(long, default_value_t = 2379)]
    pub port: u16,
    /// API of a new cluster: v2 has keyspaces and TTL, v1 is for clients that only speak V1 raw. An existing data
    /// directory keeps its API [default: v2].
    #[arg(long, value_enum)]
    pub api: Option<Api>,
}

/// The API a cluster is bootstrapped with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Plain keys.
    V1,
    /// Keyspaces.
    V2,
}

/// How keys and values on the command line stand for bytes.
#[derive(Debug, Clone, Copy, Args)]
pub struct CodingArgs {
    /// Keys and values are hex digits.
    #[arg(long, conflicts_with = "escaped")]
    pub hex: bool,
    /// Keys and values have escapes: \t \n \r \0 \\ \xHH.
    #[arg(long)]
    pub escaped: bool,
}

impl CodingArgs {
    /// The coding that was chosen.
    pub fn coding(self) -> Coding {
        match (self.hex, self.escaped) {
            (true, _) => Coding::Hex,
            (_, true) => Coding::Escaped,
            _ => Coding::Text,
        }
    }
}

/// Verbs on raw key-value pairs.
#[derive(Debug, Subcommand)]
pub enum Raw {
    /// Print the value of a key; exit code 3 when it has none.
    Get {
        /// The key.
        key: String,
        #[command(flatten)]
        coding: CodingArgs,
    },
    /// Set the value of a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// Let the pair expire after this time.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        ttl: Option<u64>,
        #[command(flatten)]
        coding: CodingArgs,
    },
    /// Delete a key, whether it is there or not.
    Delete {
        /// The key.
        key: String,
        #[command(flatten)]
        coding: CodingArgs,
    },
    /// Print pairs in key order, `key<TAB>value` on a line; with JSON one object on a line.
    Scan(Scan),
    /// Set the value of a key if it is as expected; exit code 5 when it is not.
    Cas {
        /// The key.
        key: String,
        /// The new value.
        value: String,
        /// Expect that the key has this value.
        #[arg(
            long,
            value_name = "VALUE",
            required_unless_present = "if_absent",
            conflicts_with = "if_absent"
        )]
        previous: Option<String>,
        /// Expect that the key has no value.
        #[arg(long)]
        if_absent: bool,
        #[command(flatten)]
        coding: CodingArgs,
    },
    /// Print how many seconds a key has left, `none` when it does not expire; `absent` and exit code 3 without key.
    Ttl {
        /// The key.
        key: String,
        #[command(flatten)]
        coding: CodingArgs,
    },
    /// Store the records of a file or pipe; exit code 4 when some lines were bad.
    #[command(after_long_help = FORMATS)]
    Import(Import),
    /// Write all pairs, or those of a range, in key order to a file or pipe.
    #[command(after_long_help = FORMATS)]
    Export(Export),
}

/// Which keys of the cluster are meant.
#[derive(Debug, Args)]
pub struct RangeArgs {
    /// First key.
    #[arg(long, value_name = "KEY")]
    pub start: Option<String>,
    /// First key after the range.
    #[arg(long, value_name = "KEY")]
    pub end: Option<String>,
    /// Only keys that start with this.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["start", "end"])]
    pub prefix: Option<String>,
    /// How keys and values are written.
    #[command(flatten)]
    pub coding: CodingArgs,
}

/// Prints a range.
#[derive(Debug, Args)]
pub struct Scan {
    /// Which keys.
    #[command(flatten)]
    pub range: RangeArgs,
    /// Most pairs to print; 0 prints all.
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    /// Largest key first.
    #[arg(long)]
    pub reverse: bool,
    /// Without values.
    #[arg(long)]
    pub keys_only: bool,
}

/// Stores records of a file.
#[derive(Debug, Args)]
pub struct Import {
    /// Format of the input.
    #[arg(long, value_enum)]
    pub format: Format,
    /// File to read; `-` is standard input.
    pub file: PathBuf,
    /// Batches in flight.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Records in a batch.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub batch: u16,
    /// How many bad lines to name on stderr; further ones are only counted.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub show_bad: u64,
}

/// Writes pairs to a file.
#[derive(Debug, Args)]
pub struct Export {
    /// Format of the output.
    #[arg(long, value_enum)]
    pub format: Format,
    /// File to write; it appears under its name when it is complete. `-` is standard output.
    pub file: PathBuf,
    /// Which keys.
    #[command(flatten)]
    pub range: RangeArgs,
}

/// What `--help` of import and export says about formats.
pub const FORMATS: &str = r#"Formats. Every record has a key; bytes need not be UTF-8 except in jsonl.

tsv    key<TAB>value. No tab: a key with an empty value. Tab, newline and
       backslash are written \t \n \\; \r \0 \xHH are read as well. A carriage
       return is a byte like any other.
csv    key,value as in RFC 4180: a field with a comma, quote, CR or newline
       is quoted, a quote inside is doubled. No comma: a key with an empty
       value. Lines may end in CR LF.
jsonl  {"key":"k","value":"v","ttl":60,"encoding":"base64"}, one a line.
       value, ttl (seconds) and encoding (base64 or hex, for key and value)
       may be missing.

Import names bad lines on stderr by number, leaves them out and stores all
others. When a key is there twice, the later line wins.

Export writes what import reads: a file sorted by key bytes, with each key
once and written as below, comes back byte for byte. It writes \t \n \\ and
no tab before an empty value in tsv, always two fields in csv, base64 in jsonl
when a key or value is not UTF-8, a newline after every record, never a ttl."#;

/// Verbs on stores.
#[derive(Debug, Subcommand)]
pub enum Store {
    /// All stores that have not left the cluster.
    List,
    /// One store.
    Show {
        /// Its number.
        id: u64,
    },
    /// Begin to remove a store for good: its replicas move to other stores, then it is a tombstone.
    Remove {
        /// Its number.
        id: u64,
    },
}

/// Verbs on schedulers.
#[derive(Debug, Subcommand)]
pub enum Member {
    /// All schedulers and how they fare; works while none leads.
    List,
    /// The scheduler that leads.
    #[command(subcommand)]
    Leader(Leader),
}

/// Verbs on the leading scheduler.
#[derive(Debug, Subcommand)]
pub enum Leader {
    /// Which scheduler leads.
    Show,
    /// Let another scheduler lead.
    Transfer {
        /// Its name; any other one when absent.
        name: Option<String>,
    },
}

/// Verbs on regions.
#[derive(Debug, Subcommand)]
pub enum Region {
    /// All regions in key order.
    List {
        /// Most regions to print; 0 prints all.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// One region.
    Show {
        /// Its number.
        id: u64,
    },
    /// Split a region at raw keys of the default keyspace, or in half, and wait until it is done.
    Split(SplitArgs),
    /// Make the replica on a store the leader, and wait until it is.
    TransferLeader {
        /// Number of the region.
        id: u64,
        /// Number of the store.
        store: u64,
    },
    /// The region that holds a raw key.
    Key {
        /// The key.
        key: String,
        #[command(flatten)]
        coding: CodingArgs,
    },
}

/// Runs a workload.
#[derive(Debug, Args)]
pub struct Bench {
    /// What to do all the time.
    #[arg(long, value_enum)]
    pub workload: Workload,
    /// Operations in flight; each waits for its answer before the next (a closed loop).
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: u32,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=4_194_304))]
    pub value_size: u32,
    /// Different keys. They are written first when the workload reads.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub keys: u64,
    /// Seconds to measure.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub duration: u64,
    /// Seconds to run before measuring.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub warmup: u64,
    /// Keys of one get or put: above 1 they are batch gets and batch puts.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: u32,
    /// Pairs of one scan; in ycsb-e the most of one.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_240))]
    pub scan_length: u32,
    /// Share of reads in raw-mixed, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub reads: u8,
    /// Run a YCSB workload in transactions: one for each operation.
    #[arg(long)]
    pub txn: bool,
    /// How transactions commit.
    #[arg(long, value_enum, default_value_t)]
    pub commit: Commit,
    /// Transactions that read before they write lock first, instead of trying again after a conflict.
    #[arg(long)]
    pub pessimistic: bool,
    /// Warehouses in tpcc-payment; fewer have more payments waiting for each other.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub warehouses: u32,
    /// Delete the keys at the end; they all start with `kvctl-bench/`.
    #[arg(long)]
    pub clean: bool,
}

/// What a worker does all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum Workload {
    /// Puts.
    RawPut,
    /// Gets of existing keys.
    RawGet,
    /// Gets and puts; see --reads.
    RawMixed,
    /// Forward scans from a random key.
    RawScan,
    /// Transactional gets, each at a timestamp of its own.
    TxnGet,
    /// Transactions that read two keys and write both.
    TxnUpdate,
    /// Half gets, half puts; few keys are popular.
    YcsbA,
    /// 95 % gets, 5 % puts; few keys are popular.
    YcsbB,
    /// Gets; few keys are popular.
    YcsbC,
    /// 95 % gets of mostly the newest keys, 5 % inserts.
    YcsbD,
    /// 95 % short scans from popular keys, 5 % inserts.
    YcsbE,
    /// Half gets, half reads followed by a write of the same key; few keys are popular.
    YcsbF,
    /// Like the payment of TPC-C: adds to a warehouse, a district and a customer, and inserts a receipt.
    TpccPayment,
}

impl Workload {
    /// Whether it only makes sense in transactions.
    pub fn needs_transactions(self) -> bool {
        matches!(self, Workload::TxnGet | Workload::TxnUpdate | Workload::TpccPayment)
    }

    /// Whether it can be run in transactions.
    pub fn takes_transactions(self) -> bool {
        !matches!(self, Workload::RawPut | Workload::RawGet | Workload::RawMixed | Workload::RawScan)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cas_needs_exactly_one_expectation() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["kvctl", "raw", "cas", "k", "v"], args].concat());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--if-absent", "--previous", "x"]).is_err());
        assert!(parse(&["--if-absent"]).is_ok());
        assert!(parse(&["--previous", ""]).is_ok());
    }

    #[test]
    fn several_schedulers_are_separated_by_commas() {
        let cli = Cli::try_parse_from(["kvctl", "cluster", "--scheduler", "a:1,b:2"]).unwrap();
        assert_eq!(cli.global.scheduler, ["a:1", "b:2"]);
    }
}
