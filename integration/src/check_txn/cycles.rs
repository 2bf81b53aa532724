//! Isolation without timestamps: cycles of who saw and overwrote whom, after Adya, and Kingsbury and Alvaro's Elle.
//!
//! Snapshot isolation is exactly the absence of the direct anomalies and of every cycle in which no two
//! anti-dependencies are adjacent. A cycle that has adjacent ones is write skew: serializability excludes it too.

use super::deps::{Anomaly, Phenomenon, Shape, infer};
use super::graph::{Edge, Graph, Kind};
use super::{Txn, Verdict, broken};

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    SnapshotIsolation,
    Serializable,
}

/// Everything wrong with a history, at most one cycle of a kind for each group of entangled transactions.
pub fn find(history: &[Txn], shape: Shape) -> Vec<Anomaly> {
    let deps = infer(history, shape);
    let mut found = deps.anomalies;
    let search = Cycles { history, graph: &deps.graph };
    found.extend(search.of_dependencies(&[Kind::WriteWrite]));
    found.extend(search.of_dependencies(&[Kind::WriteWrite, Kind::WriteRead]));
    found.extend(search.of_anti_dependencies());
    found
}

/// Demands a level of a history.
pub fn check(history: &[Txn], shape: Shape, level: Level) -> Verdict {
    let found = find(history, shape);
    let forbidden = |a: &&Anomaly| level == Level::Serializable || a.phenomenon != Phenomenon::WriteSkew;
    match found.iter().find(forbidden) {
        None => Ok(()),
        Some(anomaly) => broken("cycles", format!("{:?}: {}", anomaly.phenomenon, anomaly.what)),
    }
}

struct Cycles<'h> {
    history: &'h [Txn],
    graph: &'h Graph,
}

const DEPENDENCIES: &[Kind] = &[Kind::WriteWrite, Kind::WriteRead];
const ALL: &[Kind] = &[Kind::WriteWrite, Kind::WriteRead, Kind::ReadWrite];

impl Cycles<'_> {
    /// Cycles of one kind of edge, or of two: then with at least one of the last.
    fn of_dependencies(&self, kinds: &[Kind]) -> Vec<Anomaly> {
        let component = self.graph.components(kinds);
        let (last, phenomenon) = match kinds {
            [Kind::WriteWrite] => (Kind::WriteWrite, Phenomenon::WriteCycle),
            _ => (Kind::WriteRead, Phenomenon::InformationCycle),
        };
        let mut told = Vec::new();
        let mut found = Vec::new();
        for edge in self.graph.edges().filter(|e| e.kind == last && component[e.from] == component[e.to]) {
            if told.contains(&component[edge.from]) {
                continue;
            }
            if let Some(way) = self.graph.way(edge.to, edge.from, kinds, false) {
                told.push(component[edge.from]);
                found.push(self.anomaly(phenomenon, edge, &way));
            }
        }
        found
    }

    /// Cycles with anti-dependencies, each kind once for each group of entangled transactions.
    fn of_anti_dependencies(&self) -> Vec<Anomaly> {
        let component = self.graph.components(ALL);
        let mut told: Vec<(usize, Phenomenon)> = Vec::new();
        let mut found = Vec::new();
        let entangled = |e: &Edge| e.kind == Kind::ReadWrite && component[e.from] == component[e.to];
        for edge in self.graph.edges().filter(entangled) {
            let Some((phenomenon, way)) = self.closes(&edge) else { continue };
            let this = (component[edge.from], phenomenon);
            if !told.contains(&this) {
                told.push(this);
                found.push(self.anomaly(phenomenon, edge, &way));
            }
        }
        found
    }

    /// The worst cycle that an anti-dependency is in.
    fn closes(&self, edge: &Edge) -> Option<(Phenomenon, Vec<Edge>)> {
        let (from, to) = (edge.to, edge.from);
        if let Some(way) = self.graph.way(from, to, DEPENDENCIES, false) {
            return Some((Phenomenon::ReadSkew, way));
        }
        if let Some(way) = self.graph.way(from, to, ALL, true) {
            return Some((Phenomenon::LongFork, way));
        }
        self.graph.way(from, to, ALL, false).map(|way| (Phenomenon::WriteSkew, way))
    }

    fn anomaly(&self, phenomenon: Phenomenon, first: Edge, way: &[Edge]) -> Anomaly {
        let mut what = self.history[first.from].name();
        for edge in std::iter::once(&first).chain(way) {
            let how = match edge.kind {
                Kind::WriteWrite => "was overwritten by",
                Kind::WriteRead => "was read by",
                Kind::ReadWrite => "did not see the write of",
            };
            what += &format!(", in key {} {how} {}", edge.key, self.history[edge.to].name());
        }
        Anomaly { phenomenon, what }
    }
}
