//! Reads that wait for a confirmation of leadership (ReadIndex, Raft thesis 6.4).
//!
//! Owns every waiting read from its arrival to its answer. The consensus library may drop a request for
//! confirmation silently, so a read leaves this queue only by an answer: confirmed and applied, refused at a
//! change of term, or past its deadline. Reads of one loop turn share one round of messages.

use std::collections::VecDeque;

use super::message::Callback;
use crate::clock::Now;
use crate::error::RegionError;

/// How long a round without readers is remembered.
const ROUND_LIFE_NS: u64 = 1_000_000_000;

/// Reads that share one round.
#[derive(Debug)]
struct Round {
    id: u64,
    asked: Now,
    /// Known once the quorum answered.
    index: Option<u64>,
    reads: Vec<Waiting>,
}

/// A read and the instant it gives up.
#[derive(Debug)]
struct Waiting {
    deadline: Now,
    done: Callback<()>,
}

/// The reads of one peer.
#[derive(Debug, Default)]
pub struct ReadQueue {
    next_id: u64,
    /// Not asked for yet.
    arrived: Vec<Waiting>,
    rounds: VecDeque<Round>,
}

impl ReadQueue {
    /// A read that gives up at `deadline`.
    pub fn push(&mut self, done: Callback<()>, deadline: Now) {
        self.arrived.push(Waiting { deadline, done });
    }

    /// True when reads wait for a round to begin.
    pub fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// True when a round is under way.
    pub fn is_asking(&self) -> bool {
        self.rounds.iter().any(|r| r.index.is_none())
    }

    /// Number of reads waiting.
    pub fn len(&self) -> usize {
        self.arrived.len() + self.rounds.iter().map(|r| r.reads.len()).sum::<usize>()
    }

    /// Begins a round for all arrived reads; gives its context, unique in this peer's life.
    pub fn begin(&mut self, now: Now) -> Vec<u8> {
        self.next_id += 1;
        let reads = std::mem::take(&mut self.arrived);
        self.rounds.push_back(Round { id: self.next_id, asked: now, index: None, reads });
        self.next_id.to_be_bytes().to_vec()
    }

    /// A quorum confirmed the round with this context, and `index` was committed then. Gives the instant from which
    /// the confirmation counts. Earlier rounds are confirmed with it.
    pub fn on_confirmed(&mut self, context: &[u8], index: u64) -> Option<Now> {
        let id = u64::from_be_bytes(context.try_into().ok()?);
        let position = self.rounds.iter().position(|r| r.id == id)?;
        for round in self.rounds.iter_mut().take(position + 1) {
            round.index.get_or_insert(index);
        }
        Some(self.rounds[position].asked)
    }

    /// Gives the reads that may go ahead now that `applied` is applied.
    pub fn take_ready(&mut self, applied: u64) -> Vec<Callback<()>> {
        let mut ready = Vec::new();
        while self.rounds.front().and_then(|r| r.index).is_some_and(|index| index <= applied) {
            ready.extend(self.rounds.pop_front().into_iter().flat_map(|r| r.reads).map(|w| w.done));
        }
        ready
    }

    /// Gives every waiting read: the term is over.
    pub fn take_all(&mut self) -> Vec<Callback<()>> {
        let waiting = self.rounds.drain(..).flat_map(|r| r.reads).chain(self.arrived.drain(..));
        waiting.map(|w| w.done).collect()
    }

    /// Gives the reads whose deadline has passed.
    pub fn take_expired(&mut self, now: Now) -> Vec<Callback<()>> {
        let mut expired = Vec::new();
        for reads in self.rounds.iter_mut().map(|r| &mut r.reads).chain([&mut self.arrived]) {
            while let Some(at) = reads.iter().position(|w| w.deadline <= now) {
                expired.push(reads.swap_remove(at).done);
            }
        }
        // A round without readers keeps a lease alive; it is forgotten when its answer would no longer be of use.
        self.rounds
            .retain(|r| r.index.is_some() || !r.reads.is_empty() || now.since(r.asked) < ROUND_LIFE_NS);
        expired
    }
}

/// What a read past its deadline is told.
pub fn expired(region_id: u64) -> RegionError {
    let reason = "no quorum confirmed the leader in time".into();
    RegionError::ReadIndexNotReady { region_id, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn push(q: &mut ReadQueue, deadline: u64, answered: &Arc<AtomicUsize>) {
        let answered = answered.clone();
        q.push(
            Callback::new(move |_| {
                answered.fetch_add(1, Ordering::Relaxed);
            }),
            Now(deadline),
        );
    }

    #[test]
    fn a_read_goes_ahead_only_when_confirmed_and_applied() {
        let (mut q, n) = (ReadQueue::default(), Arc::default());
        push(&mut q, 100, &n);
        let first = q.begin(Now(1));
        push(&mut q, 100, &n);
        let second = q.begin(Now(2));
        assert!(q.take_ready(u64::MAX).is_empty(), "not confirmed");
        assert_eq!(q.on_confirmed(&second, 9), Some(Now(2)), "confirms the first round too");
        assert!(q.take_ready(8).is_empty(), "not applied");
        assert_eq!(q.take_ready(9).len(), 2);
        assert_eq!((q.on_confirmed(&first, 9), q.len()), (None, 0));
    }

    #[test]
    fn reads_past_their_deadline_are_given_back_wherever_they_wait() {
        let (mut q, n) = (ReadQueue::default(), Arc::default());
        push(&mut q, 10, &n);
        push(&mut q, 30, &n);
        let _ = q.begin(Now(1));
        push(&mut q, 20, &n);
        assert_eq!(q.take_expired(Now(20)).len(), 2);
        assert_eq!((q.len(), q.is_asking()), (1, true));
        assert_eq!(q.take_all().len(), 1);
    }
}
