//! How a transaction behaves: when it locks, how it commits, how long it waits.

use std::time::Duration;

/// Options of a transaction. Isolation is always snapshot isolation.
///
/// ```
/// use std::time::Duration;
/// use kvclient::TxnOptions;
/// let options = TxnOptions::pessimistic().lock_wait(Duration::from_millis(200)).retries(3);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnOptions {
    pub(crate) is_pessimistic: bool,
    pub(crate) async_commit: bool,
    pub(crate) one_phase: bool,
    pub(crate) lock_wait: Option<Duration>,
    pub(crate) lock_ttl: Duration,
    pub(crate) retries: u32,
}

impl Default for TxnOptions {
    fn default() -> TxnOptions {
        TxnOptions::optimistic()
    }
}

impl TxnOptions {
    /// Conflicts are found at commit. Best where they are rare.
    pub fn optimistic() -> TxnOptions {
        TxnOptions {
            is_pessimistic: false,
            async_commit: true,
            one_phase: true,
            lock_wait: None,
            lock_ttl: Duration::from_secs(10),
            retries: 16,
        }
    }

    /// Writes lock their keys at once, waiting for others. Best where many transactions write the same keys.
    pub fn pessimistic() -> TxnOptions {
        TxnOptions { is_pessimistic: true, ..TxnOptions::optimistic() }
    }

    /// Whether small transactions are answered after the first of two phases. Default: yes.
    pub fn async_commit(mut self, yes: bool) -> TxnOptions {
        self.async_commit = yes;
        self
    }

    /// Whether transactions within one region commit in one phase. Default: yes.
    pub fn one_phase(mut self, yes: bool) -> TxnOptions {
        self.one_phase = yes;
        self
    }

    /// Longest wait for the locks of others when a pessimistic transaction locks keys; zero fails at once. Default:
    /// [`Config::timeout`](crate::Config::timeout).
    pub fn lock_wait(mut self, most: Duration) -> TxnOptions {
        self.lock_wait = Some(most);
        self
    }

    /// How long pessimistic locks outlive a client that was killed; a living one prolongs them. At least 1 s.
    /// Default: 10 s.
    pub fn lock_ttl(mut self, ttl: Duration) -> TxnOptions {
        self.lock_ttl = ttl.max(Duration::from_secs(1));
        self
    }

    /// How often [`run`](crate::TransactionClient::run) tries again after a conflict. Default: 16.
    pub fn retries(mut self, most: u32) -> TxnOptions {
        self.retries = most;
        self
    }
}
