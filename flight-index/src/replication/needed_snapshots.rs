//! Below which snapshot nothing is read any more through this index server, and never will be: storage servers are told, so
//! that they keep the rows that are.
//!
//! That is the snapshot of the oldest transaction that runs here, or the version that the catalog had here before the oldest
//! tickets were made that are still valid, whichever is lower. Versions here only grow, so what begins later reads later
//! snapshots. Tickets that this server gave before it was restarted are not remembered: for those there is `retention_s`.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::ActiveTransactions;

/// Between the moment at which a query or a transaction takes its snapshot, and that from which on its ticket lives or it
/// counts as running, there is its planning.
const PLANNING: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct NeededSnapshots {
    active: ActiveTransactions,
    ticket_lifetime: Duration,
    /// Which version the catalog had here when, oldest first. The first is the newest that is old enough.
    versions: VecDeque<(Instant, u64)>,
}

impl NeededSnapshots {
    /// Of these transactions, and of tickets that live so long.
    pub fn new(active: ActiveTransactions, ticket_lifetime: Duration) -> Self {
        Self { active, ticket_lifetime, versions: VecDeque::new() }
    }

    /// The oldest snapshot that may still be read, when the catalog is at `version` here. Called regularly.
    pub fn oldest(&mut self, now: Instant, version: u64) -> u64 {
        self.versions.push_back((now, version));
        let age = self.ticket_lifetime + PLANNING;
        while self.versions.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= age) {
            self.versions.pop_front();
        }
        let ticketed = self.versions.front().map_or(version, |(_, version)| *version);
        self.active.oldest_snapshot().map_or(ticketed, |oldest| oldest.min(ticketed))
    }
}

#[cfg(test)]
mod tests {
    use drsdb_core::Ulid;

    use super::*;

    #[test]
    fn tickets_and_transactions_are_remembered() {
        let active = ActiveTransactions::default();
        let mut needed = NeededSnapshots::new(active.clone(), Duration::from_secs(10));
        let start = Instant::now();
        let mut at = |seconds, version| needed.oldest(start + Duration::from_secs(seconds), version);
        assert_eq!(at(0, 5), 5, "before that there was nothing");
        assert_eq!(at(8, 7), 5);
        assert_eq!(at(14, 9), 5, "a ticket of the first second may be valid, and its query have been planned before");
        assert_eq!(at(15, 9), 5);
        assert_eq!(at(23, 12), 7);
        let transaction = active.enter(Ulid(1), 9);
        assert_eq!(at(60, 30), 9);
        assert_eq!(at(90, 40), 9, "it may take as long as it likes");
        drop(transaction);
        assert_eq!(at(91, 40), 30);
    }
}
