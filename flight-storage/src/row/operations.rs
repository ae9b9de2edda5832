//! What the writer does to the file, as functions of a connection and an operation. Each runs inside a transaction that
//! [`super::writer`] begins and commits, and may be run again when that transaction failed for another's sake.
//!
//! ```text
//! append* (last: finish) ─▶ STAGED ── commit ─▶ small: rows get the version, the piece is forgotten
//!                              │                large: the piece gets the version (COMMITTED)
//!                              └ abort ─▶ REMOVING ── remove_slice* ─▶ gone
//! ```
//!
//! A commit costs the same whatever was staged: a few rows are stamped at once, which leaves nothing to look up when they
//! are read; for many, one row of `pieces` says from when they count, and scans look it up. So there is at most one such
//! row for every [`STAMP_ROWS`] rows of a shard.

use std::sync::Arc;

use arrow::array::RecordBatch;
use drsdb_core::{Error, ErrorCode, Result, Table, Ulid};
use rusqlite::{Connection, params, types::ToSqlOutput};

use super::{
    encoding::{Values, size_of},
    error::{Context, from_sqlite, is_duplicate},
    file::{
        LIVE, check_not_dropped, create_shard, find_shard, id_bytes, id_from_bytes, shard_table, state, version_integer,
    },
    primary_key::resolve_duplicate,
};

/// Up to this many rows a commit writes the version into the rows.
pub(super) const STAMP_ROWS: i64 = 1024;

/// Row numbers looked at by one step of a removal, so that other operations get in between.
const SLICE_ROWS: i64 = 20_000;

/// Rows of one piece to append.
#[derive(Debug)]
pub(super) struct Append {
    /// The piece's number; unique in the file, never 0.
    pub(super) piece: i64,
    pub(super) transaction: Ulid,
    pub(super) table: Arc<Table>,
    pub(super) shard: u32,
    pub(super) batches: Vec<RecordBatch>,
    /// Whether the piece begins with these rows.
    pub(super) first: bool,
    /// Whether the piece ends with these rows, and is staged then.
    pub(super) finish: bool,
}

/// Something to be done to the file.
#[derive(Debug)]
pub(super) enum Operation {
    Append(Append),
    /// The writer of a piece went away without finishing.
    Abandon {
        piece: i64,
    },
    Commit {
        transaction: Ulid,
        version: u64,
    },
    Abort {
        transaction: Ulid,
    },
    DropTable {
        table: Ulid,
    },
    /// Removes some rows of a piece in state REMOVING.
    RemoveSlice {
        piece: i64,
    },
    /// Gives a dropped shard's pages back to the file.
    FreeShard {
        number: i64,
    },
}

/// What an operation did.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Bytes of values written.
    pub(super) bytes: u64,
    /// What is left to be done later, in other transactions.
    pub(super) later: Vec<Operation>,
}

impl Operation {
    /// Bytes that the operation will write, about.
    pub(super) fn weight(&self) -> usize {
        match self {
            Operation::Append(append) => append.batches.iter().map(RecordBatch::get_array_memory_size).sum(),
            _ => 0,
        }
    }

    /// Does it.
    pub(super) fn run(&self, connection: &Connection) -> Result<Done> {
        match self {
            Operation::Append(append) => run_append(connection, append),
            Operation::Abandon { piece } => {
                let marked = execute(
                    connection,
                    "UPDATE pieces SET state = ?2 WHERE piece = ?1",
                    params![piece, state::REMOVING],
                )?;
                let later = if marked == 0 { vec![] } else { vec![Operation::RemoveSlice { piece: *piece }] };
                Ok(Done { bytes: 0, later })
            }
            Operation::Commit { transaction, version } => commit(connection, *transaction, *version),
            Operation::Abort { transaction } => abort(connection, *transaction),
            Operation::DropTable { table } => drop_table(connection, *table),
            Operation::RemoveSlice { piece } => remove_slice(connection, *piece),
            Operation::FreeShard { number } => free_shard(connection, *number),
        }
    }
}

/// What a crash or an orderly end left undone.
pub(super) fn left_undone(connection: &Connection) -> Result<Vec<Operation>> {
    execute(connection, "UPDATE pieces SET state = ?2 WHERE state = ?1", params![state::WRITING, state::REMOVING])?;
    let pieces = integers(connection, "SELECT piece FROM pieces WHERE state = ?1", state::REMOVING)?;
    let shards = integers(connection, "SELECT number FROM shards WHERE dropped = ?1", 1)?;
    let pieces = pieces.into_iter().map(|piece| Operation::RemoveSlice { piece });
    Ok(pieces.chain(shards.into_iter().map(|number| Operation::FreeShard { number })).collect())
}

/// The largest piece number in use.
pub(super) fn last_piece(connection: &Connection) -> Result<i64> {
    connection
        .query_row("SELECT coalesce(max(piece), 0) FROM pieces", [], |row| row.get(0))
        .context("reading its pieces")
}

/// Transactions that wait for their outcome.
pub(super) fn staged_transactions(connection: &Connection) -> Result<Vec<Ulid>> {
    let what = "reading staged transactions";
    let mut statement = connection
        .prepare_cached("SELECT DISTINCT transaction_id FROM pieces WHERE state = ?1 ORDER BY transaction_id")
        .context(what)?;
    let ids = statement.query_map([state::STAGED], |row| row.get(0).map(id_from_bytes)).context(what)?;
    ids.collect::<rusqlite::Result<_>>().context(what)
}

fn run_append(connection: &Connection, append: &Append) -> Result<Done> {
    check_not_dropped(connection, &append.table)?;
    let number = match find_shard(connection, &append.table, append.shard)? {
        Some(number) => number,
        None => create_shard(connection, &append.table, append.shard)?,
    };
    let name = shard_table(number);
    let first_row: i64 = connection
        .prepare_cached(&format!("SELECT coalesce(max(rowid), 0) + 1 FROM {name}"))
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .context("finding a shard's end")?;
    let (mut bytes, mut rows) = (0, 0);
    for batch in &append.batches {
        bytes += insert(connection, append, number, batch)?;
        rows += batch.num_rows() as i64;
    }
    let last_row = if rows == 0 { first_row - 1 } else { connection.last_insert_rowid() };
    let piece_state = if append.finish { state::STAGED } else { state::WRITING };
    if append.first {
        execute(
            connection,
            "INSERT INTO pieces (piece, transaction_id, shard, state, row_count, first_row, last_row)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![append.piece, id_bytes(append.transaction), number, piece_state, rows, first_row, last_row],
        )?;
    } else {
        let changed = execute(
            connection,
            "UPDATE pieces SET state = ?2, row_count = row_count + ?3, last_row = max(last_row, ?4)
             WHERE piece = ?1 AND state = ?5",
            params![append.piece, piece_state, rows, last_row, state::WRITING],
        )?;
        if changed == 0 {
            let message = format!("transaction {} was aborted while its rows came in", append.transaction);
            return Err(Error::new(ErrorCode::Conflict, message));
        }
    }
    Ok(Done { bytes, later: vec![] })
}

/// Inserts a batch and answers the bytes of its values.
fn insert(connection: &Connection, append: &Append, number: i64, batch: &RecordBatch) -> Result<u64> {
    let what = "inserting rows";
    let table = &append.table;
    if batch.num_columns() != table.columns.len() {
        let (got, want) = (batch.num_columns(), table.columns.len());
        return Err(Error::internal(format!("{got} columns came for table {}, which has {want}", table.name)));
    }
    let values: Vec<Values<'_>> = batch
        .columns()
        .iter()
        .zip(&table.columns)
        .map(|(array, column)| Values::new(array, column.sql_type))
        .collect::<Result<_>>()?;
    let name = shard_table(number);
    let columns: Vec<String> = (0..values.len()).map(|position| format!(", c{position}")).collect();
    let marks = ", ?".repeat(values.len());
    let sql = format!("INSERT INTO {name} (v_from, v_to{}) VALUES (?, {LIVE}{marks})", columns.concat());
    let mut statement = connection.prepare_cached(&sql).context(what)?;
    statement.raw_bind_parameter(1, -append.piece).context(what)?;
    let mut bytes = 0;
    for row in 0..batch.num_rows() {
        for (position, values) in values.iter().enumerate() {
            let value = values.get(row);
            bytes += match &value {
                ToSqlOutput::Borrowed(value) => size_of(value),
                ToSqlOutput::Owned(value) => size_of(&value.into()),
                _ => 0,
            };
            statement.raw_bind_parameter(position + 2, value).context(what)?;
        }
        while let Err(error) = statement.raw_execute() {
            if !is_duplicate(&error) {
                return Err(from_sqlite(what, &error));
            }
            resolve_duplicate(connection, append, number, batch, &values, row)?;
        }
    }
    Ok(bytes as u64)
}

fn commit(connection: &Connection, transaction: Ulid, version: u64) -> Result<Done> {
    let what = "committing a transaction";
    let version = version_integer(version)?;
    let pieces: Vec<[i64; 5]> = connection
        .prepare_cached(
            "SELECT piece, shard, row_count, first_row, last_row FROM pieces WHERE transaction_id = ?1 AND state = ?2",
        )
        .and_then(|mut statement| {
            let rows = statement.query_map(params![id_bytes(transaction), state::STAGED], |row| {
                Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])
            })?;
            rows.collect()
        })
        .context(what)?;
    for [piece, shard, rows, first_row, last_row] in pieces {
        if rows > STAMP_ROWS {
            execute(
                connection,
                "UPDATE pieces SET state = ?2, version = ?3 WHERE piece = ?1",
                params![piece, state::COMMITTED, version],
            )?;
        } else {
            let name = shard_table(shard);
            execute(
                connection,
                &format!("UPDATE {name} SET v_from = ?1 WHERE rowid BETWEEN ?2 AND ?3 AND v_from = ?4"),
                params![version, first_row, last_row, -piece],
            )?;
            execute(connection, "DELETE FROM pieces WHERE piece = ?1", params![piece])?;
        }
    }
    Ok(Done::default())
}

fn abort(connection: &Connection, transaction: Ulid) -> Result<Done> {
    let what = "aborting a transaction";
    let pieces: Vec<i64> = connection
        .prepare_cached("SELECT piece FROM pieces WHERE transaction_id = ?1 AND state IN (?2, ?3)")
        .and_then(|mut statement| {
            let ids = params![id_bytes(transaction), state::WRITING, state::STAGED];
            statement.query_map(ids, |row| row.get(0))?.collect()
        })
        .context(what)?;
    let mut done = Done::default();
    for piece in pieces {
        execute(connection, "UPDATE pieces SET state = ?2 WHERE piece = ?1", params![piece, state::REMOVING])?;
        // Most aborts are small and end here; the rest of a large one comes later, and nobody has to wait for it: its
        // keys count as free from now on.
        done.later.extend(remove_slice(connection, piece)?.later);
    }
    Ok(done)
}

fn remove_slice(connection: &Connection, piece: i64) -> Result<Done> {
    let what = "removing rows";
    let ranges: Vec<[i64; 3]> = connection
        .prepare_cached("SELECT shard, first_row, last_row FROM pieces WHERE piece = ?1")
        .and_then(|mut statement| {
            statement.query_map([piece], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?]))?.collect()
        })
        .context(what)?;
    // No range: the table was dropped meanwhile, and its pieces with it.
    let Some(&[shard, first_row, last_row]) = ranges.first() else { return Ok(Done::default()) };
    let end = last_row.min(first_row + SLICE_ROWS - 1);
    execute(
        connection,
        &format!("DELETE FROM {} WHERE rowid BETWEEN ?1 AND ?2 AND v_from = ?3", shard_table(shard)),
        params![first_row, end, -piece],
    )?;
    if end < last_row {
        execute(connection, "UPDATE pieces SET first_row = ?2 WHERE piece = ?1", params![piece, end + 1])?;
        return Ok(Done { bytes: 0, later: vec![Operation::RemoveSlice { piece }] });
    }
    execute(connection, "DELETE FROM pieces WHERE piece = ?1", params![piece])?;
    Ok(Done::default())
}

fn drop_table(connection: &Connection, table: Ulid) -> Result<Done> {
    let table = id_bytes(table);
    execute(connection, "INSERT OR IGNORE INTO dropped_tables VALUES (?1)", params![table])?;
    execute(
        connection,
        "DELETE FROM pieces WHERE shard IN (SELECT number FROM shards WHERE table_id = ?1)",
        params![table],
    )?;
    execute(connection, "UPDATE shards SET dropped = 1 WHERE table_id = ?1", params![table])?;
    let what = "dropping a table";
    let later = connection
        .prepare_cached("SELECT number FROM shards WHERE table_id = ?1")
        .and_then(|mut statement| {
            statement.query_map([table], |row| Ok(Operation::FreeShard { number: row.get(0)? }))?.collect()
        })
        .context(what)?;
    Ok(Done { bytes: 0, later })
}

fn free_shard(connection: &Connection, number: i64) -> Result<Done> {
    let what = "freeing a dropped shard";
    connection.execute_batch(&format!("DROP TABLE IF EXISTS {}", shard_table(number))).context(what)?;
    execute(connection, "DELETE FROM shards WHERE number = ?1", params![number])?;
    Ok(Done::default())
}

fn execute(connection: &Connection, sql: &str, parameters: impl rusqlite::Params) -> Result<usize> {
    connection
        .prepare_cached(sql)
        .and_then(|mut statement| statement.execute(parameters))
        .map_err(|error| from_sqlite(sql, &error))
}

fn integers(connection: &Connection, sql: &str, parameter: i64) -> Result<Vec<i64>> {
    connection
        .prepare_cached(sql)
        .and_then(|mut statement| statement.query_map([parameter], |row| row.get(0))?.collect())
        .map_err(|error| from_sqlite(sql, &error))
}
