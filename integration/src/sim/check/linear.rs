//! Linearizability of one register, after Wing and Gong with Lowe's just-in-time linearization.
//!
//! The history is walked in the order of time. A configuration is a possible value of the register together with
//! the running operations that have already taken effect in it; at each return every configuration is brought to
//! where that operation has taken effect, in all ways that are legal, and the others are dropped. No configuration
//! left: no order explains the history. Configurations form a set, which is the memo.
//!
//! Every write writes a value of its own. An operation with an unknown outcome whose value nobody ever saw can be
//! left out; one whose value was seen took effect before the first sight of it had returned.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdict, broken};

/// A value of the register; 0 is "never written".
pub type Value = u64;

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read(Value),
    Write(Value),
    /// Found `expect` and put `new` in its place.
    Swap {
        expect: Value,
        new: Value,
    },
    /// Found this instead of what it expected.
    SwapFailed(Value),
}

/// One operation. `end` is `None` when its outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub start: u64,
    pub end: Option<u64>,
    pub action: Action,
}

/// Operations that may run at once.
const RUNNING_MAX: usize = 64;

impl Action {
    /// The value it saw, and the value it left.
    fn saw(self) -> Option<Value> {
        match self {
            Action::Read(v) | Action::SwapFailed(v) | Action::Swap { expect: v, .. } => Some(v),
            Action::Write(_) => None,
        }
    }

    fn wrote(self) -> Option<Value> {
        match self {
            Action::Write(v) | Action::Swap { new: v, .. } => Some(v),
            Action::Read(_) | Action::SwapFailed(_) => None,
        }
    }

    /// The value after it, when it may happen at `value`.
    fn apply(self, value: Value) -> Option<Value> {
        self.saw().is_none_or(|seen| seen == value).then(|| self.wrote().unwrap_or(value))
    }
}

/// Operations with known times only: unknown ones that were seen get the time by which they must have happened,
/// the others are left out.
fn settle(history: &[Operation]) -> Vec<(u64, u64, Action)> {
    let mut settled = Vec::with_capacity(history.len());
    // Earliest end of an operation that saw the value.
    let mut seen: BTreeMap<Value, u64> = BTreeMap::new();
    let mut unknown: Vec<&Operation> = Vec::new();
    fn note(seen: &mut BTreeMap<Value, u64>, action: Action, end: u64) {
        if let Some(value) = action.saw() {
            let first = seen.entry(value).or_insert(end);
            *first = end.min(*first);
        }
    }
    for op in history {
        match op.end {
            Some(end) => {
                note(&mut seen, op.action, end);
                settled.push((op.start, end, op.action));
            }
            None if op.action.wrote().is_some() => unknown.push(op),
            None => {}
        }
    }
    loop {
        let before = unknown.len();
        unknown.retain(|op| {
            let Some(end) = op.action.wrote().and_then(|v| seen.get(&v).copied()) else { return true };
            note(&mut seen, op.action, end);
            settled.push((op.start, end, op.action));
            false
        });
        if unknown.len() == before {
            return settled;
        }
    }
}

/// Checks the history of one register that begins unwritten.
pub fn check(key: &str, history: &[Operation]) -> Verdict {
    let operations = settle(history);
    // Starts sort before ends of the same instant: such operations count as simultaneous.
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(operations.len() * 2);
    for (i, (start, end, action)) in operations.iter().enumerate() {
        if end < start {
            return broken("linear", format!("{key}: {action:?} was seen before it began"));
        }
        events.push((*start, false, i));
        events.push((*end, true, i));
    }
    events.sort_unstable();
    let mut slots: [Option<usize>; RUNNING_MAX] = [None; RUNNING_MAX];
    let mut slot_of: BTreeMap<usize, usize> = BTreeMap::new();
    let mut configurations: BTreeSet<(Value, u64)> = BTreeSet::from([(0, 0)]);
    for (at, ends, i) in events {
        if !ends {
            let Some(free) = slots.iter().position(Option::is_none) else {
                return broken("linear", format!("{key}: more than {RUNNING_MAX} operations at once"));
            };
            slots[free] = Some(i);
            slot_of.insert(i, free);
            continue;
        }
        let Some(slot) = slot_of.remove(&i) else { continue };
        configurations = linearize(&configurations, slot, &slots, &operations);
        slots[slot] = None;
        if configurations.is_empty() {
            let (start, _, action) = operations[i];
            let what = format!("{key}: no order explains {action:?}, from {start} ns to {at} ns");
            return broken("linear", what);
        }
    }
    Ok(())
}

/// Brings every configuration to where the operation in `slot` has taken effect, and forgets that operation.
fn linearize(
    from: &BTreeSet<(Value, u64)>,
    slot: usize,
    slots: &[Option<usize>; RUNNING_MAX],
    operations: &[(u64, u64, Action)],
) -> BTreeSet<(Value, u64)> {
    let bit = 1u64 << slot;
    let mut done = BTreeSet::new();
    let mut visited = from.clone();
    let mut open: Vec<(Value, u64)> = from.iter().copied().collect();
    while let Some((value, effected)) = open.pop() {
        if effected & bit != 0 {
            done.insert((value, effected & !bit));
            continue;
        }
        for (other, running) in slots.iter().enumerate() {
            let other = 1u64 << other;
            let Some(i) = running.filter(|_| effected & other == 0) else { continue };
            if let Some(next) = operations[i].2.apply(value)
                && visited.insert((next, effected | other))
            {
                open.push((next, effected | other));
            }
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::Action::*;
    use super::*;

    fn op(start: u64, end: u64, action: Action) -> Operation {
        Operation { start, end: Some(end), action }
    }

    fn unknown(start: u64, action: Action) -> Operation {
        Operation { start, end: None, action }
    }

    #[track_caller]
    fn good(history: &[Operation]) {
        assert_eq!(check("k", history), Ok(()));
    }

    #[track_caller]
    fn bad(history: &[Operation]) {
        assert!(check("k", history).is_err());
    }

    #[test]
    fn a_read_sees_the_last_write() {
        good(&[op(0, 1, Read(0)), op(2, 3, Write(7)), op(4, 5, Read(7))]);
        bad(&[op(2, 3, Write(7)), op(4, 5, Read(0))]);
        bad(&[op(2, 3, Write(7)), op(4, 5, Read(8))]);
        bad(&[op(0, 1, Write(7)), op(2, 3, Write(8)), op(4, 5, Read(7))]);
    }

    #[test]
    fn simultaneous_operations_may_go_either_way_but_only_one() {
        good(&[op(0, 9, Write(7)), op(1, 2, Read(0)), op(3, 4, Read(7))]);
        bad(&[op(0, 9, Write(7)), op(1, 2, Read(7)), op(3, 4, Read(0))]);
        good(&[op(0, 9, Write(7)), op(0, 9, Write(8)), op(10, 11, Read(7)), op(12, 13, Read(7))]);
        bad(&[op(0, 9, Write(7)), op(0, 9, Write(8)), op(10, 11, Read(7)), op(12, 13, Read(8))]);
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_not_twice() {
        good(&[unknown(0, Write(7)), op(1, 2, Read(0)), op(50, 51, Read(7))]);
        good(&[unknown(0, Write(7)), op(1, 2, Write(8)), op(50, 51, Read(8))]);
        bad(&[
            unknown(0, Write(7)),
            op(1, 2, Read(7)),
            op(3, 4, Write(8)),
            op(5, 6, Read(8)),
            op(7, 8, Read(7)),
        ]);
        bad(&[op(1, 2, Read(7)), unknown(3, Write(7))]);
    }

    #[test]
    fn a_swap_needs_what_it_expects() {
        good(&[op(0, 1, Write(7)), op(2, 3, Swap { expect: 7, new: 8 }), op(4, 5, Read(8))]);
        bad(&[op(0, 1, Write(7)), op(2, 3, Swap { expect: 6, new: 8 })]);
        good(&[op(0, 1, Write(7)), op(2, 3, SwapFailed(7))]);
        bad(&[op(0, 1, Write(7)), op(2, 3, SwapFailed(6))]);
        bad(&[
            op(0, 1, Write(7)),
            op(2, 5, Swap { expect: 7, new: 8 }),
            op(2, 5, Swap { expect: 7, new: 9 }),
        ]);
    }

    #[test]
    fn an_unknown_swap_that_was_seen_pulls_in_what_it_saw() {
        good(&[unknown(0, Write(7)), unknown(1, Swap { expect: 7, new: 8 }), op(5, 6, Read(8))]);
        bad(&[
            unknown(0, Write(7)),
            unknown(1, Swap { expect: 7, new: 8 }),
            op(5, 6, Read(8)),
            op(7, 8, Read(7)),
        ]);
    }

    #[test]
    fn many_clients_with_a_real_order_pass_and_one_swapped_pair_fails() {
        let mut history = Vec::new();
        for i in 0..400u64 {
            history.push(op(i * 10, i * 10 + 25, Write(i + 1)));
            history.push(op(i * 10 + 26, i * 10 + 27, Read(i + 1)));
        }
        // Each read may see its own write only if the two later writes that overlap come after it: legal.
        good(&history);
        history.push(op(4100, 4101, Read(3)));
        bad(&history);
    }
}
