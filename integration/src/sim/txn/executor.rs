//! Runs futures in virtual time: no threads, no runtime, one poll per event.
//!
//! A task is woken by its waker, which puts it into a queue; the world turns the queue into events, in order, and may
//! put anything between two polls. A task belongs to a life of a store or of a client and dies with it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::sim::event::Life;

/// Whose task it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    Store(Life),
    /// A client, and which of its lives.
    Client(usize, u32),
}

/// See the file's head.
#[derive(Default)]
pub struct Executor {
    tasks: BTreeMap<u64, Task>,
    woken: Arc<Mutex<VecDeque<u64>>>,
    newest: u64,
}

struct Task {
    home: Home,
    future: BoxFuture<'static, ()>,
    alarm: Arc<Alarm>,
}

/// Wakes one task.
struct Alarm {
    task: u64,
    /// It is in the queue, or its poll is an event to come.
    rung: AtomicBool,
    woken: Arc<Mutex<VecDeque<u64>>>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        if !self.rung.swap(true, Ordering::Relaxed) {
            self.woken.lock().push_back(self.task);
        }
    }
}

impl Executor {
    /// Takes a task in; its first poll is due at once.
    pub fn spawn(&mut self, home: Home, future: BoxFuture<'static, ()>) {
        self.newest += 1;
        let alarm = Alarm { task: self.newest, rung: AtomicBool::new(false), woken: self.woken.clone() };
        let alarm = Arc::new(alarm);
        alarm.clone().wake();
        self.tasks.insert(self.newest, Task { home, future, alarm });
    }

    /// Tasks that were woken since the last call, in order.
    pub fn take_woken(&mut self) -> VecDeque<u64> {
        std::mem::take(&mut *self.woken.lock())
    }

    /// Whose task it is; `None` when it is over.
    pub fn home(&self, task: u64) -> Option<Home> {
        self.tasks.get(&task).map(|t| t.home)
    }

    /// Polls a task once.
    pub fn poll(&mut self, task: u64) {
        let Some(t) = self.tasks.get_mut(&task) else { return };
        t.alarm.rung.store(false, Ordering::Relaxed);
        let waker = Waker::from(t.alarm.clone());
        if t.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.tasks.remove(&task);
        }
    }

    /// Drops all tasks of a life.
    pub fn end(&mut self, home: Home) {
        self.tasks.retain(|_, task| task.home != home);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::channel::oneshot;

    use super::*;

    #[test]
    fn a_task_runs_when_it_is_woken_and_dies_with_its_life() {
        let mut executor = Executor::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut doors = Vec::new();
        for client in 0..2 {
            let (open, door) = oneshot::channel::<()>();
            doors.push(open);
            let seen = seen.clone();
            let future = async move {
                seen.lock().push((client, "begins"));
                let _ = door.await;
                seen.lock().push((client, "ends"));
            };
            executor.spawn(Home::Client(client, 0), future.boxed());
        }
        let run = |executor: &mut Executor| {
            let woken = executor.take_woken();
            woken.iter().for_each(|task| executor.poll(*task));
            woken.len()
        };
        assert_eq!((run(&mut executor), run(&mut executor)), (2, 0));
        executor.end(Home::Client(0, 0));
        let opened: Vec<bool> = doors.into_iter().map(|door| door.send(()).is_ok()).collect();
        assert_eq!(opened, [false, true]);
        assert_eq!(run(&mut executor), 1);
        assert_eq!(*seen.lock(), [(0, "begins"), (1, "begins"), (1, "ends")]);
        assert_eq!((executor.home(1), executor.home(2)), (None, None));
    }
}
