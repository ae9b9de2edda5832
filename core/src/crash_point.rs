//! Places in the code at which tests make a process die, so that they can look at what it left behind: just before and just
//! after something becomes durable, or is told to another server. Where something becomes durable, a slow disk takes its time.
//!
//! [`crate::injected`] says what is to happen where. As long as nothing is, a point costs one comparison.
//!
//! Not here: what must hold afterwards (the tests of whole clusters).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

/// Every point of an index server, in the order of a commit's life, with the table that it may make; then what follows from an election, and what a server does
/// that is new, or that has lost its file.
pub const INDEX_POINTS: &[&str] = &[
    "table.made",
    "commit.proposing",
    "raft.append.before",
    "raft.append.synced",
    "raft.apply.before",
    "raft.apply.published",
    "commit.decided",
    "outcome.sending",
    "outcome.sent",
    "raft.snapshot_part.before",
    "raft.snapshot_part.synced",
    "raft.snapshot.before",
    "raft.snapshot.synced",
    "raft.snapshot_forget.before",
    "raft.snapshot_forget.synced",
    "raft.purge.before",
    "raft.purge.synced",
    "raft.install.before",
    "raft.install.published",
    "raft.vote.before",
    "raft.vote.synced",
    "raft.truncate.before",
    "raft.truncate.synced",
    "raft.node.before",
    "raft.node.synced",
    "raft.rejoin.asking",
    "raft.rejoin.asked",
    "raft.rejoin.removed",
    "raft.rejoin.known_written",
    "raft.rejoin.known_synced",
    "raft.rejoin.known_renamed",
    "raft.rejoin.known_named",
    "raft.rejoin.written",
    "raft.rejoin.synced",
    "raft.rejoin.making",
    "raft.rejoin.made",
    "raft.rejoin.moving",
    "raft.rejoin.moved",
    "raft.rejoin.naming",
    "raft.rejoin.named",
    "raft.rejoin.settling",
    "raft.rejoin.settled",
];

/// Every point of a storage server, in the order of a write's life; then what happens at a start, when a shard is copied, when
/// the row file is damaged, and when a server is new.
pub const STORAGE_POINTS: &[&str] = &[
    "segment.written",
    "segment.synced",
    "segment.named",
    "row.commit.before",
    "row.commit.synced",
    "stage.done",
    "outcome.received",
    "row.outcome.before",
    "row.outcome.written",
    "outcome.applied",
    "applied_version.written",
    "applied_version.renamed",
    "row.file.opened",
    "row.file.named",
    "row.checkpoint.before",
    "row.checkpoint.synced",
    "row.sums.written",
    "row.sums.synced",
    "column.folder.opened",
    "column.folder.named",
    "catch_up.staged",
    "catch_up.committed",
    "spool.opened",
    "spool.named",
    "spool.written",
    "spool.synced",
    "floors.written",
    "floors.synced",
    "floors.renamed",
    "floors.named",
    "repair.moving",
    "repair.moved",
    "repair.kept",
    "repair.named",
    "identity.written",
    "identity.synced",
    "identity.renamed",
    "identity.named",
    "index_servers.written",
    "index_servers.renamed",
];

/// Points after which the disk is asked to make something durable.
const BEFORE_SYNC: &[&str] = &[
    "raft.append.before",
    "raft.snapshot_part.before",
    "raft.snapshot.before",
    "raft.snapshot_forget.before",
    "raft.purge.before",
    "raft.vote.before",
    "raft.truncate.before",
    "raft.node.before",
    "raft.rejoin.asking",
    "raft.rejoin.known_written",
    "raft.rejoin.known_renamed",
    "raft.rejoin.written",
    "raft.rejoin.making",
    "raft.rejoin.moving",
    "raft.rejoin.naming",
    "raft.rejoin.settling",
    "segment.written",
    "segment.synced",
    "row.commit.before",
    "row.file.opened",
    "row.checkpoint.before",
    "row.sums.written",
    "column.folder.opened",
    "spool.opened",
    "spool.written",
    "floors.written",
    "floors.renamed",
    "repair.moved",
    "repair.kept",
    "identity.written",
    "identity.renamed",
];

/// What is to happen at the points.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The point at which the process ends, and how often it comes there until then.
    pub crash: Option<(String, u64)>,
    /// How much longer the disk takes for each fsync.
    pub slow_sync: Duration,
}

static PLANNED: AtomicBool = AtomicBool::new(false);
static PLAN: Mutex<Plan> = Mutex::new(Plan { crash: None, slow_sync: Duration::ZERO });

/// Says what is to happen from now on.
pub fn set_plan(plan: Plan) {
    PLANNED.store(plan != Plan::default(), Ordering::Relaxed);
    *PLAN.lock() = plan;
}

/// Marks a point: ends the process here, as `kill -9` would, or waits, if a test says so.
pub fn reach(point: &'static str) {
    debug_assert!(INDEX_POINTS.contains(&point) || STORAGE_POINTS.contains(&point), "{point} is in no list");
    if PLANNED.load(Ordering::Relaxed) {
        follow_plan(point);
    }
}

#[cold]
fn follow_plan(point: &'static str) {
    let slow_sync = {
        let mut plan = PLAN.lock();
        if let Some((_, left)) = plan.crash.as_mut().filter(|(crash, _)| crash == point) {
            if *left <= 1 {
                tracing::error!(point, "ending here, as a test wants it");
                // No destructor runs and no buffer is written.
                std::process::abort();
            }
            *left -= 1;
        }
        plan.slow_sync
    };
    if !slow_sync.is_zero() && BEFORE_SYNC.contains(&point) {
        // Blocks the thread as the fsync that follows does.
        std::thread::sleep(slow_sync);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_have_one_name_each_and_slow_ones_are_among_them() {
        let mut all: Vec<&str> = INDEX_POINTS.iter().chain(STORAGE_POINTS).copied().collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(BEFORE_SYNC.iter().all(|point| all.contains(point)));
    }

    #[test]
    fn a_slow_disk_is_slow_before_it_syncs_and_only_as_long_as_it_is_told() {
        let slow = |slow_sync| Plan { crash: Some(("row.commit.before".to_owned(), 100)), slow_sync };
        // Longer than any test may take.
        set_plan(slow(Duration::from_secs(24 * 3600)));
        reach("stage.done");
        let slow_sync = Duration::from_millis(40);
        set_plan(slow(slow_sync));
        let started = std::time::Instant::now();
        reach("row.commit.before");
        assert!(started.elapsed() >= slow_sync);
        assert_eq!(PLAN.lock().crash, Some(("row.commit.before".to_owned(), 99)));
        set_plan(slow(Duration::from_secs(24 * 3600)));
        set_plan(Plan::default());
        reach("row.commit.before");
    }
}
