//! The catalog's state and how to read it. How it changes is in [`super::apply()`].

use std::{collections::BTreeMap, fmt, sync::Arc};

use drsdb_core::{Error, ErrorCode, Result, Table, TableKind, TableName, Ulid, WireError, nearest_name};
use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Blob, ColumnSummary, Outcome, Replica, ServerState, ShardState, StorageServer, User, View};

/// A map whose clones share what they have in common.
pub(super) type Map<K, V> = RedBlackTreeMapSync<K, V>;

/// The schema that is there from the start.
pub const DEFAULT_SCHEMA: &str = "public";

/// Schemas whose tables the index servers make up.
pub const RESERVED_SCHEMAS: [&str; 3] = ["information_schema", "pg_catalog", "drsdb"];

/// All that the index servers agree on, at one version. Clones are cheap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogState {
    pub(super) version: u64,
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Names, and the versions at which they were made.
    pub(super) schemas: Map<String, u64>,
    pub(super) tables: Map<Ulid, Arc<TableState>>,
    /// Users' tables; indexes have no names, nor have tables in the making.
    pub(super) names: Map<TableName, Ulid>,
    /// The tables that a transaction is making, and which one that is. Nobody else sees them, and nothing refers to them.
    #[serde(default)]
    pub(super) making: Map<Ulid, Making>,
    /// No view has the name of a table.
    #[serde(default)]
    pub(super) views: Map<TableName, Arc<View>>,
    pub(super) servers: Map<Ulid, Arc<StorageServer>>,
    /// What administrators and the leader say about them.
    #[serde(default)]
    pub(super) conditions: Map<Ulid, ServerCondition>,
    /// Up to which commit each storage server is known to have taken in all.
    pub(super) applied: Map<Ulid, u64>,
    pub(super) users: Map<String, Arc<User>>,
    /// Whose logins from before which version count no more; only the newest, for storage servers.
    #[serde(default)]
    pub(super) revoked_logins: Map<String, u64>,
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
    /// The largest of those that have been forgotten.
    #[serde(default)]
    pub(super) forgotten_statement: Ulid,
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

/// Who makes a table: it is there for others when the transaction commits, and goes when it does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Making {
    /// The transaction.
    pub transaction: Ulid,
    /// The URL of the index server that runs it.
    pub coordinator: String,
    /// The client's id of the statement: another run of it takes the place of this one.
    pub statement: Option<Ulid>,
}

/// How a storage server is used, and whether it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServerCondition {
    /// What administrators want of it.
    pub state: ServerState,
    /// The version at which the leader found that it does not answer; `None`: it does.
    pub down_since: Option<u64>,
}

impl fmt::Display for ServerCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.state, self.down_since) {
            (ServerState::Removed, _) => "removed",
            (ServerState::Active, None) => "active",
            (ServerState::Active, Some(_)) => "down",
            (ServerState::Draining, None) => "draining",
            (ServerState::Draining, Some(_)) => "draining, down",
        })
    }
}

impl ServerCondition {
    /// Whether new shards may be placed there.
    pub fn takes_shards(&self) -> bool {
        self.state == ServerState::Active && self.down_since.is_none()
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
    /// A server has no replica of a shard any more.
    ReplicaRemoved {
        /// The table.
        table: Ulid,
        /// The shard's number.
        shard: u32,
        /// The storage server.
        server: Ulid,
    },
}

impl Default for CatalogState {
    fn default() -> Self {
        Self {
            version: 0,
            cluster: None,
            schemas: Map::new_sync().insert(DEFAULT_SCHEMA.to_owned(), 0),
            tables: Map::new_sync(),
            names: Map::new_sync(),
            making: Map::new_sync(),
            views: Map::new_sync(),
            servers: Map::new_sync(),
            conditions: Map::new_sync(),
            applied: Map::new_sync(),
            users: Map::new_sync(),
            revoked_logins: Map::new_sync(),
            transactions: Map::new_sync(),
            events: Map::new_sync(),
            forgotten: 0,
            oldest_transaction: Ulid::nil(),
            statements: Map::new_sync(),
            forgotten_statement: Ulid::default(),
        }
    }
}

impl TableState {
    /// Rows in all shards.
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.stats.rows).sum()
    }

    /// Whether users have made it.
    pub fn is_users(&self) -> bool {
        self.table.kind == TableKind::Base
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

    /// The tables that are to be seen, those that keep the keys of UNIQUE constraints included, by id.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableState>> {
        self.tables.values().filter(move |table| !self.is_in_making(table.table.id))
    }

    /// The tables that users have made, by name.
    pub fn user_tables(&self) -> impl Iterator<Item = &Arc<TableState>> {
        self.names.values().filter_map(|id| self.tables.get(id))
    }

    /// The views, by name.
    pub fn views(&self) -> impl Iterator<Item = &Arc<View>> {
        self.views.values()
    }

    /// The view with this name.
    pub fn view(&self, name: &TableName) -> Option<&Arc<View>> {
        self.views.get(name)
    }

    /// The table with this id, be it in the making.
    pub fn table(&self, id: Ulid) -> Option<&Arc<TableState>> {
        self.tables.get(&id)
    }

    /// Whether a transaction is still making the table.
    pub fn is_in_making(&self, table: Ulid) -> bool {
        self.making.contains_key(&table)
    }

    /// Whether a transaction is making a table of that name.
    pub fn is_name_in_making(&self, name: &TableName) -> bool {
        self.making.keys().any(|id| self.tables.get(id).is_some_and(|table| table.table.name == *name))
    }

    /// Who makes a table now.
    pub fn making(&self) -> impl Iterator<Item = &Making> {
        self.making.values()
    }

    /// The table with this name.
    pub fn table_by_name(&self, name: &TableName) -> Option<&Arc<TableState>> {
        self.names.get(name).and_then(|id| self.tables.get(id))
    }

    /// The table with this name, or an error that names the nearest.
    pub fn find_table(&self, name: &TableName) -> Result<&Arc<TableState>> {
        self.table_by_name(name).ok_or_else(|| self.no_table(name).into())
    }

    /// The view with this name, or an error that names the nearest.
    pub fn find_view(&self, name: &TableName) -> Result<&Arc<View>> {
        self.view(name).ok_or_else(|| self.no_view(name).into())
    }

    /// Tables with a foreign key to the table `parent`, itself included if it has one.
    pub fn children(&self, parent: Ulid) -> impl Iterator<Item = &Arc<TableState>> {
        self.user_tables().filter(move |child| child.table.foreign_keys.iter().any(|key| key.parent == parent))
    }

    /// The storage servers, oldest first.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<StorageServer>> {
        self.servers.values()
    }

    /// How many replicas lie on each storage server that has any.
    pub fn replicas_by_server(&self) -> BTreeMap<Ulid, u64> {
        let mut held = BTreeMap::new();
        for shard in self.all_tables().flat_map(|table| &table.shards) {
            shard.replicas.iter().for_each(|replica| *held.entry(replica.server).or_default() += 1);
        }
        held
    }

    /// Where the storage server with this id is dialled.
    pub fn address_of(&self, server: Ulid) -> Result<Url> {
        let known = self.server(server);
        known.ok_or_else(|| Error::internal(format!("storage server {server} is not known")))?.address()
    }

    /// The storage server with this id.
    pub fn server(&self, id: Ulid) -> Option<&Arc<StorageServer>> {
        self.servers.get(&id)
    }

    /// How a storage server is used, and whether it answers.
    pub fn condition(&self, server: Ulid) -> ServerCondition {
        self.conditions.get(&server).copied().unwrap_or_default()
    }

    /// The replicas on a storage server: the table, the shard's number, and how far the replica is.
    pub fn replicas_on(&self, server: Ulid) -> impl Iterator<Item = (&Arc<TableState>, u32, &Replica)> {
        self.tables.values().flat_map(move |table| {
            let shards = (0..).zip(&table.shards);
            shards.filter_map(move |(shard, placed)| Some((table, shard, placed.replica(server)?)))
        })
    }

    /// All tables with their replicas, also those in the making.
    pub fn all_tables(&self) -> impl Iterator<Item = &Arc<TableState>> {
        self.tables.values()
    }

    /// The servers on which new shards are placed: those that answer and are not being drained. When there are none, all
    /// that are there.
    pub fn placement_servers(&self) -> Vec<&StorageServer> {
        let all = || self.servers.values().map(Arc::as_ref);
        let takes: Vec<_> = all().filter(|server| self.condition(server.id).takes_shards()).collect();
        if !takes.is_empty() {
            return takes;
        }
        let active: Vec<_> = all().filter(|server| self.condition(server.id).state == ServerState::Active).collect();
        if active.is_empty() { all().collect() } else { active }
    }

    /// What is decided about a transaction; `None`: nothing yet, or it is so long ago that nobody may need it.
    pub fn outcome(&self, transaction: Ulid) -> Option<Outcome> {
        self.transactions.get(&transaction).copied()
    }

    /// What came of the statement to which a client gave this id; `None`: it has not committed, or that was long ago.
    pub fn statement_outcome(&self, statement: Ulid) -> Option<Outcome> {
        self.statements.get(&statement).copied()
    }

    /// Whether what came of the statement, if anything did, has been forgotten.
    pub fn has_forgotten(&self, statement: Ulid) -> bool {
        statement <= self.forgotten_statement && !self.statements.contains_key(&statement)
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
        if self.views.contains_key(name) {
            return WireError::new(ErrorCode::InvalidArgument, format!("{name} is a view, and no table"))
                .with_hint("name a table here; views are read with SELECT, and dropped with DROP VIEW")
                .with_field("view", name);
        }
        let error =
            WireError::new(ErrorCode::NotFound, format!("table {name} does not exist")).with_field("table", name);
        self.with_nearest(error, name, &self.names.keys().chain(self.views.keys()).collect::<Vec<_>>())
    }

    pub(super) fn no_view(&self, name: &TableName) -> WireError {
        if self.names.contains_key(name) {
            return WireError::new(ErrorCode::InvalidArgument, format!("{name} is a table, and no view"))
                .with_hint("name a view here; tables are dropped with DROP TABLE")
                .with_field("table", name);
        }
        let error = WireError::new(ErrorCode::NotFound, format!("view {name} does not exist")).with_field("view", name);
        self.with_nearest(error, name, &self.views.keys().collect::<Vec<_>>())
    }

    fn with_nearest(&self, error: WireError, name: &TableName, others: &[&TableName]) -> WireError {
        let same_schema = others.iter().filter(|other| other.schema == name.schema);
        let elsewhere = others.iter().find(|other| other.table == name.table);
        match (nearest_name(&name.table, same_schema.map(|other| other.table.as_str())), elsewhere) {
            (Some(nearest), _) => error.with_hint(format!("did you mean {}.{nearest}?", name.schema)),
            (None, Some(other)) => error.with_hint(format!("did you mean {other}?")),
            (None, None) if RESERVED_SCHEMAS.contains(&name.schema.as_str()) => {
                error.with_hint("the schema is the server's own: see information_schema and drsdb")
            }
            (None, None) if !self.has_schema(&name.schema) => self.no_schema(&name.schema),
            (None, None) => error,
        }
    }

    pub(super) fn no_schema(&self, name: &str) -> WireError {
        let error =
            WireError::new(ErrorCode::NotFound, format!("schema {name} does not exist")).with_field("schema", name);
        match nearest_name(name, self.schemas()) {
            _ if RESERVED_SCHEMAS.contains(&name) => {
                error.with_hint("the name is the server's own: choose another one")
            }
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
