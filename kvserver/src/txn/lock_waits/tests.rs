//! The line of waiters, driven by hand: who is woken, when, and what happens to wake-ups that nobody uses.

use super::*;

const DELAY_MS: u64 = 20;

struct Lines {
    waits: Arc<LockWaits>,
    now: Now,
}

impl Lines {
    fn new() -> Lines {
        let options = LockWaitOptions { wake_up_delay_ms: DELAY_MS, waiters_max: 8 };
        Lines { waits: LockWaits::new(options), now: Now(0).plus_ms(1_000) }
    }

    /// `start_ts` waits for `lock_ts` on `key` for `ms` milliseconds.
    fn wait(&self, key: &'static str, start_ts: u64, lock_ts: u64, ms: u64) -> Waiting {
        let (since, deadline) = (self.now, self.now.plus_ms(ms));
        let wait = Wait { key: key.into(), start_ts, lock_ts, since, deadline };
        self.waits.wait(wait, self.now).expect("there is room")
    }

    fn release(&self, key: &'static str, start_ts: u64) {
        self.waits.released(&[Released { key: key.into(), start_ts, commit_ts: 0 }], self.now);
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.waits.tick(self.now);
    }
}

fn poll(waiting: &mut Waiting) -> Option<Woken> {
    match Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(woken) => Some(woken),
        Poll::Pending => None,
    }
}

fn why(waiting: &mut Waiting) -> Option<Wake> {
    poll(waiting).map(|woken| {
        woken.turn.settled();
        woken.why
    })
}

#[test]
fn a_release_wakes_the_oldest_transaction_and_the_others_after_a_delay() {
    let mut lines = Lines::new();
    let (mut young, mut old) = (lines.wait("k", 30, 5, 500), lines.wait("k", 20, 5, 500));
    let mut elsewhere = lines.wait("l", 10, 5, 500);
    lines.release("k", 5);
    assert_eq!((why(&mut old), why(&mut young)), (Some(Wake::Released), None));
    lines.pass(DELAY_MS - 1);
    assert_eq!(why(&mut young), None);
    lines.pass(1);
    assert_eq!((why(&mut young), why(&mut elsewhere)), (Some(Wake::Recheck), None));
}

#[test]
fn the_delay_runs_from_the_first_release_of_several() {
    let mut lines = Lines::new();
    let mut waiters = [lines.wait("k", 10, 5, 500), lines.wait("k", 20, 5, 500), lines.wait("k", 30, 5, 500)];
    lines.release("k", 5);
    lines.pass(DELAY_MS / 2);
    lines.release("k", 10);
    let woken: Vec<_> = waiters.iter_mut().map(why).collect();
    assert_eq!(woken, [Some(Wake::Released), Some(Wake::Released), None]);
    lines.pass(DELAY_MS / 2);
    assert_eq!(why(&mut waiters[2]), Some(Wake::Recheck));
}

#[test]
fn a_turn_that_is_not_used_goes_to_the_next() {
    let lines = Lines::new();
    let mut waiters = [lines.wait("k", 10, 5, 500), lines.wait("k", 20, 5, 500), lines.wait("k", 30, 5, 500)];
    lines.release("k", 5);
    let first = poll(&mut waiters[0]).expect("woken");
    assert_eq!(first.why, Wake::Released);
    assert!(poll(&mut waiters[1]).is_none());
    drop(first);
    let second = poll(&mut waiters[1]).expect("woken in place of the first");
    second.turn.settled();
    assert!(poll(&mut waiters[2]).is_none(), "the second has the lock");
}

#[test]
fn a_client_that_hangs_up_leaves_the_line_and_hands_on_its_wake_up() {
    let lines = Lines::new();
    let first = lines.wait("k", 10, 5, 500);
    let (second, mut third) = (lines.wait("k", 20, 5, 500), lines.wait("k", 30, 5, 500));
    drop(first);
    assert_eq!(lines.waits.len(), 2);
    lines.release("k", 5);
    drop(second);
    assert_eq!(why(&mut third), Some(Wake::Released), "the second was woken and is gone");
    drop(third);
    assert!(lines.waits.is_empty() && lines.waits.next_due().is_none());
}

#[test]
fn waits_end_at_their_deadline_and_look_again_before() {
    let mut lines = Lines::new();
    let (mut short, mut long) = (lines.wait("k", 10, 5, 300), lines.wait("k", 20, 5, RECHECK_MS + 500));
    assert_eq!(lines.waits.next_due(), Some(lines.now.plus_ms(300)));
    lines.pass(299);
    assert_eq!(why(&mut short), None);
    lines.pass(1);
    assert_eq!((why(&mut short), why(&mut long)), (Some(Wake::TimedOut), None));
    lines.pass(RECHECK_MS - 300);
    assert_eq!(why(&mut long), Some(Wake::Recheck), "nobody woke it, but it looks again");
    assert_eq!(lines.waits.counts(), LockWaitCounts { begun: 2, released: 0, timed_out: 1 });
}

#[test]
fn a_request_that_was_sent_twice_waits_twice() {
    let mut lines = Lines::new();
    let (mut one, mut two) = (lines.wait("k", 10, 5, 500), lines.wait("k", 10, 5, 500));
    lines.release("k", 5);
    assert_eq!((why(&mut one), why(&mut two)), (Some(Wake::Released), None));
    lines.pass(DELAY_MS);
    assert_eq!(why(&mut two), Some(Wake::Recheck), "it finds the lock that it already has");
}

#[test]
fn a_release_before_the_wait_wakes_nobody_and_leaves_no_trace() {
    let lines = Lines::new();
    lines.release("k", 5);
    let mut waiting = lines.wait("k", 10, 6, 500);
    assert!(poll(&mut waiting).is_none());
}

#[test]
fn who_waits_for_whom_is_shown() {
    let mut lines = Lines::new();
    let (_one, _two) = (lines.wait("k", 20, 5, 500), lines.wait("k", 10, 5, 500));
    lines.pass(7);
    let entry = |txn| WaitEntry { txn, wait_for: 5, key: "k".into() };
    let shown = [LockWait { entry: entry(10), waited_ms: 7 }, LockWait { entry: entry(20), waited_ms: 7 }];
    assert_eq!(lines.waits.waiting(lines.now), shown);
}

#[test]
fn there_is_a_limit() {
    let lines = Lines::new();
    let held: Vec<_> = (0..8).map(|n| lines.wait("k", n, 5, 500)).collect();
    let wait = Wait { key: "k".into(), start_ts: 9, lock_ts: 5, since: lines.now, deadline: lines.now };
    assert!(lines.waits.wait(wait.clone(), lines.now).is_none());
    drop(held);
    assert!(lines.waits.wait(wait, lines.now).is_some());
}

#[test]
fn when_the_store_stops_nobody_waits() {
    let lines = Lines::new();
    let mut waiting = lines.wait("k", 10, 5, 500);
    lines.waits.close();
    assert_eq!(why(&mut waiting), Some(Wake::TimedOut));
    let (since, deadline) = (lines.now, lines.now.plus_ms(500));
    let wait = Wait { key: "k".into(), start_ts: 9, lock_ts: 5, since, deadline };
    assert!(lines.waits.wait(wait, lines.now).is_none());
}

#[test]
fn the_waker_is_called() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl std::task::Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    let lines = Lines::new();
    let wakes = Arc::new(Wakes::default());
    let mut waiting = lines.wait("k", 10, 5, 500);
    let waker = Waker::from(wakes.clone());
    assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
    lines.release("k", 5);
    assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
}
