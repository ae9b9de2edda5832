//! Staging: rows are deleted by naming the piece in their `v_to`, and inserted with minus the piece as `v_from`.
//!
//! What stands in the way of a change of the row with some key:
//!
//! | | deleting it | inserting it |
//! |---|---|---|
//! | it is live, committed up to the snapshot | goes through | violation |
//! | it is live, committed after the snapshot | conflict | violation |
//! | it is live, staged by the same transaction | goes through | violation |
//! | it is live, staged by another | conflict | conflict |
//! | its deletion is staged by the same transaction | conflict: there is nothing to delete | goes through |
//! | its deletion is staged by another | conflict | conflict |
//! | it was deleted by a commit after the snapshot | conflict | conflict |
//! | it is not there | conflict | goes through |
//!
//! A replica that does not check (`checked` is false) takes what the first one let through: versions do not matter then,
//! and whatever else is in the way is a conflict, which ends when the other transaction's outcome arrives.
//!
//! The common cases cost one index lookup for a row: that a key is taken shows when the INSERT fails, that a row is there
//! when the UPDATE of its `v_to` finds it. Deletions that an INSERT cannot run into are looked for only in shards where
//! some are staged, or were committed after the snapshot.

use std::sync::Arc;

use arrow::array::RecordBatch;
use drsdb_core::{Error, ErrorCode, Result, Table, WireError};
use rusqlite::{Connection, params, types::ToSqlOutput};

use super::{
    encoding::{Values, size_of},
    error::{Context, from_sqlite, is_duplicate},
    file::{LIVE, execute, id_bytes, snapshot_integer, state},
    operations::Done,
    primary_key::{Keys, Owners},
    shards::{ShardTable, check_not_dropped, prepare_shard},
};
use crate::engine::StageOptions;

/// Changes of one piece, or a part of them.
#[derive(Debug)]
pub(crate) struct Change {
    /// The piece's number; unique in the file, never 0.
    pub(crate) piece: i64,
    pub(crate) options: StageOptions,
    pub(crate) table: Arc<Table>,
    pub(crate) shard: u32,
    /// Keys of rows to delete.
    pub(crate) deletes: Vec<RecordBatch>,
    /// New rows.
    pub(crate) inserts: Vec<RecordBatch>,
    /// Whether the piece begins with this.
    pub(crate) first: bool,
    /// Whether the piece ends with this, and is staged then.
    pub(crate) finish: bool,
}

impl Change {
    /// Stages it.
    pub(crate) fn run(&self, connection: &Connection) -> Result<Done> {
        let changer = Changer::begin(connection, self)?;
        let mut counts = Counts::default();
        for keys in &self.deletes {
            if let Some(&row) = changer.delete(keys)?.first() {
                return Err(Keys::of_keys(&self.table, keys)?.conflict(row, "it is not there any more"));
            }
            counts.deleted += keys.num_rows() as i64;
        }
        let mut bytes = 0;
        for rows in &self.inserts {
            let inserted = changer.insert(rows)?;
            bytes += inserted.bytes;
            counts.rows += rows.num_rows() as i64;
            counts.first_row = counts.first_row.min(inserted.first_row);
            counts.last_row = counts.last_row.max(inserted.last_row);
        }
        changer.record(counts)?;
        Ok(Done { bytes, ..Done::default() })
    }
}

/// What a change did, as its piece's row says it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) rows: i64,
    pub(crate) deleted: i64,
    /// All its rows have rowids from here
    pub(crate) first_row: i64,
    /// to here; others' may be among them. Without rows it is below `first_row`.
    pub(crate) last_row: i64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { rows: 0, deleted: 0, first_row: i64::MAX, last_row: 0 }
    }
}

/// What [`insert_rows`] did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inserted {
    /// Bytes of values.
    pub(crate) bytes: u64,
    /// The smallest rowid that was given, and the largest. SQLite gives the largest so far plus one, but what is cleared out
    /// of the way may have been that.
    pub(crate) first_row: i64,
    pub(crate) last_row: i64,
}

/// Carries out one [`Change`], step by step.
pub(crate) struct Changer<'a> {
    connection: &'a Connection,
    change: &'a Change,
    pub(crate) shard: ShardTable,
    snapshot: i64,
    owners: Owners,
    /// Some piece of the shard is being undone: its changes may be in the way, and are of no account.
    undoing: bool,
    /// Some deletion may be in the way of an INSERT.
    deletions: bool,
}

impl<'a> Changer<'a> {
    /// Finds the shard, or makes it.
    pub(crate) fn begin(connection: &'a Connection, change: &'a Change) -> Result<Self> {
        check_not_dropped(connection, &change.table)?;
        let shard = prepare_shard(connection, &change.table, change.shard)?;
        let snapshot = snapshot_integer(change.options.snapshot);
        if change.options.checked && snapshot < shard.forgotten {
            let message = format!("table {} has been compacted since the transaction began", change.table.name);
            return Err(WireError::new(ErrorCode::Conflict, message).with_hint("run the transaction again").into());
        }
        let what = "looking for other transactions";
        let undoing = connection
            .prepare_cached("SELECT 1 FROM pieces WHERE shard = ?1 AND state = ?2")
            .and_then(|mut statement| statement.exists([shard.number, state::REMOVING]))
            .context(what)?;
        let later = change.options.checked && shard.last_delete > snapshot;
        let deletions = later
            || connection
                .prepare_cached(
                    "SELECT 1 FROM pieces WHERE shard = ?1 AND deleted > 0 AND (transaction_id <> ?2 OR state = ?3)",
                )
                .and_then(|mut statement| {
                    let id = id_bytes(change.options.transaction);
                    statement.exists(params![shard.number, id, state::REMOVING])
                })
                .context(what)?;
        let owners = Owners::new(change.piece, change.options.transaction);
        Ok(Self { connection, change, shard, snapshot, owners, undoing, deletions })
    }

    /// Deletes the rows with these keys and answers which keys are not there. A row that is there and cannot be deleted is
    /// an error.
    pub(crate) fn delete(&self, keys: &RecordBatch) -> Result<Vec<usize>> {
        let what = "deleting rows";
        let Change { piece, options, table, .. } = self.change;
        let rows = keys.num_rows();
        let keys = &Keys::of_keys(table, keys)?;
        let newest = if options.checked { self.snapshot } else { LIVE };
        let (name, key, next) = (self.shard.name(), keys.condition(), keys.next_parameter());
        let sql = format!(
            "UPDATE {name} INDEXED BY {name}_key SET v_to = ?{next}
             WHERE {key} AND v_to = {LIVE} AND v_from BETWEEN 0 AND ?{}",
            next + 1
        );
        let mut statement = self.connection.prepare_cached(&sql).context(what)?;
        let mut missing = Vec::new();
        for row in 0..rows {
            if self.undoing {
                keys.settle(self.connection, &self.shard, &self.owners, row)?;
            }
            keys.bind(&mut statement, row)
                .and_then(|()| statement.raw_bind_parameter(next, -piece))
                .and_then(|()| statement.raw_bind_parameter(next + 1, newest))
                .context(what)?;
            if statement.raw_execute().context(what)? == 0 && !self.delete_unusual(keys, row)? {
                missing.push(row);
            }
        }
        Ok(missing)
    }

    /// Deletes a row that is not simply committed; answers whether there is one.
    fn delete_unusual(&self, keys: &Keys<'_>, row: usize) -> Result<bool> {
        let Change { piece, options, .. } = self.change;
        let live = keys.find(self.connection, &self.shard, row, &format!("v_to = {LIVE}"))?;
        let Some(&(rowid, v_from, _)) = live.first() else {
            for (_, _, v_to) in keys.find(self.connection, &self.shard, row, "v_to < 0")? {
                let owner = self.owners.of(self.connection, -v_to)?;
                let undecided = matches!(owner.state, state::WRITING | state::STAGED);
                if undecided && owner.transaction != options.transaction {
                    return Err(keys.conflict(row, "another transaction is changing or deleting it"));
                }
            }
            return Ok(false);
        };
        let version = if v_from >= 0 {
            v_from
        } else {
            let owner = self.owners.of(self.connection, -v_from)?;
            match owner.state {
                state::COMMITTED => owner.version,
                _ if owner.transaction == options.transaction => 0,
                _ => return Err(keys.conflict(row, "another transaction is writing it")),
            }
        };
        if options.checked && version > self.snapshot {
            return Err(keys.conflict(row, "another transaction has changed it"));
        }
        let sql = format!("UPDATE {} SET v_to = ?2 WHERE rowid = ?1", self.shard.name());
        execute(self.connection, &sql, [rowid, -piece])?;
        Ok(true)
    }

    /// Inserts rows.
    pub(crate) fn insert(&self, rows: &RecordBatch) -> Result<Inserted> {
        let Change { piece, table, .. } = self.change;
        let keys = Keys::of_rows(table, rows)?;
        if self.deletions && !table.primary_key.is_empty() {
            for row in 0..rows.num_rows() {
                self.check_deletions(&keys, row)?;
            }
        }
        insert_rows(self.connection, table, &self.shard, -piece, rows, |row| self.resolve_duplicate(&keys, row))
    }

    /// Refuses a key whose row another transaction is deleting, or has deleted since the snapshot.
    fn check_deletions(&self, keys: &Keys<'_>, row: usize) -> Result<()> {
        let options = &self.change.options;
        if self.undoing {
            keys.settle(self.connection, &self.shard, &self.owners, row)?;
        }
        let newest = if options.checked { self.snapshot } else { LIVE - 1 };
        let ended = format!("v_to < {LIVE} AND (v_to < 0 OR v_to > {newest})");
        for (_, v_from, v_to) in keys.find(self.connection, &self.shard, row, &ended)? {
            let begun = if v_from >= 0 { v_from } else { self.owners.of(self.connection, -v_from)?.version };
            let decided = if v_to >= 0 {
                v_to
            } else {
                let owner = self.owners.of(self.connection, -v_to)?;
                match owner.state {
                    state::COMMITTED => owner.version,
                    _ if owner.transaction == options.transaction => 0,
                    _ => return Err(keys.conflict(row, "another transaction is changing or deleting it")),
                }
            };
            // What one transaction both made and ended was never there.
            if decided > newest && decided != begun {
                return Err(keys.conflict(row, "another transaction has changed or deleted it"));
            }
        }
        Ok(())
    }

    /// Called when a row's key is there already. Clears away what is being undone, so that the INSERT can be tried again;
    /// else answers the error.
    fn resolve_duplicate(&self, keys: &Keys<'_>, row: usize) -> Result<()> {
        let options = &self.change.options;
        let live = keys.find(self.connection, &self.shard, row, &format!("v_to = {LIVE}"))?;
        let Some(&(_, v_from, _)) = live.first() else {
            return Err(Error::internal(format!("{} refuses a key that it does not have", self.shard.name())));
        };
        let committed = || match options.checked {
            true => keys.violation(row, "is there already"),
            false => keys.conflict(row, "it is there already on this server"),
        };
        if v_from >= 0 {
            return Err(committed());
        }
        let owner = self.owners.of(self.connection, -v_from)?;
        match owner.state {
            state::REMOVING => keys.settle(self.connection, &self.shard, &self.owners, row),
            state::COMMITTED => Err(committed()),
            _ if owner.transaction == options.transaction => Err(keys.violation(row, "is written twice")),
            _ => Err(keys.conflict(row, "another transaction is writing it")),
        }
    }

    /// Writes down what was done, and stages the piece if this was its end.
    pub(crate) fn record(&self, counts: Counts) -> Result<()> {
        let Change { piece, options, first, finish, .. } = self.change;
        let piece_state = if *finish { state::STAGED } else { state::WRITING };
        let Counts { rows, deleted, first_row, last_row } = counts;
        if *first {
            let id = id_bytes(options.transaction);
            execute(
                self.connection,
                "INSERT INTO pieces
                     (piece, transaction_id, sequence, shard, state, row_count, deleted, first_row, last_row)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    piece,
                    id,
                    options.sequence,
                    self.shard.number,
                    piece_state,
                    rows,
                    deleted,
                    first_row,
                    last_row
                ],
            )?;
            return Ok(());
        }
        let changed = execute(
            self.connection,
            "UPDATE pieces SET state = ?2, row_count = row_count + ?3, deleted = deleted + ?4,
                 first_row = min(first_row, ?5), last_row = max(last_row, ?6)
             WHERE piece = ?1 AND state = ?7",
            params![piece, piece_state, rows, deleted, first_row, last_row, state::WRITING],
        )?;
        if changed == 0 {
            let message = format!("transaction {} was aborted while its rows came in", options.transaction);
            return Err(Error::new(ErrorCode::Conflict, message));
        }
        Ok(())
    }
}

/// Inserts rows as live. `resolve` is asked about a row whose key is taken, and
/// either makes room for it or says why not.
pub(crate) fn insert_rows(
    connection: &Connection,
    table: &Table,
    shard: &ShardTable,
    v_from: i64,
    rows: &RecordBatch,
    resolve: impl Fn(usize) -> Result<()>,
) -> Result<Inserted> {
    let what = "inserting rows";
    if rows.num_columns() != table.columns.len() {
        let (got, want) = (rows.num_columns(), table.columns.len());
        return Err(Error::internal(format!("{got} columns came for table {}, which has {want}", table.name)));
    }
    let columns = rows.columns().iter().zip(&table.columns);
    let values: Vec<Values<'_>> =
        columns.map(|(array, column)| Values::new(array, column.sql_type)).collect::<Result<_>>()?;
    let names: Vec<String> = (0..values.len()).map(|position| format!(", c{position}")).collect();
    let marks = ", ?".repeat(values.len());
    let sql = format!("INSERT INTO {} (v_from, v_to{}) VALUES (?, {LIVE}{marks})", shard.name(), names.concat());
    let mut statement = connection.prepare_cached(&sql).context(what)?;
    statement.raw_bind_parameter(1, v_from).context(what)?;
    let mut bytes = 0;
    let (mut first_row, mut last_row) = (i64::MAX, 0);
    for row in 0..rows.num_rows() {
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
            resolve(row)?;
        }
        let rowid = connection.last_insert_rowid();
        (first_row, last_row) = (first_row.min(rowid), last_row.max(rowid));
    }
    Ok(Inserted { bytes: bytes as u64, first_row, last_row })
}
