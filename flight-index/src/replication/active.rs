//! The transactions that run on this index server.

use std::{collections::BTreeMap, sync::Arc};

use drsdb_core::Ulid;
use parking_lot::Mutex;

/// Cheap to clone; clones share the list.
#[derive(Debug, Clone, Default)]
pub struct ActiveTransactions(Arc<Mutex<BTreeMap<Ulid, usize>>>);

/// A transaction counts as active while this lives.
#[derive(Debug)]
#[must_use = "a transaction counts as active while the guard lives"]
pub struct ActiveGuard {
    all: ActiveTransactions,
    transaction: Ulid,
}

impl ActiveTransactions {
    /// Notes that `transaction` runs here.
    pub fn enter(&self, transaction: Ulid) -> ActiveGuard {
        *self.0.lock().entry(transaction).or_default() += 1;
        ActiveGuard { all: self.clone(), transaction }
    }

    /// Whether it runs here.
    pub fn contains(&self, transaction: Ulid) -> bool {
        self.0.lock().contains_key(&transaction)
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(count) = all.get_mut(&self.transaction) {
            *count -= 1;
            if *count == 0 {
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
        let (first, second) = (active.enter(Ulid(1)), active.enter(Ulid(1)));
        drop(first);
        assert!(active.contains(Ulid(1)) && !active.contains(Ulid(2)));
        drop(second);
        assert!(!active.contains(Ulid(1)));
    }
}
