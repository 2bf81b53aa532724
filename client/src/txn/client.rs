//! The transactional client: begins transactions and snapshots, and runs closures as transactions.
//!
//! Owns nothing but what all its clones share: the executor, the lock resolver, how user keys become wire keys, and the
//! work that goes on after its transactions have been answered.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kvproto::key::{KeyCodec, Mode};
use kvproto::limits::MAX_KEY_BYTES;
use kvproto::ts::Timestamp;
use tokio::sync::watch;

use super::lock_resolver::LockResolver;
use super::options::TxnOptions;
use super::snapshot::Snapshot;
use super::transaction::Transaction;
use crate::backoff::{Backoff, Jitter};
use crate::config::Config;
use crate::connect::connect;
use crate::error::{Error, Result};
use crate::request::plan::Executor;
use crate::scheduler_client::SchedulerClient;

/// The pauses that [`TransactionClient::run`] makes between runs of a transaction that met another one.
pub const CONFLICT_PAUSES: Backoff = Backoff::from_millis(2, 500);

/// What all handles of one client share.
pub(super) struct Shared {
    pub(super) executor: Arc<Executor>,
    pub(super) resolver: LockResolver,
    pub(super) codec: KeyCodec,
    /// How many ended transactions have locks left that are on their way out.
    background: watch::Sender<usize>,
}

impl Shared {
    fn new(executor: Arc<Executor>, codec: KeyCodec) -> Shared {
        let background = watch::Sender::new(0);
        Shared { resolver: LockResolver::new(executor.clone()), executor, codec, background }
    }

    /// Does what nobody waits for but [`TransactionClient::flush`]. Outside a runtime it is not done: locks are left to
    /// the next who meets them.
    pub(super) fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        self.background.send_modify(|running| *running += 1);
        let running = Running(self.background.clone());
        runtime.spawn(async move {
            let _running = running;
            work.await;
        });
    }

    pub(super) fn wire_key(&self, key: Bytes) -> Result<Bytes> {
        if key.len() > MAX_KEY_BYTES {
            return Err(Error::KeyTooLarge { size: key.len(), limit: MAX_KEY_BYTES });
        }
        Ok(self.codec.wire_key(key))
    }

    pub(super) fn wire_keys<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Bytes>> {
        keys.into_iter().map(|key| self.wire_key(key.into())).collect()
    }

    /// An error whose keys are wire keys, as the application is told.
    pub(super) fn user_error(&self, error: Error) -> Error {
        error.in_user_keys(self.codec)
    }
}

/// Work in the background, counted until it ends in whatever way.
struct Running(watch::Sender<usize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// A connection to a cluster for transactions. Cheap to clone; clones share connections and caches.
///
/// Every request ends by [`Config::timeout`]. A key has at most 8 KiB and is not empty.
#[derive(Clone)]
pub struct TransactionClient {
    pub(super) shared: Arc<Shared>,
}

impl TransactionClient {
    /// Connects to the cluster whose schedulers listen at `endpoints` (`host:port`; one is enough).
    ///
    /// ```no_run
    /// # async fn run() -> kvclient::Result<()> {
    /// let client = kvclient::TransactionClient::connect(["127.0.0.1:2379"]).await?;
    /// let mut txn = client.begin_optimistic().await?;
    /// txn.put("hello", "world").await?;
    /// txn.commit().await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect<S: Into<String>>(
        endpoints: impl IntoIterator<Item = S>,
    ) -> Result<TransactionClient> {
        TransactionClient::with_config(endpoints, Config::default()).await
    }

    /// Like [`connect`](Self::connect) with other deadlines, another keyspace or a fixed API. With
    /// [`Api::V1`](crate::Api::V1) keys lie beside the keyspaces.
    pub async fn with_config<S: Into<String>>(
        endpoints: impl IntoIterator<Item = S>,
        config: Config,
    ) -> Result<TransactionClient> {
        let (executor, codec) = connect(endpoints, config, Mode::Txn).await?;
        Ok(TransactionClient { shared: Arc::new(Shared::new(Arc::new(executor), codec)) })
    }

    /// The scheduler connection under this client, for cluster information.
    pub fn scheduler(&self) -> &SchedulerClient {
        self.shared.executor.scheduler()
    }

    /// Resolves locks of this client's keys.
    pub fn lock_resolver(&self) -> &LockResolver {
        &self.shared.resolver
    }

    /// A timestamp after all that were handed out before.
    pub async fn current_timestamp(&self) -> Result<Timestamp> {
        self.scheduler().get_timestamp(1).await
    }

    /// Begins a transaction that finds conflicts when it commits.
    pub async fn begin_optimistic(&self) -> Result<Transaction> {
        self.begin(TxnOptions::optimistic()).await
    }

    /// Begins a transaction that locks the keys it writes at once.
    pub async fn begin_pessimistic(&self) -> Result<Transaction> {
        self.begin(TxnOptions::pessimistic()).await
    }

    /// Begins a transaction.
    pub async fn begin(&self, options: TxnOptions) -> Result<Transaction> {
        // Asked for before, so that locks never live longer than they are said to.
        let began = Instant::now();
        let start_ts = self.current_timestamp().await?;
        Ok(Transaction::new(self.shared.clone(), start_ts, began, options))
    }

    /// The data as they were at `ts`, or a moment that still comes. At [`Timestamp::MAX`] every single read sees the
    /// latest data, which costs no timestamp; several reads then need not fit together.
    pub fn snapshot(&self, ts: Timestamp) -> Snapshot {
        Snapshot::new(self.shared.clone(), ts)
    }

    /// Waits until all transactions that have ended, of this client and its clones, have no locks left. They are answered
    /// before: their last locks go in the background. A program that exits at once leaves those to whoever meets them, who
    /// waits for the time that they have to live; one that calls this first does not. Fails after [`Config::timeout`].
    pub async fn flush(&self) -> Result<()> {
        let most = self.shared.executor.config().timeout;
        let mut background = self.shared.background.subscribe();
        match tokio::time::timeout(most, background.wait_for(|running| *running == 0)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Timeout { after: most, last: None }),
        }
    }

    /// Runs `work` as an optimistic transaction and commits it; see [`run_with`](Self::run_with).
    ///
    /// ```no_run
    /// # async fn run(client: kvclient::TransactionClient) -> kvclient::Result<()> {
    /// let visits = client.run(async |txn| {
    ///     let before = txn.get("visits").await?;
    ///     let visits = before.map_or(0, |bytes| bytes[0]) + 1;
    ///     txn.put("visits", vec![visits]).await?;
    ///     Ok(visits)
    /// });
    /// println!("{} visits", visits.await?);
    /// # Ok(()) }
    /// ```
    pub fn run<T, F>(&self, work: F) -> impl Future<Output = Result<T>> + use<T, F>
    where
        F: AsyncFnMut(&mut Transaction) -> Result<T>,
    {
        self.run_with(TxnOptions::optimistic(), work)
    }

    /// Runs `work` as a transaction and commits it, and both again after a conflict ([`Error::is_conflict`]), with
    /// pauses in between, as often as [`TxnOptions::retries`] says. Whatever `work` does besides the transaction may so
    /// happen several times. An error of `work` rolls back; so may `work` itself, and then return what it likes.
    ///
    /// In a spawned task the closure must own what it captures, `async move |txn|` with clones and without references, or
    /// the compiler finds that "implementation of `Send` is not general enough".
    pub fn run_with<T, F>(&self, options: TxnOptions, work: F) -> impl Future<Output = Result<T>> + use<T, F>
    where
        F: AsyncFnMut(&mut Transaction) -> Result<T>,
    {
        self.clone().run_owned(options, work)
    }

    async fn run_owned<T, F>(self, options: TxnOptions, mut work: F) -> Result<T>
    where
        F: AsyncFnMut(&mut Transaction) -> Result<T>,
    {
        let mut jitter = None;
        for attempt in 0.. {
            let mut txn = self.begin(options.clone()).await?;
            let done = match work(&mut txn).await {
                Ok(value) if txn.has_ended() => Ok(value),
                Ok(value) => txn.commit().await.map(|_| value),
                Err(error) => Err(error),
            };
            let error = match done {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if !txn.has_ended() {
                // The error of the work counts; locks that stay have their time to live.
                let _ = txn.rollback().await;
            }
            if !error.is_conflict() || attempt >= options.retries {
                return Err(error);
            }
            tracing::debug!(attempt, %error, "runs a transaction again");
            let jitter = jitter.get_or_insert_with(Jitter::from_process).draw();
            tokio::time::sleep(CONFLICT_PAUSES.delay(attempt, jitter)).await;
        }
        unreachable!("the loop ends by returning")
    }
}
