//! Checks histories of list-append transactions for snapshot isolation. Pure: no I/O, no clock, no randomness.
//!
//! Each key holds a list, and every append adds a value that nobody else ever adds to that key. A read then tells more
//! than its value: the order of the list is the order of the versions, so that who wrote before whom can be read off,
//! and the transactions that read and wrote each version form a graph whose cycles are the anomalies. The method is that
//! of Elle: Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations", VLDB 2020
//! (arXiv 2003.10554); the anomalies' names are those of Adya, Liskov and O'Neil, "Generalized Isolation Level
//! Definitions", ICDE 2000.
//!
//! 1. [`History`] is what clients saw: operations, outcomes, times.
//! 2. [`checker`] reads off what is wrong by itself: aborted and intermediate reads, lost appends, two orders of one key.
//! 3. [`graph`] finds the cycles that snapshot isolation forbids.
//!
//! What is claimed is strong snapshot isolation: a transaction also sees everything that was acknowledged before it began.
//! Write skew, a cycle with two anti-dependencies that follow one another, is allowed.

mod anomaly;
mod checker;
mod graph;
mod simulated;
mod tests;

pub use anomaly::Anomaly;
pub use checker::check;

/// The name of a list.
pub type Key = u64;
/// What is appended.
pub type Value = u64;

/// One step of a transaction that took place, as its client saw it. Reads that did not answer are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Append { key: Key, value: Value },
    Read { key: Key, list: Vec<Value> },
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The commit was acknowledged.
    Committed,
    /// It was refused, or never asked for.
    Aborted,
    /// The commit was asked for and nobody answered: it may take effect at any time, or never.
    Unknown,
}

/// A transaction as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub client: usize,
    pub operations: Vec<Operation>,
    pub outcome: Outcome,
    /// Before its first call, on a clock that all clients share.
    pub began: u64,
    /// After its last answer.
    pub ended: u64,
}

/// Everything that happened, in any order.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub transactions: Vec<Transaction>,
}
