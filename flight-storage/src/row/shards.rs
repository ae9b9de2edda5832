//! The shards of the file: finding one, making its SQLite table, adding columns to it, and giving it up.

use std::fmt::Write;

use drsdb_core::{Column, Error, ErrorCode, Result, Table, WireError};
use rusqlite::{
    Connection, OptionalExtension, params,
    types::{ToSqlOutput, Value},
};

use super::{
    encoding::{Values, column_type},
    error::Context,
    file::{LIVE, execute, id_bytes},
};
use crate::engine::ShardId;

/// SQLite's own limit is 2,000 columns; two are the versions'.
const MAX_COLUMNS: usize = 1998;

/// A shard's SQLite table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShardTable {
    /// Its number in the file.
    pub(crate) number: i64,
    /// How many columns it has: fewer than the table, when some were added and no row with them was staged yet.
    pub(crate) columns: usize,
    /// The last commit that deleted rows of it.
    pub(crate) last_delete: i64,
    /// Rows that commits up to this one deleted may be gone: no snapshot below it can be read any more.
    pub(crate) forgotten: i64,
}

impl ShardTable {
    /// The name of the SQLite table.
    pub(crate) fn name(&self) -> String {
        table_name(self.number)
    }
}

/// The SQLite table of shard `number`.
pub(crate) fn table_name(number: i64) -> String {
    format!("shard_{number}")
}

/// Refuses a table that was dropped.
pub(crate) fn check_not_dropped(connection: &Connection, table: &Table) -> Result<()> {
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

/// A table's shard, if it has rows or ever had.
pub(crate) fn find_shard(connection: &Connection, id: ShardId) -> Result<Option<ShardTable>> {
    find(connection, "table_id = ?1 AND shards.shard = ?2", params![id_bytes(id.table), id.shard])
}

/// The shard that the import `piece` fills.
pub(crate) fn find_import(connection: &Connection, piece: i64) -> Result<Option<ShardTable>> {
    find(connection, "import = ?1", params![piece])
}

fn find(connection: &Connection, condition: &str, parameters: impl rusqlite::Params) -> Result<Option<ShardTable>> {
    connection
        .prepare_cached(&format!(
            "SELECT number, columns, coalesce(last_delete, 0), coalesce(forgotten, 0)
             FROM shards LEFT JOIN shard_versions ON shard_versions.shard = number WHERE {condition}"
        ))
        .and_then(|mut statement| {
            let shard = statement.query_row(parameters, |row| {
                Ok(ShardTable {
                    number: row.get(0)?,
                    columns: row.get::<_, u32>(1)? as usize,
                    last_delete: row.get(2)?,
                    forgotten: row.get(3)?,
                })
            });
            shard.optional()
        })
        .context("looking up a shard")
}

/// The shard, made if it is not there, with all the columns of this definition of the table.
pub(crate) fn prepare_shard(connection: &Connection, table: &Table, shard: u32) -> Result<ShardTable> {
    let Some(mut found) = find_shard(connection, ShardId { table: table.id, shard })? else {
        return create_shard(connection, table, Some(shard), None);
    };
    if found.columns < table.columns.len() {
        check_columns(table)?;
        let name = found.name();
        for position in found.columns..table.columns.len() {
            let column = column_definition(table, position)?;
            connection
                .execute_batch(&format!("ALTER TABLE {name} ADD COLUMN {column}"))
                .context("adding a column to a shard")?;
        }
        found.columns = table.columns.len();
        execute(
            connection,
            "UPDATE shards SET columns = ?2, definition = ?3 WHERE number = ?1",
            params![found.number, found.columns as i64, definition(table)?],
        )?;
    }
    Ok(found)
}

/// Makes the SQLite table of a shard, or of what an import is to make one.
pub(crate) fn create_shard(
    connection: &Connection,
    table: &Table,
    shard: Option<u32>,
    import: Option<i64>,
) -> Result<ShardTable> {
    check_columns(table)?;
    let what = "creating a shard";
    let definition = definition(table)?;
    connection
        .prepare_cached("INSERT INTO shards (table_id, shard, import, columns, definition) VALUES (?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut statement| {
            statement.insert(params![id_bytes(table.id), shard, import, table.columns.len() as i64, definition])
        })
        .context(what)?;
    let number = connection.last_insert_rowid();
    let name = table_name(number);
    let mut columns = String::new();
    for position in 0..table.columns.len() {
        columns = columns + ", " + &column_definition(table, position)?;
    }
    let mut sql = format!("CREATE TABLE {name} (v_from INTEGER NOT NULL, v_to INTEGER NOT NULL{columns}) STRICT;");
    if !table.primary_key.is_empty() {
        let key: Vec<String> = table.primary_key.iter().map(|position| format!("c{position}, ")).collect();
        sql += &format!("CREATE UNIQUE INDEX {name}_key ON {name} ({}v_to);", key.concat());
    }
    sql += &format!("CREATE INDEX {name}_ended ON {name} (v_to) WHERE v_to < {LIVE};");
    connection.execute_batch(&sql).context(what)?;
    Ok(ShardTable { number, columns: table.columns.len(), last_delete: 0, forgotten: 0 })
}

/// Takes a shard out of use; its pages are freed later.
pub(crate) fn give_up_shard(connection: &Connection, number: i64) -> Result<()> {
    execute(connection, "DELETE FROM pieces WHERE shard = ?1", [number])?;
    execute(connection, "UPDATE shards SET dropped = 1, shard = NULL, import = NULL WHERE number = ?1", [number])?;
    Ok(())
}

/// Gives the pages of a shard that was given up back to the file.
pub(crate) fn free_shard(connection: &Connection, number: i64) -> Result<()> {
    let sql = format!("DROP TABLE IF EXISTS {}", table_name(number));
    connection.execute_batch(&sql).context("freeing a dropped shard")?;
    execute(connection, "DELETE FROM shard_versions WHERE shard = ?1", [number])?;
    execute(connection, "DELETE FROM shards WHERE number = ?1", [number])?;
    Ok(())
}

fn check_columns(table: &Table) -> Result<()> {
    if table.columns.len() > MAX_COLUMNS {
        let message = format!("table {} has {} columns", table.name, table.columns.len());
        return Err(WireError::new(ErrorCode::Unsupported, message)
            .with_hint(format!("the row engine takes {MAX_COLUMNS} columns: use WITH (engine = 'column')"))
            .into());
    }
    Ok(())
}

fn definition(table: &Table) -> Result<String> {
    serde_json::to_string(table)
        .map_err(|error| Error::internal(format!("table {} has no JSON form: {error}", table.name)))
}

fn column_definition(table: &Table, position: usize) -> Result<String> {
    let column = &table.columns[position];
    let not_null = if table.primary_key.contains(&position) { " NOT NULL" } else { "" };
    let initial = match initial_literal(column)? {
        literal if literal == "NULL" => String::new(),
        literal => format!(" DEFAULT ({literal})"),
    };
    Ok(format!("c{position} {}{not_null}{initial}", column_type(column.sql_type)))
}

/// What rows from before the column read as, as a literal of SQLite.
pub(crate) fn initial_literal(column: &Column) -> Result<String> {
    if column.initial.is_none() {
        return Ok("NULL".to_owned());
    }
    let array = column.initial_value()?;
    let values = Values::new(&array, column.sql_type)?;
    Ok(match values.get(0) {
        ToSqlOutput::Borrowed(value) => literal(value.try_into().map_err(|_| bad_initial(column))?),
        ToSqlOutput::Owned(value) => literal(value),
        _ => return Err(bad_initial(column)),
    })
}

fn bad_initial(column: &Column) -> Error {
    Error::internal(format!("column {} has an initial value that cannot be kept", column.name))
}

fn literal(value: Value) -> String {
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
            text
        })
    };
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        // SQLite's text of a statement ends at a NUL, so such a text is written as bytes.
        Value::Text(text) if text.contains('\0') => format!("CAST(x'{}' AS TEXT)", hex(text.as_bytes())),
        Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Blob(bytes) => format!("x'{}'", hex(&bytes)),
    }
}
