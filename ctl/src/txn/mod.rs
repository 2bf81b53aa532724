//! `kvctl txn`: one transaction for each command, or a shell in which transactions are begun and committed by hand.

pub mod shell;
pub mod words;

use kvclient::{Bytes, TransactionClient};
use kvproto::ts::Timestamp;
use serde::Serialize;

use crate::cli::{Global, Scan, Txn, TxnVerb};
use crate::connect;
use crate::error::{Error, Result};
use crate::moment::Moment;
use crate::output::Output;
use crate::pairs::{one_more, parse, print_pairs, print_value, range};
use crate::text::Coding;

/// Runs a verb.
pub async fn run(global: &Global, args: Txn) -> Result<()> {
    match args.verb {
        None => shell::run(global, Coding::Text).await,
        Some(TxnVerb::Shell { coding }) => shell::run(global, coding.coding()).await,
        Some(TxnVerb::Get { key, at, coding }) => {
            let coding = coding.coding();
            let key = parse(coding, "key", &key)?;
            let at = at.as_deref().map(Moment::parse).transpose()?;
            let client = connect::transactions(global).await?;
            let value = client.snapshot(timestamp(&client, at).await?).get(key.clone()).await?;
            print_value(&key, value, coding, global.output)
        }
        Some(TxnVerb::Put { key, value, coding }) => {
            let coding = coding.coding();
            let change = Change::Put(parse(coding, "key", &key)?, parse(coding, "value", &value)?);
            commit_alone(global, change).await
        }
        Some(TxnVerb::Delete { key, coding }) => {
            let key = parse(coding.coding(), "key", &key)?;
            commit_alone(global, Change::Delete(key)).await
        }
        Some(TxnVerb::Scan { scan, at }) => print_scan(global, scan, at).await,
    }
}

/// One write.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Put(Bytes, Bytes),
    Insert(Bytes, Bytes),
    Delete(Bytes),
}

impl Change {
    /// Makes it part of a transaction.
    pub(crate) async fn apply(self, txn: &mut kvclient::Transaction) -> kvclient::Result<()> {
        match self {
            Change::Put(key, value) => txn.put(key, value).await,
            Change::Insert(key, value) => txn.insert(key, value).await,
            Change::Delete(key) => txn.delete(key).await,
        }
    }

    /// Commits it in a transaction of its own, which nobody can be faster than for ever.
    pub(crate) async fn commit(self, client: &TransactionClient) -> kvclient::Result<Option<Timestamp>> {
        const ATTEMPTS: u32 = 10;
        let mut attempt = 1;
        loop {
            let mut txn = client.begin_optimistic().await?;
            self.clone().apply(&mut txn).await?;
            match txn.commit().await {
                Err(error) if error.is_conflict() && attempt < ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }
}

/// When a transaction was committed.
#[derive(Debug, Serialize)]
struct CommittedJson {
    /// Null when it had nothing to write.
    committed: Option<u64>,
}

/// Prints when a transaction was committed.
pub(crate) fn print_committed(output: Output, at: Option<Timestamp>) -> Result<()> {
    output.print(&CommittedJson { committed: at.map(Timestamp::get) }, |shown| match shown.committed {
        Some(at) => format!("committed at {at}"),
        None => "nothing to commit".into(),
    })
}

async fn commit_alone(global: &Global, change: Change) -> Result<()> {
    let client = connect::transactions(global).await?;
    let committed = change.commit(&client).await;
    let shown = committed.map_err(Error::from).and_then(|at| print_committed(global.output, at));
    flush(&client).await;
    shown
}

/// Lets what ended transactions have left go before the program does. Nothing is lost where that fails: whoever meets
/// their locks removes them, later.
pub(crate) async fn flush(client: &TransactionClient) {
    if let Err(error) = client.flush().await {
        eprintln!("locks of ended transactions are left until their time to live is over: {error}");
    }
}

/// The timestamp of a moment; of now when there is none.
async fn timestamp(client: &TransactionClient, at: Option<Moment>) -> Result<Timestamp> {
    let now = client.current_timestamp().await?;
    Ok(at.map_or(now, |moment| moment.timestamp(now)))
}

async fn print_scan(global: &Global, args: Scan, at: Option<String>) -> Result<()> {
    let range = range(&args.range)?;
    let at = at.as_deref().map(Moment::parse).transpose()?;
    let client = connect::transactions(global).await?;
    let snapshot = client.snapshot(timestamp(&client, at).await?);
    let mut scan = snapshot.scan(range);
    if let Some(limit) = one_more(&args) {
        scan = scan.limit(limit);
    }
    if args.reverse {
        scan = scan.reverse();
    }
    if args.keys_only {
        scan = scan.keys_only();
    }
    print_pairs(scan.stream(), &args, global.output).await
}
