//! The SQLite file: its own tables, the table of a shard, and how connections to it are set up.
//!
//! ```text
//! shards          number ─ table_id, shard, definition, dropped     one row a shard that ever got rows
//! shard_<number>  v_from, v_to, c0, c1, ...                         the shard's rows; c<i> is the table's i-th column
//! pieces          piece ─ transaction_id, shard, state, version     staged rows, and large commits
//! dropped_tables  table_id                                          may not come back
//! ```
//!
//! A row's `v_from` is the version that made it visible, or, while that is not known or not worth writing down, minus
//! the number of its piece. `v_to` is the version that ended it, [`LIVE`] as long as there is none. The primary key is a
//! unique index over the key's columns and `v_to`: unique among live rows, and of use for lookups at any snapshot.
//!
//! Columns are named by position, so no name that SQL allows can clash with SQLite's words, and a rename costs nothing.

use std::{fs::File, path::Path};

use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, WireError};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::{encoding::column_type, error::Context};

/// `v_to` of a row that nothing ended. Above every version, so `v_to > snapshot` needs no second case.
pub(super) const LIVE: i64 = i64::MAX;

/// SQLite's own limit is 2,000 columns; two are the versions'.
const MAX_COLUMNS: usize = 1998;

/// Marks the file as drsdb's ("drsR"), and with which layout.
const APPLICATION_ID: i64 = 0x6472_7352;
const LAYOUT: i64 = 1;

/// States of a piece, in the order of its life.
pub(super) mod state {
    /// Its writer has not finished: after a restart it is removed.
    pub(in crate::row) const WRITING: i64 = 0;
    /// Durable and checked: waits for its transaction's outcome.
    pub(in crate::row) const STAGED: i64 = 1;
    /// Visible from `version` on; its rows still say minus the piece.
    pub(in crate::row) const COMMITTED: i64 = 2;
    /// Its rows are being removed.
    pub(in crate::row) const REMOVING: i64 = 3;
}

const LAYOUT_SQL: &str = "
CREATE TABLE shards (
    -- AUTOINCREMENT: the name of a dropped shard's table is never given to another.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    table_id BLOB NOT NULL,
    shard INTEGER NOT NULL,
    definition TEXT NOT NULL,
    dropped INTEGER NOT NULL DEFAULT 0,
    UNIQUE (table_id, shard)
) STRICT;
CREATE TABLE pieces (
    piece INTEGER PRIMARY KEY,
    transaction_id BLOB NOT NULL,
    shard INTEGER NOT NULL REFERENCES shards (number),
    state INTEGER NOT NULL,
    version INTEGER,
    row_count INTEGER NOT NULL,
    first_row INTEGER NOT NULL,
    last_row INTEGER NOT NULL
) STRICT;
CREATE INDEX pieces_of_transaction ON pieces (transaction_id);
CREATE INDEX pieces_of_shard ON pieces (shard, state);
CREATE TABLE dropped_tables (table_id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
";

/// Opens the file for its one writer, and makes it if it is not there.
pub(super) fn open_writer(path: &Path, max_pages: Option<u32>) -> Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .context("opening its file")?;
    set_up(&connection).context("setting up its file")?;
    if let Some(max_pages) = max_pages {
        connection.execute_batch(&format!("PRAGMA max_page_count = {max_pages}")).context("setting up its file")?;
    }
    let application_id: i64 =
        connection.query_row("PRAGMA application_id", [], |row| row.get(0)).context("reading its file's header")?;
    let layout: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).context("reading its file's header")?;
    match (application_id, layout) {
        (APPLICATION_ID, LAYOUT) => {}
        (0, 0) => create(&connection).context("creating its tables")?,
        _ => {
            let message = format!("{} has layout {layout}, and this drsdb knows {LAYOUT}", path.display());
            return Err(WireError::new(ErrorCode::Unsupported, message)
                .with_hint("start the server with the version of drsdb that wrote its data folder")
                .into());
        }
    }
    // The file's name itself must survive a crash, not only its content.
    if let Some(parent) = path.parent() {
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| Error::io(format!("syncing {}", parent.display()), error))?;
    }
    Ok(connection)
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(256);
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         -- A commit is on disk when it is answered: WAL syncs once for each transaction.
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = OFF;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;
         -- 64 MiB of pages for the writer; each reader has 8.
         PRAGMA cache_size = -65536;
         -- 32 MiB between checkpoints; a WAL that a long scan made larger is cut back after it.
         PRAGMA wal_autocheckpoint = 8192;
         PRAGMA journal_size_limit = 67108864;",
    )
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {LAYOUT_SQL} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {LAYOUT}; COMMIT;"
    ))
}

/// Opens the file for a reader. The writer has opened it before.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .context("opening its file to read")?;
    connection.set_prepared_statement_cache_capacity(32);
    connection
        .execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA cache_size = -8192;")
        .context("opening its file to read")?;
    Ok(connection)
}

/// A ULID as SQLite keeps it.
pub(super) fn id_bytes(id: Ulid) -> [u8; 16] {
    id.0.to_be_bytes()
}

/// Back from [`id_bytes`].
pub(super) fn id_from_bytes(bytes: [u8; 16]) -> Ulid {
    Ulid(u128::from_be_bytes(bytes))
}

/// A version as SQLite keeps it.
pub(super) fn version_integer(version: u64) -> Result<i64> {
    i64::try_from(version)
        .ok()
        .filter(|&version| version < LIVE)
        .ok_or_else(|| Error::internal(format!("version {version} is beyond what the row engine counts")))
}

/// The SQLite table of shard `number`.
pub(super) fn shard_table(number: i64) -> String {
    format!("shard_{number}")
}

/// Refuses a table that was dropped.
pub(super) fn check_not_dropped(connection: &Connection, table: &Table) -> Result<()> {
    let dropped = connection
        .prepare_cached("SELECT 1 FROM dropped_tables WHERE table_id = ?1")
        .and_then(|mut statement| statement.exists([id_bytes(table.id)]))
        .context("looking up a table")?;
    if dropped {
        let message = format!("table {} was dropped", table.name);
        return Err(Error::new(ErrorCode::NotFound, message));
    }
    Ok(())
}

/// The number of a table's shard, if it has rows or ever had.
pub(super) fn find_shard(connection: &Connection, table: &Table, shard: u32) -> Result<Option<i64>> {
    connection
        .prepare_cached("SELECT number FROM shards WHERE table_id = ?1 AND shard = ?2")
        .and_then(|mut statement| statement.query_row(params![id_bytes(table.id), shard], |row| row.get(0)).optional())
        .context("looking up a shard")
}

/// Makes the SQLite table of a shard, and answers its number.
pub(super) fn create_shard(connection: &Connection, table: &Table, shard: u32) -> Result<i64> {
    if table.columns.len() > MAX_COLUMNS {
        let message = format!("table {} has {} columns", table.name, table.columns.len());
        return Err(WireError::new(ErrorCode::Unsupported, message)
            .with_hint(format!("the row engine takes {MAX_COLUMNS} columns: use WITH (engine = 'column')"))
            .into());
    }
    let definition = serde_json::to_string(table)
        .map_err(|error| Error::internal(format!("table {} has no JSON form: {error}", table.name)))?;
    let what = "creating a shard";
    connection
        .prepare_cached("INSERT INTO shards (table_id, shard, definition) VALUES (?1, ?2, ?3)")
        .and_then(|mut statement| statement.insert(params![id_bytes(table.id), shard, definition]))
        .context(what)?;
    let number = connection.last_insert_rowid();
    let name = shard_table(number);
    let columns: Vec<String> = table
        .columns
        .iter()
        .enumerate()
        .map(|(position, column)| {
            let not_null = if column.not_null { " NOT NULL" } else { "" };
            format!(", c{position} {}{not_null}", column_type(column.sql_type))
        })
        .collect();
    let columns = columns.concat();
    connection
        .execute_batch(&format!(
            "CREATE TABLE {name} (v_from INTEGER NOT NULL, v_to INTEGER NOT NULL{columns}) STRICT;"
        ))
        .context(what)?;
    if !table.primary_key.is_empty() {
        let key: Vec<String> = table.primary_key.iter().map(|position| format!("c{position}, ")).collect();
        connection
            .execute_batch(&format!("CREATE UNIQUE INDEX {name}_key ON {name} ({}v_to);", key.concat()))
            .context(what)?;
    }
    Ok(number)
}
