//! The SQLite file: its own tables, the table of a shard, and how connections to it are set up.
//!
//! ```text
//! shards          number ─ table_id, shard, import, columns, definition, dropped   one row a shard that ever got rows
//! shard_<number>  v_from, v_to, c0, c1, ...              the shard's rows; c<i> is the table's i-th column
//! shard_versions  shard ─ last_delete, forgotten         the last commit that deleted, the last one compacted away
//! pieces          piece ─ transaction_id, sequence, shard, state, version, counts, rows    staged changes, large commits
//! dropped_tables  table_id                               may not come back
//! counters        name ─ value                           `groups`: how often the file was written, see [`super::mark`]
//! ```
//!
//! A row's `v_from` is the version that made it visible, or, while that is not known or not worth writing down, minus
//! the number of its piece. `v_to` is [`LIVE`] as long as nothing ended the row, then the version that did, or, in the same
//! way, minus the number of the piece that deletes it. So both are undone by looking for minus the piece.
//!
//! Two indexes belong to a shard. `_key` is unique over the key's columns and `v_to`: unique among live rows, of use for
//! lookups at any snapshot, and a row that is being deleted leaves room for its successor. `_ended` holds the rows that
//! are not live, by `v_to`: what a piece deletes and what compaction removes are found without reading the others.
//!
//! Columns are named by position, so no name that SQL allows can clash with SQLite's words, and a rename costs nothing.
//! Only the key's columns are NOT NULL here: the index servers check that, and a column may be dropped later. A column
//! that was added later is added here when rows with it are first staged; what its `initial` says is its DEFAULT, which
//! SQLite gives to the rows from before without touching them, and to rows of statements that do not know it yet.

use std::{fs::File, path::Path};

use drsdb_core::{Error, ErrorCode, Result, Ulid, WireError, crash_point};
use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::{
    checked_reads::VFS,
    error::{Context, from_sqlite},
};

/// `v_to` of a row that nothing ended. Above every version, so `v_to > snapshot` needs no second case.
pub(crate) const LIVE: i64 = i64::MAX;

/// Marks the file as drsdb's ("drsR"), and with which layout.
const APPLICATION_ID: i64 = 0x6472_7352;
const LAYOUT: i64 = 2;

/// States of a piece, in the order of its life.
pub(crate) mod state {
    /// Its writer has not finished: after a restart it is removed.
    pub(crate) const WRITING: i64 = 0;
    /// Durable and checked: waits for its transaction's outcome.
    pub(crate) const STAGED: i64 = 1;
    /// Takes effect at `version`; its rows still say minus the piece.
    pub(crate) const COMMITTED: i64 = 2;
    /// It is being undone. What it changed is of no account any more: whoever meets a row of it may undo that row.
    pub(crate) const REMOVING: i64 = 3;
}

const LAYOUT_SQL: &str = "
CREATE TABLE shards (
    -- AUTOINCREMENT: the name of a dropped shard's table is never given to another.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    table_id BLOB NOT NULL,
    -- NULL: dropped, or an import that has not finished.
    shard INTEGER,
    -- The piece of an import that has not finished.
    import INTEGER UNIQUE,
    columns INTEGER NOT NULL,
    definition TEXT NOT NULL,
    dropped INTEGER NOT NULL DEFAULT 0,
    UNIQUE (table_id, shard)
) STRICT;
CREATE TABLE shard_versions (
    shard INTEGER PRIMARY KEY,
    last_delete INTEGER NOT NULL DEFAULT 0,
    forgotten INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE pieces (
    piece INTEGER PRIMARY KEY,
    transaction_id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    shard INTEGER NOT NULL,
    state INTEGER NOT NULL,
    version INTEGER,
    row_count INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    first_row INTEGER NOT NULL,
    last_row INTEGER NOT NULL
) STRICT;
CREATE INDEX pieces_of_transaction ON pieces (transaction_id);
CREATE INDEX pieces_of_shard ON pieces (shard, state);
CREATE INDEX pieces_that_delete ON pieces (shard) WHERE deleted > 0;
CREATE TABLE dropped_tables (table_id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('groups', 0);
";

/// Opens the file for its one writer, and makes it if it is not there.
pub(crate) fn open_writer(path: &Path, max_pages: Option<u32>) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(path, flags, VFS).context("opening its file")?;
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
        crash_point::reach("row.file.opened");
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| Error::io(format!("syncing {}", parent.display()), error))?;
        crash_point::reach("row.file.named");
    }
    Ok(connection)
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(256);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    stable_plans(connection)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         -- A commit is on disk when it is answered: WAL syncs once for each transaction.
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = OFF;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;
         -- 64 MiB of pages for the writer; each reader has 8.
         PRAGMA cache_size = -65536;
         -- The writer makes the checkpoints, see `pages`; a WAL that a long scan made larger is cut back after one.
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = 67108864;",
    )
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {LAYOUT_SQL} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {LAYOUT}; COMMIT;"
    ))
}

/// Opens the file for a reader. The writer has opened it before.
pub(crate) fn open_reader(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(path, flags, VFS).context("opening its file to read")?;
    connection.set_prepared_statement_cache_capacity(32);
    stable_plans(&connection).context("opening its file to read")?;
    connection
        .execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA cache_size = -8192;")
        .context("opening its file to read")?;
    Ok(connection)
}

/// Plans do not depend on bound values: SQLite would plan a kept statement anew for each of them.
fn stable_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// A ULID as SQLite keeps it.
pub(crate) fn id_bytes(id: Ulid) -> [u8; 16] {
    id.0.to_be_bytes()
}

/// Back from [`id_bytes`].
pub(crate) fn id_from_bytes(bytes: [u8; 16]) -> Ulid {
    Ulid(u128::from_be_bytes(bytes))
}

/// A version as SQLite keeps it.
pub(crate) fn version_integer(version: u64) -> Result<i64> {
    i64::try_from(version)
        .ok()
        .filter(|&version| version < LIVE)
        .ok_or_else(|| Error::internal(format!("version {version} is beyond what the row engine counts")))
}

/// A snapshot as SQLite compares it with versions: [`LIVE`] itself must stay above every snapshot.
pub(crate) fn snapshot_integer(snapshot: u64) -> i64 {
    i64::try_from(snapshot).unwrap_or(LIVE).min(LIVE - 1)
}

/// Runs a statement and answers how many rows it changed.
pub(crate) fn execute(connection: &Connection, sql: &str, parameters: impl rusqlite::Params) -> Result<usize> {
    connection
        .prepare_cached(sql)
        .and_then(|mut statement| statement.execute(parameters))
        .map_err(|error| from_sqlite(sql, &error))
}

/// Runs a statement and answers the first column of its rows.
pub(crate) fn integers(connection: &Connection, sql: &str, parameters: impl rusqlite::Params) -> Result<Vec<i64>> {
    connection
        .prepare_cached(sql)
        .and_then(|mut statement| statement.query_map(parameters, |row| row.get(0))?.collect())
        .map_err(|error| from_sqlite(sql, &error))
}
