//! The catalog's state and how to read it. How it changes is in [`super::apply()`].

use std::{fmt, sync::Arc};

use drsdb_core::{Error, ErrorCode, Result, Table, TableName, Ulid, WireError, nearest_name};
use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize};

use super::{Blob, ColumnSummary, Outcome, ShardStats, StorageServer};

/// A map whose clones share what they have in common.
pub(super) type Map<K, V> = RedBlackTreeMapSync<K, V>;

/// The schema that is there from the start.
pub const DEFAULT_SCHEMA: &str = "public";

/// All that the index servers agree on, at one version. Clones are cheap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogState {
    pub(super) version: u64,
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Names, and the versions at which they were made.
    pub(super) schemas: Map<String, u64>,
    pub(super) tables: Map<Ulid, Arc<TableState>>,
    pub(super) names: Map<TableName, Ulid>,
    pub(super) servers: Map<Ulid, Arc<StorageServer>>,
    /// Up to which commit each storage server is known to have taken in all.
    pub(super) applied: Map<Ulid, u64>,
    pub(super) users: Map<String, Arc<User>>,
    /// Outcomes that somebody may still ask for.
    pub(super) transactions: Map<Ulid, Outcome>,
    /// What storage servers have to know, by version.
    pub(super) events: Map<u64, Arc<Vec<Event>>>,
    /// Events up to this version are forgotten: every storage server has them.
    pub(super) forgotten: u64,
    /// Aborted transactions up to this id are forgotten; so old a transaction can no longer commit.
    pub(super) oldest_transaction: Ulid,
    /// What came of statements that clients have given ids, for those that ask again.
    #[serde(default)]
    pub(super) statements: Map<Ulid, Outcome>,
}

/// What makes the cluster this cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: Ulid,
    /// The key that signs tickets and tokens.
    pub signing_key_pkcs8: Blob,
}

/// A table: its definition, where its shards are, and what is in them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableState {
    /// The definition.
    pub table: Arc<Table>,
    /// Its shards: where each is, and what is in it.
    pub shards: Vec<Arc<ShardState>>,
    /// Statistics of all shards together, in column order; empty when unknown or when there are no rows.
    pub columns: Vec<ColumnSummary>,
    /// The version at which it was created.
    pub created_version: u64,
    /// The version of the last commit that added rows.
    pub changed_version: u64,
}

/// A shard: where it is, and what is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardState {
    /// Statistics of its rows.
    pub stats: ShardStats,
    /// Its replicas. The first current one decides who may write which key.
    pub replicas: Vec<Replica>,
    /// The version at which another replica became the first current one, 0 before that. What was checked by the one before
    /// does not count any more.
    pub epoch: u64,
    /// The last commit that inserted rows here.
    pub last_insert: u64,
    /// The last commit that deleted rows here.
    pub last_delete: u64,
}

/// A copy of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The storage server that has it.
    pub server: Ulid,
    /// Whether it has everything.
    pub state: ReplicaState,
}

/// How far a replica is. Versions are those at which it came to be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaState {
    /// It has every commit: snapshots of `since` and later can be read there.
    Current {
        /// Since when.
        since: u64,
    },
    /// It missed a commit, and is neither read nor written.
    Stale {
        /// Since when.
        since: u64,
    },
    /// It is written, and is being given what it missed.
    Rebuilding {
        /// Since when.
        since: u64,
    },
}

impl ShardState {
    /// A new shard, empty on all of `servers`.
    pub fn new(servers: &[Ulid], version: u64) -> Self {
        let state = ReplicaState::Current { since: version };
        Self {
            stats: ShardStats::default(),
            replicas: servers.iter().map(|&server| Replica { server, state }).collect(),
            epoch: 0,
            last_insert: version,
            last_delete: version,
        }
    }

    /// Servers whose replicas have everything, the one that checks writes first.
    pub fn current(&self) -> impl Iterator<Item = Ulid> {
        let current = self.replicas.iter().filter(|replica| matches!(replica.state, ReplicaState::Current { .. }));
        current.map(|replica| replica.server)
    }

    /// Servers at which `snapshot` can be read.
    pub fn readable_at(&self, snapshot: u64) -> impl Iterator<Item = Ulid> {
        let readable = move |state| matches!(state, ReplicaState::Current { since } if since <= snapshot);
        self.replicas.iter().filter(move |replica| readable(replica.state)).map(|replica| replica.server)
    }

    /// How many current replicas must have staged a change for it to be committed.
    pub fn majority(&self) -> usize {
        self.replicas.len() / 2 + 1
    }
}

/// Who may log in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its password, hashed.
    pub password_hash: String,
    /// Whether it may do everything.
    pub admin: bool,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).field("admin", &self.admin).finish_non_exhaustive()
    }
}

/// Something that storage servers have to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The transaction committed at the event's version.
    Committed(Ulid),
    /// The transaction never commits.
    Aborted(Ulid),
    /// The table is gone.
    TableDropped(Ulid),
}

impl Default for CatalogState {
    fn default() -> Self {
        Self {
            version: 0,
            cluster: None,
            schemas: Map::new_sync().insert(DEFAULT_SCHEMA.to_owned(), 0),
            tables: Map::new_sync(),
            names: Map::new_sync(),
            servers: Map::new_sync(),
            applied: Map::new_sync(),
            users: Map::new_sync(),
            transactions: Map::new_sync(),
            events: Map::new_sync(),
            forgotten: 0,
            oldest_transaction: Ulid::nil(),
            statements: Map::new_sync(),
        }
    }
}

impl TableState {
    /// Rows in all shards.
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.stats.rows).sum()
    }

    /// Bytes on disk of all shards, about.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.stats.bytes).sum()
    }
}

impl CatalogState {
    /// The version of the last command: a snapshot to read at.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Who the cluster is; `None` before its bootstrap.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// The cluster's id; `None` before its bootstrap.
    pub fn cluster_id(&self) -> Option<Ulid> {
        self.cluster.as_ref().map(|cluster| cluster.id)
    }

    /// The key that signs tickets and tokens, as PKCS#8; `None` before the cluster's bootstrap.
    pub fn signing_key_pkcs8(&self) -> Option<&[u8]> {
        self.cluster.as_ref().map(|cluster| &*cluster.signing_key_pkcs8)
    }

    /// The schemas, by name.
    pub fn schemas(&self) -> impl Iterator<Item = &str> {
        self.schemas.keys().map(String::as_str)
    }

    /// Whether there is a schema called `name`.
    pub fn has_schema(&self, name: &str) -> bool {
        self.schemas.contains_key(name)
    }

    /// The tables, by name.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableState>> {
        self.names.values().filter_map(|id| self.tables.get(id))
    }

    /// The table with this id.
    pub fn table(&self, id: Ulid) -> Option<&Arc<TableState>> {
        self.tables.get(&id)
    }

    /// The table with this name.
    pub fn table_by_name(&self, name: &TableName) -> Option<&Arc<TableState>> {
        self.names.get(name).and_then(|id| self.tables.get(id))
    }

    /// The table with this name, or an error that names the nearest.
    pub fn find_table(&self, name: &TableName) -> Result<&Arc<TableState>> {
        self.table_by_name(name).ok_or_else(|| self.no_table(name).into())
    }

    /// Tables with a foreign key to the table `parent`, itself included if it has one.
    pub fn children(&self, parent: Ulid) -> impl Iterator<Item = &Arc<TableState>> {
        self.tables().filter(move |child| child.table.foreign_keys.iter().any(|key| key.parent == parent))
    }

    /// The storage servers, oldest first.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<StorageServer>> {
        self.servers.values()
    }

    /// The storage server with this id.
    pub fn server(&self, id: Ulid) -> Option<&Arc<StorageServer>> {
        self.servers.get(&id)
    }

    /// The users, by name.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.users.values()
    }

    /// The user called `name`.
    pub fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.get(name)
    }

    /// What is decided about a transaction; `None`: nothing yet, or it is so long ago that nobody may need it.
    pub fn outcome(&self, transaction: Ulid) -> Option<Outcome> {
        self.transactions.get(&transaction).copied()
    }

    /// What came of the statement to which a client gave this id; `None`: it has not committed, or that was long ago.
    pub fn statement_outcome(&self, statement: Ulid) -> Option<Outcome> {
        self.statements.get(&statement).copied()
    }

    /// What storage servers have to know of each version after `version`, in order.
    pub fn events_after(&self, version: u64) -> impl Iterator<Item = (u64, &[Event])> {
        let later = (std::ops::Bound::Excluded(version), std::ops::Bound::Unbounded);
        self.events.range::<u64, _>(later).map(|(version, events)| (*version, events.as_slice()))
    }

    /// Events up to this version are forgotten: every storage server has taken them in.
    pub fn forgotten_version(&self) -> u64 {
        self.forgotten
    }

    /// Up to which commit a storage server is known to have taken in all.
    pub fn applied_by(&self, server: Ulid) -> Option<u64> {
        self.applied.get(&server).copied()
    }

    pub(super) fn no_table(&self, name: &TableName) -> WireError {
        let error =
            WireError::new(ErrorCode::NotFound, format!("table {name} does not exist")).with_field("table", name);
        let same_schema = self.tables().map(|state| &state.table.name).filter(|other| other.schema == name.schema);
        let elsewhere = self.tables().find(|state| state.table.name.table == name.table);
        match (nearest_name(&name.table, same_schema.map(|other| other.table.as_str())), elsewhere) {
            (Some(nearest), _) => error.with_hint(format!("did you mean {}.{nearest}?", name.schema)),
            (None, Some(other)) => error.with_hint(format!("did you mean {}?", other.table.name)),
            (None, None) if !self.has_schema(&name.schema) => self.no_schema(&name.schema),
            (None, None) => error,
        }
    }

    pub(super) fn no_schema(&self, name: &str) -> WireError {
        let error =
            WireError::new(ErrorCode::NotFound, format!("schema {name} does not exist")).with_field("schema", name);
        match nearest_name(name, self.schemas()) {
            Some(nearest) => error.with_hint(format!("did you mean {nearest}?")),
            None => error.with_hint(format!("create it first: CREATE SCHEMA {name}")),
        }
    }

    /// The error of everything that needs a bootstrapped cluster.
    pub fn require_cluster(&self) -> Result<&Arc<Cluster>> {
        self.cluster.as_ref().ok_or_else(|| {
            Error::from(
                WireError::new(ErrorCode::Unavailable, "this cluster is not bootstrapped")
                    .with_hint("start an index server with a bootstrap user and password"),
            )
        })
    }
}
