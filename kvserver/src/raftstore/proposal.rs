//! Writes on their way through the log, from their arrival to their answer.
//!
//! Owns two queues: writes that arrived in this turn and travel as one proposal, and proposed ones by index and
//! term. Invariants: a proposal is answered when its index is applied, with success only when the entry there
//! has the term it was proposed in; after leadership is lost a proposal is kept for a while, because the next
//! leader may still commit it, and then answered as undetermined: never with a lie.

use std::collections::VecDeque;

use super::apply::Applied;
use super::message::{Callback, Propose};
use crate::clock::Now;
use crate::error::{RegionError, RegionResult};

/// A proposal in the log.
#[derive(Debug)]
struct Pending {
    index: u64,
    term: u64,
    done: Callback<()>,
}

/// The writes of one peer.
#[derive(Debug, Default)]
pub struct ProposalQueue {
    pub(super) arrived: Vec<Propose>,
    pending: VecDeque<Pending>,
    /// When leadership was lost with proposals under way.
    orphaned: Option<Now>,
}

impl ProposalQueue {
    /// Notes a proposal at `index`.
    pub fn push(&mut self, index: u64, term: u64, done: Callback<()>) {
        self.orphaned = None;
        // The log was cut back since those were proposed here: another leader may still bring them to an end, but not
        // in this queue. Dropping them says that nobody knows.
        while self.pending.pop_back_if(|p| p.index >= index).is_some() {}
        self.pending.push_back(Pending { index, term, done });
    }

    /// Number of writes under way.
    pub fn len(&self) -> usize {
        self.arrived.len() + self.pending.len()
    }

    /// Gives the answers that follow from an apply.
    pub fn take_applied(&mut self, applied: &Applied) -> Vec<(Callback<()>, RegionResult<()>)> {
        let mut answers = Vec::new();
        let mut refused = applied.refused.iter().peekable();
        let mut terms = applied.terms.iter().peekable();
        while let Some(p) = self.pending.pop_front_if(|p| p.index <= applied.index) {
            while terms.next_if(|(last, _)| *last < p.index).is_some() {}
            while refused.next_if(|(index, _)| *index < p.index).is_some() {}
            let result = match (terms.peek(), refused.peek()) {
                (Some((_, term)), _) if *term != p.term => Err(RegionError::StaleCommand),
                (None, _) => Err(RegionError::Undetermined("a snapshot covered the command's index".into())),
                (Some(_), Some((index, error))) if *index == p.index => Err(error.clone()),
                (Some(_), _) => Ok(()),
            };
            answers.push((p.done, result));
        }
        answers
    }

    /// Leadership is lost. Writes not proposed yet are given back; proposed ones wait for their fate.
    pub fn on_leadership_lost(&mut self, now: Now) -> Vec<Callback<()>> {
        if !self.pending.is_empty() {
            self.orphaned.get_or_insert(now);
        }
        self.arrived.drain(..).map(|p| p.done).collect()
    }

    /// Gives the proposals whose fate did not become known within `patience_ns` of losing leadership.
    pub fn take_orphaned(&mut self, now: Now, patience_ns: u64) -> Vec<Callback<()>> {
        if self.orphaned.is_none_or(|since| now.since(since) < patience_ns) {
            return Vec::new();
        }
        self.orphaned = None;
        self.pending.drain(..).map(|p| p.done).collect()
    }

    /// Gives everything: the peer goes away.
    pub fn take_all(&mut self) -> Vec<Callback<()>> {
        let arrived = self.arrived.drain(..).map(|p| p.done);
        arrived.chain(self.pending.drain(..).map(|p| p.done)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    type Answers = Arc<Mutex<Vec<(u64, RegionResult<()>)>>>;

    fn queue(proposals: &[(u64, u64)]) -> (ProposalQueue, Answers) {
        let (mut q, answers) = (ProposalQueue::default(), Answers::default());
        for &(index, term) in proposals {
            let answers = answers.clone();
            q.push(index, term, Callback::new(move |result| answers.lock().push((index, result))));
        }
        (q, answers)
    }

    fn apply(q: &mut ProposalQueue, applied: Applied) {
        q.take_applied(&applied).into_iter().for_each(|(done, result)| done.call(result));
    }

    #[test]
    fn a_proposal_succeeds_only_at_its_own_index_and_term() {
        let (mut q, answers) = queue(&[(6, 2), (7, 2), (9, 2)]);
        apply(&mut q, Applied { index: 8, terms: vec![(6, 2), (8, 3)], ..Default::default() });
        assert_eq!(*answers.lock(), [(6, Ok(())), (7, Err(RegionError::StaleCommand))]);
        assert_eq!(q.len(), 1);
    }

    #[test]
    fn a_command_refused_at_apply_says_why() {
        let (mut q, answers) = queue(&[(6, 2), (7, 2)]);
        let refused = vec![(7, RegionError::EpochNotMatch { current: vec![] })];
        apply(&mut q, Applied { index: 7, terms: vec![(7, 2)], refused, ..Default::default() });
        let error = RegionError::EpochNotMatch { current: vec![] };
        assert_eq!(*answers.lock(), [(6, Ok(())), (7, Err(error))]);
    }

    #[test]
    fn proposals_of_a_lost_leader_wait_and_then_are_undetermined_by_being_dropped() {
        let (mut q, answers) = queue(&[(6, 2)]);
        assert!(q.on_leadership_lost(Now(10)).is_empty());
        assert!(q.take_orphaned(Now(109), 100).is_empty());
        assert_eq!(q.take_orphaned(Now(110), 100).len(), 1);
        assert!(matches!(answers.lock()[..], [(6, Err(RegionError::Undetermined(_)))]));
    }

    #[test]
    fn proposals_at_and_beyond_the_index_of_a_new_one_are_undetermined_and_do_not_hide_it() {
        let (mut q, answers) = queue(&[(6, 2), (7, 2), (9, 2), (7, 4)]);
        apply(&mut q, Applied { index: 7, terms: vec![(6, 2), (7, 4)], ..Default::default() });
        apply(&mut q, Applied { index: 9, terms: vec![(9, 5)], ..Default::default() });
        let mut told = answers.lock().clone();
        told.sort_by_key(|(index, result)| (*index, result.is_ok()));
        assert!(matches!(
            told[..],
            [
                (6, Ok(())),
                (7, Err(RegionError::Undetermined(_))),
                (7, Ok(())),
                (9, Err(RegionError::Undetermined(_)))
            ]
        ));
    }

    #[test]
    fn an_index_that_a_snapshot_jumped_over_is_undetermined() {
        let (mut q, answers) = queue(&[(6, 2)]);
        apply(&mut q, Applied { index: 20, ..Default::default() });
        assert!(matches!(answers.lock()[..], [(6, Err(RegionError::Undetermined(_)))]));
    }
}
