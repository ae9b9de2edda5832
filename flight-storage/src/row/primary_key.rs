//! The primary key's violations: whose row is in the way, and the error that says so.

use arrow::{
    array::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use drsdb_core::{Error, ErrorCode, Result, Table, WireError};
use rusqlite::{Connection, OptionalExtension};

use super::{
    encoding::Values,
    error::Context,
    file::{LIVE, id_from_bytes, shard_table, state},
    operations::Append,
};

/// Called when a row's key is there already. Clears away a row that is being removed anyway, so that the INSERT can be
/// tried again; else answers the error.
pub(super) fn resolve_duplicate(
    connection: &Connection,
    append: &Append,
    shard: i64,
    batch: &RecordBatch,
    values: &[Values<'_>],
    row: usize,
) -> Result<()> {
    let what = "checking a primary key";
    let table = append.table.as_ref();
    let name = shard_table(shard);
    let conditions: Vec<String> =
        table.primary_key.iter().enumerate().map(|(at, column)| format!("c{column} = ?{} AND ", at + 1)).collect();
    let sql = format!("SELECT rowid, v_from FROM {name} WHERE {}v_to = {LIVE}", conditions.concat());
    let existing: Option<(i64, i64)> = connection
        .prepare_cached(&sql)
        .and_then(|mut statement| {
            for (at, &column) in table.primary_key.iter().enumerate() {
                statement.raw_bind_parameter(at + 1, values[column].get(row))?;
            }
            let mut rows = statement.raw_query();
            rows.next()?.map(|row| Ok((row.get(0)?, row.get(1)?))).transpose()
        })
        .context(what)?;
    let Some((rowid, v_from)) = existing else {
        return Err(Error::internal(format!("{name} refuses a key that it does not have")));
    };
    if v_from >= 0 {
        return Err(violation(table, batch, row, "is there already"));
    }
    if v_from == -append.piece {
        return Err(violation(table, batch, row, "comes twice in this load"));
    }
    let owner: Option<(i64, [u8; 16])> = connection
        .prepare_cached("SELECT state, transaction_id FROM pieces WHERE piece = ?1")
        .and_then(|mut statement| statement.query_row([-v_from], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .context(what)?;
    match owner {
        Some((state::REMOVING, _)) => {
            connection
                .prepare_cached(&format!("DELETE FROM {name} WHERE rowid = ?1"))
                .and_then(|mut statement| statement.execute([rowid]))
                .context(what)?;
            Ok(())
        }
        Some((state::COMMITTED, _)) => Err(violation(table, batch, row, "is there already")),
        Some((_, owner)) if id_from_bytes(owner) == append.transaction => {
            Err(violation(table, batch, row, "comes twice in this load"))
        }
        Some(_) => Err(conflict(table, batch, row)),
        None => Err(Error::internal(format!("{name} has rows of piece {}, which nobody knows", -v_from))),
    }
}

/// The name of a table's primary key constraint.
fn constraint_name(table: &Table) -> String {
    format!("{}_pkey", table.name.table)
}

fn violation(table: &Table, batch: &RecordBatch, row: usize, what: &str) -> Error {
    let (columns, key) = describe_key(table, batch, row);
    let constraint = constraint_name(table);
    let message = format!("{constraint} of table {}: the key ({columns}) = ({key}) {what}", table.name);
    WireError::new(ErrorCode::ConstraintViolation, message)
        .with_hint("change or leave out the row")
        .with_field("constraint", constraint)
        .with_field("key", key)
        .with_field("table", &table.name)
        .into()
}

fn conflict(table: &Table, batch: &RecordBatch, row: usize) -> Error {
    let (columns, key) = describe_key(table, batch, row);
    let constraint = constraint_name(table);
    let message =
        format!("{constraint} of table {}: another transaction is writing the key ({columns}) = ({key})", table.name);
    WireError::new(ErrorCode::Conflict, message)
        .with_hint("retry when the other transaction has ended")
        .with_field("constraint", constraint)
        .with_field("key", key)
        .with_field("table", &table.name)
        .into()
}

/// The key's columns and values as text.
fn describe_key(table: &Table, batch: &RecordBatch, row: usize) -> (String, String) {
    let options = FormatOptions::default();
    let names: Vec<&str> = table.primary_key.iter().map(|&column| table.columns[column].name.as_str()).collect();
    let values: Vec<String> = table
        .primary_key
        .iter()
        .map(|&column| {
            ArrayFormatter::try_new(batch.column(column), &options)
                .map_or_else(|_| "?".to_owned(), |formatter| shorten(formatter.value(row).to_string()))
        })
        .collect();
    (names.join(", "), values.join(", "))
}

/// Errors are read by people: a megabyte of key is no use in one.
fn shorten(text: String) -> String {
    const CHARACTERS: usize = 200;
    match text.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
