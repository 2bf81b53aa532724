//! Transactions: a transfer between accounts by hand, then again and again by many tasks at once.
//!
//! `cargo run -p kvclient --example transactions -- 127.0.0.1:2379`

use kvclient::{Bytes, Error, Result, Transaction, TransactionClient, TxnOptions};

fn amount(value: Option<Bytes>) -> i64 {
    value.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok()).unwrap_or(0)
}

async fn transfer(txn: &mut Transaction, from: &str, to: &str) -> Result<()> {
    let (from, to) = (from.to_string(), to.to_string());
    let left = amount(txn.get(from.clone()).await?) - 1;
    let right = amount(txn.get(to.clone()).await?) + 1;
    txn.put(from, left.to_string()).await?;
    txn.put(to, right.to_string()).await
}

#[tokio::main]
async fn main() -> Result<()> {
    let scheduler = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_string());
    let client = TransactionClient::connect([scheduler]).await?;

    // By hand: begin, read, write, commit, and decide what to do when somebody else was faster.
    let mut txn = client.begin_optimistic().await?;
    transfer(&mut txn, "account/alice", "account/bob").await?;
    match txn.commit().await {
        Ok(at) => println!("committed at {at:?}"),
        Err(Error::WriteConflict { key, .. }) => println!("somebody else changed {key:?}"),
        Err(error) => return Err(error),
    }

    // `run` commits and tries again after conflicts. A spawned task owns what its closure captures.
    let tasks = (0..8).map(|_| {
        let client = client.clone();
        let options = TxnOptions::optimistic().retries(100);
        tokio::spawn(
            client
                .clone()
                .run_with(options, async move |txn| transfer(txn, "account/bob", "account/alice").await),
        )
    });
    for task in futures::future::join_all(tasks).await {
        task.map_err(|error| Error::InvalidArgument(error.to_string()))??;
    }

    // All accounts as they were at one moment.
    let now = client.current_timestamp().await?;
    for account in client.snapshot(now).scan(kvclient::prefix("account/")).collect().await? {
        println!("{:?} has {:?}", account.key, account.value);
    }
    Ok(())
}
