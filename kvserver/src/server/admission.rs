//! How much work the server takes on at once: requests and the bytes they bring.
//!
//! Who finds no room waits in line, first come first served; the caller sets a deadline and sheds the request
//! with a typed error when it passes. A request larger than the whole budget is let in alone.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// What a piece of work costs while it is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub requests: usize,
    pub bytes: usize,
}

/// The budget of a server.
#[derive(Debug)]
pub struct Admission {
    max: Cost,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: Cost,
    next_ticket: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    waker: Waker,
}

impl Admission {
    /// A budget of `max` in flight.
    pub fn new(max: Cost) -> Arc<Admission> {
        Arc::new(Admission { max, state: Mutex::default() })
    }

    /// Lets the work in if there is room and nobody waits.
    pub fn try_enter(self: &Arc<Self>, cost: Cost) -> Option<Permit> {
        let mut state = self.state.lock();
        if !state.waiting.is_empty() || !self.fits(state.used, cost) {
            return None;
        }
        Some(self.take(&mut state, cost))
    }

    /// Waits in line for room. Dropping the future leaves the line.
    pub fn enter(self: &Arc<Self>, cost: Cost) -> Enter {
        Enter { admission: self.clone(), cost, ticket: None }
    }

    /// What is in flight now.
    pub fn used(&self) -> Cost {
        self.state.lock().used
    }

    fn fits(&self, used: Cost, cost: Cost) -> bool {
        let requests = used.requests + cost.requests <= self.max.requests;
        let bytes = used.bytes + cost.bytes <= self.max.bytes;
        used == Cost::default() || (requests && bytes)
    }

    fn take(self: &Arc<Self>, state: &mut State, cost: Cost) -> Permit {
        state.used.requests += cost.requests;
        state.used.bytes += cost.bytes;
        Permit { admission: self.clone(), cost }
    }

    /// Tells the first in line to look again.
    fn wake_first(state: &State) -> Option<Waker> {
        state.waiting.front().map(|w| w.waker.clone())
    }
}

/// Becomes a [`Permit`].
#[derive(Debug)]
pub struct Enter {
    admission: Arc<Admission>,
    cost: Cost,
    ticket: Option<u64>,
}

impl Future for Enter {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let admission = self.admission.clone();
        let mut state = admission.state.lock();
        let first = state.waiting.front().map(|w| w.ticket);
        if (first.is_none() || first == self.ticket) && admission.fits(state.used, self.cost) {
            if self.ticket.take().is_some() {
                state.waiting.pop_front();
            }
            let permit = admission.take(&mut state, self.cost);
            let next = Admission::wake_first(&state);
            drop(state);
            if let Some(waker) = next {
                waker.wake();
            }
            return Poll::Ready(permit);
        }
        match self.ticket {
            Some(ticket) => {
                if let Some(place) = state.waiting.iter_mut().find(|w| w.ticket == ticket) {
                    place.waker.clone_from(cx.waker());
                }
            }
            None => {
                let ticket = state.next_ticket;
                state.next_ticket += 1;
                state.waiting.push_back(Waiting { ticket, waker: cx.waker().clone() });
                self.ticket = Some(ticket);
            }
        }
        Poll::Pending
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.admission.state.lock();
        state.waiting.retain(|w| w.ticket != ticket);
        let next = Admission::wake_first(&state);
        drop(state);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

/// Room in the budget, given back when this is dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    cost: Cost,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.admission.state.lock();
        state.used.requests -= self.cost.requests;
        state.used.bytes -= self.cost.bytes;
        let next = Admission::wake_first(&state);
        drop(state);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(requests: usize, bytes: usize) -> Cost {
        Cost { requests, bytes }
    }

    fn poll(enter: &mut Enter) -> Option<Permit> {
        match Pin::new(enter).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    #[test]
    fn room_is_given_in_the_order_of_asking() {
        let admission = Admission::new(cost(10, 100));
        let first = admission.try_enter(cost(1, 90)).unwrap();
        let (mut big, mut small) = (admission.enter(cost(1, 50)), admission.enter(cost(1, 5)));
        assert!(poll(&mut big).is_none());
        assert!(poll(&mut small).is_none(), "5 bytes would fit, but 50 asked before");
        assert!(admission.try_enter(cost(1, 1)).is_none());
        drop(first);
        let big = poll(&mut big).unwrap();
        let small = poll(&mut small).unwrap();
        assert_eq!(admission.used(), cost(2, 55));
        drop((big, small));
        assert_eq!(admission.used(), cost(0, 0));
    }

    #[test]
    fn one_that_leaves_the_line_does_not_hold_up_the_next() {
        let admission = Admission::new(cost(1, 100));
        let first = admission.try_enter(cost(1, 0)).unwrap();
        let (mut a, mut b) = (admission.enter(cost(1, 0)), admission.enter(cost(1, 0)));
        assert!(poll(&mut a).is_none() && poll(&mut b).is_none());
        drop(a);
        drop(first);
        assert!(poll(&mut b).is_some());
    }

    #[test]
    fn work_larger_than_the_budget_runs_alone() {
        let admission = Admission::new(cost(10, 100));
        let huge = admission.try_enter(cost(1, 1000)).unwrap();
        assert!(admission.try_enter(cost(1, 0)).is_none());
        drop(huge);
        assert!(admission.try_enter(cost(1, 0)).is_some());
    }
}
