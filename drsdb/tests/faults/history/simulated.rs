//! A store with snapshot isolation, simulated step by step, and the ways in which it can be broken: what the checker is
//! checked with.

use std::collections::HashMap;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{History, Key, Operation, Outcome, Transaction, Value};

/// What is wrong with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    None,
    /// The second committer of a key wins as well.
    NoConflicts,
    /// Reads see what others have not committed yet.
    DirtyReads,
    /// Each read has a snapshot of its own.
    NoSnapshot,
    /// Snapshots are a few commits old.
    StaleSnapshots,
    /// A commit that was acknowledged is sometimes not done.
    LostCommits,
    /// A rolled back transaction's first append stays.
    HalfRollback,
    /// Commits are sometimes done twice.
    RepeatedCommits,
}

/// What the run was like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub clients: usize,
    pub keys: u64,
    pub transactions: usize,
    pub most_operations: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { clients: 5, keys: 4, transactions: 120, most_operations: 4 }
    }
}

struct Running {
    id: usize,
    snapshot: usize,
    began: u64,
    left: usize,
    operations: Vec<Operation>,
    appended: Vec<(Key, Value)>,
}

struct Store {
    defect: Defect,
    /// Appends in the order of commits, each with the version that made it.
    lists: HashMap<Key, Vec<(usize, Value)>>,
    version: usize,
    random: StdRng,
}

/// Runs the store with `seed`, and gives what its clients saw. The last transaction reads every key.
pub fn run(seed: u64, shape: Shape, defect: Defect) -> History {
    let random = StdRng::seed_from_u64(seed);
    let mut store = Store { defect, lists: HashMap::new(), version: 0, random };
    let mut history = History::default();
    let mut clients: Vec<Option<Running>> = (0..shape.clients).map(|_| None).collect();
    let (mut clock, mut begun, mut next_value) = (0, 0, 0);
    while begun < shape.transactions || clients.iter().any(Option::is_some) {
        clock += 1;
        let client = store.random.random_range(0..shape.clients);
        match clients[client].take() {
            None if begun < shape.transactions => {
                let old = if defect == Defect::StaleSnapshots { store.random.random_range(0..4) } else { 0 };
                clients[client] = Some(Running {
                    id: begun,
                    snapshot: store.version.saturating_sub(old),
                    began: clock,
                    left: store.random.random_range(1..=shape.most_operations),
                    operations: Vec::new(),
                    appended: Vec::new(),
                });
                begun += 1;
            }
            None => {}
            Some(mut running) if running.left > 0 => {
                running.left -= 1;
                let key = store.random.random_range(0..shape.keys);
                if store.random.random_bool(0.5) {
                    let dirty: Vec<Value> = clients
                        .iter()
                        .flatten()
                        .flat_map(|other| &other.appended)
                        .filter(|(other, _)| *other == key)
                        .map(|(_, value)| *value)
                        .collect();
                    let list = store.read(&running, key, dirty);
                    running.operations.push(Operation::Read { key, list });
                } else {
                    next_value += 1;
                    running.appended.push((key, next_value));
                    running.operations.push(Operation::Append { key, value: next_value });
                }
                clients[client] = Some(running);
            }
            Some(running) => {
                let outcome = store.end(&running);
                let Running { began, operations, .. } = running;
                history.transactions.push(Transaction { client, operations, outcome, began, ended: clock });
            }
        }
    }
    let all = Running {
        id: begun,
        snapshot: store.version,
        began: clock + 1,
        left: 0,
        operations: Vec::new(),
        appended: Vec::new(),
    };
    let reads = (0..shape.keys).map(|key| Operation::Read { key, list: store.read(&all, key, Vec::new()) });
    let operations = reads.collect();
    let outcome = Outcome::Committed;
    history.transactions.push(Transaction {
        client: shape.clients,
        operations,
        outcome,
        began: all.began,
        ended: clock + 2,
    });
    history
}

impl Store {
    fn read(&self, running: &Running, key: Key, dirty: Vec<Value>) -> Vec<Value> {
        let snapshot = if self.defect == Defect::NoSnapshot { self.version } else { running.snapshot };
        let committed = self.lists.get(&key).into_iter().flatten();
        let mut list: Vec<Value> =
            committed.filter(|(version, _)| *version <= snapshot).map(|(_, value)| *value).collect();
        if self.defect == Defect::DirtyReads {
            list.extend(dirty);
        }
        list.extend(running.appended.iter().filter(|(other, _)| *other == key).map(|(_, value)| *value));
        list
    }

    fn end(&mut self, running: &Running) -> Outcome {
        if self.random.random_bool(0.1) {
            if self.defect == Defect::HalfRollback
                && let Some((key, value)) = running.appended.first()
            {
                self.version += 1;
                self.lists.entry(*key).or_default().push((self.version, *value));
            }
            return Outcome::Aborted;
        }
        let newest = |key: &Key| self.lists.get(key).and_then(|list| list.last()).map_or(0, |(version, _)| *version);
        let conflict = running.appended.iter().any(|(key, _)| newest(key) > running.snapshot);
        if conflict && self.defect != Defect::NoConflicts {
            return Outcome::Aborted;
        }
        let (answered, done) = match self.random.random_range(0..20) {
            0 => (false, false),
            1 => (false, true),
            _ => (true, true),
        };
        let lost = self.defect == Defect::LostCommits && running.id % 7 == 3;
        let times = if self.defect == Defect::RepeatedCommits && running.id % 7 == 3 { 2 } else { 1 };
        if done && !lost {
            for _ in 0..times {
                self.version += 1;
                for (key, value) in &running.appended {
                    self.lists.entry(*key).or_default().push((self.version, *value));
                }
            }
        }
        if answered { Outcome::Committed } else { Outcome::Unknown }
    }
}
