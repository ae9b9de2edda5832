//! What can be wrong with a history, in words.

use std::fmt;

use super::{
    Key, Value,
    graph::{Cycle, Edge, EdgeKind},
};

/// Something that snapshot isolation forbids. Transactions are positions in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anomaly {
    /// A list has a value twice: an append was done twice.
    Repeated { reader: usize, key: Key, value: Value },
    /// A list has a value that nobody appended.
    Invented { reader: usize, key: Key, value: Value },
    /// G1a: a value of a transaction that was rolled back.
    AbortedRead { reader: usize, writer: usize, key: Key, value: Value },
    /// G1b: a value that its transaction appended to again, without what came after it.
    IntermediateRead { reader: usize, writer: usize, key: Key, value: Value },
    /// Two lists of one key of which neither is the other's beginning.
    IncompatibleOrder { left: usize, right: usize, key: Key },
    /// A transaction that does not see what it did itself, or sees one key in two states.
    Internal { reader: usize, key: Key, expected: Vec<Value>, found: Vec<Value> },
    /// An append that was acknowledged before the reader began, and that it does not see.
    LostAppend { writer: usize, reader: usize, key: Key, value: Value },
    /// Transactions that each come before the next, and the last before the first.
    Cycle(Cycle),
}

impl Anomaly {
    /// A short name, as the literature has it.
    pub fn name(&self) -> &'static str {
        match self {
            Anomaly::Repeated { .. } => "repeated append",
            Anomaly::Invented { .. } => "invented value",
            Anomaly::AbortedRead { .. } => "aborted read (G1a)",
            Anomaly::IntermediateRead { .. } => "intermediate read (G1b)",
            Anomaly::IncompatibleOrder { .. } => "incompatible order",
            Anomaly::Internal { .. } => "internal inconsistency",
            Anomaly::LostAppend { .. } => "lost append",
            Anomaly::Cycle(cycle) => cycle.kind.name(),
        }
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name())?;
        match self {
            Anomaly::Repeated { reader, key, value } => write!(f, "T{reader} reads {value} twice in list {key}"),
            Anomaly::Invented { reader, key, value } => {
                write!(f, "T{reader} reads {value} in list {key}, and nobody appended it")
            }
            Anomaly::AbortedRead { reader, writer, key, value } => {
                write!(f, "T{reader} reads {value} in list {key}, of T{writer}, which was rolled back")
            }
            Anomaly::IntermediateRead { reader, writer, key, value } => {
                write!(f, "T{reader} reads list {key} up to {value}, and T{writer} appended more at once")
            }
            Anomaly::IncompatibleOrder { left, right, key } => {
                write!(f, "T{left} and T{right} read list {key} in different orders")
            }
            Anomaly::Internal { reader, key, expected, found } => {
                write!(f, "T{reader} reads {found:?} in list {key}, after what it did and saw itself: {expected:?}")
            }
            Anomaly::LostAppend { writer, reader, key, value } => {
                write!(f, "T{writer} appended {value} to list {key} before T{reader} began, which does not see it")
            }
            Anomaly::Cycle(cycle) => write!(f, "{cycle}"),
        }
    }
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, edge) in self.edges.iter().enumerate() {
            if position > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{edge}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Edge { from, to, kind } = self;
        match kind {
            EdgeKind::WriteWrite { key, after } => {
                write!(f, "T{from} wrote list {key} before T{to} appended {after} (ww)")
            }
            EdgeKind::WriteRead { key, value } => write!(f, "T{to} read {value} of T{from} in list {key} (wr)"),
            EdgeKind::ReadWrite { key, missed } => {
                write!(f, "T{from} read list {key} without {missed} of T{to} (rw)")
            }
            EdgeKind::RealTime => write!(f, "T{from} was acknowledged before T{to} began"),
        }
    }
}
