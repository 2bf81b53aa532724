//! A graph of transactions and how they depend on each other, and the search for cycles in it.
//!
//! Nodes are positions in a history. Edges have a kind, so that a search can be restricted to some kinds.

use std::collections::{BTreeMap, VecDeque};

use super::Key;

/// How the transaction at an edge's end depends on the one at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It overwrote what the first one wrote.
    WriteWrite,
    /// It read what the first one wrote.
    WriteRead,
    /// It overwrote what the first one had read.
    ReadWrite,
}

/// One dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub from: usize,
    pub to: usize,
    pub kind: Kind,
    pub key: Key,
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct Graph {
    out: Vec<Vec<Edge>>,
}

impl Graph {
    /// A graph of `nodes` nodes without edges.
    pub fn new(nodes: usize) -> Graph {
        Graph { out: vec![Vec::new(); nodes] }
    }

    /// Adds an edge between two different nodes.
    pub fn add(&mut self, edge: Edge) {
        if edge.from != edge.to && !self.out[edge.from].contains(&edge) {
            self.out[edge.from].push(edge);
        }
    }

    /// Every edge.
    pub fn edges(&self) -> impl Iterator<Item = Edge> + '_ {
        self.out.iter().flatten().copied()
    }

    /// The shortest way from one node to another by edges of `kinds`. With `apart`, no edge of kind
    /// [`Kind::ReadWrite`] follows another, and none is first or last: the way stands between two ends of such an edge.
    pub fn way(&self, from: usize, to: usize, kinds: &[Kind], apart: bool) -> Option<Vec<Edge>> {
        let start = (from, apart);
        let mut reached: Reached = BTreeMap::new();
        let mut open = VecDeque::from([start]);
        while let Some((node, anti)) = open.pop_front() {
            for edge in self.out[node].iter().filter(|edge| kinds.contains(&edge.kind)) {
                let is_anti = apart && edge.kind == Kind::ReadWrite;
                let next = (edge.to, is_anti);
                if is_anti && anti || next == start || reached.contains_key(&next) {
                    continue;
                }
                reached.insert(next, (*edge, (node, anti)));
                if next == (to, false) {
                    return Some(trace(&reached, next));
                }
                open.push_back(next);
            }
        }
        None
    }

    /// For every node the number of its strongly connected component over edges of `kinds` (Tarjan, without recursion).
    pub fn components(&self, kinds: &[Kind]) -> Vec<usize> {
        let mut search = Search {
            graph: self,
            kinds,
            next: 0,
            order: vec![None; self.out.len()],
            low: vec![0; self.out.len()],
            on_stack: vec![false; self.out.len()],
            stack: Vec::new(),
            component: vec![0; self.out.len()],
            components: 0,
        };
        (0..self.out.len()).for_each(|node| search.visit(node));
        search.component
    }
}

/// A node, and whether an anti-dependency led to it.
type State = (usize, bool);
/// By which edge, and from where, a state was reached first.
type Reached = BTreeMap<State, (Edge, State)>;

/// The way that a search took to `end`, first edge first.
fn trace(reached: &Reached, end: State) -> Vec<Edge> {
    let mut way = Vec::new();
    let mut at = end;
    while let Some((edge, before)) = reached.get(&at) {
        way.push(*edge);
        at = *before;
    }
    way.reverse();
    way
}

struct Search<'g> {
    graph: &'g Graph,
    kinds: &'g [Kind],
    next: usize,
    order: Vec<Option<usize>>,
    low: Vec<usize>,
    on_stack: Vec<bool>,
    stack: Vec<usize>,
    component: Vec<usize>,
    components: usize,
}

impl Search<'_> {
    fn visit(&mut self, root: usize) {
        if self.order[root].is_some() {
            return;
        }
        self.enter(root);
        // Nodes under way, each with the edge that is next.
        let mut path: Vec<(usize, usize)> = vec![(root, 0)];
        while let Some((node, at)) = path.pop() {
            let Some(edge) = self.graph.out[node].get(at) else {
                self.leave(node);
                if let Some((parent, _)) = path.last() {
                    self.low[*parent] = self.low[*parent].min(self.low[node]);
                }
                continue;
            };
            path.push((node, at + 1));
            if !self.kinds.contains(&edge.kind) {
                continue;
            }
            match self.order[edge.to] {
                None => {
                    self.enter(edge.to);
                    path.push((edge.to, 0));
                }
                Some(order) if self.on_stack[edge.to] => self.low[node] = self.low[node].min(order),
                Some(_) => {}
            }
        }
    }

    fn enter(&mut self, node: usize) {
        self.order[node] = Some(self.next);
        self.low[node] = self.next;
        self.next += 1;
        self.stack.push(node);
        self.on_stack[node] = true;
    }

    fn leave(&mut self, node: usize) {
        if Some(self.low[node]) != self.order[node] {
            return;
        }
        while let Some(member) = self.stack.pop() {
            self.on_stack[member] = false;
            self.component[member] = self.components;
            if member == node {
                break;
            }
        }
        self.components += 1;
    }
}
