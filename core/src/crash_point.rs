//! Places where a process can be made to die, so that tests can look at what it left behind: just before and just after
//! something becomes durable, or is told to another server.
//!
//! `DRSDB_CRASH_AT=row.commit.synced` ends the process the first time it reaches that point, `...:20` the twentieth time,
//! as `kill -9` would: no destructor runs and no buffer is written. Without the variable a point costs one comparison.
//!
//! Not here: what must hold afterwards (the tests of whole clusters).

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// The variable.
pub const VARIABLE: &str = "DRSDB_CRASH_AT";

/// Every point of an index server, in the order of a commit's life.
pub const INDEX_POINTS: &[&str] = &[
    "raft.append.before",
    "raft.append.synced",
    "raft.snapshot.before",
    "raft.snapshot.synced",
    "raft.apply.before",
    "raft.apply.published",
    "commit.proposing",
    "commit.decided",
    "outcome.sending",
];

/// Every point of a storage server, in the order of a write's life.
pub const STORAGE_POINTS: &[&str] = &[
    "row.commit.before",
    "row.commit.synced",
    "segment.written",
    "segment.synced",
    "stage.done",
    "outcome.received",
    "outcome.applied",
    "applied_version.written",
    "applied_version.renamed",
];

#[derive(Debug)]
struct Armed {
    point: String,
    left: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Marks a point; ends the process here if it was told to.
pub fn reach(point: &'static str) {
    debug_assert!(INDEX_POINTS.contains(&point) || STORAGE_POINTS.contains(&point), "{point} is in no list");
    let Some(armed) = ARMED.get_or_init(|| std::env::var(VARIABLE).ok().map(|text| parse(&text))) else { return };
    if armed.point == point && armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        tracing::error!(point, "ending here, as {VARIABLE} says");
        std::process::abort();
    }
}

fn parse(text: &str) -> Armed {
    let (point, times) = match text.rsplit_once(':') {
        Some((point, times)) => (point, times.parse().unwrap_or(1)),
        None => (text, 1),
    };
    Armed { point: point.to_owned(), left: AtomicU64::new(times) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_and_how_often_it_is_passed() {
        let armed = parse("row.commit.synced:20");
        assert_eq!((armed.point.as_str(), armed.left.load(Ordering::Relaxed)), ("row.commit.synced", 20));
        assert_eq!(parse("stage.done").left.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn points_have_one_name_each() {
        let mut all: Vec<&str> = INDEX_POINTS.iter().chain(STORAGE_POINTS).copied().collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
