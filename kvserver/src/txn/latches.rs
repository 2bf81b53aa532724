//! Latches: commands that read a key and then write it take turns.
//!
//! A key hashes to one of a fixed number of slots, and a slot is held by one command at a time, in the order of
//! asking. A command takes its slots in ascending order, so two commands never wait for each other.
//!
//! INV-LATCH: a [`Guard`] is held from before the command's snapshot until its write is visible or has
//! definitely failed. It is moved into the write's callback for that: a client that hangs up does not release
//! it early.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// A fixed table of slots.
#[derive(Debug)]
pub struct Latches {
    slots: Box<[Mutex<Slot>]>,
    tickets: AtomicU64,
}

/// The command in front holds the slot, the others wait behind it.
#[derive(Debug, Default)]
struct Slot {
    queue: VecDeque<Place>,
}

#[derive(Debug)]
struct Place {
    ticket: u64,
    waker: Option<Waker>,
}

impl Latches {
    /// A table with at least `slots` slots, rounded up to a power of two.
    pub fn new(slots: usize) -> Arc<Latches> {
        let slots = (0..slots.max(1).next_power_of_two()).map(|_| Mutex::default()).collect();
        Arc::new(Latches { slots, tickets: AtomicU64::new(0) })
    }

    /// Waits until every slot of `keys` is held. Dropping the future gives up its place.
    pub fn acquire<'k>(self: &Arc<Self>, keys: impl IntoIterator<Item = &'k [u8]>) -> Acquire {
        let mask = self.slots.len() - 1;
        let mut slots: Vec<u32> =
            keys.into_iter().map(|key| (crc32c::crc32c(key) as usize & mask) as u32).collect();
        slots.sort_unstable();
        slots.dedup();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let held = Held { latches: self.clone(), slots, ticket, queued: 0 };
        Acquire { held: Some(held) }
    }
}

/// Places in the queues of the first `queued` slots.
#[derive(Debug)]
struct Held {
    latches: Arc<Latches>,
    slots: Vec<u32>,
    ticket: u64,
    queued: usize,
}

impl Held {
    fn slot(&self, i: usize) -> &Mutex<Slot> {
        &self.latches.slots[self.slots[i] as usize]
    }

    /// True once all slots are held. `queued` counts the slot that is waited for, too.
    fn poll(&mut self, waker: &Waker) -> bool {
        loop {
            if self.queued > 0 {
                let mut slot = self.slot(self.queued - 1).lock();
                if slot.queue.front().is_some_and(|p| p.ticket != self.ticket) {
                    if let Some(place) = slot.queue.iter_mut().find(|p| p.ticket == self.ticket) {
                        place.waker = Some(waker.clone());
                    }
                    return false;
                }
            }
            if self.queued == self.slots.len() {
                return true;
            }
            self.slot(self.queued).lock().queue.push_back(Place { ticket: self.ticket, waker: None });
            self.queued += 1;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for i in 0..self.queued {
            let mut slot = self.slot(i).lock();
            slot.queue.retain(|p| p.ticket != self.ticket);
            let next = slot.queue.front_mut().and_then(|p| p.waker.take());
            drop(slot);
            if let Some(waker) = next {
                waker.wake();
            }
        }
    }
}

/// Becomes a [`Guard`].
#[derive(Debug)]
pub struct Acquire {
    held: Option<Held>,
}

impl Future for Acquire {
    type Output = Guard;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Guard> {
        let held = self.held.as_mut().expect("polled after it was ready");
        if !held.poll(cx.waker()) {
            return Poll::Pending;
        }
        Poll::Ready(Guard { _held: self.held.take() })
    }
}

/// The slots are held until this is dropped.
#[derive(Debug)]
pub struct Guard {
    _held: Option<Held>,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(acquire: &mut Acquire, wakes: &Arc<Wakes>) -> Option<Guard> {
        match Pin::new(acquire).poll(&mut Context::from_waker(&Waker::from(wakes.clone()))) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn waiters_are_served_in_order() {
        let latches = Latches::new(4);
        let wakes: [Arc<Wakes>; 3] = Default::default();
        let mut asks: Vec<Acquire> = (0..3).map(|_| latches.acquire([&b"k"[..]])).collect();
        let first = poll(&mut asks[0], &wakes[0]).unwrap();
        assert!(poll(&mut asks[1], &wakes[1]).is_none() && poll(&mut asks[2], &wakes[2]).is_none());
        drop(first);
        assert_eq!((wakes[1].0.load(Ordering::SeqCst), wakes[2].0.load(Ordering::SeqCst)), (1, 0));
        assert!(poll(&mut asks[2], &wakes[2]).is_none(), "the third does not overtake the second");
        let second = poll(&mut asks[1], &wakes[1]).unwrap();
        drop(second);
        assert!(poll(&mut asks[2], &wakes[2]).is_some());
    }

    #[test]
    fn a_waiter_that_gives_up_lets_the_next_one_in() {
        let latches = Latches::new(1);
        let wakes: Arc<Wakes> = Default::default();
        let mut asks: Vec<Acquire> = (0..3).map(|_| latches.acquire([&b"k"[..]])).collect();
        let first = poll(&mut asks[0], &wakes).unwrap();
        assert!(poll(&mut asks[1], &wakes).is_none() && poll(&mut asks[2], &wakes).is_none());
        drop(asks.remove(1));
        drop(first);
        assert!(poll(&mut asks[1], &wakes).is_some());
    }

    #[test]
    fn keys_in_opposite_order_do_not_block_each_other_for_ever() {
        let latches = Latches::new(64);
        let wakes: Arc<Wakes> = Default::default();
        let (a, b) = (&b"a"[..], &b"b"[..]);
        let mut one = latches.acquire([a, b]);
        let mut two = latches.acquire([b, a]);
        let first = poll(&mut one, &wakes).unwrap();
        assert!(poll(&mut two, &wakes).is_none());
        drop(first);
        assert!(poll(&mut two, &wakes).is_some());
    }

    #[test]
    fn a_key_named_twice_is_taken_once() {
        let latches = Latches::new(64);
        let wakes: Arc<Wakes> = Default::default();
        assert!(poll(&mut latches.acquire([&b"a"[..], b"a"]), &wakes).is_some());
        assert!(poll(&mut latches.acquire([&b"a"[..]]), &wakes).is_some());
    }
}
