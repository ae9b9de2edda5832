//! The graph of who comes before whom, and the cycles in it that snapshot isolation forbids.
//!
//! Under snapshot isolation a transaction has a start and a commit time. Write-write, write-read and real-time edges say
//! that one's commit comes before the other's start (or its commit); a read-write edge says only that one's start comes
//! before the other's commit. So a cycle without a read-write edge is impossible (G0, G1c), and so is one with exactly
//! one (G-single, of which a lost update is the smallest); two that follow one another are write skew, which is allowed.
//!
//! Real time has an edge for each pair, in principle. A chain of barriers has the same paths with two edges a transaction:
//!
//! ```text
//! T1 acknowledged ─▶ barrier 1 ─▶ barrier 2 ◀─ T2 acknowledged
//!                        │            │
//!                        ▼            ▼
//!                  began between   began after
//! ```

use std::collections::VecDeque;

use super::{Key, Value};

/// Why one transaction comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EdgeKind {
    /// The one's version of a key comes before the other's.
    WriteWrite { key: Key, after: Value },
    /// The one's version was read by the other.
    WriteRead { key: Key, value: Value },
    /// The one read a version that the other's replaces.
    ReadWrite { key: Key, missed: Value },
    /// The one was acknowledged before the other began.
    RealTime,
}

/// One reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Edge {
    pub from: usize,
    pub to: usize,
    pub kind: EdgeKind,
}

/// What a cycle is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CycleKind {
    /// G0.
    WriteCycle,
    /// G1c.
    CircularInformation,
    /// G-single of two transactions over one key.
    LostUpdate,
    /// Any other G-single.
    SingleAntiDependency,
}

impl CycleKind {
    pub fn name(self) -> &'static str {
        match self {
            CycleKind::WriteCycle => "write cycle (G0)",
            CycleKind::CircularInformation => "circular information flow (G1c)",
            CycleKind::LostUpdate => "lost update",
            CycleKind::SingleAntiDependency => "read skew (G-single)",
        }
    }
}

/// A cycle, without barriers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cycle {
    pub kind: CycleKind,
    pub edges: Vec<Edge>,
}

/// Cycles to report: one defect usually makes many.
const MOST_CYCLES: usize = 8;

/// Nodes are transactions; those that [`Graph::barrier`] adds follow them.
#[derive(Debug, Default)]
pub struct Graph {
    outgoing: Vec<Vec<Edge>>,
    transactions: usize,
}

impl Graph {
    pub fn new(transactions: usize) -> Self {
        Self { outgoing: vec![Vec::new(); transactions], transactions }
    }

    /// A node that is no transaction.
    pub fn barrier(&mut self) -> usize {
        self.outgoing.push(Vec::new());
        self.outgoing.len() - 1
    }

    /// Adds an edge; one to itself says nothing.
    pub fn add(&mut self, from: usize, to: usize, kind: EdgeKind) {
        let edge = Edge { from, to, kind };
        if from != to && !self.outgoing[from].contains(&edge) {
            self.outgoing[from].push(edge);
        }
    }

    /// The forbidden cycles, the worst kind first, at most [`MOST_CYCLES`].
    pub fn forbidden_cycles(&self) -> Vec<Cycle> {
        let mut cycles = Vec::new();
        let writes = |edge: &Edge| matches!(edge.kind, EdgeKind::WriteWrite { .. });
        let flow = |edge: &Edge| !matches!(edge.kind, EdgeKind::ReadWrite { .. });
        let any = |_: &Edge| true;
        // A cycle lies in one strongly connected component: only edges inside one can close it.
        for (kind, closing, path) in [
            (CycleKind::WriteCycle, &writes as &dyn Fn(&Edge) -> bool, &writes as &dyn Fn(&Edge) -> bool),
            (CycleKind::CircularInformation, &flow, &flow),
        ] {
            self.close(kind, closing, path, &self.components(path), &mut cycles);
        }
        let anti = |edge: &Edge| matches!(edge.kind, EdgeKind::ReadWrite { .. });
        self.close(CycleKind::SingleAntiDependency, &anti, &flow, &self.components(&any), &mut cycles);
        cycles
    }

    /// For each edge that `closing` takes, the shortest way back over edges that `path` takes.
    fn close(
        &self,
        kind: CycleKind,
        closing: &dyn Fn(&Edge) -> bool,
        path: &dyn Fn(&Edge) -> bool,
        components: &[usize],
        cycles: &mut Vec<Cycle>,
    ) {
        for edge in self.outgoing.iter().flatten() {
            if cycles.len() >= MOST_CYCLES {
                return;
            }
            let known = |cycle: &Cycle| cycle.edges.contains(edge);
            if components[edge.from] != components[edge.to] || !closing(edge) || cycles.iter().any(known) {
                continue;
            }
            if let Some(mut back) = self.shortest_path(edge.to, edge.from, path, components) {
                back.insert(0, *edge);
                let edges = self.without_barriers(back);
                cycles.push(Cycle { kind: refined(kind, &edges), edges });
            }
        }
    }

    fn shortest_path(
        &self,
        start: usize,
        end: usize,
        allowed: &dyn Fn(&Edge) -> bool,
        components: &[usize],
    ) -> Option<Vec<Edge>> {
        let mut reached_by: Vec<Option<Edge>> = vec![None; self.outgoing.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(node) = queue.pop_front() {
            if node == end {
                let mut path = Vec::new();
                let mut at = end;
                while at != start {
                    let edge = reached_by[at].expect("every node on the path was reached by an edge");
                    at = edge.from;
                    path.push(edge);
                }
                path.reverse();
                return Some(path);
            }
            for edge in &self.outgoing[node] {
                let inside = components[edge.to] == components[start];
                if inside && allowed(edge) && edge.to != start && reached_by[edge.to].is_none() {
                    reached_by[edge.to] = Some(*edge);
                    queue.push_back(edge.to);
                }
            }
        }
        None
    }

    /// Real time that passes over barriers, as one edge.
    fn without_barriers(&self, path: Vec<Edge>) -> Vec<Edge> {
        // A cycle may begin at a barrier: it is turned until it begins at a transaction.
        let first = path.iter().position(|edge| edge.from < self.transactions).expect("a cycle has a transaction");
        let turned = path[first..].iter().chain(&path[..first]);
        let mut edges: Vec<Edge> = Vec::new();
        for edge in turned {
            match edges.last_mut() {
                Some(last) if last.to >= self.transactions => last.to = edge.to,
                _ => edges.push(*edge),
            }
        }
        edges
    }

    /// The number of each node's strongly connected component, over the edges that `allowed` takes. Tarjan's algorithm
    /// (SIAM Journal on Computing 1, 1972), without recursion: histories are long.
    fn components(&self, allowed: &dyn Fn(&Edge) -> bool) -> Vec<usize> {
        const UNSEEN: usize = usize::MAX;
        let nodes = self.outgoing.len();
        let (mut index, mut low) = (vec![UNSEEN; nodes], vec![0; nodes]);
        let (mut component, mut components) = (vec![UNSEEN; nodes], 0);
        let (mut stack, mut next) = (Vec::new(), 0);
        for root in 0..nodes {
            if index[root] != UNSEEN {
                continue;
            }
            let mut calls = vec![(root, 0)];
            while let Some((node, position)) = calls.pop() {
                if position == 0 {
                    (index[node], low[node]) = (next, next);
                    next += 1;
                    stack.push(node);
                }
                let following = self.outgoing[node].iter().enumerate().skip(position).find(|(_, edge)| allowed(edge));
                if let Some((at, edge)) = following {
                    calls.push((node, at + 1));
                    if index[edge.to] == UNSEEN {
                        calls.push((edge.to, 0));
                    } else if component[edge.to] == UNSEEN {
                        low[node] = low[node].min(index[edge.to]);
                    }
                    continue;
                }
                if low[node] == index[node] {
                    while let Some(member) = stack.pop() {
                        component[member] = components;
                        if member == node {
                            break;
                        }
                    }
                    components += 1;
                }
                if let Some((parent, _)) = calls.last() {
                    low[*parent] = low[*parent].min(low[node]);
                }
            }
        }
        component
    }
}

fn refined(kind: CycleKind, edges: &[Edge]) -> CycleKind {
    let key = |edge: &Edge| match edge.kind {
        EdgeKind::WriteWrite { key, .. } | EdgeKind::ReadWrite { key, .. } => Some(key),
        EdgeKind::WriteRead { .. } | EdgeKind::RealTime => None,
    };
    match (kind, edges) {
        (CycleKind::SingleAntiDependency, [left, right]) if key(left).is_some() && key(left) == key(right) => {
            CycleKind::LostUpdate
        }
        _ => kind,
    }
}
