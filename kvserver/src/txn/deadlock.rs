//! Who waits for whom, and the circles among them: the graph that the deadlock detector keeps.
//!
//! Transactions are named by their start timestamps. An edge says that one transaction waits for another on a key. It
//! is remembered for [`EDGE_MS`] only, so that the edges of requests whose store has died, or whose clean-up got lost, go
//! by themselves; whoever still waits names its edge again before that.
//!
//! Invariant: the graph has no circle, because an edge that would close one is answered with the circle instead of
//! being added. [`Detector`] is how the runner of commands asks, wherever the detector is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::edge::Timer;
use super::error::{Deadlock, WaitEntry};
use crate::clock::Now;

/// How long an edge counts, in milliseconds. Longer than [`super::lock_waits::RECHECK_MS`], after which a waiter names
/// its edge again.
pub const EDGE_MS: u64 = 3_000;

/// How often expired edges are swept out, in milliseconds.
const SWEEP_MS: u64 = 1_000;

/// Finds deadlocks for those who wait.
pub trait Detector: Send + Sync + 'static {
    /// Notes that a transaction waits, and finds the circle that this closes. The answer may come late, and need not
    /// come at all while there is no circle: await it beside the wait, not before. A waiter asks each time it gets in line.
    fn detect(&self, edge: WaitEntry) -> BoxFuture<'static, Option<Deadlock>>;

    /// The transaction does not wait for this one on this key any more.
    fn done(&self, edge: WaitEntry);
}

/// A detector for waits on this store alone.
pub struct LocalDetector {
    graph: Mutex<WaitForGraph>,
    timer: Arc<dyn Timer>,
}

impl LocalDetector {
    /// Nobody waits yet; `timer` says when edges expire.
    pub fn new(timer: Arc<dyn Timer>) -> LocalDetector {
        LocalDetector { graph: Mutex::default(), timer }
    }

    /// Who waits for whom.
    pub fn entries(&self) -> Vec<WaitEntry> {
        self.graph.lock().entries(self.timer.now())
    }
}

impl Detector for LocalDetector {
    fn detect(&self, edge: WaitEntry) -> BoxFuture<'static, Option<Deadlock>> {
        let found = self.graph.lock().detect(&edge, self.timer.now());
        Box::pin(std::future::ready(found))
    }

    fn done(&self, edge: WaitEntry) {
        self.graph.lock().clean_up_wait_for(&edge);
    }
}

/// Edges to one holder: the keys, and until when they count.
type Keys = BTreeMap<Bytes, Now>;

/// See the file's head.
#[derive(Debug, Default)]
pub struct WaitForGraph {
    /// By who waits, then by whom it waits for.
    edges: BTreeMap<u64, BTreeMap<u64, Keys>>,
    swept: Now,
}

impl WaitForGraph {
    /// Adds an edge, or finds the circle that it would close.
    pub fn detect(&mut self, edge: &WaitEntry, now: Now) -> Option<Deadlock> {
        if now.since(self.swept) > SWEEP_MS * 1_000_000 {
            self.sweep(now);
        }
        if edge.txn == edge.wait_for {
            return None;
        }
        if let Some(mut chain) = self.path(edge.wait_for, edge.txn, now) {
            chain.push(edge.clone());
            return Some(Deadlock { lock_ts: edge.wait_for, key: edge.key.clone(), chain });
        }
        let keys = self.edges.entry(edge.txn).or_default().entry(edge.wait_for).or_default();
        keys.insert(edge.key.clone(), now.plus_ms(EDGE_MS));
        None
    }

    /// Removes one edge.
    pub fn clean_up_wait_for(&mut self, edge: &WaitEntry) {
        let Some(holders) = self.edges.get_mut(&edge.txn) else { return };
        let Some(keys) = holders.get_mut(&edge.wait_for) else { return };
        keys.remove(&edge.key);
        if keys.is_empty() {
            holders.remove(&edge.wait_for);
        }
        if holders.is_empty() {
            self.edges.remove(&edge.txn);
        }
    }

    /// Removes all edges of a transaction that waits no more.
    pub fn clean_up(&mut self, txn: u64) {
        self.edges.remove(&txn);
    }

    /// Forgets everything: another store was the detector meanwhile.
    pub fn clear(&mut self) {
        self.edges.clear();
    }

    /// All edges that count.
    pub fn entries(&self, now: Now) -> Vec<WaitEntry> {
        let mut entries = Vec::new();
        for (&txn, holders) in &self.edges {
            for (&wait_for, keys) in holders {
                let alive = keys.iter().filter(|(_, until)| now < **until);
                entries.extend(alive.map(|(key, _)| WaitEntry { txn, wait_for, key: key.clone() }));
            }
        }
        entries
    }

    /// The edges that lead from one transaction to another.
    fn path(&self, from: u64, to: u64, now: Now) -> Option<Vec<WaitEntry>> {
        let mut reached: BTreeMap<u64, WaitEntry> = BTreeMap::new();
        let mut seen = BTreeSet::from([from]);
        let mut open = vec![from];
        while let Some(txn) = open.pop() {
            for (&wait_for, keys) in self.edges.get(&txn).into_iter().flatten() {
                let Some((key, _)) = keys.iter().find(|(_, until)| now < **until) else { continue };
                if !seen.insert(wait_for) {
                    continue;
                }
                reached.insert(wait_for, WaitEntry { txn, wait_for, key: key.clone() });
                if wait_for == to {
                    return Some(walk_back(&reached, from, to));
                }
                open.push(wait_for);
            }
        }
        None
    }

    fn sweep(&mut self, now: Now) {
        self.swept = now;
        self.edges.retain(|_, holders| {
            holders.retain(|_, keys| {
                keys.retain(|_, until| now < *until);
                !keys.is_empty()
            });
            !holders.is_empty()
        });
    }
}

/// The path to `to`, each of whose transactions was `reached` by one edge.
fn walk_back(reached: &BTreeMap<u64, WaitEntry>, from: u64, to: u64) -> Vec<WaitEntry> {
    let (mut chain, mut at) = (Vec::new(), to);
    while at != from {
        let Some(edge) = reached.get(&at) else { break };
        chain.push(edge.clone());
        at = edge.txn;
    }
    chain.reverse();
    chain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Now = Now(1_000_000_000_000);

    fn edge(txn: u64, wait_for: u64, key: &'static str) -> WaitEntry {
        WaitEntry { txn, wait_for, key: key.into() }
    }

    #[test]
    fn a_circle_is_told_from_the_holder_back_to_it() {
        let mut graph = WaitForGraph::default();
        assert_eq!(graph.detect(&edge(1, 2, "a"), NOW), None);
        assert_eq!(graph.detect(&edge(2, 3, "b"), NOW), None);
        let deadlock = graph.detect(&edge(3, 1, "c"), NOW).expect("a circle");
        assert_eq!((deadlock.lock_ts, &deadlock.key[..]), (1, &b"c"[..]));
        assert_eq!(deadlock.chain, [edge(1, 2, "a"), edge(2, 3, "b"), edge(3, 1, "c")]);
        assert_eq!(graph.entries(NOW), [edge(1, 2, "a"), edge(2, 3, "b")], "the last edge was not added");
    }

    #[test]
    fn one_does_not_wait_for_oneself() {
        let mut graph = WaitForGraph::default();
        assert_eq!(graph.detect(&edge(1, 1, "a"), NOW), None);
        assert_eq!(graph.entries(NOW), []);
    }

    #[test]
    fn edges_go_key_by_key_or_all_at_once() {
        let mut graph = WaitForGraph::default();
        for key in ["a", "b"] {
            assert_eq!(graph.detect(&edge(1, 2, key), NOW), None);
        }
        graph.clean_up_wait_for(&edge(1, 2, "a"));
        assert!(graph.detect(&edge(2, 1, "c"), NOW).is_some(), "it still waits for b");
        graph.clean_up_wait_for(&edge(1, 2, "b"));
        assert_eq!(graph.detect(&edge(2, 1, "c"), NOW), None);
        graph.clean_up(2);
        assert_eq!(graph.entries(NOW), []);
    }

    #[test]
    fn an_edge_that_nobody_repeats_expires() {
        let mut graph = WaitForGraph::default();
        assert_eq!(graph.detect(&edge(1, 2, "a"), NOW), None);
        let before = NOW.plus_ms(EDGE_MS - 1);
        assert!(graph.detect(&edge(2, 1, "b"), before).is_some());
        assert_eq!(graph.detect(&edge(2, 1, "b"), NOW.plus_ms(EDGE_MS)), None);
    }

    /// Walks every path.
    fn naive(edges: &BTreeSet<(u64, u64)>, from: u64, to: u64, left: usize) -> bool {
        from == to
            || left > 0
                && edges.iter().filter(|(a, _)| *a == from).any(|(_, b)| naive(edges, *b, to, left - 1))
    }

    proptest! {
        #[test]
        fn a_circle_is_found_exactly_when_there_is_one(
            steps in proptest::collection::vec((1u64..7, 1u64..7, any::<bool>()), 1..40),
        ) {
            let (mut graph, mut edges) = (WaitForGraph::default(), BTreeSet::new());
            for (a, b, add) in steps {
                let asked = edge(a, b, "k");
                if !add {
                    graph.clean_up_wait_for(&asked);
                    edges.remove(&(a, b));
                    continue;
                }
                let found = graph.detect(&asked, NOW);
                prop_assert_eq!(found.is_some(), a != b && naive(&edges, b, a, 7));
                match found {
                    Some(deadlock) => {
                        prop_assert_eq!(deadlock.chain.first().map(|e| e.txn), Some(b));
                        prop_assert_eq!(deadlock.chain.last(), Some(&asked));
                        for pair in deadlock.chain.windows(2) {
                            prop_assert_eq!(pair[0].wait_for, pair[1].txn);
                            prop_assert!(edges.contains(&(pair[0].txn, pair[0].wait_for)));
                        }
                    }
                    None if a != b => drop(edges.insert((a, b))),
                    None => {}
                }
            }
        }
    }
}
