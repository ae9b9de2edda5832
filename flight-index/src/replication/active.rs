//! The transactions that run on this index server, and what they read.

use std::{collections::BTreeMap, sync::Arc};

use drsdb_core::Ulid;
use parking_lot::Mutex;

/// Cheap to clone; clones share the list.
#[derive(Debug, Clone, Default)]
pub struct ActiveTransactions(Arc<Mutex<BTreeMap<Ulid, Active>>>);

#[derive(Debug)]
struct Active {
    guards: usize,
    snapshot: u64,
}

/// A transaction counts as active while this lives.
#[derive(Debug)]
#[must_use = "a transaction counts as active while the guard lives"]
pub struct ActiveGuard {
    all: ActiveTransactions,
    transaction: Ulid,
}

impl ActiveTransactions {
    /// Notes that `transaction` runs here, and reads `snapshot`.
    pub fn enter(&self, transaction: Ulid, snapshot: u64) -> ActiveGuard {
        self.0.lock().entry(transaction).or_insert(Active { guards: 0, snapshot }).guards += 1;
        ActiveGuard { all: self.clone(), transaction }
    }

    /// The oldest snapshot that one of them reads; `None`: none runs.
    pub fn oldest_snapshot(&self) -> Option<u64> {
        self.0.lock().values().map(|active| active.snapshot).min()
    }

    /// Whether it runs here.
    pub fn contains(&self, transaction: Ulid) -> bool {
        self.0.lock().contains_key(&transaction)
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(active) = all.get_mut(&self.transaction) {
            active.guards -= 1;
            if active.guards == 0 {
                all.remove(&self.transaction);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_active_while_any_guard_lives() {
        let active = ActiveTransactions::default();
        let (first, second, other) = (active.enter(Ulid(1), 7), active.enter(Ulid(1), 7), active.enter(Ulid(2), 9));
        drop(first);
        assert!(active.contains(Ulid(1)) && !active.contains(Ulid(3)));
        assert_eq!(active.oldest_snapshot(), Some(7));
        drop(second);
        assert!(!active.contains(Ulid(1)));
        assert_eq!(active.oldest_snapshot(), Some(9));
        drop(other);
        assert_eq!(active.oldest_snapshot(), None);
    }
}
