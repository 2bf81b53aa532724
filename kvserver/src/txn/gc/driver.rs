//! Moves the safe points on: asks the scheduler for them, and, on the store that leads the first region, lets them
//! advance.
//!
//! Owns the order of a round: the txn safe point moves as far as the scheduler's settings and barriers allow; then every
//! lock of a transaction that began at or before it is resolved, in all regions; then the GC safe point follows. A
//! round that fails anywhere is taken up again at the next look, by whoever leads the first region then. Two stores
//! that both believe they do harm nothing: nothing goes back.
//!
//! Asynchronous over [`Cluster`], bound to no runtime.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::safe_points::SafePoints;

/// Both safe points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub txn: u64,
    pub gc: u64,
}

/// The scheduler and the other stores. Errors are for the log.
pub trait Cluster: Send + Sync + 'static {
    /// The safe points as they are.
    fn state(&self) -> BoxFuture<'_, Result<State, String>>;

    /// Moves the txn safe point as far as settings and barriers allow. Gives where it is then.
    fn advance_txn(&self) -> BoxFuture<'_, Result<u64, String>>;

    /// Ends every transaction that began at or before `up_to` and has locks anywhere, alive or not. Gives the number of
    /// locks.
    fn resolve_locks(&self, up_to: u64) -> BoxFuture<'_, Result<u64, String>>;

    /// Moves the GC safe point.
    fn advance_gc(&self, to: u64) -> BoxFuture<'_, Result<(), String>>;
}

/// See the file's head.
pub struct Driver {
    pub cluster: Arc<dyn Cluster>,
    pub safe_points: Arc<SafePoints>,
    /// Whether this store leads the first region.
    pub leads_first: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Driver {
    /// Asks once, and does a round where that is this store's turn. Says whether the GC safe point moved.
    pub async fn turn(&self) -> Result<bool, String> {
        let mut state = self.cluster.state().await?;
        self.safe_points.raise(state.txn, state.gc);
        if !(self.leads_first)() {
            return Ok(false);
        }
        state.txn = self.cluster.advance_txn().await?;
        self.safe_points.raise(state.txn, state.gc);
        if state.gc >= state.txn {
            return Ok(false);
        }
        let locks = self.cluster.resolve_locks(state.txn).await?;
        self.cluster.advance_gc(state.txn).await?;
        self.safe_points.raise(state.txn, state.txn);
        tracing::info!(safe_point = state.txn, locks, "garbage may be collected up to the safe point");
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Fake {
        state: Mutex<State>,
        wanted: u64,
        fails: Mutex<bool>,
        calls: Mutex<Vec<String>>,
    }

    impl Cluster for Fake {
        fn state(&self) -> BoxFuture<'_, Result<State, String>> {
            let state = *self.state.lock();
            async move { Ok(state) }.boxed()
        }

        fn advance_txn(&self) -> BoxFuture<'_, Result<u64, String>> {
            self.calls.lock().push("advance txn".into());
            self.state.lock().txn = self.wanted;
            async move { Ok(self.wanted) }.boxed()
        }

        fn resolve_locks(&self, up_to: u64) -> BoxFuture<'_, Result<u64, String>> {
            self.calls.lock().push(format!("resolve {up_to}"));
            let outcome =
                if *self.fails.lock() { Err("a region without a leader".to_string()) } else { Ok(2) };
            async move { outcome }.boxed()
        }

        fn advance_gc(&self, to: u64) -> BoxFuture<'_, Result<(), String>> {
            self.calls.lock().push(format!("advance gc {to}"));
            self.state.lock().gc = to;
            async move { Ok(()) }.boxed()
        }
    }

    fn driver(fake: &Arc<Fake>, leads: bool) -> Driver {
        Driver { cluster: fake.clone(), safe_points: Arc::default(), leads_first: Box::new(move || leads) }
    }

    fn turn(driver: &Driver) -> Result<bool, String> {
        driver.turn().now_or_never().expect("nothing to wait for")
    }

    #[test]
    fn deletion_follows_only_when_all_locks_are_resolved() {
        let fake = Arc::new(Fake { wanted: 10, fails: true.into(), ..Fake::default() });
        let first = driver(&fake, true);
        assert!(turn(&first).is_err());
        assert_eq!((first.safe_points.txn(), first.safe_points.gc()), (10, 0), "reads are refused already");
        // Whoever leads next finishes the round.
        *fake.fails.lock() = false;
        let next = driver(&fake, true);
        assert_eq!(turn(&next), Ok(true));
        assert_eq!((next.safe_points.txn(), next.safe_points.gc()), (10, 10));
        assert_eq!(turn(&next), Ok(false), "nothing is left to do");
        let calls =
            ["advance txn", "resolve 10", "advance txn", "resolve 10", "advance gc 10", "advance txn"];
        assert_eq!(*fake.calls.lock(), calls);
    }

    #[test]
    fn other_stores_only_listen() {
        let fake = Arc::new(Fake { state: State { txn: 7, gc: 5 }.into(), ..Fake::default() });
        let other = driver(&fake, false);
        assert_eq!(turn(&other), Ok(false));
        assert_eq!((other.safe_points.txn(), other.safe_points.gc()), (7, 5));
        assert!(fake.calls.lock().is_empty());
    }
}
