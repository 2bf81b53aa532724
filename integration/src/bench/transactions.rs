//! Transactions through the official client: reads at a fresh timestamp, and updates that read two keys and write both,
//! beginning again after a conflict. etcd does the same with two gets in one transaction and a second one that
//! compares both revisions before it puts.

use std::fmt::Display;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tikv_client::{CheckLevel, Config, Error, Key, TransactionClient, TransactionOptions};

use super::kvasir::Kvasir;
use super::load::{self, Load, Measured, Numbers};
use super::{BenchError, Plan};

/// Pairs in one transaction while loading: as many as the client sends in one piece.
const LOAD_BATCH: u64 = 48;
const LOAD_CONCURRENCY: usize = 16;
/// Attempts of one update. Conflicts are rare with many keys; somebody always wins.
const ATTEMPTS: u32 = 1_000;

/// How a transaction commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// In one phase where that is possible, else asynchronously.
    OnePhase,
    /// As soon as every key is locked.
    Async,
    TwoPhase,
}

impl Commit {
    pub const ALL: [Commit; 3] = [Commit::OnePhase, Commit::Async, Commit::TwoPhase];

    /// What `kvctl bench --commit` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Commit::OnePhase => "one-phase",
            Commit::Async => "async",
            Commit::TwoPhase => "two-phase",
        }
    }

    /// The row of updates that commit like this.
    pub fn operation(self) -> &'static str {
        match self {
            Commit::OnePhase => "update, 1 phase",
            Commit::Async => "update, async",
            Commit::TwoPhase => "update, 2 phases",
        }
    }

    fn options(self) -> TransactionOptions {
        let options = TransactionOptions::new_optimistic().drop_check(CheckLevel::None);
        match self {
            Commit::OnePhase => options.use_async_commit().try_one_pc(),
            Commit::Async => options.use_async_commit(),
            Commit::TwoPhase => options,
        }
    }
}

/// Two different keys of as many.
pub fn two_below(numbers: &mut Numbers, keys: u64) -> (u64, u64) {
    let first = numbers.below(keys);
    (first, (first + 1 + numbers.below(keys.max(2) - 1)) % keys)
}

/// Tries an update until it is through. `Ok(false)` is a conflict.
///
/// # Errors
/// The update's, or that it was always too late.
pub async fn until_through<E: Display>(
    mut update: impl AsyncFnMut() -> Result<bool, E>,
) -> Result<(), String> {
    for _ in 0..ATTEMPTS {
        if update().await.map_err(|error| error.to_string())? {
            return Ok(());
        }
    }
    Err(format!("{ATTEMPTS} attempts of one update met conflicts"))
}

/// The official client, in API V2.
///
/// # Errors
/// When it cannot connect.
pub async fn connect(kvasir: &Kvasir) -> Result<TransactionClient, BenchError> {
    let config = Config::default().with_default_keyspace();
    let client = TransactionClient::new_with_config(vec![kvasir.endpoint()], config).await;
    client.map_err(|error| BenchError::client("tikv-client", error))
}

/// Writes all keys.
///
/// # Errors
/// The first that fails.
pub async fn fill(client: &TransactionClient, plan: &Plan) -> Result<(), BenchError> {
    let value = vec![b'v'; plan.value_bytes];
    futures::stream::iter((0..plan.keys).step_by(LOAD_BATCH as usize))
        .map(|first| {
            let value = value.clone();
            async move {
                let mut txn = client.begin_with_options(Commit::OnePhase.options()).await?;
                for n in first..plan.keys.min(first + LOAD_BATCH) {
                    txn.put(key(n), value.clone()).await?;
                }
                txn.commit().await.map(drop)
            }
        })
        .buffer_unordered(LOAD_CONCURRENCY)
        .try_collect::<()>()
        .await
        .map_err(|error| BenchError::client("tikv-client", error))
}

/// Gets, each at a timestamp of its own.
pub async fn gets(client: TransactionClient, plan: &Plan, load: Load) -> Measured {
    let (client, keys) = (Arc::new(client), plan.keys);
    load::run(load, move |numbers| {
        let (client, key) = (client.clone(), key(numbers.below(keys)));
        async move {
            let now = client.current_timestamp().await.map_err(|error| error.to_string())?;
            let mut snapshot = client.snapshot(now, TransactionOptions::new_optimistic());
            match snapshot.get(key).await {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err("a key that was written is absent".to_string()),
                Err(error) => Err(error.to_string()),
            }
        }
    })
    .await
}

/// Updates of two keys.
pub async fn updates(client: TransactionClient, plan: &Plan, load: Load, commit: Commit) -> Measured {
    let (client, keys, value) = (Arc::new(client), plan.keys, vec![b'v'; plan.value_bytes]);
    load::run(load, move |numbers| {
        let (first, second) = two_below(numbers, keys);
        let (client, pair, value) = (client.clone(), [key(first), key(second)], value.clone());
        until_through(move || update(client.clone(), pair.clone(), value.clone(), commit))
    })
    .await
}

/// Reads both keys and writes both; false when another transaction was faster.
async fn update(
    client: Arc<TransactionClient>,
    pair: [Key; 2],
    value: Vec<u8>,
    commit: Commit,
) -> Result<bool, Error> {
    let mut txn = client.begin_with_options(commit.options()).await?;
    let found = txn.batch_get(pair.iter().cloned()).await?.count();
    if found != pair.len() {
        return Err(Error::StringError(format!("{found} of two keys that were written are there")));
    }
    for key in pair {
        txn.put(key, value.clone()).await?;
    }
    match txn.commit().await {
        Ok(_) => Ok(true),
        Err(error) if is_conflict(&error) => {
            txn.rollback().await?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn is_conflict(error: &Error) -> bool {
    match error {
        Error::KeyError(error) => error.conflict.is_some(),
        Error::ExtractedErrors(errors) | Error::MultipleKeyErrors(errors) => errors.iter().any(is_conflict),
        _ => false,
    }
}

fn key(n: u64) -> Key {
    format!("bench/{n:012}").into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_keys_are_different_and_any() {
        let mut numbers = Numbers::new(1);
        let pairs: Vec<_> = (0..1_000).map(|_| two_below(&mut numbers, 3)).collect();
        assert!(pairs.iter().all(|(a, b)| a != b && *a < 3 && *b < 3));
        assert!((0..3).all(|n| pairs.iter().filter(|(_, b)| *b == n).count() > 200));
    }

    #[tokio::test]
    async fn conflicts_are_tried_again_and_errors_are_not() {
        let mut left = 3;
        let through = until_through(|| {
            left -= 1;
            std::future::ready(Ok::<bool, String>(left == 0))
        });
        assert_eq!(through.await, Ok(()));
        let failed = until_through(|| async { Err::<bool, _>("refused") }).await;
        assert_eq!(failed, Err("refused".to_string()));
        assert!(until_through(|| async { Ok::<bool, String>(false) }).await.is_err());
    }
}
