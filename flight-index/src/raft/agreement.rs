//! Whether the index servers agree: at one version, all have one state, byte for byte. A server that does not answers
//! queries and plans writes by a state of its own: its memory, its disk or its version of drsdb is broken, or applying is not
//! deterministic. Nobody can repair that while it runs, but somebody has to hear of it.
//!
//! Each server asks each other one now and then for the hash of a state that both have: the current one when it is quiet, and
//! else one of those that every server keeps for a while, at every so-manieth entry.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use drsdb_core::{Error, Result, security::digest::sha256};
use futures::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{codec, peers::Call, shell::Catalog};
use crate::catalog::CatalogState;

/// How often states are compared. It costs each server the encoding of two or three states.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
/// How long another server may take to hash its state.
const HASH_TIME: Duration = Duration::from_secs(20);
/// Every state at an index that this divides is kept for a while.
const KEEP_EVERY: u64 = 64;
/// So many of them: servers that lag no further behind have one in common.
const KEPT: usize = 8;

/// A state's hash. Two index servers that have the same version and not the same hash do not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// The version of the state.
    pub version: u64,
    /// SHA-256 of its encoding.
    pub sha256: [u8; 32],
}

impl StateHash {
    pub(super) fn of(state: &CatalogState) -> Self {
        // Canonical: every map of a state is sorted by its keys, and nothing in it is a map of another kind.
        Self { version: state.version(), sha256: sha256(&codec::encode(state)) }
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sha256.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// States that other servers have kept as well. They share most of their memory.
#[derive(Debug, Default)]
pub(super) struct KeptStates(Mutex<VecDeque<Arc<CatalogState>>>);

impl KeptStates {
    /// Keeps the state after the entry `index`, if every server does.
    pub(super) fn offer(&self, index: u64, state: &CatalogState) {
        if index.is_multiple_of(KEEP_EVERY) {
            let mut kept = self.0.lock();
            kept.push_front(Arc::new(state.clone()));
            kept.truncate(KEPT);
        }
    }

    /// Keeps nothing that came before a snapshot of another server.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    fn all(&self) -> Vec<Arc<CatalogState>> {
        self.0.lock().iter().cloned().collect()
    }
}

impl Catalog {
    /// The hash of the state now. It encodes the whole state: not for every request.
    pub async fn state_hash(&self) -> Result<StateHash> {
        hash(self.state()).await
    }

    /// Since which version this server knows that another one does not agree with it; `None`: as far as it knows, all do.
    pub fn disagrees_since(&self) -> Option<u64> {
        *self.disagrees_since.lock()
    }

    /// Compares states with all other index servers that answer.
    pub async fn compare_states(&self) -> Result<()> {
        let others = self.index_servers().into_iter().filter(|server| server.id != self.peers.id);
        let compared = others.map(|server| async move {
            let states = self.comparable();
            let versions: Vec<u64> = states.iter().map(|state| state.version()).collect();
            let asked = self.peers.call(&server.url, Call::HashState, &versions, HASH_TIME).await;
            // One that is away, or has no state in common, is asked again.
            let Ok(Some(theirs)) = asked else { return Ok(()) };
            let StateHash { version, .. } = theirs;
            let Some(state) = states.into_iter().find(|state| state.version() == version) else { return Ok(()) };
            let ours = hash(state).await?;
            if ours != theirs {
                tracing::error!(
                    version, server = server.id, %ours, %theirs,
                    "index servers disagree: at one version their states differ; compare them in drsdb.raft, then remove \
                     the one that differs from the others and add it again, empty and under a new number"
                );
                let mut since = self.disagrees_since.lock();
                *since = Some(since.map_or(version, |known| known.min(version)));
            }
            Ok::<(), Error>(())
        });
        join_all(compared).await.into_iter().collect()
    }

    /// Compares states now and then until `shutdown`.
    pub async fn keep_comparing(&self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(COMPARE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Some(Err(error)) = shutdown.run_until_cancelled(self.compare_states()).await {
                tracing::warn!(%error, "states could not be compared with other index servers");
            }
        }
    }

    /// The hash of the newest state that another server, which has these versions, has as well.
    pub(super) async fn hash_for_another(&self, versions: Vec<u64>) -> Option<StateHash> {
        let common = self.comparable().into_iter().filter(|state| versions.contains(&state.version()));
        hash(common.max_by_key(|state| state.version())?).await.ok()
    }

    fn comparable(&self) -> Vec<Arc<CatalogState>> {
        let mut states = self.published.kept().all();
        states.push(self.state());
        states
    }
}

async fn hash(state: Arc<CatalogState>) -> Result<StateHash> {
    let hashed = tokio::task::spawn_blocking(move || StateHash::of(&state));
    hashed.await.map_err(|error| Error::internal(error.to_string()))
}
