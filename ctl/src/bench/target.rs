//! What a benchmark runs against: raw pairs, or transactions of one kind. Each operation is what a program would do for
//! it, with the attempts that conflicts cost.

use bytes::Bytes;
use kvclient::{CONFLICT_PAUSES, Jitter, KvPair, RawClient, Transaction, TransactionClient, TxnOptions};

use super::payment::{Payment, Rows, pay};
use super::worker::Failure;
use crate::cli::Commit;

/// Attempts of one transaction. Among closed loops somebody always wins, so this is far away.
const ATTEMPTS: u32 = 10_000;

/// What an operation came to: keys read or written, and attempts that met another transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub keys: u64,
    pub conflicts: u64,
}

impl Done {
    fn at_once(keys: u64) -> Done {
        Done { keys, conflicts: 0 }
    }
}

/// Where the operations go.
#[derive(Clone)]
pub enum Target {
    Raw(RawClient),
    Txn(TransactionClient, TxnOptions),
}

/// The options of a benchmark's transactions.
pub fn options(commit: Commit, pessimistic: bool) -> TxnOptions {
    let options = if pessimistic { TxnOptions::pessimistic() } else { TxnOptions::optimistic() };
    match commit {
        Commit::OnePhase => options,
        Commit::Async => options.one_phase(false),
        Commit::TwoPhase => options.one_phase(false).async_commit(false),
    }
}

impl Target {
    /// Reads keys that must be there.
    pub async fn get(&self, mut keys: Vec<Bytes>) -> Result<Done, Failure> {
        keys.sort_unstable();
        keys.dedup();
        let wanted = keys.len();
        let found = match (self, &keys[..]) {
            (Target::Raw(client), [key]) => usize::from(client.get(key.clone()).await?.is_some()),
            (Target::Raw(client), _) => client.batch_get(keys).await?.len(),
            (Target::Txn(client, _), [key]) => {
                let snapshot = client.snapshot(client.current_timestamp().await?);
                usize::from(snapshot.get(key.clone()).await?.is_some())
            }
            (Target::Txn(client, _), _) => {
                client.snapshot(client.current_timestamp().await?).batch_get(keys).await?.len()
            }
        };
        complete(found, wanted)
    }

    /// Reads pairs of a range in which there are at least as many.
    pub async fn scan(&self, start: Bytes, end: Bytes, wanted: usize) -> Result<Done, Failure> {
        let found = match self {
            Target::Raw(client) => client.scan(start..end).limit(wanted).collect().await?.len(),
            Target::Txn(client, _) => {
                let snapshot = client.snapshot(client.current_timestamp().await?);
                snapshot.scan(start..end).limit(wanted).collect().await?.len()
            }
        };
        complete(found, wanted)
    }

    /// Writes keys, whatever they hold.
    pub async fn put(&self, keys: Vec<Bytes>, value: &Bytes) -> Result<Done, Failure> {
        let count = keys.len() as u64;
        match (self, &keys[..]) {
            (Target::Raw(client), [key]) => client.put(key.clone(), value.clone()).await?,
            (Target::Raw(client), _) => {
                client.batch_put(keys.into_iter().map(|key| (key, value.clone()))).await?;
            }
            (Target::Txn(client, options), _) => {
                return transact(client, options, count, &Work::Put { keys, value: value.clone() }).await;
            }
        }
        Ok(Done::at_once(count))
    }

    /// Makes a payment, which is a transaction.
    pub async fn pay(&self, rows: Rows, payment: Payment) -> Result<Done, Failure> {
        match self {
            Target::Raw(_) => Err(Failure::told("payments are transactions".into())),
            Target::Txn(client, options) => {
                let keys = payment.rows.len() as u64 + 1;
                transact(client, options, keys, &Work::Pay(rows, payment)).await
            }
        }
    }

    /// Reads keys that must be there and writes them.
    pub async fn update(&self, keys: Vec<Bytes>, value: &Bytes) -> Result<Done, Failure> {
        let count = keys.len() as u64;
        match self {
            Target::Raw(_) => {
                self.get(keys.clone()).await?;
                self.put(keys, value).await
            }
            Target::Txn(client, options) => {
                transact(client, options, count, &Work::Update { keys, value: value.clone() }).await
            }
        }
    }
}

/// Reads keys in a transaction that will write them.
pub async fn read(txn: &mut Transaction, keys: &[Bytes]) -> kvclient::Result<Vec<KvPair>> {
    match txn.is_pessimistic() {
        true => txn.batch_get_for_update(keys.iter().cloned()).await,
        false => txn.batch_get(keys.iter().cloned()).await,
    }
}

/// What a transaction does before it commits.
#[derive(Debug)]
pub enum Work {
    Put { keys: Vec<Bytes>, value: Bytes },
    Update { keys: Vec<Bytes>, value: Bytes },
    Pay(Rows, Payment),
}

impl Work {
    async fn run(&self, txn: &mut Transaction) -> Result<(), Failure> {
        let (keys, value) = match self {
            Work::Pay(rows, payment) => return pay(txn, *rows, payment).await,
            Work::Update { keys, value } => {
                complete(read(txn, keys).await?.len(), keys.len())?;
                (keys, value)
            }
            Work::Put { keys, value } => (keys, value),
        };
        for key in keys {
            txn.put(key.clone(), value.clone()).await?;
        }
        Ok(())
    }
}

/// Runs a transaction until it meets no other, with the pauses that [`TransactionClient::run`] makes.
async fn transact(
    client: &TransactionClient,
    options: &TxnOptions,
    keys: u64,
    work: &Work,
) -> Result<Done, Failure> {
    let mut jitter = None;
    for conflicts in 0..ATTEMPTS {
        let mut txn = client.begin(options.clone()).await?;
        let done = match work.run(&mut txn).await {
            Ok(()) => txn.commit().await.map(drop).map_err(Failure::from),
            Err(failure) => {
                // The failure says more than one of the rollback would.
                let _ = txn.rollback().await;
                Err(failure)
            }
        };
        match done {
            Ok(()) => return Ok(Done { keys, conflicts: conflicts.into() }),
            Err(failure) if failure.is_conflict() => {
                let jitter = jitter.get_or_insert_with(Jitter::from_process).draw();
                tokio::time::sleep(CONFLICT_PAUSES.delay(conflicts, jitter)).await;
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::told(format!("{ATTEMPTS} attempts of one transaction met others")))
}

fn complete(found: usize, wanted: usize) -> Result<Done, Failure> {
    match found >= wanted {
        true => Ok(Done::at_once(found as u64)),
        false => Err(Failure::told(format!("{} keys that were written are not there", wanted - found))),
    }
}
