//! What can be asked of the catalog. Commands are stored in the Raft log: a field may be added with a default, but none
//! may change its meaning.

use std::{collections::BTreeMap, fmt};

use drsdb_core::{Error, Result, Table, TableName, Ulid, security::Login};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Blob, Making, PieceInfo, View};

/// A change of the catalog. Ids, names and password hashes come from the proposer, so that [`super::apply()`] needs
/// neither clock nor randomness.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub enum Command {
    /// Makes the cluster, once: who it is, what it signs with, and its first administrator.
    Bootstrap {
        /// The cluster.
        cluster_id: Ulid,
        /// The Ed25519 key of tickets and tokens, as PKCS#8.
        signing_key_pkcs8: Blob,
        /// The first administrator.
        admin_user: String,
        /// Its password, hashed.
        admin_password_hash: String,
    },
    /// Announces a storage server, or says what changed about it.
    RegisterStorage {
        /// The server.
        server: StorageServer,
    },
    /// Says that a storage server has durably taken in every commit up to `version`. What all of them have taken in is
    /// forgotten.
    StorageApplied {
        /// The server.
        server: Ulid,
        /// Up to which commit.
        version: u64,
    },
    /// CREATE SCHEMA.
    CreateSchema {
        /// Its name.
        name: String,
        /// IF NOT EXISTS.
        if_not_exists: bool,
    },
    /// DROP SCHEMA. Refused for a schema with tables unless `cascade`, which drops them too.
    DropSchema {
        /// Its name.
        name: String,
        /// IF EXISTS.
        if_exists: bool,
        /// CASCADE.
        cascade: bool,
    },
    /// CREATE TABLE. The table's placement, and that of the [indexes](Table::unique_index) of its UNIQUE constraints, is
    /// decided when the command is applied.
    CreateTable {
        /// The definition, id included.
        table: Table,
        /// IF NOT EXISTS.
        if_not_exists: bool,
    },
    /// Places a table that a transaction makes: it gets its name with the transaction's commit, and goes with its abort. It has
    /// neither foreign keys nor UNIQUE constraints.
    MakeTable {
        /// The definition, id included.
        table: Table,
        /// Who makes it.
        making: Making,
    },
    /// DROP TABLE. Refused while another table's foreign key refers to it unless `cascade`, which drops those keys.
    DropTable {
        /// Its name.
        name: TableName,
        /// IF EXISTS.
        if_exists: bool,
        /// CASCADE.
        cascade: bool,
    },
    /// DROP TABLE of several tables, all or none; what holds between them holds none of them.
    DropTables {
        /// Their names.
        names: Vec<TableName>,
        /// IF EXISTS.
        if_exists: bool,
        /// CASCADE.
        cascade: bool,
    },
    /// ALTER TABLE: the definition as it is to be.
    AlterTable {
        /// The new definition. Its version is decided when the command is applied.
        table: Table,
        /// The version of the definition that it was made from; another one by now is a conflict.
        seen: u64,
        /// What the new definition relies on about rows was true at this version; a commit to the table since then is a
        /// conflict. `None`: it relies on nothing.
        unchanged_since: Option<u64>,
        /// CASCADE: foreign keys of other tables and views that need what is gone go too.
        cascade: bool,
        /// Foreign keys are told apart by their columns, and what new ones refer to was looked at, too. Logs also have it false:
        /// there, only the first key from one table to another is new.
        #[serde(default)]
        exact_keys: bool,
    },
    /// COMMENT ON TABLE, VIEW or COLUMN. It changes no version: nothing depends on it.
    Comment {
        /// The table or view.
        name: TableName,
        /// One of its columns; `None`: itself.
        column: Option<String>,
        /// The comment; `None`: none any more.
        text: Option<String>,
    },
    /// CREATE VIEW.
    CreateView {
        /// The view.
        view: View,
        /// OR REPLACE.
        or_replace: bool,
        /// IF NOT EXISTS.
        if_not_exists: bool,
    },
    /// DROP VIEW of one or several views, all or none.
    DropViews {
        /// Their names.
        names: Vec<TableName>,
        /// IF EXISTS.
        if_exists: bool,
        /// CASCADE: views that use them go too.
        cascade: bool,
    },
    /// Drops a table that nobody has used. Does nothing when it is not there. Only logs still have it, of failed loads into new
    /// tables that were not made by [`Command::MakeTable`].
    DropEmptyTable {
        /// Its id.
        table: Ulid,
    },
    /// A command of a statement to which the client has given an id: a second one under it changes nothing, and gets the first
    /// one's outcome. A refusal is not remembered.
    Once {
        /// The statement.
        statement: Ulid,
        /// What it asks for.
        command: Box<Command>,
    },
    /// Makes what a transaction staged visible, at the version at which this is applied. A repetition gets the first
    /// outcome.
    CommitTransaction {
        /// The transaction.
        transaction: Ulid,
        /// What it staged.
        tables: Vec<TableChange>,
        /// The client's id of the statement, or of the transaction's end: a second commit under it is not made, and gets
        /// the first one's outcome.
        #[serde(default)]
        statement: Option<Ulid>,
        /// How many rows that was, as the client is told. `None`: as many as were staged.
        #[serde(default)]
        rows: Option<u64>,
        /// What must not have happened meanwhile.
        #[serde(default)]
        validations: Vec<Validation>,
    },
    /// Decides that a transaction never commits, unless it has.
    AbortTransaction {
        /// The transaction.
        transaction: Ulid,
    },
    /// Takes a replica from among the current ones, for its server does not answer. Changes nothing when no majority of
    /// current replicas would remain.
    DemoteReplica {
        /// The table.
        table: Ulid,
        /// The shard's number.
        shard: u32,
        /// The storage server.
        server: Ulid,
        /// It is the last one from now on: the others decide about writes, also when it is current again.
        #[serde(default)]
        last: bool,
    },
    /// [`Command::DemoteReplica`] for all replicas of a server, which is down.
    DemoteServer {
        /// The storage server.
        server: Ulid,
    },
    /// Says that a storage server has lost what it had: its replicas are stale, whatever they were, and need a copy. What
    /// they have staged does not count any more. Refused, and nothing is changed, when a shard has no other current
    /// replica; a majority need not be left.
    LoseReplicas {
        /// The storage server.
        server: Ulid,
        /// The table and the number of the one shard that it has lost; `None`: all that it had.
        shard: Option<(Ulid, u32)>,
    },
    /// Says that a server which was down answers again.
    ServerUp {
        /// The storage server.
        server: Ulid,
    },
    /// Asked by a storage server that is ready to keep what is staged in the shard from now on, and to copy the rest. A
    /// replica that missed nothing is current at once.
    StartRebuild {
        /// The table.
        table: Ulid,
        /// The shard's number.
        shard: u32,
        /// The storage server.
        server: Ulid,
        /// It has kept nothing so far: had its rebuild begun before, it has not heard of it, and what it staged meanwhile is
        /// going to be replaced.
        #[serde(default)]
        fresh: bool,
    },
    /// Says that a rebuilt replica has all commits: those up to `copied` from a current replica, and later ones by itself.
    ReplicaCurrent {
        /// The table.
        table: Ulid,
        /// The shard's number.
        shard: u32,
        /// The storage server.
        server: Ulid,
        /// The snapshot at which the other replica was copied.
        copied: u64,
    },
    /// Gives a shard another replica, which is rebuilt first.
    AddReplica {
        /// The table.
        table: Ulid,
        /// The shard's number.
        shard: u32,
        /// The storage server that gets it.
        server: Ulid,
        /// The server that loses its replica when the new one is current.
        replaces: Option<Ulid>,
    },
    /// Takes a replica away, unless the shard needs it.
    RemoveReplica {
        /// The table.
        table: Ulid,
        /// The shard's number.
        shard: u32,
        /// The storage server that has it.
        server: Ulid,
    },
    /// Says how a storage server is to be used.
    SetServerState {
        /// The storage server.
        server: Ulid,
        /// How.
        state: ServerState,
    },
    /// Forgets a storage server. Refused while it has replicas.
    DropServer {
        /// The storage server.
        server: Ulid,
    },
    /// CREATE USER.
    CreateUser {
        /// Its name.
        name: String,
        /// Its password, hashed.
        password_hash: String,
        /// Who asks: an administrator. `None`: the cluster itself.
        #[serde(default)]
        by: Option<Login>,
    },
    /// ALTER USER ... PASSWORD.
    AlterUser {
        /// Its name.
        name: String,
        /// Its new password, hashed.
        password_hash: String,
        /// Who asks: an administrator, or the user. To hash takes a while, in which the login may have come to its end.
        #[serde(default)]
        by: Option<Login>,
    },
    /// DROP USER. The last administrator stays.
    DropUser {
        /// Its name.
        name: String,
        /// Who asks: an administrator.
        #[serde(default)]
        by: Option<Login>,
    },
}

/// A storage server as it announces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageServer {
    /// Made by the server on its first start.
    pub id: Ulid,
    /// `https://host:port`, as clients and other servers reach it.
    pub url: String,
    /// Cores for queries.
    pub cores: u32,
    /// Failure domain and the like.
    pub labels: BTreeMap<String, String>,
}

impl StorageServer {
    /// Where it is dialled.
    pub fn address(&self) -> Result<Url> {
        Url::parse(&self.url).map_err(|error| Error::internal(format!("storage server {}: {error}", self.url)))
    }
}

/// How a storage server is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ServerState {
    /// It holds shards.
    #[default]
    Active,
    /// Its shards move to others, and then it can be removed.
    Draining,
    /// It was dropped, and cannot come back under its id.
    Removed,
}

/// What a transaction staged in one table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableChange {
    /// The table.
    pub table: Ulid,
    /// The definition's [`version`](Table::version) for which the changes were made.
    #[serde(default)]
    pub version: u64,
    /// The rows, piece by piece; a shard may have several pieces, or none.
    pub pieces: Vec<PieceInfo>,
}

/// What a transaction relies on beyond the rows that it writes: a foreign key's other side. Commits are ordered, and this
/// is looked at in that order, so it needs no locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Validation {
    /// The table.
    pub table: Ulid,
    /// One of its shards; `None`: any.
    pub shard: Option<u32>,
    /// What no commit after `since` may have done there.
    pub absent: Absent,
    /// What the transaction has seen.
    pub since: u64,
}

/// See [`Validation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Absent {
    /// Rows deleted: what refers to them would dangle.
    Deletes,
    /// Rows inserted: they may refer to what is deleted.
    Inserts,
}

impl Command {
    /// Whether it may be proposed again when nobody knows what became of it: the second time gives the answer of the first,
    /// or changes nothing and says so. Of a command that is not listed here, the second time could be refused because of
    /// the first, or undo what somebody did in between.
    pub fn is_idempotent(&self) -> bool {
        matches!(
            self,
            Command::Bootstrap { .. }
                | Command::RegisterStorage { .. }
                | Command::StorageApplied { .. }
                | Command::MakeTable { .. }
                | Command::DropEmptyTable { .. }
                | Command::CommitTransaction { .. }
                | Command::AbortTransaction { .. }
                | Command::ServerUp { .. }
                | Command::StartRebuild { .. }
                | Command::ReplicaCurrent { .. }
                | Command::AddReplica { .. }
                | Command::RemoveReplica { .. }
                | Command::SetServerState { .. }
                // At worst a replica is rebuilt once more.
                | Command::DemoteReplica { .. }
                | Command::DemoteServer { .. }
                | Command::LoseReplicas { .. }
                | Command::Once { .. }
        )
    }

    /// The command's name, for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Command::Bootstrap { .. } => "bootstrap",
            Command::RegisterStorage { .. } => "register_storage",
            Command::StorageApplied { .. } => "storage_applied",
            Command::CreateSchema { .. } => "create_schema",
            Command::DropSchema { .. } => "drop_schema",
            Command::CreateTable { .. } => "create_table",
            Command::MakeTable { .. } => "make_table",
            Command::DropTable { .. } => "drop_table",
            Command::DropTables { .. } => "drop_tables",
            Command::AlterTable { .. } => "alter_table",
            Command::Comment { .. } => "comment",
            Command::CreateView { .. } => "create_view",
            Command::DropViews { .. } => "drop_views",
            Command::DropEmptyTable { .. } => "drop_empty_table",
            Command::CommitTransaction { .. } => "commit_transaction",
            Command::Once { command, .. } => command.kind(),
            Command::AbortTransaction { .. } => "abort_transaction",
            Command::DemoteReplica { .. } => "demote_replica",
            Command::DemoteServer { .. } => "demote_server",
            Command::LoseReplicas { .. } => "lose_replicas",
            Command::ServerUp { .. } => "server_up",
            Command::StartRebuild { .. } => "start_rebuild",
            Command::ReplicaCurrent { .. } => "replica_current",
            Command::AddReplica { .. } => "add_replica",
            Command::RemoveReplica { .. } => "remove_replica",
            Command::SetServerState { .. } => "set_server_state",
            Command::DropServer { .. } => "drop_server",
            Command::CreateUser { .. } => "create_user",
            Command::AlterUser { .. } => "alter_user",
            Command::DropUser { .. } => "drop_user",
        }
    }
}

/// Only the kind: some commands carry secrets, and logs print commands.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}
