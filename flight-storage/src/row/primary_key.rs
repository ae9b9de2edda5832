//! Primary keys: finding rows by them, clearing undone changes out of the way, and the errors that name them.

use std::cell::Cell;

use arrow::{
    array::{ArrayRef, RecordBatch},
    util::display::{ArrayFormatter, FormatOptions},
};
use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, WireError};
use rusqlite::{CachedStatement, Connection, OptionalExtension};

use super::{
    encoding::Values,
    error::{Context, corrupt},
    file::{LIVE, execute, id_from_bytes, state},
    shards::ShardTable,
};

const WHAT: &str = "checking a primary key";

/// The primary keys of a batch.
pub(crate) struct Keys<'a> {
    table: &'a Table,
    arrays: Vec<&'a ArrayRef>,
    values: Vec<Values<'a>>,
}

impl<'a> Keys<'a> {
    /// Of whole rows.
    pub(crate) fn of_rows(table: &'a Table, rows: &'a RecordBatch) -> Result<Self> {
        Self::new(table, table.primary_key.iter().map(|&position| rows.column(position)).collect())
    }

    /// Of a batch of [`Table::key_schema`].
    pub(crate) fn of_keys(table: &'a Table, keys: &'a RecordBatch) -> Result<Self> {
        if table.primary_key.is_empty() {
            let message = format!("table {} has no primary key, so its rows cannot be deleted", table.name);
            return Err(Error::new(ErrorCode::Unsupported, message));
        }
        if keys.num_columns() != table.primary_key.len() {
            let (got, want) = (keys.num_columns(), table.primary_key.len());
            return Err(Error::internal(format!("{got} key columns came for table {}, which has {want}", table.name)));
        }
        Self::new(table, keys.columns().iter().collect())
    }

    fn new(table: &'a Table, arrays: Vec<&'a ArrayRef>) -> Result<Self> {
        let types = table.primary_key.iter().map(|&position| table.columns[position].sql_type);
        let values = arrays.iter().zip(types).map(|(array, sql_type)| Values::new(array, sql_type));
        Ok(Self { table, values: values.collect::<Result<_>>()?, arrays })
    }

    /// `c0 = ?1 AND c2 = ?2`, to be bound by [`Keys::bind`]. Parameters of the statement's own begin at
    /// [`Keys::next_parameter`].
    pub(crate) fn condition(&self) -> String {
        let columns = self.table.primary_key.iter().enumerate();
        let conditions: Vec<String> = columns.map(|(at, column)| format!("c{column} = ?{}", at + 1)).collect();
        conditions.join(" AND ")
    }

    /// The first parameter's number that [`Keys::condition`] does not use.
    pub(crate) fn next_parameter(&self) -> usize {
        self.values.len() + 1
    }

    /// Binds the key of `row`.
    pub(crate) fn bind(&self, statement: &mut CachedStatement<'_>, row: usize) -> rusqlite::Result<()> {
        for (at, values) in self.values.iter().enumerate() {
            statement.raw_bind_parameter(at + 1, values.get(row))?;
        }
        Ok(())
    }

    /// The rows with the key of `row` that also meet `condition`, as `(rowid, v_from, v_to)`.
    pub(crate) fn find(
        &self,
        connection: &Connection,
        shard: &ShardTable,
        row: usize,
        condition: &str,
    ) -> Result<Vec<(i64, i64, i64)>> {
        let name = shard.name();
        let key = self.condition();
        connection
            .prepare_cached(&format!(
                "SELECT rowid, v_from, v_to FROM {name} INDEXED BY {name}_key WHERE {key} AND {condition}"
            ))
            .and_then(|mut statement| {
                self.bind(&mut statement, row)?;
                let mut rows = statement.raw_query();
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push((row.get(0)?, row.get(1)?, row.get(2)?));
                }
                Ok(found)
            })
            .context(WHAT)
    }

    /// Undoes, in the rows with the key of `row`, what pieces changed that are being undone: nobody has to wait until the
    /// background comes to them.
    pub(crate) fn settle(
        &self,
        connection: &Connection,
        shard: &ShardTable,
        owners: &Owners,
        row: usize,
    ) -> Result<()> {
        let name = shard.name();
        let mut restore = Vec::new();
        for (rowid, v_from, v_to) in self.find(connection, shard, row, "(v_from < 0 OR v_to < 0)")? {
            if v_from < 0 && owners.of(connection, -v_from)?.state == state::REMOVING {
                execute(connection, &format!("DELETE FROM {name} WHERE rowid = ?1"), [rowid])?;
            } else if v_to < 0 && owners.of(connection, -v_to)?.state == state::REMOVING {
                restore.push(rowid);
            }
        }
        // Last, when what took the rows' places is gone.
        for rowid in restore {
            let sql = format!("UPDATE {name} SET v_to = {} WHERE rowid = ?1", LIVE);
            execute(connection, &sql, [rowid])?;
        }
        Ok(())
    }

    /// The error for a key that is there already.
    pub(crate) fn violation(&self, row: usize, what: &str) -> Error {
        let (columns, key) = self.describe(row);
        let constraint = self.constraint_name();
        let message = format!("{constraint} of table {}: the key ({columns}) = ({key}) {what}", self.table.name);
        WireError::new(ErrorCode::ConstraintViolation, message)
            .with_hint("change or leave out the row")
            .with_field("constraint", constraint)
            .with_field("key", key)
            .with_field("table", &self.table.name)
            .into()
    }

    /// The error for a row that another transaction has changed or is changing.
    pub(crate) fn conflict(&self, row: usize, what: &str) -> Error {
        let (columns, key) = self.describe(row);
        let message = format!("row ({columns}) = ({key}) of table {}: {what}", self.table.name);
        WireError::new(ErrorCode::Conflict, message)
            .with_hint("run the transaction again")
            .with_field("constraint", self.constraint_name())
            .with_field("key", key)
            .with_field("table", &self.table.name)
            .into()
    }

    fn constraint_name(&self) -> String {
        let name = self.table.primary_key_name.clone();
        name.unwrap_or_else(|| format!("{}_pkey", self.table.name.table))
    }

    /// The key's columns and values as text.
    fn describe(&self, row: usize) -> (String, String) {
        let options = FormatOptions::default();
        let columns = self.table.primary_key.iter();
        let names: Vec<&str> = columns.map(|&column| self.table.columns[column].name.as_str()).collect();
        let values: Vec<String> = self
            .arrays
            .iter()
            .map(|array| {
                ArrayFormatter::try_new(array, &options)
                    .map_or_else(|_| "?".to_owned(), |formatter| shorten(formatter.value(row).to_string()))
            })
            .collect();
        (names.join(", "), values.join(", "))
    }
}

/// What is known of a piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) state: i64,
    pub(crate) transaction: Ulid,
    /// 0 unless committed.
    pub(crate) version: i64,
}

/// Looks up pieces; one operation asks for few different ones many times.
#[derive(Debug)]
pub(crate) struct Owners {
    own: (i64, Owner),
    last: Cell<(i64, Owner)>,
}

impl Owners {
    /// For a change of `transaction` by `piece`, which is not written down yet.
    pub(crate) fn new(piece: i64, transaction: Ulid) -> Self {
        let own = (piece, Owner { state: state::WRITING, transaction, version: 0 });
        Self { own, last: Cell::new(own) }
    }

    /// The piece that a row names.
    pub(crate) fn of(&self, connection: &Connection, piece: i64) -> Result<Owner> {
        for (known, owner) in [self.own, self.last.get()] {
            if known == piece {
                return Ok(owner);
            }
        }
        let owner = connection
            .prepare_cached("SELECT state, transaction_id, coalesce(version, 0) FROM pieces WHERE piece = ?1")
            .and_then(|mut statement| {
                let owner = statement.query_row([piece], |row| {
                    let transaction = id_from_bytes(row.get(1)?);
                    Ok(Owner { state: row.get(0)?, transaction, version: row.get(2)? })
                });
                owner.optional()
            })
            .context(WHAT)?;
        let owner = owner.ok_or_else(|| corrupt(format!("a row names piece {piece}, which nobody knows")))?;
        self.last.set((piece, owner));
        Ok(owner)
    }
}

/// Errors are read by people: a megabyte of key is no use in one.
fn shorten(text: String) -> String {
    const CHARACTERS: usize = 200;
    match text.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
