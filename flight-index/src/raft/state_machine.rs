//! The state in memory, as openraft applies entries to it, and snapshots of it on disk.

use std::{io::Cursor, sync::Arc};

use drsdb_core::{Error, Result, crash_point};
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError, storage::RaftStateMachine,
};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    agreement::KeptStates,
    codec,
    database::Database,
    types::{
        Entry, IndexServer, LogId, NodeId, Responses, SnapshotMeta, StorageError, StoredMembership, TypeConfig,
        index_servers,
    },
};
use crate::catalog::{self, CatalogState};

/// openraft's state machine.
#[derive(Debug)]
pub struct StateMachine {
    database: Arc<Database>,
    current: Applied,
    published: Arc<Published>,
}

/// A state with all that a snapshot of it must say. Clones are cheap.
#[derive(Debug, Clone, Default)]
struct Applied {
    state: CatalogState,
    last: Option<LogId>,
    membership: StoredMembership,
}

/// Where the rest of the server reads the state.
#[derive(Debug)]
pub(super) struct Published {
    state: RwLock<Arc<CatalogState>>,
    version: watch::Sender<u64>,
    /// The index of the last entry in the state, also of those that change no catalog.
    applied: watch::Sender<u64>,
    members: watch::Sender<Arc<Vec<IndexServer>>>,
    kept: KeptStates,
}

impl Published {
    pub(super) fn state(&self) -> Arc<CatalogState> {
        self.state.read().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    pub(super) fn members(&self) -> watch::Receiver<Arc<Vec<IndexServer>>> {
        self.members.subscribe()
    }

    pub(super) fn kept(&self) -> &KeptStates {
        &self.kept
    }

    fn new(applied: &Applied) -> Self {
        Self {
            kept: KeptStates::default(),
            state: RwLock::new(Arc::new(applied.state.clone())),
            version: watch::Sender::new(applied.state.version()),
            applied: watch::Sender::new(applied.index()),
            members: watch::Sender::new(Arc::new(applied.members())),
        }
    }

    fn publish(&self, applied: &Applied) {
        *self.state.write() = Arc::new(applied.state.clone());
        self.version.send_replace(applied.state.version());
        let members = applied.members();
        self.members.send_if_modified(|known| {
            let changed = **known != members;
            if changed {
                *known = Arc::new(members);
            }
            changed
        });
        // Last: whoever waits for it reads the rest.
        self.applied.send_replace(applied.index());
    }
}

impl StateMachine {
    /// The state of the snapshot in `database`, or the empty one. Blocks.
    pub fn open(database: Arc<Database>) -> Result<Self> {
        let current = match database.snapshot()? {
            Some((meta, state)) => Applied::decode(&codec::decode("snapshot", &meta)?, &state)?,
            None => Applied::default(),
        };
        let published = Arc::new(Published::new(&current));
        Ok(Self { database, current, published })
    }

    pub(super) fn published(&self) -> Arc<Published> {
        self.published.clone()
    }
}

impl StateMachine {
    async fn install(&mut self, meta: &SnapshotMeta, snapshot: Box<Cursor<Vec<u8>>>) -> Result<(), StorageError> {
        let (state, of) = (snapshot.into_inner(), meta.clone());
        let decoded = tokio::task::spawn_blocking(move || (Applied::decode(&of, &state), state)).await;
        let decoded = decoded.map_err(|error| Error::internal(error.to_string()));
        let (installed, state) = decoded.map_err(|error| snapshot_error(meta, &error, false))?;
        let installed = installed.map_err(|error| snapshot_error(meta, &error, false))?;
        crash_point::reach("raft.install.before");
        let written = self.database.write_snapshot(installed.index(), codec::encode(meta), &state).await;
        written.map_err(|error| snapshot_error(meta, &error, true))?;
        self.published.kept.clear();
        self.current = installed;
        self.published.publish(&self.current);
        crash_point::reach("raft.install.published");
        Ok(())
    }
}

impl Applied {
    fn decode(meta: &SnapshotMeta, state: &[u8]) -> Result<Self> {
        let state: CatalogState = codec::decode("snapshot", state)?;
        Ok(Self { state, last: meta.last_log_id, membership: meta.last_membership.clone() })
    }

    fn index(&self) -> u64 {
        self.last.map_or(0, |last| last.index)
    }

    fn members(&self) -> Vec<IndexServer> {
        index_servers(&self.membership)
    }

    fn apply(&mut self, entry: Entry) -> Responses {
        self.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Responses::default(),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Responses::default()
            }
            EntryPayload::Normal(proposal) => {
                let version = entry.log_id.index;
                let apply = |command| (version, catalog::apply(&mut self.state, version, command));
                Responses(proposal.commands.iter().map(apply).collect())
            }
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.current.last, self.current.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Responses>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        crash_point::reach("raft.apply.before");
        let apply = |entry| {
            let responses = self.current.apply(entry);
            self.published.kept.offer(self.current.index(), &self.current.state);
            responses
        };
        let responses = entries.into_iter().map(apply).collect();
        // Before any proposer learns its response: it may read the state next.
        self.published.publish(&self.current);
        crash_point::reach("raft.apply.published");
        Ok(responses)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { database: self.database.clone(), applied: self.current.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        self.database.set_installing(true);
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let installed = self.install(meta, snapshot).await;
        self.database.set_installing(false);
        installed
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let database = self.database.clone();
        let read = move || -> Result<Option<Snapshot<TypeConfig>>> {
            let Some((meta, state)) = database.snapshot()? else { return Ok(None) };
            let meta = codec::decode("snapshot", &meta)?;
            Ok(Some(Snapshot { meta, snapshot: Box::new(Cursor::new(state)) }))
        };
        let read = tokio::task::spawn_blocking(read).await.map_err(|error| Error::internal(error.to_string()));
        read.flatten().map_err(|error| StorageIOError::<NodeId>::read_snapshot(None, AnyError::new(&error)).into())
    }
}

/// Writes a snapshot of the state as it was when the builder was made, while entries go on being applied.
#[derive(Debug)]
pub struct SnapshotBuilder {
    database: Arc<Database>,
    applied: Applied,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let Applied { state, last, membership } = self.applied.clone();
        let meta = SnapshotMeta {
            last_log_id: last,
            last_membership: membership,
            snapshot_id: last.map_or_else(|| "empty".to_owned(), |last| last.to_string()),
        };
        let encoded = tokio::task::spawn_blocking(move || codec::encode(&state)).await;
        let state = encoded.map_err(|error| snapshot_error(&meta, &Error::internal(error.to_string()), true))?;
        tracing::info!(version = last.map(|last| last.index), bytes = state.len(), "catalog snapshot");
        let written =
            self.database.write_snapshot(last.map_or(0, |last| last.index), codec::encode(&meta), &state).await;
        written.map_err(|error| snapshot_error(&meta, &error, true))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(state)) })
    }
}

fn snapshot_error(meta: &SnapshotMeta, error: &(impl std::error::Error + 'static), write: bool) -> StorageError {
    let signature = Some(meta.signature());
    if write {
        StorageIOError::write_snapshot(signature, AnyError::new(error)).into()
    } else {
        StorageIOError::read_snapshot(signature, AnyError::new(error)).into()
    }
}
