//! Below which snapshot nothing is read any more through this index server, and never will be: storage servers are told, so
//! that they keep the rows that are.
//!
//! That is the snapshot of the oldest transaction that runs here, or the version that the catalog had here before the oldest
//! tickets were made that are still valid, whichever is lower. Versions here only grow, so what begins later reads later
//! snapshots. Tickets that this server gave before it was restarted are not remembered: for those there is `retention_s`.
//!
//! An answer that goes on reads the snapshot at which it began, maybe through another index server. For as long as the first
//! plan's tickets are valid, the one that made them holds the snapshot; from then on, those that have planned it again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::ActiveTransactions;

/// Between the moment at which a query or a transaction takes its snapshot, and that from which on its ticket lives or it
/// counts as running, there is its planning.
const PLANNING: Duration = Duration::from_secs(5);

/// The snapshots of answers that went on here, with when they last did. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct ResumedSnapshots(Arc<Mutex<Resumed>>);

#[derive(Debug, Default)]
struct Resumed {
    snapshots: BTreeMap<u64, Instant>,
    /// What storage servers were told last: nothing before it is held any more.
    told: u64,
}

impl ResumedSnapshots {
    /// A plan at `snapshot` gets tickets at about `now`. One that nobody holds may be read for as long as it is there; whoever
    /// asks for it does not bring it back.
    pub fn note(&self, snapshot: u64, now: Instant) {
        let mut resumed = self.0.lock();
        if snapshot >= resumed.told {
            resumed.snapshots.insert(snapshot, now);
        }
    }

    /// What storage servers are told: the oldest that was noted less than `age` ago, or `others` if that is older.
    fn oldest(&self, now: Instant, age: Duration, others: u64) -> u64 {
        let mut resumed = self.0.lock();
        resumed.snapshots.retain(|_, at| now.saturating_duration_since(*at) < age);
        resumed.told = resumed.snapshots.keys().next().map_or(others, |oldest| others.min(*oldest));
        resumed.told
    }
}

/// See the module.
#[derive(Debug)]
pub struct NeededSnapshots {
    active: ActiveTransactions,
    resumed: ResumedSnapshots,
    ticket_lifetime: Duration,
    /// Which version the catalog had here when, oldest first. The first is the newest that is old enough.
    versions: VecDeque<(Instant, u64)>,
}

impl NeededSnapshots {
    /// Of these transactions and these answers, and of tickets that live so long.
    pub fn new(active: ActiveTransactions, resumed: ResumedSnapshots, ticket_lifetime: Duration) -> Self {
        Self { active, resumed, ticket_lifetime, versions: VecDeque::new() }
    }

    /// The oldest snapshot that may still be read, when the catalog is at `version` here. Called regularly.
    pub fn oldest(&mut self, now: Instant, version: u64) -> u64 {
        self.versions.push_back((now, version));
        let age = self.ticket_lifetime + PLANNING;
        while self.versions.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= age) {
            self.versions.pop_front();
        }
        let ticketed = self.versions.front().map_or(version, |(_, version)| *version);
        let active = self.active.oldest_snapshot().unwrap_or(ticketed);
        self.resumed.oldest(now, age, ticketed.min(active))
    }
}

#[cfg(test)]
mod tests {
    use drsdb_core::Ulid;

    use super::*;

    #[test]
    fn tickets_and_transactions_are_remembered() {
        let active = ActiveTransactions::default();
        let mut needed = NeededSnapshots::new(active.clone(), ResumedSnapshots::default(), Duration::from_secs(10));
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

    #[test]
    fn what_goes_on_is_needed_for_as_long_as_its_new_tickets() {
        let resumed = ResumedSnapshots::default();
        let mut needed = NeededSnapshots::new(ActiveTransactions::default(), resumed.clone(), Duration::from_secs(10));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(needed.oldest(after(0), 5), 5);
        assert_eq!(needed.oldest(after(15), 20), 5);
        resumed.note(7, after(20));
        resumed.note(9, after(25));
        assert_eq!(needed.oldest(after(30), 20), 7);
        assert_eq!(needed.oldest(after(35), 20), 9);
        resumed.note(9, after(38));
        assert_eq!(needed.oldest(after(52), 20), 9, "it went on twice");
        assert_eq!(needed.oldest(after(53), 20), 20);
        resumed.note(9, after(54));
        assert_eq!(needed.oldest(after(55), 20), 20, "what is not held any more is not held again");
    }
}
