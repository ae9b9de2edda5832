//! Which snapshots are still read, as index servers say: what they need is not compacted away.
//!
//! Each index server says every second, when it asks how this server is, below which snapshot it reads nothing any more and
//! never will: that of its oldest open transaction, or the one that its oldest valid tickets read. So between two messages
//! it can begin whatever it likes without being asked.
//!
//! One that has said nothing yet holds compaction back, and so does what one has said last that fell silent; for
//! [`PATIENCE`] at most, so that a server that is gone does not hold it back for ever. Its transactions and tickets, should
//! it still have any, then end in a `conflict` where rows are gone; they never find fewer rows.
//!
//! Not here: `retention_s`, which holds for everybody and needs nobody's word (`crate::maintenance`).

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use url::Url;

use crate::index_servers::IndexServers;

/// How long an index server may be silent for its transactions to be held for it.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// What index servers need. Clones share it.
#[derive(Debug, Clone)]
pub struct NeededSnapshots {
    index_servers: IndexServers,
    since: Instant,
    told: Arc<Mutex<BTreeMap<Url, (Instant, u64)>>>,
}

impl NeededSnapshots {
    /// Nobody has said anything by `now`.
    pub fn new(index_servers: IndexServers, now: Instant) -> Self {
        Self { index_servers, since: now, told: Arc::default() }
    }

    /// Takes note that the index server at `url` reads nothing below `oldest`. An empty URL is somebody else's.
    pub fn note(&self, url: &str, oldest: u64, now: Instant) {
        if let Ok(url) = Url::parse(url) {
            self.told.lock().insert(url, (now, oldest));
        }
    }

    /// The snapshot below which nothing is read; `None` while that is not known.
    pub fn oldest(&self, now: Instant) -> Option<u64> {
        let mut told = self.told.lock();
        told.retain(|_, (at, _)| now.duration_since(*at) < PATIENCE);
        let silent = self.index_servers.list().into_iter().any(|url| !told.contains_key(&url));
        if silent && now.duration_since(self.since) < PATIENCE {
            return None;
        }
        Some(told.values().map(|(_, oldest)| *oldest).min().unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_snapshot_of_any_index_server_counts() {
        let dir = tempfile::tempdir().unwrap();
        let urls = ["https://a:1", "https://b:1"].map(|url| Url::parse(url).unwrap());
        let servers = IndexServers::open(urls.to_vec(), dir.path().join("index_servers.json")).unwrap();
        let start = Instant::now();
        let needed = NeededSnapshots::new(servers, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        needed.note("https://a:1", 20, at(1));
        needed.note("", 0, at(1));
        assert_eq!(needed.oldest(at(1)), None, "one has not been heard of");
        needed.note("https://b:1/", 10, at(2));
        assert_eq!(needed.oldest(at(2)), Some(10));
        needed.note("https://b:1", 30, at(3));
        needed.note("https://c:1", 25, at(3));
        assert_eq!(needed.oldest(at(3)), Some(20));
        // Silent, but not for long; then for too long.
        needed.note("https://b:1", 40, at(290));
        assert_eq!(needed.oldest(at(300)), Some(20));
        assert_eq!(needed.oldest(at(310)), Some(40));
        assert_eq!(needed.oldest(at(1000)), Some(u64::MAX));
    }

    #[test]
    fn an_index_server_that_never_says_anything_holds_back_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let url = Url::parse("https://gone:1").unwrap();
        let servers = IndexServers::open(vec![url], dir.path().join("index_servers.json")).unwrap();
        let start = Instant::now();
        let needed = NeededSnapshots::new(servers, start);
        assert_eq!(needed.oldest(start + PATIENCE - Duration::from_secs(1)), None);
        assert_eq!(needed.oldest(start + PATIENCE), Some(u64::MAX));
    }
}
