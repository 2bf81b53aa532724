//! How pessimistic transactions wait for locks on one store: the table `[pessimistic-txn]`.

use serde::{Deserialize, Serialize};

use super::ReadableDuration;
use crate::txn::lock_waits::LockWaitOptions;

/// The longest wait that can be set: as long as a client may ask for.
const WAIT_MS_MAX: u64 = 3_600_000;

/// Waits for locks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct PessimisticTxnConfig {
    /// How long a request waits for a lock when it does not say.
    pub wait_for_lock_timeout: ReadableDuration,
    /// How long those behind the first in line stay asleep after a lock was released.
    pub wake_up_delay_duration: ReadableDuration,
    /// Requests that may wait at once; further ones are told of the lock at once.
    pub waiters_max: usize,
}

impl Default for PessimisticTxnConfig {
    fn default() -> Self {
        let LockWaitOptions { wake_up_delay_ms, waiters_max } = LockWaitOptions::default();
        PessimisticTxnConfig {
            wait_for_lock_timeout: ReadableDuration::from_millis(1_000),
            wake_up_delay_duration: ReadableDuration::from_millis(wake_up_delay_ms),
            waiters_max,
        }
    }
}

impl PessimisticTxnConfig {
    /// Refuses what cannot work, with the key.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        let too_long = |span: ReadableDuration| span.as_millis() > WAIT_MS_MAX;
        if self.wait_for_lock_timeout.as_millis() == 0 || too_long(self.wait_for_lock_timeout) {
            return Err(("pessimistic-txn.wait-for-lock-timeout", "must be over 0 and at most 1h".into()));
        }
        if too_long(self.wake_up_delay_duration) {
            return Err(("pessimistic-txn.wake-up-delay-duration", "must be at most 1h".into()));
        }
        Ok(())
    }

    /// For the table of waits.
    pub fn options(&self) -> LockWaitOptions {
        let wake_up_delay_ms = self.wake_up_delay_duration.as_millis();
        LockWaitOptions { wake_up_delay_ms, waiters_max: self.waiters_max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_without_an_end_or_a_beginning_are_refused() {
        assert!(PessimisticTxnConfig::default().validate().is_ok());
        for ms in [0, WAIT_MS_MAX + 1] {
            let wait_for_lock_timeout = ReadableDuration::from_millis(ms);
            let (key, _) =
                PessimisticTxnConfig { wait_for_lock_timeout, ..Default::default() }.validate().unwrap_err();
            assert_eq!(key, "pessimistic-txn.wait-for-lock-timeout");
        }
    }
}
