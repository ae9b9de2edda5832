//! Which storage servers answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use drsdb_core::{
    Error, ErrorCode, Result, Ulid,
    v1::{RevokedLogins, StatusRequest, StatusResponse, storage_client::StorageClient},
};
use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::NeededSnapshots;
use crate::{
    catalog::{Command, StorageServer},
    raft::{Catalog, Dial},
};

/// How often each server is asked.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const PING_TIME: Duration = Duration::from_secs(2);
/// After how many failures in a row a server is suspect.
const SUSPECT_AFTER: u32 = 2;
/// How long it takes until a server that was killed is suspect, when nobody says a word.
#[cfg(test)]
pub const KILLED_IS_SUSPECT_WITHIN: Duration = PING_EVERY.saturating_mul(SUSPECT_AFTER);

/// Servers that do not answer now. Cheap to clone; clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Suspects(Arc<RwLock<BTreeSet<Ulid>>>);

impl Suspects {
    /// Whether `server` does not answer.
    pub fn contains(&self, server: Ulid) -> bool {
        self.0.read().contains(&server)
    }

    fn set(&self, server: Ulid, suspect: bool) {
        if self.contains(server) != suspect {
            let mut suspects = self.0.write();
            if suspect {
                suspects.insert(server)
            } else {
                suspects.remove(&server)
            };
        }
    }
}

/// Pings the storage servers, and hears from whoever found that one does not answer.
pub struct Liveness {
    catalog: Arc<Catalog>,
    dial: Dial,
    suspects: Suspects,
    servers: Mutex<BTreeMap<Ulid, Health>>,
    wake: Notify,
    /// What storage servers are told with each ping, and by whom.
    needed: Mutex<NeededSnapshots>,
    url: String,
}

/// What is known of a server.
#[derive(Debug, Clone, Copy, Default)]
struct Health {
    /// In a row.
    failures: u32,
    failing_since: Option<Instant>,
    /// Whether it ever answered this index server.
    answered: bool,
    applied_version: u64,
}

impl Health {
    fn fail(&mut self, failures: u32) {
        self.failures = (self.failures + failures).min(u32::MAX / 2);
        self.failing_since.get_or_insert_with(Instant::now);
    }

    /// One more failure makes it suspect, however often it is doubted.
    fn doubt(&mut self) {
        self.failures = self.failures.max(SUSPECT_AFTER - 1);
        self.failing_since.get_or_insert_with(Instant::now);
    }
}

impl std::fmt::Debug for Liveness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Liveness").field("suspects", &self.suspects).finish_non_exhaustive()
    }
}

impl Liveness {
    /// Nobody is suspect yet. [`Liveness::run`] pings.
    /// `needed` is what the index server at `url`, this one, still reads.
    pub fn new(catalog: Arc<Catalog>, dial: Dial, needed: NeededSnapshots, url: String) -> Arc<Self> {
        let (suspects, servers, wake) = (Suspects::default(), Mutex::default(), Notify::new());
        Arc::new(Self { catalog, dial, suspects, servers, wake, needed: Mutex::new(needed), url })
    }

    /// The servers that do not answer, for those who need nothing else.
    pub fn suspects(&self) -> Suspects {
        self.suspects.clone()
    }

    /// Whether it is better not to count on `server`.
    pub fn is_suspect(&self, server: Ulid) -> bool {
        self.suspects.contains(server)
    }

    /// Whether the last ping was answered.
    pub fn answers(&self, server: Ulid) -> bool {
        self.servers.lock().get(&server).is_some_and(|health| health.answered && health.failures == 0)
    }

    /// For how long `server` has been suspect.
    pub fn suspect_for(&self, server: Ulid) -> Option<Duration> {
        let servers = self.servers.lock();
        let health = servers.get(&server).filter(|health| health.failures >= SUSPECT_AFTER)?;
        health.failing_since.map(|since| since.elapsed())
    }

    /// Up to which commit `server` had taken in all when it last answered.
    pub fn applied_version(&self, server: Ulid) -> Option<u64> {
        self.servers.lock().get(&server).filter(|health| health.answered).map(|health| health.applied_version)
    }

    /// Says that a call to `server` failed because it does not answer: it is suspect until a ping is answered.
    pub fn report_failure(&self, server: Ulid) {
        self.failed(server, SUSPECT_AFTER);
        self.wake.notify_one();
    }

    /// Says that a query failed, perhaps because `server` does not answer: it is pinged at once, and suspect if it does not
    /// answer that either. Word of it may come from another server, which alone may be cut off from it.
    pub fn doubt(&self, server: Ulid) {
        self.servers.lock().entry(server).or_default().doubt();
        self.wake.notify_one();
    }

    /// Has `server` taken from among the current replicas of every shard that has a majority without it. What was staged
    /// where it decided about writes has to be staged again, in the shard's new epoch.
    pub async fn demote(&self, server: Ulid) -> Result<()> {
        tracing::info!(%server, "demoting a storage server");
        self.catalog.propose(Command::DemoteServer { server }).await.map(drop)
    }

    /// Pings until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(PING_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let round = async {
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = self.wake.notified() => {}
                }
                let state = self.catalog.state();
                let servers: Vec<Arc<StorageServer>> = state.servers().cloned().collect();
                self.servers.lock().retain(|id, _| servers.iter().any(|server| server.id == *id));
                let oldest_snapshot = self.needed.lock().oldest(Instant::now(), state.version());
                let revoked = state.revoked_logins();
                let revoked = revoked.map(|(user, before)| RevokedLogins { user: user.to_owned(), before }).collect();
                let request = StatusRequest { index_server: self.url.clone(), oldest_snapshot, revoked };
                join_all(servers.iter().map(|server| self.ping(server, request.clone()))).await;
            }
        };
        shutdown.run_until_cancelled(round).await;
    }

    async fn ping(&self, server: &StorageServer, request: StatusRequest) {
        let answer = tokio::time::timeout(PING_TIME, self.status(server, request)).await;
        match answer {
            Ok(Ok(status)) => {
                let mut servers = self.servers.lock();
                let applied_version = status.applied_version;
                servers.insert(server.id, Health { answered: true, applied_version, ..Health::default() });
                if self.is_suspect(server.id) {
                    tracing::info!(server = %server.url, "a storage server answers again");
                }
                self.suspects.set(server.id, false);
            }
            Ok(Err(error)) => {
                tracing::debug!(server = %server.url, %error, "a storage server does not answer");
                self.failed(server.id, 1);
            }
            Err(_) => self.failed(server.id, 1),
        }
    }

    async fn status(&self, server: &StorageServer, request: StatusRequest) -> Result<StatusResponse> {
        let url = server.address()?;
        let status = StorageClient::new((self.dial)(&url)?).status(request).await?.into_inner();
        if status.server_id != server.id.to_string() {
            // Another server has the URL now.
            let message = format!("{url} is server {} and not {}", status.server_id, server.id);
            return Err(Error::new(ErrorCode::Unavailable, message));
        }
        Ok(status)
    }

    fn failed(&self, server: Ulid, failures: u32) {
        let mut servers = self.servers.lock();
        let health = servers.entry(server).or_default();
        health.fail(failures);
        if health.failures >= SUSPECT_AFTER {
            if !self.is_suspect(server) {
                tracing::warn!(%server, "a storage server does not answer");
            }
            self.suspects.set(server, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubted_server_is_suspect_with_the_next_failure_and_not_before() {
        let mut health = Health::default();
        health.doubt();
        health.doubt();
        assert!(health.failures < SUSPECT_AFTER);
        health.fail(1);
        assert_eq!(health.failures, SUSPECT_AFTER);
        health.doubt();
        assert_eq!(health.failures, SUSPECT_AFTER, "a doubt takes nothing back");
    }
}
