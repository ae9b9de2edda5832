//! Keys as bytes that compare like the keys: Arrow's row format over a table's key columns, and the errors that name a key.
//!
//! Not here: where keys are looked for (`unique`).

use std::sync::Arc;

use arrow::{
    array::ArrayRef,
    record_batch::RecordBatch,
    row::{RowConverter, Rows, SortField},
    util::display::{ArrayFormatter, FormatOptions},
};
use drsdb_core::{Error, ErrorCode, Result, Table, WireError};

/// Makes keys of some columns of a table.
#[derive(Debug)]
pub struct KeyFormat {
    columns: Vec<usize>,
    converter: RowConverter,
}

impl KeyFormat {
    /// Keys over `columns`; `None` when there are no columns.
    pub fn new(table: &Table, columns: &[usize]) -> Result<Option<Self>> {
        if columns.is_empty() {
            return Ok(None);
        }
        let fields = columns.iter().map(|&column| SortField::new(table.arrow_type(column))).collect();
        Ok(Some(Self { columns: columns.to_vec(), converter: RowConverter::new(fields)? }))
    }

    /// The positions of the key's columns.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The keys of rows that have all of the table's columns.
    pub fn keys(&self, batch: &RecordBatch) -> Result<Rows> {
        let columns: Vec<ArrayRef> = self.columns.iter().map(|&column| Arc::clone(batch.column(column))).collect();
        self.keys_of(&columns)
    }

    /// The keys made of the key's columns.
    pub fn keys_of(&self, columns: &[ArrayRef]) -> Result<Rows> {
        Ok(self.converter.convert_columns(columns)?)
    }

    /// The values of a key, each an array of one.
    pub fn values(&self, key: &[u8]) -> Result<Vec<ArrayRef>> {
        Ok(self.converter.convert_rows([self.converter.parser().parse(key)])?)
    }
}

/// Why a key cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clash {
    /// The same transaction writes it twice.
    Itself,
    /// A committed row has it.
    Committed,
    /// Another transaction has staged it, is about to delete it, or has deleted it since the snapshot.
    OtherTransaction,
    /// A committed row of this replica has it, which the one that checked does not have.
    Replica,
}

/// The error for a primary key that cannot be written.
pub fn clash_error(table: &Table, format: &KeyFormat, key: &[u8], clash: Clash) -> Error {
    let (names, values) = describe(table, format, key);
    let constraint = table.primary_key_name.clone().unwrap_or_else(|| format!("{}_pkey", table.name.table));
    let what = format!("{constraint} of table {}: ", table.name);
    let error = match clash {
        Clash::Itself => {
            let message = format!("{what}the key ({names}) = ({values}) is written twice");
            WireError::new(ErrorCode::ConstraintViolation, message).with_hint("change or leave out the row")
        }
        Clash::Committed => {
            let message = format!("{what}the key ({names}) = ({values}) is there already");
            WireError::new(ErrorCode::ConstraintViolation, message).with_hint("change or leave out the row")
        }
        Clash::Replica => {
            let message = format!("{what}the key ({names}) = ({values}) is there already on this server");
            WireError::new(ErrorCode::Conflict, message).with_hint("run the transaction again")
        }
        Clash::OtherTransaction => {
            let message = format!("{what}another transaction is writing the key ({names}) = ({values})");
            WireError::new(ErrorCode::Conflict, message).with_hint("retry when the other transaction has ended")
        }
    };
    error.with_field("constraint", constraint).with_field("key", values).with_field("table", &table.name).into()
}

/// A key's columns and values as text.
pub fn describe(table: &Table, format: &KeyFormat, key: &[u8]) -> (String, String) {
    /// Errors are read by people: a megabyte of key is no use in one.
    const CHARACTERS: usize = 200;
    let options = FormatOptions::default();
    let text = |value: &ArrayRef| {
        let text = ArrayFormatter::try_new(value, &options).map(|formatter| formatter.value(0).to_string()).ok()?;
        Some(match text.char_indices().nth(CHARACTERS) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        })
    };
    let values = format.values(key).unwrap_or_default();
    let values: Vec<String> = values.iter().map(|value| text(value).unwrap_or_else(|| "?".to_owned())).collect();
    let names: Vec<&str> = format.columns.iter().map(|&column| table.columns[column].name.as_str()).collect();
    (names.join(", "), values.join(", "))
}
