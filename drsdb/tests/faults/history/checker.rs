//! From a history to its anomalies.

use std::collections::{HashMap, HashSet};

use super::{
    Anomaly, History, Key, Operation, Outcome, Value,
    graph::{EdgeKind, Graph},
};

/// Everything in `history` that strong snapshot isolation forbids; empty when there is nothing.
///
/// # Panics
/// When one value is appended twice to a key: then reads tell nothing, and the workload is at fault.
pub fn check(history: &History) -> Vec<Anomaly> {
    let mut checker = Checker::new(history);
    checker.read_transactions();
    checker.check_values();
    checker.order_keys();
    checker.find_lost_appends();
    let graph = checker.graph();
    checker.anomalies.extend(graph.forbidden_cycles().into_iter().map(Anomaly::Cycle));
    checker.anomalies
}

/// Who appended a value.
#[derive(Clone, Copy)]
struct Writer {
    transaction: usize,
    /// Nothing more was appended to the key by the same transaction.
    last: bool,
}

/// A list as others had written it: without the reader's own appends.
struct Read {
    reader: usize,
    key: Key,
    list: Vec<Value>,
}

struct Checker<'a> {
    history: &'a History,
    writers: HashMap<(Key, Value), Writer>,
    reads: Vec<Read>,
    /// The longest list of each key: the order of its versions.
    orders: HashMap<Key, Vec<Value>>,
    /// Reads that are a beginning of their key's order, as positions in `reads`.
    consistent: Vec<usize>,
    anomalies: Vec<Anomaly>,
}

impl<'a> Checker<'a> {
    fn new(history: &'a History) -> Self {
        let mut writers: HashMap<(Key, Value), Writer> = HashMap::new();
        for (transaction, details) in history.transactions.iter().enumerate() {
            let mut last_of_key = HashMap::new();
            for operation in &details.operations {
                if let Operation::Append { key, value } = *operation {
                    let before = writers.insert((key, value), Writer { transaction, last: true });
                    assert!(before.is_none(), "the workload appends {value} twice to list {key}");
                    if let Some(earlier) = last_of_key.insert(key, value) {
                        writers.get_mut(&(key, earlier)).expect("it was inserted before").last = false;
                    }
                }
            }
        }
        Self {
            history,
            writers,
            reads: Vec::new(),
            orders: HashMap::new(),
            consistent: Vec::new(),
            anomalies: Vec::new(),
        }
    }

    fn outcome(&self, transaction: usize) -> Outcome {
        self.history.transactions[transaction].outcome
    }

    /// Separates what each transaction read of others from what it wrote itself. A snapshot shows one state of a key, with
    /// the transaction's own appends after it. Transactions that are rolled back read snapshots as well.
    fn read_transactions(&mut self) {
        for (reader, transaction) in self.history.transactions.iter().enumerate() {
            let mut own: HashMap<Key, Vec<Value>> = HashMap::new();
            let mut seen: HashMap<Key, Vec<Value>> = HashMap::new();
            for operation in &transaction.operations {
                match operation {
                    Operation::Append { key, value } => own.entry(*key).or_default().push(*value),
                    Operation::Read { key, list } => {
                        let appended = own.get(key).map_or(&[][..], Vec::as_slice);
                        let others = list.strip_suffix(appended);
                        match (others, seen.get(key)) {
                            (Some(others), None) => {
                                seen.insert(*key, others.to_vec());
                                self.reads.push(Read { reader, key: *key, list: others.to_vec() });
                            }
                            (Some(others), Some(before)) if others == before => {}
                            (_, before) => {
                                let mut expected = before.cloned().unwrap_or_default();
                                expected.extend(appended);
                                let (key, found) = (*key, list.clone());
                                self.anomalies.push(Anomaly::Internal { reader, key, expected, found });
                            }
                        }
                    }
                }
            }
        }
    }

    fn check_values(&mut self) {
        let mut found = Vec::new();
        for Read { reader, key, list } in &self.reads {
            let (reader, key) = (*reader, *key);
            let mut values = HashSet::new();
            for &value in list {
                if !values.insert(value) {
                    found.push(Anomaly::Repeated { reader, key, value });
                }
                match self.writers.get(&(key, value)) {
                    None => found.push(Anomaly::Invented { reader, key, value }),
                    Some(writer) if self.outcome(writer.transaction) == Outcome::Aborted => {
                        found.push(Anomaly::AbortedRead { reader, writer: writer.transaction, key, value });
                    }
                    Some(_) => {}
                }
            }
            if let Some(&value) = list.last()
                && let Some(writer) = self.writers.get(&(key, value))
                && !writer.last
            {
                found.push(Anomaly::IntermediateRead { reader, writer: writer.transaction, key, value });
            }
        }
        self.anomalies.extend(found);
    }

    fn order_keys(&mut self) {
        let mut longest: HashMap<Key, usize> = HashMap::new();
        for (position, read) in self.reads.iter().enumerate() {
            let best = longest.entry(read.key).or_insert(position);
            if self.reads[*best].list.len() < read.list.len() {
                *best = position;
            }
        }
        for (position, read) in self.reads.iter().enumerate() {
            let best = &self.reads[longest[&read.key]];
            if best.list.starts_with(&read.list) {
                self.consistent.push(position);
            } else {
                let (left, right, key) = (best.reader, read.reader, read.key);
                self.anomalies.push(Anomaly::IncompatibleOrder { left, right, key });
            }
        }
        self.orders = longest.into_iter().map(|(key, best)| (key, self.reads[best].list.clone())).collect();
    }

    /// What was acknowledged before a reader began is in what it reads.
    fn find_lost_appends(&mut self) {
        let mut reads: HashMap<Key, Vec<&Read>> = HashMap::new();
        for &position in &self.consistent {
            let read = &self.reads[position];
            reads.entry(read.key).or_default().push(read);
        }
        let began = |read: &Read| self.history.transactions[read.reader].began;
        // The shortest of the lists that were read from each position on.
        let mut shortest: HashMap<Key, Vec<usize>> = HashMap::new();
        for (key, reads) in &mut reads {
            reads.sort_by_key(|read| began(read));
            let mut best = vec![reads.len() - 1; reads.len()];
            for position in (0..reads.len() - 1).rev() {
                let after = best[position + 1];
                best[position] = if reads[position].list.len() <= reads[after].list.len() { position } else { after };
            }
            shortest.insert(*key, best);
        }
        let mut lost = Vec::new();
        for (&(key, value), writer) in &self.writers {
            let transaction = &self.history.transactions[writer.transaction];
            let Some(reads) = reads.get(&key) else { continue };
            if transaction.outcome != Outcome::Committed {
                continue;
            }
            let place = self.orders[&key].iter().position(|other| *other == value).unwrap_or(usize::MAX);
            let first_after = reads.partition_point(|read| began(read) <= transaction.ended);
            let Some(&worst) = shortest[&key].get(first_after) else { continue };
            if reads[worst].list.len() <= place {
                let (writer, reader) = (writer.transaction, reads[worst].reader);
                lost.push(Anomaly::LostAppend { writer, reader, key, value });
            }
        }
        // Maps have no order of their own.
        lost.sort_by_key(|anomaly| match anomaly {
            Anomaly::LostAppend { key, value, .. } => (*key, *value),
            _ => unreachable!("only lost appends are collected here"),
        });
        self.anomalies.extend(lost);
    }

    fn graph(&self) -> Graph {
        let transactions = &self.history.transactions;
        let mut graph = Graph::new(transactions.len());
        // A transaction of unknown outcome took effect if somebody has seen it.
        let seen: HashSet<usize> = self
            .orders
            .iter()
            .flat_map(|(key, list)| list.iter().filter_map(|value| self.writers.get(&(*key, *value))))
            .map(|writer| writer.transaction)
            .collect();
        let happened = |transaction: usize| match self.outcome(transaction) {
            Outcome::Committed => true,
            Outcome::Unknown => seen.contains(&transaction),
            Outcome::Aborted => false,
        };
        // Appends that nobody has seen come after all that somebody has seen: lists only grow.
        let mut unseen: HashMap<Key, Vec<(Value, usize)>> = HashMap::new();
        for (&(key, value), writer) in &self.writers {
            let visible = self.orders.get(&key).is_some_and(|order| order.contains(&value));
            if !visible && self.outcome(writer.transaction) == Outcome::Committed {
                unseen.entry(key).or_default().push((value, writer.transaction));
            }
        }
        let writer_of = |key: Key, value: Value| {
            self.writers.get(&(key, value)).map(|writer| writer.transaction).filter(|writer| happened(*writer))
        };
        for (&key, order) in &self.orders {
            for pair in order.windows(2) {
                if let (Some(from), Some(to)) = (writer_of(key, pair[0]), writer_of(key, pair[1])) {
                    graph.add(from, to, EdgeKind::WriteWrite { key, after: pair[1] });
                }
            }
            let last = order.last().and_then(|value| writer_of(key, *value));
            for &(value, to) in unseen.get(&key).into_iter().flatten() {
                if let Some(from) = last {
                    graph.add(from, to, EdgeKind::WriteWrite { key, after: value });
                }
            }
        }
        for &position in &self.consistent {
            let Read { reader, key, list } = &self.reads[position];
            let (reader, key) = (*reader, *key);
            if !happened(reader) {
                continue;
            }
            if let Some(&value) = list.last()
                && let Some(from) = writer_of(key, value)
            {
                graph.add(from, reader, EdgeKind::WriteRead { key, value });
            }
            match self.orders[&key].get(list.len()) {
                Some(&missed) => {
                    if let Some(to) = writer_of(key, missed) {
                        graph.add(reader, to, EdgeKind::ReadWrite { key, missed });
                    }
                }
                None => {
                    for &(missed, to) in unseen.get(&key).into_iter().flatten() {
                        graph.add(reader, to, EdgeKind::ReadWrite { key, missed });
                    }
                }
            }
        }
        self.add_real_time(&mut graph, happened);
        graph
    }

    fn add_real_time(&self, graph: &mut Graph, happened: impl Fn(usize) -> bool) {
        let transactions = &self.history.transactions;
        let mut ends: Vec<usize> =
            (0..transactions.len()).filter(|&position| self.outcome(position) == Outcome::Committed).collect();
        ends.sort_by_key(|&position| transactions[position].ended);
        let mut barriers: Vec<usize> = Vec::with_capacity(ends.len());
        for &transaction in &ends {
            let barrier = graph.barrier();
            graph.add(transaction, barrier, EdgeKind::RealTime);
            if let Some(&before) = barriers.last() {
                graph.add(before, barrier, EdgeKind::RealTime);
            }
            barriers.push(barrier);
        }
        for (position, transaction) in transactions.iter().enumerate() {
            let before = ends.partition_point(|&end| transactions[end].ended < transaction.began);
            if before > 0 && happened(position) {
                graph.add(barriers[before - 1], position, EdgeKind::RealTime);
            }
        }
    }
}
