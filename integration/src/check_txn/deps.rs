//! Who saw and overwrote whom, read off values alone, and what is wrong without any cycle.
//!
//! Lists give the whole order of a key's versions: every list that was seen or written holds all that came before it.
//! Registers give a part of it: who reads a value and overwrites it comes next, and nothing comes before the absent
//! value. Values must be unique per key, and a transaction's reads at its start are left out when it also read or
//! wrote under locks of a later time: they show another instant. Reads under locks count once their transaction is known
//! to have committed: until then the locks may have been lost between two of them.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Edge, Graph, Kind};
use super::{Fate, Key, Op, Txn, Value};

/// What keys hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each write puts one number at the end.
    Lists,
    /// Each write replaces the value by another one.
    Registers,
}

/// What can be wrong with a history. The names are Adya's where there are such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phenomenon {
    /// A transaction contradicts itself.
    Internal,
    /// A value that nobody wrote.
    Garbage,
    /// G1a: a value of a transaction that failed.
    AbortedRead,
    /// G1b: a value that its transaction itself replaced.
    IntermediateRead,
    /// Two lists of a key of which neither begins with the other.
    TornOrder,
    /// Two transactions read the same version and both replaced it.
    LostUpdate,
    /// G0.
    WriteCycle,
    /// G1c.
    InformationCycle,
    /// G-single: one anti-dependency.
    ReadSkew,
    /// Several anti-dependencies, no two of them adjacent: snapshot isolation excludes it.
    LongFork,
    /// G2-item: adjacent anti-dependencies; snapshot isolation allows it.
    WriteSkew,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    pub phenomenon: Phenomenon,
    pub what: String,
}

/// What a transaction saw of a key before it wrote it, and what it left there.
#[derive(Clone, Debug, Default)]
struct Touched {
    seen: Option<Value>,
    left: Option<Value>,
}

/// Everything that is known without a cycle.
#[derive(Debug)]
pub struct Dependencies {
    pub graph: Graph,
    pub anomalies: Vec<Anomaly>,
}

/// Infers the dependencies of a history.
pub fn infer(history: &[Txn], shape: Shape) -> Dependencies {
    let mut inference = Inference {
        history,
        touched: vec![BTreeMap::new(); history.len()],
        writers: BTreeMap::new(),
        found: Dependencies { graph: Graph::new(history.len()), anomalies: Vec::new() },
    };
    inference.note_writers();
    (0..history.len()).for_each(|txn| inference.follow(txn));
    inference.lost_updates();
    let keys: BTreeSet<Key> = inference.touched.iter().flat_map(|t| t.keys().copied()).collect();
    for key in keys {
        match shape {
            Shape::Lists => inference.order_list(key),
            Shape::Registers => inference.order_register(key),
        }
    }
    inference.found
}

struct Inference<'h> {
    history: &'h [Txn],
    /// Per transaction and key. Only of transactions that count: failed ones are looked at, but depend on nothing.
    touched: Vec<BTreeMap<Key, Touched>>,
    /// Who wrote a number, and whether it was the last one it wrote to the key.
    writers: BTreeMap<(Key, u64), (usize, bool)>,
    found: Dependencies,
}

impl Inference<'_> {
    fn report(&mut self, phenomenon: Phenomenon, what: String) {
        self.found.anomalies.push(Anomaly { phenomenon, what });
    }

    fn note_writers(&mut self) {
        for (at, txn) in self.history.iter().enumerate() {
            let mut last: BTreeMap<Key, u64> = BTreeMap::new();
            for op in &txn.ops {
                let Op::Write { key, value, .. } = op else { continue };
                let Some(number) = value.last() else { continue };
                if let Some(replaced) = last.insert(*key, *number)
                    && let Some(writer) = self.writers.get_mut(&(*key, replaced))
                {
                    writer.1 = false;
                }
                self.writers.insert((*key, *number), (at, true));
            }
        }
    }

    /// Follows one transaction step by step.
    fn follow(&mut self, at: usize) {
        let history = self.history;
        let txn = &history[at];
        let latest = txn.holds().values().copied().max().unwrap_or(txn.start_ts);
        let mut known: BTreeMap<Key, (Value, u64)> = BTreeMap::new();
        let mut touched: BTreeMap<Key, Touched> = BTreeMap::new();
        for op in &txn.ops {
            match op {
                Op::Lock { .. } => {}
                Op::Write { key, value, .. } => {
                    known.insert(*key, (value.clone(), u64::MAX));
                    touched.entry(*key).or_default().left = Some(value.clone());
                }
                Op::Read { key, seen, at: ts } => {
                    if let Some((value, when)) = known.get(key)
                        && (when == ts || *when == u64::MAX)
                        && value != seen
                    {
                        let what = format!("{} knew {value:?} of key {key}, and read {seen:?}", txn.name());
                        self.report(Phenomenon::Internal, what);
                    }
                    let written = known.get(key).is_some_and(|(_, when)| *when == u64::MAX);
                    if !written {
                        known.insert(*key, (seen.clone(), *ts));
                        self.look_at(at, *key, seen);
                        let kept = *ts > txn.start_ts && txn.commit_ts().is_some();
                        if kept || *ts == txn.start_ts && latest == txn.start_ts {
                            touched.entry(*key).or_default().seen = Some(seen.clone());
                        }
                    }
                }
            }
        }
        if txn.fate != Fate::Aborted {
            self.touched[at] = touched;
        }
    }

    /// What one read says by itself: who wrote what was seen.
    fn look_at(&mut self, at: usize, key: Key, seen: &Value) {
        let name = self.history[at].name();
        for (position, number) in seen.iter().enumerate() {
            let Some((writer, last)) = self.writers.get(&(key, *number)).copied() else {
                self.report(
                    Phenomenon::Garbage,
                    format!("{name} read {number} in key {key}: nobody wrote it"),
                );
                continue;
            };
            if self.history[writer].fate == Fate::Aborted && writer != at {
                let by = self.history[writer].name();
                let what =
                    format!("{name} read {number} in key {key}, which {by} wrote, and that one failed");
                self.report(Phenomenon::AbortedRead, what);
            }
            if position + 1 == seen.len() && !last && writer != at {
                let by = self.history[writer].name();
                let what = format!("{name} read {number} in key {key}, which {by} itself replaced");
                self.report(Phenomenon::IntermediateRead, what);
            }
        }
    }

    /// Two committed transactions that began with the same version of a key and both replaced it.
    fn lost_updates(&mut self) {
        let mut replaced: BTreeMap<(Key, Value), usize> = BTreeMap::new();
        for at in 0..self.history.len() {
            if self.history[at].commit_ts().is_none() {
                continue;
            }
            let pairs = self.touched[at].iter().filter(|(_, t)| t.left.is_some());
            let pairs: Vec<(Key, Value)> = pairs.filter_map(|(k, t)| Some((*k, t.seen.clone()?))).collect();
            for (key, seen) in pairs {
                if let Some(other) = replaced.insert((key, seen.clone()), at) {
                    let (a, b) = (self.history[other].name(), self.history[at].name());
                    let what = format!("{a} and {b} both read {seen:?} in key {key} and both replaced it");
                    self.report(Phenomenon::LostUpdate, what);
                }
            }
        }
    }

    /// The longest list holds the order of the key's versions.
    fn order_list(&mut self, key: Key) {
        let mut longest: Value = Value::new();
        let mut torn: Vec<(Value, Value)> = Vec::new();
        for (at, touched) in self.touched.iter().enumerate() {
            let Some(touched) = touched.get(&key) else { continue };
            // What an unknown transaction would have left counts once somebody sees it.
            let left = touched.left.as_ref().filter(|_| self.history[at].commit_ts().is_some());
            for list in touched.seen.iter().chain(left) {
                if list.starts_with(&longest) {
                    longest.clone_from(list);
                } else if !longest.starts_with(list) {
                    torn.push((list.clone(), longest.clone()));
                }
            }
        }
        for (list, other) in torn {
            self.report(Phenomenon::TornOrder, format!("key {key} was {list:?} and {other:?}"));
        }
        let writer = |number: &u64| self.writers.get(&(key, *number)).map(|(writer, _)| *writer);
        let mut edges = Vec::new();
        for pair in longest.windows(2) {
            if let [Some(from), Some(to)] = [&pair[0], &pair[1]].map(writer) {
                edges.push(Edge { from, to, kind: Kind::WriteWrite, key });
            }
        }
        let position: BTreeMap<u64, usize> = longest.iter().enumerate().map(|(i, n)| (*n, i)).collect();
        for (reader, touched) in self.touched.iter().enumerate() {
            let Some(seen) = touched.get(&key).and_then(|t| t.seen.as_ref()) else { continue };
            let next = match seen.last() {
                None => longest.first(),
                Some(last) => {
                    edges.extend(writer(last).map(|from| Edge {
                        from,
                        to: reader,
                        kind: Kind::WriteRead,
                        key,
                    }));
                    position.get(last).and_then(|i| longest.get(i + 1))
                }
            };
            let to = next.and_then(writer);
            edges.extend(to.map(|to| Edge { from: reader, to, kind: Kind::ReadWrite, key }));
        }
        edges.into_iter().for_each(|edge| self.found.graph.add(edge));
    }

    /// Who replaced what it had read comes after it; the absent value comes before all.
    fn order_register(&mut self, key: Key) {
        let mut next: BTreeMap<&Value, Vec<usize>> = BTreeMap::new();
        let absent = Value::new();
        for (at, touched) in self.touched.iter().enumerate() {
            let Some(touched) = touched.get(&key) else { continue };
            if touched.left.is_some() && self.history[at].commit_ts().is_some() {
                next.entry(&absent).or_default().push(at);
                if let Some(seen) = touched.seen.as_ref().filter(|seen| !seen.is_empty()) {
                    next.entry(seen).or_default().push(at);
                }
            }
        }
        let mut edges = Vec::new();
        for (reader, touched) in self.touched.iter().enumerate() {
            let Some(touched) = touched.get(&key) else { continue };
            let Some(seen) = &touched.seen else { continue };
            let writer = seen.last().and_then(|n| self.writers.get(&(key, *n)));
            if let Some((from, _)) = writer.copied() {
                edges.push(Edge { from, to: reader, kind: Kind::WriteRead, key });
                if touched.left.is_some() && self.history[reader].commit_ts().is_some() {
                    edges.push(Edge { from, to: reader, kind: Kind::WriteWrite, key });
                }
            }
            for to in next.get(seen).into_iter().flatten() {
                edges.push(Edge { from: reader, to: *to, kind: Kind::ReadWrite, key });
            }
        }
        edges.into_iter().for_each(|edge| self.found.graph.add(edge));
    }
}
