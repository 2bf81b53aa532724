//! What clients of a process cluster asked and were told, in the order of one clock, and whether it adds up.
//!
//! Owns a register per key. An operation is noted before it is sent and again when its answer is here, so its real
//! effect lies between the two. A definite failure is left out: had it happened after all, the value that nobody
//! wrote would be seen. An unknown outcome stays without an end: it may take effect at any time, or never.
//! The judge is the simulator's checker of linearizability; this file only feeds it.

use std::time::Instant;

use parking_lot::Mutex;

use crate::sim::check::Broken;
use crate::sim::check::linear::{self, Action, Operation};

/// How an operation ended, as its client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It happened, like this.
    Done(Action),
    /// It may have happened, like this.
    Unknown(Action),
    /// It did not happen.
    Failed,
}

/// Operations on a fixed number of registers.
#[derive(Debug)]
pub struct History {
    started: Instant,
    registers: Vec<Mutex<Vec<Operation>>>,
}

impl History {
    /// An empty history of registers that were never written; its clock starts now.
    pub fn new(registers: usize) -> History {
        History { started: Instant::now(), registers: (0..registers).map(|_| Mutex::default()).collect() }
    }

    /// Nanoseconds since the history began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Notes an operation that was sent at `start` and has just ended.
    pub fn note(&self, register: usize, start: u64, told: Told) {
        let (end, action) = match told {
            Told::Done(action) => (Some(self.now()), action),
            Told::Unknown(action) => (None, action),
            Told::Failed => return,
        };
        self.registers[register].lock().push(Operation { start, end, action });
    }

    /// Operations whose outcome is known.
    pub fn known(&self) -> usize {
        let known = |ops: &Mutex<Vec<Operation>>| ops.lock().iter().filter(|op| op.end.is_some()).count();
        self.registers.iter().map(known).sum()
    }

    /// Whether one order of all operations explains what each client saw.
    ///
    /// # Errors
    /// The first operation that nothing explains, and what else was done to that register around it.
    pub fn check(&self) -> Result<(), Broken> {
        for (register, operations) in self.registers.iter().enumerate() {
            let operations = operations.lock();
            linear::check(&format!("register {register}"), &operations).map_err(|broken| {
                let what = format!("{}; around it:\n{}", broken.what, around(&operations));
                Broken { what, ..broken }
            })?;
        }
        Ok(())
    }
}

/// What was done to a register around the first moment up to which its history has no explanation.
fn around(operations: &[Operation]) -> String {
    const SHOWN: usize = 60;
    let mut moments: Vec<u64> = operations.iter().filter_map(|op| op.end).collect();
    moments.sort_unstable();
    let explained = |moment: u64| linear::check("", &up_to(operations, moment)).is_ok();
    let wrong = moments.partition_point(|moment| explained(*moment));
    let mut shown = up_to(operations, moments.get(wrong).copied().unwrap_or(u64::MAX));
    shown.sort_by_key(|op| (op.end.unwrap_or(op.start), op.start));
    shown[shown.len().saturating_sub(SHOWN)..].iter().map(|op| format!("{op:?}\n")).collect()
}

/// The history as it was known at a moment: what had not ended by then may or may not have happened.
fn up_to(operations: &[Operation], moment: u64) -> Vec<Operation> {
    let begun = operations.iter().filter(|op| op.start <= moment);
    begun.map(|op| Operation { end: op.end.filter(|end| *end <= moment), ..*op }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_write_and_a_stale_read_are_caught() {
        let history = History::new(2);
        let write = |value| {
            let start = history.now();
            history.note(1, start, Told::Done(Action::Write(value)));
        };
        write(1);
        write(2);
        assert_eq!(history.check(), Ok(()));
        let start = history.now();
        history.note(1, start, Told::Done(Action::Read(1)));
        let broken = history.check().unwrap_err();
        assert!(broken.what.contains("register 1") && broken.what.contains("Read(1)"), "{broken:?}");
    }

    #[test]
    fn a_write_that_failed_for_certain_must_not_be_seen_and_an_unknown_one_may_be() {
        let read_after = |told: fn(Action) -> Told| {
            let history = History::new(1);
            history.note(0, history.now(), told(Action::Write(7)));
            history.note(0, history.now(), Told::Done(Action::Read(7)));
            history.check()
        };
        assert_eq!(read_after(Told::Unknown), Ok(()));
        assert!(read_after(|_| Told::Failed).is_err());
    }
}
